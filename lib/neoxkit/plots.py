"""A run and its data as figures. Each function returns a Picture.

Figures are made without pyplot (which would show them a second time), in one style: colours that
colour-blind people tell apart, labels with units, legible at notebook width in both themes.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neoxkit.runs.events import smoothed

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SMOOTHED_FROM = 50  # points; fewer are drawn as they are
MAX_POINTS = 1000  # a longer series is thinned before it is drawn


class Picture(Figure):
    """A Figure that a notebook shows by itself, sharp on dense screens."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=2 * self.dpi)
        return file.getvalue(), {"width": round(self.get_figwidth() * self.dpi)}


def new_figure(
    height: float = 3.2, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Picture, Any]:
    """A figure in the kit's style, this many inches high, and its axes."""
    figure = Picture(figsize=(8, height), dpi=100, layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, **options)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name both axes, and take away what is not needed."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def length_histogram(lengths: Sequence[int], block_size: int) -> Picture:
    """How long the conversations are (tokens), and which ones are over the block size."""
    figure, axes = new_figure()
    values = np.asarray(lengths)
    top = max(int(values.max(initial=1)), block_size)
    # Few very long conversations must not flatten the rest: the last bin collects them.
    shown = max(int(np.percentile(values, 99)), block_size) if len(values) else top
    edges = np.linspace(0, shown * 1.05, 60)
    fits, over = values[values <= block_size], values[values > block_size]
    axes.hist(
        [np.minimum(fits, edges[-1]), np.minimum(over, edges[-1])],
        bins=edges,
        stacked=True,
        color=[BLUE, ORANGE],
        label=[f"{len(fits):,} conversations up to it", f"{len(over):,} longer"],
    )
    axes.axvline(block_size, color=RED, linewidth=1.5, linestyle="--")
    axes.text(
        block_size, 0.98, f" block size {block_size}", color=RED, va="top",
        ha="left" if block_size < shown * 0.8 else "right",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    label_axes(axes, "length of a conversation (tokens)", "conversations")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if top > edges[-1]:
        axes.set_title(f"the last bar holds all up to {top:,} tokens", fontsize=9, loc="left")
    axes.legend(frameon=False)
    return figure


def turn_histogram(lengths: Mapping[str, np.ndarray]) -> Picture:
    """How long the turns of each role are (tokens)."""
    figure, axes = new_figure(2.6)
    every = np.concatenate([np.zeros(0, int), *lengths.values()])
    shown = max(int(np.percentile(every, 99)) if len(every) else 1, 1)
    edges = np.linspace(0, shown, min(shown, 60) + 1)
    for (role, values), colour in zip(lengths.items(), (GREY, BLUE), strict=True):
        median = f", median {np.median(values):.0f}" if len(values) else ""
        axes.hist(
            np.minimum(values, shown), bins=edges, histtype="stepfilled", color=colour, alpha=0.55,
            label=f"{role}: {len(values):,} turns{median}",
        )  # fmt: skip
    title = (
        f"the last bar holds all up to {every.max():,} tokens"
        if every.max(initial=0) > shown
        else ""
    )
    label_axes(axes, "length of a turn with its label and end (tokens)", "turns", title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def schedule(steps: int, learning_rate: float, warmup_steps: float, kind: str) -> np.ndarray:
    """The learning rate of each step, shape (steps,), as transformers' schedulers give it.

    `warmup_steps` below 1 is a share of all steps, as in TrainingArguments.
    """
    warmup = math.ceil(steps * warmup_steps) if warmup_steps < 1 else int(warmup_steps)
    step = np.arange(steps)
    rising = step / max(warmup, 1)
    rest = (step - warmup) / max(steps - warmup, 1)
    after = {
        "linear": 1 - rest,
        "cosine": 0.5 * (1 + np.cos(np.pi * rest)),
        "constant_with_warmup": np.ones(steps),
    }
    if kind == "constant":
        return np.full(steps, learning_rate)
    return learning_rate * np.where(step < warmup, rising, after[kind])


def schedule_figure(rates: np.ndarray, steps_an_epoch: int) -> Picture:
    """The learning rate over the run's real steps, epochs marked."""
    figure, axes = new_figure(2.6)
    axes.plot(np.arange(1, len(rates) + 1), rates, color=GREEN, linewidth=2)
    for epoch in range(steps_an_epoch, len(rates), steps_an_epoch):
        if len(rates) / steps_an_epoch <= 20:
            axes.axvline(epoch, color="#DDDDDD", linewidth=0.8)
    label_axes(axes, "optimizer step (a grey line ends an epoch)", "learning rate")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_ylim(bottom=0)
    return figure


def _thin(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stride = max(math.ceil(len(points) / MAX_POINTS), 1)
    return points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])


def curve(events: Sequence[Mapping[str, Any]], title: str = "") -> Picture:
    """Two panels over the steps, from metrics.jsonl: loss and learning rate, and the speed."""
    train = _thin([e for e in events if e["event"] == "train"])
    evals = [e for e in events if e["event"] == "eval"]
    starts = [e for e in events if e["event"] == "start"]
    figure, (axes, below) = new_figure(5.0, rows=2, sharex=True, height_ratios=[5, 3])
    rate_axes = axes.twinx()
    rate_axes.plot(
        [e["step"] for e in train], [e["learning_rate"] for e in train],
        color=GREEN, linewidth=1, linestyle=":", label="learning rate (right)",
    )  # fmt: skip
    rate_axes.set_ylabel("learning rate")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate_axes.set_ylim(bottom=0)
    rate_axes.spines[["top", "left"]].set_visible(False)
    steps, losses = [e["step"] for e in train], [e["loss"] for e in train]
    smooth = len(train) >= SMOOTHED_FROM
    lines = axes.plot(
        steps, losses, color=BLUE, label="train loss",
        alpha=0.35 if smooth else 1, linewidth=1 if smooth else 1.5,
    )  # fmt: skip
    if smooth:
        lines += axes.plot(steps, smoothed(losses), color=BLUE, label="train loss, smoothed")
    lines += axes.plot(
        [e["step"] for e in evals], [e["loss"] for e in evals],
        color=ORANGE, marker="o", markersize=5, label="eval loss",
    )  # fmt: skip
    for event in starts:
        if step := event.get("resumed_step"):
            axes.axvline(step, color=GREY, linewidth=0.8, linestyle="--")
            axes.text(step, 0.02, " resumed", color=GREY, fontsize=8,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    label_axes(axes, "", "loss (nats per trained token)", title)
    if starts:
        axes.set_xlim(0, max(starts[-1]["planned_steps"], 1))
    axes.set_ylim(bottom=0)
    handles = [*lines, rate_axes.get_lines()[0]]
    axes.legend(handles=handles, frameon=False, loc="upper right")
    _speed(below, train)
    return figure


def _speed(axes: Axes, train: Sequence[Mapping[str, Any]]) -> None:
    """Useful tokens a second, and the shares of padding and of the device's peak (MFU)."""
    steps = [e["step"] for e in train]
    share_axes = axes.twinx()
    drawn = axes.plot(
        steps, [e["tokens_per_second"] for e in train], color=BLUE, label="useful tokens/s"
    )
    for name, label, colour, line in (
        ("mfu", "MFU (right)", ORANGE, "--"),
        ("padding_share", "padding (right)", GREY, ":"),
    ):
        shares = [100 * e[name] for e in train]
        drawn += share_axes.plot(steps, shares, color=colour, linestyle=line, label=label)
    share_axes.set_ylabel("share (%)")
    share_axes.set_ylim(0, 1.05 * max([100, *(100 * e["mfu"] for e in train)]))
    share_axes.spines[["top", "left"]].set_visible(False)
    label_axes(axes, "optimizer step", "useful tokens/s")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.legend(handles=drawn, frameon=False, loc="lower right", ncols=3, bbox_to_anchor=(1, 0.97))
