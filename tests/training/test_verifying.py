"""verify_steps: a step that is taken twice leaves the bits of one, and a flipped bit is seen."""

import itertools
import random
from typing import Any

import pytest
import reliability
from conftest import metrics
from crashes import KINDS, LONG, Crashes
from zygote import Sabotage, job

from neoxkit import files, paths
from neoxkit.errors import STOPPED, UserError
from neoxkit.lab import training
from neoxkit.runs import checkpoints, steps
from neoxkit.runs.events import History
from neoxkit.settings import TrainSettings
from neoxkit.training import callbacks, contradictions, ds_file

# What is flipped, and in what it is seen first.
FLIPPED = {
    "weight": "losses",
    "activation": "losses",
    "backward": "gradients",
    "gradient": "averaged gradients",
    "copy": "weights",
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"precision": "bf16"},
    {"gradient_checkpointing": True},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    {"attn_implementation": "varlen", "row_tokens": 0},
]
PASSES = (3, 4)  # the micro-batches of step 4, where that is the first one to be taken twice


def flip(crashes: Crashes, flipped: str, seed: int, at: int, kind: tuple[int, int] = (1, 2)) -> str:
    """Flip a bit in step 4, which is taken twice; return what the training said, if it stopped.

    After it has gone on from its checkpoint, or at once if it did not stop, its weights have the
    bytes of a training that nothing disturbed.
    """
    settings = crashes.settings(kind, max_steps=6, save_steps=2, logging_steps=1)
    sabotage = Sabotage(rank=kind[0] - 1, at=at, how="flip", flipped=flipped, seed=seed)
    codes = crashes.zygote.run(job(settings.replace(verify_steps=4), sabotage))
    if not any(codes):
        assert weights(settings) == crashes.expected(settings)
        return ""
    folder = paths.run(settings.run)
    assert 2 in codes and checkpoints.saved_step(folder) == 2
    said = metrics(folder)[-1]["what"]
    assert crashes.resumes(settings) == crashes.expected(settings)
    return said


def weights(settings: TrainSettings) -> str:
    return files.sha256(paths.run(settings.run) / "model" / "model.safetensors")


def same_bytes(crashes: Crashes, settings: TrainSettings, stop: int) -> bool:
    """Return whether a training has the same weights if all of its steps but the first are taken
    twice and it is stopped once, after a step that is saved; each step counts once."""
    verified = settings.replace(verify_steps=1)
    assert {*crashes.zygote.run(job(verified, until_step=stop))} == {STOPPED}
    assert not any(crashes.zygote.run(job(verified)))
    history = History.of_run(paths.run(settings.run))
    recorded = steps.recorded(paths.run(settings.run), 1, 99).values()
    taken = sum(one.tokens for step in recorded for one in step.conversations)
    assert taken == sum(e["trained_tokens"] for e in history.train)
    due = [*range(2, history.start["planned_steps"] + 1)]
    assert [e["step"] for e in history.of("verified")] == due
    return weights(settings) == crashes.expected(settings)


@pytest.mark.parametrize(("kind", "optimizer"), [((1, 2), "adafactor"), ((2, 3), "adamw_torch")])
def test_a_step_taken_twice_leaves_the_bits_of_one(
    crashes: Crashes, kind: tuple[int, int], optimizer: str
) -> None:
    """With dropout, and with gradients of two micro-batches; adafactor's state has plain numbers.

    DeepSpeed's own count of the steps is in the name of a checkpoint's folder.
    """
    settings = crashes.settings(
        kind, max_steps=5, save_steps=4, gradient_accumulation_steps=2,
        training_arguments={"optim": optimizer},
    )  # fmt: skip
    assert same_bytes(crashes, settings, stop=4)
    assert (paths.run(settings.run) / "checkpoint-4" / "global_step4").is_dir()
    shown = " ".join(training.summary(settings.run).text.split())
    assert "steps taken twice 4, each time with the same bits" in shown


@pytest.mark.parametrize("flipped", FLIPPED)
def test_a_flipped_bit_stops_the_training_and_its_checkpoint_is_good(
    crashes: Crashes, flipped: str
) -> None:
    said = flip(crashes, flipped, seed=1, at=PASSES[0])
    assert said == f"step 2 is saved; step 4, taken twice, gave other {FLIPPED[flipped]}"


@pytest.mark.parametrize(
    ("flipped", "kind", "seen"),
    [
        ("activation", (2, 2), "losses on rank 1"),
        ("backward", (2, 3), "gradients on rank 1"),
        ("gradient", (2, 2), "averaged gradients"),
    ],
)
def test_the_rank_that_differs_is_named_where_it_is_known(
    crashes: Crashes, flipped: str, kind: tuple[int, int], seen: str
) -> None:
    said = flip(crashes, flipped, seed=1, at=PASSES[1], kind=kind)
    assert said == f"step 2 is saved; step 4, taken twice, gave other {seen}"


def test_of_many_ranks_some_are_named() -> None:
    by_rank = [{"losses": rank != 1} for rank in range(64)]
    assert callbacks._ranks("losses", by_rank) == " on ranks 0, 2, 3 and 60 more"


@pytest.mark.parametrize(
    ("values", "on_gpu", "said"),
    [
        ({}, False, "verify_steps: needs DeepSpeed's engine -- add --deepspeed zero2"),
        ({"deepspeed": "zero2"}, True, "verify_steps: a GPU adds numbers up in another order"),
        ({"deepspeed": "zero2", "optim": "sgd"}, False, "sgd without a momentum keeps no state"),
    ],
)
def test_what_can_not_be_taken_twice_is_refused(values: dict, on_gpu: bool, said: str) -> None:
    with pytest.raises(UserError, match=said):
        contradictions.check_together({"verify_steps": 50, **values}, on_gpu)


def test_on_a_gpu_it_needs_the_same_order_of_sums() -> None:
    values = {"verify_steps": 50, "deepspeed": "zero2", "full_determinism": True}
    contradictions.check_together(values, on_gpu=True)


@pytest.mark.parametrize(
    ("zero", "precision", "said"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, "fp32", "offload to nvme"),
        ({"offload_param": {"device": "nvme"}}, "fp32", "offload to nvme"),
        ({"offload_optimizer": {"ratio": 0.5}}, "bf16", r"offload_optimizer\.ratio"),
        ({"offload_optimizer": {"super_offload": True}}, "bf16", "super_offload"),
        ({"zenflow": {"topk_ratio": 0.1}}, "bf16", "zenflow"),
        ({"stage": 0}, "fp16", "fp16 without ZeRO"),
    ],
)
def test_a_state_that_can_not_be_copied_is_refused(zero: dict, precision: str, said: str) -> None:
    config = {"zero_optimization": {"stage": 3} | zero}
    values = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
              "max_grad_norm": 1.0, "precision": precision, "verify_steps": 0}  # fmt: skip
    ds_file.check_values(config, values, 1, "mine.json")
    with pytest.raises(UserError, match=f"can't take a step back with {said} -- leave one out"):
        ds_file.check_values(config, values | {"verify_steps": 50}, 1, "mine.json")


def test_a_mixture_of_experts_needs_the_same_order_of_sums() -> None:
    """On a CPU as well: its experts' rows are gathered, and added up by several threads."""
    mixture = {"num_experts": 4, "num_experts_per_tok": 2}
    contradictions.check_experts({"verify_steps": 50}, {"num_local_experts": 0, "hidden_size": 8})
    contradictions.check_experts({"verify_steps": 50, "full_determinism": True}, mixture)
    contradictions.check_experts({"verify_steps": 0}, mixture)
    with pytest.raises(UserError, match=r"mixture of experts .* -- set full_determinism True"):
        contradictions.check_experts({"verify_steps": 50}, mixture)


def test_a_run_that_is_too_short_for_it_says_so(crashes: Crashes) -> None:
    settings = crashes.settings((1, 2), max_steps=4, save_steps=4, verify_steps=50)
    assert not any(crashes.zygote.run(job(settings)))
    (notice,) = History.of_run(paths.run(settings.run)).start["notices"]
    assert notice == "verify_steps 50: no step is taken twice, the run has 4"


@pytest.mark.crash
def test_random_bits(crashes: Crashes) -> None:
    """60 flips that change anything are seen; those that change no bit of the weights may pass."""
    dice, seen, harmless = random.Random(6), 0, 0
    for flipped in FLIPPED:
        left = 60 // len(FLIPPED)
        while left:
            kind = dice.choice([(1, 2), (2, 2), (2, 3)])
            said = flip(crashes, flipped, dice.getrandbits(32), dice.choice(PASSES), kind)
            left, seen, harmless = left - bool(said), seen + bool(said), harmless + (not said)
    counted = f"{seen} of 60; {harmless} more changed no bit of the weights"
    reliability.record(reliability.SERIES[15], counted)


@pytest.mark.crash
def test_no_false_alarm(crashes: Crashes) -> None:
    """20 runs, of one and two ranks, ZeRO 2 and 3, every step after the first taken twice, and
    stopped once."""
    same = 0
    for i, (kind, changes) in enumerate(itertools.product(KINDS, CHANGES)):
        settings = crashes.settings(kind, **LONG).replace(seed=i, **changes)
        same += same_bytes(crashes, settings, stop=12)
    reliability.record(reliability.SERIES[16], f"{same} of 20")
    assert same == 20
