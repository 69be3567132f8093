"""Which process trains in a run folder, and the wish that it stop."""

import fcntl
import itertools
import os
import time
from pathlib import Path
from typing import IO

import psutil

from neoxkit.errors import UserError

LOCK = ".lock"
STOP = "STOP"  # this file in a run folder asks its training to save and stop
CLOCK_SECONDS = 2.0  # how far a process's start and a file's time may be out of step
UNKNOWN = -1  # a holder that has not written its process id yet; never to be signalled
GUARDED = "NEOXKIT_GUARDED"  # set in the environment of a training whose guard holds the lock


def locked_by(folder: Path) -> int | None:
    """The process that trains in a folder right now, if any: the lock dies with its holder."""
    path = folder / LOCK
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at once
        except OSError:
            return int(path.read_text().strip() or 0) or UNKNOWN
    return None


def refuse_locked(folder: Path) -> None:
    """Refuse a folder in which a training runs right now."""
    if pid := locked_by(folder):
        raise _is_training(folder, pid)


def _is_training(folder: Path, pid: int) -> UserError:
    remedy = f'wait, watch("{folder.name}"), or neoxkit stop {folder.name}'
    return UserError("run", f"{folder.name} is training now (process {pid})", remedy)


def take(path: Path) -> IO[str] | None:
    """Take a lock until the file is closed; None where another holds it longer than a look does."""
    file = path.open("a")
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
            continue
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file
    file.close()
    return None


def hold(folder: Path) -> IO[str] | None:
    """Take the lock of a training that has no guard; it is held until the file is closed."""
    if os.environ.get(GUARDED):
        return None
    file = take(folder / LOCK)
    if not file:
        raise _is_training(folder, locked_by(folder) or UNKNOWN)
    _forget_stale_stop(folder)
    return file


def _forget_stale_stop(folder: Path) -> None:
    """Delete a stop request that is older than this training; one made during its start counts."""
    request = folder / STOP
    if request.exists() and request.stat().st_mtime < _started() - CLOCK_SECONDS:
        answer_stop(folder)


def _started() -> float:
    """Return when this training began: this process, or the launchers of DeepSpeed above it."""
    me = psutil.Process()
    above = itertools.takewhile(lambda p: "deepspeed" in " ".join(p.cmdline()), me.parents())
    return min(p.create_time() for p in (me, *above))


def ask_to_stop(folder: Path) -> None:
    """Ask the training in a folder to finish its step, save and stop."""
    (folder / STOP).touch()


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody asked so, and nobody has answered yet."""
    return (folder / STOP).exists()


def answer_stop(folder: Path) -> None:
    """The wish was granted, or is of the past."""
    (folder / STOP).unlink(missing_ok=True)
