"""Follow all runs below runs/: a look reads only what was written since the last one."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neoxkit import paths
from neoxkit.runs import jobs, lock
from neoxkit.runs.events import METRICS, EventReader, History
from neoxkit.runs.folder import FINISHED, Standing, doing, live_state, standing_of

POINTS = 60  # of a small curve, between its ends

Mark = tuple[int, int, int, bool]  # of metrics.jsonl: inode, size, time (ns); is there FINISHED?


@dataclass(frozen=True)
class Seen:
    """A run at one look: its status, and what a line about it needs besides.

    `losses`: the first train loss, at most POINTS means, the last. `tokens_per_second`: of the last
    log if it is training, else the mean of the run. `doing`: its stage before the end of the first
    step, or its place in a queue. `began`: when the training that is on now took the lock, or its
    job was submitted (seconds since 1970).
    """

    folder: Path
    standing: Standing
    losses: tuple[float, ...]
    tokens_per_second: float | None = None
    best_eval: float | None = None
    seconds_left: float | None = None
    doing: str = ""
    began: float = 0.0

    @property
    def is_live(self) -> bool:
        return self.standing.state in ("training", "queued")


@dataclass
class _Known:
    """What is kept of a run: all its events while it is training, otherwise only what was seen."""

    mark: Mark
    reader: EventReader
    history: History
    has_steps: bool = False  # has logged any, also such as were undone
    seen: Seen | None = None  # None: it was never started

    @property
    def is_live(self) -> bool:
        return self.seen is not None and self.seen.is_live


class Follower:
    """All runs below runs/, as they were at the last look."""

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def look(self, seconds: float = math.inf) -> tuple[list[Seen], int]:
        """Return the runs that were started, and how many are left for the next look.

        First those in training, the last to begin on top; then the most recently changed. Runs that
        were never read are read until the time is up, at least one.
        """
        until = time.monotonic() + seconds
        folders = sorted((paths.root() / "runs").glob("*/"), key=_changed, reverse=True)
        new = [folder for folder in folders if folder not in self._known]
        known = {folder: self._look_at(folder) for folder in folders if folder in self._known}
        while new:
            folder = new.pop(0)
            known[folder] = self._look_at(folder)
            if time.monotonic() > until:
                break
        self._known = {folder: one for folder, one in known.items() if one}
        seen = [one.seen for one in self._known.values() if one.seen]
        seen.sort(key=lambda s: (not s.is_live, -(s.began or s.standing.changed)))
        return seen, len(new)

    def _look_at(self, folder: Path) -> _Known | None:
        """Look at one run; None if its folder was deleted or renamed meanwhile."""
        before = self._known.get(folder)
        try:
            mark = _mark(folder)  # before reading: what is written meanwhile is for the next look
            if before and not before.is_live:
                if before.mark == mark and not live_state(folder):
                    return before
                before = None
            return _read(folder, mark, before)
        except FileNotFoundError:
            return None


def _mark(folder: Path) -> Mark:
    """Return what changes whenever a run that is not training has changed."""
    is_finished = (folder / FINISHED).exists()
    try:
        stat = (folder / METRICS).stat()
    except FileNotFoundError:
        return 0, 0, 0, is_finished
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, is_finished


def _changed(folder: Path) -> int:
    return _mark(folder)[2]


def _read(folder: Path, mark: Mark, before: _Known | None) -> _Known:
    """Read what is new of a run in training, or all of it; another file is another run."""
    if before is None or before.mark[0] not in (0, mark[0]):
        before = _Known(mark, EventReader(folder), History())
    if new := before.reader.poll():
        before.history = History([*before.history.events, *new])
        before.has_steps |= any(event.get("step") for event in new)
    elif before.seen and before.seen.standing.state == live_state(folder):
        seen = replace(before.seen, doing=doing(folder)[0])
        return replace(before, mark=mark, seen=seen)
    seen = _seen(folder, before.history)
    is_started = before.has_steps or mark[-1] or any(folder.glob("checkpoint-*"))
    return _Known(
        mark,
        before.reader,
        before.history if seen.is_live else History(),  # a hundred runs' events: a gigabyte
        before.has_steps,
        seen if seen.is_live or is_started else None,
    )


def _seen(folder: Path, history: History) -> Seen:
    standing, train = standing_of(folder, history), history.train
    seen = Seen(
        folder,
        standing,
        _curve([e["loss"] for e in train if e["loss"] is not None]),
        best_eval=min((e["loss"] for e in history.evals if e["loss"] is not None), default=None),
    )
    if not seen.is_live:
        return replace(seen, tokens_per_second=history.totals()["tokens_per_second"])
    return replace(
        seen,
        tokens_per_second=train[-1]["tokens_per_second"] if train else None,
        seconds_left=history.seconds_left(),
        doing=doing(folder)[0],
        began=_began(folder),
    )


def _began(folder: Path) -> float:
    """Return when the training that is on took the lock or the lease, or its job was submitted."""
    try:
        if live_state(folder) == "queued" or not lock.locked_by(folder):
            return (folder / jobs.JOB).stat().st_mtime
        return lock.began(folder)
    except FileNotFoundError:  # it has just ended
        return 0.0


def _curve(losses: Sequence[float]) -> tuple[float, ...]:
    """Return a curve of few points: the ends as they are, means of equal parts between them.

    >>> _curve([5.0, 2.0, 1.0]), _curve([5.0] * 500 + [1.0])[-2:]
    ((5.0, 2.0, 1.0), (5.0, 1.0))
    """
    between = np.array(losses[1:-1])
    if len(between) > POINTS:
        between = np.array([part.mean() for part in np.array_split(between, POINTS)])
    return (*losses[:1], *between.tolist(), *losses[1:][-1:])
