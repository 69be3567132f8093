"""Compare what two runs gave: losses step by step, final weights, and replies of 03."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from neoxkit import files
from neoxkit.evaluation import answers
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.sections import Listed, Section, Unequal, joined, lack, unequal
from neoxkit.runs.folder import FINISHED

ASKED = "asked"  # the column of the questions, beside one of each run's name
Losses = Mapping[Any, float | None]  # by step, or by the steps that it is the mean of


def losses(a: Run, b: Run, same_held_out: bool | None) -> Section:
    """Compare training losses, eval losses and final weights.

    Shown are the first loss that differs and the last one that both have. A training loss is the
    mean over the steps since the one before: only means over the same steps are compared.
    """
    found = joined(_train_losses(a, b), _eval_losses(a, b, same_held_out))
    return found if found.differs else joined(found, _weights(a, b))  # they would differ, too


def _train_losses(a: Run, b: Run) -> Section:
    one, other = _over_steps(a), _over_steps(b)
    if without := [run.name for run, of in ((a, one), (b, other)) if not of]:
        return Section("losses", unknown=[f"training losses: {lack(without, 'none')}"])
    ends = [max(last for _, last in of) for of in (one, other)]
    end, shorter = min(ends), a if ends[0] < ends[1] else b
    steps = [Unequal("steps", *ends)] if ends[0] != ends[1] else []
    unknown = [f"losses after step {end:,}: {shorter.name} ends there ({shorter.state})"]
    unknown = unknown if steps else []
    if alone := [span for span in one.keys() ^ other.keys() if span[1] <= end]:
        unknown.append(f"{len(alone):,} training losses: the other run's are over other steps")
    shared = {span: _named(span) for span in one if span in other}
    found = _compared("training loss", "training losses", one, other, shared)
    return joined(Section("losses", steps, unknown=unknown), found)


def _over_steps(run: Run) -> Losses:
    """Return the training losses by the steps that each one is the mean of: after, up to."""
    steps = itertools.pairwise([0, *(e["step"] for e in run.history.train)])
    return {of: e["loss"] for of, e in zip(steps, run.history.train, strict=True)}


def _named(steps: tuple[int, int]) -> str:
    """Name the steps that a loss is the mean of.

    >>> _named((5, 10)), _named((5, 6))
    ('steps 6 to 10', 'step 6')
    """
    after, last = steps
    return f"step {last:,}" if last == after + 1 else f"steps {after + 1:,} to {last:,}"


def _eval_losses(a: Run, b: Run, same_held_out: bool | None) -> Section:
    one, other = ({e["step"]: e for e in run.history.evals} for run in (a, b))
    if not one and not other:
        return Section("losses")  # nothing was held out
    if without := [run.name for run, of in ((a, one), (b, other)) if not of]:
        return Section("losses", unknown=[f"eval losses: {lack(without, 'none')}"])
    shared = {step: f"step {step:,}" for step in one if step in other}
    sizes = [{side[step].get("trained_tokens") for step in shared} for side in (one, other)]
    if same_held_out is None:
        return Section("losses", unknown=["eval losses: the held-out sets may differ"])
    if not same_held_out or sizes[0] != sizes[1]:
        return Section("losses", unknown=["eval losses: the held-out sets differ"])
    end = min(max(one), max(other))
    alone = [step for step in one.keys() ^ other.keys() if step <= end]
    unknown = [f"{len(alone):,} eval losses: the other run has none at their steps"]
    mine, its = ({step: e["loss"] for step, e in side.items()} for side in (one, other))
    found = _compared("eval loss", "eval losses", mine, its, shared)
    return joined(found, Section("losses", unknown=unknown if alone else []))


def _compared(what: str, several: str, a: Losses, b: Losses, shared: Mapping[Any, str]) -> Section:
    """Compare the losses at the steps that both have, which `shared` names."""
    differ = [step for step in shared if a[step] != b[step]]
    if not differ:
        return Section("losses", equal=[f"{several} ({len(shared):,})"] if shared else [])
    last = next(reversed(shared))
    found = [
        Unequal(f"{what}, {shared[step]}", a[step], b[step], _by(a[step], b[step]))
        for step in dict.fromkeys((differ[0], last))
        if a[step] != b[step]
    ]
    said = f"{len(differ):,} of {len(shared):,} {several} differ, from {shared[differ[0]]} on"
    if a[last] == b[last]:
        said += f"; the last, {shared[last]}, is equal again"
    return Section("losses", found, says=[f"{said}."])


def _by(a: float | None, b: float | None) -> float:
    return math.nan if a is None or b is None else b - a


def _weights(a: Run, b: Run) -> Section:
    """Compare the hashes of the final weights."""
    one, other = (_finished(run) for run in (a, b))
    if without := [run.name for run, of in ((a, one), (b, other)) if not of]:
        return Section("losses", unknown=[f"final weights: {lack(without, 'none')}"])
    if found := [replace(file, name=f"weights, {file.name}") for file in unequal(one, other)]:
        return Section("losses", found, says=["The final weights differ."])
    return Section("losses", equal=["final weights"])


def _finished(run: Run) -> Mapping[str, str]:
    path = run.folder / FINISHED
    return files.read_json(path).get("model_sha256", {}) if path.is_file() else {}


def replies(a: Run, b: Run, most: int | None) -> Section:
    """Compare the tuned models' replies of 03 to the same questions; list at most `most`."""
    found = [answers.replies_of(run) for run in (a, b)]
    without = [f"{run.name} {why}" for run, why in zip((a, b), found, strict=True)
               if isinstance(why, str)]  # fmt: skip
    if without:
        return Section("replies", unknown=[f"replies: {' and '.join(without)}"])
    sides = [_by_question(one["lines"]) for one in found if not isinstance(one, str)]
    how = [_how(one["settings"]) for one in found if not isinstance(one, str)]
    made = unequal(*how)
    shared = [key for key in sides[0] if key in sides[1]]
    differ = [key for key in shared if sides[0][key] != sides[1][key]]
    rows = [
        {ASKED: _asked(key), a.name: sides[0][key], b.name: sides[1][key]} for key in differ[:most]
    ]
    what = (
        f"of {len(shared):,} questions {'is' if len(differ) == 1 else 'are'} answered differently"
    )
    listed = [Listed(what, len(differ), rows)] if differ else []
    equal = [] if differ or made or not shared else [f"replies ({len(shared):,})"]
    unknown = [
        f"replies to {len(alone):,} questions: only {run.name} was asked them"
        for run, mine, its in ((a, sides[0], sides[1]), (b, sides[1], sides[0]))
        if (alone := mine.keys() - its.keys())
    ]
    return Section("replies", made, listed, equal=equal, unknown=unknown)


Key = tuple[str, str, int]  # set, prompt, and how often both came before


def _by_question(lines: Sequence[Mapping[str, Any]]) -> dict[Key, str]:
    """Return the tuned model's replies by question; one that is asked twice is counted."""
    asked: Counter[tuple[str, str]] = Counter()
    found: dict[Key, str] = {}
    for line in lines:
        question = line["set"], line["prompt"]
        found[(*question, asked[question])] = line["tuned"]["text"]
        asked[question] += 1
    return found


def _asked(key: Key) -> str:
    """Return a question without the label that its reply follows."""
    return key[1].rpartition("\n\n")[0] or key[1]


def _how(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return 03's settings that decide a reply."""
    names = (*answers.HOW, "seed") if settings.get("do_sample") else answers.HOW
    return {name: settings.get(name) for name in names}
