"""The disk space, host memory and GPU memory that a training needs, part by part.

`Job.rank_gib` gives the parts of one rank:

weights      4 bytes each in fp32, 2 in half precision; under ZeRO 3 shared out over the ranks
gradients    as many for each trained weight; shared out from ZeRO 2, and then 4 on a CPU
optimizer    12 for each trained weight: an fp32 copy and Adam's two moments; shared out from ZeRO 1
step         a second copy of the averaged gradient, 4 bytes for each weight whose optimizer is on
             this rank; with AdamW's temporaries on a CPU 12 bytes, measured
gathered     under ZeRO 3 the weights gathered at one time: at most stage3_max_live_parameters
buffers      DeepSpeed's two buckets of gradients, and below ZeRO 3 one of weights if there are
             several ranks
activations  17 x width values per token and layer: its input, two norms, queries, keys and values
             before and after rotation, attention, and the MLP before and after its activation (the
             count of Korthikanti et al. 2022, arXiv:2205.05198, without dropout and without the
             attention matrix, for parallel attention and MLP); with checkpointing, those of one
             layer and the input of each
logits       one value per trained token and vocabulary entry, once: the loss works in place
copy         with verify_steps the trained weights and the optimizer once more, on the host
libraries    Python, torch and DeepSpeed in a CPU rank; a GPU's context and its allocator's reserve

The first three are table 1 of Rajbhandari et al. 2020, arXiv:1910.02054. An optimizer offloaded to
the host takes its step and the gradients with it, bucket by bucket. The checks before a start count
only the first three, the host's memory and the disk, so a refused training could not have worked.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.machine import GIB
from neoxkit.models import lora
from neoxkit.models.shape import ModelShape
from neoxkit.runs import checkpoints

OPTIMIZER_BYTES = 12
LAYER_VALUES = 17  # kept per token and layer, in units of the width
STEP_BYTES = {False: 12, True: 4}  # CPU (measured), GPU (with a fused AdamW)
LIBRARIES_GIB = {False: 0.53, True: 1.5}  # CPU (measured), GPU (an allowance)
MAX_LIVE_PARAMETERS = 10**9  # DeepSpeed's default
ALLGATHER_BUCKET = 5 * 10**8  # the same


@dataclass(frozen=True)
class Job:
    """The facts that decide the needs of a training.

    `zero` is the DeepSpeed configuration's `zero_optimization`.
    """

    width: int
    layers: int
    vocabulary: int
    num_parameters: int
    num_trained: int  # fewer than all with LoRA
    num_ranks: int
    zero: Mapping[str, Any]
    half: bool
    on_gpu: bool
    checkpointing: bool
    from_scratch: bool = False
    num_nodes: int = 1  # of as many ranks each
    verifies: bool = False  # some steps are taken twice

    @classmethod
    def of(cls, shape: ModelShape, lora_rank: int, **facts: Any) -> "Job":
        """Make the job that trains a model of this shape; LoRA rank 0: whole."""
        if lora_rank:
            lora.layers(shape.family)  # refuses a family that gets no adapters
        return cls(
            width=shape.width,
            layers=shape.layers,
            vocabulary=shape.vocabulary,
            num_parameters=shape.num_parameters,
            num_trained=lora_rank * shape.lora_sizes if lora_rank else shape.num_parameters,
            **facts,
        )

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage; 0 without ZeRO."""
        return self.zero.get("stage", 0)

    @property
    def weight_bytes(self) -> int:
        """The bytes of one weight in the training's precision."""
        return 2 if self.half else 4

    @property
    def gradient_bytes(self) -> int:
        """The bytes of one gradient; on a CPU ZeRO 2 and 3 add them up in fp32 (ds_file)."""
        return self.weight_bytes if self.on_gpu or self.zero_stage < 2 else 4

    def checkpoint_gib(self) -> float:
        """Return a checkpoint's size: model, DeepSpeed's copy of it below ZeRO 3, optimizer.

        Only trained weights count: a checkpoint leaves frozen ones out.
        """
        copies = 1 if self.zero_stage == 3 else 2
        return self.num_trained * (copies * self.weight_bytes + OPTIMIZER_BYTES) / GIB

    def model_gib(self) -> float:
        """Return the size of the exported weights."""
        return self.num_trained * self.weight_bytes / GIB

    def rank_gib(self, tokens: float = 0, trained: float = 0) -> dict[str, float]:
        """Return the parts on one rank's device, without offloaded ones.

        A micro-batch has `tokens` tokens with its padding, and `trained` trained ones.
        """
        size, num_trained = self.weight_bytes, self.num_trained
        of_optimizer = 0 if self._offloads("optimizer") else num_trained
        buckets = 2 * min(self._number("reduce_bucket_size", self.width**2), num_trained)
        if self.num_ranks > 1 and self.zero_stage < 3:
            buckets += min(self._number("allgather_bucket_size", ALLGATHER_BUCKET), num_trained)
        live = self._number("stage3_max_live_parameters", MAX_LIVE_PARAMETERS)
        gathered = min(self.num_parameters, live) if self.zero_stage == 3 else 0
        in_layers = self.layers * LAYER_VALUES
        if self.checkpointing:
            in_layers = self.layers + LAYER_VALUES
        weights = 0 if self._offloads("param") else self.num_parameters
        num_bytes = {
            "weights": size * weights / self._sharers(3),
            "gradients": self.gradient_bytes * of_optimizer / self._sharers(2),
            "optimizer": OPTIMIZER_BYTES * of_optimizer / self._sharers(1),
            "step": STEP_BYTES[self.on_gpu] * of_optimizer / self._sharers(1),
            "gathered": size * gathered,
            "buffers": size * buckets,
            "activations": size * tokens * self.width * in_layers,
            "logits": size * trained * self.vocabulary,
        }
        parts = {name: b / GIB for name, b in num_bytes.items()}
        if self.verifies and not self.on_gpu:
            parts["copy"] = self._copy_gib()
        return {**parts, "libraries": LIBRARIES_GIB[self.on_gpu]}

    def least_gib(self) -> dict[str, float]:
        """Return weights, gradients and optimizer on one rank's device."""
        parts = self.rank_gib()
        return {name: parts[name] for name in ("weights", "gradients", "optimizer")}

    def _copy_gib(self) -> float:
        """Return what a rank keeps while it takes a step twice."""
        if not self.verifies:
            return 0.0
        of_weights = self.weight_bytes / self._sharers(3) + OPTIMIZER_BYTES / self._sharers(1)
        return self.num_trained * of_weights / GIB

    def largest_micro_batch(self, tokens: float, trained: float, device_gib: float) -> int:
        """Return how many conversations of that many tokens fit on a device at once."""
        least = sum(self.rank_gib().values())
        first = sum(self.rank_gib(tokens, trained).values())
        return max(int((device_gib - least) / (first - least)), 0)

    def host_gib(self) -> dict[str, float]:
        """Return the memory of a host, for all its ranks together, while loading and later."""
        num_bytes, ranks_here = [], -(-self.num_ranks // self.num_nodes)
        if self.zero_stage == 3 or self.from_scratch:  # shared out from one; made by one in fp32
            num_bytes.append(4 * self.num_parameters)
        if self.zero_stage != 3:  # each rank reads its own, in the training's precision
            num_bytes.append(self.weight_bytes * ranks_here * self.num_parameters)
        loading, copies = max(num_bytes) / GIB, ranks_here * self._copy_gib()
        if not self.on_gpu:
            least = ranks_here * sum(self.least_gib().values())
            return {"loading": loading, "training": least + copies}
        states = OPTIMIZER_BYTES + self.weight_bytes
        optimizer = self.num_trained * states * self._offloads("optimizer")
        weights = self.num_parameters * self.weight_bytes * self._offloads("param")
        offloaded = (optimizer + weights) / self.num_nodes / GIB
        verifying = {"verifying": offloaded + copies} if self.verifies else {}
        return {"loading": loading, "offloading": offloaded, **verifying}

    def network_gib(self, micro_batches: int = 1) -> float:
        """Return what must come into each node in an optimizer step, at the least.

        Below ZeRO 3 the gradients of each micro-batch are reduced and the new weights gathered
        once; under ZeRO 3 each micro-batch gathers all weights twice (Rajbhandari et al. 2020,
        section 7). Of each, the share that is on other nodes must come in.
        """
        trained = self.num_trained * self.weight_bytes
        num_bytes = trained * micro_batches
        if self.zero_stage == 3:
            num_bytes += 2 * self.num_parameters * self.weight_bytes * micro_batches
        else:
            num_bytes += trained
        return num_bytes * (1 - 1 / self.num_nodes) / GIB

    def _sharers(self, stage: int) -> int:
        """Return how many ranks share out what ZeRO shares out from this stage."""
        return self.num_ranks if self.zero_stage >= stage else 1

    def _offloads(self, what: str) -> bool:
        """Tell whether "optimizer" or "param" is offloaded; a CPU rank offloads nothing."""
        return self.on_gpu and self.zero.get(f"offload_{what}", {}).get("device") == "cpu"

    def _number(self, name: str, other: int) -> int:
        """Return a number of `zero`; `other` if it is missing or left to transformers."""
        value = self.zero.get(name)
        return value if isinstance(value, int) else other


def check_disk(
    run: Path, job: Job, limit: int | None, keeps_best: bool = False, snapshots: int = 0
) -> None:
    """Refuse a disk without room for the checkpoints that are kept, the next one, and the model;
    and for as many snapshots of it.

    Without a limit all are kept. Their number is not known here, so room for two is required.
    """
    kept = max(limit or 0, checkpoints.LEAST_KEPT)
    more = max(kept + keeps_best - len(checkpoints.whole(run)), 0) + 1
    need = more * job.checkpoint_gib() + (1 + snapshots) * job.model_gib()
    free = shutil.disk_usage(run).free / GIB
    if need > free:
        and_more = f", {snapshots} snapshots" if snapshots else ""
        what = f"{more} checkpoints{and_more} and the model need {need:.3g} GiB, "
        what += f"but {free:.3g} are free"
        least = checkpoints.LEAST_KEPT
        remedy = f"free some, or set save_total_limit {least}" if kept > least else "free some"
        raise UserError("disk", what, remedy)


def check_host(job: Job) -> None:
    """Refuse a host whose free memory can't hold the larger of its parts."""
    part, need = max(job.host_gib().items(), key=lambda item: item[1])
    free = machine.available_gib()
    if need > free:
        what = f"{part} {job.num_parameters:,} weights needs {need:.3g} GiB, {free:.3g} are free"
        without = "set verify_steps 0, or " if job.verifies and part != "loading" else ""
        raise UserError("memory", what, f"{without}use a smaller model, fewer ranks, or zero3")


def check_gpu(job: Job, total_gib: float) -> str:
    """Return the least memory that a GPU must have, in words; refuse one that has less."""
    parts = job.least_gib()
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


def ran_out(fault: Exception) -> bool:
    """Return whether a failure is that of memory, the device's or the host's."""
    import torch

    return isinstance(fault, torch.OutOfMemoryError | MemoryError) or (
        isinstance(fault, RuntimeError) and "can't allocate memory" in str(fault)
    )
