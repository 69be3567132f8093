"""Compiling DeepSpeed's extensions, without waiting for ever for a process that is gone.

torch locks the folder of an extension with a file named `lock`, which a killed process leaves
there. Whether its holder is alive is seen by the open file, for processes on this machine; for one
on another machine, only by what changes in the folder.
"""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from neoxkit.errors import UserError
from neoxkit.machine import duration
from neoxkit.runs import heartbeat

LOOK_SECONDS = 30.0  # between two looks whether the holder of a lock is alive
QUIET_SECONDS = 600.0  # without a change: a single file takes a compiler some minutes at most
# File systems of one machine alone. Others may be shared: the holder may be elsewhere.
LOCAL = {"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


def take_over_locks(signs: heartbeat.Signs, notices: list[str]) -> None:
    """Make torch take over locks whose holders are gone, with a notice, in this process.

    The heartbeats say what is compiled.
    """

    def lock(path: str) -> Lock:
        return Lock(path, signs, notices)

    cpp_extension.FileBaton = lock  # type: ignore[misc,assignment]


class Lock(FileBaton):
    """torch's lock, which says who holds it, and is taken over when its holder is gone."""

    def __init__(self, path: str, signs: heartbeat.Signs, notices: list[str]) -> None:
        super().__init__(path)
        self.path, self.signs, self.notices = Path(path), signs, notices

    def try_acquire(self) -> bool:
        """Take the lock; wait for a living holder. What that one compiled, ninja does not again."""
        extension = self.path.parent.name
        self.signs.begin(heartbeat.COMPILING, extension)
        begun, looks = time.monotonic(), 0
        while not super().try_acquire():
            if not looks:  # one heartbeat, so that the guard sees a wait that does not end
                self.signs.begin(heartbeat.COMPILING, f"{extension}, waiting for {self.path}")
            if time.monotonic() >= begun + looks * LOOK_SECONDS:
                looks += 1
                self._remove_if_stale()
            time.sleep(self.wait_seconds)  # also where a look takes longer than LOOK_SECONDS
        self.path.write_text(f"{platform.node()} {os.getpid()}\n")
        self.signs.begin(heartbeat.COMPILING, extension)
        return True

    def release(self) -> None:
        """Remove the lock."""
        super().release()
        self.signs.begin(heartbeat.PREPARING)

    def _remove_if_stale(self) -> None:
        try:
            with _only_one(self.path.parent):
                if not (why := why_stale(self.path)):
                    return
                self.path.unlink()
        except FileNotFoundError:  # it has just been released
            return
        except OSError as fault:
            what = f"a process that is gone has left it, and it can't be removed ({fault.strerror})"
            raise UserError(str(self.path), what, "delete it") from fault
        self.notices.append(f"{self.path} was removed: {why}")
        print(f"notice: {self.notices[-1]}", flush=True)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder while the block runs, where its file system has such locks: another
    rank must not remove the lock of the one that has just taken over."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def why_stale(lock: Path) -> str:
    """Say why the holder of a torch lock can't be alive; empty if it may be."""
    host, _, pid = lock.read_text().strip().partition(" ")
    about = lock.stat()
    # Its process would be seen here, with the file open: of other users only root sees that.
    is_known = about.st_uid == os.getuid() and (host or _is_local(lock.parent))
    if is_known and host in ("", platform.node()):
        gone = f"process {pid}, which held it, is gone" if pid else "no process holds it"
        return "" if _is_open(lock, int(pid or 0)) else gone
    changed = max(path.stat().st_mtime for path in (lock, *lock.parent.iterdir()))
    quiet = time.time() - changed
    return f"nothing has changed there for {duration(quiet)}" if quiet > QUIET_SECONDS else ""


def _is_open(path: Path, likely: int) -> bool:
    """Return whether a process on this machine has a file open; look at the likely one first.

    All are looked at twice: one that begins another program hides its files for a moment.
    """
    for _ in range(2):
        for pid in (likely, *psutil.pids()):
            with contextlib.suppress(psutil.Error, OSError):
                if any(path.samefile(file.path) for file in psutil.Process(pid).open_files()):
                    return True
    return False


def _is_local(folder: Path) -> bool:
    """Return whether a folder's file system is known to belong to this machine alone."""
    real = folder.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if real.is_relative_to(m.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda m: len(m.mountpoint)).fstype in LOCAL
