"""changes.py: a run goes on with the data it was started on, or the refusal says what differs."""

import shutil
from pathlib import Path

import pytest
from conftest import tokenize

from neoxkit import changes, paths, plan, runs
from neoxkit.errors import UserError
from neoxkit.settings import TokenizeSettings, TrainSettings

FIRST = TokenizeSettings(train_file="data/tiny.txt", dataset="kept", block_size=64)
TRAIN = TrainSettings(run="kept", dataset="kept")


@pytest.fixture
def started(home: Path) -> Path:
    """A run that was started on the dataset `kept`, as far as files go."""
    conversations = (home / "data" / "small.txt").read_text().split("<|endoftext|>\n")
    for name, some in (("tiny", conversations[:20]), ("other", conversations[20:40])):
        text = "".join(f"{c}<|endoftext|>\n" for c in some)
        (home / "data" / f"{name}.txt").write_text(text)
    tokenize("tiny.txt", "kept", block_size=64)
    folder = paths.run("kept")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs.write_json(folder / runs.ARGUMENTS, plan.trainer_arguments(TRAIN))
    shutil.copy(paths.tokenized("kept") / runs.MANIFEST, folder / runs.DATASET)
    runs.append_event(folder, "train", step=5)
    return folder


def refusal(first: TokenizeSettings, settings: TrainSettings = TRAIN) -> str:
    with pytest.raises(UserError) as refused:
        plan.check_before_tokenizing(first, settings)
    return str(refused.value)


@pytest.mark.parametrize("where", [runs.DATASET, "the dataset alone"])
def test_other_data_is_refused_before_it_is_written(started: Path, where: str) -> None:
    if where != runs.DATASET:  # a run of the time before runs kept their manifest
        (started / runs.DATASET).unlink()
    plan.check_before_tokenizing(FIRST, TRAIN)
    assert refusal(FIRST.replace(train_file="data/other.txt")) == (
        "run: kept was trained on other data (data/tiny.txt -> data/other.txt) -- "
        "choose another run name and another dataset name, or set restart"
    )
    assert "(block_size 64 -> 32; too_long drop -> cut)" in refusal(
        FIRST.replace(block_size=32, too_long="cut")
    )
    assert "(none -> data/other.txt)" in refusal(FIRST.replace(eval_file="data/other.txt"))
    (paths.root() / "data" / "tiny.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    assert "(data/tiny.txt has changed)" in refusal(FIRST)


def test_restart_and_a_new_run_take_any_data(started: Path) -> None:
    other = FIRST.replace(train_file="data/other.txt")
    plan.check_before_tokenizing(other, TRAIN.replace(restart=True))
    plan.check_before_tokenizing(other, TRAIN.replace(run="fresh"))


def test_other_settings_are_refused_before_01(started: Path) -> None:
    said = refusal(FIRST, TRAIN.replace(learning_rate=1e-3))
    assert said.startswith("run: was started with other settings (learning_rate 0.002 -> 0.001)")


def test_02_names_both_texts_when_the_dataset_was_replaced(started: Path) -> None:
    plan.check(TRAIN)
    tokenize("other.txt", "kept", block_size=64)
    with pytest.raises(UserError, match=r"other data \(data/tiny.txt -> data/other.txt\)"):
        plan.check(TRAIN)


def test_other_versions_tokenize_anew(started: Path) -> None:
    was = runs.read_json(started / runs.DATASET)
    was["versions"]["tokenizers"] = "0.1"
    (said,) = changes.differences(was, changes.planned_data(FIRST))
    assert said.startswith("tokenized by tokenizers 0.1, now ")


def test_runs_that_are_left_behind_are_named(started: Path) -> None:
    assert changes.left_behind(FIRST.replace(block_size=32)) == []  # it is not finished
    runs.write_json(started / runs.FINISHED, {"dataset": "data/tokenized/kept"})
    try:
        assert changes.left_behind(FIRST) == []
        assert changes.left_behind(FIRST.replace(block_size=32)) == ["kept"]
        assert changes.left_behind(FIRST.replace(block_size=32, dataset="another")) == []
    finally:
        (started / runs.FINISHED).unlink()


def test_a_setting_that_came_later_is_no_change() -> None:
    """Runs of an earlier version go on, and a shell's flags are texts."""
    old = {"learning_rate": 1e-3}
    changes.refuse_changes(old, old | {"lora_rank": 0})
    changes.refuse_changes(old, {"learning_rate": "0.001", "lora_rank": "0"})
    with pytest.raises(UserError, match="lora_rank None -> 4"):
        changes.refuse_changes(old, old | {"lora_rank": 4})
