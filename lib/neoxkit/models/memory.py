"""What a training takes of the disk, the host's memory and the GPU's, part by part.

Bytes a weight: 4 in fp32 or 2 in half precision, as many for its gradient, and 12 for the optimizer
(an fp32 copy and Adam's two moments). ZeRO shares out the optimizer over the ranks (from stage 1),
the gradients (from 2) and the weights (3); Rajbhandari et al. 2020, arXiv:1910.02054, table 1. The
checks before a start count these alone, so what they refuse could not have worked.

`rank_gib` adds, for one rank:

step         the averaged gradient once more, 4 bytes of each weight whose optimizer lies here; on a
             CPU AdamW's temporaries as well: together 12, as was measured
gathered     under ZeRO 3 the weights that are whole at a time: at most stage3_max_live_parameters
buffers      DeepSpeed's two buckets of gradients, and the one of weights where there are ranks
activations  17 x width values of a token and layer: its input, two norms, queries, keys and values
             before and after rotation, attention, and the MLP before and after its activation (the
             count of Korthikanti et al. 2022, arXiv:2205.05198, without dropout and without the
             attention matrix, for parallel attention and MLP); with checkpointing one layer's, and
             the input of each
logits       a value for each trained token and vocabulary entry, once: the loss works in place
libraries    Python, torch and DeepSpeed in a CPU rank; a GPU's context and what its allocator keeps
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.machine import GIB
from neoxkit.runs import checkpoints

OPTIMIZER_BYTES = 12


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
    free = machine.available_gib()
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


LAYER_VALUES = 17  # kept of each token and layer, in units of the width
STEP_BYTES = {False: 12, True: 4}  # on a CPU (measured), on a GPU (with a fused AdamW)
LIBRARIES_GIB = {False: 0.53, True: 1.5}  # on a CPU (measured), on a GPU (allowed for)
MAX_LIVE_PARAMETERS = 10**9  # DeepSpeed's default


@dataclass(frozen=True)
class Shape:
    """What of a GPT-NeoX-style model decides its memory."""

    width: int
    layers: int
    vocabulary: int

    @property
    def num_parameters(self) -> int:
        """Of GPT-NeoX: embeddings and output apart, biases and two norms a layer.

        >>> Shape(512, 6, 50304).num_parameters  # Pythia-70m
        70426624
        """
        layer = 12 * self.width**2 + 13 * self.width
        return 2 * self.vocabulary * self.width + self.layers * layer + 2 * self.width


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank: its tokens with the padding, and those that are trained on."""

    tokens: int
    trained: int
    checkpointing: bool = False


def rank_gib(shape: Shape, job: Job, batch: Batch, config: Mapping[str, Any]) -> dict[str, float]:
    """GiB of each part on one rank's device; the sum is what it needs.

    `config` is the DeepSpeed configuration's `zero_optimization`.
    """
    own = job.trained / (job.num_ranks if job.zero_stage >= 1 else 1)
    size = job.weight_bytes
    reduce = _number(config, "reduce_bucket_size", shape.width**2)
    buckets = 2 * min(reduce, job.trained)
    if job.num_ranks > 1 and job.zero_stage < 3:
        buckets += min(_number(config, "allgather_bucket_size", 500_000_000), job.trained)
    live = _number(config, "stage3_max_live_parameters", MAX_LIVE_PARAMETERS)
    kept = shape.layers * LAYER_VALUES
    if batch.checkpointing:
        kept = shape.layers + LAYER_VALUES
    num_bytes = {
        "step": 0 if job.offload_optimizer else own * STEP_BYTES[job.on_gpu],
        "gathered": size * min(job.num_parameters, live) if job.zero_stage == 3 else 0,
        "buffers": size * buckets,
        "activations": size * batch.tokens * shape.width * kept,
        "logits": size * batch.trained * shape.vocabulary,
    }
    parts = {name: b / GIB for name, b in num_bytes.items()}
    return {**job.rank_gib(), **parts, "libraries": LIBRARIES_GIB[job.on_gpu]}


def _number(config: Mapping[str, Any], name: str, other: int) -> int:
    """A number of the configuration; `other` where it has none, or leaves it to transformers."""
    value = config.get(name)
    return value if isinstance(value, int) else other


def largest_micro_batch(
    shape: Shape, job: Job, one: Batch, device_gib: float, config: Mapping[str, Any]
) -> int:
    """How many conversations like `one` fit on a device at once; 0 if not even one does."""
    least = sum(rank_gib(shape, job, replace(one, tokens=0, trained=0), config).values())
    first = sum(rank_gib(shape, job, one, config).values())
    return max(int((device_gib - least) / (first - least)), 0)
