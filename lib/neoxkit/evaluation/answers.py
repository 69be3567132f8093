"""Exact replies of several runs to the same questions, as 03_evaluate wrote them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from neoxkit import files
from neoxkit.evaluation import paired
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.paired import Pairs
from neoxkit.runs.folder import EVALUATION

HOW = ("max_new_tokens", "do_sample", "temperature")  # settings that decide a reply

Line = Mapping[str, Any]  # of replies.jsonl


def counted(chosen: Sequence[Run]) -> dict[str, Any]:
    """Return the runs' exact replies by set of questions, the most exact first, and `without`: why
    the other runs are not among them.

    Runs are compared that answered the same questions in the same way as the first one that was
    evaluated. `to_the_first`: a run's Pairs with the first of its set (None for that one itself),
    which was chosen by looking among `comparisons` pairs of runs.
    """
    read = {run.name: _read(run) for run in chosen}
    answered = {name: one for name, one in read.items() if not isinstance(one, str)}
    first: Mapping[str, Any] = next(iter(answered.values()), {"lines": []})
    without = {name: why for name, why in read.items() if isinstance(why, str)}
    without |= {name: why for name, one in answered.items() if (why := _differs(first, one))}
    alike = {name: one["lines"] for name, one in answered.items() if name not in without}
    sets = dict.fromkeys(line["set"] for line in first["lines"])
    return {"sets": {name: _ranked(alike, name) for name in sets}, "without": without}


def replies_of(run: Run) -> dict[str, Any] | str:
    """Return a run's replies and the settings of 03 that made them, or why it has none."""
    path, evaluation = run.folder / "replies.jsonl", run.folder / EVALUATION
    if not path.is_file() or not evaluation.is_file():
        return "was not evaluated by 03"
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]  # a reply may hold U+2028
    return {"lines": lines, "settings": files.read_json(evaluation)["settings"]}


def _read(run: Run) -> dict[str, Any] | str:
    """Return a run's replies to questions with short references, and how they were made."""
    found = replies_of(run)
    if isinstance(found, str):
        return found
    if any("exact" not in line["tuned"] for line in found["lines"]):
        return "was evaluated by an older 03: evaluate it again"
    lines = [line for line in found["lines"] if line["tuned"]["exact"] is not None]
    if not lines:
        return "was asked no question with a short reference"
    return {"lines": lines, "how": {name: found["settings"][name] for name in HOW}}


def _differs(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say why two runs' replies can't be compared; empty if they can."""
    keys = ("set", "prompt", "reference")
    mine, its = ([[line[key] for key in keys] for line in one["lines"]] for one in (first, other))
    if mine != its:
        return "was asked other questions"
    changed = [name for name in HOW if first["how"][name] != other["how"][name]]
    return f"its replies were made with another {', '.join(changed)}" if changed else ""


def _ranked(alike: Mapping[str, Sequence[Line]], chosen: str) -> list[dict[str, Any]]:
    """Return the figures of the runs on one set, the most exact first."""
    right = {
        name: [line["tuned"]["exact"] for line in lines if line["set"] == chosen]
        for name, lines in alike.items()
    }
    order = sorted(right, key=lambda name: -sum(right[name]))
    pairs = max(len(order) * (len(order) - 1) // 2, 1)
    return [
        {
            "run": name,
            "exact": sum(right[name]),
            "questions": len(right[name]),
            "to_the_first": asdict(Pairs.of(right[order[0]], right[name])) if i else None,
            "comparisons": pairs,
        }
        for i, name in enumerate(order)
    ]


def said(row: Mapping[str, Any]) -> str:
    """Return a run's difference to the first of its set in words; empty for the first itself."""
    pairs = row["to_the_first"]
    return paired.exact(Pairs(**pairs), row["comparisons"]) if pairs else ""


def holds_for(found: Mapping[str, Any]) -> str:
    """Say what the intervals of `counted` hold for; empty without any."""
    num = max((len(rows) for rows in found["sets"].values()), default=0)
    if num < 2:
        return ""
    pairs = f"all {num * (num - 1) // 2} pairs of these {num} runs" if num > 2 else "the two runs"
    return (
        f"Each question is compared with itself. Within a set, intervals and p hold for {pairs} "
        "(McNemar, Bonferroni): for these models, not for their settings, which another seed "
        "might put in another order."
    )
