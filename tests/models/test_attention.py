"""Packed rows are exact for every family that is packed, by masks and by conversation."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_families import PACKED, PADDED
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from neoxkit.errors import UserError
from neoxkit.models import attention
from neoxkit.models.attention import ENDS
from neoxkit.models.batches import Collator
from neoxkit.models.losses import token_losses
from neoxkit.models.packing import BY_CONVERSATION, BY_MASK, VARLEN, packs_exactly

LENGTHS = (11, 29, 5, 23, 17, 8)
ROW = Collator("packed", 29, pad_id=1, by_conversation=True)
ROWS = Collator("packed", 29, pad_id=1, row_tokens=29)
PADS = Collator("padded", 29, pad_id=1)


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    made = (torch.randint(2, 97, (length,), generator=generator).tolist() for length in LENGTHS)
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in made]


def make(config: PretrainedConfig, kernel: str | None = None) -> PreTrainedModel:
    """Make a model with the same random weights whatever its attention."""
    torch.manual_seed(0)
    chosen = {"attn_implementation": kernel} if kernel else {}
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), **chosen).eval()


def by_collator(model: PreTrainedModel, collator: Collator) -> list[torch.Tensor]:
    """Return the losses, in the order of the rows' sizes, and the gradients."""
    batch = collator(rows())
    batch.pop("counts")
    return _with_gradients(model, token_losses(model, model, batch))


def one_by_one(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the same computed the plainest way: all logits of one conversation at a time."""
    losses = []
    for row in rows():
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, 1:-1]
        targets = torch.tensor(row["input_ids"][2:])
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    return _with_gradients(model, torch.cat(losses))


def _with_gradients(model: PreTrainedModel, losses: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    losses.mean().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [losses.detach().sort().values, torch.cat(found)]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    (losses, gradients), (true, true_gradients) = found, expected
    worst = (gradients - true_gradients).abs().max() / true_gradients.abs().max()
    return torch.allclose(losses, true, atol=1e-5) and bool(worst < 1e-5)


def test_each_family_that_is_packed_has_a_test() -> None:
    assert {*PACKED} == BY_MASK | BY_CONVERSATION
    assert {name: config.model_type for name, config in (PACKED | PADDED).items()} == {
        name: name for name in PACKED | PADDED
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", sorted(BY_CONVERSATION))
def test_by_conversation_is_as_exact_as_one_by_one(family: str, checkpointing: bool) -> None:
    model = make(PACKED[family], VARLEN)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    expected = one_by_one(make(PACKED[family]))
    assert equal(by_collator(model, ROW), expected)
    assert equal(by_collator(model, PADS), expected)


@pytest.mark.parametrize("family", sorted(BY_MASK))
def test_by_masks_is_as_exact_as_one_by_one(family: str) -> None:
    model = make(PACKED[family])
    assert equal(by_collator(model, ROWS), one_by_one(model))


@pytest.mark.parametrize("family", sorted({*PACKED, *PADDED} - BY_MASK))
def test_a_family_that_is_not_packed_by_masks_could_not_be(family: str) -> None:
    model = make((PACKED | PADDED)[family])
    assert not equal(by_collator(model, ROWS), one_by_one(model))


FAULTS: dict[str, Callable[[dict], None]] = {
    "ends shifted by one": lambda batch: batch[ENDS][1:-1].add_(1),
    "no ends": lambda batch: batch.pop(ENDS),
    "two conversations as one": lambda batch: batch.update({ENDS: batch[ENDS][[0, 2, 3, 4, 5, 6]]}),
    "no positions": lambda batch: batch.pop("position_ids"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_row_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Seed a fault in what a row says of its conversations; GPT-2's positions are absolute."""
    model, call = make(PACKED["gpt2"], VARLEN), Collator.__call__

    def faulty(self: Collator, given: list) -> dict:
        batch = call(self, given)
        FAULTS[fault](batch)
        return batch

    expected = one_by_one(make(PACKED["gpt2"]))
    monkeypatch.setattr(Collator, "__call__", faulty)
    assert not equal(by_collator(model, ROW), expected)


def test_other_kernels_are_trusted_with_three_families() -> None:
    trusted = {f for f in PACKED if packs_exactly(f, "flash_attention_2")}
    assert trusted == {"gpt2", "gpt_neo", "gpt_neox"}


def test_replies_are_those_of_sdpa(tmp_path: Path) -> None:
    """Several at once, padded on the left; and nothing of the kernel is saved with the model."""
    ids = torch.randint(2, 97, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    models = [make(PACKED["llama"], kernel) for kernel in (VARLEN, "sdpa")]
    ours, theirs = (
        model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=1)
        for model in models
    )
    assert ours.tolist() == theirs.tolist()
    models[0].save_pretrained(tmp_path)
    assert VARLEN not in (tmp_path / "config.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("family", "wanted", "tokens", "by_rows", "on_cpu", "on_gpu"),
    [
        ("gpt_neox", "auto", 200, False, None, None),
        ("gpt_neox", "auto", 2000, False, VARLEN, None),
        ("gpt_neox", "auto", 2000, True, None, None),
        ("gpt_neox", "sdpa", 2000, False, "sdpa", "sdpa"),
        ("gpt_neox", "varlen", 20, False, VARLEN, VARLEN),
        ("gpt_neo", "auto", 2000, False, None, None),
        ("opt", "auto", 20, False, VARLEN, VARLEN),  # else it would be padded
        ("opt", "auto", 20, True, None, None),
    ],
)
def test_the_kernel_is_chosen_by_family_and_lengths(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    wanted: str,
    tokens: int,
    by_rows: bool,
    on_cpu: str | None,
    on_gpu: str | None,
) -> None:
    for there, expected in ((False, on_cpu), (True, on_gpu)):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert attention.choose(family, wanted, "fp32", [tokens] * 9, by_rows) == expected


@pytest.mark.parametrize("family", ["gpt_neo", "bloom", "gptj"])
def test_a_family_that_is_not_exact_by_conversation_is_refused_by_name(family: str) -> None:
    with pytest.raises(UserError) as refused:
        attention.choose(family, VARLEN, "fp32", [9])
    assert str(refused.value) == (
        f"attn_implementation: varlen is not known to be exact for {family} -- choose auto"
    )


@pytest.mark.parametrize(
    ("wanted", "precision", "installed", "expected"),
    [
        ("auto", "bf16", True, "flash_attention_2"),
        ("auto", "bf16", False, None),
        ("auto", "fp32", True, None),  # flash attention needs half precision
        ("eager", "bf16", True, "eager"),
    ],
)
def test_flash_attention_is_used_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    precision: str,
    installed: bool,
    expected: str | None,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: installed)
    assert attention.choose("gpt_neox", wanted, precision, [2000]) == expected
