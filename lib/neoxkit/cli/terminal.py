"""The terminal output of `neoxkit run`: how a run begins, its progress, its result."""

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from neoxkit import files, paths
from neoxkit.data.places import Places
from neoxkit.machine import duration
from neoxkit.runs import checkpoints, health, heartbeat, lock
from neoxkit.runs.events import METRICS, EventReader, History
from neoxkit.runs.folder import Standing, finished_facts, state_of

REWRITE_SECONDS = 1.0  # on a terminal: one line, overwritten
LINE_SECONDS = 30.0  # into a file or a pipe: at most one line in this time
INDENT = " " * 6
PART = " · "  # between the parts of a status line


def note(*lines: str) -> None:
    """Print notes: worth knowing, but no reason to stop."""
    for line in lines:
        print(f"note: {line}", flush=True)


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

    on_terminal = out.isatty()
    history = History()
    begun, shown, warned = time.monotonic(), "", False
    pause = REWRITE_SECONDS if on_terminal else LINE_SECONDS
    while not over.wait(pause):
        if new := reader.poll():
            history = History([*history.events, *new])
        locked = lock.locked_by(reader.folder)
        if not history.events and not locked:  # trials may come first
            begun = time.monotonic()
            continue
        stage = heartbeat.stage(reader.folder) if locked else dashboard.NO_STAGE
        said = dashboard.status(history, time.monotonic() - begun, stage=stage).text
        if not warned and (lines := health.warnings(history)):
            warned = True  # once: its figures change with every log
            _show_above(view.alert(lines).text, on_terminal, out)
        if said != shown:
            _show(said, on_terminal, out)
            shown = said
    if on_terminal and shown:
        seconds = time.monotonic() - begun
        history = History([*history.events, *reader.poll()])
        _show(dashboard.status(history, seconds, ended=0).text, True, out)
        print(file=out, flush=True)


def _show(text: str, on_terminal: bool, out: TextIO) -> None:
    if on_terminal:
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{_cut(INDENT + text, width)}", end="", file=out, flush=True)
    else:
        print(f"{INDENT}{text}", file=out, flush=True)


def _cut(text: str, width: int) -> str:
    """Return the parts of a status line that fit, each whole: half a number is another number.

    >>> _cut("step 5 of 9 · batch 16", 21), _cut("step 5 of 9 · batch 16", 22)
    ('step 5 of 9', 'step 5 of 9 · batch 16')
    """
    if len(text) <= width:
        return text
    return text[: width + len(PART)].rpartition(PART)[0] or text[:width]


def _show_above(text: str, on_terminal: bool, out: TextIO) -> None:
    """Print lines that stay, above the one that is overwritten."""
    begin = "\r\x1b[K" if on_terminal else ""
    print(f"{begin}{textwrap.indent(text, INDENT)}", file=out, flush=True)


class Counting:
    """A progress line for a long loop: call it with (done, of).

    Without a terminal it prints only its end.
    """

    def __init__(self, label: str) -> None:
        self.label, self.done = label, -1

    def __call__(self, done: int, of: int) -> None:
        on_terminal = sys.stdout.isatty()
        if done != self.done and (on_terminal or done == of):
            _show(f"{self.label}: {done:,} of {of:,}", on_terminal, sys.stdout)
            if on_terminal and done == of:
                print(flush=True)
        self.done = done


@contextmanager
def live(out: TextIO | None = None) -> Iterator[Callable[[Sequence[Sequence[str]]], None]]:
    """Show a table that changes: yield a function that the block calls with the current rows.

    A row begins with its name and its state. On a terminal the table is overwritten; elsewhere a
    row is written when its state changes.
    """
    out = out or sys.stdout
    before: list[str] = []
    states: dict[str, str] = {}

    def show(rows: Sequence[Sequence[str]]) -> None:
        if not out.isatty():
            for name, state, *rest in rows:
                if states.get(name) != state:
                    print("  ".join(filter(None, (name, state, *rest))), file=out, flush=True)
                states[name] = state
            return
        width, height = shutil.get_terminal_size()
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{r[0]:{widths[0]}}  {r[1]:{widths[1]}}  {r[2]}"[: width - 1] for r in rows]
        if len(lines) >= height:  # show those in training
            going = [line for line, row in zip(lines, rows, strict=True) if row[1] == "training"]
            lines = [f"{len(rows)} runs, {len(going)} of them in training", *going][: height - 1]
        up = f"\x1b[{len(before)}F" if before else ""
        text = "".join(f"\x1b[K{line}\n" for line in lines)
        print(f"{up}{text}\x1b[J", end="", file=out, flush=True)
        before[:] = lines

    yield show


def runs_table(standings: Sequence[Standing]) -> str:
    """Return one line per run: state, step, losses, and when it last changed."""
    from neoxkit.lab import view  # imports IPython, which other commands don't need at the start

    if not standings:
        return "no runs yet -- use neoxkit run, or 02_train in JupyterLab"
    header = ("run", "state", "step", "train loss", "eval loss", "changed")
    rows = [
        (
            s.run,
            f"{s.state} (a trial)" if s.is_trial else s.state,
            _steps(s),
            *_losses(s),
            f"{duration(max(time.time() - s.changed, 0))} ago",
        )
        for s in standings
    ]
    says = [f"{s.run}: {s.says}" for s in standings if s.says]
    return "\n".join([view.table(rows, header).text, *says])


def how_it_stands(standing: Standing) -> str:
    """Return one sentence on a run that has just ended."""
    remedy = "" if standing.state == "finished" else " -- the command that started it resumes it"
    return f"{standing.run}: {standing.state} at step {_steps(standing)}{remedy}"


def reached(standing: Standing) -> str:
    """Say how far a run is: its steps and its newest losses."""
    if standing.planned is None:
        return ""
    losses = zip(("train", "eval"), _losses(standing), strict=True)
    said = [f"{name} {loss}" for name, loss in losses if loss]
    return "  ".join([f"step {_steps(standing)}", *said])


def _steps(standing: Standing) -> str:
    return "none" if standing.planned is None else f"{standing.step:,} of {standing.planned:,}"


def _losses(standing: Standing) -> list[str]:
    losses = (standing.train_loss, standing.eval_loss)
    return ["" if loss is None else f"{loss:.4f}" for loss in losses]


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
    sides = {side: numbers["conversations"] for side, numbers in manifest["sides"].items()}
    return f"{counted(manifest, True)}; {sides['train']:,} train, {sides['eval']:,} eval"


def summary(dataset: Path | None, run: Path | None, evaluated: bool) -> str:
    """Summarise what the notebooks made, from the files they wrote."""
    parts = []
    if dataset:
        parts.append(counted(files.read_json(dataset / files.MANIFEST)))
    if run:
        parts += [_loss(run, evaluated), f"model in {paths.short(run / 'model')}"]
        parts += [f"warning: {line}" for line in finished_facts(run)["warnings"]]
    elif dataset:
        parts.append(f"dataset in {paths.short(dataset)}")
    return "; ".join(filter(None, parts))


def _loss(run: Path, evaluated: bool) -> str:
    """Return the tuned model's eval loss, after the base's if 03 has measured that."""
    if evaluated:
        scores = files.read_json(run / "evaluation.json")["eval_loss"]
        losses = [scores[which]["loss"] for which in ("base", "tuned") if scores[which]]
    else:
        losses = [loss] if (loss := finished_facts(run)["eval_loss"]) is not None else []
    return f"eval loss {' -> '.join(f'{loss:.2f}' for loss in losses)}" if losses else ""
