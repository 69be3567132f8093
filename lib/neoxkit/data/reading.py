"""Read and check sources of conversations, chunk by chunk, without a tokenizer."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoxkit import paths
from neoxkit.data import chunks, detect, json_format, naming, sources, text_format
from neoxkit.data.chunks import Boundary, Chunk
from neoxkit.data.conversation import Names
from neoxkit.data.detect import Form
from neoxkit.data.examining import ConversationFile, Examined, examine_all
from neoxkit.data.places import Places
from neoxkit.data.rows import no_rows, open_rows
from neoxkit.data.shapes import Shape
from neoxkit.data.sources import Source
from neoxkit.errors import Faults, UserError
from neoxkit.settings import END_MARK, TokenizeSettings


def read(
    source: Source | Path,
    agent_name: str = "",
    user_name: str = "",
    end_mark: str = END_MARK,
    bad_rows: str = "error",
    names_of: str = "",
    columns: Mapping[str, str] | None = None,
    documents: bool = False,
) -> ConversationFile:
    """Read and check a source, or one file; find the names that are not given.

    `end_mark` ends a conversation of the text format (text_format.NO_MARK: each turn of the asking
    side begins one). `names_of`: the parameter of the other file, if the names come from one.
    `columns` (role -> column) names the columns of rows that are not known by their names.
    `documents`: it may hold documents without turns.

    Conversations that can't be read are refused, or left out with a note (`bad_rows` "skip").
    Raise UserError (Faults if there are several) with file, line and remedy.
    """
    if isinstance(source, Path):
        source = sources.of_file(source)
    given = Names(agent_name.strip(), user_name.strip())
    if source.reader != "text":
        given = Names(given.agent or "Agent", given.user or "User")
    detect.check_names(given)
    sha256 = source.sha256()  # first: a change while it is read is then found later
    if source.reader == "text":
        if columns:
            what = f"is for rows, and {source.label} is a text"
            raise UserError("columns", what, "leave it out, or name the file .jsonl")
        places, form, found, facts = _read_text(source, given, end_mark, names_of, documents)
    else:
        places, shape, found = _open_rows(source, columns or {}, documents)
        form = Form("rows", given, shape=shape)
        facts = examine_all(source, places, form, found)
    if facts.faults and bad_rows == "error":
        raise Faults([fault for _, fault in facts.faults])
    _leave_out(source, facts)
    if not form.holds_documents:
        _check_sides(places, form, facts, names_of)
    return ConversationFile(source, sha256, places, form, found, facts)


def _heads(source: Source) -> list[str]:
    """Return the beginning of each file; refuse empty and binary ones."""
    heads = []
    for file in source.files:
        label = source.label_of(file)
        heads.append(chunks.head(sources.unpacked(file, label), label))
    if not any(head.strip() for head in heads):
        what = "the file is empty" if len(heads) == 1 else "the files are empty"
        raise UserError(f"{source.label}:1", what, "write conversations into it")
    return heads


def _cut(source: Source, boundaries: Sequence[Boundary]) -> tuple[Places, list[Chunk]]:
    """Cut the files into chunks; count their lines through all of them."""
    found: list[Chunk] = []
    begins, line = [], 0
    for number, (file, boundary) in enumerate(zip(source.files, boundaries, strict=True)):
        label = source.label_of(file)
        begins.append((line + 1, label))
        of_file, num_lines = chunks.cut(sources.unpacked(file, label), label, boundary)
        found += [c._replace(line=line + c.line, file=number) for c in of_file]
        line += num_lines
    return Places(source.label, "line", () if source.is_file else tuple(begins)), found


def _read_text(
    source: Source, given: Names, end_mark: str, names_of: str, documents: bool
) -> tuple[Places, Form, list[Chunk], Examined]:
    """Return the places, form, chunks and facts of texts.

    The names in the first one's beginning are nearly always those of all: examine all chunks with
    them while the chunks vote, and examine them again only if the vote is for other names.
    """
    heads = _heads(source)
    marks = end_mark != text_format.NO_MARK
    boundary = chunks.at_marks(end_mark) if marks else chunks.nowhere
    places, found = _cut(source, [boundary] * len(heads))
    for head, file in zip(heads, source.files, strict=True):
        detect.refuse_other_formats(f"{source.label_of(file)}:1", head)
    head = next(head for head in heads if head.strip())
    form, pieces, guess = detect.text_form(places, head, given, end_mark, names_of, documents)
    facts = examine_all(source, places, form, found, given)
    if form.holds_documents:
        return places, form, found, facts
    votes = facts.votes
    names = naming.choose(places, votes, given)
    if names is None:
        raise text_format.nobody_answers(places, pieces, guess)
    if not facts.questions and not votes.has(names.user):
        raise text_format.no_turn_of(places, names.user, "user_name", votes, names_of)
    if names != form.names:
        form = form._replace(names=names)
        facts = examine_all(source, places, form, found)
        facts.votes = votes
    if text_format.RECURS in facts.notes:
        raise text_format.recurs(places, facts.notes[text_format.RECURS][0])
    asked = facts.questions or sum(votes.turns_of(names.user).values())
    if marks and not facts.marks and asked > 1:
        raise text_format.no_marks(places, end_mark, names, asked, head)
    return places, form, found, facts


def _open_rows(
    source: Source, columns: Mapping[str, str], documents: bool
) -> tuple[Places, Shape, list[Chunk]]:
    """Return the places of rows, their shape, and chunks of them."""
    if source.reader == "json":
        heads = _heads(source)
        arrays = [*map(json_format.is_array, heads)]
        places, found = _cut(source, [chunks.nowhere if a else chunks.at_lines for a in arrays])
        if arrays == [True] and "\n" not in heads[0].strip():
            places = places._replace(unit="row")  # all on one line, whose number says nothing
        for head, file in zip(heads, source.files, strict=True):
            json_format.refuse_spread(Places(source.label_of(file)), head)
        number = next(i for i, head in enumerate(heads) if head.strip())
        file = sources.unpacked(source.files[number], source.label_of(source.files[number]))
        first = json_format.first_rows_of_file(places, file, heads[number])
        return places, json_format.find_shape(first, columns, documents), found
    if source.reader == "csv":
        _cut(source, [chunks.at_lines] * len(_heads(source)))  # refuses damaged files by line
    places, rows = Places(source.label, "row", _row_begins(source)), open_rows(source)
    if not len(rows):
        raise no_rows(source)
    size = max(chunks.CHUNK_BYTES * len(rows) // max(rows.data.nbytes, 1), 1)
    found = [
        Chunk(start, min(size, len(rows) - start), start + 1) for start in range(0, len(rows), size)
    ]
    few = json_format.table_rows(rows, 0, min(len(rows), json_format.LOOKED_AT), 1)
    first = json_format.first_rows(places, few)
    return places, json_format.find_shape(first, columns, documents), found


def _row_begins(source: Source) -> tuple[tuple[int, str], ...]:
    """Return the first row of each source that a table was put together from, and its name."""
    sizes = [len(open_rows(part)) for _, part in source.parts]
    firsts = itertools.accumulate(sizes, initial=1)
    return tuple(
        (first, part.label) for first, (_, part) in zip(firsts, source.parts, strict=False)
    )


def _leave_out(source: Source, facts: Examined) -> None:
    """Turn the faults of conversations that may be left out into notes."""
    if not facts.conversations and not facts.faults:
        raise no_rows(source)
    for line, fault in facts.faults:
        facts.notes.setdefault(f"left out, can't be read: {fault.what}", []).append(line)
    facts.faults = []
    if not facts.conversations:
        what = "no conversation can be read"
        raise UserError(source.label, what, "set bad_rows to error to see why")


def _check_sides(places: Places, form: Form, facts: Examined, names_of: str) -> None:
    """Refuse a file in which a side has no turns: the other side would be given its text."""
    if form.format == "rows":
        if not facts.replies:
            raise UserError(places.at(1), "no turns of the assistant found", "check the roles")
        return
    for count, name, parameter in (
        (facts.questions, form.names.user, "user_name"),
        (facts.replies, form.names.agent, "agent_name"),
    ):
        if not count:
            raise text_format.no_turn_of(places, name, parameter, facts.votes, names_of)


def read_sides(settings: TokenizeSettings) -> dict[str, ConversationFile]:
    """Read the files of a dataset by side; "eval" is present only if it has a file of its own.

    The names found in the train file are used for both.
    """
    given = ("end_mark", "bad_rows", "columns")
    options: dict[str, Any] = {name: getattr(settings, name) for name in given}
    options["documents"] = settings.train_on == "all"
    train_file = sources.find("train_file", settings.train_file)
    sides = {"train": read(train_file, settings.agent_name, settings.user_name, **options)}
    if named := settings.eval_files:
        eval_file = sources.find_all("eval_file", named)
        # Documents have no names; these are then the defaults, which must not be searched for.
        names = Names("", "") if sides["train"].form.holds_documents else sides["train"].names
        sides["eval"] = read(eval_file, *names, **options, names_of="train_file")
        if sides["eval"].form.holds_documents != sides["train"].form.holds_documents:
            what = "one of it and train_file holds documents, and the other conversations"
            raise UserError("eval_file", what, "give two files of one kind")
    return sides


def questions_beside(train_file: Path) -> Path:
    """Return the path of the held-out questions for a source, whether or not they exist.

    >>> questions_beside(Path("talks.jsonl.gz")).name, questions_beside(Path("talks:train")).name
    ('talks_questions.jsonl', 'talks_questions.jsonl')
    """
    name = paths.stem(train_file.name.partition(":")[0])
    return train_file.with_name(f"{name}_questions.jsonl")
