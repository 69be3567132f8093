"""The tables and pictures of 04_compare: runs side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from matplotlib.ticker import StrMethodFormatter

from neoxkit import files, paths
from neoxkit.evaluation import answers, compare_models, compare_runs, first, rescoring
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.seeds import means
from neoxkit.lab import fitting, scales, view
from neoxkit.lab.figure import (
    BLUE,
    GREEN,
    GREY,
    OLIVE,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SMOOTHED_FROM,
    Picture,
    label_axes,
    new_figure,
    styled,
)
from neoxkit.models import power
from neoxkit.settings import CompareSettings

SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, OLIVE)
_TOGETHER = (
    "The last column's intervals hold together for all differences between these {} lines: for the "
    "settings, over their seeds, on this held-out set."
)
OFF = "score_again is off: each eval loss above is on the run's own held-out set."


@styled
def overlay(chosen: Sequence[Run]) -> Picture:
    """Draw the runs' losses over the tokens they were trained on.

    If there are more runs than colours, later runs are lighter.
    """
    title, names = compare_runs.labels(chosen)
    labels = [f" {name or '(empty)'}" for name in names]  # matplotlib hides those that begin with _
    columns = min(max(90 // (max(map(len, labels), default=1) + 8), 1), 6)
    figure, axes = new_figure(3.6 + 0.17 * math.ceil(len(labels) / columns))
    for i, (run, label) in enumerate(zip(chosen, labels, strict=True)):
        colour, train, evals = _colour(i, len(chosen)), run.history.train, run.evals
        losses = [e["loss"] for e in train]
        drawn = scales.centred(losses) if len(losses) >= SMOOTHED_FROM else losses
        at = run.trained_tokens([e["step"] for e in train])
        axes.plot(at, drawn, color=colour, linewidth=1, alpha=0.4)
        axes.plot(
            run.trained_tokens([e["step"] for e in evals]), [e["loss"] for e in evals],
            color=colour, marker="o", markersize=4, label=label,
        )  # fmt: skip
    if equal_tokens := compare_runs.equal_tokens(chosen):
        axes.axvline(equal_tokens, color=GREY, linewidth=0.8, linestyle="--")
        axes.text(equal_tokens, 0.99, "compared here ", ha="right", va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    label_axes(
        axes, "tokens trained on", "loss (nats per trained token)",
        "eval loss (points), train loss (faint)",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlim(left=0)
    if chosen:
        figure.legend(loc="outside lower center", ncols=columns, title=title)
    return figure


def _colour(number: int, of: int) -> Any:
    return SERIES[number] if of <= len(SERIES) else colormaps["viridis"](0.3 + 0.4 * number / of)


def table(chosen: Sequence[Run]) -> view.View:
    """Show the scoreboard, the lowest eval loss first, and what chose that one (first.said); what
    matters less is folded below it."""
    lines = compare_runs.scores(chosen)
    equal = f"eval loss at {compare_runs.equal_tokens(chosen):,.0f} tokens"
    rows = [
        (
            view.narrow(line["run"]),
            line["state"],
            _figure(line["eval_loss"], ".4f"),
            _figure(line["equal_loss"], ".4f"),
            f"{line['trained_tokens']:,}",
        )
        for line in lines
    ]
    header = ("run", "state", "eval loss", equal, "tokens trained on")
    more = view.fold("perplexity, speed, memory, time", _more_figures(lines))
    shown, said = view.table(rows, header, close=True), first.said(first.facts(chosen))
    return (shown + view.sentence(said) if said else shown) + more


def _more_figures(lines: Sequence[Mapping[str, Any]]) -> view.View:
    rows = [
        (
            view.narrow(line["run"]),
            _figure(line["eval_loss"] and math.exp(min(line["eval_loss"], 700)), ",.3f"),
            _figure(line["tokens_per_second"], ",.0f"),
            _figure(line["memory_gib"], ".2f"),
            _figure(line["train_seconds"], ",.0f"),
        )
        for line in lines
    ]
    header = (
        "run", "perplexity", "useful tokens/s", "memory per rank (GiB)", "seconds of steps",
    )  # fmt: skip
    return view.table(rows, header, close=True)


def seeds(chosen: Sequence[Run]) -> view.View:
    """Show the groups of runs that differ only in their seed: the mean eval loss with its 95 %
    interval, and how far it is above the best mean on the same held-out set (seeds.half_width)."""
    groups = means(chosen)
    at = f"{compare_runs.equal_tokens(chosen):,.0f} tokens"
    if not groups:
        none = f"No two finished runs differ in their seed alone and were evaluated at {at}."
        return view.sentence(none)
    names = dict.fromkeys(name for group in groups for name in group["differs"])
    rows = [
        (
            *(compare_runs.as_text(group["differs"].get(name)) for name in names),
            ", ".join(_seed(*of) for of in sorted(group["losses"].items())),
            f"{group['mean']:.4f}",
            _bounds(group["interval"]),
            _above(group, groups[0]),
        )
        for group in groups
    ]
    header = (*names, "seeds", f"mean eval loss at {at}", "95 % interval", "above the first")
    shown = view.table(rows, header)
    compared = sum(group["above_the_first"] is not None for group in groups)
    return shown + view.sentence(_TOGETHER.format(compared)) if compared > 1 else shown


def _seed(seed: int, losses: Sequence[float]) -> str:
    return f"{seed}" if len(losses) == 1 else f"{seed} ({len(losses)} runs)"


def _above(group: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Return the difference of two means and its interval; nothing for the first itself."""
    if group is first:
        return ""
    if group["side"] != first["side"]:
        return "another held-out set"
    return _with_bounds(f"{group['mean'] - first['mean']:+.4f}", group["above_the_first"])


def _with_bounds(mean: str, interval: tuple[float, float] | None) -> str:
    return f"{mean} ({_bounds(interval, '+')})" if interval else mean


def _bounds(interval: tuple[float, float] | None, sign: str = "") -> str:
    return f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}" if interval else ""


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def differences(chosen: Sequence[Run]) -> view.View:
    """Show only what differs between the runs: all of it, in as many tables as fit the width."""
    found = compare_runs.differing(chosen)
    if not found:
        return view.sentence("Nothing differs between these runs.")
    values = [[compare_runs.as_text(one) for one in of] for of in zip(*found.values(), strict=True)]
    return fitting.table([run.name for run in chosen], [*found], values, ("run", "setting"))


@styled
def heat_map(chosen: Sequence[Run]) -> Picture | view.View:
    """Draw the eval loss over two settings, if exactly two differ. The best is framed."""
    found = compare_runs.grid(chosen)
    if found is None:
        return view.sentence("The runs don't differ in exactly two settings.")
    losses, counts = found["losses"], found["counts"]
    rows, columns = found["rows"], found["columns"]
    if np.isnan(losses).all():
        return view.sentence("No run was evaluated.")
    figure, axes = new_figure(1.6 + 0.55 * len(rows))
    drawn = axes.imshow(losses, cmap="viridis", aspect="auto")
    low, high = np.nanmin(losses), np.nanmax(losses)
    for (y, x), loss in np.ndenumerate(losses):
        if np.isnan(loss):
            axes.text(x, y, "none", ha="center", va="center")
            continue
        dark = loss - low < (high - low) / 2
        axes.text(x, y, f"{loss:.4f}", ha="center", va="center", color="white" if dark else "black")
    y, x = np.unravel_index(np.nanargmin(losses), losses.shape)
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=3, clip_on=False)
    )
    several = f" (means of up to {counts.max()} runs)" if counts.max() > 1 else ""
    title = f"eval loss at {found['equal_tokens']:,.0f} tokens{several}; the lowest is framed"
    label_axes(axes, found["column_name"], found["row_name"], title)
    axes.grid(False)
    axes.set_xticks(range(len(columns)), [f"{value}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value}" for value in rows])
    figure.colorbar(drawn, ax=axes, label="nats per trained token")
    return figure


def save(chosen: Sequence[Run], settings: CompareSettings, scored: Mapping[str, Any]) -> view.View:
    """Write runs/<name>/comparison.json: what differs, the scoreboard's figures, those of the first
    on the test side (first.facts), the means over seeds, the scores on the same conversations
    (rescoring.scores), and the exact replies."""
    folder = paths.run(settings.name)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "runs": [run.name for run in chosen],
        "differs": compare_runs.differing(chosen),
        "notes": compare_runs.notes(chosen),
        "scores": compare_runs.scores(chosen),
        "first": first.facts(chosen),
        "over_seeds": means(chosen),
        "on_the_same_conversations": scored,
        "exact_replies": answers.counted(chosen),
    }
    files.write_json(folder / "comparison.json", figures)
    return view.sentences([f"written: {paths.short(folder / 'comparison.json')}"])


def same_conversations(scored: Mapping[str, Any]) -> view.View:
    """Show the runs' losses on the same conversations (rescoring.scores), the lowest first, and how
    far each one is above it: the paired difference with its interval (see families)."""
    if not scored:
        return view.sentence(OFF)
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{score['loss']:.4f}",
            f"{score['perplexity']:,.3f}",
            _said(score["above_the_first"]),
            f"{score['trained_tokens']:,}",
            f"{score['conversations']:,}",
            _needed(score["above_the_first"]),
        )
        for name, score in scored.items()
        if not isinstance(score, str)
    ]
    rows += [(name, why, *[""] * 5) for name, why in scored.items() if isinstance(why, str)]
    header = (
        "run", "eval loss", "perplexity", "above the first", "trained tokens", "rows",
        "rows to show it",
    )  # fmt: skip
    shown, said = view.table(rows, header), rescoring.holds_for(scored)
    return shown + view.sentence(said) if said else shown


def _needed(above: Mapping[str, Any] | None) -> str:
    needed = compare_models.Difference(**above).needed if above else None
    return power.about(needed) if needed else ""


def _said(above: Mapping[str, Any] | None) -> str:
    if above is None:
        return ""
    bounds = None if above["low"] is None else (above["low"], above["high"])
    return _with_bounds(f"{above['mean']:.4f}", bounds)


def replies(chosen: Sequence[Run]) -> view.View:
    """Show the runs' exact replies to the same questions, the most exact first, and how far each
    one is from that (answers.counted)."""
    found = answers.counted(chosen)
    rows = [
        (
            name,
            view.narrow(row["run"]),
            f"{row['exact']:,} of {row['questions']:,}",
            answers.said(row),
        )
        for name, of in found["sets"].items()
        for row in of
    ]
    if not rows:
        return view.sentence("No run has replies to questions with references: 03 makes them.")
    rows += [("", view.narrow(name), "", why) for name, why in found["without"].items()]
    shown, said = (
        view.table(rows, ("set", "run", "exact", "to the first")),
        answers.holds_for(found),
    )
    return shown + view.sentence(said) if said else shown
