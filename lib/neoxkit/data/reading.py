"""Read and check conversation files, chunk by chunk, without a tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from neoxkit import parallel, paths
from neoxkit.data import chunks, detect, json_format, naming, text_format
from neoxkit.data.chunks import Chunk
from neoxkit.data.conversation import Conversation, Names, Notes
from neoxkit.data.detect import Form
from neoxkit.data.naming import Votes
from neoxkit.errors import Faults, UserError
from neoxkit.settings import END_MARK, TokenizeSettings

MANY, FEW = 10, 3  # more questions per conversation with fewer end marks per file get a note


@dataclass
class Examined:
    """The counts and notes of a file, or of a chunk of it.

    `notes`: what was read in an unusual way, with line numbers. `marks`: the end marks that ended a
    conversation.
    """

    conversations: int = 0
    questions: int = 0
    replies: int = 0
    with_preamble: int = 0
    unanswered: int = 0
    marks: int = 0
    notes: Notes = field(default_factory=dict)
    faults: list[UserError] = field(default_factory=list)
    votes: Votes = field(default_factory=Votes)

    def add(self, other: "Examined") -> None:
        """Add the facts of a later chunk of the same file."""
        for f in fields(self):
            if f.type is int:
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        for what, lines in other.notes.items():
            self.notes.setdefault(what, []).extend(lines)
        self.faults += other.faults
        self.votes.add(other.votes)


@dataclass
class ConversationFile:
    """A file that was read and checked; its conversations stay on disk until they are needed."""

    path: Path
    form: Form
    chunks: list[Chunk]
    sha256: str
    facts: Examined

    @property
    def names(self) -> Names:
        return self.form.names

    def read_chunk(self, chunk: Chunk) -> list[Conversation]:
        """Read the conversations of one chunk."""
        return _parse(self.path, self.form, chunk)[0]

    @property
    def conversations(self) -> list[Conversation]:
        """Read all conversations of a file that fits into memory."""
        return [c for chunk in self.chunks for c in self.read_chunk(chunk)]

    def sentences(self) -> list[str]:
        """Describe what was read; give each kind of note with its count and first line numbers."""
        facts = self.facts
        said = [
            f"{paths.short(self.path)}: {facts.conversations:,} conversations "
            f"({self.form.said}); {self.names.user} asks {facts.questions:,} times, "
            f"{self.names.agent} answers {facts.replies:,} times"
        ]
        if facts.with_preamble:
            what = "with text before the first turn, kept and not trained on"
            said.append(f"{what}: {facts.with_preamble:,}")
        if facts.unanswered:
            said.append(f"with an unanswered last turn, not trained on: {facts.unanswered:,}")
        if facts.questions > MANY * facts.conversations and 0 < facts.marks < FEW:
            said.append(
                f"end marks for {facts.questions:,} questions: {facts.marks} (if these are several "
                "conversations, set end_mark to none)"
            )
        if others := self._other_names():
            said.append(f"labels of neither side, read as text: {others}")
        notes = sorted(facts.notes.items(), key=lambda note: note[1])
        return said + [f"{what}: {len(at):,} ({lines_in_short(at)})" for what, at in notes]

    def _other_names(self, most: int = 5) -> str:
        """List labels that belong to neither side, which shows misspelt names."""
        votes = self.facts.votes
        ours = {name.casefold() for name in self.names}
        others = [n for n in votes.seen.most_common() if n[0].casefold() not in ours]
        shown = [
            f"{name}: ({count:,}, first in the conversation at line {votes.lines[name]:,})"
            for name, count in others[:most]
        ]
        return ", ".join(shown) + (", ..." if len(others) > most else "")


def read(
    path: Path,
    agent_name: str = "",
    user_name: str = "",
    end_mark: str = END_MARK,
    bad_rows: str = "error",
    names_of: str = "",
    columns: Mapping[str, str] | None = None,
) -> ConversationFile:
    """Read and check a conversation file; find the names that are not given.

    `end_mark` ends a conversation of the text format (text_format.NO_MARK: each turn of the asking
    side begins one). `names_of`: the parameter of the other file, if the names come from one.
    `columns` (role -> column) names the columns of JSON rows that are not known by their names.

    Conversations that can't be read are refused, or left out with a note (`bad_rows` "skip").
    Raise UserError (Faults if there are several) with file, line and remedy.
    """
    given = Names(agent_name.strip(), user_name.strip())
    is_json = path.suffix.lower() in (".jsonl", ".json")
    if is_json:
        given = Names(given.agent or "Agent", given.user or "User")
    detect.check_names(given)
    head = chunks.head(path)
    if "\ufffd" in head:
        chunks.cut(path, chunks.at_lines)  # refuses all but UTF-8 before the names are found
    if not head.strip():
        where = f"{paths.short(path)}:1"
        raise UserError(where, "the file is empty", "write conversations into it")
    if is_json:
        form = Form("json", given, shape=json_format.find_shape(path, head, columns or {}))
        boundary = chunks.nowhere if json_format.is_array(head) else chunks.at_lines
        found, digest = chunks.cut(path, boundary)
        facts = _examine_all(path, form, found)
    else:
        if columns:
            what = f"is for rows of JSON, and {paths.short(path)} is a text"
            raise UserError("columns", what, "leave it out, or name the file .jsonl")
        detect.refuse_other_formats(path, head)
        form, found, digest, facts = _read_text(path, head, given, end_mark, names_of)
    if facts.faults and bad_rows == "error":
        raise Faults(facts.faults)
    _leave_out(path, facts)
    _check_sides(path, form, facts, names_of)
    return ConversationFile(path, form, found, digest, facts)


def _read_text(
    path: Path, head: str, given: Names, end_mark: str, names_of: str
) -> tuple[Form, list[Chunk], str, Examined]:
    """Return the form, chunks, hash and facts of a text file that begins with `head`.

    The names in its beginning are nearly always those of the whole file: examine all chunks with
    them while the chunks vote, and examine them again only if the vote is for other names.
    """
    form, pieces, guess = detect.text_form(path, head, given, end_mark, names_of)
    marks = end_mark != text_format.NO_MARK
    boundary = chunks.at_marks(end_mark) if marks else chunks.nowhere
    found, digest = chunks.cut(path, boundary)
    facts = _examine_all(path, form, found, given)
    votes = facts.votes
    names = naming.choose(path, votes, given)
    if names is None:
        raise text_format.nobody_answers(path, pieces, guess)
    if not facts.questions and not votes.has(names.user):
        raise text_format.no_turn_of(path, names.user, "user_name", votes, names_of)
    if names != form.names:
        form = form._replace(names=names)
        facts = _examine_all(path, form, found)
        facts.votes = votes
    if text_format.RECURS in facts.notes:
        raise text_format.recurs(path, facts.notes[text_format.RECURS][0])
    asked = facts.questions or sum(votes.turns_of(names.user).values())
    if marks and not facts.marks and asked > 1:
        raise text_format.no_marks(path, end_mark, names, asked, head)
    return form, found, digest, facts


def _leave_out(path: Path, facts: Examined) -> None:
    """Turn the faults of conversations that may be left out into notes."""
    for fault in facts.faults:
        line = int(fault.where.rpartition(":")[2])
        facts.notes.setdefault(f"left out, can't be read: {fault.what}", []).append(line)
    facts.faults = []
    if not facts.conversations:
        what = "no conversation can be read"
        raise UserError(paths.short(path), what, "set bad_rows to error to see why")


def _check_sides(path: Path, form: Form, facts: Examined, names_of: str) -> None:
    """Refuse a file in which a side has no turns: the other side would be given its text."""
    if form.format == "json":
        if not facts.replies:
            where = f"{paths.short(path)}:1"
            raise UserError(where, "no turns of the assistant found", "check the roles")
        return
    for count, name, parameter in (
        (facts.questions, form.names.user, "user_name"),
        (facts.replies, form.names.agent, "agent_name"),
    ):
        if not count:
            raise text_format.no_turn_of(path, name, parameter, facts.votes, names_of)


def _examine_all(
    path: Path, form: Form, found: Sequence[Chunk], given: Names | None = None
) -> Examined:
    """Return the facts of all chunks; with `given` (the names that the user set) they also vote."""
    total = Examined()
    for facts in parallel.each(partial(_examine, path, form, given), found):
        total.add(facts)
    return total


def _examine(path: Path, form: Form, given: Names | None, chunk: Chunk) -> Examined:
    return _parse(path, form, chunk, given)[1]  # a worker process hands back the facts alone


def _parse(
    path: Path, form: Form, chunk: Chunk, given: Names | None = None
) -> tuple[list[Conversation], Examined]:
    """Return a chunk's conversations and its facts."""
    text, facts = chunks.read_chunk(path, chunk), Examined()
    if form.format == "json":
        conversations, facts.faults = json_format.read_rows(
            path, text, facts.notes, form.shape, chunk.line
        )
        stop = form.names.stop_text
        inside = [c.line for c in conversations if any(stop in turn.text for turn in c.turns)]
        if inside:
            what = f"a blank line and {form.names.user}: inside a message, read as text"
            facts.notes[what] = inside
    else:
        pieces, facts.marks, facts.notes = text_format.split(
            text, form.end_mark, form.names, chunk.line
        )
        conversations, facts.faults = text_format.read_text(path, pieces, form.names, facts.notes)
        if given is not None:
            facts.votes = naming.collect_votes(pieces, given, form.glued)
    facts.conversations = len(conversations)
    roles = [turn.role for c in conversations for turn in c.turns]
    facts.questions, facts.replies = roles.count("user"), roles.count("agent")
    facts.with_preamble = sum(bool(c.preamble) for c in conversations)
    facts.unanswered = sum(c.turns[-1].role == "user" for c in conversations)
    return conversations, facts


def read_sides(settings: TokenizeSettings) -> dict[str, ConversationFile]:
    """Read the files of a dataset by side; "eval" is present only if it has a file of its own.

    The names found in the train file are used for both.
    """
    given = ("end_mark", "bad_rows", "columns")
    options: dict[str, Any] = {name: getattr(settings, name) for name in given}
    train_file = paths.find("train_file", settings.train_file)
    sides = {"train": read(train_file, settings.agent_name, settings.user_name, **options)}
    if settings.eval_file:
        eval_file = paths.find("eval_file", settings.eval_file)
        names = sides["train"].names
        sides["eval"] = read(eval_file, *names, **options, names_of="train_file")
    return sides


def questions_beside(train_file: Path) -> Path:
    """Return the path of the held-out questions for a text, whether or not they exist."""
    return train_file.with_name(f"{train_file.stem}_questions.jsonl")


def lines_in_short(lines: Sequence[int], most: int = 5) -> str:
    """Format line numbers for a table.

    >>> lines_in_short([3, 9]), lines_in_short([1, 2, 3, 4, 5, 6])
    ('lines 3, 9', 'lines 1, 2, 3, 4, 5, ...')
    """
    shown = ", ".join(map(str, lines[:most])) + (", ..." if len(lines) > most else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"
