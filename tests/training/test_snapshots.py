"""Snapshots: which steps have one, what it holds, and that a killed run loses none."""

from pathlib import Path

import pytest
import reliability
from conftest import BASE
from crashes import SHORT, Crashes
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from zygote import Sabotage, job

from neoxkit import files, paths
from neoxkit.evaluation import evaluate
from neoxkit.launch import process
from neoxkit.runs import checkpoints, snapshots
from neoxkit.settings import EvaluateSettings

pytestmark = pytest.mark.process

WEIGHTS = "model.safetensors"
KEPT = BASE.replace(snapshots=True, max_steps=10, save_steps=4, eval_steps=10, num_replies=0)


def train(run: str, **changes: object) -> Path:
    training = process.start(KEPT.replace(run=run, **changes))
    assert training.process
    training.process.wait()
    training.check()
    return paths.run(run)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def kept(session_home: Path) -> Path:
    """Return a run with snapshots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        return train("snapshots")


def test_the_weights_of_powers_of_two_are_kept_and_take_little_room(kept: Path) -> None:
    found = snapshots.by_step(kept)
    assert [*found] == [0, 1, 2, 4, 8]
    whole = num_bytes(checkpoints.whole(kept)[-1])
    assert max(num_bytes(folder) for folder in found.values()) < 0.35 * whole
    assert not [*(kept / snapshots.FOLDER).rglob("*.bin")]


def test_a_snapshot_is_a_model_as_it_was_at_its_step(kept: Path, home: Path) -> None:
    found = snapshots.by_step(kept)
    for step in (4, 8):
        saved = load_file(kept / f"checkpoint-{step}" / WEIGHTS)
        own = load_file(found[step] / WEIGHTS)
        assert own.keys() == saved.keys()
        assert all(own[name].equal(saved[name]) for name in own)
    first, later = (AutoModelForCausalLM.from_pretrained(found[step]) for step in (0, 4))
    assert not first.get_input_embeddings().weight.equal(later.get_input_embeddings().weight)


def test_a_run_that_is_stopped_and_resumed_has_the_same_snapshots(kept: Path, home: Path) -> None:
    """It is stopped when it has taken step 6, which is saved; 8 comes after the resume."""
    settings = KEPT.replace(run="resumed", max_steps=10, logging_steps=1)
    training = process.start(settings)
    while not snapshots.folder_of(training.folder, 4).exists():
        assert training.poll() is None
    training.interrupt()
    assert training.process
    training.process.wait()
    folder = train("resumed", logging_steps=1)
    for step, path in snapshots.by_step(kept).items():
        own = snapshots.folder_of(folder, step)
        assert files.sha256(own / WEIGHTS) == files.sha256(path / WEIGHTS)


WRITTEN = "/snapshots/.step-4."  # where a snapshot is written before it gets its place


def killed(crashes: Crashes, kind: tuple[int, int], at: int, how: str) -> dict[str, str]:
    """Return the hashes of the weights of a run that was killed at a write of a snapshot, if at
    any, and went on; by their folders."""
    settings = crashes.settings(kind, **SHORT, snapshots=True)
    folder = paths.run(settings.run)
    if at >= 0:
        crashes.broken(settings, Sabotage(where=WRITTEN, at=at, how=how))
        assert checkpoints.saved_step(folder) == 2
    assert not any(crashes.zygote.run(job(settings)))
    weights = [*snapshots.by_step(folder).values(), folder / "model"]
    return {path.name: files.sha256(path / WEIGHTS) for path in weights}


def num_writes(crashes: Crashes, kind: tuple[int, int]) -> int:
    """Return in how many writes a snapshot is made."""
    settings = crashes.settings(kind, **SHORT, snapshots=True)
    listed = paths.run(settings.run) / "listed"
    crashes.zygote.run(job(settings, Sabotage(where=WRITTEN, listed=str(listed))))
    assert WEIGHTS in listed.read_text().split()
    return len(listed.read_text().split())


def test_a_run_killed_in_a_snapshot_loses_none(crashes: Crashes) -> None:
    undisturbed = killed(crashes, (1, 2), -1, "")
    assert [*undisturbed] == ["step-0", "step-1", "step-2", "step-4", "model"]
    assert killed(crashes, (1, 2), 1, "inside") == undisturbed
    assert crashes.false_successes == 0


@pytest.mark.crash
def test_every_write_of_a_snapshot(crashes: Crashes) -> None:
    same = total = 0
    for kind in ((1, 2), (2, 3)):
        undisturbed = killed(crashes, kind, -1, "")
        for at in range(num_writes(crashes, kind)):
            for how in ("before", "inside"):
                same += killed(crashes, kind, at, how) == undisturbed
                total += 1
    reliability.record(reliability.SERIES[17], f"{same} of {total}")
    assert same == total and crashes.false_successes == 0


def test_ranks_that_share_the_weights_out_keep_whole_ones(kept: Path, home: Path) -> None:
    folder = train("shared", num_ranks=2, ds_config="zero3", per_device_train_batch_size=4)
    whole = load_file(snapshots.folder_of(kept, 0) / WEIGHTS)
    own = load_file(snapshots.folder_of(folder, 0) / WEIGHTS)
    assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in whole.items()}
    assert all(own[name].equal(whole[name]) for name in own)


def test_an_evaluation_scores_every_snapshot(kept: Path, home: Path) -> None:
    pair = evaluate.prepare(EvaluateSettings(run=kept.name))
    for which in evaluate.MODELS:
        pair.examine(which)
    assert [*pair.losses_by_step()] == [0, 1, 2, 4, 8, 10]
