"""The loss of each trained token, with logits at those tokens only."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from neoxkit.table import NOT_TRAINED


def token_losses(
    model: "torch.nn.Module", lm: "PreTrainedModel", batch: Mapping[str, "torch.Tensor"]
) -> "torch.Tensor":
    """The loss of each trained token of a batch, in row order: shape (trained tokens,), fp32, nats.

    `model` is what is called (a DeepSpeed engine, say), `lm` the model inside it. Logits are
    computed at trained tokens only: a hook hands the output layer just the hidden states that
    predict one. `batch`: input_ids, labels, and either attention_mask or position_ids.
    """
    labels = batch["labels"]
    targets = labels[:, 1:]
    keep = torch.nn.functional.pad(targets != NOT_TRAINED, (0, 1))  # hidden state t predicts t + 1
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hook = lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][keep],))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return torch.nn.functional.cross_entropy(
        logits.float(), targets[targets != NOT_TRAINED], reduction="none"
    )
