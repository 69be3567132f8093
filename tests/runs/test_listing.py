"""The status of runs, from their files alone."""

import time
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.cli import terminal
from neoxkit.runs import lock
from neoxkit.runs.events import METRICS, append_event
from neoxkit.runs.folder import ARGUMENTS, FINISHED, all_runs, standing_of

START = {"planned_steps": 100, "resumed_step": 0, "step": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs", "runs/mine"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    folder = tmp_path / "runs" / "mine"
    append_event(folder, "start", **START)
    append_event(folder, "train", step=10, loss=2.5)
    append_event(folder, "eval", step=10, loss=2.25)
    return folder


@pytest.mark.parametrize(
    ("event", "state"),
    [("train", "killed"), ("stop", "stopped"), ("error", "failed"), ("done", "killed")],
)
def test_the_last_event_says_how_a_run_ended(folder: Path, event: str, state: str) -> None:
    append_event(
        folder, event, step=20, loss=1.5, kind="failure", where="", what="it broke", remedy=""
    )
    found = standing_of(folder)
    assert (found.run, found.state, found.step, found.planned) == ("mine", state, 20, 100)
    assert found.eval_loss == 2.25 and found.train_loss == (1.5 if event == "train" else 2.5)
    assert found.says == ("it broke" if event == "error" else "")


def test_a_run_that_finished_broken_does_not_look_like_a_success(folder: Path) -> None:
    append_event(folder, "start", **START, vocabulary=1024)
    for step in (40, 70, 100):
        append_event(folder, "train", step=step, loss=80.0)
    files.write_json(folder / FINISHED, {})
    found = standing_of(folder)
    assert found.state == "finished" and found.says.startswith("warning: the train loss was 80 at")
    assert "mine: warning: the train loss was 80" in terminal.runs_table([found])
    append_event(folder, "error", step=100, kind="failure", where="", what="it broke", remedy="")
    assert standing_of(folder).says == "it broke"
    files.write_json(folder / ARGUMENTS, {"trial": True})
    append_event(folder, "train", step=100, loss=80.0)
    assert standing_of(folder).says == ""  # a range test is meant to break


def test_finished_and_training_runs_are_told_apart(folder: Path) -> None:
    held = lock.hold(folder)
    assert standing_of(folder).state == "training"
    held.close()
    files.write_json(folder / FINISHED, {})
    assert standing_of(folder).state == "finished"


def test_a_trial_is_told_from_a_run(folder: Path) -> None:
    files.write_json(folder / ARGUMENTS, {"trial": True})
    assert "killed (a trial)" in terminal.runs_table([standing_of(folder)])
    files.write_json(folder / ARGUMENTS, {})
    assert "trial" not in terminal.runs_table([standing_of(folder)])


def test_a_resumed_run_has_the_step_it_went_back_to(folder: Path) -> None:
    append_event(folder, "train", step=50, loss=1.0)
    append_event(folder, "start", **START | {"resumed_step": 10, "step": 10})
    assert standing_of(folder).step == 10


def test_the_table_has_every_run_and_the_newest_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "never-started").mkdir()
    second = folder.parent / "second"
    second.mkdir()
    lines = (folder / METRICS).read_text()
    (second / METRICS).write_text(lines)
    later = time.time() + 5
    monkeypatch.setattr(time, "time", lambda: later)
    append_event(second, "error", kind="failure", where="", what="no memory left", remedy="")
    found = all_runs()
    assert [s.run for s in found] == ["second", "mine"]
    header, first, other, says = terminal.runs_table(found).splitlines()
    assert header.split("  ")[0] == "run"
    assert first.split()[:6] == ["second", "failed", "10", "of", "100", "2.5000"]
    assert other.split()[1] == "killed"
    assert says == "second: no memory left"


def test_a_machine_without_runs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    assert terminal.runs_table(all_runs()).startswith("no runs yet")
