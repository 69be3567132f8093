"""The tables and pictures of 03_evaluate: scores, what got worse, replies side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neoxkit.data.questions import normal, spread
from neoxkit.data.selection import SETS
from neoxkit.evaluation import compare_models, paired
from neoxkit.lab.figure import BLUE, GREY, ORANGE, RED, Picture, label_axes, new_figure, styled
from neoxkit.lab.view import NOTHING, View, details, sentence, sentences, table
from neoxkit.runs import snapshots
from neoxkit.runs.events import History
from neoxkit.runs.folder import of_side
from neoxkit.runs.looks import Looks

if TYPE_CHECKING:
    from neoxkit.data.questions import Question
    from neoxkit.evaluation.evaluate import Evaluation
    from neoxkit.models.generation import Reply

MOST_VALUES = 6  # at points of a curve
DIFFERENTLY = "answered differently by base and tuned"
_MARKS = {"ran on": "[ran on]", "too long": "[no room for a reply]"}
_PAIRED = (
    "Each document is compared with itself: 95 % intervals of the difference, and for metrics of "
    "right and wrong the exact McNemar test. ± is one standard error of one model alone: two such "
    "errors do not tell whether the models differ."
)
_NO_CHECKPOINTS = (
    "The checkpoints are not scored on the test set: who sees their losses there may choose one."
)

# `results`: the contents of evaluation.json; `pair`: the Evaluation that they come from.


def scoreboard(results: Mapping[str, Any]) -> View:
    """Show exact replies by set and kind, base beside tuned, how sure the differences are, and how
    the replies ended."""
    lines = [
        (
            r["set"],
            r["kind"],
            f"{r['base']} of {r['questions']}",
            f"{r['tuned']} of {r['questions']}",
            f"{r['gained']:,} / {r['lost']:,}",
            f"{r['tuned'] / r['questions']:.1%}",
        )
        for r in results["exact"]
    ]
    header = ("set", "kind", "base", "tuned", "gained / lost", "tuned, share")
    said = paired.sentences(results["exact"])
    shown = table(lines, header)
    return (shown + sentences(said) if said else shown) + _endings(results["endings"])


def replies(pair: "Evaluation", most: int = 12) -> View:
    """Show at most `most` questions, spread evenly, that the models answer differently, whole, with
    their references and replies; those that both answer alike are folded."""
    base, tuned = (pair.examined[which].replies for which in ("base", "tuned"))
    groups: dict[str, list[tuple[str, ...]]] = {}
    for question, one, other in zip(pair.questions, base, tuned, strict=True):
        asked = question.prompt.rsplit("\n\n", 1)[0]
        row = (asked, question.reference or "", _said(one), _said(other))
        groups.setdefault(_agreement(pair, question, one, other), []).append(row)
    differing = groups.pop(DIFFERENTLY, [])
    file = of_side("replies.jsonl", pair.settings.side)
    shown = sentence(_counted(differing, DIFFERENTLY, most, file)) + _asked(differing, most)
    for kind in sorted(groups):
        shown += details(_counted(groups[kind], kind, most, file), _asked(groups[kind], most))
    return shown


def _agreement(pair: "Evaluation", question: "Question", one: "Reply", other: "Reply") -> str:
    """Return how the models agree, compared as in the scoreboard (`exact.scoreboard`)."""
    said, also = (normal(pair.tokenizer, reply.text) for reply in (one, other))
    if said != also:
        return DIFFERENTLY
    if question.reference is None:
        return "answered alike, without a reference"
    same = said == normal(pair.tokenizer, question.reference)
    return "both answered as the reference" if same else "answered alike, not as the reference"


def _counted(rows: Sequence[Any], kind: str, most: int, file: str) -> str:
    """Return a group's title: how many questions, and how many of them are shown."""
    few = f" (these are {most} of them; all are in {file})" if len(rows) > most else ""
    return f"{len(rows):,} question{'s' * (len(rows) != 1)} {kind}{few}"


def _asked(rows: Sequence[Sequence[str]], most: int) -> View:
    header = ("asked", "reference", "base", "tuned")
    return table(spread(rows, most), header, even=True) if rows else NOTHING


def _said(reply: "Reply") -> str:
    """Return a reply, with a mark if it did not end by itself."""
    return " ".join(filter(None, (reply.text or "(nothing)", _MARKS.get(reply.ended))))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def scores(results: Mapping[str, Any]) -> View:
    """Show losses on the held-out set (or the test set) and the plain text, with their counts, and
    how sure the difference is; of the test set, which look this is."""
    name = _set(results)
    parts = (results.get("depth") or {}).get("parts", ())
    sides = {
        name: results["eval_loss"],
        **{f"{name}: {part['name']}": {m: part[m] for m in ("base", "tuned")} for part in parts},
        "plain text": results.get("plain_text", {}),
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
        return sentence(f"The {name} is empty: there is no loss to show.")
    header = (
        "text", "model", "loss (nats per token)", "perplexity", "bits per byte", "tokens", "rows",
    )  # fmt: skip
    said = compare_models.sentences(results.get("depth"), name)
    said += [Looks(**results["looks"]).text()] if "looks" in results else []
    shown = table(rows, header) + sentences(said, none="There is no difference to measure.")
    ended = results.get("training")
    return shown + sentence(f"The training {ended}.") if ended else shown


def _set(results: Mapping[str, Any]) -> str:
    """Return the name of the set that was scored."""
    return SETS[results.get("settings", {}).get("side", "eval")]


def tasks(results: Mapping[str, Any]) -> View:
    """Show each task and metric, base beside tuned, with standard errors, and the difference
    paired by document."""
    base, tuned = results["tasks"]["base"], results["tasks"]["tuned"]
    if not tuned:
        return sentence("No standard tasks: tasks is empty.")
    differences = results["tasks"].get("differences", [None] * len(base))
    rows = [
        (
            one["task"],
            f"{one['metric']}, {one['better']} is better" if one["better"] else one["metric"],
            _with_error(one),
            _with_error(other),
            _difference(found),
            f"{one['examples']:,}" if one["examples"] else "",
        )
        for one, other, found in zip(base, tuned, differences, strict=True)
    ]
    header = ("task", "metric", "base", "tuned", "tuned minus base, paired", "examples")
    return table(rows, header) + sentence(_PAIRED)


def _difference(found: Mapping[str, Any] | None) -> str:
    """Return a paired difference (tasks.compared), its interval, and its p; empty without one."""
    if found is None:
        return ""
    bounds = "" if found["low"] is None else f" ({found['low']:+.4f} to {found['high']:+.4f})"
    p = "" if found["p"] is None else f"; p {paired.p_text(found['p'])}"
    return f"{found['mean']:+.4f}{bounds}{p}"


def _with_error(row: Mapping[str, Any]) -> str:
    error = row["stderr"]
    return f"{row['value']:.4f}" if error is None else f"{row['value']:.4f} ± {error:.4f}"


def worst(pair: "Evaluation") -> View:
    """Show the conversations whose loss rose most, worst first, with the beginning of each."""
    base, tuned = pair.losses() or ((), ())
    chosen = compare_models.worst(base, tuned)
    if not chosen:
        return sentence("No held-out conversation got worse.")
    ids = [pair.rows[i]["input_ids"] for i in chosen]
    texts = pair.tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = [
        (f"{base[i].mean():.3f}", f"{tuned[i].mean():.3f}", f"{len(base[i]):,}", _cut(text, 300))
        for i, text in zip(chosen, texts, strict=True)
    ]
    return table(rows, ("base", "tuned", "trained tokens", "conversation"))


def _endings(by_model: Mapping[str, Mapping[str, int]]) -> View:
    """Show how many replies ended in each way."""
    kinds = list(next(iter(by_model.values())))
    rows = [(name, *(f"{counts[k]:,}" for k in kinds)) for name, counts in by_model.items()]
    return table(rows, ("model", *kinds))


def answer(question: str, reply: "Reply") -> View:
    """Show one question and its reply."""
    return table([("asked", question), ("tuned", _said(reply))])


@styled
def where(pair: "Evaluation", results: Mapping[str, Any]) -> Picture | View:
    """Draw how each conversation's loss changed, and both models' losses by turn and by length.

    Nothing without a held-out set.
    """
    losses, deep = pair.losses(), results["depth"]
    if not losses:
        return NOTHING
    figure, (left, middle, right) = new_figure(3.2, 3, width_ratios=[4, 3, 4])
    changes = np.array([b.mean() - a.mean() for a, b in zip(*losses, strict=True) if len(a)])
    low, high = np.percentile(changes, [1, 99] if len(changes) > 20 else [0, 100])
    edges = np.linspace(min(low, 0), max(high, 0) + 1e-9, 40)
    left.hist(np.clip(changes, edges[0], edges[-1]), bins=edges, color=BLUE, alpha=0.7)
    left.axvline(0, color=GREY, linewidth=1)
    found = deep["difference"]
    left.axvline(found["mean"], color=RED, linewidth=1.5)
    title = "mean in red"
    if found["low"] is not None:
        left.axvspan(found["low"], found["high"], color=RED, alpha=0.25, linewidth=0)
        title = "mean and 95 % in red"
    label_axes(left, "tuned minus base (nats per token)", "conversations", title)
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    _slices(middle, deep["turns"], "agent's turn")
    _slices(right, deep["lengths"], "length (tokens)")
    middle.set_ylabel("loss (nats per token)")
    right.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
    return figure


def _slices(axes: Axes, slices: Sequence[Mapping[str, Any]], what: str) -> None:
    """Draw both models' loss on each slice."""
    _pairs(axes, {model: [one[model] for one in slices] for model in ("base", "tuned")})
    names = [one["name"] for one in slices]
    tilt: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 3 else {}
    axes.set_xticks(range(len(names)), names, **tilt)
    label_axes(axes, what, "")


def _pairs(axes: Axes, heights: Mapping[str, Sequence[float]]) -> list[BarContainer]:
    """Draw two bars side by side at 0, 1, ...: base and tuned."""
    at = np.arange(len(heights["base"]))
    return [
        axes.bar(at + offset, heights[model], width=0.4, color=colour, label=model)
        for offset, model, colour in ((-0.2, "base", GREY), (0.2, "tuned", BLUE))
    ]


@styled
def checkpoints(pair: "Evaluation", results: Mapping[str, Any]) -> Picture | View:
    """Draw the held-out loss by step: at every evaluation of the training (metrics.jsonl), and the
    base (step 0), kept checkpoints, snapshots and tuned model as they were scored here; of up to
    six their values. With snapshots, most of which are early, the steps are on a log scale.

    Nothing without a held-out set; of the test set, a sentence that says why.
    """
    if _set(results) == SETS["test"]:
        return sentence(_NO_CHECKPOINTS)
    if not results["losses_by_step"]:
        return NOTHING
    figure, axes = new_figure(2.4)
    if evals := [e for e in History.of_run(pair.folder).evals if e["loss"] is not None]:
        axes.plot([e["step"] for e in evals], [e["loss"] for e in evals], color=ORANGE,
                  marker="o", markersize=4, label="evaluated while training")  # fmt: skip
    losses = {int(step): loss for step, loss in results["losses_by_step"].items()}
    steps = sorted(losses)
    axes.plot(steps, [losses[step] for step in steps], color=BLUE, marker="D", markersize=6,
              linestyle="none", label="scored here")  # fmt: skip
    for step in steps if len(steps) <= MOST_VALUES else (steps[0], steps[-1]):
        axes.annotate(f"{losses[step]:.3f}", (step, losses[step]), xytext=(0, 8),
                      textcoords="offset points", ha="center")  # fmt: skip
    label_axes(axes, "optimizer step (0: the base)", "eval loss (nats per token)")
    if snapshots.by_step(pair.folder):
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
    axes.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
    return figure


@styled
def comparison(results: Mapping[str, Any]) -> Picture:
    """Draw two panels, base beside tuned: the loss, and exact answers by set."""
    figure, (left, right) = new_figure(3.2, 2, width_ratios=[1, 2])
    losses = {k: v["loss"] for k, v in results["eval_loss"].items() if v}
    bars = left.bar(list(losses), list(losses.values()), color=[GREY, BLUE], width=0.6)
    left.bar_label(bars, fmt="%.3f")
    label_axes(left, "", "loss (nats per trained token)", _set(results))
    rows = [r for r in results["exact"] if r["kind"] == "total"]
    if not losses:
        left.text(0.5, 0.5, f"the {_set(results)} is empty", ha="center", transform=left.transAxes)
    models = ("base", "tuned")
    drawn = _pairs(right, {m: [100 * r[m] / r["questions"] for r in rows] for m in models})
    for model, bars in zip(models, drawn, strict=True):
        right.bar_label(bars, [f"{r[model]}/{r['questions']}" for r in rows])
    right.set_xticks(range(len(rows)), [r["set"] for r in rows])
    label_axes(right, "", "exact replies (%)", "questions")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    right.set_ylim(0, 110)
    right.set_yticks(range(0, 101, 20))
    if rows:
        right.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
    else:
        right.text(0.5, 0.5, "no question has a reference", ha="center", transform=right.transAxes)
    return figure
