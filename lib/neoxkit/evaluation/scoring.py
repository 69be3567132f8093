"""Score a model: the loss of each conversation and each of its trained tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit.data.table import NOT_TRAINED
from neoxkit.errors import UserError
from neoxkit.models import configs
from neoxkit.models.batches import padded
from neoxkit.models.losses import token_losses
from neoxkit.parallel import Progress, silent

WINDOW_TOKENS = 512  # tokens of a plain text that are scored together


@dataclass(frozen=True)
class Score:
    """Mean loss in nats per trained token, its exponential, and how many tokens it rests on.

    `losses`: per conversation, in the order of the rows, the loss of each trained token.
    `bits_per_byte` is set if the text is known (compare_models.bits_per_byte).
    """

    loss: float
    perplexity: float
    trained_tokens: int
    conversations: int
    bits_per_byte: float | None = None
    losses: Sequence[np.ndarray] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, losses: Sequence[np.ndarray]) -> "Score":
        """Return the score of conversations by the losses of their trained tokens."""
        count = sum(map(len, losses))
        mean = sum(float(one.sum(dtype=np.float64)) for one in losses) / count
        return cls(mean, math.exp(min(mean, 700)), count, len(losses), losses=losses)

    def facts(self) -> dict[str, float]:
        """Return the figures, without the losses they were computed from."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "losses"}


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rows: Dataset,
    *,
    batch_size: int,
    pad_id: int,
    progress: Progress = silent,
) -> Score | None:
    """Score a model on tokenized rows, weighted by token; None when there are no rows."""
    order = sorted(range(len(rows)), key=rows["length"][:].__getitem__)
    if not order:
        return None
    by_row: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch_rows = [rows[i] for i in indices]
        batch = padded(batch_rows, max(row["length"] for row in batch_rows), pad_id)
        counts = (batch["labels"][:, 1:] != NOT_TRAINED).sum(1).tolist()
        losses = token_losses(model, model, {k: v.to(model.device) for k, v in batch.items()})
        parts = losses.cpu().split(counts)
        by_row |= {i: part.numpy() for i, part in zip(indices, parts, strict=True)}
        progress(min(start + batch_size, len(order)), len(order))
    return Score.of([by_row[i] for i in range(len(rows))])


def text_rows(text: str, tokenizer: PreTrainedTokenizerBase, window: int) -> Dataset:
    """Cut a plain text into rows of at most `window` tokens; each begins with an end mark, and all
    other tokens are scored.

    Special tokens spelled out in the text are plain text.
    """
    ids = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    first = tokenizer.eos_token_id
    rows = [[first, *ids[at : at + window - 1]] for at in range(0, len(ids), window - 1)]
    return Dataset.from_dict(
        {
            "input_ids": rows,
            "labels": [[NOT_TRAINED, *row[1:]] for row in rows],
            "length": [len(row) for row in rows],
        }
    )


def plain_rows(path: Path, model: PreTrainedModel, tokenizer: Any) -> tuple[Dataset, int]:
    """Return the rows of a plain text file, and the size of its text in bytes."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError("plain_text_file", "is not UTF-8 text", "save it as UTF-8") from None
    if not text.strip():
        raise UserError("plain_text_file", "is empty", "give some pages of text")
    longest = configs.positions(model.config) or WINDOW_TOKENS
    return text_rows(text, tokenizer, min(WINDOW_TOKENS, longest)), len(text.encode())
