"""Where a training goes on from, under which settings, and how it says that it stopped."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoxkit import files
from neoxkit.errors import UserError
from neoxkit.runs import checkpoints, lock, resuming
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, state_of
from neoxkit.training import arguments, distributed

FOLDER = ".universal"  # in the run folder, while a training begins
_TRAINERS = ("trainer_state.json", "scheduler.pt")


def newest_checkpoint(folder: Path, parsed: arguments.Parsed) -> str | None:
    """Where to go on from. Rank 0 looks at every byte of it, and the others take its word."""
    args, found = parsed.training, [None, False]
    if distributed.is_first():
        checkpoint, aside = checkpoints.newest(folder)
        parsed.notices += aside
        other = checkpoint and checkpoints.manifest(checkpoint)["num_ranks"] != args.world_size
        found = [str(convert(checkpoint) if other else checkpoint or ""), other]
    path, is_universal = distributed.of_first(found)
    if is_universal:
        args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    return path or None


def record_flags(folder: Path, flags: dict[str, str], allowed: Sequence[str]) -> None:
    """What a shell said, kept as the notebook keeps it: going on with other flags is refused."""
    path = folder / ARGUMENTS
    if path.exists() and state_of(folder) != "new":
        resuming.refuse_changes(files.read_json(path), flags, allowed)
    if distributed.is_first():
        files.write_json(path, flags)
    distributed.barrier()


def keep_manifest(folder: Path, manifest: dict[str, Any], allowed: Sequence[str]) -> None:
    """The run keeps what its data was made of: 01_tokenize may write another dataset there."""
    if distributed.is_first() and (state_of(folder) == "new" or "dataset" in allowed):
        files.write_json(folder / DATASET, manifest)


def say_stopped(folder: Path, step: int) -> None:
    """The wish was granted: step `step` is saved."""
    distributed.barrier()  # no rank looks for the wish any more
    if distributed.is_first():
        append_event(folder, "stop", step=step)
        lock.answer_stop(folder)
        print(
            f"stopped after step {step} as asked; the same command goes on from there", flush=True
        )


def convert(checkpoint: Path) -> Path:
    """Make DeepSpeed's universal checkpoint, in a process of its own; return its folder.

    Any number of ranks can resume from it, under ZeRO 1 and 2 with the same losses. Under ZeRO 3
    the losses were others (DeepSpeed 0.19).
    The ranks' random numbers are left out: where a model has dropout, they begin anew.
    """
    folder = checkpoint.parent / FOLDER / checkpoint.name
    shutil.rmtree(folder.parent, ignore_errors=True)
    command = [sys.executable, "-m", "neoxkit.training.resume", str(checkpoint), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:80]
        raise UserError("allow_change", f"{checkpoint.name} can't be converted ({why})", "go back")
    for name in _TRAINERS:
        shutil.copy(checkpoint / name, folder)
    return folder


def main() -> None:
    """Convert a checkpoint: python -m neoxkit.training.resume runs/NAME/checkpoint-N FOLDER."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    from deepspeed.checkpoint import ds_to_universal

    distributed.restrict()
    tag = (options.checkpoint / "latest").read_text().strip()
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(options.checkpoint / tag),
            output_folder=str(options.folder / f"{tag}_universal"),
            num_extract_workers=4,
            num_merge_workers=2,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # what Megatron writes and the Trainer does not
        )
    )


if __name__ == "__main__":
    main()
