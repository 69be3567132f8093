"""A real training under a lease: it goes on under a later attempt, and the earlier one writes
nothing more."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_SECONDS
from crashes import SHORT, Crashes
from transformers import Trainer
from zygote import Job, Sabotage, job

from neoxkit import files, paths
from neoxkit.errors import FENCED
from neoxkit.runs import card as run_card
from neoxkit.runs import checkpoints, lease, lock
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import LOG, standing_of, state_of
from neoxkit.runs.lease import Lease, Token
from neoxkit.settings import TrainSettings
from neoxkit.training.trainer import KitTrainer

pytestmark = pytest.mark.process


def under(text: str, settings: TrainSettings, sabotage: Sabotage | None = None) -> Job:
    """Return a job whose ranks have this token."""
    made = job(settings, sabotage)
    made.environment, made.grace = {lease.VARIABLE: text}, PATIENCE_SECONDS / 2
    return made


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a run, but for its log, to which the ranks' output goes."""
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != LOG}


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_fenced_training_leaves_every_byte_to_the_later_attempt(
    crashes: Crashes, tmp_path: Path, ranks: int
) -> None:
    """All ranks stand in the step after the first checkpoint while the run is taken over, with a
    save ahead of them."""
    settings = crashes.settings((ranks, 2), **SHORT)
    folder, listed = paths.run(settings.run), tmp_path / "waits"
    plan = Sabotage(rank=-1, at=3, how="waits", listed=str(listed))
    crashes.zygote.begin(under("slurm 7 0", settings, plan))
    wait_for(*(Path(f"{listed}.{rank}") for rank in range(ranks)))
    assert standing_of(folder).state == "training" and lock.locked_by(folder) == lock.UNKNOWN
    later = Lease(folder, Token.of("slurm 7 1"))
    later._over.set()  # not renewed: its bytes stay the same
    later.take()
    lock.ask_to_stop(folder)  # of the later attempt
    before = bytes_of(folder)
    Path(f"{listed}.go").touch()
    assert crashes.zygote.end() == [FENCED] * ranks
    assert bytes_of(folder) == before
    assert [e["event"] for e in read_events(folder)][-1] == "checkpoint"
    (line,) = [x for x in (folder / LOG).read_text().splitlines() if "fenced" in x]
    assert line == (
        f"fenced: {folder.name} is trained by slurm job 7, restart 1 on {lease.platform.node()} "
        "now; this training ends without writing anything more"
    )
    assert "Traceback" not in (folder / LOG).read_text()
    later.release()
    lock.answer_stop(folder)
    assert [c.name for c in checkpoints.whole(folder)] == ["checkpoint-2"]
    assert crashes.zygote.run(under("slurm 7 2", settings)) == [0] * ranks
    assert state_of(folder) == "finished" and not (folder / lease.FILE).exists()
    assert [e["resumed_step"] for e in read_events(folder) if e["event"] == "start"] == [0, 2]
    assert not (folder / lock.LOCK).exists()
    sha256 = files.sha256(folder / "model" / "model.safetensors")
    assert sha256 == crashes.expected(settings)
    shutil.rmtree(folder)


def test_a_run_whose_lease_is_held_is_refused_in_every_rank_and_unchanged(
    crashes: Crashes,
) -> None:
    settings = crashes.settings((2, 2), **SHORT)
    folder = paths.run(settings.run)
    made = under("slurm 8 0", settings)
    held = Lease(folder, Token.of("slurm 7 0"))
    held.take()
    before = set(bytes_of(folder))
    assert crashes.zygote.run(made) == [2, 2]
    assert set(bytes_of(folder)) == before and not held.is_lost()
    (line,) = [x for x in (folder / LOG).read_text().splitlines() if "error: " in x]
    assert line.startswith(f"error: run: {folder.name} is training now (slurm job 7 on ")
    held.release()
    shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["/checkpoint-4/", "/.model."], ids=["save", "export"])
def test_a_training_that_is_fenced_inside_a_save_makes_nothing_count(
    crashes: Crashes, where: str
) -> None:
    """The files that it was writing may be there; no manifest, no model, no event."""
    settings = crashes.settings((1, 2), **SHORT)
    folder = paths.run(settings.run)
    plan = Sabotage(where=where, at=0, how="fenced")
    assert crashes.zygote.run(under("slurm 7 0", settings, plan)) == [FENCED]
    assert Token("slurm", "7", 1) == lease.holder(folder).token
    told = ["checkpoint-2"] if where == "/checkpoint-4/" else [f"checkpoint-{n}" for n in (2, 4, 6)]
    assert [c.name for c in checkpoints.whole(folder)] == told[-2:]  # save_total_limit is 2
    assert [e["folder"] for e in read_events(folder) if e["event"] == "checkpoint"] == told
    assert not (folder / "model").exists() and state_of(folder) == "started"
    assert "results" not in run_card.read(folder)
    assert read_events(folder)[-1]["event"] in ("train", "checkpoint")
    assert crashes.zygote.run(under("slurm 7 2", settings)) == [0]
    sha256 = files.sha256(folder / "model" / "model.safetensors")
    assert sha256 == crashes.expected(settings)
    shutil.rmtree(folder)


def test_a_save_does_not_begin_after_the_run_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation, which takes long, may lie between the step's check and its save."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "_mine", None)
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    begun: list[Path] = []
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *_: begun.append(tmp_path))
    trainer = KitTrainer.__new__(KitTrainer)
    trainer.args = SimpleNamespace(output_dir=str(tmp_path))
    lease.take(tmp_path)
    trainer._save_checkpoint(None, None)
    assert len(begun) == 1
    later = Lease(tmp_path, Token.of("slurm 7 1"))
    later.take()
    with pytest.raises(lease.Lost):
        trainer._save_checkpoint(None, None)
    assert len(begun) == 1
    lease.release()
    later.release()
