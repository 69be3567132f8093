"""Read the text format: turns `Name: text`, separated by a blank line, then an end mark."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from neoxkit.data.conversation import Conversation, Fault, Names, Notes, Turn
from neoxkit.data.fences import code_lines, is_fence
from neoxkit.data.labels import Label, any_label, any_labels, begins_paragraph, label_of, with_colon
from neoxkit.data.naming import Votes, same
from neoxkit.data.places import Places
from neoxkit.errors import UserError
from neoxkit.settings import END_MARK

NO_MARK = "none"  # value of end_mark: each turn of the asking side begins a conversation

GLUED = "labels without a blank line before them, read as turns"
NEAR = "labels written differently, read as turns"
FENCED = "labels in a code block, read as text"
SAME_SIDE = "second of two turns of one side in a row (is a label missing between them?)"
BEFORE = "no end mark at the end of the file, conversation kept"
UNUSED = "end marks without a conversation before them, ignored"
RECURS = "the text before the first question also ends other conversations"


class Piece(NamedTuple):
    """The text of one conversation, and the line where it starts in the file."""

    line: int
    text: str


class Pieces(NamedTuple):
    """The conversations of a text, how many marks ended one, and notes on what is unusual."""

    pieces: list[Piece]
    num_marks: int
    notes: Notes


def split(text: str, mark: str, names: Names | None = None, first_line: int = 1) -> Pieces:
    """Split a text into conversations; `names` is None while they are still unknown."""
    if mark == NO_MARK:
        return _split_at_questions(text, names, first_line)
    pieces: list[Piece] = []
    as_text = f"{mark} in the text, read as text"
    found: Notes = {BEFORE: [], UNUSED: [], as_text: []}
    start, line, counted, num_marks = 0, first_line, 0, 0  # `line` is that of `counted`
    for at in [*(match.start() for match in re.finditer(re.escape(mark), text)), len(text)]:
        line, counted = line + text.count("\n", counted, at), at
        is_end = at == len(text)
        if not is_end and not _ends_conversation(text, start, at, mark, names):
            found[as_text].append(line)
            continue
        piece = text[start:at].strip()
        if piece:
            begins = line - text.count("\n", text.index(piece[:1], start), at)
            pieces.append(Piece(begins, piece))
            num_marks += not is_end
            found[BEFORE] += [begins] if is_end else []
        elif not is_end:
            found[UNUSED].append(line)
        start = at + len(mark)
    return Pieces(pieces, num_marks, {what: at for what, at in found.items() if at})


_CONTINUES = " \t.,;:!?)]}\"'`”’"  # these follow a mark that a sentence mentions
_LINE_ENDS = re.compile(r"[ \t]*(?:\n|\Z)")


def _ends_conversation(text: str, start: int, at: int, mark: str, names: Names | None) -> bool:
    """Return whether a mark ends the conversation that begins at `start`, and is not just text.

    It does at the end of a line, before another mark or before a label, but not in a code block.
    It also does if words follow on its line and a turn comes before the next mark: the words are
    a preamble.
    """
    over = at + len(mark)
    ends_line = bool(_LINE_ENDS.match(text, over))
    if text.startswith(mark, over) or (ends_line and "```" not in text[start:at]):
        return True
    next_mark = text.find(mark, over)
    lines = text[over : None if next_mark < 0 else next_mark].split("\n")
    if ends_line:
        return not _is_in_code(text[start:at].split("\n"), lines, names)
    if _is_label(lines[0], names):
        return True
    begins = lines[0][:1] not in _CONTINUES
    return begins and any(_is_label(line, names) for line in lines[1:])


def _is_in_code(before: Sequence[str], after: Sequence[str], names: Names | None) -> bool:
    """Return whether a code block is open after `before` and is closed before the next label."""
    if sum(map(is_fence, before)) % 2 == 0:
        return False
    first = next((line for line in after if is_fence(line) or _is_label(line, names)), "")
    return is_fence(first)


def _is_label(line: str, names: Names | None) -> bool:
    return bool(label_of(line, names) if names else any_label(line))


def _split_at_questions(text: str, names: Names | None, first_line: int) -> Pieces:
    """Split before each turn of the asking side; the first piece includes the text before it."""
    lines = text.split("\n")
    starts = [s.line for s in _starts(lines, names)[0] if s.label.role == "user"] if names else []
    edges = [0, *starts[1:], len(lines)]
    pieces = []
    for start, end in pairwise(edges):
        while start < end and not lines[start].strip():
            start += 1
        if start < end:
            pieces.append(Piece(first_line + start, "\n".join(lines[start:end]).strip()))
    heading = _without_digits("\n".join(lines[: starts[0]]).strip()) if starts else ""
    again = [p.line for p in pieces[:-1] if heading and _without_digits(p.text) == heading]
    return Pieces(pieces, 0, {RECURS: again} if again else {})


def _without_digits(text: str) -> str:
    """Return the last line of a text with each number replaced by 0."""
    return re.sub(r"\d+", "0", text.rpartition("\n")[2].strip())


class _Start(NamedTuple):
    """A line that begins a turn."""

    line: int
    label: Label


def _starts(lines: Sequence[str], names: Names) -> tuple[list[_Start], list[int]]:
    """Return the lines that begin turns, and the lines in code blocks that look as if they did."""
    found = [
        _Start(i, label)
        for i in with_colon(lines)
        if (label := label_of(lines[i], names, begins_paragraph(lines, i)))
    ]
    inside = code_lines(lines, [start.line for start in found])
    starts = [start for start in found if not inside[start.line]]
    return starts, [start.line for start in found if inside[start.line]]


def _with_ends(starts: Sequence[_Start], lines: Sequence[str]) -> Iterator[tuple[_Start, int]]:
    """Return each turn's start and the line after its end."""
    return zip(starts, [*(start.line for start in starts[1:]), len(lines)], strict=True)


def read_text(
    places: Places, pieces: Sequence[Piece], names: Names, notes: Notes
) -> tuple[list[Conversation], list[Fault]]:
    """Return the pieces' conversations, and a fault for each that can't be read; add to `notes`."""
    faults: list[Fault] = []
    conversations = []
    before = (
        f"text before the first turn begins with a label other than {names.user}: or "
        f"{names.agent}:, not trained on"
    )
    found: Notes = {GLUED: [], NEAR: [], FENCED: [], SAME_SIDE: [], before: []}
    for piece in pieces:
        lines = piece.text.split("\n")
        starts, hidden = _starts(lines, names)
        if not starts:
            what, remedy = "a conversation without turns", f'begin it with "{names.user}: "'
            faults.append((piece.line, UserError(places.at(piece.line), what, remedy)))
            continue
        opener = any_label(lines[0]) if starts[0].line else ""
        if strange := _strange_label(lines, starts, names, opener):
            line, name = piece.line + strange[0], strange[1]
            faults.append((line, _asks_under_another_name(places.at(line), name, names)))
            continue
        again = [b for a, b in pairwise(starts) if a.label.role == b.label.role]
        at = piece.line
        found[GLUED] += [at + s.line for s in starts if not begins_paragraph(lines, s.line)]
        found[NEAR] += [at + s.line for s in starts if not s.label.exact]
        found[FENCED] += [at + i for i in hidden]
        found[SAME_SIDE] += [at + s.line for s in again]
        found[before] += [at] if opener else []
        conversations.append(_conversation(piece, lines, starts))
    notes |= {what: at for what, at in found.items() if at}
    return conversations, faults


def _strange_label(
    lines: Sequence[str], starts: Sequence[_Start], names: Names, opener: str
) -> tuple[int, str] | None:
    """Find a line of an agent's turn that begins with another asker's label, and the name there.

    That is the name that begins the conversation, or User or Human at the start of a paragraph.
    """
    others = {"user", "human"} - {name.casefold() for name in names}
    if not opener and not any(other in "\n".join(lines).casefold() for other in others):
        return None
    for start, end in _with_ends(starts, lines):
        part = lines[start.line + 1 : end] if start.label.role == "agent" else []
        for i, name in any_labels(part, glued=True):
            paragraph = not (part[i - 1] if i else lines[start.line]).strip()
            if (opener and same(name, opener)) or (paragraph and name.casefold() in others):
                return start.line + 1 + i, name
    return None


def _asks_under_another_name(where: str, name: str, names: Names) -> UserError:
    return UserError(
        where,
        f'"{name}:" begins a line of a turn of {names.agent[:40]}, and {names.user[:40]} asks',
        f'write "{names.user[:40]}:", or put it into a code block',
    )


def _conversation(piece: Piece, lines: Sequence[str], starts: Sequence[_Start]) -> Conversation:
    turns = tuple(
        Turn(start.label.role, "\n".join(lines[start.line : end])[start.label.end :].strip())
        for start, end in _with_ends(starts, lines)
    )
    return Conversation(piece.line, turns, "\n".join(lines[: starts[0].line]).strip())


def nobody_answers(places: Places, pieces: Sequence[Piece], votes: Votes) -> UserError:
    """Explain why no two names were found in a file that begins with these conversations."""
    where = places.at(pieces[0].line if pieces else 1)
    asker = max(votes.asks, key=votes.asks.__getitem__, default="")
    if asker and same(asker, "User"):
        what = f"no turns found that answer {asker}"
        remedy = 'write "Agent: ..." below it, before the mark that ends the conversation'
        return UserError(where, what, remedy)
    bare = re.compile(r"User:\S")
    if any(bare.match(line) for piece in pieces for line in piece.text.split("\n")):
        what = 'no turns found: no space after "User:"'
        return UserError(where, what, "add one, or set user_name and agent_name")
    found = ", ".join(f"{name[:24]} ({count})" for name, count in votes.seen.most_common(3))
    what = 'no turns found: none starts with "User:"' + (f"; found {found}" if found else "")
    other = ", or set user_name" if found else " (documents: set train_on to all)"
    return UserError(where, what, f'begin each question with "User: "{other}')


def no_turn_of(
    places: Places, name: str, parameter: str, votes: Votes, names_of: str = ""
) -> UserError:
    """Explain that a side has no turns in a file, and list the file's labels."""
    found = ", ".join(sorted(votes.seen))[:60]
    what = f'no turn starts with "{name[:40]}:"' + (f"; found {found}" if found else "")
    remedy = f'set {parameter}, or begin the lines of its turns with "{name[:20]}: "'
    if names_of:
        remedy = f"use the names of {names_of} in this file too"
    return UserError(places.label, what, remedy)


def recurs(places: Places, line: int) -> UserError:
    """Explain that a file's conversations begin before their questions."""
    what = "the text before the first question is also at the end of this conversation"
    remedy = f"write {END_MARK} at the end of each conversation, and leave end_mark alone"
    return UserError(places.at(line), what, remedy)


# End marks of other tools, at the end of a line.
_OTHER_MARKS = re.compile(
    r"(</s>|<eos>|<end_of_turn>|<EOT>|<\|(?:im_end|end|eot_id|end_of_text|endofturn)\|>"
    r"|\[(?:END|EOS|SEP)\]|(?<![^\n])(?:#{3,}|-{3,}|={3,}|\*{3,}))[ \t]*$",
    re.MULTILINE,
)


def no_marks(places: Places, mark: str, names: Names, num_questions: int, head: str) -> UserError:
    """Explain that a file with several questions has no end mark, and suggest what to set."""
    others = [found[1] for found in _OTHER_MARKS.finditer(head)]
    other = max(others, key=others.count, default="")
    has = f'{num_questions:,} "{names.user[:40]}:" labels'
    if others.count(other) > 1:
        count = others.count(other)
        what = f"no {mark}, {has}; {count:,} lines end with {other}"
        if count > 1.5 * num_questions:
            remedy = f'keep {other} only where a conversation ends, then set end_mark to "{other}"'
            return UserError(places.label, what, remedy)
        return UserError(places.label, what, f'set end_mark to "{other}"')
    what = f"no {mark}, {has}"
    remedy = f"set end_mark to {NO_MARK} (each label begins one), or write the mark after each"
    return UserError(places.label, what, remedy)
