"""A training that stops early, and one that exports the step of its lowest eval loss."""

import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import metrics
from crashes import Crashes
from transformers import EarlyStoppingCallback
from zygote import Sabotage, job

from neoxkit import files, paths
from neoxkit.cli import terminal
from neoxkit.errors import TrainingError
from neoxkit.evaluation import compare_runs
from neoxkit.lab import dashboard, evaluation
from neoxkit.lab import training as lab
from neoxkit.launch import process
from neoxkit.runs import card, checkpoints
from neoxkit.runs.events import History
from neoxkit.runs.folder import FINISHED, early, finished_facts, standing_of
from neoxkit.settings import TrainSettings
from neoxkit.training.trainer import without_improvement

# Only the first evaluation is an improvement: the run ends at step 6, which save_steps and
# logging_steps leave out.
PATIENT = {
    "max_steps": 24, "eval_steps": 2, "save_steps": 4, "early_stopping_patience": 2,
    "early_stopping_threshold": 100.0, "logging_steps": 4,
}  # fmt: skip
# At this rate the eval loss falls up to step 6, and rises then; 6 is no step of save_steps.
BEST = {
    "max_steps": 12, "eval_steps": 2, "save_steps": 5, "learning_rate": 1.0,
    "training_arguments": {"optim": "sgd", "optim_args": "momentum=0.99"},
    "load_best_model_at_end": True,
}  # fmt: skip


def train(crashes: Crashes, settings: TrainSettings) -> Path:
    folder = paths.run(settings.run)
    codes = crashes.zygote.run(job(settings))
    assert not any(codes), (folder / "train.log").read_text()[-2000:]
    return folder


def weights(folder: Path) -> str:
    return files.sha256(folder / "model" / "model.safetensors")


def saved(folder: Path) -> list[int]:
    return [checkpoints.step_of(c) for c in checkpoints.whole(folder)]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_improvements_are_counted_as_transformers_does(threshold: float) -> None:
    chance = random.Random(1)
    for _ in range(200):
        losses = [round(chance.uniform(1, 2), 1) for _ in range(8)]
        theirs = EarlyStoppingCallback(1, threshold)
        args, state = SimpleNamespace(greater_is_better=False), SimpleNamespace(best_metric=None)
        for loss in losses:
            theirs.check_metric_value(args, state, None, loss)
            state.best_metric = min(loss, state.best_metric or loss)
        assert without_improvement(losses, threshold) == theirs.early_stopping_patience_counter


@pytest.fixture(scope="module")
def stopped(crashes: Crashes) -> Path:
    """Train a run that stops early."""
    return train(crashes, crashes.settings((1, 2), **PATIENT))


SCORE = {"loss": 1.0, "perplexity": 2.7, "trained_tokens": 1, "conversations": 1}
SAID = "stopped early at step 6 of 24, no improvement in 2 evaluations"


def test_a_run_without_improvement_stops_early_and_is_finished(stopped: Path) -> None:
    facts = process.attach(stopped.name).check()
    names = ("step", "planned_steps", "stopped_early", "model_step")
    assert [facts[name] for name in names] == [6, 24, 2, 6]
    assert [e["step"] for e in History(metrics(stopped)).evals] == [0, 2, 4, 6]
    assert [e["step"] for e in History(metrics(stopped)).train] == [2, 4, 6]
    assert saved(stopped) == [4, 6]
    assert weights(stopped) == files.sha256(stopped / "checkpoint-6" / "model.safetensors")
    standing = standing_of(stopped)
    assert (standing.state, standing.says) == ("finished", SAID)


def test_it_is_said_wherever_the_run_is_shown(stopped: Path) -> None:
    assert SAID in lab.summary(stopped.name).text
    assert SAID in terminal.summary(None, stopped)
    assert SAID in dashboard.status(History(metrics(stopped)), 0.0, ended=0).text
    assert ("note", SAID) in card.rows(stopped)
    evaluated = {"eval_loss": {"tuned": SCORE}, "training": early(finished_facts(stopped))}
    assert f"The training {SAID}." in evaluation.scores(evaluated).text
    assert f"{stopped.name} {SAID}" in compare_runs.notes([compare_runs.load_run(stopped)])
    assert f"**Training.** {SAID}, " in (stopped / "model" / "README.md").read_text()
    assert "the last step is exported, not the best" in (stopped / "train.log").read_text()


def test_it_is_not_trained_again(crashes: Crashes, stopped: Path) -> None:
    before = (stopped / "metrics.jsonl").read_bytes()
    settings = crashes.settings((1, 2), **PATIENT).replace(run=stopped.name)
    again = process.start(settings)
    assert again.process is None and again.check() == finished_facts(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_no_other_early_end_is_finished(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    facts = finished_facts(stopped) | {"stopped_early": 0}
    files.write_json(tmp_path / "run" / FINISHED, facts)
    with pytest.raises(TrainingError):
        process.Training(tmp_path / "run", None, 0).check()


@pytest.mark.parametrize(
    ("where", "kept"),
    [("/checkpoint-4/", []), ("/checkpoint-6/", [4]), ("/.model.", [4, 6])],
    ids=["before an evaluation that counts", "in the last save", "in the export"],
)
def test_a_run_killed_while_it_waits_stops_at_the_same_step_with_the_same_bytes(
    crashes: Crashes, stopped: Path, where: str, kept: list[int]
) -> None:
    settings = crashes.settings((1, 2), **PATIENT)
    codes = crashes.broken(settings, Sabotage(where=where, at=0))
    folder = paths.run(settings.run)
    assert codes == [-signal.SIGKILL] and saved(folder) == kept
    train(crashes, settings)
    assert weights(folder) == weights(stopped)
    same = ("step", "stopped_early", "tokens", "trained_tokens", "train_loss", "eval_loss")
    assert [finished_facts(folder)[n] for n in same] == [finished_facts(stopped)[n] for n in same]
    start = History(metrics(folder)).start
    assert start["resumed_step"] == (kept or [0])[-1]


@pytest.fixture(scope="module")
def best(crashes: Crashes) -> Path:
    """Train a run whose lowest eval loss is not the last, and which saves at other steps."""
    return train(crashes, crashes.settings((1, 2), **BEST))


def lowest(folder: Path) -> dict[str, Any]:
    evals = [e for e in History(metrics(folder)).evals if e["step"]]  # the base is not saved
    return min(evals, key=lambda e: e["loss"])


def test_the_lowest_eval_loss_is_kept_and_exported(best: Path) -> None:
    facts, at = finished_facts(best), lowest(best)
    assert (facts["step"], facts["model_step"], at["step"]) == (12, 6, 6)
    assert facts["eval_loss"] == at["loss"]
    assert weights(best) == files.sha256(best / "checkpoint-6" / "model.safetensors")
    assert saved(best) == [6, 10, 12]  # save_total_limit is 2
    assert [e["step"] for e in History(metrics(best)).evals] == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("stage", [2, 3])
def test_several_ranks_export_the_same_step(crashes: Crashes, stage: int) -> None:
    """Train at a rate that rises until it is far too high."""
    rising = {"learning_rate": 0.5, "lr_scheduler_type": "constant_with_warmup"}
    settings = crashes.settings((2, stage), **BEST).replace(**rising, warmup_steps=12)
    folder = train(crashes, settings.replace(training_arguments={}))
    step = lowest(folder)["step"]
    assert step < 12 and finished_facts(folder)["model_step"] == step
    kept = folder / f"checkpoint-{step}" / "model.safetensors"
    last = folder / "checkpoint-12" / "model.safetensors"
    assert weights(folder) == files.sha256(kept) != files.sha256(last)


def test_the_exported_step_is_said(best: Path) -> None:
    assert "of step 6, the lowest eval loss" in lab.summary(best.name).text
    said = (best / "model" / "README.md").read_text()
    assert "**Training.** 12 steps, the weights of step 6 (the best), " in said


def test_killed_in_the_export_it_exports_the_same_step(crashes: Crashes, best: Path) -> None:
    settings = crashes.settings((1, 2), **BEST)
    assert crashes.broken(settings, Sabotage(where="/.model.", at=0)) == [-signal.SIGKILL]
    folder = train(crashes, settings)
    assert weights(folder) == weights(best)
    assert finished_facts(folder)["model_step"] == 6


def test_killed_in_the_save_of_a_new_best_the_one_before_is_still_there(
    crashes: Crashes, best: Path
) -> None:
    settings = crashes.settings((1, 2), **BEST)
    plan = Sabotage(where="/checkpoint-6/", at=1, how="inside")
    assert crashes.broken(settings, plan) == [-signal.SIGKILL]
    folder = paths.run(settings.run)
    assert saved(folder) == [4, 5] and checkpoints.best_step(folder / "checkpoint-5") == 4
    assert weights(train(crashes, settings)) == weights(best)


def test_a_best_step_that_is_damaged_is_not_exported(crashes: Crashes, best: Path) -> None:
    settings = crashes.settings((1, 2), **BEST)
    crashes.broken(settings, Sabotage(where="/.model.", at=0))
    folder = paths.run(settings.run)
    shutil.rmtree(folder / "checkpoint-6")
    assert crashes.zygote.run(job(settings)) == [2]
    said = (folder / "train.log").read_text()
    assert "error: load_best_model_at_end: checkpoint-6: " in said
    without = {"load_best_model_at_end": False, "allow_change": ["load_best_model_at_end"]}
    train(crashes, settings.replace(**without))  # as the remedy says
    assert finished_facts(folder)["model_step"] == 12
