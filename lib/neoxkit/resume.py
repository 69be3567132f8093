"""Where a training goes on from, under which settings, and how it says that it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoxkit import arguments, files, ranks, universal
from neoxkit.runs import checkpoints, lock, resuming
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, state_of


def newest_checkpoint(folder: Path, parsed: arguments.Parsed) -> str | None:
    """Where to go on from. Rank 0 looks at every byte of it, and the others take its word."""
    args, found = parsed.training, [None, False]
    if ranks.is_first():
        checkpoint, aside = checkpoints.newest(folder)
        parsed.notices += aside
        other = checkpoint and checkpoints.manifest(checkpoint)["num_ranks"] != args.world_size
        found = [str(universal.convert(checkpoint) if other else checkpoint or ""), other]
    path, is_universal = ranks.of_first(found)
    if is_universal:
        args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    return path or None


def record_flags(folder: Path, flags: dict[str, str], allowed: Sequence[str]) -> None:
    """What a shell said, kept as the notebook keeps it: going on with other flags is refused."""
    path = folder / ARGUMENTS
    if path.exists() and state_of(folder) != "new":
        resuming.refuse_changes(files.read_json(path), flags, allowed)
    if ranks.is_first():
        files.write_json(path, flags)
    ranks.barrier()


def keep_manifest(folder: Path, manifest: dict[str, Any], allowed: Sequence[str]) -> None:
    """The run keeps what its data was made of: 01_tokenize may write another dataset there."""
    if ranks.is_first() and (state_of(folder) == "new" or "dataset" in allowed):
        files.write_json(folder / DATASET, manifest)


def say_stopped(folder: Path, step: int) -> None:
    """The wish was granted: step `step` is saved."""
    ranks.barrier()  # no rank looks for the wish any more
    if ranks.is_first():
        append_event(folder, "stop", step=step)
        lock.answer_stop(folder)
        print(
            f"stopped after step {step} as asked; the same command goes on from there", flush=True
        )
