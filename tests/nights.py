"""Runs and sweeps as commands of their own, whose processes are killed; and what was told of them.

A run's processes: `run` (neoxkit run), its `kernel`, the `guard` of its training, a `rank`.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from neoxkit.fields import as_flags
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import state_of

PATIENCE_SECONDS = 300.0  # only what hangs takes this long; no test asserts a time
VICTIMS = {
    "run": "neoxkit.cli run",
    "kernel": "ipykernel_launcher",
    "guard": "neoxkit.launch.guard",
    "rank": "neoxkit.train",
}


def wait_until(ready: Callable[[], Any]) -> Any:
    """Wait for something that is true, and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def line_of(process: psutil.Process) -> str:
    try:
        return "" if process.status() == "zombie" else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def victim(owner: int, what: str, run: str = "") -> int:
    """Return a process of a run below the process `owner`, 0 if there is none. The owner may be its
    `neoxkit run` itself, or a notebook's kernel in place of that."""
    mine = [psutil.Process(owner), *descendants(owner)] if psutil.pid_exists(owner) else []
    lines = {p.pid: line_of(p) for p in mine}
    runs = [pid for pid, line in lines.items() if VICTIMS["run"] in line and _is_of(line, run)]
    if what == "run":
        return runs[0] if runs else 0
    if not runs and any(VICTIMS["run"] in line for line in lines.values()):
        return 0  # the one that is on is another one
    below = {p.pid: lines.get(p.pid) or line_of(p) for p in descendants([*runs, owner][0])}
    found = [pid for pid, line in below.items() if VICTIMS[what] in line]
    if what == "rank":  # the guard and the launcher have its module in their command lines as well
        found = [p for p in found if "neoxkit.launch" not in below[p]]
        found = [p for p in found if "deepspeed.launcher" not in below[p]]
    return found[0] if found else 0


def _is_of(line: str, run: str) -> bool:
    return f"-p run {run} " in f"{line} "


def step_of(folder: Path) -> int:
    """Return the newest step that a run has logged; -1 before it has started."""
    events = read_events(folder)
    begun = any(e["event"] == "start" for e in events)
    return max((e.get("step", 0) for e in events), default=0) if begun else -1


def kill_at(owner: int, what: str, folder: Path, step: int) -> bool:
    """Kill a process of a run once it has reached a step; False if it had finished before."""

    def found() -> int:
        if state_of(folder) == "finished":
            return -1
        return victim(owner, what, folder.name) if step_of(folder) >= step else 0

    if (pid := wait_until(found)) == -1:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


class Told:
    """The calls of an --on-end command: each writes its environment into a file of its own."""

    command = 'env -0 > "$(mktemp "$CALLS/XXXXXX")"'

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.environment = {"CALLS": str(folder)}

    def environments(self) -> list[dict[str, str]]:
        """Return what each call got."""
        found = [file.read_text().split("\0") for file in self._folder.iterdir()]
        return [dict(line.split("=", 1) for line in lines if "=" in line) for lines in found]

    def calls(self) -> Counter[tuple[str, str, str]]:
        """Count the calls of each kind, name and state."""
        values = self.environments()
        names = ("NEOXKIT_END_OF", "NEOXKIT_NAME", "NEOXKIT_STATE")
        return Counter(tuple(one.get(name, "?") for name in names) for one in values)


def neoxkit(
    *words: str, parameters: Mapping[str, Any], log: Path, **environment: str
) -> AbstractContextManager[subprocess.Popen]:
    """Start a command of the kit in a session of its own, as at another terminal."""
    line = [sys.executable, "-m", "neoxkit.cli", *words, *as_flags(dict(parameters))]
    return started(line, log, **environment)


@contextmanager
def started(line: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """Start a program with its output in a log, and end it if the block does not."""
    with log.open("wb") as out:
        program = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield program
    finally:
        if program.poll() is None:
            program.terminate()
            program.wait(PATIENCE_SECONDS)
