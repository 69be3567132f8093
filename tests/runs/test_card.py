"""The run card: a run's inputs and results."""

import json
import subprocess
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.runs import card as run_card
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a git checkout with one commit, like the kit's own."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "code.py").write_text("1\n")
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    commit(tmp_path)
    monkeypatch.setattr(run_card, "CODE", tmp_path)
    return tmp_path


def commit(checkout: Path) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["add", "."], [*name, "commit", "-qm", "a commit"]):
        subprocess.run(["git", "-C", str(checkout), *words], check=True)


def test_the_commit_and_what_was_changed_since(checkout: Path) -> None:
    found = run_card.code()
    assert found["clean"] and not found["changed"] and len(found["commit"]) == 40
    (checkout / "mine.txt").write_text("a person's own conversations are no code\n")
    assert run_card.code() == found
    (checkout / "lib" / "code.py").write_text("2\n")
    (checkout / "lib" / "new.py").write_text("3\n")
    assert run_card.code() == found | {"clean": False, "changed": ["lib/code.py", "lib/new.py"]}


def save(path: Path, code: str, parameters: str = "seed = 1", output: str = "") -> None:
    """Write a notebook as JupyterLab saves it."""
    cells = [
        {"source": parameters, "metadata": {"tags": ["parameters"]}, "outputs": []},
        {"source": code, "metadata": {}, "outputs": [{"text": output}] if output else []},
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": [{"cell_type": "code", **cell} for cell in cells]}))


def test_saved_parameters_and_outputs_are_not_a_code_change(checkout: Path) -> None:
    own = checkout / "notebooks" / "02_train.ipynb"
    save(own, "train()")
    commit(checkout)
    clean = run_card.code()
    assert clean["clean"]
    save(own, "train()", parameters="seed = 2  # and a private question", output="loss 1.2")
    assert own.read_text() != subprocess.check_output(
        ["git", "-C", checkout, "show", "HEAD:notebooks/02_train.ipynb"], text=True
    )
    assert run_card.code() == clean
    changed = clean | {"clean": False, "changed": ["notebooks/02_train.ipynb"]}
    save(own, "train()\nplot_of_mine()")
    assert run_card.code() == changed
    own.write_text("<<<<<<< HEAD")
    assert run_card.code() == changed
    own.unlink()
    assert run_card.code() == changed


def test_a_notebook_that_is_not_committed_counts_as_changed_code(checkout: Path) -> None:
    save(checkout / "notebooks" / "02_train.ipynb", "train()")
    commit(checkout)
    for name in ("talks.txt", "my talks.jsonl"):
        (checkout / "notebooks" / name).write_text("uploaded in JupyterLab: no code\n")
    assert run_card.code()["clean"]
    save(checkout / "notebooks" / "mine.ipynb", "train()")
    assert run_card.code()["changed"] == ["notebooks/mine.ipynb"]


@pytest.mark.parametrize("git", [True, False])
def test_without_a_checkout_or_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: bool
) -> None:
    monkeypatch.setattr(run_card, "CODE", tmp_path)
    if not git:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert run_card.code() == {"commit": None, "clean": None, "changed": []}


def test_every_start_is_added_and_the_base_is_hashed_once(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "notes.txt"):
        (base / name).write_text(name)
    run_card.begin(folder, 1, {"run": "run"}, base)
    append_event(folder, "train", step=1)  # it has begun
    (base / "config.json").write_text("changed since")
    run_card.begin(folder, 1, {"run": "another"}, base)
    run_card.finish(folder, {"step": 8})
    card = run_card.read(folder)
    assert card["base_sha256"] == {
        name: files.sha256(base / name) if name != "config.json" else card["base_sha256"][name]
        for name in ("config.json", "model.safetensors")
    }
    assert card["base_sha256"]["config.json"] != files.sha256(base / "config.json")
    assert (card["run"], len(card["starts"]), card["results"]) == ("run", 2, {"step": 8})
    assert run_card.differences(card, run_card.this_start()) == []


def test_a_run_without_a_step_gets_the_card_of_its_next_start(tmp_path: Path) -> None:
    run_card.begin(tmp_path, 1, {"settings": "too large"}, tmp_path)
    run_card.begin(tmp_path, 1, {"settings": "smaller"}, tmp_path)
    card = run_card.read(tmp_path)
    assert (card["settings"], len(card["starts"])) == ("smaller", 2)


def test_differences_from_the_last_start_are_named(tmp_path: Path) -> None:
    run_card.begin(tmp_path, 1, {}, tmp_path)
    card = run_card.read(tmp_path)
    card["starts"][-1]["versions"]["torch"] = "1.0"
    card["starts"][-1]["machine"]["cpu"] = "Z80"
    now = run_card.this_start()
    assert run_card.differences(card, now) == [
        f"versions torch: 1.0 -> {now['versions']['torch']}",
        f"machine cpu: Z80 -> {now['machine']['cpu']}",
    ]


def test_a_run_without_a_card_says_so(tmp_path: Path) -> None:
    assert run_card.read(tmp_path) == {}
    assert run_card.rows(tmp_path) == [("run card", "none: the run has not begun")]


@pytest.mark.parametrize(
    ("text", "num_ranks", "fits"), [("{}", 2, True), ('{"seed": 8}', 2, False), ("{}", 1, False)]
)
def test_announced_settings_hold_only_for_their_arguments_and_ranks(
    tmp_path: Path, text: str, num_ranks: int, fits: bool
) -> None:
    """They don't after the file was edited, or with another `--num_gpus` at a shell."""
    said = {"settings": {"seed": 7}, "commands": {"repeat": "neoxkit repeat mine"}}
    (tmp_path / ARGUMENTS).write_text("{}")
    run_card.announce(tmp_path, 2, said)
    assert run_card.read(tmp_path) == {}  # it has not begun
    (tmp_path / ARGUMENTS).write_text(text)
    for _ in range(2):  # a start that died before its first step announces nothing again
        run_card.begin(tmp_path, num_ranks, {"run": "mine"}, tmp_path)
        card = run_card.read(tmp_path)
        assert {k: card[k] for k in said} == (said if fits else {k: {} for k in said})
