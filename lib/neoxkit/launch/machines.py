"""The table of `neoxkit fit`: the models and configurations that fit on each machine."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import UserError
from neoxkit.machine import in_short
from neoxkit.models.memory import Job

# Width, layers and vocabulary, from their configurations on the hub (EleutherAI/pythia-...,
# EleutherAI/gpt-neox-20b).
Shape = tuple[int, int, int]
SHAPES: dict[str, Shape] = {
    "pythia-70m": (512, 6, 50304),
    "pythia-160m": (768, 12, 50304),
    "pythia-410m": (1024, 24, 50304),
    "pythia-1b": (2048, 16, 50304),
    "pythia-1.4b": (2048, 24, 50304),
    "pythia-2.8b": (2560, 32, 50304),
    "pythia-6.9b": (4096, 32, 50432),
    "pythia-12b": (5120, 36, 50688),
    "gpt-neox-20b": (6144, 44, 50432),
}


# The fastest first, as in ds_configs/README.md.
CONFIGS = ("zero2", "zero2_offload", "zero3", "zero3_offload")
BLOCK_SIZE = 280
ROOMY = 8  # conversations


@dataclass(frozen=True)
class Machine:
    """A machine with `num_gpus` GPUs of `gib` GiB each, or `num_nodes` that have them together."""

    num_gpus: int
    gib: int
    num_nodes: int = 1

    def __str__(self) -> str:
        nodes = f"{self.num_nodes} x " if self.num_nodes > 1 else ""
        return f"{nodes}{self.num_gpus // self.num_nodes} x {self.gib} GiB"


MACHINES = tuple(Machine(*of) for of in ((1, 16), (1, 24), (1, 80), (4, 24), (8, 24), (8, 80)))


def machine(text: str) -> Machine:
    """Parse a machine written as GPUs x GiB, or several as nodes x GPUs x GiB.

    >>> str(machine("4x24")), str(machine("4x8x80")), machine("4x8x80").num_gpus
    ('4 x 24 GiB', '4 x 8 x 80 GiB', 32)
    """
    if not re.fullmatch(r"([1-9]\d{0,3}x){1,2}[1-9]\d{0,3}", text):
        remedy = "write GPUs x GiB, like 4x24, or nodes x GPUs x GiB, like 4x8x80"
        raise UserError("--machine", f"got {text!r}", remedy)
    *nodes, gpus, gib = map(int, text.split("x"))
    num_nodes = nodes[0] if nodes else 1
    return Machine(num_nodes * gpus, gib, num_nodes)


def num_parameters(width: int, layers: int, vocabulary: int) -> int:
    """Return GPT-NeoX's count: untied embeddings and output, biases, two norms per layer.

    >>> num_parameters(512, 6, 50304)  # Pythia-70m
    70426624
    """
    return 2 * vocabulary * width + layers * (12 * width**2 + 13 * width) + 2 * width


def job_of(
    shape: Shape, zero: Mapping[str, Any], num_gpus: int, lora_rank: int = 0, num_nodes: int = 1
) -> Job:
    """Return a bf16 training with checkpointing on `num_gpus` GPUs, under a configuration's
    `zero_optimization`."""
    width, layers, _ = shape
    total, adapters = num_parameters(*shape), 16 * lora_rank * layers * width  # 4 + 2 + 5 + 5
    kinds = {"half": True, "on_gpu": True, "checkpointing": True}
    return Job(*shape, total, adapters or total, num_gpus, zero, num_nodes=num_nodes, **kinds)


def configurations() -> dict[str, dict[str, Any]]:
    """Read the `zero_optimization` of each of the kit's configurations, in CONFIGS' order."""
    folder = paths.root() / "ds_configs"
    return {n: files.read_json(folder / f"{n}.json")["zero_optimization"] for n in CONFIGS}


def choices(
    configs: Mapping[str, Mapping[str, Any]],
    lora_rank: int = 0,
    where: Sequence[Machine] = MACHINES,
) -> list[tuple[str, ...]]:
    """Choose a configuration for each model and machine: the first with room for ROOMY
    conversations, else the one with the most room. Give its largest micro-batch and the GiB that
    each host must have.

    Conversations have BLOCK_SIZE tokens, half of them trained, with gradient checkpointing.
    """
    return [
        (name, *(_choice(shape, configs, lora_rank, one) for one in where))
        for name, shape in SHAPES.items()
    ]


def _choice(
    shape: Shape, configs: Mapping[str, Mapping[str, Any]], lora_rank: int, where: Machine
) -> str:
    jobs = {
        name: job_of(shape, zero, where.num_gpus, lora_rank, where.num_nodes)
        for name, zero in configs.items()
    }
    sizes = {
        name: job.largest_micro_batch(BLOCK_SIZE, BLOCK_SIZE // 2, where.gib)
        for name, job in jobs.items()
    }
    roomy = [name for name, size in sizes.items() if size >= ROOMY]
    best = roomy[0] if roomy else max(sizes, key=sizes.__getitem__)
    if not sizes[best]:
        return "no"
    host = max(jobs[best].host_gib().values())
    return f"{best} {sizes[best]:,}, host {in_short(host)}"
