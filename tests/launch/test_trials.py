"""Trials: a few steps that leave neither checkpoint nor model."""

from pathlib import Path

import pytest
from conftest import BASE

from neoxkit import files, paths
from neoxkit.errors import UserError
from neoxkit.evaluation import compare_runs
from neoxkit.launch import checks, command, measured, trials
from neoxkit.parallel import silent
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, FINISHED, finished_facts


@pytest.fixture(autouse=True)
def quick(starts_sooner: None) -> None:
    """Start the ranks faster."""


def test_a_probe_leaves_figures_and_nothing_else(home: Path) -> None:
    shown: list[str] = []

    def show(label: str) -> object:
        shown.append(label)
        return silent

    settings = BASE.replace(run="probed", probe_steps=2)
    trials.probe(settings, show)
    folder = paths.run("probed.probe")
    assert shown == ["probe, steps"]
    assert not any(p.name == "model" or p.name.startswith("checkpoint") for p in folder.iterdir())
    assert not list(folder.rglob("*.safetensors"))
    facts = files.read_json(folder / FINISHED)
    assert (facts["step"], facts["model_sha256"]) == (2, {})
    assert facts["memory_gib"] > 0 and facts["eval_loss"] > 0
    assert [e["step"] for e in History.of_run(folder).evals] == [2]  # none of the base
    assert measured.last_run("tiny").run == "probed.probe"
    assert [run.name for run in compare_runs.load_runs(["probed.probe"])] == ["probed.probe"]
    assert "probed.probe" not in [run.name for run in compare_runs.load_runs([])]
    with pytest.raises(UserError, match=r"probed\.probe was a trial: it left no model"):
        finished_facts(folder)
    assert not paths.run("probed").exists()


def test_no_probe_is_run_unless_asked_for(home: Path) -> None:
    trials.probe(BASE.replace(run="unasked"), lambda label: silent)
    assert not paths.run("unasked.probe").exists()


def test_a_trial_is_not_a_setting(home: Path) -> None:
    """Only the trainer's arguments make a training a trial."""
    settings = trials.trial_settings(BASE.replace(run="asked", learning_rate=1e-3), "trial", 2)
    asked = checks.check(settings, trial=True, lr_range_from=1e-7)
    assert asked.arguments["trial"] is True and asked.arguments["lr_range_from"] == 1e-7
    assert command.settings_of(asked.arguments) == settings
    for name in ("trial", "lr_range_from", "dataset_sha256"):
        with pytest.raises(UserError, match=rf"^training_arguments: {name} is "):
            checks.check(settings.replace(training_arguments={name: 1}))


def test_a_trial_with_other_settings_replaces_the_old_trial_but_never_a_run(home: Path) -> None:
    first = trials.trial_settings(BASE.replace(run="again"), "trial", 2)
    assert trials.train(first, silent)
    folder = paths.run("again.trial")
    written = (folder / FINISHED).stat().st_mtime_ns
    trials._forget(first, command.trainer_arguments(first) | {"trial": True})
    assert (folder / FINISHED).stat().st_mtime_ns == written
    other = first.replace(per_device_train_batch_size=2)
    assert trials.train(other, silent)
    assert files.read_json(folder / ARGUMENTS)["per_device_train_batch_size"] == 2
    whole = files.read_json(folder / ARGUMENTS) | {"trial": False}
    files.write_json(folder / ARGUMENTS, whole)
    mine = home / "runs" / "again.probe"
    folder.rename(mine)  # the user's own run with the name of a trial
    with pytest.raises(UserError, match=r"^run: was started with other settings .*trial"):
        trials.probe(BASE.replace(run="again", probe_steps=2), lambda label: silent)
    assert (mine / FINISHED).is_file()
