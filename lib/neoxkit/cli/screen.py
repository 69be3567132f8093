"""What fits into the terminal at hand, and in which colours; a file or a pipe gets everything."""

import functools
import itertools
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

CUT = "…"  # where a name was shortened
CUT_NUMBER = re.compile(r"\d…|…[\d.-]")
GAP = "  "  # between columns
STYLES: dict[str, dict[str, Any]] = {
    "finished": {"fg": "green"},
    "failed": {"fg": "red"},
    "training": {"fg": "cyan", "bold": True},
    "queued": {"fg": "cyan"},
    "warning:": {"fg": "yellow"},
    "error:": {"fg": "red", "bold": True},
    "Equal:": {"fg": "green"},
    "Not": {"fg": "yellow"},  # "Not compared:"
}


def columns(out: TextIO) -> int | None:
    """Return how many columns a terminal has; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def can_rewrite(out: TextIO) -> bool:
    """Return whether a line that was written there can be overwritten."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def painted(text: str, out: TextIO) -> str:
    """Colour a text by its first word, a state or a label (STYLES), on a terminal with colours."""
    return _styled(text, out, STYLES.get(text.partition(" ")[0]))


def heading(text: str, out: TextIO) -> str:
    """Make a text bold on a terminal with colours."""
    return _styled(text, out, {"bold": True})


def _styled(text: str, out: TextIO, style: dict[str, Any] | None) -> str:
    if not style or not can_rewrite(out) or os.environ.get("NO_COLOR"):
        return text
    return click.style(text, **style)


def label(text: str, out: TextIO) -> str:
    """Colour only a text's first word, like "warning:"."""
    first, blank, rest = text.partition(" ")
    return f"{painted(first, out)}{blank}{rest}"


def width(text: str) -> int:
    """Return how many columns a text takes: escape codes none, East Asian characters two.

    >>> width("loss"), width("模型"), width("\\x1b[31mloss\\x1b[0m")
    (4, 4, 4)
    """
    plain = click.unstyle(text)
    return len(plain) if plain.isascii() else sum(map(_width, plain))


def _width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _start(text: str, room: int) -> str:
    """Return as much of a text's start as fits."""
    if text.isascii():
        return text[:room]
    return text[: sum(end <= room for end in itertools.accumulate(map(_width, text)))]


@functools.cache  # a sweep shows the same names every second
def shortened(names: tuple[str, ...], room: int) -> list[str]:
    """Shorten the names that are too long, so that they still differ if possible: the parameters'
    names in those of a sweep's runs, or else all names near their middle.

    >>> shortened(("night.learning_rate=1e-05.seed=8", "night.learning_rate=3e-05.seed=7"), 26)
    ['night.learni…=1e-05.seed=8', 'night.learni…=3e-05.seed=7']
    >>> shortened(("pythia-70m-of-monday", "pythia-410m-of-monday"), 16)
    ['pythia-70m-…nday', 'pythia-410m…nday']
    """
    for most in range(room, 0, -1):
        made = [name if width(name) <= room else _short_keys(name, most) for name in names]
        if max(map(width, made)) <= room and len({*made}) == len({*names}):
            return made
    heads = range(max(room - len(CUT), 0) + 1)
    cut = [[_without_middle(name, room, head) for name in names] for head in heads]

    def harm(head: int) -> tuple[int, int, int]:
        numbers = sum(map(bool, map(CUT_NUMBER.search, cut[head])))
        return len({*names}) - len({*cut[head]}), numbers, abs(head - len(heads) // 2)

    return cut[min(heads, key=harm)]


def _short_keys(name: str, most: int) -> str:
    """Shorten each `parameter=` in a name to a number of letters."""
    longer = rf"(?<=\.)(\w{{{most}}})\w\w+(?==)"
    return re.sub(longer, rf"\1{CUT}", name)


def _without_middle(name: str, room: int, head: int) -> str:
    if width(name) <= room:
        return name
    return f"{_start(name, head)}{CUT}{_start(name[::-1], room - len(CUT) - head)[::-1]}"


def wrapped(text: str, out: TextIO, hang: int = 0, anywhere: bool = False) -> str:
    """Break a text between its words on a terminal; all lines but the first are indented by `hang`.

    A path is never broken, so that it can be copied; `anywhere`: a word longer than a line is.
    """
    if (room := columns(out)) is None:
        return text
    lines = []
    for whole in text.split("\n"):
        lines.append("")
        words = re.findall(r" *\S+", whole)
        for word in (p for w in words for p in _pieces(w, room - hang)) if anywhere else words:
            if lines[-1] and width(lines[-1] + word) > room:
                lines.append(" " * hang + word.lstrip())
            else:
                lines[-1] += word
    return "\n".join(lines)


def _pieces(word: str, room: int) -> Iterator[str]:
    """Yield the parts of a word, with the spaces before it, of which each fits."""
    while width(word) > max(room, 2):
        head = _start(word, max(room, 2))
        yield head
        word = word[len(head) :]
    yield word


def explained(name: str, text: str, side: int, out: TextIO, anywhere: bool = False) -> str:
    """Return a line of a table of two columns, the first `side` wide; the second is wrapped."""
    return wrapped(f"{_padded(name, side)}{GAP}{text}", out, side + len(GAP), anywhere)


Cells = Sequence[Sequence[str]]


def table(
    rows: Cells,
    header: Sequence[str],
    out: TextIO,
    drop: Sequence[str] = (),
    shortest: int | None = None,
) -> list[str]:
    """Return the lines of a table; on a terminal that is too narrow, the last says what is missing.

    Columns are left out in the order of `drop` until the others fit; then the names in the first
    one are shortened. `shortest`: they are shortened to that length before a column is left out.
    """
    lines, every = _safe([header, *rows]), list(range(len(header)))
    if (room := columns(out)) is None:
        return _laid_out(lines, every, out)
    widths = _widths(lines)
    least = min(widths[0], shortest or widths[0])
    shown = [i for i in every if not i or any(line[i] for line in lines[1:])]  # not empty
    kept = [*shown]
    for name in (name for name in drop if header.index(name) in shown):
        if _total(widths, kept) - widths[0] + least <= room:
            break
        kept.remove(header.index(name))
    for_names = max(room - _total(widths, kept) + widths[0], len(CUT))
    names = shortened(tuple(name for name, *_ in lines), for_names)
    lines = [[name, *rest] for name, (_, *rest) in zip(names, lines, strict=True)]
    left_out = ", ".join(header[i] for i in shown if i not in kept)
    said = wrapped(f"more columns in a wider terminal: {left_out}", out)
    return _laid_out(lines, kept, out) + (said.split("\n") if left_out else [])


def stacked(rows: Cells, header: Sequence[str], out: TextIO) -> list[str]:
    """Return the lines of a table whose columns all count: those that do not fit beside the others
    follow below them, beside the first one again."""
    lines, room = _safe([header, *rows]), columns(out)
    widths, blocks = _widths(lines), [[0, 1]]
    for i in range(2, len(header)):
        if room is None or _total(widths, [*blocks[-1], i]) <= room:
            blocks[-1].append(i)
        else:
            blocks.append([0, i])
    made = [_laid_out(lines, block, out) for block in blocks]
    return made[0] + [line for block in made[1:] for line in ("", *block)]


def _safe(lines: Cells) -> list[list[str]]:
    from neoxkit.lab.view import visible  # imports IPython, which completing does not need

    return [[visible(value) for value in line] for line in lines]


def safe(text: str) -> str:
    """Make a text safe to print on one line: line ends and tabs become marks, too.

    >>> safe("a\\x1b[31m\\n\\tb")
    'a␛[31m␊␉b'
    """
    return _safe([[text]])[0][0].replace("\n", "␊").replace("\t", "␉")


def _widths(lines: Cells) -> list[int]:
    return [max(map(width, column)) for column in zip(*lines, strict=True)]


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    """Return how wide a table of some columns is, with the gaps between them."""
    return sum(widths[i] for i in kept) + len(GAP) * (len(kept) - 1)


def _laid_out(lines: Cells, kept: Sequence[int], out: TextIO) -> list[str]:
    """Return the lines of a table of some columns, the first line being its header."""
    picked = [[line[i] for i in kept] for line in lines]
    widths, laid = _widths(picked), []
    for line in picked:
        padded = map(_padded, line, widths)
        coloured = [
            painted(text, out) if name == "state" else text
            for name, text in zip(picked[0], padded, strict=True)
        ]
        laid.append(GAP.join(coloured).rstrip())
    return laid


def _padded(text: str, to: int) -> str:
    return text + " " * (to - width(text))


def fitting(parts: Sequence[str], room: int, between: str, first: Callable[[str], bool]) -> str:
    """Join the parts of a line that fit, each whole: half a number is another number.

    The first part comes before all others, then those that are to come `first`.
    """
    order = sorted(range(len(parts)), key=lambda i: (i > 0, not first(parts[i])))
    kept: list[int] = []
    for i in order:
        if width(between.join(parts[j] for j in (*kept, i))) > room:
            break
        kept.append(i)
    return between.join(parts[i] for i in sorted(kept)) or _start(parts[0], room)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say on a terminal what takes long, in a line that is gone when it is over."""
    out, room = sys.stderr, columns(sys.stderr)
    if room is None or not can_rewrite(out):
        yield
        return
    print(_start(f"{doing} ...", room - 1), end="", file=out, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=out, flush=True)
