"""Resuming a training: its checkpoint, the settings that must be the same, and its stop."""

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

FOLDER = ".universal"  # in the run folder, while a training starts
_TRAINERS = ("trainer_state.json", "scheduler.pt")


def newest_checkpoint(folder: Path, parsed: arguments.Parsed) -> str | None:
    """Return the checkpoint to resume from. Rank 0 reads every byte of it; the others trust it."""
    args = parsed.training
    found: list[Any] = [None, False]
    if distributed.is_first():
        checkpoint, aside = checkpoints.newest(folder)
        parsed.notices += aside
        if checkpoint and checkpoints.manifest(checkpoint)["num_ranks"] != args.world_size:
            found = [str(convert(checkpoint)), True]
        else:
            found = [str(checkpoint or ""), False]
    path, is_universal = distributed.of_first(found)
    if is_universal:
        args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    return path or None


def record_flags(folder: Path, flags: dict[str, str], allowed: Sequence[str]) -> None:
    """Keep a shell's flags as a notebook's are kept, and refuse to resume with other flags."""
    path = folder / ARGUMENTS
    if path.exists() and state_of(folder) != "new":
        resuming.refuse_changes(files.read_json(path), flags, allowed)
    if distributed.is_first():
        files.write_json(path, flags)
    distributed.barrier()


def keep_manifest(folder: Path, manifest: dict[str, Any], allowed: Sequence[str]) -> None:
    """Copy the dataset's manifest into the run: 01_tokenize may replace the dataset."""
    if distributed.is_first() and (state_of(folder) == "new" or "dataset" in allowed):
        files.write_json(folder / DATASET, manifest)


def say_stopped(folder: Path, step: int) -> None:
    """Record that the run stopped as asked, with step `step` saved; remove the stop request."""
    distributed.barrier()  # no rank looks for the stop request any more
    if distributed.is_first():
        append_event(folder, "stop", step=step)
        lock.answer_stop(folder)
        print(f"stopped after step {step} as asked; the same command resumes there", flush=True)


def convert(checkpoint: Path) -> Path:
    """Make DeepSpeed's universal checkpoint, in a separate process; return its folder.

    Any number of ranks can resume from it, with the same losses under ZeRO 1 and 2, but not under
    ZeRO 3 (DeepSpeed 0.19). The ranks' random states are left out: dropout, if any, starts anew.
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
            inject_missing_state=True,  # Megatron writes it and the Trainer does not
        )
    )


if __name__ == "__main__":
    main()
