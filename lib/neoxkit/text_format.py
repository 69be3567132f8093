"""The text format: turns `Name: text` with a blank line between, then the end mark."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.turns import END_MARK, USER, Conversation, Turn

# The end mark counts as one at the end of a line or straight before a next `User:`; elsewhere it is
# text that somebody wrote about it.
_END_MARK = re.compile(rf"{re.escape(END_MARK)}(?=[ \t]*(?:\n|\Z|{re.escape(END_MARK)}|{USER}:))")
_LABEL = re.compile(r"([^\W\d_][^\t:;,!?()\[\]{}<>|/\\\"`*=]{0,39}):(?=\s|$)")


_FENCE_OPENS = re.compile(r"(?:[^\n:`]{1,40}:[ \t]*)? {0,3}(`{3,}(?=[^`]*$)|~{3,})")


class Piece(NamedTuple):
    """The text between two end marks, and the file line where it starts."""

    line: int
    text: str


def split_at_end_marks(text: str, first_line: int = 1) -> tuple[list[Piece], dict[str, list[int]]]:
    """The conversations of a text, and notes: what was read in a way one may not expect."""
    notes: dict[str, list[int]] = {}
    pieces, start, line = [], 0, first_line
    doubled: list[int] = []
    for mark in [*_END_MARK.finditer(text), None]:
        end = mark.start() if mark else len(text)
        piece = text[start:end]
        lead = len(piece) - len(piece.lstrip())
        first_line = line + piece[:lead].count("\n")
        line += piece.count("\n")
        if piece.strip():
            pieces.append(Piece(first_line, piece.strip()))
            if mark is None:
                notes["no end mark at the end of the file, conversation kept"] = [first_line]
        elif mark:
            doubled.append(line)
        start = mark.end() if mark else end
    if doubled:
        notes["doubled end marks, ignored"] = doubled
    inside = [p.line + p.text[: m.start()].count("\n") for p in pieces for m in _marks_in(p.text)]
    if inside:
        notes[f"{END_MARK} in the middle of a line, read as text"] = inside
    return pieces, notes


def _marks_in(text: str) -> Iterator[re.Match[str]]:
    return re.finditer(re.escape(END_MARK), text)


@dataclass
class Votes:
    """Which names answer `User:`, by conversation: the first label after it, and every one."""

    pieces: int = 0
    first: Counter[str] = field(default_factory=Counter)
    every: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    lines: dict[str, int] = field(default_factory=dict)  # where a name was first seen

    def add(self, other: "Votes") -> None:
        """Count in the votes of a later part of the file."""
        self.pieces += other.pieces
        self.first.update(other.first)
        self.every.update(other.every)
        self.seen.update(other.seen)
        self.lines = other.lines | self.lines

    @property
    def counts(self) -> Counter[str]:
        """In a file of one or two conversations every label counts, else one a conversation."""
        return self.every if self.pieces < 3 else self.first

    def likely(self) -> str:
        """The name with the most votes, "" where there are none."""
        return max(self.counts, key=self.counts.get, default="")


def votes(pieces: Sequence[Piece]) -> Votes:
    """What each conversation says about who answers."""
    found = Votes(pieces=len(pieces))
    for piece in pieces:
        names = [name for _, name in _labels(piece.text.split("\n"))]
        found.seen.update(list(dict.fromkeys(names)))
        for name in names:
            found.lines.setdefault(name, piece.line)
        if USER in names:
            after = [name for name in names[names.index(USER) :] if name != USER]
            found.every.update(after)
            found.first.update(after[:1])
    return found


def choose_name(path: Path, votes: Votes) -> str:
    """The name that answers `User:`, "" where none does; refused when two are about as likely."""
    if not votes.counts:
        return ""
    (top, count), *others = votes.counts.most_common()
    rivals = [n for n, c in others if c == count or c >= max(2, 0.05 * count)]
    if rivals:
        names = ", ".join(f"{name[:24]} ({votes.counts[name]})" for name in [top, *rivals][:3])
        raise UserError(
            f"{paths.short(path)}:{votes.lines[rivals[0]]}",
            f"several names answer: {names}",
            f'set agent_name, say to "{top[:24]}"',
        )
    return top


def no_turns(path: Path, pieces: Sequence[Piece], votes: Votes) -> UserError:
    """Why nobody answers in a file that begins with these conversations."""
    seen = votes.seen
    where = f"{paths.short(path)}:{pieces[0].line if pieces else 1}"
    for piece in pieces if seen[USER] else ():
        for offset, line in enumerate(piece.text.split("\n")):
            label = _LABEL.match(line)
            if offset and label and label[1] != USER:
                return UserError(
                    f"{paths.short(path)}:{piece.line + offset}",
                    f"no turns found; {label[1] + ':'!r} does not follow a blank line",
                    "put a blank line before each turn",
                )
    labelled = any(f"\n{USER}:" in f"\n{piece.text}" for piece in pieces)
    if labelled and not seen[USER]:
        what = f'no turns found: no blank after "{USER}:"'
        return UserError(where, what, "add one, or set agent_name")
    if seen[USER]:
        return UserError(where, "no turns found that answer User", 'write "Agent: ..." below it')
    found = ", ".join(f"{name[:24]} ({count})" for name, count in seen.most_common(3))
    what = f'no turns found: none starts with "{USER}:"' + (f"; found {found}" if found else "")
    return UserError(where, what, f'begin each question with "{USER}: "')


GLUED = "labels that follow no blank line, read as text (put one before them)"


def read(
    path: Path, pieces: Sequence[Piece], agent_name: str, notes: dict[str, list[int]]
) -> tuple[list[Conversation], list[UserError]]:
    """Pieces to conversations, and a fault for each piece without turns; adds to the notes."""
    faults, conversations = [], []
    glued: list[int] = []
    fenced: list[int] = []
    labelled: list[int] = []
    labels = (f"{USER}:", f"{agent_name}:")
    for piece in pieces:
        lines = piece.text.split("\n")
        in_fence = _fenced(lines)
        starts = []
        for i, line in enumerate(lines):
            if line.startswith(labels):
                if in_fence[i]:
                    fenced.append(piece.line + i)
                elif i and lines[i - 1].strip():
                    glued.append(piece.line + i)
                else:
                    starts.append((i, USER if line.startswith(labels[0]) else agent_name))
        if not starts:
            where = f"{paths.short(path)}:{piece.line}"
            faults.append(
                UserError(where, "a conversation without turns", f'begin it with "{USER}: "')
            )
            continue
        if starts[0][0] and _LABEL.match(lines[0]):
            labelled.append(piece.line)
        conversations.append(_conversation(piece, lines, starts))
    found = {
        GLUED: glued,
        "labels in a code block, read as text": fenced,
        f"text before the first turn begins with another label than {USER}: or {agent_name}:, "
        "not trained on": labelled,
    }
    notes |= {what: lines for what, lines in found.items() if lines}
    return conversations, faults


def no_replies(
    path: Path, agent_name: str, notes: Mapping[str, Sequence[int]], votes: Votes
) -> UserError:
    """Why the agent never answers in a file."""
    if GLUED in notes:
        return UserError(
            f"{paths.short(path)}:{notes[GLUED][0]}",
            "no turns found; this label does not follow a blank line",
            "put a blank line before each turn",
        )
    found = ", ".join(sorted(votes.seen))[:60]
    return UserError(
        paths.short(path),
        f'no turn starts with "{agent_name[:40]}:"; found {found}',
        "set agent_name",
    )


def _conversation(
    piece: Piece, lines: Sequence[str], starts: Sequence[tuple[int, str]]
) -> Conversation:
    ends = [i for i, _ in starts[1:]] + [len(lines)]
    turns = tuple(
        Turn("user" if name == USER else "agent", _body(lines[start:end], name))
        for (start, name), end in zip(starts, ends, strict=True)
    )
    return Conversation(piece.line, turns, "\n".join(lines[: starts[0][0]]).strip())


def _body(lines: Sequence[str], name: str) -> str:
    return "\n".join(lines)[len(name) + 1 :].strip()


def _labels(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(line index, name) of each line that begins a paragraph with a label, outside code blocks."""
    in_fence = _fenced(lines)
    for i, line in enumerate(lines):
        if not (in_fence[i] or (i and lines[i - 1].strip())) and (label := _LABEL.match(line)):
            yield i, label[1]


def _fenced(lines: Sequence[str]) -> list[bool]:
    """Which lines are inside a code block that is closed (its opening line does not count)."""
    inside = [False] * len(lines)
    i = 0 if any("```" in line or "~~~" in line for line in lines) else len(lines)
    while i < len(lines):
        opens = _FENCE_OPENS.match(lines[i]) if "```" in lines[i] or "~~~" in lines[i] else None
        if opens:
            closes = re.compile(rf" {{0,3}}{re.escape(opens[1])}{re.escape(opens[1][0])}*[ \t]*$")
            end = next((j for j in range(i + 1, len(lines)) if closes.match(lines[j])), None)
            if end is not None:
                inside[i + 1 : end + 1] = [True] * (end - i)
                i = end
        i += 1
    return inside
