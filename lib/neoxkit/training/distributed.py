"""Communication between the ranks of a training, and what its checkpoints may unpickle."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.zero import stage_1_and_2

from neoxkit.errors import UserError
from neoxkit.runs import lease
from neoxkit.runs.heartbeat import Signs


def rank() -> int:
    """Return the number of this rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Tell whether this is rank 0, which writes the files that are written once."""
    return rank() == 0


def is_alone() -> bool:
    """Tell whether this rank is the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def num_nodes() -> int:
    """Return on how many machines the ranks are, as many on each, by what their launcher says."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ranks)
    return max(ranks // here, 1)


def signs(folder: Path) -> Signs:
    """Return the heartbeats of this rank."""
    return Signs(folder, rank(), int(os.environ.get("WORLD_SIZE", "1")))


def check_launcher() -> None:
    """Refuse DeepSpeed in a process that no launcher has given a rank."""
    if "RANK" not in os.environ:
        what = "was asked for without its launcher"
        remedy = "start this with deepspeed --module neoxkit.train, or leave --deepspeed out"
        raise UserError("deepspeed", what, remedy)


def barrier() -> None:
    """Wait for the other ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def of_first(values: list[Any]) -> list[Any]:
    """Return rank 0's values in every rank."""
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values)
    return values


def by_first(work: Callable[[], Any]) -> Any:
    """Have rank 0 do something; return its result in every rank, or raise its error in every one.

    Results are plain values.
    """
    mine = _outcome(work) if is_first() else (None, None)
    result, fault = of_first([mine[0], _portable(mine[1])])
    if fault:
        raise mine[1] or fault
    return result


def by_each(work: Callable[[], Any]) -> list[Any]:
    """Have every rank do something; return all their results in every rank, in their order.

    If any fails, every rank raises the first one's error: none is left waiting for another.
    """
    if is_alone() or not torch.distributed.is_initialized():
        return [work()]
    result, fault = _outcome(work)
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, (result, _portable(fault)))
    for _, error in found:
        if error:
            raise error
    return [result for result, _ in found]


def check_lease(folder: Path) -> None:
    """End every rank by Lost if one of them sees that the run is another training's now."""
    if lease.is_wanted():
        by_each(lambda: lease.check(folder))


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as fault:
        return None, fault


def _portable(fault: Exception | None) -> Exception | None:
    """Return an error that other ranks can raise: it survives the way there, with its traceback
    as a note."""
    if fault is None or isinstance(fault, UserError | lease.Lost):
        return fault
    said = f"rank {rank()}: {type(fault).__name__}: {fault}"
    told = OSError(fault.errno, said) if isinstance(fault, OSError) else RuntimeError(said)
    told.add_note("".join(traceback.format_exception(fault)))
    return told


def set_by_any(flags: Mapping[str, bool], device: torch.device) -> dict[str, bool]:
    """Return the same flags in every rank: each is set if any rank has set it."""
    values = torch.tensor([*flags.values()], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return dict(zip(flags, map(bool, values.tolist()), strict=True))


def use_broadcasts() -> None:
    """Make ZeRO 1 and 2 share the new weights by broadcasts, at which gloo is faster.

    For CPU ranks only; call it before training. DeepSpeed 0.19 documents a setting for it,
    `allgather_partitions`, but does not read it.
    """
    stage_1_and_2.all_gather_dp_groups = broadcast_partitions


def broadcast_partitions(
    partitioned_param_groups: Sequence[Sequence[torch.Tensor]],
    dp_process_group: Sequence[Any],
    **_: Any,
) -> None:
    """Send each rank's partition of each parameter group to all, as DeepSpeed's gather does."""
    for partitions, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, partition in enumerate(partitions):
            source = torch.distributed.get_global_rank(group, rank)
            comm.broadcast(partition, source, group=group)


def restrict() -> None:
    """Make this process's torch.load refuse all but tensors, plain data and four harmless classes.

    This holds even for a caller that passes weights_only=False, as DeepSpeed does for its
    checkpoints: a stranger's pickle can run code.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )
