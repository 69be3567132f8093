"""rescoring.py: runs scored on the same conversations."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.evaluation import compare_runs, rescoring
from neoxkit.evaluation.scoring import Score
from neoxkit.lab import comparison
from neoxkit.parallel import silent
from neoxkit.runs.events import History
from neoxkit.runs.folder import FINISHED


@pytest.fixture
def two(home: Path) -> Iterator[list[compare_runs.Run]]:
    """Make two finished runs of the built-in model, one with a smaller block size."""
    made = []
    for name, block_size in (("whole", 280), ("short", 60)):
        folder = home / "runs" / f"again-{name}"
        shutil.copytree(home / "data" / "models" / "tiny", folder / "model")
        facts = {"dataset": "data/tokenized/small", "block_size": block_size, "precision": "fp32"}
        sha256 = tokenized.sha256(paths.tokenized("small"))
        files.write_json(folder / FINISHED, facts | {"dataset_sha256": sha256})
        made.append(compare_runs.Run(name, folder, "finished", {}, {}, History()))
    yield made
    for run in made:
        shutil.rmtree(run.folder)


def test_all_are_scored_on_the_conversations_that_all_evaluate(two: list[compare_runs.Run]) -> None:
    found = rescoring.scores(two, lambda label: silent)
    dataset, _ = tokenized.load(paths.tokenized("small"))
    short = tokenized.within(dataset["eval"], 60)
    assert 0 < len(short) < len(dataset["eval"])
    assert [score["conversations"] for score in found.values()] == [len(short)] * 2
    assert found["whole"]["loss"] == found["short"]["loss"]
    assert len(comparison.same_conversations(found).text.splitlines()) == 3


def test_a_run_that_can_not_be_scored_says_why(two: list[compare_runs.Run]) -> None:
    whole, short = two
    facts = files.read_json(short.folder / FINISHED)
    shutil.rmtree(short.folder / "model")
    assert rescoring.scores(two, lambda label: silent)["short"] == "its model is not here"
    files.write_json(short.folder / FINISHED, facts | {"dataset_sha256": "another"})
    assert rescoring.scores(two, lambda label: silent)["short"] == "was trained on other data"
    stopped = compare_runs.Run("short", short.folder, "stopped", {}, {}, History())
    found = rescoring.scores([stopped, whole], lambda label: silent)
    dataset, _ = tokenized.load(paths.tokenized("small"))
    assert found["short"] == "is stopped"
    assert found["whole"]["conversations"] == len(dataset["eval"])
    assert "is stopped" in comparison.same_conversations(found).text


def test_without_a_common_conversation_that_is_the_reason_given(
    two: list[compare_runs.Run],
) -> None:
    facts = files.read_json(two[1].folder / FINISHED)
    files.write_json(two[1].folder / FINISHED, facts | {"block_size": 1})
    found = rescoring.scores(two, lambda label: silent)
    assert found == dict.fromkeys(("whole", "short"), "the held-out set is empty")
    assert "the held-out set is empty" in comparison.same_conversations(found).text


def test_adapters_without_their_base_are_named_and_the_others_scored(
    two: list[compare_runs.Run],
) -> None:
    config = {"base_model_name_or_path": "runs/elsewhere/model"}
    files.write_json(two[1].folder / "model" / "adapter_config.json", config)
    found = rescoring.scores(two, lambda label: silent)
    assert "'runs/elsewhere/model' does not exist" in found["short"]
    assert found["whole"]["loss"] > 0


def test_nothing_is_scored_unless_asked_for(two: list[compare_runs.Run]) -> None:
    assert rescoring.ranked({}) == {}
    assert comparison.same_conversations({}).text == comparison.OFF


def test_the_distance_to_the_best_run_has_an_interval() -> None:
    chance = np.random.default_rng(0)
    low = [chance.normal(1, 0.3, 5) for _ in range(40)]
    high = [losses + chance.normal(0.2, 0.05) for losses in low]
    scored = {
        name: Score(float(np.mean(losses)), 2.5, 200, 40, losses=losses)
        for name, losses in (("high", high), ("low", low))
    } | {"none": "is stopped"}
    facts = rescoring.ranked(scored)
    assert list(facts) == ["none", "low", "high"]
    assert facts["low"]["above_the_first"] is None and facts["none"] == "is stopped"
    above = facts["high"]["above_the_first"]
    assert 0.15 < above["low"] < above["mean"] < above["high"] < 0.25
    lines = comparison.same_conversations(facts).text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["low", "high", "none"]
    said = f"{above['mean']:.4f} ({above['low']:+.4f} to {above['high']:+.4f})"
    assert said in lines[2] and "to" not in lines[1].split()
    assert lines[-1].startswith("The 95 % intervals hold for the two models, on conversations like")
    assert "contains 0" not in lines[-1] and lines[2].split()[-1] == "40"
    near = [losses + chance.normal(0.01, 0.1) for losses in low]
    near_by = rescoring.ranked({"low": scored["low"], "near": replace(scored["low"], losses=near)})
    (above,) = [one["above_the_first"] for one in near_by.values() if one["above_the_first"]]
    assert above["low"] < 0 < above["high"] < above["detectable"] * 1.1
    shown = comparison.same_conversations(near_by).text.splitlines()
    needed = 40 * (above["detectable"] / above["mean"]) ** 2
    assert float(shown[2].split("about ")[1].replace(",", "")) == pytest.approx(needed, rel=0.05)
    assert shown[-1].endswith("that was seen (80%), if that is the true one.")
    third = rescoring.ranked(scored | {"third": scored["high"]})
    assert "together for all 3 differences between the 3 models" in rescoring.holds_for(third)
    assert rescoring.holds_for({"none": "is stopped"}) == ""
