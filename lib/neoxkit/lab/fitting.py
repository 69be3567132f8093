"""Tables that fit the width of a cell: turned round, or continued below."""

from collections.abc import Sequence

from neoxkit.lab import view
from neoxkit.lab.view import View

ROOM = 460  # pixels of an output in a window of 900 with the file browser open
_CHARACTER, _PADDING = 8, 10  # pixels, of the widest usual font


def table(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    corners: tuple[str, str],
) -> View:
    """Make a table of two-way data that is never too wide; `cells`: a row for each of `rows`.

    `corners`: what rows and columns are. They change places if this needs fewer tables, or as many
    and fewer columns; what still does not fit continues in a table below, with the same rows.
    """
    ways = [
        (corners[0], rows, columns, cells),
        (corners[1], columns, rows, [*zip(*cells, strict=True)]),
    ]
    made = [(_blocks(*way), way) for way in ways]
    blocks, (corner, names, headers, values) = min(made, key=lambda m: (len(m[0]), len(m[1][2])))
    shown = [
        view.table(
            [
                [view.narrow(text) for text in (name, *row[begin:end])]
                for name, row in zip(names, values, strict=True)
            ],
            (corner, *headers[begin:end]),
            close=True,
        )
        for begin, end in blocks
    ]
    return sum(shown[1:], shown[0])


def _blocks(
    corner: str, names: Sequence[str], headers: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[tuple[int, int]]:
    """Return which columns fit beside the rows' names, table by table: at least one."""
    room = ROOM - _width(corner, names)
    widths = [_width(name, [row[i] for row in cells]) for i, name in enumerate(headers)]
    begins, used = [0], 0
    for i, width in enumerate(widths):
        if used and used + width > room:
            begins.append(i)
            used = 0
        used += width
    return [*zip(begins, [*begins[1:], len(headers)], strict=True)]


def _width(header: str, column: Sequence[str]) -> int:
    """Return the pixels that a column needs at least, broken wherever it may be."""
    words = [
        word
        for text in (header, *column)
        for part in view.parts(text, everywhere=True)
        for word in part.split()
    ]
    return max(map(len, words), default=0) * _CHARACTER + _PADDING
