"""Count the looks at a dataset's test side: what is looked at often has helped to choose, too."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from neoxkit import paths
from neoxkit.data.tokenized import LOOKS
from neoxkit.errors import UserError
from neoxkit.runs import card


@dataclass(frozen=True)
class Looks:
    """How often a run, and all runs of its dataset, have looked at the test side."""

    by_run: int = 0
    by_all: int = 0

    def text(self) -> str:
        """Say which look the last one is."""
        return (
            f"This is look {self.by_run:,} at the test side by this run, and look {self.by_all:,} "
            "by all runs of its dataset."
        )


def add(folder: Path, data: Path) -> Looks:
    """Count a look at the test side of the dataset in `data` by the run in `folder`; return all.

    The dataset's file keeps the looks of runs that were deleted, and the run's card those of a
    dataset that was deleted and made again.
    """
    known = Looks(**(card.noted(folder, "looks") or {}))
    line = {"run": folder.name, "time": round(time.time(), 3)}
    try:
        with (data / LOOKS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        what = f"{paths.short(data / LOOKS)} can't be written, so that no look would be counted"
        raise UserError("side", what, "make it writable") from None
    runs = [*_runs(data / LOOKS)]
    looks = Looks(max(runs.count(folder.name), known.by_run + 1), max(len(runs), known.by_all + 1))
    card.note(folder, "looks", asdict(looks))
    return looks


def _runs(path: Path) -> Iterator[str]:
    """Yield the run of each look; "" for a line that was cut short, which is a look as well."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)["run"]
        except (ValueError, KeyError, TypeError):
            yield ""
