"""The needs of a training against known figures, and the refusals."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.machine import GIB
from neoxkit.models import memory
from neoxkit.models.memory import Job
from neoxkit.runs import checkpoints

BILLION = 10**9
Usage = namedtuple("Usage", "total used free")
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}


def job(num_parameters: int, num_ranks: int, stage: int, **changes: Any) -> Job:
    """Make a training of all weights in fp32 on a CPU, unless changed; `zero` adds to the stage."""
    facts = {"width": 8, "layers": 1, "vocabulary": 16, "half": False, "on_gpu": False,
             "checkpointing": False, "num_trained": num_parameters} | changes  # fmt: skip
    facts["zero"] = {"stage": stage, **changes.get("zero", {})}
    return Job(num_parameters=num_parameters, num_ranks=num_ranks, **facts)


def test_bytes_per_weight_by_stage_and_precision() -> None:
    def rank(stage: int, **changes: Any) -> dict[str, float]:
        return job(GIB, 4, stage, **changes).least_gib()

    assert rank(0) == {"weights": 4, "gradients": 4, "optimizer": 12}
    assert rank(1, half=True) == {"weights": 2, "gradients": 2, "optimizer": 3}
    assert rank(2, half=True) == {"weights": 2, "gradients": 1, "optimizer": 3}
    on_gpu = {"half": True, "on_gpu": True}
    assert rank(2, **on_gpu) == {"weights": 2, "gradients": 0.5, "optimizer": 3}
    assert rank(3, **on_gpu) == {"weights": 0.5, "gradients": 0.5, "optimizer": 3}
    offloaded = rank(3, half=True, on_gpu=True, zero=OFFLOADED)
    assert offloaded == {"weights": 0, "gradients": 0, "optimizer": 0}


def test_a_20b_model_in_bf16_needs_what_the_papers_say() -> None:
    large = job(20 * BILLION, 8, 3, half=True, on_gpu=True)
    assert large.model_gib() == pytest.approx(37.3, abs=0.1)
    assert large.checkpoint_gib() == pytest.approx(20 * 14 / 1.0737, rel=1e-3)
    assert sum(large.least_gib().values()) == pytest.approx(37.3, abs=0.1)  # 16 bytes over 8 ranks


def test_the_hosts_memory() -> None:
    on_cpu = job(GIB, 2, 2)
    assert on_cpu.host_gib() == {"loading": 8, "training": 2 * (4 + 2 + 6)}
    assert job(GIB, 4, 2, half=True).host_gib()["loading"] == 8  # read in the training's precision
    assert job(GIB, 1, 2, half=True, from_scratch=True).host_gib()["loading"] == 4  # made in fp32
    on_gpu = job(GIB, 4, 3, half=True, on_gpu=True, zero=OFFLOADED)
    assert on_gpu.host_gib() == {"loading": 4, "offloading": 16}


def test_a_step_that_is_taken_twice_needs_its_beginning_once_more() -> None:
    """The weights, shared out under ZeRO 3 alone, and 12 bytes of each for the optimizer."""
    plain, verifies = job(GIB, 2, 2), job(GIB, 2, 2, verifies=True)
    assert verifies.host_gib()["training"] - plain.host_gib()["training"] == 2 * (4 + 12 / 2)
    assert verifies.rank_gib() == {**plain.rank_gib(), "copy": 4 + 12 / 2}
    on_gpu = {"half": True, "on_gpu": True}
    plain, verifies = (job(GIB, 4, 3, **on_gpu, verifies=v) for v in (False, True))
    assert verifies.host_gib() == {**plain.host_gib(), "verifying": 4 * (2 + 12) / 4}
    assert verifies.rank_gib() == plain.rank_gib()


def test_hosts_share_out_what_their_ranks_hold() -> None:
    """Each of 4 hosts loads for its own 8 ranks, and holds a quarter of what is offloaded."""
    stage2 = job(GIB, 32, 2, half=True, on_gpu=True, zero=OFFLOADED, num_nodes=4)
    assert stage2.host_gib() == {"loading": 2 * 8, "offloading": 16 / 4}
    on_cpu = job(GIB, 4, 2, num_nodes=2)
    assert on_cpu.host_gib() == {"loading": 4 * 2, "training": 2 * (4 + 1 + 3)}


@pytest.mark.parametrize(
    ("limit", "there", "more"),
    [(2, 0, 3), (1, 0, 3), (5, 0, 6), (None, 0, 3), (2, 1, 2), (2, 9, 1)],
)
def test_the_disk_must_hold_the_kept_checkpoints_the_next_and_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, there: int, more: int
) -> None:
    for step in range(there):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}")
    one = job(GIB, 1, 2)  # checkpoints of 20 GiB, a model of 4
    need = 20 * more + 4
    free = [need * GIB]
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
    memory.check_disk(tmp_path, one, limit)
    free[0] -= GIB
    with pytest.raises(UserError) as refused:
        memory.check_disk(tmp_path, one, limit)
    assert str(refused.value).startswith(
        f"disk: {more} checkpoints and the model need {need} GiB, but {need - 1} are free -- "
    )
    assert ("set save_total_limit 2" in str(refused.value)) == (limit == 5)


def test_the_disk_must_hold_the_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, free = job(GIB, 1, 2), [84.0 * GIB]  # as above: 3 x 20 + 4, and 5 snapshots of 4
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
    memory.check_disk(tmp_path, one, 2, snapshots=5)
    free[0] -= GIB
    with pytest.raises(UserError, match="3 checkpoints, 5 snapshots and the model need 84 GiB"):
        memory.check_disk(tmp_path, one, 2, snapshots=5)


def test_the_hosts_memory_must_hold_the_larger_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_gib", lambda: 24.0)
    memory.check_host(job(GIB, 2, 2))
    monkeypatch.setattr(machine, "available_gib", lambda: 23.0)
    with pytest.raises(UserError) as refused:
        memory.check_host(job(GIB, 2, 2))
    assert str(refused.value) == (
        "memory: training 1,073,741,824 weights needs 24 GiB, 23 are free -- "
        "use a smaller model, fewer ranks, or zero3"
    )


def test_a_gpu_must_hold_weights_gradients_and_optimizer() -> None:
    one = job(GIB, 1, 2, half=True, on_gpu=True)
    said = (
        "a GPU needs 16.0 GiB (weights 2.0, gradients 2.0, optimizer 12.0) besides the activations"
    )
    assert memory.check_gpu(one, 16.0) == f"{said}, and has 16.0"
    with pytest.raises(UserError) as refused:
        memory.check_gpu(one, 15.9)
    assert str(refused.value).startswith(f"ds_config: {said}, and has 15.9 -- ")


def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "memory.max")
    all_of_it = machine.available_gib()
    assert all_of_it == pytest.approx(psutil.virtual_memory().available / GIB, rel=0.1)
    (tmp_path / "memory.current").write_text(f"{GIB // 8}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_gib() == pytest.approx(all_of_it, rel=0.1)
    (tmp_path / "memory.max").write_text(f"{GIB // 4}\n")
    assert machine.available_gib() == 0.125


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 3},
         "set per_device_train_batch_size 8 and gradient_accumulation_steps 6 (the same steps)"),
        ({"per_device_train_batch_size": "4"},
         "set per_device_train_batch_size 2 and gradient_accumulation_steps 2 (the same steps)"),
        ({"per_device_train_batch_size": 1}, "set gradient_checkpointing (the same steps)"),
        ({"per_device_train_batch_size": 3}, "set gradient_checkpointing (the same steps)"),
        ({"per_device_train_batch_size": 1, "gradient_checkpointing": True},
         "use zero3_offload, a smaller block_size, or a smaller model"),
    ],
)  # fmt: skip
def test_half_the_memory_at_the_same_effective_batch(arguments: dict, remedy: str) -> None:
    assert memory.half_the_memory(arguments) == remedy


@pytest.mark.parametrize(("on_gpu", "offloads"), [(True, True), (False, False)])
def test_only_gpus_offload(on_gpu: bool, offloads: bool) -> None:
    plain, offloaded = (job(7, 2, 3, on_gpu=on_gpu, zero=zero) for zero in ({}, OFFLOADED))
    assert (offloaded.rank_gib() != plain.rank_gib()) == offloads
    if offloads:
        assert {name for name, gib in offloaded.rank_gib().items() if gib} == {
            "gathered", "buffers", "libraries",
        }  # fmt: skip
        assert plain.host_gib()["offloading"] == 0 < offloaded.host_gib()["offloading"]
