"""Snapshots: a run's weights alone at steps 0, 1, 2, 4, 8, ..., all kept, to look at later."""

import re
from pathlib import Path

FOLDER = "snapshots"  # in the run folder


def is_due(step: int) -> bool:
    """Return whether a step has a snapshot: 0, or a power of two.

    >>> [step for step in range(20) if is_due(step)]
    [0, 1, 2, 4, 8, 16]
    """
    return step & (step - 1) == 0


def how_many(steps: int) -> int:
    """Return how many snapshots a run of so many steps makes; its last step is the model itself.

    >>> how_many(16), how_many(17)
    (5, 6)
    """
    return 1 + (steps - 1).bit_length()


def folder_of(run: Path, step: int) -> Path:
    """Return the place of a step's snapshot, which `from_pretrained` opens."""
    return run / FOLDER / f"step-{step}"


def by_step(run: Path) -> dict[int, Path]:
    """Return a run's snapshots by their steps, in order; one that was not finished has no name."""
    found = {p: re.fullmatch(r"step-(\d+)", p.name) for p in (run / FOLDER).glob("step-*")}
    return dict(sorted((int(name[1]), path) for path, name in found.items() if name))
