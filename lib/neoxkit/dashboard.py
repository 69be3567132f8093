"""Watch a training in a notebook: one status line and one plot, redrawn from metrics.jsonl."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import display

from neoxkit import paths, plots, runs, views
from neoxkit.errors import UserError
from neoxkit.launch import Training
from neoxkit.views import View

REDRAW_SECONDS = 1.0  # at most one redraw in this time
DRAWING_SHARE = 0.05  # at most this share of a core goes into drawing: on a CPU it slows training


def watch(training: Training) -> dict[str, Any]:
    """Follow a training until it ends; returns what FINISHED.json says, raises when it failed.

    A run that was finished before is shown as it is; nothing is trained.

    Interrupting the cell stops the whole process tree; running it again goes on from the newest
    checkpoint.
    """
    events: list[dict[str, Any]] = []
    num_drawn = 0
    reader = runs.EventReader(training.folder)
    begun, next_drawing = time.monotonic(), 0.0
    try:
        line = display(status([], 0.0), display_id=True)
        picture = display(plots.curve([]), display_id=True)
        while training.poll() is None:
            events += reader.poll()
            now = time.monotonic()
            if now >= next_drawing:
                line.update(status(runs.history(events), now - begun))
                if len(events) > num_drawn:
                    picture.update(plots.curve(runs.history(events), training.folder.name))
                    num_drawn = len(events)
                took = time.monotonic() - now
                next_drawing = now + max(REDRAW_SECONDS, took / DRAWING_SHARE)
            time.sleep(0.2)
    except KeyboardInterrupt:
        training.stop()
        raise UserError("run", *_stopped(training)) from None
    except BaseException:
        training.stop()
        raise
    finally:
        events = runs.history(events + reader.poll())
        line.update(status(events, time.monotonic() - begun, ended=training.poll()))
        picture.update(plots.curve(events, training.folder.name))
    return training.check()


def _stopped(training: Training) -> tuple[str, str]:
    checkpoints = runs.whole_checkpoints(training.folder)
    if checkpoints:
        remedy = "run the cell again (with restart off) to go on from it"
        return f"stopped; {checkpoints[-1].name} is saved", remedy
    return "stopped before the first checkpoint", "run the cell again to begin anew"


def status(events: Sequence[Mapping[str, Any]], seconds: float, ended: int | None = None) -> View:
    """The status line: step, epoch, loss, speed (see speed.py), time left, memory."""
    start = next((e for e in reversed(events) if e["event"] == "start"), None)
    train = [e for e in events if e["event"] == "train"]
    finished = any(e["event"] == "done" for e in events)
    if start is None:
        text = "Loading the model" if ended is None else "It ended before the first step"
        return _line(f"{text} ... {seconds:.0f} s", None, 1)
    planned, step = start["planned_steps"], train[-1]["step"] if train else start["resumed_step"]
    parts = [f"step {step:,} of {planned:,}"]
    if train:
        last = train[-1]
        parts += [
            f"epoch {last['epoch']:.2f}",
            f"loss {last['loss']:.4f}",
            f"{last['tokens_per_second']:,.0f} useful tokens/s",
            f"padding {last['padding_share']:.0%}",
            f"MFU {last['mfu']:.0%}",
        ]
        if finished:
            parts.append("finished")
        elif ended is not None:
            parts.append("ended early")
        else:
            parts.append(f"{_left(train, planned)} left")
        parts.append(f"{last['memory_gib']:.1f} GiB a rank")
    return _line(" · ".join(parts), step, planned)


def _left(train: Sequence[Mapping[str, Any]], planned: int) -> str:
    recent = train[-20:]
    steps = recent[-1]["step"] - (train[-21]["step"] if len(train) > 20 else 0)
    seconds = sum(e["seconds"] for e in recent) / max(steps, 1) * (planned - recent[-1]["step"])
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _line(text: str, value: int | None, most: int) -> View:
    value_html = "" if value is None else f' value="{value}"'
    bar = f'<progress{value_html} max="{most}" style="width:12em"></progress>'
    return View(f"<p>{bar} {views.escape(text)}</p>", text)


def summary(folder: Any) -> View:
    """What a finished run took and reached, from its files."""
    facts = runs.finished(folder)
    loss = facts["eval_loss"]
    starts = [e for e in runs.read_events(folder) if e["event"] == "start"]
    peak = f"{starts[-1]['matmul_peak_tflops'] * 1000:,.0f} GFLOP/s"
    notices = dict.fromkeys(notice for e in starts for notice in e["notices"])
    return views.table(
        [
            *(("note", notice) for notice in notices),
            ("steps", f"{facts['step']:,} of {facts['planned_steps']:,} planned"),
            ("time in training steps", f"{facts['train_seconds']:,} s"),
            ("tokens", f"{facts['tokens']:,}, of them trained {facts['trained_tokens']:,}"),
            ("speed", f"{facts['tokens_per_second']:,} useful tokens/s (no padding counted)"),
            ("padding", f"{facts['padding_share']:.1%} of what was computed"),
            ("MFU", f"{facts['mfu']:.1%} of the matrix products measured at the start ({peak})"),
            ("attention", _kernel(starts[-1])),
            ("peak memory of a rank", f"{facts['memory_gib']} GiB"),
            ("final train loss", f"{facts['train_loss']:.4f}"),
            ("final eval loss", "none: the eval side is empty" if loss is None else f"{loss:.4f}"),
            ("the model", f"{paths.short(folder / 'model')} (opens with from_pretrained)"),
        ]
    )


def _kernel(start: Mapping[str, Any]) -> str:
    if start["layout"] == "padded":
        return f"{start['attention']}, rows padded to {start['block_size']} tokens"
    rows = f"rows of about {start['row_tokens']:,} tokens" if start["row_tokens"] else "one row"
    return f"{start['attention']}, packed into {rows}"
