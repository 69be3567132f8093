"""The text format: turns `Name: text`, a blank line between them, then a mark that ends it."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.labels import (
    Label,
    any_label,
    any_labels,
    begins_paragraph,
    fenced,
    label_of,
    with_colon,
)
from neoxkit.naming import Votes, same
from neoxkit.turns import Conversation, Names, Turn

NO_MARK = "none"  # of the parameter end_mark: each turn of the asking side begins a conversation

GLUED = "labels without a blank line before them, read as turns"
NEAR = "labels written in another way, read as turns"
FENCED = "labels in a code block, read as text"

Notes = dict[str, list[int]]  # what was read in a way one may not expect -> line numbers


class Piece(NamedTuple):
    """The text of one conversation, and the file line where it starts."""

    line: int
    text: str


class Pieces(NamedTuple):
    """The conversations of a text, how many marks ended one, and what was odd about them."""

    pieces: list[Piece]
    num_marks: int
    notes: Notes


def split(text: str, mark: str, names: Names | None = None, first_line: int = 1) -> Pieces:
    """Take a text apart into conversations; `names` are not known yet while they are looked for."""
    if mark == NO_MARK:
        return _split_at_questions(text, names, first_line)
    pieces: list[Piece] = []
    notes: Notes = {}
    start, line, num_marks = 0, first_line, 0
    doubled: list[int] = []
    inside: list[int] = []
    for at in [*_marks(text, mark), len(text)]:
        if at < len(text) and not _ends_conversation(text, at + len(mark), mark, names):
            inside.append(first_line + text.count("\n", 0, at))
            continue
        piece = text[start:at]
        begins = line + piece[: len(piece) - len(piece.lstrip())].count("\n")
        line += piece.count("\n")
        if piece.strip():
            pieces.append(Piece(begins, piece.strip()))
            num_marks += at < len(text)
            if at == len(text):
                notes["no end mark at the end of the file, conversation kept"] = [begins]
        elif at < len(text):
            doubled.append(line)
        start = at + len(mark)
    if doubled:
        notes["doubled end marks, ignored"] = doubled
    if inside:
        notes[f"{mark} in the middle of a line, read as text"] = inside
    return Pieces(pieces, num_marks, notes)


def _marks(text: str, mark: str) -> Iterator[int]:
    return (found.start() for found in re.finditer(re.escape(mark), text))


_CONTINUES = " \t.,;:!?)]}\"'`”’"  # what follows a mark that a sentence is about
_LINE_ENDS = re.compile(r"[ \t]*(?:\n|\Z)")


def _ends_conversation(text: str, over: int, mark: str, names: Names | None) -> bool:
    """Whether a mark that is over at a place of the text is one, and not text about it.

    It is at the end of a line, before another mark or before a label; and where words follow at
    once and a turn does later, before the next mark: those words are a preamble.
    """
    if _LINE_ENDS.match(text, over) or text.startswith(mark, over):
        return True
    next_mark = text.find(mark, over)
    lines = text[over : None if next_mark < 0 else next_mark].split("\n")
    if _is_label(lines[0], names):
        return True
    begins = lines[0][:1] not in _CONTINUES
    return begins and any(_is_label(line, names) for line in lines[1:])


def _is_label(line: str, names: Names | None) -> bool:
    return bool(label_of(line, names) if names else any_label(line))


def _split_at_questions(text: str, names: Names | None, first_line: int) -> Pieces:
    """One conversation for each turn of the asking side, with what comes before the first."""
    lines = text.split("\n")
    starts = [s.line for s in _starts(lines, names)[0] if s.label.role == "user"] if names else []
    edges = [0, *starts[1:], len(lines)]
    pieces = []
    for start, end in pairwise(edges):
        while start < end and not lines[start].strip():
            start += 1
        if start < end:
            pieces.append(Piece(first_line + start, "\n".join(lines[start:end]).strip()))
    return Pieces(pieces, 0, {})


class _Start(NamedTuple):
    """A line that begins a turn."""

    line: int
    label: Label


def _starts(lines: Sequence[str], names: Names) -> tuple[list[_Start], list[int]]:
    """The lines that begin turns, and those that would if they were not in a code block.

    Where a code block stays open, every block ends before a label: it is closed by its turn's end.
    """
    found = [
        _Start(i, label)
        for i in with_colon(lines)
        if (label := label_of(lines[i], names, begins_paragraph(lines, i)))
    ]
    inside, stays_open = fenced(lines)
    if stays_open:
        inside, _ = fenced(lines, {start.line for start in found})
    starts = [start for start in found if not inside[start.line]]
    return starts, [start.line for start in found if inside[start.line]]


def read(
    path: Path, pieces: Sequence[Piece], names: Names, notes: Notes
) -> tuple[list[Conversation], list[UserError]]:
    """Pieces to conversations, and a fault for each that can't be read; adds to the notes."""
    faults, conversations = [], []
    glued: list[int] = []
    near: list[int] = []
    in_code: list[int] = []
    labelled: list[int] = []
    for piece in pieces:
        lines = piece.text.split("\n")
        starts, hidden = _starts(lines, names)
        if not starts:
            where = f"{paths.short(path)}:{piece.line}"
            what = "a conversation without turns"
            faults.append(UserError(where, what, f'begin it with "{names.user}: "'))
            continue
        opener = any_label(lines[0]) if starts[0].line else ""
        if strange := _strange_label(lines, starts, names, opener):
            faults.append(_asks_under_another_name(path, piece, strange, names))
            continue
        in_code += [piece.line + i for i in hidden]
        near += [piece.line + s.line for s in starts if not s.label.exact]
        glued += [piece.line + s.line for s in starts if not begins_paragraph(lines, s.line)]
        labelled += [piece.line] if opener else []
        conversations.append(_conversation(piece, lines, starts))
    before = (
        f"text before the first turn begins with another label than {names.user}: or "
        f"{names.agent}:, not trained on"
    )
    found = {GLUED: glued, NEAR: near, FENCED: in_code, before: labelled}
    notes |= {what: at for what, at in found.items() if at}
    return conversations, faults


def _strange_label(
    lines: Sequence[str], starts: Sequence[_Start], names: Names, opener: str
) -> tuple[int, str] | None:
    """A line of an agent's turn that begins with a label of somebody else who asks, and the name:
    the one whose label begins the conversation, or User or Human at the start of a paragraph."""
    others = {"user", "human"} - {name.casefold() for name in names}
    if not opener and not any(other in "\n".join(lines).casefold() for other in others):
        return None
    ends = [*(start.line for start in starts[1:]), len(lines)]
    for start, end in zip(starts, ends, strict=True):
        part = lines[start.line + 1 : end] if start.label.role == "agent" else []
        for i, name in any_labels(part, glued=True):
            paragraph = not (part[i - 1] if i else lines[start.line]).strip()
            if (opener and same(name, opener)) or (paragraph and name.casefold() in others):
                return start.line + 1 + i, name
    return None


def _asks_under_another_name(
    path: Path, piece: Piece, strange: tuple[int, str], names: Names
) -> UserError:
    line, name = strange
    return UserError(
        f"{paths.short(path)}:{piece.line + line}",
        f'"{name}:" begins a line of a turn of {names.agent[:40]}, and {names.user[:40]} asks',
        f'write "{names.user[:40]}:", or put it into a code block',
    )


def _conversation(piece: Piece, lines: Sequence[str], starts: Sequence[_Start]) -> Conversation:
    ends = [*(start.line for start in starts[1:]), len(lines)]
    turns = tuple(
        Turn(start.label.role, "\n".join(lines[start.line : end])[start.label.end :].strip())
        for start, end in zip(starts, ends, strict=True)
    )
    return Conversation(piece.line, turns, "\n".join(lines[: starts[0].line]).strip())


def nobody_answers(path: Path, pieces: Sequence[Piece], votes: Votes) -> UserError:
    """Why no two names were found in a file that begins with these conversations."""
    where = f"{paths.short(path)}:{pieces[0].line if pieces else 1}"
    asker = max(votes.asks, key=votes.asks.__getitem__, default="")
    if asker and same(asker, "User"):
        what = f"no turns found that answer {asker}"
        return UserError(where, what, 'write "Agent: ..." below it')
    bare = re.compile(r"User:\S")
    if any(bare.match(line) for piece in pieces for line in piece.text.split("\n")):
        what = 'no turns found: no blank after "User:"'
        return UserError(where, what, "add one, or set user_name and agent_name")
    found = ", ".join(f"{name[:24]} ({count})" for name, count in votes.seen.most_common(3))
    what = 'no turns found: none starts with "User:"' + (f"; found {found}" if found else "")
    remedy = 'begin each question with "User: "'
    return UserError(where, what, f"{remedy}, or set user_name" if found else remedy)


def no_turn_of(path: Path, name: str, parameter: str, votes: Votes) -> UserError:
    """One side never has a turn in a file: what labels it has."""
    found = ", ".join(sorted(votes.seen))[:60]
    what = f'no turn starts with "{name[:40]}:"' + (f"; found {found}" if found else "")
    return UserError(paths.short(path), what, f"set {parameter}")


# What other tools end a conversation with, at the end of a line.
_OTHER_MARKS = re.compile(
    r"(</s>|<eos>|<end_of_turn>|<EOT>|<\|(?:im_end|end|eot_id|end_of_text|endofturn)\|>"
    r"|\[(?:END|EOS|SEP)\]|(?<![^\n])(?:#{3,}|-{3,}|={3,}|\*{3,}))[ \t]*$",
    re.MULTILINE,
)


def no_marks(path: Path, mark: str, names: Names, num_questions: int, head: str) -> UserError:
    """The refusal of a file whose many questions no mark parts: what may be meant instead."""
    others = [found[1] for found in _OTHER_MARKS.finditer(head)]
    other = max(others, key=others.count, default="")
    has = f'{num_questions:,} "{names.user[:40]}:" labels'
    if others.count(other) > 1:
        what = f"no {mark}, {has}; {others.count(other):,} lines end with {other}"
        return UserError(paths.short(path), what, f'set end_mark to "{other}"')
    what = f"no {mark}, {has}"
    remedy = f"set end_mark to {NO_MARK} (each label begins one), or write the mark behind each"
    return UserError(paths.short(path), what, remedy)
