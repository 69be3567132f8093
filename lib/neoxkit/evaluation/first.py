"""Say which side chose the first of several runs, and what a side says that chose nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from neoxkit import files
from neoxkit.evaluation.compare_runs import Run, scores
from neoxkit.runs.folder import DATASET, EVALUATION, of_side
from neoxkit.runs.looks import Looks


def facts(chosen: Sequence[Run]) -> dict[str, Any] | None:
    """Return the run with the lowest eval loss, out of how many it was chosen, whether its dataset
    has a test side, and its figures there, if 03 has looked; None unless there was a choice."""
    lines = [line for line in scores(chosen) if line["eval_loss"] is not None]
    if len(lines) < 2:
        return None
    run = next(run for run in chosen if run.name == lines[0]["run"])
    kept, evaluated = run.folder / DATASET, run.folder / of_side(EVALUATION, "test")
    sides = files.read_json(kept).get("sides", {}) if kept.is_file() else {}
    return {
        "run": run.name,
        "out_of": len(lines),
        "has_test_side": "test" in sides,
        "on_the_test_side": _figures(files.read_json(evaluated)) if evaluated.is_file() else None,
    }


def _figures(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the tuned model's loss, its difference to the base, and the looks; None if no
    conversation was short enough."""
    tuned = results["eval_loss"]["tuned"]
    if tuned is None:
        return None
    difference = results["depth"]["difference"]
    return {
        "loss": tuned["loss"],
        "conversations": tuned["conversations"],
        "tuned_minus_base": {name: difference[name] for name in ("mean", "low", "high")},
        "looks": results["looks"],
    }


def said(found: Mapping[str, Any] | None) -> str:
    """Say it in words; empty if there was no choice."""
    if found is None:
        return ""
    why = (
        f"{found['run']} was chosen by these losses, the lowest of {found['out_of']:,}, so that "
        "its own may be low by luck."
    )
    if figures := found["on_the_test_side"]:
        return f"{why} {_on_the_test_side(figures)}"
    if found["has_test_side"]:
        return f"{why} 03_evaluate of it with side test gives a figure that did not choose."
    return f"{why} A dataset with a test side (01, test_share) has a figure that did not choose."


def _on_the_test_side(figures: Mapping[str, Any]) -> str:
    """Say what the run's figures are on the test side, and how often it was looked at."""
    difference, looks = figures["tuned_minus_base"], Looks(**figures["looks"])
    bounds = ""
    if difference["low"] is not None:
        bounds = f", between {difference['low']:+.4f} and {difference['high']:+.4f} (95 %)"
    return (
        f"On the test side, which did not choose: loss {figures['loss']:.4f}, tuned minus base "
        f"{difference['mean']:+.4f}{bounds}, over {figures['conversations']:,} conversations. "
        f"{looks.text()}"
    )
