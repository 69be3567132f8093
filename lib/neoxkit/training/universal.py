"""A checkpoint for another number of ranks: DeepSpeed's universal checkpoint.

    python -m neoxkit.training.universal runs/NAME/checkpoint-N FOLDER

A program of its own, which imports nothing before it has read its arguments.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from neoxkit.errors import UserError

FOLDER = ".universal"  # in the run folder, while a training starts
_TRAINERS = ("trainer_state.json", "scheduler.pt")


def convert(checkpoint: Path) -> Path:
    """Make DeepSpeed's universal checkpoint, in a separate process; return its folder.

    Any number of ranks can resume from it, with the same losses under ZeRO 1 and 2, but not under
    ZeRO 3 (DeepSpeed 0.19). The ranks' random states are left out: dropout, if any, starts anew.
    """
    folder = checkpoint.parent / FOLDER / checkpoint.name
    shutil.rmtree(folder.parent, ignore_errors=True)
    command = [sys.executable, "-m", "neoxkit.training.universal", str(checkpoint), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:80]
        raise UserError("allow_change", f"{checkpoint.name} can't be converted ({why})", "go back")
    for name in _TRAINERS:
        shutil.copy(checkpoint / name, folder)
    return folder


def main() -> None:
    """Convert a checkpoint: python -m neoxkit.training.universal runs/NAME/checkpoint-N FOLDER."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    from deepspeed.checkpoint import ds_to_universal

    from neoxkit.training import distributed

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
