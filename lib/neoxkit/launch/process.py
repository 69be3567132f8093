"""A training's process tree: starting it under the guard, stopping it, and how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import (
    FENCED,
    KINDS,
    LOCKED,
    STOPPED,
    Killed,
    Stopped,
    TrainingError,
    UserError,
    from_fields,
    killed_by,
    sentence,
)
from neoxkit.launch import checks, command, inspection, job, nodes, plan, slurm
from neoxkit.launch.guard import GRACE_SECONDS, end_orphans
from neoxkit.models import memory
from neoxkit.runs import card as run_card
from neoxkit.runs import checkpoints, heartbeat, jobs, lock, resuming
from neoxkit.runs.events import METRICS, EventReader, append_event
from neoxkit.runs.folder import ARGUMENTS, DIALS, FINISHED, LOG, set_aside, state_of
from neoxkit.settings import TrainSettings

_STOPPED = (STOPPED, -signal.SIGQUIT)  # from the guard, or before it listened
# Between asking ranks on other hosts and killing what starts them; SLURM itself gives a job 30 s.
ELSEWHERE_SECONDS = 25.0
_KILLED = (128 + signal.SIGKILL, 256 - signal.SIGKILL)  # the guard's child, or a launcher's rank


@dataclass
class Training:
    """A training, started by this process, by another one (`process` is None), or ended already.

    `job`: the id of the SLURM job that this process has submitted, or watches. Nobody owns a job:
    it goes on without the process that has submitted it.
    """

    folder: Path
    process: subprocess.Popen | None
    since: int  # the size of metrics.jsonl before the start, in bytes
    asked_to_stop: bool = False
    job: str = ""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs or waits in a queue.

        For another process's training, and for a job, it is 2 after a mistake and else 0.
        """
        if self.process is not None:
            code = self.process.poll()
            if code is not None and code < 0 and killed_by(code):
                self._replace_guard(code)
            return code
        if jobs.look(self.folder) or lock.locked_by(self.folder):
            return None
        return 2 if self.job and self._error().get("kind") in KINDS else 0

    def _replace_guard(self, code: int) -> None:
        """Do what a guard that was killed can't: end its ranks, and report how it ended."""
        assert self.process
        end_orphans(self.folder, self.process.pid)
        if self._last().get("event") in ("killed", "error", "stop", "done"):
            return
        with contextlib.suppress(OSError):  # the disk may be full
            append_event(self.folder, "killed", what=f"its guard was killed ({killed_by(code)})")

    def interrupt(self) -> None:
        """Ask it to finish the step, save and stop; the second time, end the whole tree at once.

        A training that has not started its steps is ended at once, and so is a job that waits.
        Another process's continues.
        """
        if self.job:
            self.asked_to_stop = not slurm.stop(self.folder, now=self.asked_to_stop)
            return
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
        """End the whole tree; return when it is gone. A job is not of this tree."""
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
        code, last, error = self.poll(), self._last(), self._error()
        if code in (LOCKED, FENCED):
            lock.refuse_locked(self.folder)
        if code in _STOPPED or last.get("event") == "stop" or (self.job and self._is_cancelled()):
            raise Stopped(self.folder.name, *self._where_it_stopped())
        if code and error.get("kind") in KINDS:  # whatever became of the other ranks
            raise from_fields(error)
        if code == 0 and (self.folder / FINISHED).is_file():
            facts = files.read_json(self.folder / FINISHED)
            if facts["step"] == facts["planned_steps"] or facts.get("stopped_early"):
                return facts
        reason = (code not in _KILLED and error and sentence(error)) or self._reason(code)
        log = paths.short(self.folder / LOG)
        silent = error.get("kind") == "silent"
        was_killed = silent or last.get("event") == "killed" or (code and killed_by(code))
        kind = Killed if was_killed else TrainingError
        raise kind(f"training failed ({reason}) -- see the end of {log}")

    def _is_cancelled(self) -> bool:
        """Return whether the job was cancelled, before it could save or report anything."""
        return not self._error() and jobs.fate(self.job).startswith("CANCELLED")

    def _reason(self, code: int | None) -> str:
        """Explain an exit code of a training that reported no error."""
        if self.job:
            ended = jobs.fate(self.job)
            return f"job {self.job} has ended{f': {ended}' if ended else ''}, no result was written"
        if code in _KILLED:
            arguments = files.read_json(self.folder / ARGUMENTS)
            remedy = memory.half_the_memory(arguments)
            return f"one of its processes was killed, usually because memory ran out: {remedy}"
        if (last := self._last()).get("event") == "killed":
            return str(last["what"])
        if (self.folder / FINISHED).is_file():
            return f"exit code {code}, but its result is complete: run it again to use it"
        return f"exit code {code}, no result was written"

    def _events(self) -> list[dict[str, Any]]:
        return EventReader(self.folder, self.since).poll()

    def _last(self) -> dict[str, Any]:
        return next(reversed(self._events()), {})

    def _error(self) -> dict[str, Any]:
        last = self._last()
        return last if last.get("event") == "error" else {}

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
    queued = jobs.look(folder)
    if state_of(folder) == "new" and not (queued or lock.locked_by(folder)):
        raise UserError("run", f"{paths.short(folder)} was not started", "see neoxkit runs")
    return Training(folder, None, 0, job=queued.id if queued else "")


def start(
    settings: TrainSettings,
    dialled: Mapping[str, tuple[Any, Any]] | None = None,
    **trial: Any,
) -> Training:
    """Start DeepSpeed as a guarded child process tree, on this machine's GPUs (or CPU ranks) or on
    the hosts of a hostfile, or submit it as a job, as the settings say.

    `dialled`: the parameters that dials have changed (`Controls.overrides`), kept with the run in
    case it is resumed without them. `trial`: the trainer's arguments of a trial (trials.py).

    A finished run is not started again: the Training returned has already ended well. Nor is one
    that is still running, here or in another process: it is only watched, unless it is a trial.
    """
    asked = checks.check(settings, dialled or {}, **trial)
    folder = asked.folder
    jobs.forget()  # another process may have submitted one since SLURM was asked
    own = _started.get(folder)
    if own and own.poll() is None:
        resuming.refuse_changes(asked)
        return own
    on = lock.locked_by(folder) or jobs.look(folder)
    if on and not trial and not settings.restart:
        if (folder / ARGUMENTS).is_file():
            resuming.refuse_changes(asked)
        return attach(settings.run)
    refuse_running(folder)
    launcher = nodes.of(settings).launcher
    is_job = launcher == nodes.SLURM
    if is_job:
        slurm.require()
    state = state_of(folder)
    if settings.restart and state != "new":
        set_aside(folder)
        state = "new"
    metrics = folder / METRICS
    since = metrics.stat().st_size if metrics.exists() else 0
    if state == "finished":
        return Training(folder, None, since)
    if launcher == nodes.HOSTFILE:
        inspection.refuse_faults(settings)
    _write(asked, dialled or {})
    if state == "new":
        as_started = command.as_started(asked.arguments, asked.num_ranks)
        run_card.announce(folder, asked.num_ranks, as_started)
    if is_job and not slurm.is_inside():
        return Training(folder, None, since, job=slurm.start(folder, settings))
    if is_job:
        plan.write(folder, settings)
        words, more = job.ranks_command(folder)
        guarded = _under_guard(folder, words, os.environ | more, ELSEWHERE_SECONDS)
    elif launcher == nodes.HOSTFILE:
        plan.write(folder, settings)
        words = [sys.executable, "-m", "neoxkit.launch.hosts", str(folder)]
        guarded = _under_guard(folder, words, os.environ, ELSEWHERE_SECONDS)
    else:
        words, more = command.start_command(asked.num_ranks)
        words = [*words, str(folder / ARGUMENTS)]
        guarded = _under_guard(folder, words, command.environment(asked.num_ranks) | more)
    _started[folder] = Training(folder, guarded, since)
    return _started[folder]


def _under_guard(
    folder: Path, words: Sequence[str], env: Mapping[str, str], grace: float = GRACE_SECONDS
) -> subprocess.Popen:
    """Start the ranks under a guard, which ends them with this process; `grace`: how many seconds
    after it has asked them."""
    guard = ["neoxkit.launch.guard", "--run", str(folder), "--grace", str(grace), "--"]
    return subprocess.Popen(
        [sys.executable, "-m", *guard, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=paths.root(),
        env={**env, lock.GUARDED: str(folder)},
    )


def refuse_running(folder: Path) -> None:
    """Refuse a folder in which a training is running, or for which a job waits."""
    lock.refuse_locked(folder)
    if queued := jobs.look(folder):
        remedy = f'wait, watch("{folder.name}"), or neoxkit stop {folder.name}'
        raise UserError("run", f"{folder.name} has job {queued.id} ({queued.says})", remedy)


def _write(asked: resuming.Start, dialled: Mapping[str, tuple[Any, Any]]) -> None:
    """Write what a start leaves in the run folder for the trainer, and for a later start."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(asked.folder / ARGUMENTS, asked.arguments)
    (asked.folder / DIALS).unlink(missing_ok=True)
    if not slurm.is_inside():
        (asked.folder / jobs.JOB).unlink(missing_ok=True)  # of an earlier start
    if dialled:
        files.write_json(asked.folder / DIALS, dialled)
    lock.answer_stop(asked.folder)
    heartbeat.Watch(asked.folder).forget()
