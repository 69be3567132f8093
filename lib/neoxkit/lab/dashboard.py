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
from neoxkit.lab.curve import Curve
from neoxkit.lab.view import View
from neoxkit.launch import process
from neoxkit.launch.process import Training
from neoxkit.machine import duration
from neoxkit.models.power import POWER
from neoxkit.runs import endings, health, heartbeat, jobs
from neoxkit.runs.events import EventReader, History
from neoxkit.runs.folder import LOG, doing, early

REDRAW_SECONDS = 1.0  # between two texts, and at least between two pictures
DRAWING_SHARE = 0.05  # of one core at most, for the picture: on a CPU, drawing slows training
LOG_LINES = 15  # from the end of train.log
SHOWN_EVALUATIONS = 6  # in the table of replies: the first and the last ones
NO_STAGE = ("", 0.0)


def watch(training: Training | str, scale: str = "auto") -> dict[str, Any]:
    """Watch a training (or a run, by its name) until it ends; return what FINISHED.json says.

    Raise if it failed. A run that was already finished is shown as it is; nothing is trained.
    `scale`: how the losses are drawn, auto, linear, log or zoom (`scales.of_losses`); any notebook
    can show the same run in another way meanwhile.

    Interrupting the cell lets a training that was started here finish its step, save and stop (the
    second interrupt ends it at once); running the cell again resumes it. A training that another
    process started continues without the cell. If the browser is closed, the cell ends and the
    training continues: run the cell again to watch it.
    """
    training = process.attach(training) if isinstance(training, str) else training
    screen = _Screen(training, scale)
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
    endings.tell_found()  # of a guard that was killed
    return training.check()


def _leave_if_nobody_looks(training: Training) -> None:
    """End the cell, not the training: a busy kernel can't show anything to a browser that returns.

    The reopened notebook has new outputs, which this cell does not know.
    """
    if frontend.num_tabs() == 0:
        what = "the browser was closed; the training continues"
        raise Stopped(training.folder.name, what, "run this cell again to watch it")


class _Screen:
    """The outputs of a watching cell: status line, plot, replies, and the folded log.

    The text is new every second; the picture, which takes longer, has a pace of its own.
    """

    def __init__(self, training: Training, scale: str) -> None:
        self.training, self.folder = training, training.folder
        self.curve = Curve(self.folder.name, scale)
        self.reader = EventReader(self.folder)
        self.history, self.is_drawn = History(), True
        self.log: View | None = None
        self.begun, self.next_text, self.next_picture = time.monotonic(), 0.0, 0.0
        self.alert = view.NOTHING
        self.line = display(status(self.history, 0.0), display_id=True)
        self.picture = display(view.NOTHING, display_id=True)
        self.replies = display(view.NOTHING, display_id=True)
        self.log_end = display(view.NOTHING, display_id=True)

    def draw(self) -> None:
        """Show anything new, unless it was shown too recently."""
        now = time.monotonic()
        if now >= self.next_text:
            self._write(None)
            self.next_text = now + REDRAW_SECONDS
        if not self.is_drawn and now >= self.next_picture:
            took = self._draw()
            self.next_picture = now + max(REDRAW_SECONDS, took / DRAWING_SHARE)

    def draw_last(self) -> None:
        """Show the training's end, or its current state if only the watching ended."""
        self._write(self.training.poll())
        self._draw()

    def _write(self, ended: int | None) -> None:
        """Show the newest texts."""
        if new := self.reader.poll():
            self.history, self.is_drawn = History([*self.history.events, *new]), False
            self.alert = view.alert(health.warnings(self.history))
            below = parts(self.history) + replies(self.history) + can_show(self.history)
            self.replies.update(below)
        stage = doing(self.folder) if ended is None else NO_STAGE
        seconds = time.monotonic() - self.begun
        stamp = _stamp(self.history, ended)
        if (job := jobs.look(self.folder)) and not job.is_waiting:
            stamp = f"{job.says} · {stamp}"
        line = status(self.history, seconds, ended, self.training.asked_to_stop, stage, stamp)
        self.line.update(line + self.alert)
        if (log := log_end(self.folder / LOG)) != self.log:
            self.log = log
            self.log_end.update(log)

    def _draw(self) -> float:
        """Show the newest curve; return the seconds of a core that this took.

        The first one counts nothing: it also loads fonts, once.
        """
        self.is_drawn = True
        if not (self.history.train or self.history.evals):
            return 0.0
        begun, is_first = time.thread_time(), not self.next_picture
        self.curve.set_history(self.history)
        self.picture.update(self.curve)
        return 0.0 if is_first else time.thread_time() - begun


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


def can_show(history: History) -> View:
    """Say how large a difference to the base the held-out set can show, as it was measured at the
    newest evaluation that could (models/power.py); nothing before."""
    measured = [e for e in history.evals if e.get("detectable")]
    if not measured:
        return view.NOTHING
    newest = measured[-1]
    return view.sentence(
        f"This held-out set can show a difference to the base of {newest['detectable']:.2g} nats "
        f"per trained token ({POWER:.0%}), by how differently the conversations' losses had "
        f"changed at step {newest['step']:,}."
    )


def parts(history: History) -> View:
    """Show the newest loss of each part of the held-out set, with its lowest; nothing if it was not
    given as several files."""
    measured = [e for e in history.evals if e.get("parts")]
    if not measured:
        return view.NOTHING
    rows = []
    for name, newest in measured[-1]["parts"].items():
        known = [e for e in measured if e["parts"].get(name) is not None]
        best = min(known, key=lambda e: e["parts"][name], default=None)
        said = f"{best['parts'][name]:.4f} at step {best['step']:,}" if best else ""
        rows.append((name, "not finite" if newest is None else f"{newest:.4f}", said))
    return view.table(rows, ("held-out part", "eval loss", "lowest"))


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
    stamp: str = "",
) -> View:
    """Return the status line, what matters most first, because a narrow terminal cuts its end.

    Step, losses, time left; peak learning rate, batch (conversations per step), block
    size; epoch, speed (see flops.py), memory; the stamp. Before the first step: the stage
    (`doing`).
    """
    start, train = history.start, history.train
    doing, lasts = stage
    if doing and not doing.startswith(heartbeat.FIRST_STEP):  # also of a run that is resumed
        return _line([f"{doing[0].upper()}{doing[1:]} ... {lasts:.0f} s", stamp], None, 1)
    if not start:
        text = heartbeat.IMPORTING.capitalize() if ended is None else "Ended before the first step"
        return _line([f"{text} ... {seconds:.0f} s", stamp], None, 1)
    planned, step = start["planned_steps"], train[-1]["step"] if train else start["resumed_step"]
    parts = [f"step {step:,} of {planned:,}"]
    if doing:
        parts.append(f"{doing}, {lasts:.0f} s")
    parts += _losses(history)
    if train:
        if done := history.of("done"):
            parts.append(early(done[-1]) or "finished")
        elif ended is not None:
            parts.append("stopped" if history.last["event"] == "stop" else "ended early")
        elif stopping:
            parts.append("finishing the step and saving")
        else:
            parts.append(f"{duration(history.seconds_left() or 0)} left")
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
    return _line([*parts, stamp], step, planned)


def _stamp(history: History, ended: int | None) -> str:
    """Say when what is shown was so (now, or when the run ended), so that an old output shows its
    age; and how long after the newest start that was."""
    at = time.time() if ended is None else history.last.get("time")
    when = time.strftime("at %H:%M:%S on %Y-%m-%d", time.localtime(at))
    if at is None or not history.start:
        return when
    spent = duration(max(at - history.start["time"], 0))
    return f"{spent} {'so far' if ended is None else 'in all'} · {when}"


def _losses(history: History) -> list[str]:
    """Return the newest train and eval loss, and the best eval loss if it is another one."""
    said = []
    if history.train and (loss := history.train[-1]["loss"]) is not None:
        said.append(f"loss {loss:.4f}")
    evals = [e for e in history.evals if e["loss"] is not None]
    if evals:
        best, last = min(evals, key=lambda e: e["loss"]), evals[-1]
        before = f" (best {best['loss']:.4f} at step {best['step']:,})" if best != last else ""
        said.append(f"eval loss {last['loss']:.4f}{before}")
    return said


def _memory(train: Mapping[str, Any]) -> str:
    """Return the peak memory per rank, or its range over the ranks."""
    by_rank = [f"{gib:.1f}" for gib in train["memory_gib_by_rank"]]
    least, most = min(by_rank, key=float), max(by_rank, key=float)
    return f"{least} to {most} GiB per rank" if least != most else f"{most} GiB per rank"


def _line(parts: Sequence[str], value: int | None, most: int) -> View:
    text = " · ".join(filter(None, parts))
    value_html = "" if value is None else f' value="{value}"'
    bar = f'<progress{value_html} max="{most}" style="width:12em"></progress>'
    return View(f"<p>{bar} {view.escape(text)}</p>", text)
