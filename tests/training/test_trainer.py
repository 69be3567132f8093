"""The trainer without DeepSpeed: a step's gradient, and the check of packing."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_models import CLASSES, CONFIGS
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.launch.command import CPU_ENVIRONMENT
from neoxkit.models import losses, power
from neoxkit.models.batches import Collator, padded
from neoxkit.training import base_model
from neoxkit.training.arguments import KitArguments
from neoxkit.training.honoured import FIXED
from neoxkit.training.trainer import KitTrainer

LENGTHS = (11, 29, 5, 23, 17, 8, 12, 20)


def trainer(folder: Path, row_tokens: int = 29) -> KitTrainer:
    torch.manual_seed(0)
    model = CLASSES["gpt_neox"](CONFIGS["gpt_neox"])
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [2 + (7 * number + 3 * i) % 95 for i in range(length)]
        begin = length // (2 + number % 3)  # shares of trained tokens differ
        labels = [-100] * begin + ids[begin:]
        rows.append({"input_ids": ids, "labels": labels, "length": length})
    return KitTrainer(
        model=model,
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none", **FIXED),
        data_collator=Collator("packed", 29, 1, row_tokens),
        train_dataset=Dataset.from_list(rows),
    )


def gradient(made: KitTrainer, micro: int, num_items: int | None) -> torch.Tensor:
    """Compute the gradient of all rows; `num_items` None divides each micro-batch by its tokens."""
    made.packing_checked = True
    rows = list(made.train_dataset)
    made.model.zero_grad()
    for start in range(0, len(rows), micro):
        batch = made.data_collator(rows[start : start + micro])
        own = int((batch["labels"] != -100).sum())
        made.compute_loss(made.model, batch, num_items_in_batch=num_items or own).backward()
    return torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


def sampler(made: KitTrainer, num_ranks: int) -> Sampler:
    """Return the sampler for `num_ranks` ranks with micro-batches of two."""
    made.args.per_device_train_batch_size = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingArguments, "world_size", num_ranks)
        return made._get_train_sampler()


def test_ranks_share_each_step_of_the_trainers_order_evenly(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    shuffled = sampler(made, 2)
    orders = []
    for epoch in (0, 1):
        shuffled.set_epoch(epoch)
        orders.append(list(shuffled))
        assert sorted(orders[-1]) == list(range(len(LENGTHS)))
        for step in (orders[-1][:4], orders[-1][4:]):
            tokens = [LENGTHS[i] for i in step]
            least = min(abs(sum(tokens) - 2 * (tokens[0] + other)) for other in tokens[1:])
            assert abs(sum(tokens[:2]) - sum(tokens[2:])) == least
    assert orders[0] != orders[1]
    shuffled.set_epoch(0)  # as a resumed run does
    assert list(shuffled) == orders[0]
    made.args.train_sampling_strategy = "sequential"
    assert list(sampler(made, 2)) == [1, 2, 3, 0, 7, 5, 4, 6]
    made.args.train_sampling_strategy = "group_by_length"  # the user's own choice is kept
    assert type(sampler(made, 2)) is LengthGroupedSampler


def test_micro_batches_add_up_to_the_whole_steps_gradient(tmp_path: Path) -> None:
    """Seed a fault too: division by each micro-batch's own tokens is noticed."""
    made = trainer(tmp_path)
    tokens = sum(label != -100 for row in made.train_dataset for label in row["labels"])
    whole = gradient(made, 8, tokens)
    batch = made.data_collator(list(made.train_dataset))
    loss = made.compute_loss(made.model, dict(batch), num_items_in_batch=tokens)
    batch.pop("counts")
    assert loss.item() == pytest.approx(
        losses.token_losses(made.model, made.model, batch).mean().item()
    )
    scale = whole.abs().max()
    for micro in (4, 2, 1):
        assert (gradient(made, micro, tokens) - whole).abs().max() / scale < 1e-5
    faulty = gradient(made, 2, None) / 4
    assert (faulty - whole).abs().max() / scale > 1e-2


def test_the_faults_of_a_step_are_named_once(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    none = {"no trained token": False, "loss": False, "gradient": False}
    gradient(made, 4, None)
    assert made.step_faults() == none
    made.grad_norm = float("nan")
    assert made.step_faults() == none | {"gradient": True}
    made.grad_norm = 1.0
    batch = made.data_collator([made.train_dataset[0]])
    made.compute_loss(made.model, batch, num_items_in_batch=0)  # its loss is infinite as well
    assert made.step_faults() == none | {"no trained token": True, "loss": True}
    assert made.step_faults() == none


@pytest.mark.parametrize("row_tokens", [0, 29, 58])
def test_exact_packing_passes_the_check(tmp_path: Path, row_tokens: int) -> None:
    made = trainer(tmp_path, row_tokens)
    made._check_packing(made.model)
    assert made.packing_checked


LEAKS = {  # which batches lose their positions: (that, row_tokens of the training)
    "always": (lambda batch: True, 29),
    "always, one row": (lambda batch: True, 0),
    "in several rows": (lambda batch: len(batch["input_ids"]) > 1, 29),  # as flash attention does
}


@pytest.mark.parametrize("leak", LEAKS)
def test_packing_that_leaks_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    loses, row_tokens = LEAKS[leak]
    made = trainer(tmp_path, row_tokens)
    plain = losses.token_losses

    def leaking(model: torch.nn.Module, lm: torch.nn.Module, batch: dict) -> torch.Tensor:
        kept = {k: v for k, v in batch.items() if k != "position_ids" or not loses(batch)}
        return plain(model, lm, kept)

    monkeypatch.setattr("neoxkit.training.packing_check.token_losses", leaking)
    with pytest.raises(UserError, match=r"^layout: packed rows change the loss .* -- set layout"):
        made._check_packing(made.model)


@pytest.mark.parametrize(
    ("attention", "gpu", "given", "expected"),
    [
        ("sdpa", False, 0, 64),
        ("sdpa", True, 0, 128),
        ("eager", False, 100, 100),
        ("flash_attention_2", True, 0, 0),  # one row: in several, conversations would leak
        ("varlen", False, 0, 0),
    ],
)
def test_the_length_of_rows_depends_on_the_attention_kernel(
    monkeypatch: pytest.MonkeyPatch, attention: str, gpu: bool, given: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    kit = KitArguments(block_size=64, row_tokens=given)
    base_model.set_row_tokens(kit, attention)
    assert kit.row_tokens == expected


@pytest.mark.parametrize(
    ("attention", "given"), [("sdpa", 63), ("flash_attention_2", 640), ("varlen", 640)]
)
def test_impossible_row_lengths_are_refused(attention: str, given: int) -> None:
    with pytest.raises(UserError, match=r"^row_tokens: "):
        base_model.set_row_tokens(KitArguments(block_size=64, row_tokens=given), attention)


def held_out(made: KitTrainer, num: int = 21) -> list[dict]:
    """Give it a held-out set of `num` conversations, and return them in the order of evaluation."""
    rows = [made.train_dataset[i % len(LENGTHS)] for i in range(num)]
    made.eval_dataset = Dataset.from_list(rows)
    made.model_wrapped = made.model
    return sorted(rows, key=lambda row: row["length"])


def change(made: KitTrainer) -> None:
    """Take a step of training, as it were."""
    made.state.global_step = 1
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.1)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_evaluations_after_the_bases_say_what_the_held_out_set_can_show(
    tmp_path: Path, layout: str, size: int
) -> None:
    """Exactly what the losses of each conversation alone give."""
    made = trainer(tmp_path)
    made.data_collator = Collator(layout, 29, 1, 29)
    made.args.per_device_eval_batch_size = size
    rows, alone = held_out(made), []
    assert "eval_detectable" not in made.evaluation_loop().metrics
    for _ in range(2):
        made.model.eval()
        with torch.no_grad():
            alone.append([
                losses.token_losses(made.model, made.model, padded([row], 29, 1)).sum().item()
                for row in rows
            ])  # fmt: skip
        change(made)
    tokens = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    before, now = map(np.array, alone)
    expected = power.detectable(now - before, np.array(tokens))
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.div_(1.1)
    assert made.evaluation_loop().metrics["eval_detectable"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0


@pytest.mark.parametrize("size", [1, 4, 32])
def test_each_part_of_the_held_out_set_has_the_loss_that_it_has_alone(
    tmp_path: Path, size: int
) -> None:
    made = trainer(tmp_path)
    made.args.per_device_eval_batch_size = size
    held_out(made)
    rows = made.eval_dataset
    made.parts = {"first": np.arange(5), "second": np.arange(5, 21)}
    together = made.evaluation_loop().metrics
    parts, made.parts = made.parts, {}
    for name, of in parts.items():
        made.eval_dataset = rows.select(of)
        alone = made.evaluation_loop().metrics["eval_loss"]
        assert together[f"eval_{name}_loss"] == pytest.approx(alone, rel=1e-6)
    assert together["eval_first_loss"] != pytest.approx(together["eval_second_loss"], rel=1e-4)


def test_few_conversations_or_a_resumed_run_have_no_such_figure(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    held_out(made, num=19)
    made.evaluation_loop()
    change(made)
    assert "eval_detectable" not in made.evaluation_loop().metrics
    held_out(made)
    made.of_base = None
    assert "eval_detectable" not in made.evaluation_loop().metrics


FREED = """
import psutil
from neoxkit import machine

def anonymous():
    return psutil.Process().memory_full_info().uss

kept = [bytearray(100_000) for _ in range(2000)]
full = anonymous()
del kept[:-1]  # the last one keeps the heap from shrinking by itself
before = anonymous()
machine.release_memory()
print((before - anonymous()) / full, (full - before) / full)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps freed memory so")
def test_freed_memory_goes_back_to_the_system() -> None:
    """In the environment of a training on a CPU, in which it does not by itself."""
    done = subprocess.run(
        [sys.executable, "-c", FREED], env=os.environ | CPU_ENVIRONMENT, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    given_back, by_itself = map(float, done.stdout.split())
    assert by_itself < 0.1 and given_back > 0.7


def test_an_evaluation_gives_its_memory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(machine, "release_memory", lambda: told.append(1))
    made = trainer(tmp_path)
    held_out(made)
    made.evaluation_loop()
    assert told == [1]
