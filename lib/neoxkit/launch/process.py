"""A training's process tree: starting it under the guard, stopping it, and how it ended."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import (
    KINDS,
    LOCKED,
    STOPPED,
    Stopped,
    TrainingError,
    UserError,
    from_fields,
    sentence,
)
from neoxkit.launch import checks, command
from neoxkit.launch.guard import GRACE_SECONDS
from neoxkit.models import memory
from neoxkit.runs import card as run_card
from neoxkit.runs import checkpoints, heartbeat, lock, resuming
from neoxkit.runs.events import METRICS, EventReader
from neoxkit.runs.folder import ARGUMENTS, DIALS, FINISHED, LOG, set_aside, state_of
from neoxkit.settings import TrainSettings

_STOPPED = (STOPPED, -signal.SIGQUIT)  # from the guard, or before it listened
_KILLED = (128 + signal.SIGKILL, 256 - signal.SIGKILL)  # the guard's child, or a launcher's rank


@dataclass
class Training:
    """A training, started by this process, by another one (`process` is None), or ended already."""

    folder: Path
    process: subprocess.Popen | None
    since: int  # the size of metrics.jsonl before the start, in bytes
    asked_to_stop: bool = False

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; 0 for another process's training."""
        if self.process is None:
            return None if lock.locked_by(self.folder) else 0
        return self.process.poll()

    def interrupt(self) -> None:
        """Ask it to finish the step, save and stop; the second time, end the whole tree at once.

        A training that has not started its steps is ended at once. Another process's continues.
        """
        if self.process is None:
            what = "it keeps training without this cell"
            remedy = f"run the cell again to watch it, neoxkit stop {self.folder.name} to stop it"
            raise Stopped(self.folder.name, what, remedy)
        begun = any(e["event"] == "start" for e in self._events())
        if self.asked_to_stop or not begun:
            self.stop()
        else:
            self.asked_to_stop = True
            lock.ask_to_stop(self.folder)

    def stop(self) -> None:
        """End the whole tree; return when it is gone."""
        if self.process is None:
            return
        deadline = time.monotonic() + 2 * GRACE_SECONDS + 5
        while self.process.poll() is None and time.monotonic() < deadline:
            # Repeatedly: in its first moments the guard is not listening yet.
            self.process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.5)
        self.process.wait(timeout=1)

    def check(self) -> dict[str, Any]:
        """Return the facts of FINISHED.json; raise unless the run really finished."""
        code, events = self.poll(), self._events()
        last = events[-1] if events else {}
        error = last if last.get("event") == "error" else {}
        if code == LOCKED:
            lock.refuse_locked(self.folder)
        if code in _STOPPED or last.get("event") == "stop":
            raise Stopped(self.folder.name, *self._where_it_stopped())
        if code == 2 and error.get("kind") in KINDS:
            raise from_fields(error)
        if code == 0 and (self.folder / FINISHED).is_file():
            facts = files.read_json(self.folder / FINISHED)
            if facts["step"] == facts["planned_steps"]:
                return facts
        reason = (code not in _KILLED and error and sentence(error)) or self._reason(code)
        log = paths.short(self.folder / LOG)
        raise TrainingError(f"training failed ({reason}) -- see the end of {log}")

    def _reason(self, code: int | None) -> str:
        """Explain an exit code of a training that reported no error."""
        if code in _KILLED:
            arguments = files.read_json(self.folder / ARGUMENTS)
            remedy = memory.half_the_memory(arguments)
            return f"one of its processes was killed, usually because memory ran out: {remedy}"
        if (self.folder / FINISHED).is_file():
            return f"exit code {code}, but its result is complete: run it again to use it"
        return f"exit code {code}, no result was written"

    def _events(self) -> list[dict[str, Any]]:
        return EventReader(self.folder, self.since).poll()

    def _where_it_stopped(self) -> tuple[str, str]:
        step = checkpoints.saved_step(self.folder)
        if step is None:
            return "stopped before the first checkpoint", "run it again to start over"
        return f"stopped, step {step:,} is saved", "run it again to resume"


_started: dict[Path, Training] = {}  # by this process, for a second start of the same run


def attach(run: str) -> Training:
    """Return a run to watch, whether started here, by another process, or ended."""
    folder = paths.run(run)
    own = _started.get(folder)
    if own and own.poll() is None:
        return own
    if state_of(folder) == "new" and not lock.locked_by(folder):
        raise UserError("run", f"{paths.short(folder)} was not started", "see neoxkit runs")
    return Training(folder, None, 0)


def start(
    settings: TrainSettings,
    dialled: Mapping[str, tuple[Any, Any]] | None = None,
    **trial: Any,
) -> Training:
    """Start DeepSpeed on this machine's GPUs (or CPU ranks) as a guarded child process tree.

    `dialled`: the parameters that dials have changed (`Controls.overrides`), kept with the run in
    case it is resumed without them. `trial`: the trainer's arguments of a trial (trials.py).

    A finished run is not started again: the Training returned has already ended well. Nor is one
    that is still running, here or in another process: it is only watched, unless it is a trial.
    """
    asked = checks.check(settings, dialled or {}, **trial)
    folder = asked.folder
    own = _started.get(folder)
    if own and own.poll() is None:
        resuming.refuse_changes(asked)
        return own
    if lock.locked_by(folder) and not trial and not settings.restart:
        if (folder / ARGUMENTS).is_file():
            resuming.refuse_changes(asked)
        return attach(settings.run)
    lock.refuse_locked(folder)
    state = state_of(folder)
    if settings.restart and state != "new":
        set_aside(folder)
        state = "new"
    metrics = folder / METRICS
    since = metrics.stat().st_size if metrics.exists() else 0
    if state == "finished":
        return Training(folder, None, since)
    _write(asked, dialled or {})
    if state == "new":
        as_started = command.as_started(asked.arguments, asked.num_ranks)
        run_card.announce(folder, asked.num_ranks, as_started)
    guard = [sys.executable, "-m", "neoxkit.launch.guard", "--run", str(folder), "--"]
    started, places = command.start_command(asked.num_ranks)
    process = subprocess.Popen(
        [*guard, *started, str(folder / ARGUMENTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=paths.root(),
        env=command.environment(asked.num_ranks) | places | {lock.GUARDED: "1"},
    )
    _started[folder] = Training(folder, process, since)
    return _started[folder]


def _write(asked: resuming.Start, dialled: Mapping[str, tuple[Any, Any]]) -> None:
    """Write what a start leaves in the run folder for the trainer, and for a later start."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(asked.folder / ARGUMENTS, asked.arguments)
    (asked.folder / DIALS).unlink(missing_ok=True)
    if dialled:
        files.write_json(asked.folder / DIALS, dialled)
    lock.answer_stop(asked.folder)
    heartbeat.Watch(asked.folder).forget()
