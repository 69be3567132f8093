"""Read and check conversation files, block by block; no tokenizer is needed for it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from neoxkit import blocks, json_format, paths, text_format, workers
from neoxkit.blocks import Block
from neoxkit.errors import Faults, UserError
from neoxkit.turns import STOP_TEXT, USER, Conversation


@dataclass
class Facts:
    """What is in a file, or in a block of it.

    `notes`: what was read in a way that a person may not expect, with line numbers.
    """

    conversations: int = 0
    replies: int = 0
    with_preamble: int = 0
    unanswered: int = 0
    notes: dict[str, list[int]] = field(default_factory=dict)
    faults: list[UserError] = field(default_factory=list)
    votes: text_format.Votes = field(default_factory=text_format.Votes)

    def add(self, other: "Facts") -> None:
        """Count in a later block of the same file."""
        self.conversations += other.conversations
        self.replies += other.replies
        self.with_preamble += other.with_preamble
        self.unanswered += other.unanswered
        for what, lines in other.notes.items():
            self.notes.setdefault(what, []).extend(lines)
        self.faults += other.faults
        self.votes.add(other.votes)


@dataclass
class ConversationFile:
    """A file that was read once and found right; its conversations stay on the disk."""

    path: Path
    format: str
    agent_name: str
    blocks: list[Block]
    sha256: str
    facts: Facts

    def read_block(self, block: Block) -> list[Conversation]:
        """The conversations of one block."""
        return _parse(self.path, self.format, self.agent_name, block)[0]

    @property
    def conversations(self) -> list[Conversation]:
        """All of them, for a file that fits into memory."""
        return [c for block in self.blocks for c in self.read_block(block)]

    def sentences(self) -> list[str]:
        """What was read, and one sentence a kind of note with its count and first line numbers."""
        facts = self.facts
        said = [
            f"{paths.short(self.path)}: {facts.conversations:,} conversations ({self.format}); "
            f"{USER} asks, {self.agent_name} answers {facts.replies:,} times"
        ]
        if facts.with_preamble:
            what = "with text before the first turn, kept and not trained on"
            said.append(f"{what}: {facts.with_preamble:,}")
        if facts.unanswered:
            said.append(f"with an unanswered last turn, not trained on: {facts.unanswered:,}")
        if others := self._other_names():
            said.append(f"labels of neither side, read as text: {others}")
        notes = sorted(facts.notes.items(), key=lambda note: note[1])
        return said + [f"{what}: {len(at):,} ({lines_in_short(at)})" for what, at in notes]

    def _other_names(self, most: int = 5) -> str:
        """Labels that begin a paragraph and are neither side's: a misspelt name is among them."""
        votes = self.facts.votes
        others = [n for n in votes.seen.most_common() if n[0] not in (USER, self.agent_name)]
        shown = [
            f"{name}: ({count:,}, first in the conversation of line {votes.lines[name]:,})"
            for name, count in others[:most]
        ]
        return ", ".join(shown) + (", ..." if len(others) > most else "")


def read(path: Path, agent_name: str = "") -> ConversationFile:
    """Read and check a conversation file; the agent's name is found when it is not given.

    Raises UserError (Faults when there are several) naming file, line and remedy.
    """
    if agent_name == USER or any(c in agent_name for c in ":\n<>`"):
        raise UserError("agent_name", f"{agent_name!r} can't answer {USER}", "give the other name")
    format = "jsonl" if path.suffix.lower() in (".jsonl", ".json") else "text"
    found, digest = blocks.cut(path, jsonl=format == "jsonl")
    first = blocks.read(path, found[0]) if found else ""
    if len(found) < 2 and not first.strip():
        where = f"{paths.short(path)}:1"
        raise UserError(where, "the file is empty", "write conversations into it")
    if format == "jsonl":
        name = agent_name or "Agent"
        facts = _examine_all(path, format, name, found)
    else:
        _refuse_other_formats(path, first)
        name, facts = _examine_text(path, agent_name, found, first)
    if facts.faults:
        raise Faults(facts.faults)
    if not facts.replies:
        raise _nobody_answers(path, format, name, facts, first)
    return ConversationFile(path, format, name, found, digest, facts)


def _examine_text(
    path: Path, agent_name: str, found: Sequence[Block], first: str
) -> tuple[str, Facts]:
    """The agent's name and the facts of a text file whose first block is given.

    The name in the first block is nearly always the whole file's: all blocks are examined with it
    while they vote, and again only if they vote for another.
    """
    if agent_name:
        return agent_name, _examine_all(path, "text", agent_name, found, vote=True)
    pieces, _ = text_format.split_at_end_marks(first)
    guess = text_format.votes(pieces).likely()
    facts = _examine_all(path, "text", guess, found, vote=True)
    name = text_format.choose_name(path, facts.votes)
    if not name:
        raise text_format.no_turns(path, pieces, facts.votes)
    return name, facts if name == guess else _examine_all(path, "text", name, found)


def _examine_all(
    path: Path, format: str, name: str, found: Sequence[Block], vote: bool = False
) -> Facts:
    total = Facts()
    for facts in workers.each(partial(_examine, path, format, name, vote), found):
        total.add(facts)
    return total


def _examine(path: Path, format: str, name: str, vote: bool, block: Block) -> Facts:
    conversations, facts = _parse(path, format, name, block, vote)
    facts.conversations = len(conversations)
    facts.replies = sum(turn.role == "agent" for c in conversations for turn in c.turns)
    facts.with_preamble = sum(bool(c.preamble) for c in conversations)
    facts.unanswered = sum(c.turns[-1].role == "user" for c in conversations)
    return facts


def _parse(
    path: Path, format: str, name: str, block: Block, vote: bool = False
) -> tuple[list[Conversation], Facts]:
    """The conversations of a block; of its facts only notes, faults and votes."""
    text = blocks.read(path, block)
    if format == "jsonl":
        conversations, faults = json_format.read(path, text, block.line)
        inside = [c.line for c in conversations if any(STOP_TEXT in turn.text for turn in c.turns)]
        what = f"a blank line and {USER}: inside a message, read as text"
        return conversations, Facts(notes={what: inside} if inside else {}, faults=faults)
    pieces, notes = text_format.split_at_end_marks(text, block.line)
    conversations, faults = text_format.read(path, pieces, name, notes)
    votes = text_format.votes(pieces) if vote else text_format.Votes()
    return conversations, Facts(notes=notes, faults=faults, votes=votes)


def _nobody_answers(path: Path, format: str, name: str, facts: Facts, first: str) -> UserError:
    if format == "jsonl":
        where = f"{paths.short(path)}:1"
        return UserError(where, "no turns found by the assistant", "check the roles")
    pieces, _ = text_format.split_at_end_marks(first)
    return text_format.no_replies(path, name, facts.notes, text_format.votes(pieces))


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
