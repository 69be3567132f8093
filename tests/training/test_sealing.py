"""Each rank hashes its own files of a checkpoint; rank 0 writes the manifest that is always the
same."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from crashes import SHORT, Crashes
from zygote import Sabotage, job

from neoxkit import errors, files, paths
from neoxkit.runs import checkpoints
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import LOG
from neoxkit.training import sealing

STATES = "rng_state_0.pth", "rng_state_1.pth"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of two ranks, not sealed."""
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    for name in (*STATES, "model.safetensors"):
        (path / name).write_bytes(name.encode())
    return path


def hashed(checkpoint: Path) -> list[dict[str, Any]]:
    names = checkpoints.file_names(checkpoint)
    return [
        checkpoints.hash_files(checkpoint, [n for n in names if sealing.writer_of(n) == rank])
        for rank in (0, 1)
    ]


def test_rank_0_waits_for_a_file_that_it_does_not_see_yet(checkpoint: Path) -> None:
    """A network file system shows what another host wrote some time later, perhaps in parts."""
    own, late = hashed(checkpoint), checkpoint / STATES[1]
    data = late.read_bytes()
    late.write_bytes(data[:3])
    threading.Timer(0.3, late.write_bytes, [data]).start()
    sealing._write_manifest(checkpoint, own, {"step": 4})
    assert checkpoints.fault(checkpoint) is None


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_that_never_comes_is_named_with_its_rank(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr(sealing, "SEEN_SECONDS", 0.0)
    own = hashed(checkpoint)
    (checkpoint / STATES[1]).unlink()
    if is_there:
        (checkpoint / STATES[1]).write_bytes(b"123")
    said = (
        rf"^checkpoint-4: {STATES[1]}, written by rank 1 with 15 bytes, "
        rf"{'had 3 bytes' if is_there else 'was not seen'} here for 0 s$"
    )
    with pytest.raises(RuntimeError, match=said):
        sealing._write_manifest(checkpoint, own, {})
    assert not (checkpoint / files.MANIFEST).exists()


def test_a_file_that_no_rank_names_is_refused(checkpoint: Path) -> None:
    own = hashed(checkpoint)
    (checkpoint / "rng_state_2.pth").touch()  # as of a training with more ranks
    with pytest.raises(RuntimeError, match=r"^checkpoint-4: rng_state_2\.pth was written by no"):
        sealing._write_manifest(checkpoint, own, {})


@pytest.mark.parametrize("missing", STATES)
def test_a_checkpoint_without_a_random_state_is_not_sealed(checkpoint: Path, missing: str) -> None:
    (checkpoint / missing).unlink()
    with pytest.raises(RuntimeError, match=f"^checkpoint-4: {missing} was not written$"):
        sealing._write_manifest(checkpoint, hashed(checkpoint), {})


def test_one_rank_needs_no_group(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    (path / "rng_state.pth").write_bytes(b"1")
    sealing.seal(path, lambda: {"step": 4})
    assert checkpoints.fault(path) is None and checkpoints.manifest(path)["step"] == 4


@pytest.mark.process
@pytest.mark.parametrize("lora", [0, 4], ids=["whole", "lora"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_files_name_says_which_rank_writes_it(
    crashes: Crashes, tmp_path: Path, stage: int, lora: int
) -> None:
    """Every file that rank 1 really writes has its number, and no other file."""
    config = files.read_json(paths.root() / "ds_configs" / f"zero{max(stage, 2)}.json")
    config["zero_optimization"]["stage"] = stage
    files.write_json(tmp_path / "config.json", config)
    settings = crashes.settings((2, 2), max_steps=2, save_steps=2, lora_rank=lora)
    settings = settings.replace(ds_config=str(tmp_path / "config.json"))
    listed = tmp_path / "listed"
    plan = Sabotage(rank=1, where="/checkpoint-2/", listed=str(listed))
    assert crashes.zygote.run(job(settings, plan)) == [0, 0]
    folder = paths.run(settings.run)
    names = checkpoints.manifest(folder / "checkpoint-2")["files"]
    numbered = sorted(Path(name).name for name in names if sealing.writer_of(name) == 1)
    assert sorted({*listed.read_text().split()}) == numbered
    assert STATES[1] in numbered
    shutil.rmtree(folder)


@pytest.mark.process
@pytest.mark.parametrize(
    ("stage", "parts"), [(2, ["optim_states"]), (3, ["model_states", "optim_states"])]
)
def test_each_rank_hashes_what_it_wrote_and_the_manifest_is_as_by_one(
    crashes: Crashes, tmp_path: Path, stage: int, parts: list[str]
) -> None:
    settings = crashes.settings((2, stage), **SHORT)
    listed = tmp_path / "listed"
    plan = Sabotage(rank=1, seal="/checkpoint-4/", listed=str(listed))
    assert crashes.zygote.run(job(settings, plan)) == [0, 0]
    kept = {Path(name).name for name in listed.read_text().splitlines()}
    assert kept == {STATES[1], *(f"zero_pp_rank_1_mp_rank_00_{part}.pt" for part in parts)}
    whole = paths.run(settings.run) / "checkpoint-4"
    manifest = checkpoints.manifest(whole)
    assert kept < {Path(name).name for name in manifest["files"]}
    again = tmp_path / "checkpoint-4"
    shutil.copytree(whole, again)
    (again / files.MANIFEST).unlink()
    manifest.pop("files")
    checkpoints.seal(again, **manifest)
    assert (again / files.MANIFEST).read_bytes() == (whole / files.MANIFEST).read_bytes()
    shutil.rmtree(paths.run(settings.run))


@pytest.mark.process
def test_a_file_that_changes_after_its_rank_has_hashed_it_is_found_at_the_next_start(
    crashes: Crashes, tmp_path: Path
) -> None:
    """Rank 0, which writes the manifest, has not read that file."""
    settings = crashes.settings((2, 2), **SHORT)
    listed = tmp_path / "listed"
    plan = Sabotage(seal="/checkpoint-4/", how="altered", where=STATES[1], listed=str(listed))
    assert crashes.zygote.run(job(settings, plan)) == [0, 0]
    assert STATES[0] in (own := listed.read_text().split()) and STATES[1] not in own
    folder = paths.run(settings.run)
    assert checkpoints.fault(folder / "checkpoint-4") == (
        f"{STATES[1]} has changed since it was saved"
    )
    assert checkpoints.fault(folder / "checkpoint-6") is None
    shutil.rmtree(folder)


@pytest.mark.process
@pytest.mark.parametrize("how", ["full", "broken"])
def test_a_rank_that_can_not_hash_its_files_ends_all_in_one_error(
    crashes: Crashes, how: str
) -> None:
    settings = crashes.settings((2, 2), **SHORT)
    codes = crashes.broken(settings, Sabotage(rank=1, seal="/checkpoint-4/", how=how))
    folder = paths.run(settings.run)
    said = [errors.sentence(e) for e in read_events(folder) if e["event"] == "error"]
    log = (folder / LOG).read_text()
    if how == "full":
        assert codes[0] == 2 and "Traceback" not in log
        assert said == [
            "disk: is full (after step 4; step 2 is saved) -- free some space and run it again"
        ]
    else:
        assert codes[0] == 1
        assert said == ["RuntimeError: rank 1: KeyError: 'hashing is broken'"]
        assert "in hashes" in log  # rank 1's own traceback
    assert [c.name for c in checkpoints.whole(folder)] == ["checkpoint-2"]
    assert crashes.resumes(settings) == crashes.expected(settings)
    assert crashes.false_successes == 0
