"""`neoxkit diff`: what differs between two runs, on one screen or as JSON."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from neoxkit.cli import screen
from neoxkit.evaluation import difference
from neoxkit.evaluation.sections import Listed, RunDifference, Unequal, marked

INDENT, DEEPER = " " * 2, " " * 4
MOST_CHARACTERS = 120  # of a text on a terminal, unless all is asked for
BEFORE = 40  # characters that are shown before the first one that differs
WIDEST = 160  # characters of a table in a file or a pipe
LONGEST_NAME = 24  # of a run, beside texts on a terminal


def diff(a: str, b: str, everything: bool, as_json: bool) -> int:
    """Print what differs between two runs; return 1 if anything does."""
    with screen.busy(f"comparing {a} and {b}"):
        found = difference.of_runs(a, b, None if everything else difference.FIRST)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print("\n".join(lines(found, sys.stdout, everything)))
    return int(found.differs)


def lines(found: RunDifference, out: TextIO, everything: bool = False) -> list[str]:
    """Return the lines to show; texts are shortened on a terminal unless `everything` is asked."""
    shown = [_said(found.summary(), out)]
    for section in found.sections:
        if section.differs:
            parts = [_values(section.unequal, found.runs, out)] if section.unequal else []
            parts += [_listed(one, found.runs, out, everything) for one in section.listed]
            parts[0] += [_said(f"{INDENT}{line}", out) for line in section.says]
            shown += ["", screen.heading(section.name, out), *parts[0]]
            shown += [line for part in parts[1:] for line in ("", *part)]
    shown += [""] if found.differs else []
    labelled = [("Equal:", equal)] if (equal := found.equal()) else []
    labelled += [("Not compared:", why) for why in found.unknown()]
    return shown + [_said(text, out, label) for label, text in labelled]


def _said(text: str, out: TextIO, label: str = "") -> str:
    """Return a sentence, wrapped, behind its label if it has one."""
    said = screen.safe(text)
    said = f"{screen.painted(label, out)} {said}" if label else said
    return screen.wrapped(said, out, len(INDENT), anywhere=True)


def _values(found: Sequence[Unequal], runs: Sequence[str], out: TextIO) -> list[str]:
    """Return a table of values; if it is too wide, a block for each one."""
    rows = [[*map(screen.safe, (one.name, *one.texts(), one.by_text()))] for one in found]
    columns = [INDENT, *runs, "difference"][: 4 if any(row[3] for row in rows) else 3]
    cells = [[INDENT + name, *rest][: len(columns)] for name, *rest in rows]
    table, room = screen.table(cells, columns, io.StringIO()), screen.columns(out) or WIDEST
    if max(map(screen.width, table)) <= room:
        return table
    shown, short = [], _short(runs, out)
    for name, *texts, by in rows:
        shown.append(_said(f"{INDENT}{name}{f' ({by})' if by else ''}", out))
        shown += _block(dict(zip(short, texts, strict=True)), out)
    return shown


def _listed(listed: Listed, runs: Sequence[str], out: TextIO, everything: bool) -> list[str]:
    """Return how many there are, and the texts of some, each beside the name of its column."""
    names, shown, cut = dict(zip(runs, _short(runs, out), strict=True)), [], False
    for row in listed.rows:
        texts = {name: screen.safe(marked(text)) for name, text in row.items()}
        if not everything and screen.columns(out) is not None:
            texts, whole = shortened(texts, runs), texts
            cut = cut or texts != whole
        shown += ["", *_block({names.get(name, name): of for name, of in texts.items()}, out)]
    what = f"{listed.count:,} {listed.what}"
    if len(listed.rows) < listed.count:
        what += f"; the first {len(listed.rows)} (--all shows every one)"
    if cut:
        what += "; … marks a shortened text (--all shows it whole)"
    return [_said(f"{INDENT}{what}", out), *shown]


def shortened(texts: Mapping[str, str], together: Sequence[str]) -> dict[str, str]:
    """Shorten long texts: those of `together` from a little before where they differ.

    >>> shortened({"asked": "Why?", "a": "x" * 300 + "1", "b": "x" * 300 + "2"}, ["a", "b"])["b"]
    '…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx2'
    >>> shortened({"a": "x" * 300, "b": "x" * 300 + " more"}, ["a", "b"])["b"]
    '…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx more'
    """
    compared = [texts[name] for name in together if name in texts]
    pairs = enumerate(zip(*compared, strict=False))
    first = next((i for i, chars in pairs if len({*chars}) > 1), None)
    same = min(map(len, compared), default=0) if first is None else first
    cut = {}
    for name, text in texts.items():
        is_long = len(text) > MOST_CHARACTERS
        begin = max(same - BEFORE, 0) if is_long and name in together else 0
        end = begin + MOST_CHARACTERS
        cut[name] = f"{'…' * (begin > 0)}{text[begin:end]}{'…' * (len(text) > end)}"
    return cut


def _block(texts: Mapping[str, str], out: TextIO) -> list[str]:
    side = len(DEEPER) + max(map(screen.width, texts))
    return [
        screen.explained(f"{DEEPER}{name}", text, side, out, anywhere=True)
        for name, text in texts.items()
    ]


def _short(runs: Sequence[str], out: TextIO) -> list[str]:
    """Return the runs' names, shortened on a terminal so that they still differ."""
    if screen.columns(out) is None:
        return [*runs]
    short = screen.shortened(tuple(runs), LONGEST_NAME)
    return short if len({*short}) == len({*runs}) else [*runs]
