"""Parse the chunks of a source, on all cores: their conversations, and what was found in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from neoxkit import parallel
from neoxkit.data import chunks, json_format, naming, sources, text_format
from neoxkit.data.chunks import Chunk
from neoxkit.data.conversation import Conversation, Fault, Names, Notes, Turn
from neoxkit.data.detect import Form
from neoxkit.data.json_format import Row
from neoxkit.data.naming import Votes
from neoxkit.data.places import Places
from neoxkit.data.rows import open_rows
from neoxkit.data.sources import Source

MANY, FEW = 10, 3  # more questions per conversation with fewer end marks per file get a note


@dataclass
class Examined:
    """The counts and notes of a source, or of a chunk of it.

    `notes`: what was read in an unusual way, with line numbers. `marks`: the end marks that ended a
    conversation. `documents`: the conversations without turns.
    """

    conversations: int = 0
    documents: int = 0
    questions: int = 0
    replies: int = 0
    with_preamble: int = 0
    unanswered: int = 0
    marks: int = 0
    notes: Notes = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
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
    """A source that was read and checked; its conversations stay on disk until they are needed."""

    source: Source
    sha256: str
    places: Places
    form: Form
    chunks: list[Chunk]
    facts: Examined

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def names(self) -> Names:
        return self.form.names

    def read_chunk(self, chunk: Chunk) -> list[Conversation]:
        """Read the conversations of one chunk."""
        return _parse(self.source, self.places, self.form, chunk)[0]

    @property
    def conversations(self) -> list[Conversation]:
        """Read all conversations of a source that fits into memory."""
        return [c for chunk in self.chunks for c in self.read_chunk(chunk)]

    def sentences(self) -> list[str]:
        """Describe what was read; give each kind of note with its count and first line numbers."""
        facts, names = self.facts, self.names
        said = [
            f"{self.source.label}: {facts.conversations:,} conversations ({self.form.said}); "
            f"{names.user} asks {facts.questions:,} times, {names.agent} answers "
            f"{facts.replies:,} times"
        ]
        if self.form.holds_documents:
            said = [
                f"{self.source.label}: {facts.documents:,} documents ({self.form.said}), without "
                "turns: all of their text is trained on (too_long split keeps long ones, in parts)"
            ]
        said += self.source.notes
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
        return said + [f"{what}: {len(at):,} ({self.places.listed(at)})" for what, at in notes]

    def _other_names(self, most: int = 5) -> str:
        """List labels that belong to neither side, which shows misspelt names."""
        votes = self.facts.votes
        ours = {name.casefold() for name in self.names}
        others = [n for n in votes.seen.most_common() if n[0].casefold() not in ours]
        shown = [
            f"{name}: ({count:,}, first in the conversation at "
            f"{self.places.listed([votes.lines[name]])})"
            for name, count in others[:most]
        ]
        return ", ".join(shown) + (", ..." if len(others) > most else "")


def examine_all(
    source: Source,
    places: Places,
    form: Form,
    found: Sequence[Chunk],
    given: Names | None = None,
) -> Examined:
    """Return the facts of all chunks; with `given` (the names that the user set) they also vote."""
    total = Examined()
    for facts in parallel.each(partial(_examine, source, places, form, given), found):
        total.add(facts)
    return total


def _examine(
    source: Source, places: Places, form: Form, given: Names | None, chunk: Chunk
) -> Examined:
    # A worker process hands back the facts alone.
    return _parse(source, places, form, chunk, given)[1]


def _parse(
    source: Source, places: Places, form: Form, chunk: Chunk, given: Names | None = None
) -> tuple[list[Conversation], Examined]:
    """Return a chunk's conversations and its facts."""
    facts = Examined()
    if form.format == "rows":
        rows = _rows_of(source, places, chunk)
        conversations, facts.faults = json_format.read_rows(places, rows, facts.notes, form.shape)
        stop = form.names.stop_text
        inside = [c.line for c in conversations if any(stop in turn.text for turn in c.turns)]
        if inside and not form.holds_documents:
            what = f"a blank line and {form.names.user}: inside a message, read as text"
            facts.notes[what] = inside
    else:
        text, names = _text_of(source, chunk), None if form.holds_documents else form.names
        pieces, facts.marks, facts.notes = text_format.split(text, form.end_mark, names, chunk.line)
        if form.holds_documents:
            conversations = [Conversation(p.line, (Turn("document", p.text),)) for p in pieces]
        else:
            conversations, facts.faults = text_format.read_text(
                places, pieces, form.names, facts.notes
            )
            if given is not None:
                facts.votes = naming.collect_votes(pieces, given, form.glued)
    facts.conversations = len(conversations)
    roles = [turn.role for c in conversations for turn in c.turns]
    facts.questions, facts.replies = roles.count("user"), roles.count("agent")
    facts.documents = roles.count("document")
    facts.with_preamble = sum(bool(c.preamble) for c in conversations)
    facts.unanswered = sum(c.turns[-1].role == "user" for c in conversations)
    return conversations, facts


def _text_of(source: Source, chunk: Chunk) -> str:
    file = source.files[chunk.file]
    label = source.label_of(file)
    return chunks.read_chunk(sources.unpacked(file, label), label, chunk)


def _rows_of(source: Source, places: Places, chunk: Chunk) -> Iterable[Row]:
    if source.reader == "json":
        return json_format.text_rows(places, _text_of(source, chunk), chunk.line)
    return json_format.table_rows(open_rows(source), chunk.start, chunk.size, chunk.line)
