"""Models beside each other as figures: runs of a sweep, and base beside tuned."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neoxkit.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SMOOTHED_FROM,
    Picture,
    label_axes,
    new_figure,
)
from neoxkit.runs.events import smoothed

if TYPE_CHECKING:
    from neoxkit.evaluation.compare_models import Depth, Part

SERIES = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000")


def overlay(
    curves: Sequence[Mapping[str, Any]], title: str = "", equal_tokens: float = 0
) -> Picture:
    """Several runs' losses over what they were trained on.

    A curve has `label`, `tokens` and `losses` of its steps, `eval_tokens` and `eval_losses`;
    `title` says what the labels are of. Of more runs than there are colours, lighter is later.
    """
    longest = max((len(one["label"]) for one in curves), default=1)
    columns = min(max(90 // (longest + 8), 1), 6)
    figure, axes = new_figure(3.6 + 0.17 * math.ceil(len(curves) / columns))
    for i, one in enumerate(curves):
        colour = _colour(i, len(curves))
        drawn = smoothed(one["losses"]) if len(one["losses"]) >= SMOOTHED_FROM else one["losses"]
        axes.plot(one["tokens"], drawn, color=colour, linewidth=1, alpha=0.4)
        axes.plot(
            one["eval_tokens"], one["eval_losses"], color=colour, marker="o", markersize=4,
            label=one["label"],
        )  # fmt: skip
    if equal_tokens:
        axes.axvline(equal_tokens, color=GREY, linewidth=0.8, linestyle="--")
        axes.text(equal_tokens, 0.99, "compared here ", color=GREY, fontsize=8, ha="right",
                  va="top", transform=axes.get_xaxis_transform())  # fmt: skip
    label_axes(
        axes, "tokens trained on", "loss (nats per trained token)",
        "eval loss (points), train loss (faint)",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(left=0)
    if curves:
        options = {"frameon": False, "fontsize": 8, "title": title, "title_fontsize": 8}
        figure.legend(loc="outside lower center", ncols=columns, **options)
    return figure


def _colour(number: int, of: int) -> Any:
    return SERIES[number] if of <= len(SERIES) else colormaps["viridis"](0.95 * number / of)


def heat_map(
    losses: np.ndarray,
    counts: np.ndarray,
    rows: Sequence[Any],
    columns: Sequence[Any],
    row_name: str,
    column_name: str,
    equal_tokens: float,
) -> Picture:
    """The eval loss of each pair of two settings after so many trained tokens; NaN where no run
    reached them. The best is framed."""
    figure, axes = new_figure(1.6 + 0.55 * len(rows))
    drawn = axes.imshow(losses, cmap="viridis", aspect="auto")
    low, high = np.nanmin(losses), np.nanmax(losses)
    for (y, x), loss in np.ndenumerate(losses):
        if np.isnan(loss):
            axes.text(x, y, "none", ha="center", va="center", color=GREY)
            continue
        dark = loss - low < (high - low) / 2
        axes.text(x, y, f"{loss:.4f}", ha="center", va="center", color="white" if dark else "black")
    y, x = np.unravel_index(np.nanargmin(losses), losses.shape)
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=3, clip_on=False)
    )
    several = f" (means of up to {counts.max()} runs)" if counts.max() > 1 else ""
    title = f"eval loss at {equal_tokens:,.0f} tokens{several}; the lowest is framed"
    label_axes(axes, column_name, row_name, title)
    axes.grid(False)
    axes.set_xticks(range(len(columns)), [f"{value}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value}" for value in rows])
    figure.colorbar(drawn, ax=axes, label="nats per trained token")
    return figure


def depth(deep: "Depth") -> Picture:
    """How the loss of each conversation changed, and both models' losses by turn and by length."""
    figure, (left, middle, right) = new_figure(3.2, 3, width_ratios=[4, 3, 4])
    pairs = zip(deep.base, deep.tuned, strict=True)
    changes = np.array([b.mean() - a.mean() for a, b in pairs if len(a)])
    low, high = np.percentile(changes, [1, 99] if len(changes) > 20 else [0, 100])
    edges = np.linspace(min(low, 0), max(high, 0) + 1e-9, 40)
    left.hist(np.clip(changes, edges[0], edges[-1]), bins=edges, color=BLUE, alpha=0.7)
    left.axvline(0, color=GREY, linewidth=1)
    found = deep.difference
    left.axvline(found.mean, color=RED, linewidth=1.5)
    if found.low is not None:
        left.axvspan(found.low, found.high, color=RED, alpha=0.25, linewidth=0)
    label_axes(left, "tuned minus base (nats a token)", "conversations", "mean and 95 % in red")
    _pairs(middle, deep.turns, "agent's turn")
    _pairs(right, deep.lengths, "length of the conversation (tokens)")
    middle.set_ylabel("loss (nats a token)")
    right.legend(frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.15), fontsize=8)
    return figure


def _pairs(axes: Axes, parts: "Sequence[Part]", what: str) -> None:
    """Two bars a part: base and tuned."""
    at = np.arange(len(parts))
    for offset, model, colour in ((-0.2, "base", GREY), (0.2, "tuned", BLUE)):
        heights = [getattr(part, model) for part in parts]
        axes.bar(at + offset, heights, width=0.4, color=colour, label=model)
    tilt = {"rotation": 30, "ha": "right"} if max(len(part.name) for part in parts) > 3 else {}
    axes.set_xticks(at, [part.name for part in parts], fontsize=8, **tilt)
    label_axes(axes, what, "")


def checkpoint_curve(evaluation: Mapping[str, Any]) -> Picture:
    """The loss on the eval side by step: base (step 0), kept checkpoints, tuned model."""
    figure, axes = new_figure(2.4)
    losses = {int(step): loss for step, loss in evaluation["losses_by_step"].items()}
    steps = sorted(losses)
    axes.plot(steps, [losses[step] for step in steps], color=ORANGE, marker="o", markersize=5)
    for step in steps:
        axes.annotate(f"{losses[step]:.3f}", (step, losses[step]), xytext=(0, 6),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    label_axes(axes, "optimizer step (0: the base)", "eval loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
    return figure


def range_test(found: Any) -> Picture:
    """Loss against learning rate, as it was and smoothed, with what range_test.Found reads."""
    figure, axes = new_figure(3.2)
    axes.plot(found.rates, found.losses, color=BLUE, alpha=0.35, linewidth=1, label="train loss")
    axes.plot(found.rates, found.smooth, color=BLUE, label="smoothed")
    for rate, colour, name in (
        (found.suggestion, GREEN, "suggestion"),
        (found.divergence, RED, "diverges"),
    ):
        if rate:
            axes.axvline(rate, color=colour, linestyle="--", label=f"{name}: {rate:.1e}")
    label_axes(axes, "learning rate", "loss (nats per trained token)", found.says)
    axes.set_xscale("log")
    if len(found.losses):  # the rest of a loss that explodes would flatten all that is of interest
        low, first = float(np.min(found.losses)), float(np.max(found.losses[:3]))
        axes.set_ylim(low - 0.1 * (first - low), first + 0.5 * (first - low) + 0.1)
    axes.legend(frameon=False)
    return figure


def comparison(evaluation: Mapping[str, Any]) -> Picture:
    """Two panels, base beside tuned: loss on the eval side, and exact answers by set."""
    figure, (left, right) = new_figure(3.2, 2, width_ratios=[1, 2])
    losses = {k: v["loss"] for k, v in evaluation["eval_loss"].items() if v}
    bars = left.bar(list(losses), list(losses.values()), color=[GREY, BLUE], width=0.6)
    left.bar_label(bars, fmt="%.3f", fontsize=9)
    label_axes(left, "", "loss (nats per trained token)", "eval side")
    rows = [r for r in evaluation["exact"] if r["kind"] == "total"]
    if not losses:
        left.text(0.5, 0.5, "the eval side is empty", ha="center", transform=left.transAxes)
    at = np.arange(len(rows))
    for offset, model, colour in ((-0.2, "base", GREY), (0.2, "tuned", BLUE)):
        shares = [100 * r[model] / r["questions"] for r in rows]
        drawn = right.bar(at + offset, shares, width=0.4, color=colour, label=model)
        right.bar_label(drawn, [f"{r[model]}/{r['questions']}" for r in rows], fontsize=9)
    right.set_xticks(at, [r["set"] for r in rows])
    label_axes(right, "", "exact replies (%)", "questions")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    right.set_ylim(0, 110)
    right.set_yticks(range(0, 101, 20))
    if rows:
        right.legend(frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.15))
    else:
        right.text(0.5, 0.5, "no question has a reference", ha="center", transform=right.transAxes)
    return figure
