"""A start at a shell records its flags, and a later one refuses others."""

import shutil
from pathlib import Path

import pytest
from conftest import tokenize

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS, is_trial
from neoxkit.training import arguments, resume


@pytest.fixture
def folder(home: Path) -> Path:
    """Make a run that was started with flags, on its own dataset, and has made a step."""
    tokenize("small.txt", "shell")
    folder = paths.run("by-flags")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start(folder)
    append_event(folder, "train", step=5)
    return folder


def start(folder: Path, *flags: str) -> None:
    """Do what every rank does first, with the flags of the README's command."""
    basic = ["--output_dir", str(folder), "--do_train", "--dataset", "data/tokenized/shell"]
    parsed = arguments.parse([*basic, *flags])
    manifest = tokenized.load_manifest(paths.tokenized("shell"))
    parsed.kit.dataset_sha256 = tokenized.sha256(paths.tokenized("shell"))
    resume.check_start(folder, parsed, manifest)
    resume.keep_manifest(folder, manifest, parsed.kit.allow_change)


def test_flags_are_kept_with_their_types(folder: Path) -> None:
    kept = files.read_json(folder / ARGUMENTS)
    assert (kept["learning_rate"], kept["trial"], kept["allow_change"]) == (5e-5, False, [])
    assert kept["dataset_sha256"] == tokenized.sha256(paths.tokenized("shell"))
    assert not is_trial(folder)


def test_the_same_flags_resume_and_others_are_refused_and_not_kept(folder: Path) -> None:
    kept = (folder / ARGUMENTS).read_bytes()
    start(folder)
    with pytest.raises(UserError, match=r"other settings \(learning_rate 5e-05 -> 0\.0001\)"):
        start(folder, "--learning_rate", "1e-4")
    assert (folder / ARGUMENTS).read_bytes() == kept
    start(folder, "--learning_rate", "1e-4", "--allow_change", "learning_rate")
    assert files.read_json(folder / ARGUMENTS)["learning_rate"] == 1e-4


def test_flags_do_not_resume_on_a_dataset_that_was_replaced(folder: Path) -> None:
    tokenize("small.txt", "shell", block_size=100)
    with pytest.raises(UserError, match=r"^run: by-flags was trained on other data \(block_size"):
        start(folder)
    start(folder, "--allow_change", "dataset")
