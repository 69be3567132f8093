"""Runs scored on the same conversations."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from neoxkit import compare, paths, rescore, runs, tokenized
from neoxkit.workers import silent


@pytest.fixture
def two(home: Path) -> Iterator[list[compare.Run]]:
    """Two finished runs of the built-in model, of which one has a smaller block size."""
    made = []
    for name, block_size in (("whole", 280), ("short", 60)):
        folder = home / "runs" / f"again-{name}"
        shutil.copytree(home / "data" / "models" / "tiny", folder / "model")
        facts = {"dataset": "data/tokenized/small", "block_size": block_size, "precision": "fp32"}
        sha256 = tokenized.sha256(paths.tokenized("small"))
        runs.write_json(folder / runs.FINISHED, facts | {"dataset_sha256": sha256})
        made.append(compare.Run(name, folder, "finished", {}, {}, []))
    yield made
    for run in made:
        shutil.rmtree(run.folder)


def test_all_are_scored_on_the_conversations_that_all_evaluate(two: list[compare.Run]) -> None:
    found = rescore.scores(two, lambda label: silent)
    dataset, _ = tokenized.load(paths.tokenized("small"))
    short = tokenized.within(dataset["eval"], 60)
    assert 0 < len(short) < len(dataset["eval"])
    assert [score.conversations for score in found.values()] == [len(short)] * 2
    assert found["runs/again-whole"].loss == found["runs/again-short"].loss
    assert len(rescore.table(found).text.splitlines()) == 3


def test_a_run_that_can_not_be_scored_there_says_why(two: list[compare.Run]) -> None:
    whole, short = two
    facts = runs.read_json(short.folder / runs.FINISHED)
    shutil.rmtree(short.folder / "model")
    assert rescore.scores(two, lambda label: silent)["runs/again-short"] == "its model is not here"
    runs.write_json(short.folder / runs.FINISHED, facts | {"dataset_sha256": "another"})
    assert (
        rescore.scores(two, lambda label: silent)["runs/again-short"] == "was trained on other data"
    )
    stopped = compare.Run("short", short.folder, "stopped", {}, {}, [])
    found = rescore.scores([stopped, whole], lambda label: silent)
    dataset, _ = tokenized.load(paths.tokenized("small"))
    assert found["runs/again-short"] == "is stopped"
    assert found["runs/again-whole"].conversations == len(dataset["eval"])
    assert "is stopped" in rescore.table(found).text


def test_without_being_asked_nothing_is_scored(two: list[compare.Run]) -> None:
    assert rescore.again(two, False).text == rescore.OFF
