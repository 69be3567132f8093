"""A small process around a training, which ends everything it started when its owner is gone.

    python -m neoxkit.launch.guard --run runs/NAME -- COMMAND ...

The guard leads a session of its own (it can't where it leads a process group already, as when it is
typed at a shell: begin with setsid), runs the command in it with its output in the run's log, and
watches its standard input and its parent. At end of file or with another parent it asks the whole
session to end and kills it soon after. At TERM, INT or HUP it asks the training to finish its step,
save and stop; at a second one, or at QUIT, it ends everything at once. A training with a rank whose
heartbeat stops is ended, with the ranks' stacks in the log; before the first step, only if no
process of the session does anything. The guard clears the session after a normal end too, and
first of all what a guard that was killed has left of an earlier start.
"""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from neoxkit.errors import LOCKED, STOPPED, UserError, as_fields, killed_by
from neoxkit.launch import meeting
from neoxkit.runs import endings, heartbeat, lock
from neoxkit.runs.events import METRICS, EventReader, append_event
from neoxkit.runs.folder import FINISHED, LOG

GRACE_SECONDS = 5.0  # between asking and killing
STACKS_SECONDS = 2.0  # for the ranks to write their stacks
WORK_SECONDS = 30.0  # between two looks at what the session's processes do
WORK_SHARE = 0.01  # of a core: a download or a slow disk takes more, waiting takes a tenth of it
EXEC_LOOKS = 20  # at a process whose program is just being replaced
SILENT = 70  # exit code when a rank made no progress
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def main() -> int:
    """Run the command under guard; return its exit code, 128 + a signal's number, or our own."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, metavar="SECONDS")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if os.getsid(0) != os.getpid():  # clear_session ends every process in the guard's session
        if os.getpgrp() == os.getpid():
            parser.error("it leads a process group, so it can't lead a session: use setsid")
        os.setsid()
    before = lock.written_in(options.run)
    try:
        held = lock.take(options.run / lock.LOCK)  # until this process is gone, or has told it
    except UserError as mistake:
        append_event(options.run, "error", **as_fields(mistake))
        return 2
    if not held or lock.leased_by(options.run):
        return LOCKED
    end_orphans(options.run, before)
    ending = endings.of_a_training(options.run)
    watch = heartbeat.Watch(options.run)
    watch.forget()
    asked: list[int] = []
    for number in STOPS:
        signal.signal(number, lambda number, _: asked.append(number))
    owner, metrics = os.getppid(), options.run / METRICS
    since = metrics.stat().st_size if metrics.exists() else 0
    with (options.run / LOG).open("ab") as log:
        child = subprocess.Popen(
            options.command[1:], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        code = _wait(child, options.run, watch, asked, owner)
        has_left = bool(others())
    finally:  # also after a failure here: a full disk, a run folder that is gone
        clear_session(options.grace)
        meeting.leave_all(options.run)
        for number in STOPS:  # a late signal would replace the exit code
            signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # the disk may be full
        _tell_killed(options.run, since, code, has_left)
    held.close()
    if ending:
        ending.let_go()
    endings.have_told(options.run / LOG)
    return code


def _wait(
    child: subprocess.Popen, run: Path, watch: heartbeat.Watch, asked: list[int], owner: int
) -> int:
    """Wait until the command ends or must be ended; return the exit code."""
    requested, work = False, _Work()
    while child.poll() is None:
        if _end_of_file(0.2) or os.getppid() != owner:
            return STOPPED
        if signal.SIGQUIT in asked or len(asked) > 1 or (asked and not watch.ranks()):
            _end_at_once(run)
            return STOPPED
        if asked and not requested:
            lock.ask_to_stop(run)
            requested = True
        if work.is_seen():
            watch.excuse()
        if silent := watch.silent():
            _tell(run, watch, silent)
            _end_at_once(run)
            return SILENT
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _tell(run: Path, watch: heartbeat.Watch, silent: heartbeat.Silent) -> None:
    """Have every rank write its stacks to the log; report what happened in the metrics.

    Before the first step every process is asked, as a rank may not have given its id yet; the
    signal ends those that don't know it.
    """
    for pid in watch.ranks_here() or others():
        with contextlib.suppress(OSError):  # it is gone
            if os.getsid(pid) == os.getsid(0):
                os.kill(pid, signal.SIGUSR1)
    time.sleep(STACKS_SECONDS)
    what = f"rank {silent.rank} sent no heartbeat for {silent.seconds:.0f} s"
    if silent.doing:
        what += f" while {silent.doing} ({heartbeat.LIMIT} allows more)"
    what += f"; the stacks of all ranks are in {LOG}"
    append_event(run, "error", kind="silent", where="", what=what, remedy="")


def _tell_killed(run: Path, since: int, code: int, has_left: bool) -> None:
    """Report that a process of the training was killed, unless the ranks have said how it ended.

    `has_left`: others were alive when the command ended. DeepSpeed's runner ends with 0 when its
    launcher is killed.
    """
    events = EventReader(run, since).poll()
    if any(e["event"] in ("stop", "done") or e.get("kind", "failure") != "failure" for e in events):
        return
    if name := killed_by(code):
        append_event(run, "killed", what=f"one of its processes was killed ({name})")
    elif code == 0 and has_left and not (run / FINISHED).exists():
        append_event(run, "killed", what="DeepSpeed's launcher was killed")


class _Work:
    """What the session's processes do: a slow start works, one that hangs does not."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._cpu: dict[int, float] = {}

    def is_seen(self) -> bool:
        """Return, every 30 s, whether since then a process was started or has used a core a bit."""
        now = time.monotonic()
        if now - self._looked < WORK_SECONDS:
            return False
        before, self._cpu = self._cpu, _cpu_seconds()
        least = WORK_SHARE * (now - self._looked)
        self._looked = now
        return any(p not in before or cpu - before[p] > least for p, cpu in self._cpu.items())


def _cpu_seconds() -> dict[int, float]:
    """Return the processor time of each other process of the session."""
    used = {}
    for pid in others():
        with contextlib.suppress(psutil.Error):  # it is gone
            times = psutil.Process(pid).cpu_times()
            used[pid] = times.user + times.system
    return used


def _end_of_file(seconds: float) -> bool:
    """Wait for standard input at most `seconds`; return True if its other end was closed."""
    try:
        ready, _, _ = select.select([0], [], [], seconds)
        return bool(ready) and os.read(0, 1024) == b""
    except InterruptedError:
        return False


def _end_at_once(run: Path) -> None:
    """End the ranks here without a word; those on other hosts have guards there, which are told."""
    meeting.end_all(run)
    clear_session(grace_seconds=0)


def clear_session(grace_seconds: float = GRACE_SECONDS) -> None:
    """End every other process of this session: TERM first, KILL after the grace period."""
    for ask, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, GRACE_SECONDS)):
        deadline = time.monotonic() + seconds
        while (left := others()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, ask)
                except ProcessLookupError:
                    continue
            time.sleep(0.1 if ask == signal.SIGKILL else 0.5)


def end_orphans(run: Path, leader: int) -> None:
    """End what a guard that was killed has left: the processes of its session that train this run.

    While one of them lives, no other process gets the guard's number.
    """
    with contextlib.suppress(psutil.Error):
        if not leader or psutil.Process(leader).status() != "zombie":
            return
    while left := [p for p in _members(leader) if _trains(p, run)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _trains(pid: int, run: Path) -> bool:
    """Return whether a process trains a run, by its environment; a new one may have none yet."""
    for _ in range(EXEC_LOOKS):
        try:
            if found := psutil.Process(pid).environ():
                return found.get(lock.GUARDED) == str(run)
        except psutil.Error:  # it is gone, or another person's
            return False
        time.sleep(0.05)
    return False


def others() -> list[int]:
    """Return the other living processes of this process's session."""
    return [pid for pid in _members(os.getsid(0)) if pid != os.getpid()]


def _members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getsid(process.pid) == session and process.status() != "zombie":
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
