"""What an evaluation came to, as tables: scores, what got worse, replies side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neoxkit import charts
from neoxkit.evaluation import compare_models
from neoxkit.views import NOTHING, View, sentences, table

if TYPE_CHECKING:
    from neoxkit.data.questions import Question
    from neoxkit.evaluation.compare_models import Depth
    from neoxkit.models.generation import Reply
    from neoxkit.plots import Picture


def scoreboard(evaluation: Mapping[str, Any]) -> View:
    """Exact replies by set and kind, base beside tuned, and how many replies ended in which way."""
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
    """Questions with both models' replies: at most `most`, spread evenly over them."""
    from neoxkit.data.questions import spread  # needs torch, which whoever has replies has loaded

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
    """Losses on the eval side and on the plain text, what each rests on, and how sure the
    difference is."""
    sides = {"eval side": evaluation["eval_loss"], "plain text": evaluation.get("plain_text", {})}
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
        return sentences([], none="The eval side is empty: there is no loss to show.")
    header = (
        "text", "model", "loss (nats a token)", "perplexity", "bits a byte", "tokens", "rows"
    )  # fmt: skip
    said = compare_models.sentences(evaluation.get("depth"))
    return table(rows, header) + sentences(said, none="There is no difference to measure.")


def tasks(evaluation: Mapping[str, Any]) -> View:
    """Base beside tuned in each task and metric, with standard errors."""
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


def where(deep: "Depth | None") -> "Picture | View":
    """Where the difference lies, as a picture."""
    return charts.depth(deep) if deep else NOTHING


def checkpoints(evaluation: Mapping[str, Any]) -> "Picture | View":
    """The losses of base, checkpoints and tuned model as a picture; none without an eval side."""
    return charts.checkpoint_curve(evaluation) if evaluation["losses_by_step"] else NOTHING


def worst(deep: "Depth | None", rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> View:
    """The conversations whose loss rose most, worst first, with the beginning of each."""
    found = [
        (
            f"{deep.base[i].mean():.3f}",
            f"{deep.tuned[i].mean():.3f}",
            f"{len(deep.base[i]):,}",
            _beginning(tokenizer.decode(rows[i]["input_ids"], skip_special_tokens=True)),
        )
        for i in (deep.worst if deep else ())
    ]
    if not found:
        return sentences([], none="No conversation of the eval side got worse.")
    return table(found, ("base", "tuned", "trained tokens", "conversation"))


def _beginning(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _endings(by_model: Mapping[str, Mapping[str, int]]) -> View:
    """How many replies ended in which way."""
    kinds = list(next(iter(by_model.values())))
    rows = [(name, *(f"{counts[k]:,}" for k in kinds)) for name, counts in by_model.items()]
    return table(rows, ("model", *kinds))


def answer(question: str, reply: "Reply") -> View:
    """One question and its reply."""
    return table([("asked", question), ("tuned", _said(reply, most=2000))])
