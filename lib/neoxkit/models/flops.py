"""The speed of a training, measured against the speed of the device.

Model FLOP utilisation (MFU) is useful floating point operations per second, as a share of the
device's measured rate at matrix products. Useful are those the model needs (Kaplan et al. 2020,
arXiv:2001.08361, and Chowdhery et al. 2022, arXiv:2204.02311, appendix B); for a training step:

    3 x (2 x weights x tokens + 2 x output weights x trained tokens + 4 x layers x width x pairs)

`weights` counts all matrices except the embeddings and the output layer, which works at trained
tokens only. `pairs` are a token and one it may attend to: n (n + 1) / 2 in a conversation of n. The
factor is 3 because backward costs twice forward, and 2 with LoRA because frozen weights need no
gradient. Padding and recomputed activations don't count as useful. GPT-Neo's local layers attend
less far back, but are counted as if they did not.
"""

import resource
import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

PRODUCT_TOKENS = 1024  # rows of a measured product, about those of a micro-batch
FIRST_ROWS = 16


@dataclass(frozen=True)
class Work:
    """The properties of a model that decide its work: numbers of weights, and layers x width."""

    weights: int
    output_weights: int
    attention_width: int
    forwards: int = 3  # the cost of a step, in forward passes; 2 for frozen weights (LoRA)

    def training_flop(self, tokens: float, trained: float, pairs: float) -> float:
        """Return the useful floating point operations of a training step over `tokens` tokens."""
        forward = 2 * self.weights * tokens + 2 * self.output_weights * trained
        return self.forwards * (forward + 4 * self.attention_width * pairs)


def work(model: PreTrainedModel) -> Work:
    """Return the Work of a model, whole or sharded by ZeRO-3."""
    output = model.get_output_embeddings().weight
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = [p for p in model.parameters() if len(_shape(p)) == 2]
    config = model.config
    return Work(
        weights=sum(_numel(p) for p in matrices if p not in embeddings and p is not output),
        output_weights=_numel(output),
        attention_width=config.num_hidden_layers * config.hidden_size,
        forwards=3 if output.requires_grad else 2,
    )


def _shape(parameter: torch.nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _numel(parameter: torch.nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Measure the fastest product of two square matrices in about `seconds`, in FLOP/s.

    They are large enough to keep the device busy (8,192 on a GPU, 2,048 on a CPU).
    """
    side = 8192 if device.type == "cuda" else 2048
    return matmul_speed((side, side, side), device, dtype, seconds)


def bf16_gain(width: int, seconds: float = 0.3) -> float:
    """Measure how many times as fast as in fp32 this CPU multiplies in bf16, at the inner layer of
    a model of this width, in about `seconds`."""
    sizes, cpu = (PRODUCT_TOKENS, width, 4 * width), torch.device("cpu")
    fp32, bf16 = (
        matmul_speed(sizes, cpu, dtype, seconds / 2) for dtype in (torch.float32, torch.bfloat16)
    )
    return bf16 / fp32


def matmul_speed(
    sizes: tuple[int, int, int], device: torch.device, dtype: torch.dtype, seconds: float
) -> float:
    """Measure the fastest product of a matrix of `sizes[0]` rows and `sizes[1]` columns with one of
    `sizes[2]` columns, in FLOP/s.

    It begins with few rows: a device without the type may be a thousand times as slow at it.
    """
    rows, inner, columns = sizes
    one = torch.randn(rows, inner, device=device, dtype=dtype)
    other = torch.randn(inner, columns, device=device, dtype=dtype)
    tried, fastest, end = min(FIRST_ROWS, rows), 0.0, time.perf_counter() + seconds
    while not fastest or time.perf_counter() < end:
        begun = time.perf_counter()
        torch.matmul(one[:tried], other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - begun
        fastest = max(fastest, 2 * tried * inner * columns / took)
        if took < seconds / 3:
            tried = min(2 * tried, rows)
    return fastest


def peak_memory_gib() -> float:
    """Return this process's peak memory: allocated on the GPU, or else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
