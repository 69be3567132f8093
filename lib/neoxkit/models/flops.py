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
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.matmul(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * side**3 / fastest


def peak_memory_gib() -> float:
    """Return this process's peak memory: allocated on the GPU, or else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
