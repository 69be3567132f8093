"""The disk space, host memory and GPU memory that a training needs, part by part.

Bytes per weight: 4 in fp32 or 2 in half precision, as many for its gradient, and 12 for the
optimizer (an fp32 copy and Adam's two moments). ZeRO shares out the optimizer over the ranks (from
stage 1), the gradients (from 2) and the weights (3); Rajbhandari et al. 2020, arXiv:1910.02054,
table 1. The checks before a start count only these, so a refused training could not have worked.

`rank_gib` adds, for one rank:

step         a second copy of the averaged gradient, 4 bytes for each weight whose optimizer is on
             this rank; with AdamW's temporaries on a CPU 12 bytes, measured
gathered     under ZeRO 3 the weights gathered at one time: at most stage3_max_live_parameters
buffers      DeepSpeed's two buckets of gradients, and one of weights if there are several ranks
activations  17 x width values per token and layer: its input, two norms, queries, keys and values
             before and after rotation, attention, and the MLP before and after its activation (the
             count of Korthikanti et al. 2022, arXiv:2205.05198, without dropout and without the
             attention matrix, for parallel attention and MLP); with checkpointing, those of one
             layer and the input of each
logits       one value per trained token and vocabulary entry, once: the loss works in place
libraries    Python, torch and DeepSpeed in a CPU rank; a GPU's context and its allocator's reserve
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
LAYER_VALUES = 17  # kept per token and layer, in units of the width
STEP_BYTES = {False: 12, True: 4}  # CPU (measured), GPU (with a fused AdamW)
LIBRARIES_GIB = {False: 0.53, True: 1.5}  # CPU (measured), GPU (an allowance)
MAX_LIVE_PARAMETERS = 10**9  # DeepSpeed's default


@dataclass(frozen=True)
class Job:
    """The facts that decide the needs of a training on one machine."""

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
        """Make a job under a DeepSpeed configuration's `zero_optimization`.

        A CPU rank offloads nothing.
        """
        names = {"offload_optimizer": "offload_optimizer", "offload_weights": "offload_param"}
        offloads = {
            ours: facts.get("on_gpu", False) and zero.get(theirs, {}).get("device") == "cpu"
            for ours, theirs in names.items()
        }
        return cls(zero_stage=zero.get("stage", 0), **offloads, **facts)

    @property
    def trained(self) -> int:
        """The number of weights that are trained."""
        return self.num_parameters if self.num_trained is None else self.num_trained

    @property
    def weight_bytes(self) -> int:
        """The bytes of one weight in the training's precision."""
        return 2 if self.half else 4

    def checkpoint_gib(self) -> float:
        """Return a checkpoint's size: model, DeepSpeed's copy of it below ZeRO 3, optimizer.

        Only trained weights count: a checkpoint leaves frozen ones out.
        """
        copies = 1 if self.zero_stage == 3 else 2
        return self.trained * (copies * self.weight_bytes + OPTIMIZER_BYTES) / GIB

    def model_gib(self) -> float:
        """Return the size of the exported weights."""
        return self.trained * self.weight_bytes / GIB

    def rank_gib(self) -> dict[str, float]:
        """Return weights, gradients and optimizer on a rank's device, without offloaded parts."""
        weights = 0 if self.offload_weights else self._share(3, self.weight_bytes)
        gradients, optimizer = self._share(2, self.weight_bytes), self._share(1, OPTIMIZER_BYTES)
        if self.offload_optimizer:  # gradients are offloaded with it, bucket by bucket
            gradients = optimizer = 0
        num_bytes = {
            "weights": self.num_parameters * weights,
            "gradients": self.trained * gradients,
            "optimizer": self.trained * optimizer,
        }
        return {name: b / GIB for name, b in num_bytes.items()}

    def host_gib(self) -> dict[str, float]:
        """Return the host memory of all ranks together, while loading and later."""
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
    """Refuse a disk without room for the checkpoints that are kept, the next one, and the model.

    Without a limit all are kept. Their number is not known here, so room for two is required.
    """
    kept = max(limit or 0, checkpoints.LEAST_KEPT)
    more = max(kept - len(checkpoints.whole(run)), 0) + 1
    need = more * job.checkpoint_gib() + job.model_gib()
    free = shutil.disk_usage(run).free / GIB
    if need > free:
        what = f"{more} checkpoints and the model need {need:.3g} GiB, but {free:.3g} are free"
        least = checkpoints.LEAST_KEPT
        remedy = f"free some, or set save_total_limit {least}" if kept > least else "free some"
        raise UserError("disk", what, remedy)


def check_host(job: Job) -> None:
    """Refuse a host whose free memory can't hold the larger of its parts."""
    part, need = max(job.host_gib().items(), key=lambda item: item[1])
    free = machine.available_gib()
    if need > free:
        what = f"{part} {job.num_parameters:,} weights needs {need:.3g} GiB, {free:.3g} are free"
        raise UserError("memory", what, "use a smaller model, fewer ranks, or zero3")


def check_gpu(job: Job, total_gib: float) -> str:
    """Return the least memory that a GPU must have, in words; refuse one that has less."""
    parts = job.rank_gib()
    need = sum(parts.values())
    counted = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
    said = f"a GPU needs {need:.1f} GiB ({counted}) besides the activations"
    if need > total_gib:
        remedy = "use zero3_offload, more GPUs, or a smaller model"
        raise UserError("ds_config", f"{said}, and has {total_gib:.1f}", remedy)
    return f"{said}, and has {total_gib:.1f}"


def half_the_memory(arguments: Mapping[str, Any]) -> str:
    """Name settings with about half the activations that train the same steps."""
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


@dataclass(frozen=True)
class Shape:
    """The properties of a GPT-NeoX-style model that decide its memory."""

    width: int
    layers: int
    vocabulary: int

    @property
    def num_parameters(self) -> int:
        """GPT-NeoX's count: untied embeddings and output, biases, two norms per layer.

        >>> Shape(512, 6, 50304).num_parameters  # Pythia-70m
        70426624
        """
        layer = 12 * self.width**2 + 13 * self.width
        return 2 * self.vocabulary * self.width + self.layers * layer + 2 * self.width


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank: its tokens with the padding, and those that are trained on.

    Means over many micro-batches need not be whole numbers.
    """

    tokens: float
    trained: float
    checkpointing: bool = False


def rank_gib(shape: Shape, job: Job, batch: Batch, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the GiB of each part on one rank's device; their sum is its need.

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
    """Return a number of the configuration; `other` if it is missing or left to transformers."""
    value = config.get(name)
    return value if isinstance(value, int) else other


def largest_micro_batch(
    shape: Shape, job: Job, one: Batch, device_gib: float, config: Mapping[str, Any]
) -> int:
    """Return how many conversations like `one` fit on a device at once; 0 if none does."""
    least = sum(rank_gib(shape, job, replace(one, tokens=0, trained=0), config).values())
    first = sum(rank_gib(shape, job, one, config).values())
    return max(int((device_gib - least) / (first - least)), 0)
