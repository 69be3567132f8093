"""A run folder: its files, its metrics, and whether it is finished."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.files import read_json

METRICS = "metrics.jsonl"
LOG = "train.log"
ARGUMENTS = "arguments.json"
FINISHED = "FINISHED.json"
DATASET = "dataset.json"  # the manifest of the dataset that the run was started on
DIALS = "dials.json"  # setting -> [parameter, dial], where dials had changed any at the start


def append_event(folder: Path, event: str, /, **values: Any) -> None:
    """Add one line to metrics.jsonl: the event, the time (seconds since 1970), the values."""
    values = {k: None if _not_finite(v) else v for k, v in values.items()}  # NaN is not JSON
    line = json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n"
    with (folder / METRICS).open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = "\n" + line  # a killed writer left half a line
        file.write(line.encode())


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@dataclass
class EventReader:
    """Reads metrics.jsonl as it grows; `poll` returns the whole lines since the last call."""

    folder: Path
    at: int = 0

    def poll(self) -> list[dict[str, Any]]:
        path = self.folder / METRICS
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.at += len(whole)
        return list(_parsed(whole))


def _parsed(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # a line cut by a killed writer or a power cut
            continue


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events of a run so far."""
    return EventReader(folder).poll()


def history(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the line that led to the newest state.

    A resumed run goes back to its checkpoint's step; what an interrupted attempt logged after that
    step is left out, so that a curve has one value a step.
    """
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "start":
            step = event.get("resumed_step", 0)
            kept = [e for e in kept if e.get("step", 0) <= step and e["event"] != "stop"]
        kept.append(event)
    return kept


def state_of(folder: Path) -> str:
    """One of "new", "finished", "started": it has made a step that was logged, or saved one."""
    if (folder / FINISHED).exists():
        return "finished"
    made = any(e.get("step") for e in read_events(folder)) or any(folder.glob("checkpoint-*"))
    return "started" if made else "new"


def is_trial(folder: Path) -> bool:
    """Whether a run was begun as a trial (trial.py), which leaves no model."""
    path = folder / ARGUMENTS
    return path.is_file() and bool(read_json(path).get("trial"))


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free <name>.old-N and return the new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def finished_facts(folder: Path) -> dict[str, Any]:
    """What FINISHED.json says of a finished run; refused for every other."""
    if not folder.is_dir():
        raise UserError("run", f"{paths.short(folder)} does not exist", "run 02_train first")
    if state_of(folder) != "finished":
        raise UserError("run", f"{paths.short(folder)} is not finished", "run 02_train again")
    if is_trial(folder):
        what = f"{paths.short(folder)} was a trial: it left no model"
        raise UserError("run", what, "name the run that it was made for")
    return read_json(folder / FINISHED)


def totals(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run took and reached, from its events: seconds of training, tokens, final losses."""
    train = [e for e in events if e["event"] == "train"]
    evals = [e for e in events if e["event"] == "eval"]
    seconds = sum(e["seconds"] for e in train)
    num_tokens = sum(e["tokens"] for e in train)
    peak, at_peak = None, 0.0  # seconds that the device's fastest matrix products would have taken
    for e in events:
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
        "memory_gib": max((e["memory_gib"] for e in train), default=None),
        "train_loss": train[-1]["loss"] if train else None,
        "eval_loss": evals[-1]["loss"] if evals else None,
    }
