"""Heartbeats: each rank updates a file, and the guard stops a training when one falls silent.

A heartbeat says how long the next one may take: 10 times the median step, but at least 120 s.
Before the first step each stage (STAGES) begins with one, which says its name.
"""

import json
import os
import platform
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from neoxkit.fields import convert
from neoxkit.runs import lease

FOLDER = ".alive"  # in the run folder: one file per rank
LEAST_SECONDS = 120.0  # or the environment variable NEOXKIT_STALL_SECONDS
STEPS = 10  # median steps that may pass without a heartbeat
FROZEN_SECONDS = 30.0  # between two checks by the guard; more means that everything stood still
SILENT_SECONDS = 1800.0  # for work without heartbeats: a stage of the start, a save, an export
LIMIT = "NEOXKIT_STALL_SECONDS"

# What a rank does before its first step, in this order; it begins the first one without a sign.
IMPORTING = "importing libraries"
MEETING = "meeting the other ranks"
READING = "reading the dataset"
VERIFYING = "verifying the checkpoint"
LOADING = "loading the model"
COMPILING = "compiling"  # an extension of DeepSpeed's; between two parts of the next one
PREPARING = "preparing the first step"
STAGES = (IMPORTING, MEETING, READING, VERIFYING, LOADING, COMPILING, PREPARING)
# A stop request made from here on is carried out after the first step.
EVALUATING = "evaluating the base"
FIRST_STEP = "taking the first step"

Sign = dict[str, Any]  # a heartbeat, as it is in its file


def least_seconds() -> float:
    """Return how long a rank may be silent at the least; refuse an environment variable that is
    not a number."""
    return convert(LIMIT, float, os.environ.get(LIMIT, LEAST_SECONDS), LEAST_SECONDS)


class Signs:
    """The heartbeats that a rank writes: one per stage, step or batch, at most two per second.

    It writes none as long as the run folder does not exist, or while another training's lease is
    on it.
    """

    def __init__(self, folder: Path, rank: int, num_ranks: int = 1) -> None:
        self._folder, self._num_ranks = folder, num_ranks
        self._path = folder / FOLDER / str(rank)
        self._part = folder / f"{FOLDER}.{rank}.part"  # outside: the guard reads all that is inside
        self._steps: deque[float] = deque(maxlen=50)
        self._written, self._allowed = 0.0, 0.0
        self._stage, self._detail = "", ""
        self._least = least_seconds()

    def begin(self, stage: str, detail: str = "") -> None:
        """Write a heartbeat that says what comes now, before the end of the first step."""
        self._stage, self._detail = stage, detail
        self._written = 0.0  # at once
        self.give(silent=True)

    def tell(self, detail: str) -> None:
        """Say how far the stage has come."""
        self._detail = detail
        self.give(silent=True)

    def stepped(self, seconds: float) -> None:
        """Note how long a step took, and write a heartbeat."""
        self._steps.append(seconds)
        self._stage = self._detail = ""
        self.give()

    def give(self, silent: bool = False) -> None:
        """Write a heartbeat; `silent`: the work that follows writes none until it is over."""
        allowed = max(self._least, STEPS * median(self._steps or [0.0]))
        if silent or not self._steps:  # the first step may compile
            allowed = max(allowed, SILENT_SECONDS)
        now = time.monotonic()
        too_soon = allowed == self._allowed and now - self._written < 0.5
        if too_soon or not self._folder.is_dir() or lease.is_lost(self._folder):
            return
        self._written, self._allowed = now, allowed
        sign = {"pid": os.getpid(), "host": platform.node(), "allowed": allowed,
                "num_ranks": self._num_ranks, "stage": self._stage,
                "detail": self._detail}  # fmt: skip
        self._path.parent.mkdir(exist_ok=True)
        # Never half a file: a guard that sees no rank ends the training without a save.
        self._part.write_text(json.dumps(sign))
        self._part.replace(self._path)

    def over(self) -> None:
        """Delete the file: no more heartbeats will follow."""
        if not lease.is_lost(self._folder):
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Silent:
    """A rank without a heartbeat for longer than it announced; `doing` what, if not steps."""

    rank: str
    pid: int
    seconds: float
    doing: str = ""


class Watch:
    """The guard's view of the heartbeats; a file's time is only compared with itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._seen: dict[str, tuple[int, float]] = {}  # also of ranks that have finished
        self._looked = self._begun = time.monotonic()

    def forget(self) -> None:
        """Delete the heartbeats of an earlier start."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks that take steps, and so can stop with a save."""
        return [s["pid"] for s in self._signs().values() if s["stage"] not in STAGES]

    def ranks_here(self) -> list[int]:
        """Return those of them on this host: elsewhere the ids are other processes'."""
        signs = self._signs().values()
        here = [s for s in signs if s["host"] == platform.node()]
        return [s["pid"] for s in here if s["stage"] not in STAGES]

    def excuse(self) -> None:
        """Let the ranks that are in a stage before the first step take longer: work is done."""
        now = time.monotonic()
        for rank, sign in self._signs().items():
            if sign["stage"] in STAGES and rank in self._seen:
                self._seen[rank] = self._seen[rank][0], now
        self._begun = now

    def silent(self) -> Silent | None:
        """Return a rank that has been silent for too long, if any.

        Until all have taken a step, they wait for each other: it is the one furthest behind.
        """
        now = time.monotonic()
        if now - self._looked > FROZEN_SECONDS:  # everything stood still, including this process
            self._seen = {rank: (0, now) for rank in self._seen}
            self._begun = now
        self._looked = now
        signs = self._signs()
        for rank, sign in signs.items():
            if self._seen.get(rank, (None, 0.0))[0] != sign["changed"]:
                self._seen[rank] = sign["changed"], now
        late = [r for r, s in signs.items() if now - self._seen[r][1] > s["allowed"]]
        if late and signs[late[0]]["stage"]:
            late = [_behind(signs)]
            missing = {str(r) for r in range(signs[late[0]]["num_ranks"])} - self._seen.keys()
            if missing:
                return Silent(min(missing, key=int), 0, now - self._begun, IMPORTING)
        if late:
            sign = signs[late[0]]
            return Silent(late[0], sign["pid"], now - self._seen[late[0]][1], _doing(sign))
        if not self._seen and now - self._begun > max(least_seconds(), SILENT_SECONDS):
            return Silent("0", 0, now - self._begun, IMPORTING)
        return None

    def _signs(self) -> dict[str, Sign]:
        return _read_all(self._folder)


def stage(folder: Path) -> tuple[str, float]:
    """Return what the rank furthest behind does before the end of its first step, and for how many
    seconds; "" if there is no heartbeat, or none of such a rank."""
    signs = _read_all(folder / FOLDER)
    if not signs:
        return "", 0.0
    sign = signs[_behind(signs)]
    return _doing(sign), max(time.time() - sign["changed"] / 1e9, 0.0)


def _behind(signs: dict[str, Sign]) -> str:
    """Return the rank in the earliest stage."""
    order = [*STAGES, EVALUATING, FIRST_STEP, ""]
    return min(signs, key=lambda rank: order.index(signs[rank]["stage"]))


def _doing(sign: Sign) -> str:
    return f"{sign['stage']} {sign['detail']}".strip()


def _read_all(folder: Path) -> dict[str, Sign]:
    """Return each rank's heartbeat, and when it was written (`changed`, in ns)."""
    found: dict[str, Sign] = {}
    for path in sorted(folder.glob("*")):
        try:
            found[path.name] = json.loads(path.read_text()) | {"changed": path.stat().st_mtime_ns}
        except (OSError, ValueError):  # the rank has just finished
            continue
    return found
