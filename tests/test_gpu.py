"""Tests that need a GPU; skipped if there is none."""

from pathlib import Path

import pytest
import torch
from conftest import losses, metrics, train_to_the_end

from neoxkit.launch.command import runner_command
from neoxkit.settings import TrainSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]
BASE = TrainSettings(
    dataset="small", max_steps=8, per_device_train_batch_size=8, logging_steps=2, eval_steps=4,
    save_steps=4,
)  # fmt: skip


def train(**changes: object) -> Path:
    return train_to_the_end(BASE.replace(**changes))


def test_every_gpu_trains_in_the_precision_it_is_good_at(home: Path) -> None:
    start = metrics(train(run="gpu"))[0]
    assert start["num_ranks"] == torch.cuda.device_count()
    assert start["device"] == torch.cuda.get_device_name()
    assert start["precision"] == ("bf16" if torch.cuda.is_bf16_supported(False) else "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_packed_rows_train_as_padded_ones_do(home: Path, precision: str) -> None:
    one = train(run=f"packed-{precision}", num_ranks=1, precision=precision)
    other = train(run=f"padded-{precision}", num_ranks=1, precision=precision, layout="padded")
    assert losses(one) == pytest.approx(losses(other), rel=1e-4 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_attention_by_conversation_trains_as_by_masks(home: Path, precision: str) -> None:
    """In half precision by torch's own kernel."""
    given = {"num_ranks": 1, "precision": precision}
    one = train(run=f"varlen-{precision}", attn_implementation="varlen", **given)
    other = train(run=f"sdpa-{precision}", attn_implementation="sdpa", **given)
    assert losses(one) == pytest.approx(losses(other), rel=1e-4 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("config", ["zero2_offload", "zero3", "zero3_offload"])
def test_each_configuration_trains_to_the_same_losses(home: Path, config: str) -> None:
    plain = train(run=f"plain-{config}", num_ranks=1, precision="fp32")
    other = train(run=f"run-{config}", num_ranks=1, precision="fp32", ds_config=config)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-3)


def test_a_step_taken_twice_has_the_same_bits(home: Path) -> None:
    given = {"num_ranks": 1, "training_arguments": {"full_determinism": True}}
    once, twice = (train(run=f"verify-{n}", verify_steps=n, **given) for n in (0, 2))
    assert losses(twice) == losses(once)
    assert [e["step"] for e in metrics(twice) if e["event"] == "verified"] == [2, 4, 6, 8]


def test_visible_devices_choose_the_gpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = torch.cuda.device_count() - 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(last))
    command = runner_command(1)
    assert f"--include=localhost:{last}" in command
