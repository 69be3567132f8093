"""What a training needs at least of the disk, the host's memory and the GPU's, by its weights.

Bytes a weight: 4 in fp32 or 2 in half precision, as many for its gradient, and 12 for the optimizer
(an fp32 copy and Adam's two moments). ZeRO shares out the optimizer over the ranks (from stage 1),
the gradients (from 2) and the weights (3). Activations, buffers and libraries are not counted, so
what is refused here could not have worked.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from neoxkit import checkpoints
from neoxkit.errors import UserError

OPTIMIZER_BYTES = 12
GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Job:
    """What decides the needs of a training on one machine."""

    num_parameters: int
    num_ranks: int
    zero_stage: int
    num_trained: int | None = None  # None: all of them; fewer with LoRA
    half: bool = False
    on_gpu: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    @classmethod
    def under(cls, zero: Mapping[str, Any], **facts: Any) -> "Job":
        """A job under a DeepSpeed configuration's `zero_optimization`.

        On a CPU rank nothing is offloaded to anywhere else.
        """
        names = {"offload_optimizer": "offload_optimizer", "offload_weights": "offload_param"}
        offloads = {
            ours: facts.get("on_gpu", False) and zero.get(theirs, {}).get("device") == "cpu"
            for ours, theirs in names.items()
        }
        return cls(zero_stage=zero.get("stage", 0), **offloads, **facts)

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        return self.num_parameters if self.num_trained is None else self.num_trained

    @property
    def weight_bytes(self) -> int:
        """Of one weight in the training's precision."""
        return 2 if self.half else 4

    def checkpoint_gib(self) -> float:
        """A checkpoint: the model, DeepSpeed's own copy of it below ZeRO 3, and the optimizer.

        Of what is trained alone: frozen weights are in no checkpoint.
        """
        copies = 1 if self.zero_stage == 3 else 2
        return self.trained * (copies * self.weight_bytes + OPTIMIZER_BYTES) / GIB

    def model_gib(self) -> float:
        """The weights alone, as they are exported."""
        return self.trained * self.weight_bytes / GIB

    def rank_gib(self) -> dict[str, float]:
        """Weights, gradients and optimizer of one rank, on its device; what is offloaded is not."""
        weights = 0 if self.offload_weights else self._share(3, self.weight_bytes)
        gradients, optimizer = self._share(2, self.weight_bytes), self._share(1, OPTIMIZER_BYTES)
        if self.offload_optimizer:  # the gradients go where it is, bucket by bucket
            gradients = optimizer = 0
        num_bytes = {
            "weights": self.num_parameters * weights,
            "gradients": self.trained * gradients,
            "optimizer": self.trained * optimizer,
        }
        return {name: b / GIB for name, b in num_bytes.items()}

    def host_gib(self) -> dict[str, float]:
        """What all ranks together hold in the host's memory, at loading or later."""
        loading = self.num_parameters * 4 * (1 if self.zero_stage == 3 else self.num_ranks) / GIB
        if not self.on_gpu:
            training = self.num_ranks * sum(self.rank_gib().values())
            return {"loading": loading, "training": training}
        states = OPTIMIZER_BYTES + self.weight_bytes
        optimizer = self.trained * states * self.offload_optimizer
        weights = self.num_parameters * self.weight_bytes * self.offload_weights
        return {"loading": loading, "offloading": (optimizer + weights) / GIB}

    def _share(self, stage: int, num_bytes: int) -> float:
        return num_bytes / (self.num_ranks if self.zero_stage >= stage else 1)


def in_short(gib: float) -> str:
    """GiB as people read them.

    >>> in_short(0.2649), in_short(3.84), in_short(178.2)
    ('0.26', '3.8', '178')
    """
    return f"{gib:.2g}" if gib < 10 else f"{gib:,.0f}"


def check_disk(run: Path, job: Job, limit: int | None) -> None:
    """There must be room for the checkpoints that are kept, the next one, and the model.

    Without a limit all are kept; how many that will be is not known here, and two are asked for.
    """
    kept = max(limit or 0, checkpoints.LEAST_KEPT)
    more = max(kept - len(checkpoints.whole(run)), 0) + 1
    need = more * job.checkpoint_gib() + job.model_gib()
    free = shutil.disk_usage(run).free / GIB
    if need > free:
        what = (
            f"{need:.3g} GiB are needed for {more} checkpoints and the model, {free:.3g} are free"
        )
        least = checkpoints.LEAST_KEPT
        remedy = f"free some, or set save_total_limit {least}" if kept > least else "free some"
        raise UserError("disk", what, remedy)


def check_host(job: Job) -> None:
    """The host's memory must hold the larger of its parts."""
    part, need = max(job.host_gib().items(), key=lambda item: item[1])
    free = available_gib()
    if need > free:
        what = f"{part} {job.num_parameters:,} weights takes {need:.3g} GiB, {free:.3g} are free"
        raise UserError("memory", what, "use a smaller model, fewer ranks, or zero3")


def check_gpu(job: Job, total_gib: float) -> str:
    """What a GPU must hold at least, in words; refused where it has less."""
    parts = job.rank_gib()
    need = sum(parts.values())
    counted = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
    said = f"a GPU needs {need:.1f} GiB ({counted}) and what the activations take"
    if need > total_gib:
        remedy = "use zero3_offload, more GPUs, or a smaller model"
        raise UserError("ds_config", f"{said}, it has {total_gib:.1f}", remedy)
    return f"{said}, of {total_gib:.1f}"


def device_gib(on_gpu: bool, num_ranks: int) -> float | None:
    """Memory of the smallest GPU here, or what a CPU rank can have now; None where nobody says.

    The driver's own tool is asked: torch would open a context on the GPU that a training is to
    have.
    """
    if not on_gpu:
        return available_gib() / num_ranks
    ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout
        return min(map(int, said.split())) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def available_gib() -> float:
    """Memory that can be had: of the machine, or of its container where that has less."""
    free = psutil.virtual_memory().available
    try:
        limit = int(_CGROUP.read_text())
        free = min(free, limit - int(_CGROUP.with_name("memory.current").read_text()))
    except (OSError, ValueError):  # no container, or none with a limit
        pass
    return free / GIB


def half_the_memory(arguments: Mapping[str, Any]) -> str:
    """The settings that need about half the activations and train the same steps, in words."""
    batch = int(arguments.get("per_device_train_batch_size", 8))
    accumulation = int(arguments.get("gradient_accumulation_steps", 1))
    if batch > 1 and batch % 2 == 0:
        return (
            f"set per_device_train_batch_size {batch // 2} and gradient_accumulation_steps "
            f"{2 * accumulation} (the same steps)"
        )
    if not (arguments.get("gradient_checkpointing") or arguments.get("activation_checkpointing")):
        return "set gradient_checkpointing (the same steps)"
    return "use zero3_offload, a smaller block_size, or a smaller model"
