"""Write and read metrics.jsonl: the events of a training, one JSON object per line."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit.runs import lease

if TYPE_CHECKING:
    import numpy as np

METRICS = "metrics.jsonl"

Event = dict[str, Any]


def append_event(folder: Path, event: str, /, **values: Any) -> None:
    """Append one line to metrics.jsonl: the event, the time (seconds since 1970), the values."""
    lease.check(folder)
    values = {k: _as_json(v) for k, v in values.items()}
    line = json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n"
    with (folder / METRICS).open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = "\n" + line  # a killed writer left half a line
        file.write(line.encode())


def _as_json(value: Any) -> Any:
    """Return a value with None for each number that is not finite: NaN is not JSON."""
    if isinstance(value, dict):
        return {k: _as_json(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class EventReader:
    """A reader of a growing metrics.jsonl; `poll` returns the whole lines since the last call."""

    folder: Path
    at: int = 0

    def poll(self) -> list[Event]:
        path = self.folder / METRICS
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        return list(_parsed(whole))


def _parsed(lines: bytes) -> Iterator[Event]:
    for line in lines.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a line cut by a killed writer or a power cut
            continue


def read_events(folder: Path) -> list[Event]:
    """Return all events of a run so far."""
    return EventReader(folder).poll()


class History:
    """The events that led to a run's newest state, and those of each kind, oldest first.

    A resumed run goes back to its checkpoint's step; events that an interrupted attempt logged
    after that step are left out, so that a curve has one value per step. `start` is the newest
    one, `last` the newest event of all; each is empty if there is none.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        kept: list[Event] = []
        for event in events:
            if event["event"] == "start":
                step = event.get("resumed_step", 0)
                gone = ("stop",) if step else ("stop", "eval", "replies")  # a new start evaluates
                kept = [e for e in kept if e.get("step", 0) <= step and e["event"] not in gone]
            kept.append(event)
        self.events = kept
        self._by_kind: dict[str, list[Event]] = {}
        for event in kept:
            self._by_kind.setdefault(event["event"], []).append(event)
        self.train, self.evals, starts = map(self.of, ("train", "eval", "start"))
        self.start: Event = starts[-1] if starts else {}
        self.last: Event = kept[-1] if kept else {}

    @classmethod
    def of_run(cls, folder: Path) -> "History":
        """Read the history of the run in a folder."""
        return cls(read_events(folder))

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind."""
        return self._by_kind.get(kind, [])

    def seconds_left(self) -> float | None:
        """Estimate the seconds of training until the planned step from the last 20 logs; None
        before the first."""
        recent, planned = self.train[-20:], self.start.get("planned_steps")
        if not recent or planned is None:
            return None
        steps = recent[-1]["step"] - (self.train[-21]["step"] if len(self.train) > 20 else 0)
        seconds = sum(e["seconds"] for e in recent)
        return seconds / max(steps, 1) * (planned - recent[-1]["step"])

    def totals(self) -> dict[str, Any]:
        """Sum up the run: seconds of training, tokens, final losses; the eval loss is that of the
        step to export."""
        train = self.train
        evals = [e for e in self.evals if e.get("step") != 0]  # at step 0 it is the base's
        known = [e for e in evals if e["loss"] is not None]
        if known and self.start.get("exports_best"):
            evals = [min(known, key=lambda e: e["loss"])]
        seconds = sum(e["seconds"] for e in train)
        num_tokens = sum(e["tokens"] for e in train)
        peak, at_peak = None, 0.0  # seconds at the device's peak matrix speed
        for e in self.events:
            if e["event"] == "start":
                peak = e["matmul_peak_tflops"]
            elif e["event"] == "train" and peak:
                at_peak += e["tflop"] / peak
        cells = sum(e["tokens"] / max(1 - e["padding_share"], 1e-9) for e in train)
        return {
            "train_seconds": round(seconds, 1),
            "tokens": num_tokens,
            "trained_tokens": sum(e["trained_tokens"] for e in train),
            "tokens_per_second": round(num_tokens / seconds, 1) if seconds else None,
            "padding_share": round(1 - num_tokens / cells, 4) if cells else None,
            "mfu": round(at_peak / seconds, 4) if at_peak else None,
            "verified_steps": len(self.of("verified")),  # taken twice, with the same bits
            "memory_gib": max((e["memory_gib"] for e in train), default=None),
            "train_loss": train[-1]["loss"] if train else None,
            "eval_loss": evals[-1]["loss"] if evals else None,
        }


def smoothed(values: Sequence[float]) -> "np.ndarray":
    """Return an exponential moving average over about 1/20 of the values, without a start bias.

    >>> smoothed([1.0, 1.0, 1.0]).tolist()
    [1.0, 1.0, 1.0]
    """
    import numpy as np  # the guard, which is to be small, reads and writes events as well

    keep = 1 - 2 / (len(values) / 20 + 1) if len(values) > 20 else 0.0
    averages, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight)
    return np.array(averages)
