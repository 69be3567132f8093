"""Heartbeats: each rank updates a file, and the guard stops a training when one falls silent.

A heartbeat says how long the next one may take: 10 times the median step, but at least 120 s.
"""

import json
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neoxkit.fields import convert

FOLDER = ".alive"  # in the run folder: one file per rank
LEAST_SECONDS = 120.0  # or the environment variable NEOXKIT_STALL_SECONDS
STEPS = 10  # median steps that may pass without a heartbeat
FROZEN_SECONDS = 30.0  # between two checks by the guard; more means that everything stood still
SILENT_SECONDS = 1800.0  # for work without heartbeats: a save, an export


class Signs:
    """The heartbeats that a rank writes: one per step or batch, at most two per second."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / FOLDER / str(rank)
        self._path.parent.mkdir(exist_ok=True)
        self._part = folder / f"{FOLDER}.{rank}.part"  # outside: the guard reads all that is inside
        self._steps: deque[float] = deque(maxlen=50)
        self._written, self._allowed = 0.0, 0.0
        name = "NEOXKIT_STALL_SECONDS"
        self._least = convert(name, float, os.environ.get(name, LEAST_SECONDS), LEAST_SECONDS)

    def stepped(self, seconds: float) -> None:
        """Note how long a step took, and write a heartbeat."""
        self._steps.append(seconds)
        self.give()

    def give(self, silent: bool = False) -> None:
        """Write a heartbeat; `silent`: the work that follows writes none until it is over."""
        allowed = max(self._least, STEPS * median(self._steps or [0.0]))
        if silent or not self._steps:  # the first step may compile
            allowed = max(allowed, SILENT_SECONDS)
        now = time.monotonic()
        if allowed == self._allowed and now - self._written < 0.5:
            return
        self._written, self._allowed = now, allowed
        # Never half a file: a guard that sees no rank ends the training without a save.
        self._part.write_text(json.dumps({"pid": os.getpid(), "allowed": allowed}))
        self._part.replace(self._path)

    def over(self) -> None:
        """Delete the file: no more heartbeats will follow."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Silent:
    """A rank without a heartbeat for longer than it announced."""

    rank: str
    pid: int
    seconds: float


class Watch:
    """The guard's view of the heartbeats; a file's time is only compared with itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._seen: dict[Path, tuple[int, float]] = {}
        self._looked = time.monotonic()

    def forget(self) -> None:
        """Delete the heartbeats of an earlier start."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)

    def ranks(self) -> list[int]:
        """Return the process ids in the heartbeats."""
        return [sign["pid"] for sign in map(_read, self._folder.glob("*")) if sign]

    def silent(self) -> Silent | None:
        """Return the first rank that has been silent for too long, if any."""
        now = time.monotonic()
        if now - self._looked > FROZEN_SECONDS:  # everything stood still, including this process
            self._seen.clear()
        self._looked = now
        for path in sorted(self._folder.glob("*")):
            try:
                sign, changed = _read(path), path.stat().st_mtime_ns
            except FileNotFoundError:  # the rank has just finished
                continue
            if self._seen.get(path, (None, 0.0))[0] != changed:
                self._seen[path] = changed, now
            seconds = now - self._seen[path][1]
            if sign and seconds > sign["allowed"]:
                return Silent(path.name, sign["pid"], seconds)
        return None


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # the rank has just finished
        return None
