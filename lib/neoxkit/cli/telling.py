"""Commands that tell an end: the option --on-end, and what killed processes still owe."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from neoxkit.cli import screen
from neoxkit.runs import endings


def option() -> Callable[[Any], Any]:
    """Add --on-end. TERM ends the command like Ctrl-C, so that its end can still be told."""
    on_end = click.option("--on-end", envvar=endings.VARIABLE, default="", metavar="COMMAND",
                          help="call this once for each run and sweep that ends, in whatever way, "
                          "with NEOXKIT_NAME, NEOXKIT_STATE, NEOXKIT_SAYS, ... in its environment "
                          f"(or set {endings.VARIABLE})")  # fmt: skip

    def leave(number: int, _: Any) -> NoReturn:
        sys.exit(128 + number)

    def adds(command: Callable[..., int]) -> Any:
        @functools.wraps(command)
        def tells(*args: Any, **kwargs: Any) -> int:
            os.environ.pop(endings.VARIABLE, None)  # whatever this starts does not tell it again
            before = signal.signal(signal.SIGTERM, leave)
            try:
                return command(*args, **kwargs)
            finally:
                signal.signal(signal.SIGTERM, before)

        return on_end(tells_what_is_owed(tells))

    return adds


def tells_what_is_owed(command: Callable[..., int]) -> Callable[..., int]:
    """Tell before and after a command the ends that killed processes still owe (endings.py)."""

    @functools.wraps(command)
    def tells(*args: Any, **kwargs: Any) -> int:
        _print_notes(endings.tell_found())
        try:
            return command(*args, **kwargs)
        finally:
            _print_notes(endings.tell_found())

    return tells


def _print_notes(lines: Sequence[str]) -> None:
    for line in lines:  # never into the JSON of neoxkit runs
        print(screen.wrapped(f"note: {line}", sys.stderr, len("note: ")), file=sys.stderr)
