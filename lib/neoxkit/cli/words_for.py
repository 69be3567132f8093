"""The words that people type for commands and notebooks, and what they mean."""

from collections.abc import Iterable
from typing import Any

import click

from neoxkit.errors import closest
from neoxkit.settings import NOTEBOOKS

# What another program calls a command, or a notebook's word -> the command.
_OTHERS = {"status": "runs", "list": "runs", "difference": "diff"} | {
    stage.notebook.partition("_")[2]: f"run --only {stage.notebook}" for stage in NOTEBOOKS
}


def command(word: str, commands: Iterable[str]) -> str:
    """Return the command that was probably meant; empty if none is similar.

    >>> command("stat", ["run", "runs", "stop"]), command("trian", ["run"])
    ('runs', 'run --only 02_train')
    """
    found = closest(word, [*commands, *_OTHERS])
    return _OTHERS.get(found, found)


class Notebook(click.Choice):
    """A notebook, by its number or the beginning of its name: 02, 2, 02_train, train, tr."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the notebook's name; refuse what may be several, or none."""
        found = [name for name in self.choices if _means(value, name)]
        if len(found) > 1:
            self.fail(f"{value!r} may be {' or '.join(found)}", param, ctx)
        return super().convert(found[0] if found else value, param, ctx)


def _means(said: str, notebook: str) -> bool:
    number, _, word = notebook.partition("_")
    begins = notebook.startswith(said) or word.startswith(said)
    return bool(said) and (begins or said == number.lstrip("0"))
