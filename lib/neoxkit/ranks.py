"""The processes of a training among themselves."""

import os
from typing import Any

import torch


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
