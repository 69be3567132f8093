"""Watch a training in a notebook: a status line and a plot, redrawn from metrics.jsonl."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import display

from neoxkit import paths
from neoxkit.errors import Stopped, shorten
from neoxkit.lab import frontend, view
from neoxkit.lab.training import curve
from neoxkit.lab.view import View
from neoxkit.launch import process
from neoxkit.launch.process import Training
from neoxkit.machine import duration
from neoxkit.runs import health, heartbeat
from neoxkit.runs.events import EventReader, History
from neoxkit.runs.folder import LOG

REDRAW_SECONDS = 1.0  # at least this long between redraws
DRAWING_SHARE = 0.05  # of one core at most: on a CPU, drawing slows training
LOG_LINES = 15  # from the end of train.log
SHOWN_EVALUATIONS = 6  # in the table of replies: the first and the last ones
NO_STAGE = ("", 0.0)


def watch(training: Training | str) -> dict[str, Any]:
    """Watch a training (or a run, by its name) until it ends; return what FINISHED.json says.

    Raise if it failed. A run that was already finished is shown as it is; nothing is trained.

    Interrupting the cell lets a training that was started here finish its step, save and stop (the
    second interrupt ends it at once); running the cell again resumes it. A training that another
    process started continues without the cell. If the browser is closed, the cell ends and the
    training continues: run the cell again to watch it.
    """
    training = process.attach(training) if isinstance(training, str) else training
    screen = _Screen(training)
    try:
        for turn in itertools.count():
            try:
                if training.poll() is not None:
                    break
                screen.draw()
                if turn % 3 == 0:  # a browser that returns needs longer than 0.6 s
                    _leave_if_nobody_looks(training)
                time.sleep(0.2)
            except KeyboardInterrupt:
                training.interrupt()
    except Stopped:
        raise
    except BaseException:
        training.stop()
        raise
    finally:
        screen.draw_last()
    return training.check()


def _leave_if_nobody_looks(training: Training) -> None:
    """End the cell, not the training: a busy kernel can't show anything to a browser that returns.

    The reopened notebook has new outputs, which this cell does not know.
    """
    if frontend.num_tabs() == 0:
        what = "the browser was closed; the training continues"
        raise Stopped(training.folder.name, what, "run this cell again to watch it")


class _Screen:
    """The outputs of a watching cell: status line, plot, replies, and the folded log."""

    def __init__(self, training: Training) -> None:
        self.training, self.folder = training, training.folder
        self.reader = EventReader(self.folder)
        self.history, self.is_drawn = History(), True
        self.log: View | None = None
        self.begun, self.next_drawing = time.monotonic(), 0.0
        self.alert = view.NOTHING
        self.line = display(status(self.history, 0.0), display_id=True)
        self.picture = display(view.NOTHING, display_id=True)
        self.replies = display(view.NOTHING, display_id=True)
        self.log_end = display(view.NOTHING, display_id=True)

    def draw(self) -> None:
        """Draw anything new, unless the last drawing was too recent."""
        now = time.monotonic()
        if now >= self.next_drawing:
            self._draw(None)
            took = time.monotonic() - now
            self.next_drawing = now + max(REDRAW_SECONDS, took / DRAWING_SHARE)

    def draw_last(self) -> None:
        """Draw the training's end, or its current state if only the watching ended."""
        self.is_drawn = False
        self._draw(self.training.poll())

    def _draw(self, ended: int | None) -> None:
        if new := self.reader.poll():
            self.history, self.is_drawn = History([*self.history.events, *new]), False
        history, seconds = self.history, time.monotonic() - self.begun
        if not self.is_drawn:
            self.alert = view.alert(health.warnings(history))
        stage = heartbeat.stage(self.folder) if ended is None else NO_STAGE
        line = status(history, seconds, ended, self.training.asked_to_stop, stage)
        self.line.update(line + self.alert)
        if not self.is_drawn:
            self.is_drawn = True
            if history.train or history.evals:
                self.picture.update(curve(history, self.folder.name))
            self.replies.update(replies(history))
        if (log := log_end(self.folder / LOG)) != self.log:
            self.log = log
            self.log_end.update(log)


def replies(history: History) -> View:
    """Show the model's replies to the same questions at its evaluations, the newest last."""
    told = history.of("replies")
    if not told:
        return view.NOTHING
    left_out = max(len(told) - SHOWN_EVALUATIONS, 0)
    shown = told[:1] + told[1 + left_out :]
    header = ("step", *(shorten(r["asked"], 80) for r in told[-1]["replies"]))
    rows = [(f"{e['step']:,}", *(r["reply"] or "(nothing)" for r in e["replies"])) for e in shown]
    if left_out:
        rows.insert(1, (f"({left_out} more)", *("" for _ in told[-1]["replies"])))
    return view.table(rows, header)


def log_end(path: Path) -> View:
    """Show the last lines of a training's log, folded, without what the plot shows."""
    if not path.is_file():
        return view.NOTHING
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 20_000, 0))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if line.strip() and not line.startswith("{")]
    return view.folded(f"the end of {paths.short(path)}", "\n".join(lines[-LOG_LINES:]))


def status(
    history: History,
    seconds: float,
    ended: int | None = None,
    stopping: bool = False,
    stage: tuple[str, float] = NO_STAGE,
) -> View:
    """Return the status line, what matters most first, because a narrow terminal cuts its end.

    Step, loss, time left; peak learning rate, batch (conversations per step), block size;
    epoch, speed (see flops.py), memory. Before the first step: the stage (`heartbeat.stage`).
    """
    start, train = history.start, history.train
    doing, lasts = stage
    if doing and doing != heartbeat.FIRST_STEP:  # also of a run that is resumed
        return _line(f"{doing[0].upper()}{doing[1:]} ... {lasts:.0f} s", None, 1)
    if not start:
        text = heartbeat.IMPORTING.capitalize() if ended is None else "Ended before the first step"
        return _line(f"{text} ... {seconds:.0f} s", None, 1)
    planned, step = start["planned_steps"], train[-1]["step"] if train else start["resumed_step"]
    parts = [f"step {step:,} of {planned:,}"]
    if doing:
        parts.append(f"{doing}, {lasts:.0f} s")
    if train:
        parts.append(f"loss {train[-1]['loss']:.4f}")
        if history.of("done"):
            parts.append("finished")
        elif ended is not None:
            parts.append("stopped" if history.last["event"] == "stop" else "ended early")
        elif stopping:
            parts.append("finishing the step and saving")
        else:
            parts.append(f"{_left(train, planned)} left")
    parts += [
        f"rate {start['learning_rate']:g}",
        f"batch {start['conversations_a_step']:,}",
        f"block {start['block_size']:,}",
    ]
    if train:
        last = train[-1]
        parts += [
            f"epoch {last['epoch']:.2f}",
            f"{last['tokens_per_second']:,.0f} useful tokens/s",
            f"padding {last['padding_share']:.0%}",
            f"MFU {last['mfu']:.0%}",
            _memory(last),
        ]
    return _line(" · ".join(parts), step, planned)


def _memory(train: Mapping[str, Any]) -> str:
    """Return the peak memory per rank, or its range over the ranks."""
    by_rank = [f"{gib:.1f}" for gib in train["memory_gib_by_rank"]]
    least, most = min(by_rank, key=float), max(by_rank, key=float)
    return f"{least} to {most} GiB per rank" if least != most else f"{most} GiB per rank"


def _left(train: Sequence[Mapping[str, Any]], planned: int) -> str:
    recent = train[-20:]
    steps = recent[-1]["step"] - (train[-21]["step"] if len(train) > 20 else 0)
    seconds = sum(e["seconds"] for e in recent) / max(steps, 1) * (planned - recent[-1]["step"])
    return duration(seconds)


def _line(text: str, value: int | None, most: int) -> View:
    value_html = "" if value is None else f' value="{value}"'
    bar = f'<progress{value_html} max="{most}" style="width:12em"></progress>'
    return View(f"<p>{bar} {view.escape(text)}</p>", text)
