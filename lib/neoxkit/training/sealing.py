"""Seal a checkpoint that several ranks have written: each flushes and hashes its own files.

So none is read back over the network, and rank 0 depends on no listing of a folder that other hosts
have written into: the ranks say what they wrote, and it waits until it sees that.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neoxkit.runs import checkpoints
from neoxkit.runs.checkpoints import Hashed
from neoxkit.training import distributed

SEEN_SECONDS = 60.0  # a network file system may show another host's file no sooner
LOOK_SECONDS = 0.1

# DeepSpeed's shards, with bf16_ in front or without, and transformers' random states.
_OF_A_RANK = re.compile(r"^(?:\w+_)?zero_pp_rank_(\d+)_|^rng_state_(\d+)\.pth$")


def seal(checkpoint: Path, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Make a checkpoint count, once every rank has written its files; every rank calls this.

    `facts` for its manifest are rank 0's. If any rank fails, all raise its error.
    """
    hashed = distributed.by_each(lambda: _hash_own(checkpoint))
    distributed.by_first(lambda: _write_manifest(checkpoint, hashed, facts()))


def writer_of(name: str) -> int:
    """Return the rank that writes a file of a checkpoint: rank 0 whatever no other rank's name is
    on.

    >>> writer_of("global_step4/bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt")
    3
    >>> writer_of("rng_state_12.pth"), writer_of("global_step4/mp_rank_00_model_states.pt")
    (12, 0)
    """
    found = _OF_A_RANK.search(Path(name).name)
    return int(found[1] or found[2]) if found else 0


def _hash_own(checkpoint: Path) -> dict[str, Hashed]:
    names, rank = checkpoints.file_names(checkpoint), distributed.rank()
    return checkpoints.hash_files(checkpoint, [n for n in names if writer_of(n) == rank])


def _write_manifest(
    checkpoint: Path, hashed: Sequence[Mapping[str, Hashed]], facts: Mapping[str, Any]
) -> None:
    """Write the manifest of the files that the ranks say they wrote, once all of them are here."""
    named = {name: one for own in hashed for name, one in own.items()}
    states = [f"rng_state_{rank}.pth" for rank in range(len(hashed))]
    for name in states if len(states) > 1 else ["rng_state.pth"]:
        # transformers would resume without a missing one and say nothing.
        if name not in named:
            raise RuntimeError(f"{checkpoint.name}: {name} was not written")
    for rank, own in enumerate(hashed):
        _wait_until_seen(checkpoint, rank, own)
    if stray := {*checkpoints.file_names(checkpoint)} - {*named}:
        raise RuntimeError(f"{checkpoint.name}: {min(stray)} was written by no rank")
    checkpoints.seal(checkpoint, named, **facts)


def _wait_until_seen(checkpoint: Path, rank: int, own: Mapping[str, Hashed]) -> None:
    """Wait until a rank's files are here with their sizes; give up after SEEN_SECONDS."""
    deadline = time.monotonic() + SEEN_SECONDS
    for name, one in own.items():
        while (size := _size(checkpoint / name)) != one["size"]:
            if time.monotonic() > deadline:
                seen = "was not seen" if size is None else f"had {size:,} bytes"
                what = f"{name}, written by rank {rank} with {one['size']:,} bytes, {seen}"
                raise RuntimeError(f"{checkpoint.name}: {what} here for {SEEN_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
            with contextlib.suppress(FileNotFoundError):
                os.listdir((checkpoint / name).parent)  # noqa: PTH208 - NFS then asks its server


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
