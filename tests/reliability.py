"""tests/RELIABILITY.md: a row for each series of `make test-crash`, with its counts."""

import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path

FILE = Path(__file__).with_name("RELIABILITY.md")
HEAD = """# Reliability, as it was counted

`make test-crash` writes this table: DeepSpeed on a CPU, the built-in model (with dropout, where
bytes are compared).

| series | counted | when | on |
|---|---|---|---|
"""
SERIES = (
    "killed before and inside every file write of a save: resumed to the same bytes",
    "killed at random times: resumed to the same bytes",
    "of these inside a save / in epoch 2 or later",
    "damaged checkpoints rejected",
    "good checkpoints accepted",
    "good runs that failed",
    "steps that are NaN or Inf, all masked, or out of memory: stopped there, nothing saved after",
    "ranks that stand still: found, stacks logged, nothing left",
    "disk full at every file write of a save: the last checkpoint whole, then the same bytes",
    "stops: nothing left within 10 s, the next start works",
    "failures that looked like success",
    "safeguards whose absence a series notices",
    "a sweep of 20 with 20 of its processes killed: runs that finished by themselves, same bytes",
    "ends of runs and sweeps, also by a kill, that the person's command was told exactly once",
    "random steps taken again from a random checkpoint before them: same losses, same bytes",
    "flipped bits in a step that is taken twice, of those with any effect: seen there",
    "runs that take every step twice: not stopped, same bytes as without",
    "killed before and inside every file write of a snapshot: same bytes, in each snapshot as well",
)


def add(series: str, part: str, counted: str) -> None:
    """Add the counts of one part of a series to those of its other parts."""
    line = next((row for row in _rows() if row[0] == series), ("", ""))
    parts = dict(p.split(": ") for p in line[1].split("; ") if p)
    record(series, "; ".join(f"{name}: {n}" for name, n in (parts | {part: counted}).items()))


def _rows() -> list[list[str]]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in rows if cells[0] in SERIES]


def record(series: str, counted: str) -> None:
    """Write a series' counts into the table."""
    assert series in SERIES
    rows = {cells[0]: f"| {' | '.join(cells)} |" for cells in _rows()}
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "deepspeed"))
    on = f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    rows[series] = f"| {series} | {counted} | {date.today()} | {on} |"
    FILE.write_text(HEAD + "".join(f"{rows[name]}\n" for name in SERIES if name in rows))
