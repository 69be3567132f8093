"""Which process trains in a run folder, and the wish that it stop."""

import fcntl
import os
from pathlib import Path
from typing import IO

from neoxkit.errors import UserError

LOCK = ".lock"
STOP = "STOP"  # this file in a run folder asks its training to save and stop
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
        remedy = f'wait, watch("{folder.name}"), or neoxkit stop {folder.name}'
        raise UserError("run", f"{folder.name} is training now (process {pid})", remedy)


def hold(folder: Path) -> IO[str] | None:
    """Take the lock of a training that has no guard; it is held until the file is closed."""
    if os.environ.get(GUARDED):
        return None
    refuse_locked(folder)
    file = (folder / LOCK).open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(f"{os.getpid()}\n")
    file.flush()
    answer_stop(folder)
    return file


def ask_to_stop(folder: Path) -> None:
    """Ask the training in a folder to finish its step, save and stop."""
    (folder / STOP).touch()


def asked_to_stop(folder: Path) -> bool:
    """Whether somebody asked so, and nobody has answered yet."""
    return (folder / STOP).exists()


def answer_stop(folder: Path) -> None:
    """The wish was granted, or is of the past."""
    (folder / STOP).unlink(missing_ok=True)
