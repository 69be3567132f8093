"""flops.py: the count of useful work, against torch's own counter and against plain arithmetic."""

import pytest
import torch
from small_models import CLASSES, CONFIGS
from torch.utils.flop_counter import FlopCounterMode

from neoxkit.models import flops
from neoxkit.models.batches import Collator
from neoxkit.models.losses import token_losses

ATTENTION = ("bmm", "scaled_dot_product", "matmul")


@pytest.mark.parametrize("family", CONFIGS)
def test_the_work_of_the_weights_is_what_torch_counts(family: str) -> None:
    """Count one unpadded conversation's forward: linear layers, and output at trained tokens."""
    model = CLASSES[family](CONFIGS[family]).eval()
    row = {"input_ids": list(range(2, 22)), "labels": [-100] * 13 + list(range(15, 22))}
    batch = Collator("packed", 20, pad_id=1)([row])
    tokens, pairs = batch.pop("counts").tolist()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        token_losses(model, model, batch)
    by_operation = {str(op): flop for op, flop in counter.get_flop_counts()["Global"].items()}
    linear = sum(n for op, n in by_operation.items() if not any(a in op for a in ATTENTION))
    work = flops.work(model)
    assert (tokens, pairs) == (20, 210)
    assert linear == 2 * work.weights * 20 + 2 * work.output_weights * 7
    assert work.training_flop(20, 7, 0) == 3 * linear
    # Two layers of width 32: a score and a sum over it, for each token and those before it.
    assert work.training_flop(0, 0, pairs) == 3 * 2 * (2 * 32 + 2 * 32) * 210


def test_the_peak_is_that_of_the_fastest_product() -> None:
    peak = flops.matmul_peak(torch.device("cpu"), torch.float32, seconds=0.05)
    assert 1e9 < peak < 1e15
    assert 0.05 < flops.peak_memory_gib() < 1000
