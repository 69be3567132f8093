"""What a sweep shows while it runs: how many runs are finished, the time left, what each does."""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, TextIO

from neoxkit.cli import screen, terminal
from neoxkit.machine import duration
from neoxkit.runs import heartbeat
from neoxkit.runs.events import History
from neoxkit.runs.folder import FINISHED, Standing, doing, live_state, state_of
from neoxkit.settings import EvaluateSettings

# States of runs that have a process, or a job.
GOING = ("starting", "queued", "training", "evaluating", "finishing", "restarting")
HEADER = ("run", "state", "doing", "loss", "eval loss", "left")
DROPPED = ("left", "eval loss", "loss")
SHORTEST_NAME = 20  # before a column is left out


class SweepRow(NamedTuple):
    """A run of a sweep: its state, the step or what comes before one, losses, seconds left."""

    run: str
    state: str
    doing: str = ""
    loss: str = ""
    eval_loss: str = ""
    left: float | None = None


class LiveTable:
    """A table that changes: overwritten on a terminal; elsewhere a line when a state changes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._shown = 0  # lines, on a terminal
        self._logged: dict[str, str] = {}  # what was last written of a run, and of all ("")

    def show(self, rows: Sequence[SweepRow], left: float | None = None) -> None:
        """Show the rows below how many of them are finished, and the seconds that all have left."""
        if screen.can_rewrite(self._out):
            self._overwrite(_fitting(rows, left, self._out))
            return
        self._log("", counted(rows), summary(rows, left))
        for row in rows:
            self._log(row.run, row.state, _sentence(row))

    def clear(self) -> None:
        """Remove the table from a terminal; what is printed next stands in its place."""
        if self._shown:
            self._overwrite([])

    def _log(self, name: str, state: str, line: str) -> None:
        if self._logged.get(name) != state:
            print(line, file=self._out, flush=True)
        self._logged[name] = state

    def _overwrite(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._shown}F" if self._shown else ""
        text = "".join(f"\x1b[K{line}\n" for line in lines)
        print(f"{up}{text}\x1b[J", end="", file=self._out, flush=True)
        self._shown = len(lines)


def _fitting(rows: Sequence[SweepRow], left: float | None, out: TextIO) -> list[str]:
    """Return the lines of a terminal; if there are more than it has, those of the runs that go."""
    height = shutil.get_terminal_size().lines
    said = summary(rows, left)
    lines = _lines(said, rows, out)
    if len(lines) >= height:
        going = [row for row in rows if row.state in GOING]
        lines = _lines(f"{said}; those that run:", going, out)[: height - 1]
    return lines


def _lines(said: str, rows: Sequence[SweepRow], out: TextIO) -> list[str]:
    cells = [(*row[:-1], "" if row.left is None else duration(row.left)) for row in rows]
    table = screen.table(cells, HEADER, out, DROPPED, SHORTEST_NAME)
    return [*screen.wrapped(said, out).split("\n"), *table]


def _sentence(row: SweepRow) -> str:
    """Return a row as a line of a log, without what it does not know.

    >>> _sentence(SweepRow("g.seed=1", "training", "step 4 of 8", "2.5", left=30.0))
    'g.seed=1  training  step 4 of 8  train 2.5  30 s left'
    """
    named = [
        row.loss and f"train {row.loss}",
        row.eval_loss and f"eval {row.eval_loss}",
        "" if row.left is None else f"{duration(row.left)} left",
    ]
    return screen.GAP.join(filter(None, (row.run, row.state, row.doing, *named)))


def counted(rows: Sequence[SweepRow]) -> str:
    """Say how many runs are finished, go on and have failed.

    >>> counted([SweepRow("a", "finished"), SweepRow("b", "training"), SweepRow("c", "waiting")])
    '1 of 3 finished, 1 running'
    """
    states = [row.state for row in rows]
    parts = [f"{states.count('finished')} of {len(rows)} finished"]
    if going := sum(state in GOING for state in states):
        parts.append(f"{going} running")
    if failed := states.count("failed"):
        parts.append(f"{failed} failed")
    return ", ".join(parts)


def summary(rows: Sequence[SweepRow], left: float | None) -> str:
    """Return the line above the table: the counts, and the seconds left in words."""
    return counted(rows) + ("" if left is None else f", about {duration(left)} left")


def seconds_left(
    took: Sequence[float], going: Sequence[tuple[float, float | None]], waiting: int, at_once: int
) -> float | None:
    """Estimate the seconds that a sweep still takes; None if nothing is known yet.

    `took`: the seconds of each run that it has finished. `going`: those since the start of each run
    that goes on, and those that its training has left, if known.

    >>> seconds_left([60.0, 80.0], [(30.0, None)], 3, 1)
    250.0
    """
    wholes = [*took] or [since + left for since, left in going if left is not None]
    if not wholes:
        return None
    whole = mean(wholes)
    lefts = [max(whole - since, 0.0) if left is None else left for since, left in going]
    return max([*lefts, (sum(lefts) + waiting * whole) / at_once])


def going(folder: Path, since: float) -> SweepRow:
    """Return the row of a run whose process was started `since` seconds ago, from its files."""
    name = folder.name
    if live := live_state(folder):
        return _training(folder, live)
    if state_of(folder) != "finished":
        return SweepRow(name, "starting", f"its notebook, {since:.0f} s")
    notebook = folder / f"{EvaluateSettings.notebook}.ipynb"
    if notebook.exists() and notebook.stat().st_mtime > (folder / FINISHED).stat().st_mtime:
        return SweepRow(name, "evaluating", f"{EvaluateSettings.notebook}, {since:.0f} s")
    return SweepRow(name, "finishing", f"its notebook, {since:.0f} s")


def _training(folder: Path, state: str) -> SweepRow:
    stage, lasts = doing(folder)
    history = History.of_run(folder)
    train = history.train
    if not history.start or (stage and not (train and stage.startswith(heartbeat.FIRST_STEP))):
        return SweepRow(folder.name, state, f"{stage or heartbeat.IMPORTING}, {lasts:.0f} s")
    planned = history.start["planned_steps"]
    step = train[-1]["step"] if train else history.start["resumed_step"]
    return SweepRow(
        folder.name,
        state,
        f"step {step:,} of {planned:,}",
        f"{train[-1]['loss']:.4f}" if train else "",
        f"{history.evals[-1]['loss']:.4f}" if history.evals else "",
        history.seconds_left(),
    )


def ended(standing: Standing) -> SweepRow:
    """Return the row of a run that has ended, whichever way."""
    step = "" if standing.planned is None else f"step {terminal.steps(standing)}"
    loss, eval_loss = terminal.losses(standing)
    return SweepRow(standing.run, standing.state, step, loss, eval_loss)


def scoreboard(scores: Sequence[Mapping[str, Any]], equal_tokens: float, out: TextIO) -> list[str]:
    """Return the lines of the table of a sweep's results (compare_runs.scores); on a terminal, the
    columns that matter least are left out first."""
    losses = [line["eval_loss"] for line in scores]
    columns: dict[str, list[str]] = {
        "run": [line["run"] for line in scores],
        "state": [line["state"] for line in scores],
        "eval loss": _figures(scores, "eval_loss", ".4f"),
        f"eval loss at {equal_tokens:,.0f} tokens": _figures(scores, "equal_loss", ".4f"),
        "perplexity": [
            "" if loss is None else f"{math.exp(min(loss, 700)):,.3f}" for loss in losses
        ],
        "tokens trained on": _figures(scores, "trained_tokens", ","),
        "useful tokens/s": _figures(scores, "tokens_per_second", ",.0f"),
        "memory per rank (GiB)": _figures(scores, "memory_gib", ".2f"),
        "seconds of steps": _figures(scores, "train_seconds", ",.0f"),
    }
    rows = [*zip(*columns.values(), strict=True)]
    return screen.table(rows, [*columns], out, [*columns][:2:-1])


def _figures(scores: Sequence[Mapping[str, Any]], name: str, form: str) -> list[str]:
    return ["" if line[name] is None else format(line[name], form) for line in scores]
