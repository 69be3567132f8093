"""This machine's cores, GPUs and memory, and the number of ranks and steps that follow."""

import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from neoxkit.errors import UserError
from neoxkit.settings import TrainSettings

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def in_short(gib: float) -> str:
    """Format GiB for people.

    >>> in_short(0.2649), in_short(3.84), in_short(178.2)
    ('0.26', '3.8', '178')
    """
    return f"{gib:.2g}" if gib < 10 else f"{gib:,.0f}"


def duration(seconds: float) -> str:
    """Format a time for people.

    >>> duration(30), duration(3000), duration(7300), duration(3 * 86400)
    ('30 s', '50 min', '2 h', '3 days')
    """
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.2g} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def device_gib(on_gpu: bool, num_ranks: int) -> float | None:
    """Return the memory of the smallest GPU, or of a CPU rank now; None if unknown.

    Ask the driver's own tool: torch would open a context on the GPU that a training needs.
    """
    if not on_gpu:
        return available_gib() / num_ranks
    try:
        return _smallest_gpu_gib()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _smallest_gpu_gib() -> float:
    return min(map(int, _of_each_gpu("memory.total"))) / 1024


@functools.cache  # the tool takes up to a second; a failure is not kept
def _of_each_gpu(what: str) -> list[str]:
    """Ask the driver's own tool for a fact of each GPU in the machine."""
    ask = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout
    return said.split()


def available_gib() -> float:
    """Return the available memory of the machine, or of its container if that has less."""
    free = psutil.virtual_memory().available
    try:
        limit = int(_CGROUP.read_text())
        free = min(free, limit - int(_CGROUP.with_name("memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return free / GIB


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """Return the number of GPUs that torch can use, without opening a context.

    torch itself, whose import takes seconds, is asked only where nothing else knows.
    """
    known = None if "torch" in sys.modules else _num_gpus_without_torch()
    if known is not None:
        return known
    import torch

    return torch.cuda.device_count()


def _num_gpus_without_torch() -> int | None:
    """Return the same by torch's build, the driver's tool and CUDA_VISIBLE_DEVICES; None where
    torch may count another way (ROCm, UUIDs, no tool)."""
    cuda, rocm = _built_for()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not (cuda or rocm) or visible == "":
        return 0
    if rocm or (visible and not re.fullmatch(r"\d+(,\d+)*", visible)):
        return None
    try:
        there = len(_of_each_gpu("memory.total"))
    except (OSError, subprocess.SubprocessError):
        return None
    ids = [int(i) for i in visible.split(",")] if visible else [*range(there)]
    # torch stops at the first number without a GPU, and takes none if one is there twice.
    return len([*takewhile(lambda i: i < there, ids)]) if len({*ids}) == len(ids) else 0


@functools.cache
def _built_for() -> tuple[str | None, str | None]:
    """Return the CUDA and the ROCm that torch was built for, by its version file alone."""
    package = importlib.util.find_spec("torch")
    assert package and package.origin
    file = Path(package.origin).with_name("version.py")
    spec = importlib.util.spec_from_file_location("torch_version", file)
    assert spec and spec.loader
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    return version.cuda, version.hip


def gpus_have_bf16() -> bool:
    """Return whether torch's GPUs compute in bf16 themselves: from NVIDIA's Ampere on."""
    if "torch" not in sys.modules:
        try:
            ampere = {float(one) >= 8 for one in _of_each_gpu("compute_cap")}
        except (OSError, ValueError, subprocess.SubprocessError):
            ampere = set()
        if len(ampere) == 1:  # else it depends on which of them torch takes
            return ampere.pop()
    import torch

    return torch.cuda.is_bf16_supported(False)


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 itself (AMX, AVX-512 or Arm), by what Linux says."""
    try:
        said = Path("/proc/cpuinfo").read_text("ascii", "ignore")
    except OSError:
        return False
    return bool(re.search(r"^(flags|Features)\s*:.*\b(amx_bf16|avx512_bf16|bf16)\b", said, re.M))


def num_ranks(settings: TrainSettings) -> int:
    """Return the number of ranks; `num_ranks` 0 means all GPUs, or one CPU process."""
    gpus = num_gpus()
    if gpus and settings.num_ranks > gpus:
        raise UserError("num_ranks", f"got {settings.num_ranks}, there are {gpus} GPUs", "lower it")
    if not gpus and settings.num_ranks > (cores := num_cores()):
        what = f"got {settings.num_ranks} CPU processes, there are {cores} cores"
        raise UserError("num_ranks", what, "lower it")
    return settings.num_ranks or gpus or 1


def num_steps(settings: TrainSettings, num_rows: int, ranks: int) -> int:
    """Return the optimizer steps of a whole run, counted as the Trainer counts them."""
    return count_steps(settings.as_dict() | settings.training_arguments, num_rows, ranks)


def count_steps(values: Mapping[str, Any], num_rows: int, ranks: int) -> int:
    """Return the same for the trainer's arguments, by its names."""
    if values["max_steps"] > 0:
        return values["max_steps"]
    size = values["per_device_train_batch_size"]
    if values.get("dataloader_drop_last"):
        batches = num_rows // size // ranks
    else:
        batches = math.ceil(math.ceil(num_rows / ranks) / size)
    an_epoch = max(math.ceil(batches / values["gradient_accumulation_steps"]), 1)
    return math.ceil(values["num_train_epochs"] * an_epoch)


def release_memory() -> None:
    """Return the pages of freed memory to the system, where the C library can (glibc).

    A training keeps them (command.CPU_ENVIRONMENT), and gaps of odd sizes add up: a run grew with
    each evaluation (`memory_gib` in metrics.jsonl).
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library of that name, or another one
        ctypes.CDLL("libc.so.6").malloc_trim(0)
