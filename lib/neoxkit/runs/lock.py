"""The lock that a training holds on its run folder, and the request to stop it."""

import errno
import fcntl
import itertools
import os
import time
from pathlib import Path
from typing import IO

import psutil

from neoxkit.errors import UserError
from neoxkit.runs import jobs, lease

LOCK = ".lock"
STOP = "STOP"  # this file in a run folder asks its training to save and stop
CLOCK_SECONDS = 2.0  # largest difference between the clocks of processes and files
UNKNOWN = -1  # a holder that has not written its process id yet, or of another machine
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # of flock, by the file system
# In the environment of a training whose guard holds the lock: its run folder.
GUARDED = "NEOXKIT_GUARDED"


def locked_by(folder: Path) -> int | None:
    """Return the process now training in a folder, if any: the lock dies with its holder.

    It is UNKNOWN for a training that holds a lease. A file system without locks has no holders.
    """
    return _process(folder) or (UNKNOWN if leased_by(folder) else None)


def leased_by(folder: Path) -> lease.Holder | None:
    """Return who holds the lease on a folder.

    The job that this process runs in holds none against itself. One that is not in this person's
    queue may be another's, or on another cluster: it holds one for as long as it renews it.
    """
    found = lease.holder(folder)
    if not found or found.token.engine != lease.SLURM:
        return found
    if found.token.job == jobs.own():
        return None
    return lease.holder(folder, 2 * lease.RENEW_SECONDS) if jobs.is_over(found.token.job) else found


def _process(folder: Path) -> int | None:
    path = folder / LOCK
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may check at once
        except OSError as fault:
            return None if fault.errno in _NO_LOCKS else _holder(path)
    return None


def _holder(path: Path) -> int:
    """Return who wrote its id into a lock file that is held, if that process is still here.

    Until the holder has written its own, the file has that of an earlier one, which is gone.
    """
    written, pid = path.stat().st_mtime, written_in(path.parent)
    try:
        is_it = psutil.Process(pid).create_time() < written + CLOCK_SECONDS
    except psutil.Error:
        return UNKNOWN
    return pid if pid and is_it else UNKNOWN


def written_in(folder: Path) -> int:
    """Return the process that wrote its id into a folder's lock last, 0 if none did: it may be
    gone."""
    path = folder / LOCK
    return int(path.read_text().strip() or 0) if path.exists() else 0


def refuse_locked(folder: Path) -> None:
    """Refuse a folder in which a training is running."""
    if pid := locked_by(folder):
        raise _is_training(folder, pid)


def _is_training(folder: Path, pid: int) -> UserError:
    elsewhere = str(lease.holder(folder) or "another machine, or it has just begun")
    return lease.is_training(folder, elsewhere if pid == UNKNOWN else f"process {pid}")


def began(folder: Path) -> float:
    """Return when the training that is on now took the lock or the lease (seconds since 1970)."""
    if found := lease.holder(folder):
        return found.since
    return (folder / LOCK).stat().st_mtime


def take(path: Path) -> IO[str] | None:
    """Take a lock until the file is closed; None if another holds it for longer than a check.

    Refuse a file system that has no locks.
    """
    file = path.open("a")
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            if fault.errno in _NO_LOCKS:
                file.close()
                what = f"the file system of {path.parent.name} has no locks ({fault.strerror})"
                remedy = "mount it with them (Lustre: -o flock), or move the checkout to another"
                raise UserError("run", what, remedy) from fault
            time.sleep(0.05)
            continue
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file
    file.close()
    return None


def hold(folder: Path) -> IO[str] | None:
    """Take the lock for a training without a guard; it is held until the file is closed."""
    if os.environ.get(GUARDED):
        return None
    file = take(folder / LOCK)
    if not file:
        raise _is_training(folder, locked_by(folder) or UNKNOWN)
    if leased_by(folder):
        file.close()
        raise _is_training(folder, UNKNOWN)
    _forget_stale_stop(folder)
    return file


def take_lease(folder: Path) -> str:
    """Take the lease in place of the lock, in rank 0; return what the other ranks join it with.

    A stop request stays: it was made after the job was handed in, and clocks of hosts differ.
    """
    if not os.environ.get(GUARDED) and (pid := _process(folder)):
        raise _is_training(folder, pid)
    return lease.take(folder)


def _forget_stale_stop(folder: Path) -> None:
    """Delete a stop request older than this training; one made during its start counts."""
    request = folder / STOP
    if request.exists() and request.stat().st_mtime < _started() - CLOCK_SECONDS:
        answer_stop(folder)


def _started() -> float:
    """Return when this training began: this process, or DeepSpeed's launchers above it."""
    me = psutil.Process()
    above = itertools.takewhile(_is_deepspeed, me.parents())
    return min(p.create_time() for p in (me, *above))


def _is_deepspeed(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:  # another user's, whose command line is hidden on some clusters
        return False
    return any(Path(w).name == "deepspeed" or w.startswith("deepspeed.launcher") for w in words)


def ask_to_stop(folder: Path) -> None:
    """Ask the training in a folder to finish its step, save and stop."""
    (folder / STOP).touch()


def asked_to_stop(folder: Path) -> bool:
    """Return whether there is a stop request that has not been carried out."""
    return (folder / STOP).exists()


def answer_stop(folder: Path) -> None:
    """Delete the stop request: it was carried out, or is stale."""
    lease.check(folder)
    (folder / STOP).unlink(missing_ok=True)
