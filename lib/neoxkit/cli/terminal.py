"""The terminal output of `neoxkit run`: how a run begins, its progress, its result."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from neoxkit import files, paths
from neoxkit.cli import screen
from neoxkit.data.places import Places
from neoxkit.machine import duration
from neoxkit.runs import checkpoints, health
from neoxkit.runs.events import METRICS, EventReader, History
from neoxkit.runs.folder import (
    EVALUATION,
    Standing,
    doing,
    early,
    finished_facts,
    live_state,
    of_side,
    state_of,
)

REWRITE_SECONDS = 1.0  # on a terminal: one line, overwritten
LINE_SECONDS = 30.0  # into a file or a pipe: at most one line in this time
INDENT = " " * 6
PART = " · "  # between the parts of a status line
# The time left, or how it ended: shown before all but the step.
MATTERS = re.compile(r" left$|^(finished|finishing|stopped|ended)")


def note(*lines: str) -> None:
    """Print notes: worth knowing, but no reason to stop."""
    for line in lines:
        print(screen.wrapped(f"note: {line}", sys.stdout, len("note: ")), flush=True)


def outset(folder: Path) -> str:
    """Say how a training in this folder begins; empty if it is new."""
    state = state_of(folder)
    if state == "finished":
        return "already trained: shown as it is"
    if state == "new":
        return ""
    step = checkpoints.saved_step(folder)
    if step is None and checkpoints.folders(folder):
        return ""  # the training says what is wrong with them
    return f"resuming from step {step}" if step else "starting over: no checkpoint was saved"


@contextmanager
def following(folder: Path, out: TextIO | None = None) -> Iterator[None]:
    """Show the status line of the training in a folder while the block runs."""
    metrics = folder / METRICS
    reader = EventReader(folder, metrics.stat().st_size if metrics.exists() else 0)
    over = threading.Event()
    follower = threading.Thread(target=_follow, args=(reader, over, out or sys.stdout), daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


def _follow(reader: EventReader, over: threading.Event, out: TextIO) -> None:
    # matplotlib and IPython are loaded while the kernel starts.
    from neoxkit.lab import dashboard, view

    on_terminal = screen.can_rewrite(out)
    history = History()
    entered = begun = time.monotonic()
    shown, warned, noted = "", False, False
    pause = REWRITE_SECONDS if on_terminal else LINE_SECONDS
    while not over.wait(pause):
        if new := reader.poll():
            history = History([*history.events, *new])
        live = live_state(reader.folder)
        if not history.events and not live:  # trials may come first
            begun = time.monotonic()
            if on_terminal:
                _show(f"In its notebook ... {begun - entered:.0f} s", out)
            continue
        stage = doing(reader.folder) if live else dashboard.NO_STAGE
        said = dashboard.status(history, time.monotonic() - begun, stage=stage).text
        noted = noted or _show_notices(history, out)
        if not warned and (lines := health.warnings(history)):
            warned = True  # once: its figures change with every log
            _show_above(view.alert(lines).text, out)
        if said != shown:
            _show(said, out)
            shown = said
    history = History([*history.events, *reader.poll()])
    if not noted:  # the training was short
        _show_notices(history, out)
    if on_terminal and not shown:
        print("\r\x1b[K", end="", file=out, flush=True)
    elif on_terminal:
        seconds = time.monotonic() - begun
        _show(dashboard.status(history, seconds, ended=0).text, out)
        print(file=out, flush=True)


def _show_notices(history: History, out: TextIO) -> bool:
    """Show what a training noted at its start; return whether it has started."""
    if notices := history.start.get("notices"):
        _show_above("\n".join(f"note: {notice}" for notice in notices), out)
    return bool(history.start)


def _show(text: str, out: TextIO) -> None:
    room = screen.columns(out)
    if room and screen.can_rewrite(out):
        line = fitting(text, room - len(INDENT) - 1)
        print(f"\r\x1b[K{INDENT}{line}", end="", file=out, flush=True)
    else:
        print(f"{INDENT}{text}", file=out, flush=True)


def fitting(text: str, room: int) -> str:
    """Return the parts of a status line that fit, those that matter most.

    >>> fitting("step 5 of 9 · loss 2.5 · batch 16 · 3 s left", 24)
    'step 5 of 9 · 3 s left'
    """
    return screen.fitting(text.split(PART), room, PART, lambda part: bool(MATTERS.search(part)))


def _show_above(text: str, out: TextIO) -> None:
    """Print lines that stay, above the one that is overwritten."""
    if screen.can_rewrite(out):
        print("\r\x1b[K", end="", file=out)
    for line in text.split("\n"):
        said = f"{INDENT}{screen.label(line, out)}"
        print(screen.wrapped(said, out, len(INDENT)), file=out, flush=True)


class Counting:
    """A progress line for a long loop: call it with (done, of).

    Without a terminal it prints only its end.
    """

    def __init__(self, label: str) -> None:
        self.label, self.done = label, -1

    def __call__(self, done: int, of: int) -> None:
        on_terminal = screen.can_rewrite(sys.stdout)
        if done != self.done and (on_terminal or done == of):
            _show(f"{self.label}: {done:,} of {of:,}", sys.stdout)
            if on_terminal and done == of:
                print(flush=True)
        self.done = done


def runs_table(standings: Sequence[Standing], out: TextIO | None = None) -> str:
    """Return one line per run: state, step, losses, and when it last changed."""
    out = out or sys.stdout
    if not standings:
        return "no runs yet -- use neoxkit run, or 02_train in JupyterLab"
    header = ("run", "state", "step", "train loss", "eval loss", "changed")
    rows = [
        (
            s.run,
            f"{s.state} (a trial)" if s.is_trial else s.state,
            steps(s),
            *losses(s),
            f"{duration(max(time.time() - s.changed, 0))} ago",
        )
        for s in standings
    ]
    lines = screen.table(rows, header, out, drop=("train loss", "changed", "step"))
    says = [f"{s.run}: {screen.label(s.says, out)}" for s in standings if s.says]
    return "\n".join([*lines, *(screen.wrapped(line, out, 4) for line in says)])


def runs_json(standings: Sequence[Standing]) -> str:
    """Return the runs as a JSON array of objects, whose fields `neoxkit runs --help` names."""
    return json.dumps([_as_fields(s) for s in standings], indent=1)


def _as_fields(standing: Standing) -> dict[str, Any]:
    return {
        "run": standing.run,
        "state": standing.state,
        "step": standing.step,
        "planned_steps": standing.planned,
        "train_loss": standing.train_loss,
        "eval_loss": standing.eval_loss,
        "changed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(standing.changed)),
        "says": standing.says,
        "trial": standing.is_trial,
    }


def how_it_stands(standing: Standing) -> str:
    """Return one sentence on a run that has just ended."""
    remedy = "" if standing.state == "finished" else " -- the command that started it resumes it"
    return f"{standing.run}: {standing.state} at step {steps(standing)}{remedy}"


def reached(standing: Standing) -> str:
    """Say how far a run is: its steps and its newest losses."""
    if standing.planned is None:
        return ""
    known = zip(("train", "eval"), losses(standing), strict=True)
    said = [f"{name} {loss}" for name, loss in known if loss]
    return "  ".join([f"step {steps(standing)}", *said])


def steps(standing: Standing) -> str:
    """Return how many steps of those planned a run has taken."""
    return "none" if standing.planned is None else f"{standing.step:,} of {standing.planned:,}"


def losses(standing: Standing) -> list[str]:
    """Return a run's newest train loss and eval loss, empty before the first."""
    both = (standing.train_loss, standing.eval_loss)
    return ["" if loss is None else f"{loss:.4f}" for loss in both]


def counted(manifest: Mapping[str, Any], where: bool = False) -> str:
    """Say what 01 read, dropped and cut; with `where`, also the reasons and the lines.

    >>> counts = {"read": 60, "dropped_lines": {"no reply": [7]}, "cut_lines": []}
    >>> source = {"path": "talks.csv", "unit": "row", "begins": {}}
    >>> manifest = {"counts": {"train": counts}, "source": source}
    >>> counted(manifest), counted(manifest, where=True)
    ('60 read, 1 dropped', '60 read, 1 dropped (no reply: row 7)')
    """
    sources = {"train": "source", "eval": "eval_source"}
    parts = {
        name: _counted_side(counts, Places.of(manifest[sources[name]]) if where else None)
        for name, counts in manifest["counts"].items()
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    return "; ".join(f"{name}: {said}" for name, said in parts.items())


def _counted_side(counts: Mapping[str, Any], places: Places | None) -> str:
    dropped, cut = counts["dropped_lines"], counts["cut_lines"]
    said = f"{counts['read']:,} read, {sum(map(len, dropped.values())):,} dropped"
    if places and dropped:
        said += f" ({'; '.join(f'{why}: {places.listed(at)}' for why, at in dropped.items())})"
    if cut:
        said += f", {len(cut):,} cut" + (f" ({places.listed(cut)})" if places else "")
    return said


def tokenized_note(manifest: Mapping[str, Any]) -> str:
    """Say what became of a file's conversations."""
    sides = [f"{numbers['conversations']:,} {side}" for side, numbers in manifest["sides"].items()]
    return f"{counted(manifest, True)}; {', '.join(sides)}"


def summary(dataset: Path | None, run: Path | None, side: str = "") -> str:
    """Summarise what the notebooks made, from the files they wrote; `side`: what 03 evaluated."""
    parts = []
    if dataset:
        parts.append(counted(files.read_json(dataset / files.MANIFEST)))
    if run:
        facts = finished_facts(run)
        parts += [early(facts), _loss(run, side), f"model in {paths.short(run / 'model')}"]
        parts += [f"warning: {line}" for line in facts["warnings"]]
    elif dataset:
        parts.append(f"dataset in {paths.short(dataset)}")
    return "; ".join(filter(None, parts))


def _loss(run: Path, side: str) -> str:
    """Return the tuned model's loss, after the base's if 03 has measured that; of the test side,
    with the number of the look."""
    found: dict[str, Any] = {}
    if side:
        found = files.read_json(run / of_side(EVALUATION, side))
        scores = found["eval_loss"]
        losses = [scores[which]["loss"] for which in ("base", "tuned") if scores[which]]
    else:
        losses = [loss] if (loss := finished_facts(run)["eval_loss"]) is not None else []
    said = f"{side or 'eval'} loss {' -> '.join(f'{loss:.2f}' for loss in losses)}"
    look = f" (look {found['looks']['by_run']:,} at the test side)" if "looks" in found else ""
    return said + look if losses else ""
