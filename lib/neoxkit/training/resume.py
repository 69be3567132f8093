"""Resuming a training: its checkpoint, the settings that must be the same, and its stop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoxkit import files
from neoxkit.runs import checkpoints, lease, lock, resuming
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, state_of
from neoxkit.runs.resuming import Start
from neoxkit.training import arguments, distributed, universal


def newest_checkpoint(folder: Path, parsed: arguments.Parsed) -> str | None:
    """Return the checkpoint to resume from. Rank 0 reads every byte of it; the others trust it."""
    args = parsed.training
    found: list[Any] = [None, False]
    if distributed.is_first():
        lease.check(folder)
        checkpoint, aside = checkpoints.newest(folder)
        parsed.notices += aside
        if checkpoint and checkpoints.manifest(checkpoint)["num_ranks"] != args.world_size:
            lease.check(folder)  # it took a while to read
            found = [str(universal.convert(checkpoint)), True]
        else:
            found = [str(checkpoint or ""), False]
    path, is_universal = distributed.of_first(found)
    if is_universal:
        args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    return path or None


def check_start(folder: Path, parsed: arguments.Parsed, manifest: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings, ranks or data; record its arguments.

    A notebook has checked and recorded them before: then nothing differs.
    """
    kit, args = parsed.kit, parsed.training
    given = parsed.given | {"dataset_sha256": kit.dataset_sha256, "base_commit": kit.base_commit}
    stage = arguments.zero_stage(args)
    resuming.refuse(Start(folder, given, args.world_size, stage, manifest, kit.allow_change))
    distributed.barrier()  # every rank has read what the first one may overwrite
    path = folder / ARGUMENTS
    if distributed.is_first() and not (path.exists() and files.read_json(path) == given):
        lease.check(folder)
        files.write_json(path, given)


def keep_manifest(folder: Path, manifest: dict[str, Any], allowed: Sequence[str]) -> None:
    """Copy the dataset's manifest into the run: 01_tokenize may replace the dataset."""
    if distributed.is_first() and (state_of(folder) == "new" or "dataset" in allowed):
        lease.check(folder)
        files.write_json(folder / DATASET, manifest)


def say_stopped(folder: Path, step: int) -> None:
    """Record that the run stopped as asked, with step `step` saved; remove the stop request."""
    distributed.barrier()  # no rank looks for the stop request any more
    if distributed.is_first():
        append_event(folder, "stop", step=step)
        lock.answer_stop(folder)
        print(f"stopped after step {step} as asked; the same command resumes there", flush=True)
