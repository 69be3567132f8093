"""resuming.py: a run resumes on the data it was started with, or the refusal says what differs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tokenize

from neoxkit import files, paths
from neoxkit.cli import main as cli
from neoxkit.cli import notebooks
from neoxkit.data import tokenized
from neoxkit.errors import MOST_CHARACTERS, UserError
from neoxkit.launch import checks, command, process
from neoxkit.runs import checkpoints, resuming
from neoxkit.runs.events import METRICS, append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, DIALS, FINISHED
from neoxkit.settings import TokenizeSettings, TrainSettings

FIRST = TokenizeSettings(train_file="data/tiny.txt", dataset="kept", block_size=64)
TRAIN = TrainSettings(run="kept", dataset="kept")
DIALLED = TRAIN.replace(learning_rate=5e-4)


@pytest.fixture
def started(home: Path) -> Path:
    """Write the files of a run that was started on the dataset `kept`."""
    conversations = (home / "data" / "small.txt").read_text().split("<|endoftext|>\n")
    for name, some in (("tiny", conversations[:20]), ("other", conversations[20:40])):
        text = "".join(f"{c}<|endoftext|>\n" for c in some)
        (home / "data" / f"{name}.txt").write_text(text)
    tokenize("tiny.txt", "kept", block_size=64)
    folder = paths.run("kept")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files.write_json(folder / ARGUMENTS, command.trainer_arguments(TRAIN))
    shutil.copy(paths.tokenized("kept") / files.MANIFEST, folder / DATASET)
    append_event(folder, "train", step=5)
    return folder


def refusal(first: TokenizeSettings, settings: TrainSettings = TRAIN) -> str:
    with pytest.raises(UserError) as refused:
        checks.check_before_tokenizing(first, settings)
    return str(refused.value)


@pytest.mark.parametrize("where", [DATASET, "the dataset alone"])
def test_other_data_is_refused_before_it_is_written(started: Path, where: str) -> None:
    if where != DATASET:  # a run from before runs kept their manifest
        (started / DATASET).unlink()
    checks.check_before_tokenizing(FIRST, TRAIN)
    assert refusal(FIRST.replace(train_file="data/other.txt")) == (
        "run: kept was trained on other data (data/tiny.txt -> data/other.txt) -- "
        "choose another run name and another dataset name, or set restart and overwrite"
    )
    assert "(block_size 64 -> 32; too_long drop -> cut)" in refusal(
        FIRST.replace(block_size=32, too_long="cut")
    )
    assert "(none -> data/other.txt)" in refusal(FIRST.replace(eval_file="data/other.txt"))
    (paths.root() / "data" / "tiny.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    assert "(data/tiny.txt has changed)" in refusal(FIRST)


def test_restart_and_a_new_run_take_any_data(started: Path) -> None:
    other = FIRST.replace(train_file="data/other.txt")
    checks.check_before_tokenizing(other, TRAIN.replace(restart=True))
    checks.check_before_tokenizing(other, TRAIN.replace(run="fresh"))


def test_other_settings_are_refused_before_01(started: Path) -> None:
    said = refusal(FIRST, TRAIN.replace(learning_rate=1e-3))
    assert said.startswith("run: was started with other settings (learning_rate 0.002 -> 0.001)")


def test_a_dial_that_changed_a_setting_is_named_with_the_old_value(started: Path) -> None:
    """The remedy, followed exactly, lets the run resume."""
    files.write_json(started / ARGUMENTS, command.trainer_arguments(DIALLED))
    files.write_json(started / DIALS, {"learning_rate": [2e-3, 5e-4]})
    with pytest.raises(UserError) as refused:
        checks.check(TRAIN)
    assert str(refused.value) == (
        "run: was started with other settings (learning_rate 0.0005 -> 0.002 by a dial) -- "
        "turn the dial learning_rate to 0.0005 or set that parameter, or choose another run name"
    )
    checks.check(DIALLED, {"learning_rate": (2e-3, 5e-4)})
    checks.check(DIALLED)
    said = refusal(FIRST, TRAIN.replace(seed=7))
    assert "(learning_rate 0.0005 -> 0.002 by a dial; seed 42 -> 7)" in said
    assert said.endswith(" or set that parameter, and restore the rest")


def test_a_dial_turned_after_the_start_is_named_too(started: Path) -> None:
    with pytest.raises(
        UserError, match=r"0\.002 -> 0\.0005 by a dial\) -- turn the dial .* 0\.002 "
    ):
        checks.check(DIALLED, {"learning_rate": (2e-3, 5e-4)})
    with pytest.raises(UserError, match=r"0\.002 -> 0\.0005\) -- restore them, "):
        checks.check(DIALLED)


def test_a_start_keeps_what_dials_have_changed(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is rewritten with the arguments, and gone once the run resumes without a dial."""
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: None)
    monkeypatch.setattr(process, "_started", {})
    shutil.rmtree(started)
    process.start(DIALLED, {"learning_rate": (2e-3, 5e-4)})
    assert resuming.dialled(started) == {"learning_rate": [2e-3, 5e-4]}
    append_event(started, "train", step=5)
    with pytest.raises(UserError, match=r"0\.0005 -> 0\.002 by a dial"):
        process.start(TRAIN)
    process.start(DIALLED)  # what the refusal asks for, by the parameter
    assert not (started / DIALS).exists()


def test_02_names_both_texts_when_the_dataset_was_replaced(started: Path) -> None:
    checks.check(TRAIN)
    tokenize("other.txt", "kept", block_size=64)
    with pytest.raises(UserError, match=r"other data \(data/tiny.txt -> data/other.txt\)"):
        checks.check(TRAIN)


def test_other_package_versions_count_as_other_data(started: Path) -> None:
    was = files.read_json(started / DATASET)
    was["versions"]["tokenizers"] = "0.1"
    (said,) = resuming.differences(was, resuming.planned_data(FIRST))
    assert said.startswith("tokenized by tokenizers 0.1, now ")


def test_a_dataset_made_before_a_setting_was_there_is_read_and_is_no_other_data(
    started: Path,
) -> None:
    path = paths.tokenized("kept") / files.MANIFEST
    was = files.read_json(path)
    del was["settings"]["near_duplicates"], was["near_duplicates"]
    for one in (path, started / DATASET):
        files.write_json(one, was)
    assert tokenized.load(path.parent)[1] == was
    assert resuming.differences(was, resuming.planned_data(FIRST)) == []
    assert resuming.replaced(FIRST) == []


def test_a_test_side_is_other_data_for_a_dataset_made_before_there_were_any(started: Path) -> None:
    path = paths.tokenized("kept") / files.MANIFEST
    was = files.read_json(path)
    del was["settings"]["test_share"]
    for one in (path, started / DATASET):
        files.write_json(one, was)
    assert resuming.replaced(FIRST) == []
    with pytest.raises(
        UserError, match=r"^dataset: kept would be replaced \(test_share 0.0 -> 0.1"
    ):
        resuming.replaced(FIRST.replace(test_share=0.1))


def test_any_newer_setting_is_other_data_where_it_is_not_its_default(started: Path) -> None:
    path = paths.tokenized("kept") / files.MANIFEST
    was = files.read_json(path)
    del was["settings"]["near_duplicates"]
    assert resuming.differences(was, resuming.planned_data(FIRST.replace(overwrite=True))) == []
    now = resuming.planned_data(FIRST.replace(near_duplicates="drop"))
    assert resuming.differences(was, now) == ["near_duplicates tell -> drop"]


def test_other_ranks_with_the_best_step_to_export_are_refused_by_that_name(started: Path) -> None:
    checkpoint = started / "checkpoint-4"
    checkpoint.mkdir()
    checkpoints.seal(checkpoint, step=4, num_ranks=2, zero_stage=2)
    given = {"load_best_model_at_end": True}
    start = resuming.Start(started, given, 1, 2, {}, allowed=["num_ranks"])
    with pytest.raises(UserError) as refused:
        resuming.refuse_other_ranks(start)
    said = str(refused.value)
    assert said.startswith("load_best_model_at_end: is set, and checkpoint-4 is from 2 ranks under")
    assert len(said) <= MOST_CHARACTERS and "name it and num_ranks in allow_change" in said
    resuming.refuse_other_ranks(replace(start, num_ranks=2))
    resuming.refuse_other_ranks(replace(start, arguments={"load_best_model_at_end": False}))


def test_where_a_start_ends_is_no_other_setting(started: Path) -> None:
    """An earlier version did not record it, and a replay ends at its step."""
    arguments = files.read_json(started / ARGUMENTS)
    for changed in (arguments, {**arguments, "until_step": 0}, {**arguments, "until_step": 7}):
        resuming.refuse_changes(resuming.Start(started, changed, 1, 2, {}))


SMALLER = FIRST.replace(block_size=32)


def replacing(settings: TokenizeSettings) -> str:
    """Return the sentence that refuses to replace a dataset."""
    with pytest.raises(UserError) as refused:
        resuming.replaced(settings)
    return str(refused.value)


def test_a_dataset_that_a_run_was_trained_on_is_replaced_only_with_overwrite(started: Path) -> None:
    assert replacing(SMALLER) == (
        "dataset: kept would be replaced (block_size 64 -> 32), and kept was trained on it -- "
        "choose another dataset name, or set overwrite"
    )
    assert resuming.replaced(SMALLER.replace(dataset="another")) == []
    assert resuming.replaced(SMALLER.replace(overwrite=True)) == [
        "data/tokenized/kept is replaced (block_size 64 -> 32); 03 can't evaluate kept any more"
    ]
    for same in (FIRST, FIRST.replace(overwrite=True)):
        assert resuming.replaced(same) == []
        checks.check_before_tokenizing(same, TRAIN)


def test_a_replacement_is_refused_or_reported_before_the_first_notebook(
    started: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[TokenizeSettings] = []
    monkeypatch.setattr(notebooks, "_execute", lambda settings, _: executed.append(settings))
    line = ["run", "-p", "train_file", "data/tiny.txt", "-p", "dataset", "kept"]
    line += ["-p", "block_size", "32", "--only", "01_tokenize"]
    assert cli.main(line) == 2
    assert capsys.readouterr().err == f"error: {replacing(SMALLER)}\n" and executed == []
    assert cli.main([*line, "-p", "overwrite", "true"]) == 0
    said = capsys.readouterr().out
    assert (
        "note: data/tokenized/kept is replaced (block_size 64 -> 32); 03 can't" in said
        and len(executed) == 1
    )


def test_the_refusal_names_runs_and_texts_however_many_there_are(started: Path) -> None:
    for number in range(3):
        shutil.copytree(started, started.with_name(f"night.learning_rate=1e-05.seed={number}"))
    try:
        assert replacing(
            SMALLER.replace(train_file="data/other.txt", too_long="cut", seed=7, eval_share=0.2)
        ) == (
            "dataset: kept would be replaced (data/tiny.txt -> data/other.txt; block_size ...), "
            "and kept and 3 more were trained on it -- "
            "choose another dataset name, or set overwrite"
        )
    finally:
        for folder in started.parent.glob("night.*"):
            shutil.rmtree(folder)


def not_begun(run: Path) -> None:
    (run / METRICS).unlink()


def a_trial(run: Path) -> None:
    arguments = files.read_json(run / ARGUMENTS)
    files.write_json(run / ARGUMENTS, arguments | {"trial": True})


def of_other_data(run: Path) -> None:
    kept = files.read_json(run / DATASET)
    files.write_json(run / DATASET, kept | {"tokenizer_sha256": "another"})


@pytest.mark.parametrize("change", [not_begun, a_trial, of_other_data, shutil.rmtree])
def test_replacing_a_dataset_that_no_run_was_trained_on_is_reported(
    started: Path, change: Callable[[Path], None]
) -> None:
    change(started)
    said = ["data/tokenized/kept is replaced (block_size 64 -> 32)"]
    assert resuming.replaced(SMALLER) == said


def test_a_finished_run_counts_as_one_that_can_resume(started: Path) -> None:
    files.write_json(started / FINISHED, {})
    assert "and kept was trained on it" in replacing(SMALLER)


def test_overwrite_is_not_part_of_the_data(started: Path) -> None:
    before = (paths.tokenized("kept") / files.MANIFEST).read_bytes()
    tokenize("tiny.txt", "kept", block_size=64, overwrite=True)
    assert (paths.tokenized("kept") / files.MANIFEST).read_bytes() == before


def other(name: str) -> object:
    """Return a value of a setting that differs from its default."""
    setting = TrainSettings.__dataclass_fields__[name]
    default = getattr(TrainSettings(), name)
    if setting.metadata["choices"]:
        return setting.metadata["choices"][-1]
    if isinstance(default, bool | int | float):
        return not default if isinstance(default, bool) else 2 * default + 2
    return {str: "another", list: ["seed"], dict: {"adam_beta1": 0.8}}[type(default)]


@pytest.mark.parametrize("name", TrainSettings().as_dict())
def test_a_setting_may_change_as_its_role_says(started: Path, name: str) -> None:
    """Compare the trainer's arguments as a start does, for each setting that the trainer gets."""
    role = TrainSettings.__dataclass_fields__[name].metadata["resume"]
    theirs = TrainSettings.trainer_names().get(name)
    old = files.read_json(started / ARGUMENTS)
    changed = old | ({theirs: other(name)} if theirs else {})
    start = resuming.Start(started, changed, 1, 2, files.read_json(started / DATASET))
    if role == "free" or not theirs:
        resuming.refuse_changes(start)
    else:
        with pytest.raises(UserError, match=rf"^run: was started with other settings \({theirs} "):
            resuming.refuse_changes(start)
        resuming.refuse_changes(replace(start, allowed=[name]))
    if role == "never":
        with pytest.raises(UserError, match=rf"^allow_change: {name} can't change within a run"):
            TrainSettings(allow_change=[name])
    else:
        TrainSettings(allow_change=[name])


def test_every_setting_that_differs_is_named_or_counted(started: Path) -> None:
    three = TRAIN.replace(learning_rate=1e-3, per_device_train_batch_size=4, seed=7)
    assert "(learning_rate, per_device_train_batch_size, seed) -- " in refusal(FIRST, three)
    more = three.replace(gradient_accumulation_steps=2, max_steps=9)
    said = refusal(FIRST, more)
    assert "(gradient_accumulation_steps, learning_rate, max_steps, and 2 more) -- " in said
    assert len(said) <= MOST_CHARACTERS
