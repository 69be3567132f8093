"""What 04_compare shows: runs beside each other, as tables and pictures."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from neoxkit import charts, files, paths, views
from neoxkit.evaluation import compare_runs
from neoxkit.evaluation.compare_runs import Group, Run
from neoxkit.settings import CompareSettings


def overlay(chosen: Sequence[Run]) -> charts.Picture:
    """The curves of all runs, over the tokens that were trained on."""
    title, _ = compare_runs.labels(chosen)
    return charts.overlay(curves(chosen), title, compare_runs.equal_tokens(chosen))


def curves(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    """What is drawn of each run."""
    _, names = compare_runs.labels(chosen)
    return [
        {
            "label": f" {label or '(empty)'}",  # matplotlib leaves out one that begins with _
            "tokens": run.trained_tokens([e["step"] for e in run.of("train")]),
            "losses": [e["loss"] for e in run.of("train")],
            "eval_tokens": run.trained_tokens([e["step"] for e in run.of("eval")]),
            "eval_losses": [e["loss"] for e in run.of("eval")],
        }
        for run, label in zip(chosen, names, strict=True)
    ]


def table(chosen: Sequence[Run]) -> views.View:
    """The scoreboard: the lowest eval loss first."""
    lines = compare_runs.scores(chosen)
    equal = f"eval loss at {compare_runs.equal_tokens(chosen):,.0f} tokens"
    rows = [
        (
            line["run"],
            line["state"],
            _figure(line["eval_loss"], ".4f"),
            _figure(line["eval_loss"] and math.exp(min(line["eval_loss"], 700)), ",.3f"),
            _figure(line["equal_loss"], ".4f"),
            f"{line['trained_tokens']:,}",
            _figure(line["tokens_per_second"], ",.0f"),
            _figure(line["memory_gib"], ".2f"),
            _figure(line["train_seconds"], ",.0f"),
        )
        for line in lines
    ]
    header = (
        "run", "state", "eval loss", "perplexity", equal, "tokens trained on", "useful tokens/s",
        "memory of a rank (GiB)", "seconds of steps",
    )  # fmt: skip
    return views.table(rows, header)


def seeds(chosen: Sequence[Run]) -> views.View:
    """Runs that differ in their seed alone, together: the mean eval loss with its 95 % interval,
    and how far it is above that of the best (of the same eval side)."""
    groups = compare_runs.over_seeds(chosen)
    at = f"{compare_runs.equal_tokens(chosen):,.0f} tokens"
    if not groups:
        none = f"No two finished runs differ in their seed alone and were evaluated at {at}."
        return views.sentences([], none=none)
    names = dict.fromkeys(name for group in groups for name in group.differs)
    rows = [
        (
            *(_value(group.differs.get(name)) for name in names),
            ", ".join(_seed(*of) for of in sorted(group.losses.items())),
            f"{group.mean:.4f}",
            _bounds(group.interval()),
            _above(group, groups[0]),
        )
        for group in groups
    ]
    header = (*names, "seeds", f"mean eval loss at {at}", "95 % interval", "above the first")
    return views.table(rows, header)


def _seed(seed: int, losses: Sequence[float]) -> str:
    return f"{seed}" if len(losses) == 1 else f"{seed} ({len(losses)} runs)"


def _above(group: Group, first: Group) -> str:
    """The difference of two means and its interval; nothing for the first itself."""
    if group is first:
        return ""
    if group.side != first.side:
        return "another eval side"
    bounds = _bounds(group.above(first), "+")
    return f"{group.mean - first.mean:+.4f}" + (f" ({bounds})" if bounds else "")


def _bounds(interval: tuple[float, float] | None, sign: str = "") -> str:
    return f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}" if interval else ""


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def differences(chosen: Sequence[Run]) -> views.View:
    """What differs between the runs, and only that: a line a run, a column a setting."""
    found = compare_runs.differing(chosen)
    if not found:
        return views.sentences([], none="Nothing differs between these runs.")
    values = zip(*found.values(), strict=True)
    rows = [(run.name, *map(_value, of)) for run, of in zip(chosen, values, strict=True)]
    return views.table(rows, ("run", *found))


def _value(value: Any) -> str:
    """A setting; of hashes and of lists of them the beginnings."""
    if isinstance(value, dict):
        return ", ".join(f"{_value(v)}" for k, v in value.items() if k.endswith(".safetensors"))
    text = "" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,64}", text) else text


def heat_map(chosen: Sequence[Run]) -> charts.Picture | views.View:
    """The picture of two settings, where two differ."""
    found = compare_runs.grid(chosen)
    if found is None:
        return views.sentences([], none="There are not exactly two settings that differ.")
    if np.isnan(found["losses"]).all():
        return views.sentences([], none="No run was evaluated.")
    return charts.heat_map(**found)


def _means(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    groups = compare_runs.over_seeds(chosen)
    return [
        {
            **asdict(group),
            "mean": group.mean,
            "interval": group.interval(),
            "above_the_first": group.above(groups[0]) if group.side == groups[0].side else None,
        }
        for group in groups
    ]


def save(chosen: Sequence[Run], settings: CompareSettings, scored: Mapping[str, Any]) -> views.View:
    """Write runs/<name>/comparison.json: what differs, the scoreboard's figures as logged, those of
    the seeds together, and those on the same conversations (rescore.facts)."""
    folder = paths.run(settings.name)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "runs": [run.name for run in chosen],
        "differs": compare_runs.differing(chosen),
        "notes": compare_runs.notes(chosen),
        "scores": compare_runs.scores(chosen),
        "over_seeds": _means(chosen),
        "on_the_same_conversations": scored,
    }
    files.write_json(folder / "comparison.json", figures)
    return views.sentences([f"written: {paths.short(folder / 'comparison.json')}"])
