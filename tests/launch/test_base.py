"""The base of a training on the hub: a revision becomes a commit once, and the run keeps it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from conftest import BASE, tokenize, train_to_the_end
from conftest import command as command_line
from made_cache import Cache, model_files
from safetensors.torch import load

from neoxkit import files, paths
from neoxkit.cli import main
from neoxkit.errors import UserError
from neoxkit.evaluation import evaluate
from neoxkit.launch import checks, command
from neoxkit.models import hub
from neoxkit.runs import card as run_card
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings

PLACE = "EleutherAI/pythia-9m"


@pytest.fixture
def cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path / "hub", monkeypatch)


def settings(**changes: Any) -> TrainSettings:
    values = {"run": "revised", "dataset": "small", "model_name_or_path": "pythia-9m"}
    return TrainSettings(**{**values, "learning_rate": 1e-4, **changes})


def start(**changes: Any) -> None:
    """Leave what a start leaves, and a saved step."""
    asked = checks.check(settings(**changes))
    asked.folder.mkdir(parents=True)
    files.write_json(asked.folder / ARGUMENTS, asked.arguments)
    (asked.folder / "checkpoint-1").mkdir()


@pytest.mark.parametrize(
    ("changes", "first", "expected"),
    [
        ({"revision": "step1"}, "tiny", "step1"),
        ({}, "tiny", "main"),
        ({"model_name_or_path": ""}, PLACE, "main"),
        ({"model_name_or_path": ""}, f"{PLACE}@step1", "step1"),
        ({"model_name_or_path": "", "revision": "step2"}, f"{PLACE}@step1", "step2"),
        ({}, f"{PLACE}@step1", "main"),  # another model than 01's, as far as 02 says
    ],
)
def test_the_base_is_at_the_revision_that_is_asked_for(
    cache: Cache, changes: dict[str, Any], first: str, expected: str
) -> None:
    commits = {
        revision: cache.add(PLACE, revision, model_files(step))
        for step, revision in enumerate(("main", "step1", "step2"))
    }
    base = command.base_of(settings(run="unborn", **changes), first)
    assert base == f"{PLACE}@{commits[expected]}"
    arguments = command.trainer_arguments(settings(run="unborn", **changes), first)
    assert arguments["base_commit"] == commits[expected]
    assert arguments["revision"] == changes.get("revision", "")
    assert command.base_of(settings(model_name_or_path="tiny")) == "tiny"


def test_02_goes_on_with_the_model_and_revision_of_01(cache: Cache) -> None:
    cache.add(PLACE, "main", model_files(1))
    commit = cache.add(PLACE, "step1", model_files(2))
    tokenize("small.txt", "small-step1", "pythia-9m", revision="step1")
    manifest = files.read_json(paths.tokenized("small-step1") / files.MANIFEST)
    assert (manifest["model_name_or_path"], manifest["revision"]) == ("pythia-9m", "step1")
    card = (paths.tokenized("small-step1") / "README.md").read_text()
    assert "tokenizer of `pythia-9m@step1`" in card
    asked = checks.check(settings(run="from-01", dataset="small-step1", model_name_or_path=""))
    assert asked.arguments["base_commit"] == commit


def test_a_run_keeps_the_commit_of_its_first_start(cache: Cache) -> None:
    old = cache.add(PLACE, "step1", model_files(1))
    main_commit = cache.add(PLACE, "main", model_files(143))
    start(run="keeps-commit", revision="step1")
    assert command.base_of(settings(run="keeps-commit")) == f"{PLACE}@{main_commit}"
    new = cache.add(PLACE, "step1", model_files(2))
    hub.commit.cache_clear()  # as in a new process
    again = {"run": "keeps-commit", "revision": "step1"}
    assert checks.check(settings(**again)).arguments["base_commit"] == old
    restart = checks.check(settings(**again, restart=True))
    assert restart.arguments["base_commit"] == new != old
    for revision in ("", new):
        with pytest.raises(UserError) as refused:
            checks.check(settings(run="keeps-commit", revision=revision))
        said = str(refused.value)
        assert f"(revision step1 -> {revision[:12] or '(empty)'}" in said and "commit" not in said
    with pytest.raises(UserError, match="revision can't change within a run"):
        settings(allow_change=["revision"])


def test_the_settings_and_the_shell_name_the_revision_as_it_was_asked_for(cache: Cache) -> None:
    cache.add(PLACE, "step1", model_files(1))
    asked = settings(run="said", revision="step1")
    arguments = command.trainer_arguments(asked)
    assert command.settings_of(arguments).changed()["revision"] == "step1"
    words = command.shell_command(asked).split()
    assert words[words.index("--revision") + 1] == "step1" and "--base_commit" not in words


def test_the_base_beside_the_tuned_model_is_at_its_commit(cache: Cache, tmp_path: Path) -> None:
    commit = cache.add(PLACE, "step1", model_files(1))
    cache.add(PLACE, "main", model_files(2))
    facts = {"base": "pythia-9m", "base_commit": commit, "from_scratch": False, "precision": "fp32"}
    base = evaluate.load_side(facts, tmp_path, "base")
    wanted = load(model_files(1)["model.safetensors"])["gpt_neox.embed_in.weight"]
    assert base.gpt_neox.embed_in.weight.equal(wanted)


MISTAKES: list[tuple[dict[str, str], str]] = [
    ({"revision": "step9"}, "revision: tiny is on this machine: only models on the hub have"),
    ({"model_name_or_path": "data/models/tiny", "revision": "step9"}, "data/models/tiny is on"),
    (
        {"model_name_or_path": "pythia-9m", "revision": "step9"},
        f"{PLACE}@step9 is not in the cache, and HF_HUB_OFFLINE is set -- unset it, or use a "
        "revision that is here: main",
    ),
    ({"model_name_or_path": "a/b@c"}, "got 'a/b@c' -- give a/b alone, and set revision to c"),
    ({"model_name_or_path": "pythia-9m", "revision": "pickle"}, "-- neoxkit convert "),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("only", [[], ["--only", "02_train"]], ids=["all", "02"])
def test_a_mistake_is_one_line_before_anything_starts(
    cache: Cache, given: dict[str, str], said: str, only: list[str], capsys: pytest.CaptureFixture
) -> None:
    cache.add(PLACE, "main", model_files(1))
    weights = model_files(2)
    cache.add(PLACE, "pickle", weights | {"pytorch_model.bin": weights.pop("model.safetensors")})
    values = {"run": "mistake", "dataset": "small", **given}
    if not only:
        values |= {"train_file": "data/small.txt"}
    flags = [word for pair in values.items() for word in ("-p", *pair)]
    assert main.main(["run", *only, *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert len(captured.err) <= 201


def test_equal_weights_are_named_before_the_start(
    cache: Cache,
) -> None:
    cache.add(PLACE, "main", model_files(143))
    cache.add(PLACE, "step1", model_files(143) | {"README.md": b"step1"})
    cache.add(PLACE, "step2", model_files(2))
    said = f"{PLACE}@step1 has the weights of {PLACE}@main, byte for byte"
    assert command.doubts(settings(revision="step1")) == [said]
    assert command.doubts(settings(revision="step2")) == []
    assert command.doubts(settings(revision="step1", from_scratch=True)) == []
    assert main.main(["fit", "-p", "model_name_or_path", PLACE, "-p", "revision", "step2",
                      "-p", "dataset", "small"]) == 0  # fmt: skip


@pytest.mark.process
def test_a_run_is_repeated_from_its_commit_after_the_branch_has_moved(
    cache: Cache, home: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its files say what it was made of."""
    commit = cache.add(PLACE, "step1", model_files(1))
    cache.add(PLACE, "main", model_files(1) | {"README.md": b"main"})
    sha256 = hashlib.sha256(model_files(1)["model.safetensors"]).hexdigest()
    few = {"max_steps": 2, "num_replies": 0, "revision": "step1"}
    folder = train_to_the_end(BASE.replace(run="from-step1", model_name_or_path=PLACE, **few))
    facts = files.read_json(folder / "FINISHED.json")
    assert (facts["base"], facts["revision"], facts["base_commit"]) == (PLACE, "step1", commit)
    card = run_card.read(folder)
    assert card["base_sha256"]["model.safetensors"] == sha256
    shown = run_card.rows(folder)
    assert dict(shown)["base"].startswith(f"{PLACE} (step1, commit {commit[:12]}): model.safetens")
    assert ("note", f"{PLACE}@step1 has the weights of {PLACE}@main, byte for byte") in shown
    readme = (folder / "model" / "README.md").read_text()
    assert f"Base: `{PLACE}`, revision `step1`, commit `{commit}`.\n" in readme
    assert f"base_model: {PLACE}\n" in readme
    cache.add(PLACE, "step1", model_files(2))
    hub.commit.cache_clear()
    assert main.main(["repeat", "from-step1"]) == 0
    assert "same bytes: model.safetensors" in capsys.readouterr().out


@pytest.mark.process
def test_flags_at_a_shell_keep_the_commit_too(cache: Cache, home: Path) -> None:
    old = cache.add(PLACE, "step1", model_files(1))
    words = ["neoxkit.train", "--dataset", "data/tokenized/small", "--output_dir", "runs/at-shell",
             "--do_train", "--model_name_or_path", "pythia-9m", "--revision", "step1",
             "--max_steps", "4", "--save_steps", "2", "--num_replies", "0"]  # fmt: skip
    first = command_line(*words, cwd=home)
    assert first.returncode == 0, first.stderr
    (home / "runs" / "at-shell" / "FINISHED.json").unlink()
    cache.add(PLACE, "step1", model_files(2))
    again = command_line(*words, cwd=home)
    assert again.returncode == 0, again.stderr
    facts = files.read_json(home / "runs" / "at-shell" / "FINISHED.json")
    assert facts["base_commit"] == old
    cache.add(PLACE, "main", model_files(3))
    (home / "runs" / "at-shell" / "FINISHED.json").unlink()
    other = command_line(*[word for word in words if word not in ("--revision", "step1")], cwd=home)
    assert other.returncode == 2 and "revision step1 -> (empty)" in other.stderr
