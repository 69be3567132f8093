"""Signs of life: each rank keeps a file fresh, and the guard stops a training that gives none.

A sign says how long the next one may take: 10 times the median step, and never less than 120 s.
"""

import json
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neoxkit.fields import convert

FOLDER = ".alive"  # in the run folder: one file a rank
LEAST_SECONDS = 120.0  # or what the environment variable NEOXKIT_STALL_SECONDS says
STEPS = 10  # so many median steps may pass without a sign
FROZEN_SECONDS = 30.0  # between two looks of the guard
SILENT_SECONDS = 1800.0  # for work that gives no sign meanwhile: a save, an export


class Signs:
    """What a rank writes: a sign each step or batch, at most two a second."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / FOLDER / str(rank)
        self._path.parent.mkdir(exist_ok=True)
        self._steps: deque[float] = deque(maxlen=50)
        self._written, self._allowed = 0.0, 0.0
        name = "NEOXKIT_STALL_SECONDS"
        self._least = convert(name, float, os.environ.get(name, LEAST_SECONDS), LEAST_SECONDS)

    def stepped(self, seconds: float) -> None:
        """A step took so long; the sign for the next one."""
        self._steps.append(seconds)
        self.give()

    def give(self, silent: bool = False) -> None:
        """A sign; `silent`: what follows gives none until it is over."""
        allowed = max(self._least, STEPS * median(self._steps or [0.0]))
        if silent or not self._steps:  # the first step may compile
            allowed = max(allowed, SILENT_SECONDS)
        now = time.monotonic()
        if allowed == self._allowed and now - self._written < 0.5:
            return
        self._written, self._allowed = now, allowed
        self._path.write_text(json.dumps({"pid": os.getpid(), "allowed": allowed}))

    def over(self) -> None:
        """Nothing more is to be waited for."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Silent:
    """A rank that has given no sign for longer than it said it would."""

    rank: str
    pid: int
    seconds: float


class Watch:
    """What the guard looks at; the file's time is compared with itself, not with a clock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._seen: dict[Path, tuple[int, float]] = {}
        self._looked = time.monotonic()

    def forget(self) -> None:
        """The signs of an earlier start are none of this one."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)

    def ranks(self) -> list[int]:
        """The processes that have given a sign."""
        return [sign["pid"] for sign in map(_read, self._folder.glob("*")) if sign]

    def silent(self) -> Silent | None:
        """The first rank that has been silent for too long, if any."""
        now = time.monotonic()
        if now - self._looked > FROZEN_SECONDS:  # all stood still, this process as well
            self._seen.clear()
        self._looked = now
        for path in sorted(self._folder.glob("*")):
            try:
                sign, changed = _read(path), path.stat().st_mtime_ns
            except FileNotFoundError:  # it is over
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
    except (OSError, ValueError):  # just being written
        return None
