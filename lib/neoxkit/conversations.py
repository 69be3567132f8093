"""Read, check and split conversation files; no tokenizer is needed for any of it.

Two formats are read: the text format (turns `Name: text`, a blank line between turns, the end mark
after each conversation) and JSON Lines of `{"messages": [{"role": ..., "content": ...}, ...]}`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neoxkit import paths
from neoxkit.errors import UserError

END_MARK = "<|endoftext|>"
USER = "User"
STOP_TEXT = f"\n\n{USER}:"  # what an agent turn in the middle of a conversation ends with
MAX_FAULTS_SHOWN = 20

# The end mark counts as one at the end of a line or straight before a next `User:`; elsewhere it is
# text that somebody wrote about it.
_END_MARK = re.compile(rf"{re.escape(END_MARK)}(?=[ \t]*(?:\n|\Z|{re.escape(END_MARK)}|{USER}:))")
_LABEL = re.compile(r"([^\W\d_][\w .'-]{0,39}):(?=\s|$)")
_FENCE_OPENS = re.compile(r"(?:[^\n:`]{1,40}:[ \t]*)? {0,3}(`{3,}|~{3,})[\w+#.-]*[ \t]*$")


@dataclass(frozen=True)
class Turn:
    """One turn: role is "user" or "agent"; white space at the text's edges is not kept."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the text before the first of them, and the file line where it starts."""

    line: int
    turns: tuple[Turn, ...]
    preamble: str = ""
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_reply(self) -> bool:
        return any(turn.role == "agent" for turn in self.turns)


@dataclass
class ConversationFile:
    """What a file holds. `notes` counts what was read in a way that a person may not expect."""

    path: Path
    format: str
    agent_name: str
    conversations: list[Conversation]
    sha256: str
    notes: dict[str, list[int]]

    def sentences(self) -> list[str]:
        """What was read, and one sentence a kind of note with its count and first line numbers."""
        replies = sum(turn.role == "agent" for c in self.conversations for turn in c.turns)
        preambles = sum(bool(c.preamble) for c in self.conversations)
        unanswered = sum(c.turns[-1].role == "user" for c in self.conversations)
        said = [
            f"{paths.short(self.path)}: {len(self.conversations):,} conversations ({self.format}); "
            f"{USER} asks, {self.agent_name} answers {replies:,} times"
        ]
        if preambles:
            said.append(f"with text before the first turn, kept and not trained on: {preambles:,}")
        if unanswered:
            said.append(f"with an unanswered last turn: {unanswered:,}")
        notes = self.notes.items()
        return said + [f"{what}: {len(at):,} ({lines_in_short(at)})" for what, at in notes]


class Faults(UserError):
    """Every fault of a file, one a line, the first 20 of them."""

    def __init__(self, faults: Sequence[UserError]) -> None:
        lines = [str(fault) for fault in faults[:MAX_FAULTS_SHOWN]]
        if len(faults) > MAX_FAULTS_SHOWN:
            lines.append(f"... and {len(faults) - MAX_FAULTS_SHOWN} more")
        ValueError.__init__(self, "\n".join(lines))


def read(path: Path, agent_name: str = "") -> ConversationFile:
    """Read a conversation file; the agent's name is found when it is not given.

    Raises UserError (Faults when there are several) naming file, line and remedy.
    """
    raw = path.read_bytes()
    text = _decode(path, raw)
    digest = hashlib.sha256(raw).hexdigest()
    if path.suffix in (".jsonl", ".json"):
        notes: dict[str, list[int]] = {}
        conversations = _read_json_lines(path, text)
        return ConversationFile(path, "jsonl", agent_name or "Agent", conversations, digest, notes)
    _refuse_other_formats(path, text)
    pieces, notes = _split_at_end_marks(text)
    name = agent_name or find_agent_name(path, pieces)
    conversations = _read_text(path, pieces, name, notes)
    return ConversationFile(path, "text", name, conversations, digest, notes)


def read_sides(
    train_file: str, eval_file: str = "", agent_name: str = ""
) -> dict[str, ConversationFile]:
    """The files of a dataset by side; "eval" is there only when it has a file of its own.

    The agent's name is the train file's in both.
    """
    sides = {"train": read(paths.find("train_file", train_file), agent_name)}
    if eval_file:
        name = sides["train"].agent_name
        sides["eval"] = read(paths.find("eval_file", eval_file), name)
    return sides


def lines_in_short(lines: Sequence[int], most: int = 5) -> str:
    """Line numbers for a table.

    >>> lines_in_short([3, 9]), lines_in_short([1, 2, 3, 4, 5, 6])
    ('lines 3, 9', 'lines 1, 2, 3, 4, 5, ...')
    """
    shown = ", ".join(map(str, lines[:most])) + (", ..." if len(lines) > most else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"


# --- bytes to text ---

_BINARY = {
    b"\x1f\x8b": ("is a gzip file", "unpack it with gunzip first"),
    b"PK\x03\x04": ("is a zip or Office file", "save it as plain UTF-8 text"),
    b"%PDF": ("is a PDF file", "save it as plain UTF-8 text"),
    b"\x28\xb5\x2f\xfd": ("is a zstd file", "unpack it with zstd -d first"),
    b"\xff\xfe": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
}


def _decode(path: Path, raw: bytes) -> str:
    """UTF-8 bytes to text with line ends of one kind; every other encoding is refused."""
    where = paths.short(path)
    if not raw.strip():
        raise UserError(f"{where}:1", "the file is empty", "write conversations into it")
    for magic, (what, remedy) in _BINARY.items():
        if raw.startswith(magic):
            raise UserError(f"{where}:1", what, remedy)
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{where}:1", "is a Git LFS pointer, not the file", "run git lfs pull")
    if b"\0" in raw[:4096]:
        half = "LE" if raw[1:2] == b"\0" else "BE"
        raise UserError(
            f"{where}:1",
            "holds NUL bytes; it is UTF-16 or binary",
            f"iconv -f UTF-16{half} -t UTF-8",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw[: fault.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        raise UserError(
            f"{where}:{line}",
            f"not UTF-8 at byte {fault.start} (0x{raw[fault.start]:02x})",
            "probably Windows-1252: iconv -f WINDOWS-1252 -t UTF-8",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_other_formats(path: Path, text: str) -> None:
    """Name a well-known format that came under the wrong file name."""
    where, start = f"{paths.short(path)}:1", text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise UserError(
            where, "is HTML or XML, not conversations", "save the conversations as text"
        )
    if start.startswith("<|im_start|>"):
        raise UserError(where, "is ChatML", 'write "User: ...", or JSON Lines "messages"')
    if start.startswith("["):
        first = text.lstrip()[1:].lstrip()[:1]
        if first in ("{", "]"):
            raise UserError(where, "is a JSON array", "write one object a line and name it .jsonl")
    if re.match(r'\{\s*"', start):
        raise UserError(where, "is JSON", "name it .jsonl (one object a line)")


# --- the text format ---


class Piece(NamedTuple):
    """The text between two end marks, and the file line where it starts."""

    line: int
    text: str


def _split_at_end_marks(text: str) -> tuple[list[Piece], dict[str, list[int]]]:
    notes: dict[str, list[int]] = {}
    pieces, start, line = [], 0, 1
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


def find_agent_name(path: Path, pieces: Sequence[Piece]) -> str:
    """The name that answers `User:`; refused when two names are about as likely.

    In each conversation the first label after a `User:` turn is a vote.
    """
    votes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for piece in pieces:
        names = [name for _, name in _labels(piece.text.split("\n"))]
        seen.update(set(names))
        if USER in names:
            after = [name for name in names[names.index(USER) :] if name != USER]
            votes.update(after[:1])
    if not votes:
        raise _no_turns(path, pieces, seen)
    (top, count), *others = votes.most_common()
    rivals = [n for n, c in others if c == count or c >= max(2, 0.05 * count)]
    if rivals:
        names = ", ".join(f"{name} ({votes[name]})" for name in [top, *rivals][:4])
        raise UserError(
            paths.short(path), f"several names answer: {names}", f'set agent_name, say to "{top}"'
        )
    return top


def _no_turns(path: Path, pieces: Sequence[Piece], seen: Counter[str]) -> UserError:
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
    if seen[USER]:
        return UserError(where, "no turns found that answer User", 'write "Agent: ..." below it')
    found = ", ".join(f"{name} ({count})" for name, count in seen.most_common(3))
    what = f'no turns found: none starts with "{USER}:"' + (f"; found {found}" if found else "")
    return UserError(where, what, f'begin each question with "{USER}: "')


def _read_text(
    path: Path, pieces: Sequence[Piece], agent_name: str, notes: dict[str, list[int]]
) -> list[Conversation]:
    faults, conversations = [], []
    glued: list[int] = []
    fenced: list[int] = []
    for piece in pieces:
        lines = piece.text.split("\n")
        starts = [(i, name) for i, name in _labels(lines, (USER, agent_name))]
        at = {i for i, _ in starts}
        in_fence = _fenced(lines)
        for i, line in enumerate(lines):
            if i not in at and line.startswith((f"{USER}:", f"{agent_name}:")):
                (fenced if in_fence[i] else glued).append(piece.line + i)
        if not starts:
            where = f"{paths.short(path)}:{piece.line}"
            faults.append(
                UserError(where, "a conversation without turns", f'begin it with "{USER}: "')
            )
            continue
        conversations.append(_conversation(piece, lines, starts))
    if faults:
        raise Faults(faults)
    if not any(conversation.has_reply for conversation in conversations):
        names = [name for p in pieces for _, name in _labels(p.text.split("\n"))]
        found = ", ".join(sorted(set(names)))[:60]
        raise UserError(
            paths.short(path),
            f'no turn starts with "{agent_name}:"; found {found}',
            "set agent_name",
        )
    if glued:
        notes["labels that follow no blank line, read as text"] = glued
    if fenced:
        notes["labels in a code block, read as text"] = fenced
    return conversations


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


def _labels(lines: Sequence[str], names: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """(line index, name) of each line that begins a paragraph with a label, outside code blocks.

    With `names` only these count, and text may follow the colon directly.
    """
    in_fence = _fenced(lines)
    for i, line in enumerate(lines):
        if in_fence[i] or (i and lines[i - 1].strip()):
            continue
        if names:
            found = next((name for name in names if line.startswith(f"{name}:")), None)
        else:
            match = _LABEL.match(line)
            found = match[1] if match else None
        if found:
            yield i, found


def _fenced(lines: Sequence[str]) -> list[bool]:
    """Which lines are inside a code block that is closed (its opening line does not count)."""
    inside = [False] * len(lines)
    i = 0
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


# --- JSON Lines ---

_ROLES = {"user": "user", "assistant": "agent", "agent": "agent"}


def _read_json_lines(path: Path, text: str) -> list[Conversation]:
    faults, conversations = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{paths.short(path)}:{number}"
        try:
            conversations.append(_from_json(where, number, line))
        except UserError as fault:
            faults.append(fault)
            if number == 1 and line.startswith((f"{USER}:", "[")):
                break
    if faults:
        raise Faults(faults)
    if not any(conversation.has_reply for conversation in conversations):
        raise UserError(
            f"{paths.short(path)}:1", "no turns found by the assistant", "check the roles"
        )
    return conversations


def _from_json(where: str, number: int, line: str) -> Conversation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as fault:
        if line.startswith(f"{USER}:"):
            raise UserError(where, "is the text format, not JSON", "name the file .txt") from None
        if line.strip() == "[":
            raise UserError(where, "is a JSON array", "write one object a line") from None
        raise UserError(
            where, f"not JSON at column {fault.colno} ({fault.msg})", "write one object a line"
        ) from None
    if isinstance(row, list):
        raise UserError(where, "is a JSON array", "write one object a line")
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(where, 'has no list "messages"', 'write {"messages": [...]}')
    turns: list[Turn] = []
    preamble: list[str] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise UserError(where, '"content" is not text', "write each content as one string")
        if role in ("system", "developer") and not turns:
            preamble.append(content.strip())
        elif role in _ROLES:
            turns.append(Turn(_ROLES[role], content.strip()))
        else:
            raise UserError(
                where, f"role {role!r} can't be read here", "use system (first), user, assistant"
            )
    if not turns:
        raise UserError(where, "a conversation without turns", "add user and assistant messages")
    extra = {k: v for k, v in row.items() if k != "messages" and isinstance(v, str)}
    return Conversation(number, tuple(turns), "\n\n".join(preamble), extra)


# --- conversations to text ---


class Span(NamedTuple):
    """Where a turn's text lies in the whole text: characters, end not included.

    `start` is right after the label's colon, so a reply's first blank belongs to the reply.
    """

    role: str
    start: int
    end: int


def render(conversation: Conversation, agent_name: str) -> tuple[str, list[Span]]:
    """The conversation's text without its end mark, and the span of each turn.

    >>> render(Conversation(1, (Turn("user", "Hi"), Turn("agent", "Yes?"))), "Joi")[0]
    'User: Hi\\n\\nJoi: Yes?'
    """
    parts, spans, at = [], [], 0
    if conversation.preamble:
        parts.append(conversation.preamble)
        at = len(conversation.preamble) + 2
    for turn in conversation.turns:
        label = f"{USER if turn.role == 'user' else agent_name}:"
        text = f"{label} {turn.text}" if turn.text else label
        parts.append(text)
        spans.append(Span(turn.role, at + len(label), at + len(text)))
        at += len(text) + 2
    return "\n\n".join(parts), spans


def prompt(conversation: Conversation, agent_name: str) -> str:
    """The text up to and with the label that the agent's next reply follows.

    It ends at the colon: a prompt that ends in a blank is no token prefix of the trained text.
    """
    text, _ = render(conversation, agent_name)
    return f"{text}\n\n{agent_name}:"


def split(texts: Sequence[str], eval_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the train side and the eval side; identical texts land on the same side.

    The side depends on the seed and the text alone, not on the order of the file. With two or more
    different texts and a share above 0 both sides get at least one.
    """

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode()).digest()

    unique = sorted(set(texts), key=rank)
    num_eval = round(eval_share * len(unique))
    if eval_share > 0 and len(unique) > 1:
        num_eval = min(max(num_eval, 1), len(unique) - 1)
    held_out = set(unique[:num_eval])
    sides: tuple[list[int], list[int]] = ([], [])
    for i, text in enumerate(texts):
        sides[text in held_out].append(i)
    return sides
