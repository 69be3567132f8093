"""The same short training of the built-in model through papermill, or as a command at a shell.

python benchmarks/notebook_or_shell.py papermill|shell --steps N
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time

import inputs
from neoxkit import paths
from neoxkit.launch import command
from neoxkit.settings import TrainSettings
from stepclock import print_result


def papermill_command(settings: TrainSettings) -> list[str]:
    """Return the line that 02_train prints to repeat it."""
    _, line = settings.papermill_command().split(" && ")
    return [sys.executable, "-m", *shlex.split(line), "--no-progress-bar"]


def shell_command(settings: TrainSettings) -> list[str]:
    """Return the command that 02_train prints for a shell, on a port of its own."""
    _, *flags = shlex.split(command.shell_command(settings))
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*runner, f"--master_port={command.free_port()}", *flags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["papermill", "shell"])
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    settings = TrainSettings(run=f"through-{options.how}", max_steps=options.steps)
    folder = paths.run(settings.run)
    shutil.rmtree(folder, ignore_errors=True)
    if options.how == "papermill":
        folder.mkdir(parents=True)
        line = papermill_command(settings)
    else:
        line = shell_command(settings)
    begun = time.perf_counter()
    subprocess.run(line, cwd=inputs.HOME, env=command.environment(1), check=True)
    print_result(seconds=time.perf_counter() - begun)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
