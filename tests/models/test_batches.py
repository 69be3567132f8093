"""Packed, padded and one by one: the same losses and gradients, for each family."""

import pytest
import torch
from small_models import CLASSES, CONFIGS

from neoxkit.models import losses
from neoxkit.models.batches import Collator, even_rows, packed, padded, place
from neoxkit.models.losses import token_losses

LENGTHS = (11, 29, 5, 23, 17, 8)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return CLASSES[request.param](CONFIGS[request.param]).eval()


@pytest.fixture(params=["agent", "all"])
def rows(request: pytest.FixtureRequest) -> list[dict]:
    """Make conversations with a varying trained part, or with all but their first token trained."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        ids = torch.randint(2, 97, (length,), generator=generator)
        trained = torch.rand(length, generator=generator) < 0.5
        trained |= torch.tensor(request.param == "all")
        trained[0], trained[-1] = False, True
        made.append({"input_ids": ids.tolist(), "labels": torch.where(trained, ids, -100).tolist()})
    return made


def one_by_one(model: torch.nn.Module, rows: list[dict]) -> torch.Tensor:
    """Compute losses the plainest way: all logits, one conversation at a time."""
    losses = []
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        all_losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses.append(all_losses[labels != -100])
    return torch.cat(losses)


def gradients(model: torch.nn.Module, losses: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    losses.mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


LAYOUTS = {
    "padded": Collator("padded", 29, pad_id=1),
    "one row": Collator("packed", 29, pad_id=1),
    "rows of a block": Collator("packed", 29, pad_id=1, row_tokens=29),
    "longer rows": Collator("packed", 29, pad_id=1, row_tokens=58),
}


def made(collator: Collator, rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = collator(rows)
    batch.pop("counts")
    return batch


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_losses_and_gradients_of_one_by_one(
    model: torch.nn.Module, rows: list[dict], layout: str, checkpointing: bool
) -> None:
    expected = one_by_one(model, rows)
    expected_gradients = gradients(model, expected)
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()
    try:
        found = token_losses(model, model, made(LAYOUTS[layout], rows))
        found_gradients = gradients(model, found)
    finally:
        model.activation_checkpointing_disable()
        model.eval()
    assert torch.allclose(found.sort().values, expected.sort().values, atol=1e-5)
    scale = expected_gradients.abs().max()
    assert (found_gradients - expected_gradients).abs().max() / scale < 1e-5


def test_losses_may_weigh_differently_and_come_in_parts(
    model: torch.nn.Module, rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss carries its own gradient, however many logits are worked on at once."""
    batch = made(LAYOUTS["one row"], rows)
    hidden = torch.randn(50, 97, generator=torch.Generator().manual_seed(3))
    targets = torch.randint(0, 97, (50,), generator=torch.Generator().manual_seed(4))
    weights = torch.linspace(-1, 2, 50)
    logits = hidden.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected * weights).sum().backward()
    for chunk in (1, 4 * 97 * 7, 10**9):
        monkeypatch.setattr(losses, "CHUNK_BYTES", chunk)
        ours = hidden.clone().requires_grad_()
        found = losses._CrossEntropy.apply(ours * 1, targets)
        (found * weights).sum().backward()
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.allclose(ours.grad, logits.grad, atol=1e-7)
        assert torch.isfinite(token_losses(model, model, batch)).all()


def test_logits_shifted_by_one_would_be_noticed(
    model: torch.nn.Module, rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed a fault: hidden states shifted by one, for the same targets."""
    expected = one_by_one(model, rows)
    pad = torch.nn.functional.pad
    monkeypatch.setattr(
        losses.torch.nn.functional, "pad", lambda keep, sides: pad(keep, sides[::-1])
    )
    found = token_losses(model, model, made(LAYOUTS["padded"], rows))
    assert (found.mean() - expected.mean()).abs() > 1e-3


def test_a_mask_in_packed_rows_would_be_noticed(model: torch.nn.Module, rows: list[dict]) -> None:
    """Seed a fault: a mask of ones, or no positions, lets conversations see each other."""
    batch = packed(rows, even_rows(LENGTHS, 2), 1)
    expected = one_by_one(model, rows).sort().values
    masked = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    bare = {k: v for k, v in batch.items() if k != "position_ids"}
    for faulty in (masked, bare):
        found = token_losses(model, model, faulty).sort().values
        assert (found - expected).abs().max() > 1e-3


def test_a_batch_holds_each_conversation_once_and_nothing_else(rows: list[dict]) -> None:
    for layout in ("padded", "packed"):
        batch = Collator(layout, 29, pad_id=1)(rows)
        pairs = sum(len(range(n)[: i + 1]) for n in LENGTHS for i in range(n))
        assert batch["counts"].tolist() == [sum(LENGTHS), pairs]
        assert (batch["labels"] != -100).sum() == sum(
            label != -100 for row in rows for label in row["labels"]
        )
        assert (batch["input_ids"] != 1).sum() == sum(LENGTHS)
    assert padded(rows, 29, 1)["input_ids"].shape == (len(rows), 29)


def test_positions_restart_with_each_conversation(rows: list[dict]) -> None:
    batch = packed(rows, even_rows(LENGTHS, 2), 1)
    assert (batch["position_ids"] == 0).sum() >= len(rows)
    starts = batch["position_ids"][:, 1:] == 0
    steps = batch["position_ids"][:, 1:] - batch["position_ids"][:, :-1]
    assert torch.all(starts | (steps == 1))


@pytest.mark.parametrize("row_tokens", [280, 560])
def test_rows_of_a_batch_are_about_equally_full(row_tokens: int) -> None:
    """Expect little padding, each conversation once, and rows at most about twice as long."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(10, 281, (64,), generator=generator).tolist()
    rows = place(lengths, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(64))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert 1 - sum(filled) / (max(filled) * len(filled)) < 0.05
    assert max(filled) < 2.2 * row_tokens
    assert place(lengths, row_tokens) == rows


def test_longer_rows_are_chosen_where_they_save_more_padding_than_attention_costs() -> None:
    assert place([200, 200, 200], 300) == [[0, 1, 2]]  # two rows would be 400 wide
    assert len(place([300] * 8, 300)) == 8  # nothing to save
    assert len(place([2000, 2000, 2000], 3000)) == 2  # attention would cost more than padding
