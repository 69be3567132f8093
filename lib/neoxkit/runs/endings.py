"""Tell the end of a run or a sweep by a command of the person's own (--on-end, NEOXKIT_ON_END).

    python -m neoxkit.runs.endings      # tell those whose own process is gone

Without such a command nothing is called, and nothing leaves the machine. With one, what is owed is
a file in runs/ until it is told (only its owner can read it: a command may hold a secret), locked
by the process that is to tell it. The lock dies with that process. Then whoever finds the file
tells it: the guard as its training ends, a run of the sweep as it ends, the next neoxkit command.

Whoever tells it starts the command, deletes the file, and only then waits. So every end is told
once. A kill between the first two, system calls that follow each other, has it told a second time,
and no kill has it not told at all.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from neoxkit import files, paths
from neoxkit.errors import KILLED, STOPPED, UserError, killed_by
from neoxkit.runs.folder import Standing, is_trial, live_state, standing_of

VARIABLE = "NEOXKIT_ON_END"
FOUND = "its process was killed"  # the reason of an end that another process tells
PATIENCE_SECONDS = 60.0  # for the command
RUN, SWEEP, TRAINING = "run", "sweep", "training"  # of a notebook, told by the guard
_NAME = ".on_end-"
_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Owed:
    """An end that will be told: of what, by which command, started in which folder.

    `runs`: the runs of a sweep.
    """

    kind: str
    name: str
    command: str
    place: str
    runs: Sequence[str] = ()


class Ending:
    """The end of a run or a sweep in the hands of the process that will tell it."""

    def __init__(self, owed: Owed) -> None:
        self.owed, self.state, self.reason = owed, "failed", ""
        self._path = paths.root() / "runs" / f"{_NAME}{uuid.uuid4().hex[:12]}.json"
        self._file: IO[str] | None = None
        with contextlib.suppress(OSError):  # a full disk: it is told if this process is not killed
            self._file = _written(self._path, owed)

    def by(self, code: int) -> int:
        """Take over how it ended from an exit code of `neoxkit run`, and return that."""
        self.state = state_by(code)
        return code

    def tell(self) -> str:
        """Call the command; return what went wrong, in a line, or ""."""
        said = _call(self.owed, self.state, self.reason, self._path)
        self.let_go()
        return said

    def let_go(self) -> None:
        """Leave it to others, if it was not told."""
        if self._file:
            self._file.close()


def state_by(code: int) -> str:
    """Return finished, stopped, killed or failed, by an exit code of `neoxkit run`.

    >>> [state_by(code) for code in (0, 75, 130, 143, 71, -9, 2)]
    ['finished', 'stopped', 'stopped', 'stopped', 'killed', 'killed', 'failed']
    """
    if code == 0:
        return "finished"
    if code == STOPPED or code in {n for s in _ASKED for n in (-s, 128 + s)}:
        return "stopped"
    return "killed" if code == KILLED or killed_by(code) else "failed"


def _written(path: Path, owed: Owed) -> IO[str]:
    """Write what is owed, and return the file with its lock: it has both when it has its name."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        json.dump(asdict(owed), file)
        file.flush()
        os.fsync(file.fileno())
        part.rename(path)
        files.flush(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return file


@contextmanager
def told(
    kind: str, name: str, command: str, say: Callable[[str], None], runs: Sequence[str] = ()
) -> Iterator[Ending]:
    """Tell the end of the block, whichever way it ends; `say` gets a line if that did not work.

    The block says by `Ending.by` how it ended, or raises.
    """
    ending = Ending(Owed(kind, name, command, str(Path.cwd()), [*runs])) if command else _Silent()
    try:
        yield ending
    except UserError as mistake:
        ending.reason = str(mistake)
        raise
    except (KeyboardInterrupt, SystemExit):
        ending.state = "stopped"
        raise
    except BaseException as fault:
        ending.reason = f"{type(fault).__name__}: {fault}"
        raise
    finally:
        if said := ending.tell():
            say(said)


class _Silent(Ending):
    """An ending without a command."""

    def __init__(self) -> None:
        self.state = self.reason = ""

    def tell(self) -> str:
        return ""


def of_a_training(folder: Path) -> Ending | None:
    """Return the ending that a guard owes, if a notebook's environment has a command.

    `neoxkit run` and `neoxkit sweep` take it out of the environment: they tell it themselves.
    """
    command = os.environ.get(VARIABLE, "")
    if not command or is_trial(folder):
        return None
    return Ending(Owed(TRAINING, folder.name, command, str(Path.cwd())))


def have_told(log: Path) -> None:
    """Start a process that tells what is owed by processes that are gone, if anything is owed.

    It has its own session, and does not hold up this process, which is about to end.
    """
    if _all_owed():
        with log.open("ab") as out:
            subprocess.Popen(
                [sys.executable, "-m", "neoxkit.runs.endings"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


def _all_owed() -> list[Path]:
    return sorted((paths.root() / "runs").glob(f"{_NAME}*.json"))


def tell_found() -> list[str]:
    """Tell every end whose process is gone, once it is over; return a line for each failure."""
    said = []
    for path in _all_owed():
        if file := _found(path):
            with file:
                owed = _read(file)
                if owed and (owed.kind == SWEEP or not live_state(_folder(owed.name))):
                    said.append(_tell_for(owed, path))
    return [*filter(None, said)]


def _found(path: Path) -> IO[str] | None:
    """Return what is owed by a process that is gone, locked; None if another is there for it."""
    try:
        file = path.open("r+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
    except OSError:  # it is locked, or has just been told
        pass
    return None


def _read(file: IO[str]) -> Owed | None:
    """Return what is owed; None if the file is damaged."""
    try:
        return Owed(**json.load(file))
    except (ValueError, TypeError):
        return None


def _tell_for(owed: Owed, path: Path) -> str:
    """Tell an end for a process that was killed.

    A training's own files say how it ended; of a command they say only how far it was.
    """
    standing = _standing(owed.name)
    if owed.kind == SWEEP or not standing:
        return _call(owed, "killed", FOUND, path)
    if owed.kind == TRAINING:
        return _call(owed, standing.state, standing.says, path)
    about = "" if standing.state == "killed" else f"; its training is {standing.state}"
    return _call(owed, "killed", f"{FOUND}{about}", path)


def _call(owed: Owed, state: str, reason: str, path: Path) -> str:
    """Start the command, delete what was owed, and wait; return what went wrong, or ""."""
    values = _values(owed, state, " ".join(reason.replace("\0", "").split()))
    env = {k: v for k, v in os.environ.items() if k != VARIABLE} | values
    place = owed.place if Path(owed.place).is_dir() else str(paths.root())
    with _scratch() as out:
        try:
            command = subprocess.Popen(
                ["/bin/sh", "-c", owed.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=place,
                env=env,
                start_new_session=True,
            )
        except OSError as fault:
            return f"--on-end for {owed.name} did not start: {fault.strerror}"
        finally:
            path.unlink(missing_ok=True)
        ended = _wait(command)
        out.seek(0)
        last = out.read().decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
    return f"--on-end for {owed.name} {ended}{f': {last}' if last else ''}" if ended else ""


def _scratch() -> IO[bytes]:
    """Open a file for what the command says; without space for one, that is lost."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return Path(os.devnull).open("w+b")


def _wait(command: subprocess.Popen) -> str:
    """Wait for the command; return how it failed, or ""."""
    try:
        code = command.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        return f"took longer than {PATIENCE_SECONDS:.0f} s and was ended"
    except KeyboardInterrupt:
        return "is left to itself"
    return f"ended with code {code}" if code else ""


def _values(owed: Owed, state: str, reason: str) -> dict[str, str]:
    """Return what the command gets, in its environment alone: no text becomes part of it."""
    if owed.kind == SWEEP:
        found = [s for s in map(_standing, owed.runs) if s]
        ready = [s for s in found if s.state == "finished" and s.eval_loss is not None]
        best = min(ready, key=lambda s: s.eval_loss or 0.0, default=None)
        about = _counted(found, len(owed.runs))
    else:
        best = _standing(owed.name)
        about = _how_far(best) if best else ""
        if best and state == "finished":
            reason = reason or best.says  # it stopped early, or its losses look wrong
    losses = (best.train_loss, best.eval_loss) if best else (None, None)
    train, evaluation = ("" if loss is None else f"{loss:.4f}" for loss in losses)
    says = [f"{owed.name}: {state}", about, reason]
    return {
        "NEOXKIT_END_OF": SWEEP if owed.kind == SWEEP else RUN,
        "NEOXKIT_NAME": owed.name,
        "NEOXKIT_STATE": state,
        "NEOXKIT_REASON": reason,
        "NEOXKIT_TRAIN_LOSS": train,
        "NEOXKIT_EVAL_LOSS": evaluation,
        "NEOXKIT_BEST_RUN": best.run if best and owed.kind == SWEEP else "",
        "NEOXKIT_FOLDER": str(_folder(owed.name)),
        "NEOXKIT_SAYS": "; ".join(filter(None, says)),
    }


def _folder(name: str) -> Path:
    return paths.root() / "runs" / name


def _standing(name: str) -> Standing | None:
    folder = _folder(name)
    try:
        return standing_of(folder) if folder.is_dir() else None
    except (OSError, ValueError, KeyError):  # what is there is damaged
        return None


def _how_far(standing: Standing) -> str:
    if standing.planned is None:
        return ""
    losses = {"train loss": standing.train_loss, "eval loss": standing.eval_loss}
    known = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
    return ", ".join([f"step {standing.step:,} of {standing.planned:,}", *known])


def _counted(found: Sequence[Standing], of: int) -> str:
    """Say how many runs of a sweep are finished, and what became of the others."""
    states = Counter(standing.state for standing in found)
    done = states.pop("finished", 0)
    others = [f"{count} {state}" for state, count in sorted(states.items())]
    return ", ".join([f"{done} of {of} finished", *others])


def main() -> int:
    """Tell what is owed by processes that are gone; return the exit code."""
    for line in tell_found():
        print(f"note: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
