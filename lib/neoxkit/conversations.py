"""Read, check and split conversation files; no tokenizer is needed for any of it."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neoxkit import json_format, paths, text_format
from neoxkit.errors import Faults, UserError
from neoxkit.turns import STOP_TEXT, USER, Conversation


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


def read(path: Path, agent_name: str = "") -> ConversationFile:
    """Read a conversation file; the agent's name is found when it is not given.

    Raises UserError (Faults when there are several) naming file, line and remedy.
    """
    if agent_name == USER or any(c in agent_name for c in ":\n<>`"):
        raise UserError("agent_name", f"{agent_name!r} can't answer {USER}", "give the other name")
    raw = path.read_bytes()
    text = _decode(path, raw)
    digest = hashlib.sha256(raw).hexdigest()
    if path.suffix.lower() in (".jsonl", ".json"):
        conversations = json_format.read(path, text)
        inside = [c.line for c in conversations if any(STOP_TEXT in turn.text for turn in c.turns)]
        notes = (
            {f"a blank line and {USER}: inside a message, read as text": inside} if inside else {}
        )
        return ConversationFile(path, "jsonl", agent_name or "Agent", conversations, digest, notes)
    _refuse_other_formats(path, text)
    pieces, notes = text_format.split_at_end_marks(text)
    name = agent_name or text_format.find_agent_name(path, pieces)
    conversations = text_format.read(path, pieces, name, notes)
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
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Faults(list(_encoding_faults(where, raw))) from None
    if not text.strip():
        raise UserError(f"{where}:1", "the file is empty", "write conversations into it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding_faults(where: str, raw: bytes) -> Iterator[UserError]:
    """One fault a line that is not UTF-8, with the offset of its first wrong byte in the file."""
    at = 0
    for number, line in enumerate(re.split(rb"(?<=\n)|(?<=\r)(?!\n)", raw), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as fault:
            yield UserError(
                f"{where}:{number}",
                f"not UTF-8 at byte {at + fault.start} (0x{line[fault.start]:02x})",
                "probably Windows-1252: iconv -f WINDOWS-1252 -t UTF-8",
            )
        at += len(line)


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
