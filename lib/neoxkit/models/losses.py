"""The loss of each trained token, computing logits at those tokens only."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from neoxkit.data.table import NOT_TRAINED

CHUNK_BYTES = 16 << 20  # fp32 logits worked on at once: they stay in a CPU's cache


def token_losses(
    model: torch.nn.Module, lm: PreTrainedModel, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return the loss of each trained token, in row order: shape (trained tokens,), fp32, nats.

    `model` is called (it may be a DeepSpeed engine); `lm` is the model inside it. Logits are
    computed at trained tokens only: a hook gives the output layer just the hidden states that
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
    return _CrossEntropy.apply(logits, targets[targets != NOT_TRAINED])


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy without memory besides the logits: backward turns them into their gradient.

    torch's version keeps two more tensors as large as the logits, which cost a CPU much of a step.
    Logits have shape (tokens, vocabulary); losses are fp32.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        size = max(CHUNK_BYTES // (4 * logits.shape[1]), 1)
        log_sums = torch.cat([part.float().logsumexp(1) for part in logits.split(size)])
        ctx.size = size
        ctx.save_for_backward(logits, targets, log_sums)
        return log_sums - logits.gather(1, targets[:, None])[:, 0].float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, *others = ctx.saved_tensors
        parts = (tensor.split(ctx.size) for tensor in (logits, *others, gradient))
        for part, targets, log_sums, outer in zip(*parts, strict=True):
            probabilities = part.float().sub_(log_sums[:, None]).exp_()  # fp32: no copy
            probabilities.scatter_add_(1, targets[:, None], -torch.ones_like(log_sums)[:, None])
            part.copy_(probabilities.mul_(outer[:, None]))
        return logits, None
