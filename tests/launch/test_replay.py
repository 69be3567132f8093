"""A step taken again has the same bits, and a change of one bit is seen."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import reliability
from conftest import BASE, metrics, train_to_the_end
from zygote import Zygote, job

from neoxkit import files, paths
from neoxkit.cli import main as cli
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.launch import replay
from neoxkit.runs import checkpoints, steps
from neoxkit.runs.folder import DATASET

pytestmark = pytest.mark.process

RUN = BASE.replace(run="again", max_steps=10, logging_steps=1, save_steps=4, num_replies=0)
SAVED = "model.safetensors"


@pytest.fixture(scope="module")
def trained(session_home: Path) -> Path:
    """A run of 10 steps with the checkpoints 4, 8 and 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        patch.chdir(session_home)
        return train_to_the_end(RUN)


def test_each_step_is_recorded_with_what_the_training_logged(home: Path, trained: Path) -> None:
    logged = {e["step"]: e for e in metrics(trained) if e["event"] == "train"}
    found = steps.recorded(trained, 1, 99)
    assert [*found] == [*logged] == [*range(1, 11)]
    for number, step in found.items():
        assert step.loss == pytest.approx(logged[number]["loss"], rel=1e-5)
        assert step.grad_norm == pytest.approx(logged[number]["grad_norm"], rel=1e-5)
        assert sum(one.tokens for one in step.conversations) == logged[number]["trained_tokens"]


def test_the_recorded_lines_are_those_of_the_rows(home: Path, trained: Path) -> None:
    """No conversation twice in an epoch, and each with the trained tokens of its row."""
    rows = tokenized.load(paths.tokenized("small"))[0]["train"]
    trained_of = dict(zip(rows["line"][:], rows["trained"][:], strict=True))
    taken = [one for step in steps.recorded(trained, 1, 99).values() for one in step.conversations]
    assert len({one.line for one in taken}) == len(taken) == 80
    assert all(trained_of[one.line] == one.tokens for one in taken)


@pytest.mark.parametrize(("number", "since", "saved"), [(7, 4, None), (10, 8, []), (2, 0, None)])
def test_a_step_taken_again_is_the_same_to_the_bit(
    home: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    since: int,
    saved: list[str] | None,
) -> None:
    """With the threads of then, whatever the environment says now."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    found = replay.replay("again", number)
    assert (found.since, found.again, found.differences) == (since, found.step, {})
    assert found.files == saved and found.is_same
    assert found.again.start.threads == found.step.start.threads != "3"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before
    assert not paths.run("again.step").exists()


def test_one_other_bit_is_seen_and_said(
    home: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    path = trained / steps.FOLDER / "rank-0.jsonl"
    was = path.read_text()
    lines = was.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith('{"step":6,'))
    changed = json.loads(lines[at])
    changed["conversations"][2][1] *= 1 + 2**-52
    lines[at] = json.dumps(changed, separators=(",", ":"))
    path.write_text("\n".join(lines))
    try:
        code = cli.main(["step", "again", "7", "--json"])
    finally:
        path.write_text(was)
    said = json.loads(capsys.readouterr().out)
    assert code == 1 and not said["again"]["same"]
    (only,) = said["again"]["differences"]["6"]
    assert only.startswith("the losses of 1 of 8 conversations")


def test_the_command_names_lines_and_says_what_is_the_same(
    home: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["step", "again", "9", "--list"]) == 0
    listed = capsys.readouterr().out
    step = steps.at(trained, 9)
    source = files.read_json(trained / DATASET)["source"]["path"]
    for one in step.conversations:
        assert f"{source}:{one.line} " in listed
    assert "Taken again" not in listed and "step 9: 8 conversations, loss" in listed
    assert cli.main(["step", "again", "9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Taken again from checkpoint-8: the losses and gradient norms of step 9 are the" in said


def test_other_data_is_refused_before_a_process_starts(
    home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized, "sha256", lambda folder: "other")
    with pytest.raises(UserError, match="was tokenized again after the run started"):
        replay.replay("again", 3)
    assert not paths.run("again.step").exists()


def test_a_damaged_checkpoint_is_passed_over(home: Path, trained: Path) -> None:
    (weights,) = (trained / "checkpoint-4").glob("model*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert replay._before(trained, steps.at(trained, 6)) is None
        assert replay._before(trained, steps.at(trained, 9)) == trained / "checkpoint-8"
    finally:
        weights.write_bytes(whole)
    assert replay._before(trained, steps.at(trained, 6)) == trained / "checkpoint-4"


def test_steps_of_several_settings_are_refused_by_their_cause(home: Path, trained: Path) -> None:
    then = steps.recorded(trained, 5, 7)
    step = then[7]
    replay._refuse_several_starts("again", step, then, 4)
    changed = dataclasses.replace(step.start, threads="9")
    then[6] = dataclasses.replace(then[6], start=changed)
    with pytest.raises(UserError, match="the steps 5 to 7 had several settings, ranks or threads"):
        replay._refuse_several_starts("again", step, then, 4)
    del then[6]
    with pytest.raises(UserError, match="no record of all steps from 5 to 7"):
        replay._refuse_several_starts("again", step, then, 4)


def test_they_are_refused_before_a_process_starts(home: Path, trained: Path) -> None:
    path = trained / steps.FOLDER / "rank-0.jsonl"
    was = path.read_text()
    begun = json.loads(was.split()[0])
    begun["start"] |= {"resumed": 5, "threads": "9"}
    path.write_text(was.replace('{"step":6,', f'{json.dumps(begun)}\n{{"step":6,'))
    try:
        with pytest.raises(UserError, match="the steps 5 to 7 had several settings"):
            replay.replay("again", 7)
    finally:
        path.write_text(was)
    assert not paths.run("again.step").exists()


def test_another_run_of_that_name_is_not_deleted(home: Path, trained: Path) -> None:
    other = paths.run("again.step")
    other.mkdir()
    (other / "theirs").touch()
    try:
        with pytest.raises(UserError, match=r"runs/again\.step is in the way -- rename it"):
            replay.replay("again", 3)
        assert [*other.iterdir()] == [other / "theirs"]
    finally:
        shutil.rmtree(other)


def test_two_at_once_are_refused(home: Path, trained: Path) -> None:
    with replay._alone(trained) as scratch:
        (scratch / "theirs").touch()
        with pytest.raises(UserError, match="another neoxkit step takes a step of again -- wait"):
            replay.replay("again", 3)
        assert (scratch / "theirs").exists()
    assert not scratch.exists()


def test_what_a_killed_one_left_is_replaced(home: Path, trained: Path) -> None:
    """It may have been killed at any time after it made the folder."""
    left = paths.run("again.step")
    left.mkdir()
    (left / replay.MINE).write_text("99999999\n")
    (left / "checkpoint-4").mkdir()
    assert replay.replay("again", 5).is_same and not left.exists()


def test_a_full_disk_is_refused_before_a_process_starts(
    home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 8 would be saved again, step 7 not."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 2**20))
    with pytest.raises(UserError, match=r"another checkpoint-8 needs .* GiB, 0\.000977 are free"):
        replay.replay("again", 8)
    assert not paths.run("again.step").exists()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_after_a_resume_is_the_same(home: Path, zygote: Zygote, num_ranks: int) -> None:
    run = f"again-{num_ranks}"
    settings = RUN.replace(run=run, num_ranks=num_ranks, save_steps=3)
    assert zygote.run(job(settings, until_step=5)) == [75] * num_ranks  # goes back to step 3
    assert zygote.run(job(settings)) == [0] * num_ranks
    found = replay.replay(run, 7)
    assert found.is_same and found.since == 6 and found.step.start.ranks == num_ranks
    assert len(found.step.conversations) == 8 * num_ranks


@pytest.mark.crash
def test_random_steps(home: Path, zygote: Zygote) -> None:
    """From a random earlier checkpoint, one and two ranks, in a run that was stopped once; the
    bytes of the step's own checkpoint are compared as well."""
    same = 0
    dice = random.Random(9)
    for num_ranks in (1, 2):
        settings = RUN.replace(run=f"dice-{num_ranks}", num_ranks=num_ranks, max_steps=40,
                               save_steps=1, save_total_limit=50)  # fmt: skip
        folder = paths.run(settings.run)
        assert zygote.run(job(settings, until_step=dice.randint(10, 30))) == [75] * num_ranks
        assert zygote.run(job(settings)) == [0] * num_ranks
        for _ in range(50):
            number = dice.randint(1, 40)
            since = dice.randint(0, number - 1)
            hidden = [one for one in checkpoints.folders(folder)
                      if since < checkpoints.step_of(one) < number]  # fmt: skip
            away = [one.rename(one.with_name(f"away-{one.name}")) for one in hidden]
            try:
                found = replay.replay(settings.run, number)
            finally:
                for one, name in zip(away, hidden, strict=True):
                    one.rename(name)
            same += found.is_same and found.since == since and found.files == []
    reliability.record(reliability.SERIES[14], f"{same} of 100")
    assert same == 100
