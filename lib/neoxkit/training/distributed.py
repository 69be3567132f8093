"""The processes of a training among themselves."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.zero import stage_1_and_2


def is_first() -> bool:
    """Whether this is rank 0, which writes what is written once."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether it is the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def barrier() -> None:
    """Wait for the others."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def of_first(values: list[Any]) -> list[Any]:
    """Rank 0's values, in every rank."""
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values


def use_broadcasts() -> None:
    """Let ZeRO 1 and 2 share the new weights by broadcasts, which gloo is quicker at.

    For ranks on a CPU only; call it before training. DeepSpeed 0.19 documents a setting for it,
    `allgather_partitions`, and does not read it.
    """
    stage_1_and_2.all_gather_dp_groups = broadcast_partitions


def broadcast_partitions(
    partitioned_param_groups: Sequence[Sequence[torch.Tensor]],
    dp_process_group: Sequence[Any],
    **_: Any,
) -> None:
    """Each rank's partition of each parameter group to all: what DeepSpeed's gather does."""
    for partitions, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, partition in enumerate(partitions):
            source = torch.distributed.get_global_rank(group, rank)
            comm.broadcast(partition, source, group=group)


def restrict() -> None:
    """Let torch.load of this process refuse all but tensors, plain data and four harmless classes.

    DeepSpeed opens its checkpoints as any pickle, and a stranger's pickle is code that runs.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )
