"""What a precision of auto means on a CPU, and that a run keeps it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BASE, losses, metrics
from zygote import Zygote, job

from neoxkit import files, machine, paths
from neoxkit.launch import command
from neoxkit.models import flops, loading
from neoxkit.runs.folder import finished_facts
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments, precision

WIDTH = 128  # of the built-in model


def settled(
    monkeypatch: pytest.MonkeyPatch, gain: float, has_bf16: bool = True, narrowest: int = WIDTH
) -> arguments.Parsed:
    """Parse the settings of a new run on a CPU that is `gain` times as fast in bf16."""
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(flops, "bf16_gain", lambda width: gain if width == WIDTH else 0)
    monkeypatch.setattr(loading, "NARROWEST", narrowest)
    settings = TrainSettings(run="settled", dataset="small")
    parsed = arguments.build(
        command.trainer_arguments(settings) | {"model_name_or_path": "tiny"}, []
    )
    precision.settle(parsed)
    return parsed


@pytest.mark.parametrize(
    ("gain", "expected"), [(1.5, "bf16"), (6.96, "bf16"), (1.49, "fp32"), (0.001, "fp32")]
)
def test_auto_is_bf16_where_it_is_half_again_as_fast(
    home: Path, monkeypatch: pytest.MonkeyPatch, gain: float, expected: str
) -> None:
    parsed = settled(monkeypatch, gain)
    half = expected == "bf16"
    assert (parsed.kit.precision, parsed.training.bf16) == (expected, half)
    assert parsed.training.hf_deepspeed_config.get_value("bf16.enabled") is half
    assert parsed.notices[-1] == (
        f"precision auto is {expected} here: this CPU multiplies the model's matrices "
        f"{gain:.1f} times as fast in bf16 as in fp32"
    )


@pytest.mark.parametrize(("has_bf16", "narrowest"), [(False, WIDTH), (True, WIDTH + 1)])
def test_nothing_is_measured_without_bf16_or_for_a_narrow_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, narrowest: int
) -> None:
    parsed = settled(monkeypatch, 9.0, has_bf16, narrowest)
    assert (parsed.kit.precision, parsed.training.bf16, parsed.notices) == ("fp32", False, [])


def test_gradients_of_bf16_are_added_up_in_fp32_on_a_cpu(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settled(monkeypatch, 2.0).training.deepspeed
    assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"] == "fp32"
    config = settled(monkeypatch, 1.0).training.deepspeed
    assert not {"communication_data_type", "data_types"} & {*config}


@pytest.mark.process
@pytest.mark.parametrize(("ranks", "ds_config"), [(1, "zero2"), (2, "zero3")])
def test_ranks_agree_and_a_resume_keeps_it(
    home: Path, zygote: Zygote, ranks: int, ds_config: str
) -> None:
    """The resume finds a CPU without bf16, and ends with the bytes of a run told to use it."""
    more = {"num_ranks": ranks, "ds_config": ds_config, "max_steps": 6, "save_steps": 3}
    auto = BASE.replace(run=f"auto-{ranks}-{ds_config}", **more)
    told = BASE.replace(run=f"told-{ranks}-{ds_config}", precision="bf16", **more)
    folder = paths.run(auto.run)
    first = replace(job(auto), bf16_gain=2.0)
    assert zygote.run(first) == [0] * ranks
    (start,) = [e for e in metrics(folder) if e["event"] == "start"]
    assert start["precision"] == "bf16"
    assert any("2.0 times as fast in bf16" in notice for notice in start["notices"])
    assert zygote.run(job(told)) == [0] * ranks
    same = {files.sha256(paths.run(s.run) / "model" / "model.safetensors") for s in (auto, told)}
    assert len(same) == 1 and losses(folder) == losses(paths.run(told.run))
    (folder / "FINISHED.json").unlink()
    for late in ("checkpoint-6", "model"):
        (folder / late).rename(folder / f"{late}.gone")
    assert zygote.run(job(auto)) == [0] * ranks
    assert finished_facts(folder)["precision"] == "bf16"
    assert files.sha256(folder / "model" / "model.safetensors") in same


def test_a_product_in_a_type_that_the_cpu_lacks_is_measured_with_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    clock = iter(range(100))  # a second a look
    monkeypatch.setattr(torch, "matmul", lambda one, _: tried.append(len(one)))
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(clock))
    cpu = torch.device("cpu")
    speed = flops.matmul_speed((2048, 8, 8), cpu, torch.bfloat16, seconds=0.3)
    assert (tried, speed) == ([flops.FIRST_ROWS], 2 * flops.FIRST_ROWS * 8 * 8)
