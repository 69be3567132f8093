"""Which rank gets which conversation of a step: equal numbers, and about equal tokens."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from neoxkit.batches import even_rows


class EvenRanks(Sampler[int]):
    """Another sampler's order, in which the ranks' micro-batches of a step have even work.

    All ranks wait for the one with the most tokens. Each micro-step of all ranks holds the very
    conversations that it holds without this, so that the loss and the gradients are the same.
    """

    def __init__(
        self, sampler: Sampler[int], lengths: Sequence[int], num_ranks: int, batch_size: int
    ) -> None:
        self.sampler, self.lengths = sampler, lengths
        self.num_ranks, self.batch_size = num_ranks, batch_size

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """A new order; each epoch has its own."""
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
