"""A checkpoint for another number of ranks: DeepSpeed's universal checkpoint.

    python -m neoxkit.universal runs/NAME/checkpoint-N FOLDER

For ZeRO 1 and 2, where going on gives the same losses. For ZeRO 3 it did not (DeepSpeed 0.19).
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from neoxkit.errors import UserError

FOLDER = ".universal"  # in the run folder, while a training begins
_TRAINERS = ("trainer_state.json", "scheduler.pt")


def convert(checkpoint: Path) -> Path:
    """Convert in a process of its own; the folder to go on from, for any number of ranks.

    The ranks' random numbers are left out: where a model has dropout, they begin anew.
    """
    folder = checkpoint.parent / FOLDER / checkpoint.name
    shutil.rmtree(folder.parent, ignore_errors=True)
    command = [sys.executable, "-m", "neoxkit.universal", str(checkpoint), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:80]
        raise UserError("allow_change", f"{checkpoint.name} can't be converted ({why})", "go back")
    for name in _TRAINERS:
        shutil.copy(checkpoint / name, folder)
    return folder


def main() -> None:
    """What `convert` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    from deepspeed.checkpoint import ds_to_universal

    from neoxkit import pickles

    pickles.restrict()
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
