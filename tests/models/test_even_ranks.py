"""Even shares of a step for all ranks, with exactly its conversations."""

import random

import pytest
from torch.utils.data import SequentialSampler

from neoxkit.models.batches import EvenRanks

LENGTHS = random.Random(5).choices(range(10, 281), k=203)


class Shuffled(SequentialSampler):
    """A sampler with a new order for each epoch, like accelerate's."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(random.Random(self.epoch).sample(range(203), 203))


def test_each_step_keeps_its_conversations() -> None:
    plain, even = Shuffled(LENGTHS), EvenRanks(Shuffled(LENGTHS), LENGTHS, 4, 8)
    for epoch in (0, 3):
        plain.set_epoch(epoch)
        even.set_epoch(epoch)
        before, after = list(plain), list(even)
        assert len(after) == len(even) == len(LENGTHS)
        steps = [slice(at, at + 32) for at in range(0, 192, 32)]
        assert all(sorted(before[step]) == sorted(after[step]) for step in steps)
        assert after[192:] == before[192:]  # too few for every rank: left as they are
        assert after != before


@pytest.mark.parametrize(("num_ranks", "batch_size"), [(2, 16), (3, 16), (8, 6)])
def test_the_ranks_of_a_step_have_even_work(num_ranks: int, batch_size: int) -> None:
    """Rank r's micro-batch of a step is its r-th part of the order, as accelerate deals it."""
    order = list(EvenRanks(Shuffled(LENGTHS), LENGTHS, num_ranks, batch_size))
    step = num_ranks * batch_size
    for start in range(0, len(order) - step + 1, step):
        shares = [order[start + r * batch_size :][:batch_size] for r in range(num_ranks)]
        tokens = [sum(LENGTHS[i] for i in share) for share in shares]
        assert max(tokens) < 1.03 * sum(tokens) / num_ranks
