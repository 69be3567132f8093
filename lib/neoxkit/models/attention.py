"""The attention of a training: which kernel, and one that goes conversation by conversation.

A mask over packed rows grows with the square of a row. Without one, each conversation of a row gets
a causal call of its own: nothing is computed between conversations, and memory grows with tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from neoxkit.models import packing
from neoxkit.models.packing import VARLEN

# What a packed row tells the model: where its conversations begin and end, (conversations + 1,).
ENDS = "cu_seq_lens_q"
# The reach from which calls by conversation are faster on a CPU: in fp32 with conversations
# joined to 512 tokens (benchmarks/bare_loop.py --attention), and not with those of up to 280. Half
# precision gains more where they are long, and loses more where they are short.
LONG = {"fp32": 400, "bf16": 1100}


def choose(
    family: str, wanted: str, precision: str, lengths: Sequence[int], by_rows: bool = False
) -> str | None:
    """Choose the attention kernel to load a model with; None leaves the choice to transformers.

    "auto": flash attention where it is installed and exact (GPT-NeoX in half precision on a GPU);
    by conversation where a CPU is faster so, or where rows can't be packed otherwise; else
    transformers' choice: sdpa where the family has it, eager where not. flex_attention is never
    chosen: it compiles at every start and gains little at the lengths of conversations.

    `lengths`: the tokens of each conversation. `by_rows`: "auto" keeps to rows, which are padded,
    compiled, of a given length, or seen through a window (whose masks one long row would make
    large).
    """
    packing.check_varlen(wanted, family)
    if wanted != "auto":
        return wanted
    on_gpu = torch.cuda.is_available()
    if on_gpu and precision != "fp32" and is_flash_attn_2_available() and family == "gpt_neox":
        return "flash_attention_2"
    if by_rows or family not in packing.BY_CONVERSATION:
        return None
    is_long = not on_gpu and reach(lengths) >= LONG[precision]
    return VARLEN if is_long or family in packing.ONLY_BY_CONVERSATION else None


def reach(lengths: Sequence[int]) -> float:
    """Return the length of the conversation that a token is in, on average.

    >>> reach([1, 3])
    2.5
    """
    tokens = np.asarray(lengths, float)
    return float((tokens**2).sum() / tokens.sum())


def by_conversation(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each conversation of a packed row.

    `query`, `key` and `value` have shape (1, heads, tokens, size of a head), `options` the bounds
    of the conversations (ENDS). Where they or a mask decide otherwise it is plain sdpa: in padded
    rows and replies, and in layers that see a window of tokens.
    """
    ends = options.pop(ENDS, None)
    if ends is None or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{VARLEN} attention has no {name}")
    if _is_for_flash(query) and not options.get("dropout"):
        return _on_gpu(query, key, value, ends, options), None
    lengths = ends.diff().tolist()
    parts = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    made = [
        sdpa_attention_forward(module, q, k, v, None, **options)[0]
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(made, dim=1), None


def _is_for_flash(query: torch.Tensor) -> bool:
    """Return whether torch's kernel takes it: half precision on a GPU from Ampere on."""
    size = query.shape[-1]
    fits = query.is_cuda and query.dtype != torch.float32 and size % 8 == 0 and size <= 256
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, options: Any
) -> torch.Tensor:
    """Do the same in one call of torch's own kernel, which has no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    longest = int(ends.diff().max())
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    made: Any = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=options.get("scaling"), window_size=(-1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    return torch.as_tensor(made[None])


def _no_mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """Make no mask for a packed row; that of sdpa for other batches, windows and special masks."""
    is_row = options["attention_mask"] is None and options["q_length"] == options["kv_length"]
    if is_row and not options.get("local_size") and not options.get("use_vmap"):
        return None
    return sdpa_mask(*args, **options)


AttentionInterface.register(VARLEN, by_conversation)
AttentionMaskInterface.register(VARLEN, _no_mask)
