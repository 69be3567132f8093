"""Failures explained in one line; all others keep their traceback."""

import errno
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neoxkit.runs import checkpoints
from neoxkit.runs.events import append_event
from neoxkit.training import failures

PARSED = SimpleNamespace(
    training=SimpleNamespace(
        to_dict=lambda: {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    )
)
HALF = "set per_device_train_batch_size 8 and gradient_accumulation_steps 2 (the same steps)"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    append_event(tmp_path, "start", step=0)
    append_event(tmp_path, "train", step=7)
    (tmp_path / "checkpoint-4").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-4")
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
         f"memory: ran out (after step 7; step 4 is saved) -- {HALF}"),
        (MemoryError(), f"memory: ran out (after step 7; step 4 is saved) -- {HALF}"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
         f"memory: ran out (after step 7; step 4 is saved) -- {HALF}"),
        (Exception("Current loss scale already at minimum - cannot decrease scale anymore."),
         "precision: the loss scale of fp16 is at its minimum (after step 7; step 4 is saved) -- "
         "use bf16 or fp32, or a lower learning_rate"),
        (OSError(errno.ENOSPC, "No space left on device"),
         "disk: is full (after step 7; step 4 is saved) -- free some space and run it again"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"),
         "disk: is full (after step 7; step 4 is saved) -- free some space and run it again"),
    ],
)  # fmt: skip
def test_a_foreseen_failure_is_one_line(folder: Path, fault: Exception, said: str) -> None:
    assert str(failures.explain(fault, PARSED, folder)) == said


def test_a_failed_write_without_a_reason_is_explained_by_a_full_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")
    assert failures.explain(fault, PARSED, folder) is None
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: Usage(9, 9, 1000))
    assert str(failures.explain(fault, PARSED, folder)).startswith("disk: is full")
    assert failures.explain(KeyError("x"), PARSED, folder) is None


def test_only_known_facts_are_reported(folder: Path, tmp_path: Path) -> None:
    assert failures.explain(RuntimeError("shapes do not match"), PARSED, folder) is None
    assert failures.explain(MemoryError(), None, None) is None
    (tmp_path / "new").mkdir()
    new = failures.explain(MemoryError(), PARSED, tmp_path / "new")
    assert str(new) == f"memory: ran out (nothing is saved yet) -- {HALF}"
