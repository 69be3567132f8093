"""Checkpoints are complete or absent, whatever happened to their files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.errors import Faults
from neoxkit.runs import checkpoints
from neoxkit.runs.events import append_event

MODEL, SHARD = "model.safetensors", "global_step/shard.pt"


def save(folder: Path, step: int, seal: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / MODEL).write_bytes(b"12345")
    (path / SHARD).write_bytes(b"123")
    if seal:
        checkpoints.seal(path, step=step, num_ranks=1)
        append_event(folder, "checkpoint", step=step)
    return path


def test_a_sealed_checkpoint_is_valid(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    manifest = checkpoints.manifest(path)
    assert (manifest["step"], manifest["num_ranks"]) == (2, 1)
    assert {name: file["size"] for name, file in manifest["files"].items()} == {MODEL: 5, SHARD: 3}
    assert manifest["files"][MODEL]["sha256"] == files.sha256(path / MODEL)
    assert checkpoints.fault(path) is None
    checkpoints.seal(path, step=2)  # a second time: the manifest doesn't list itself
    assert checkpoints.fault(path) is None
    assert checkpoints.newest(tmp_path) == (path, [])


Spoil = Callable[[Path], object]
SPOILS: list[tuple[Spoil, str]] = [
    (lambda p: (p / files.MANIFEST).unlink(), "has no manifest, its save was interrupted"),
    (lambda p: (p / files.MANIFEST).write_text('{"files": {'), "a manifest that can't be read"),
    (lambda p: (p / files.MANIFEST).write_text("[]"), "a manifest that can't be read"),
    (lambda p: (p / files.MANIFEST).write_text('{"files": {"x": 5}}'), "manifest that can't be"),
    (lambda p: (p / MODEL).unlink(), "model.safetensors is missing"),
    (lambda p: (p / MODEL).write_bytes(b"1234"), "has 4 bytes instead of 5"),
    (lambda p: (p / MODEL).write_bytes(b""), "has 0 bytes instead of 5"),
    (lambda p: (p / MODEL).write_bytes(b"12344"), "has changed since it was saved"),
    (lambda p: (p / SHARD).unlink(), "shard.pt is missing"),
    (lambda p: (p / "stale.pt").touch(), "stale.pt is not in its manifest"),
    (lambda p: shutil.rmtree(p / "global_step"), "shard.pt is missing"),
]


@pytest.mark.parametrize(("spoil", "why"), SPOILS)
def test_an_invalid_checkpoint_is_set_aside_and_an_older_one_used(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    good, bad = save(tmp_path, 2), save(tmp_path, 10)
    spoil(bad)
    assert why in (checkpoints.fault(bad) or "")
    checkpoint, aside = checkpoints.newest(tmp_path)
    assert checkpoint == good and not bad.exists()
    assert aside == [line for line in aside if line.startswith("checkpoint-10 ") and why in line]
    assert len(aside) == 1 and aside[0].endswith("it is kept as checkpoint-10.old-1")
    assert (tmp_path / "checkpoint-10.old-1").is_dir()


def test_a_link_is_not_accepted_as_a_checkpoints_file(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (tmp_path / "elsewhere").write_bytes(b"12345")
    (path / MODEL).unlink()
    (path / MODEL).symlink_to(tmp_path / "elsewhere")
    assert checkpoints.fault(path) == "model.safetensors is not a file"


def test_a_quick_check_compares_only_sizes(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (path / MODEL).write_bytes(b"12344")
    assert checkpoints.whole(tmp_path) == [path] and checkpoints.fault(path) is not None


def test_a_run_without_a_valid_checkpoint_is_refused_with_a_line_for_each(tmp_path: Path) -> None:
    for step in (2, 10):
        (save(tmp_path, step) / MODEL).write_bytes(b"12344")
    save(tmp_path, 12, seal=False)
    with pytest.raises(Faults) as refused:
        checkpoints.newest(tmp_path)
    lines = str(refused.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        f"{tmp_path.name}/checkpoint-{step}:" for step in (12, 10, 2)
    ]
    assert "its save was interrupted -- bring it back, or set restart" in lines[0]
    assert all("model.safetensors has changed" in line for line in lines[1:])
    assert len(checkpoints.folders(tmp_path)) == 3  # nothing was set aside


def test_a_run_whose_checkpoints_are_gone_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(save(tmp_path, 2))
    with pytest.raises(Faults, match="its checkpoints are gone -- bring them back, or set restart"):
        checkpoints.newest(tmp_path)


def test_an_interrupted_first_save_is_reported_and_the_run_starts_over(tmp_path: Path) -> None:
    save(tmp_path, 2, seal=False)
    checkpoint, aside = checkpoints.newest(tmp_path)
    assert checkpoint is None
    assert aside == [
        "checkpoint-2 has no manifest, its save was interrupted; it is kept as checkpoint-2.old-1"
    ]
    assert checkpoints.newest(tmp_path) == (None, [])


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (10, 2, 100):
        save(tmp_path, step)
    save(tmp_path, 5, seal=False)
    found = [path.name for path in checkpoints.whole(tmp_path)]
    assert found == ["checkpoint-2", "checkpoint-10", "checkpoint-100"]
    assert checkpoints.saved_step(tmp_path) == 100


def test_only_the_trainers_own_folders_are_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-7.old-1", "checkpoint-best-8", "checkpoint-9x", ".going-checkpoint-7"):
        save(tmp_path, 7).rename(tmp_path / name)
    assert checkpoints.folders(tmp_path) == [] and checkpoints.saved_step(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, [1, 2, 3, 4]), (1, [3, 4]), (2, [3, 4]), (3, [2, 3, 4])]
)
def test_two_complete_checkpoints_are_kept_whatever_the_limit(
    tmp_path: Path, limit: int | None, kept: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    save(tmp_path, 5, seal=False)  # does not count
    checkpoints.rotate(tmp_path, limit)
    assert [checkpoints.step_of(p) for p in checkpoints.whole(tmp_path)] == kept
    assert not list(tmp_path.glob(".going-*"))


@pytest.mark.parametrize(
    ("bests", "kept"),
    [
        ([1, 1, 1, 1, 1], [1, 4, 5]),
        ([1, 2, 2, 2, 5], [2, 4, 5]),  # 4 is resumed from if 5 is damaged
        ([1, 1, 1, 4, 4], [4, 5]),
        ([None, None, None, None, None], [4, 5]),
    ],
)
def test_the_best_of_each_checkpoint_that_is_kept_is_kept(
    tmp_path: Path, bests: list[int | None], kept: list[int]
) -> None:
    for step, best in enumerate(bests, 1):
        checkpoint = save(tmp_path, step, seal=False)
        files.write_json(checkpoint / "trainer_state.json", {"best_global_step": best})
        checkpoints.seal(checkpoint, step=step)
        checkpoints.rotate(tmp_path, 2)
    assert [checkpoints.step_of(p) for p in checkpoints.whole(tmp_path)] == kept


def test_an_interrupted_deletion_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: None)  # killed before the first file
        checkpoints.rotate(tmp_path, 2)
    assert (tmp_path / ".going-checkpoint-1").is_dir()
    assert checkpoints.newest(tmp_path) == (tmp_path / "checkpoint-3", [])
    assert not list(tmp_path.glob(".going-*"))


def test_the_manifest_is_the_last_thing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder is on disk before the manifest gets its name."""
    path, steps = save(tmp_path, 2, seal=False), []
    flush, rename = files.flush, Path.replace
    monkeypatch.setattr(files, "flush", lambda p: (steps.append(p.name), flush(p)))
    monkeypatch.setattr(
        Path, "replace", lambda s, t: (steps.append(f"-> {t.name}"), rename(s, t))[1]
    )
    checkpoints.seal(path)
    at = steps.index("-> manifest.json")
    before, after = steps[:at], steps[at + 1 :]
    assert {MODEL, "shard.pt", "checkpoint-2", "global_step"} <= set(before)
    assert before[-1].startswith(".manifest.json.") and before[-1].endswith(".part")
    assert after == ["checkpoint-2", tmp_path.name]
