"""Refuse a model in which conversations of a packed row change each other's loss."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from neoxkit.errors import UserError
from neoxkit.models.batches import Collator, even_rows, packed, padded
from neoxkit.models.losses import token_losses

NUM_CHECKED = 4  # the shortest conversations, on which it is checked

Batch = dict[str, torch.Tensor]


@torch.no_grad()
def refuse_leaks(
    engine: torch.nn.Module,
    model: PreTrainedModel,
    rows: Dataset,
    collator: Collator,
    prepared: Callable[[Batch], Any],
    is_half: bool,
) -> None:
    """Compare the losses of the shortest conversations packed, padded, and alone; do nothing if
    rows are not packed.

    The measure is the change that padding causes: it is rounding alone, which is coarse in half
    precision. `engine`: the model as it is trained; `prepared` takes a batch to its device.
    """
    if collator.layout != "packed" or len(rows) < 2:
        return
    shortest = sorted(range(len(rows)), key=rows["length"][:].__getitem__)[:NUM_CHECKED]
    chosen = [rows[i] for i in shortest]
    lengths = [len(row["input_ids"]) for row in chosen]
    places = even_rows(lengths, 2 if collator.row_tokens else 1)  # as in training
    # In the order of a packed batch, which is also the order of its losses.
    in_order = [chosen[i] for items in places for i in items]
    engine.eval()
    together, side_by_side, *alone = (
        token_losses(engine, model, prepared(batch))
        for batch in (
            packed(chosen, places, collator.pad_id, collator.by_conversation),
            padded(in_order, max(lengths), collator.pad_id),
            *(padded([row], len(row["input_ids"]), collator.pad_id) for row in in_order),
        )
    )
    engine.train()
    rounding = (side_by_side - torch.cat(alone)).abs().mean().item()
    difference = (together - side_by_side).abs().mean().item()
    if difference > 4 * rounding + (0.01 if is_half else 1e-4):
        raise UserError(
            "layout",
            f"packed rows change the loss of this model by {difference:.2g}",
            "set layout to padded, or attn_implementation to sdpa",
        )
