"""Rows to batches: padded to the block size, or packed with little padding and just as exact.

Conversations of a packed row can't see each other: the model gets position ids that restart at 0
with each conversation, but no attention mask and no cache. With either of these, conversations
silently leak into each other.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from neoxkit.data.table import NOT_TRAINED
from neoxkit.models.attention import ENDS

Row = Mapping[str, Sequence[int]]


# About the row width at which attention costs as much as everything else. Derived from the speeds
# with rows of 280 and 560 tokens, at the shape of Pythia-70m on two CPU cores (756 and 705 useful
# tokens/s: benchmarks/bare_loop.py --row-tokens). It only weighs ways to place conversations.
ATTENTION_TOKENS = 2000


def place(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Spread items over the rows that cost least, each of `row_tokens` to twice as many tokens.

    A few more tokens per row often even the rows out, which saves padding but costs attention.
    Returns the items' indices, one list per row.

    >>> place([6, 6, 6], 9)
    [[0, 1, 2]]
    >>> place([5, 7, 5, 7], 12)
    [[1, 0], [3, 2]]
    """
    most = math.ceil(sum(lengths) / row_tokens)
    choices = (even_rows(lengths, num) for num in range(most, math.ceil(most / 2) - 1, -1))
    return min(choices, key=lambda rows: _cost(rows, lengths))


def _cost(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Return the cost of computing a batch, in tokens: with padding, and attention on top."""
    width = max(sum(lengths[i] for i in items) for items in rows)
    return len(rows) * width * (1 + width / ATTENTION_TOKENS)


def even_rows(
    lengths: Sequence[int], num_rows: int, most_items: int | None = None
) -> list[list[int]]:
    """Spread items over `num_rows` rows of at most `most_items` items, all about equally full.

    The longest go first, each into the emptiest row: all rows of a batch are as wide as its
    widest, so even rows waste least.

    >>> even_rows([3, 7, 5, 4], 2)
    [[1, 0], [2, 3]]
    """
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled = [(0, r) for r in range(num_rows)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, r = heapq.heappop(filled)
        rows[r].append(i)
        if len(rows[r]) != most_items:
            heapq.heappush(filled, (tokens + lengths[i], r))
    return rows


def padded(rows: Sequence[Row], width: int, pad_id: int) -> dict[str, torch.Tensor]:
    """Make input_ids, attention_mask and labels of shape (len(rows), width); mask the padding."""
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, NOT_TRAINED)
    for r, row in enumerate(rows):
        n = len(row["input_ids"])
        input_ids[r, :n] = torch.as_tensor(row["input_ids"])
        labels[r, :n] = torch.as_tensor(row["labels"])
        attention_mask[r, :n] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def packed(
    rows: Sequence[Row], places: Sequence[Sequence[int]], pad_id: int, ends: bool = False
) -> dict[str, torch.Tensor]:
    """Make input_ids, position_ids and labels of shape (packed rows, longest packed row).

    `places`: the rows of each packed row, from `place` or `even_rows`. The few padding tokens at
    the end of a packed row form a sequence of their own that is not trained on. `ends`: also say
    where the conversations of a single row end (attention.ENDS, and their number plus 1 of int32).

    >>> rows = [{"input_ids": [7, 8], "labels": [-100, 8]}, {"input_ids": [5], "labels": [-100]}]
    >>> packed(rows, [[0, 1]], 1)["position_ids"]
    tensor([[0, 1, 0]])
    """
    width = max(sum(len(rows[i]["input_ids"]) for i in items) for items in places)
    input_ids = torch.full((len(places), width), pad_id)
    labels = torch.full((len(places), width), NOT_TRAINED)
    position_ids = torch.zeros((len(places), width), dtype=torch.long)
    for r, items in enumerate(places):
        at = 0
        for i in items:
            n = len(rows[i]["input_ids"])
            input_ids[r, at : at + n] = torch.as_tensor(rows[i]["input_ids"])
            labels[r, at : at + n] = torch.as_tensor(rows[i]["labels"])
            position_ids[r, at : at + n] = torch.arange(n)
            at += n
        position_ids[r, at:] = torch.arange(width - at)
    batch = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
    if ends:
        (items,) = places
        lengths = [0, *(len(rows[i]["input_ids"]) for i in items)]
        batch[ENDS] = torch.tensor(lengths).cumsum(0).to(torch.int32)
    return batch


def owners(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of the conversation that each trained token belongs to, in the order of
    losses.token_losses: from 0, as they lie in the batch, those without any left out.

    >>> rows = [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}] * 2
    >>> owners(packed(rows, [[0, 1]], 1)), owners(padded(rows, 4, 1))
    (tensor([0, 0, 1, 1]), tensor([0, 0, 1, 1]))
    """
    labels = batch["labels"]
    if "position_ids" in batch:
        number = (batch["position_ids"] == 0).flatten().cumsum(0).view(labels.shape)
    else:
        number = torch.arange(len(labels))[:, None].expand(labels.shape)
    trained = number[:, 1:][labels[:, 1:] != NOT_TRAINED]
    return torch.unique_consecutive(trained, return_inverse=True)[1]


@dataclass(frozen=True)
class Collator:
    """A collator that makes one micro-batch of the conversations that the sampler chose.

    The layout only changes how they lie in memory: conversations, loss and gradients are the same.
    Padded rows have `block_size` tokens; packed ones about `row_tokens`, which the base's attention
    decides (training/base_model.py), or up to twice that where it saves padding; 0 puts a
    micro-batch into one row. `by_conversation`: that row says where conversations end. `counts`
    (shape (2,)): tokens without the padding, and pairs of a token and one that it may attend to.
    Of rows that have a line, `lines` are those of the conversations as they lie in the batch, those
    without a trained token left out, and `owners` as of that function.
    """

    layout: str
    block_size: int
    pad_id: int
    row_tokens: int = 0
    by_conversation: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        places = self._places(lengths)
        if self.layout == "packed":
            batch = packed(rows, places, self.pad_id, self.by_conversation)
        else:
            batch = padded(rows, self.block_size, self.pad_id)
        counts = torch.tensor([sum(lengths), sum(n * (n + 1) // 2 for n in lengths)])
        if rows and "line" in rows[0]:
            in_order = (rows[i] for items in places for i in items)
            lines = [r["line"] for r in in_order if any(t != NOT_TRAINED for t in r["labels"][1:])]
            batch |= {"lines": torch.tensor(lines, dtype=torch.long), "owners": owners(batch)}
        return {**batch, "counts": counts}

    def _places(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.layout != "packed":
            return [[i] for i in range(len(lengths))]
        return place(lengths, self.row_tokens or sum(lengths))


class EvenRanks(Sampler[int]):
    """A sampler that reorders another one so that ranks have about equal work in each step.

    All ranks wait for the one with the most tokens. Each micro-step, over all ranks, keeps its
    conversations, so the loss and the gradients stay the same.
    """

    def __init__(
        self,
        sampler: RandomSampler | SequentialSampler,
        lengths: Sequence[int],
        num_ranks: int,
        batch_size: int,
    ) -> None:
        self.sampler, self.lengths = sampler, lengths
        self.num_ranks, self.batch_size = num_ranks, batch_size

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of an epoch; each has its own."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        step = self.num_ranks * self.batch_size
        whole = len(order) - len(order) % step
        for start in range(0, whole, step):
            items = order[start : start + step]
            lengths = [self.lengths[i] for i in items]
            for share in even_rows(lengths, self.num_ranks, self.batch_size):
                yield from (items[i] for i in share)
        yield from order[whole:]
