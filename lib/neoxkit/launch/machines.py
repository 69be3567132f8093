"""The table of `neoxkit fit`: the models and configurations that fit on each machine."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import UserError
from neoxkit.machine import in_short
from neoxkit.models import memory
from neoxkit.models.memory import Batch, Shape

# From their configurations on the hub (EleutherAI/pythia-..., EleutherAI/gpt-neox-20b).
SHAPES = {
    "pythia-70m": Shape(512, 6, 50304),
    "pythia-160m": Shape(768, 12, 50304),
    "pythia-410m": Shape(1024, 24, 50304),
    "pythia-1b": Shape(2048, 16, 50304),
    "pythia-1.4b": Shape(2048, 24, 50304),
    "pythia-2.8b": Shape(2560, 32, 50304),
    "pythia-6.9b": Shape(4096, 32, 50432),
    "pythia-12b": Shape(5120, 36, 50688),
    "gpt-neox-20b": Shape(6144, 44, 50432),
}


# The fastest first, as in ds_configs/README.md.
CONFIGS = ("zero2", "zero2_offload", "zero3", "zero3_offload")
BLOCK_SIZE = 280
ROOMY = 8  # conversations


@dataclass(frozen=True)
class Machine:
    """A machine with `num_gpus` GPUs of `gib` GiB each."""

    num_gpus: int
    gib: int

    def __str__(self) -> str:
        return f"{self.num_gpus} x {self.gib} GiB"


MACHINES = tuple(Machine(*of) for of in ((1, 16), (1, 24), (1, 80), (4, 24), (8, 24), (8, 80)))


def machine(text: str) -> Machine:
    """Parse a machine as it is written at a shell.

    >>> str(machine("4x24"))
    '4 x 24 GiB'
    """
    if not (found := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)):
        raise UserError("--machine", f"got {text!r}", "write GPUs x GiB, like 4x24")
    return Machine(*map(int, found.groups()))


def job_of(
    shape: Shape, config: Mapping[str, Any], num_gpus: int, lora_rank: int = 0
) -> memory.Job:
    """Return a bf16 training on `num_gpus` GPUs under a configuration's `zero_optimization`."""
    adapters = 16 * lora_rank * shape.layers * shape.width  # 4 + 2 + 5 + 5 widths per layer
    return memory.Job.under(
        config,
        num_parameters=shape.num_parameters,
        num_trained=adapters or None,
        num_ranks=num_gpus,
        half=True,
        on_gpu=True,
    )


def configurations() -> dict[str, dict[str, Any]]:
    """Read the `zero_optimization` of each of the kit's configurations, in CONFIGS' order."""
    folder = paths.root() / "ds_configs"
    return {n: files.read_json(folder / f"{n}.json")["zero_optimization"] for n in CONFIGS}


def choices(
    configs: Mapping[str, Mapping[str, Any]],
    lora_rank: int = 0,
    machines: Sequence[Machine] = MACHINES,
) -> list[tuple[str, ...]]:
    """Choose a configuration for each model and machine: the first with room for ROOMY
    conversations, else the one with the most room. Give its largest micro-batch and the GiB that
    the host must have.

    Conversations have BLOCK_SIZE tokens, half of them trained, with gradient checkpointing.
    """
    return [
        (name, *(_choice(shape, configs, lora_rank, one) for one in machines))
        for name, shape in SHAPES.items()
    ]


def _choice(
    shape: Shape, configs: Mapping[str, Mapping[str, Any]], lora_rank: int, machine: Machine
) -> str:
    one = Batch(BLOCK_SIZE, BLOCK_SIZE // 2, checkpointing=True)
    jobs = {
        name: job_of(shape, zero, machine.num_gpus, lora_rank) for name, zero in configs.items()
    }
    sizes = {
        name: memory.largest_micro_batch(shape, job, one, machine.gib, configs[name])
        for name, job in jobs.items()
    }
    roomy = [name for name, size in sizes.items() if size >= ROOMY]
    best = roomy[0] if roomy else max(sizes, key=sizes.__getitem__)
    if not sizes[best]:
        return "no"
    host = max(jobs[best].host_gib().values())
    return f"{best} {sizes[best]:,}, host {in_short(host)}"
