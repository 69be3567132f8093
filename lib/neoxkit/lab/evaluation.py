"""The tables and pictures of 03_evaluate: scores, what got worse, replies side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neoxkit.data.questions import spread
from neoxkit.evaluation import compare_models
from neoxkit.lab.figure import BLUE, GREY, ORANGE, RED, Picture, label_axes, new_figure
from neoxkit.lab.view import NOTHING, View, sentences, table

if TYPE_CHECKING:
    from neoxkit.data.questions import Question
    from neoxkit.evaluation.compare_models import Depth, Slice
    from neoxkit.models.generation import Reply


def scoreboard(evaluation: Mapping[str, Any]) -> View:
    """Show exact replies by set and kind, base beside tuned, and how the replies ended."""
    lines = [
        (
            r["set"],
            r["kind"],
            f"{r['base']} of {r['questions']}",
            f"{r['tuned']} of {r['questions']}",
            f"{r['tuned'] / r['questions']:.1%}",
        )
        for r in evaluation["exact"]
    ]
    header = ("set", "kind", "base", "tuned", "tuned, share")
    return table(lines, header) + _endings(evaluation["endings"])


def replies(
    questions: Sequence["Question"],
    base: Sequence["Reply"],
    tuned: Sequence["Reply"],
    most: int = 12,
) -> View:
    """Show at most `most` questions, spread evenly over all, with both models' replies."""
    at = spread(range(len(questions)), most)
    rows = [
        (
            questions[i].prompt.rsplit("\n\n", 1)[0],
            questions[i].reference or "",
            _said(base[i]),
            _said(tuned[i]),
        )
        for i in at
    ]
    return table(rows, ("asked", "reference", "base", "tuned"), even=True)


def _said(reply: "Reply", most: int = 160) -> str:
    text = reply.text if len(reply.text) <= most else f"{reply.text[:most]}…"
    return f"{text} [ran on]" if reply.ended == "ran on" else text


def scores(evaluation: Mapping[str, Any]) -> View:
    """Show losses on the held-out set and the plain text, with their counts, and how sure the
    difference is."""
    sides = {
        "held-out set": evaluation["eval_loss"],
        "plain text": evaluation.get("plain_text", {}),
    }
    rows = [
        (
            side,
            model,
            f"{found['loss']:.4f}",
            f"{found['perplexity']:,.3f}",
            f"{bits:.4f}" if (bits := found.get("bits_per_byte")) else "",
            f"{found['trained_tokens']:,}",
            f"{found['conversations']:,}",
        )
        for side, models in sides.items()
        for model, found in models.items()
        if found
    ]
    if not rows:
        return sentences([], none="The held-out set is empty: there is no loss to show.")
    header = (
        "text", "model", "loss (nats per token)", "perplexity", "bits per byte", "tokens", "rows",
    )  # fmt: skip
    said = compare_models.sentences(evaluation.get("depth"))
    return table(rows, header) + sentences(said, none="There is no difference to measure.")


def tasks(evaluation: Mapping[str, Any]) -> View:
    """Show each task and metric, base beside tuned, with standard errors."""
    base, tuned = evaluation["tasks"]["base"], evaluation["tasks"]["tuned"]
    if not tuned:
        return sentences([], none="No tasks were named.")
    rows = [
        (
            one["task"],
            f"{one['metric']}, {one['better']} is better" if one["better"] else one["metric"],
            _with_error(one),
            _with_error(other),
            f"{one['examples']:,}" if one["examples"] else "",
        )
        for one, other in zip(base, tuned, strict=True)
    ]
    return table(rows, ("task", "metric", "base", "tuned", "examples"))


def _with_error(row: Mapping[str, Any]) -> str:
    error = row["stderr"]
    return f"{row['value']:.4f}" if error is None else f"{row['value']:.4f} ± {error:.4f}"


def worst(deep: "Depth | None", rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> View:
    """Show the conversations whose loss rose most, worst first, with the beginning of each."""
    if not deep or not deep.worst:
        return sentences([], none="No held-out conversation got worse.")
    found = [
        (
            f"{deep.base[i].mean():.3f}",
            f"{deep.tuned[i].mean():.3f}",
            f"{len(deep.base[i]):,}",
            _beginning(tokenizer.decode(rows[i]["input_ids"], skip_special_tokens=True)),
        )
        for i in deep.worst
    ]
    return table(found, ("base", "tuned", "trained tokens", "conversation"))


def _beginning(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _endings(by_model: Mapping[str, Mapping[str, int]]) -> View:
    """Show how many replies ended in each way."""
    kinds = list(next(iter(by_model.values())))
    rows = [(name, *(f"{counts[k]:,}" for k in kinds)) for name, counts in by_model.items()]
    return table(rows, ("model", *kinds))


def answer(question: str, reply: "Reply") -> View:
    """Show one question and its reply."""
    return table([("asked", question), ("tuned", _said(reply, most=2000))])


def where(deep: "Depth | None") -> Picture | View:
    """Draw each conversation's change of loss, and both models' losses by turn and by length.

    Nothing without a held-out set.
    """
    if not deep:
        return NOTHING
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
    label_axes(left, "tuned minus base (nats per token)", "conversations", "mean and 95 % in red")
    _pairs(middle, deep.turns, "agent's turn")
    _pairs(right, deep.lengths, "length of the conversation (tokens)")
    middle.set_ylabel("loss (nats per token)")
    right.legend(frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.15), fontsize=8)
    return figure


def _pairs(axes: Axes, parts: "Sequence[Slice]", what: str) -> None:
    """Draw two bars per part: base and tuned."""
    at = np.arange(len(parts))
    for offset, model, colour in ((-0.2, "base", GREY), (0.2, "tuned", BLUE)):
        heights = [getattr(part, model) for part in parts]
        axes.bar(at + offset, heights, width=0.4, color=colour, label=model)
    tilt: dict[str, Any] = {}
    if max(len(part.name) for part in parts) > 3:
        tilt = {"rotation": 30, "ha": "right"}
    axes.set_xticks(at, [part.name for part in parts], fontsize=8, **tilt)
    label_axes(axes, what, "")


def checkpoints(evaluation: Mapping[str, Any]) -> Picture | View:
    """Draw the held-out loss by step: base (step 0), kept checkpoints, tuned model.

    Nothing without a held-out set.
    """
    if not evaluation["losses_by_step"]:
        return NOTHING
    figure, axes = new_figure(2.4)
    losses = {int(step): loss for step, loss in evaluation["losses_by_step"].items()}
    steps = sorted(losses)
    axes.plot(steps, [losses[step] for step in steps], color=ORANGE, marker="o", markersize=5)
    for step in steps:
        axes.annotate(f"{losses[step]:.3f}", (step, losses[step]), xytext=(0, 6),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    label_axes(axes, "optimizer step (0: the base)", "eval loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
    return figure


def comparison(evaluation: Mapping[str, Any]) -> Picture:
    """Draw two panels, base beside tuned: held-out loss, and exact answers by set."""
    figure, (left, right) = new_figure(3.2, 2, width_ratios=[1, 2])
    losses = {k: v["loss"] for k, v in evaluation["eval_loss"].items() if v}
    bars = left.bar(list(losses), list(losses.values()), color=[GREY, BLUE], width=0.6)
    left.bar_label(bars, fmt="%.3f", fontsize=9)
    label_axes(left, "", "loss (nats per trained token)", "held-out set")
    rows = [r for r in evaluation["exact"] if r["kind"] == "total"]
    if not losses:
        left.text(0.5, 0.5, "the held-out set is empty", ha="center", transform=left.transAxes)
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
