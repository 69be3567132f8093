"""Shell completion: the script that makes a shell ask, and the answer; no error is ever shown."""

import os

import click
from click import shell_completion

from neoxkit import paths

VARIABLE = "_NEOXKIT_COMPLETE"  # set by the script: click's protocol
SHELLS = ("bash", "zsh", "fish")
PROGRAM = "neoxkit"


def answer(command: click.Command) -> int | None:
    """Answer a shell that asks what may follow; return the exit code, None if no shell asks."""
    if not (instruction := os.environ.get(VARIABLE)):
        return None
    try:
        return shell_completion.shell_complete(command, {}, PROGRAM, VARIABLE, instruction)
    except Exception:  # the line is being typed: it may be wrong in any way
        return 1


def write_script(command: click.Command, shell: str) -> int:
    """Print the script that a shell reads to complete this command; return the exit code."""
    return shell_completion.shell_complete(command, {}, PROGRAM, VARIABLE, f"{shell}_source")


def runs(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Return the names of the runs that begin with what is typed, by name."""
    folders = (paths.root() / "runs").glob("*/")
    return sorted(folder.name for folder in folders if folder.name.startswith(typed))


@shell_completion.add_completion_class
class _Bash(shell_completion.BashComplete):
    """Bash, which takes a run's name apart at each "=" and replaces only the last piece."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words: list[str] = []
        args, typed = super().get_completion_args()
        for piece in (*args, typed):
            if words and ("=" in (piece[:1], words[-1][-1:])):
                words[-1] += piece
            else:
                words.append(piece)
        self._kept = f"{words[-1].rpartition('=')[0]}=" if "=" in words[-1] else ""
        return words[:-1], words[-1]

    def format_completion(self, item: shell_completion.CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self._kept)}"
