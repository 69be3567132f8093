"""Read conversations from rows, in any of the shapes that data/shapes.py knows.

The rows are those of a table, or JSON: one per line (JSON Lines), or all in one array.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neoxkit.data.chunks import HEAD_BYTES
from neoxkit.data.conversation import Conversation, Fault, Notes, Turn
from neoxkit.data.places import Places
from neoxkit.data.recognising import shape_of
from neoxkit.data.shapes import MESSAGES, Message, Shape
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can contain them, UTF-8 can't
_ROLES = {"user": "user", "assistant": "agent", "agent": "agent"}
_ALWAYS_READ = {"kind", "set"}  # for files of questions
_READ_IN_A_MESSAGE = {"role", "content", "weight", "train"}
_TOOL_CALLS = ("tool_calls", "function_call")
LOOKED_AT = 20  # rows, for one whose shape is known


class Row(NamedTuple):
    """A row: its line, and either its text (parsed later) or its value."""

    line: int
    text: str | None
    value: Any = None


def read_rows(
    places: Places, rows: Iterable[Row], notes: Notes, shape: Shape = MESSAGES
) -> tuple[list[Conversation], list[Fault]]:
    """Return the conversations of rows, and a fault for each row that can't be read.

    Add the keys that are not read to `notes`, with the lines of their rows.
    """
    faults: list[Fault] = []
    conversations = []
    for row in rows:
        where = places.at(row.line)
        try:
            value = row.value if row.text is None else _parsed(where, row.text)
            messages = _messages(where, value, shape)
            conversations.append(_conversation(where, row.line, value, messages, shape))
        except UserError as fault:
            faults.append((row.line, fault))
            if row.line == 1 and row.text and row.text.startswith("User:"):
                break  # it is the text format: one fault is enough
            continue
        for key in _unread(value, shape, messages):
            notes.setdefault(f"not read: {key}", []).append(row.line)
    return conversations, faults


def find_shape(
    rows: Sequence[tuple[str, Any]], columns: Mapping[str, str], documents: bool = False
) -> Shape:
    """Return the shape of the first of some rows (places and values) that has a known one.

    `columns` (role -> column) explains columns with other names; `documents`: a row may also be a
    document without turns. No rows count as messages: reading them names their faults.
    """
    unknown: list[UserError] = []
    for where, row in rows:
        try:
            return shape_of(where, row, columns, documents)
        except UserError as fault:
            unknown.append(fault)
    if unknown:
        raise unknown[0]
    return MESSAGES


def first_rows(places: Places, rows: Iterable[Row]) -> list[tuple[str, Any]]:
    """Return the first rows that can be parsed, each as its place and its value."""
    found = []
    with contextlib.suppress(UserError):  # an array that is cut, or not JSON: reading says where
        for row in itertools.islice(rows, LOOKED_AT):
            where = places.at(row.line)
            with contextlib.suppress(UserError):
                found.append((where, row.value if row.text is None else _parsed(where, row.text)))
    return found


def first_rows_of_file(places: Places, path: Path, head: str) -> list[tuple[str, Any]]:
    """Return the first rows of a file that begins with `head`."""
    rows = first_rows(places, text_rows(places, head))
    if not rows and path.stat().st_size > HEAD_BYTES:  # the first row is longer
        return first_rows(places, text_rows(places, _through_the_first_row(path, head)))
    return rows


def _through_the_first_row(path: Path, head: str) -> str:
    """Return as much of a file as holds its first row; of an array, which has no lines, all."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read() if is_array(head) else file.readline()


def is_array(text: str) -> bool:
    """Return whether a JSON text is one array of rows."""
    return text.lstrip().startswith("[")


def text_rows(places: Places, text: str, first_line: int = 1) -> Iterator[Row]:
    """Yield the rows of a JSON text; those of an array are already parsed.

    An array's rows are numbered by the line on which they begin, or one by one (`places`).
    """
    if not is_array(text):
        for number, row in enumerate(text.split("\n"), start=first_line):
            if row.strip():
                yield Row(number, row)
        return
    decoder, space, rows = json.JSONDecoder(), re.compile(r"[\s,]*"), itertools.count(first_line)
    at, line, counted = text.index("[") + 1, first_line, 0
    while True:
        blank = space.match(text, at)
        assert blank  # the pattern also matches nothing
        at = blank.end()
        line, counted = line + text.count("\n", counted, at), at
        number = next(rows) if places.unit == "row" else line
        if at >= len(text):
            raise UserError(places.at(number), "the array has no end (])", "copy the file again")
        if text[at] == "]":
            _check_nothing_follows(places, text, at + 1, number)
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as fault:
            if isinstance(fault, JSONDecodeError) and places.unit != "row":
                number = first_line - 1 + fault.lineno
            what = f"not JSON ({str(getattr(fault, 'msg', fault))[:60]})"
            remedy = "correct it, or write one object per line"
            raise UserError(places.at(number), what, remedy) from None
        yield Row(number, None, value)


def _check_nothing_follows(places: Places, text: str, end: int, number: int) -> None:
    """Refuse text after an array's end, which would not be read."""
    after = text[end:]
    if after.strip():
        blank = after[: len(after) - len(after.lstrip())]
        where = places.at(number + (0 if places.unit == "row" else blank.count("\n")))
        raise UserError(where, "more follows the array's end", "write all rows in one array")


def table_rows(rows: "Dataset", start: int, size: int, first: int) -> Iterator[Row]:
    """Yield `size` rows of a table from index `start` on, whose number is `first`."""
    columns = rows[start : start + size]
    for number in range(size):
        yield Row(first + number, None, {name: values[number] for name, values in columns.items()})


def _parsed(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except JSONDecodeError as fault:
        if line.startswith("User:"):
            raise UserError(where, "is the text format, not JSON", "name the file .txt") from None
        raise UserError(
            where, f"not JSON at column {fault.colno} ({fault.msg})", "write one object per line"
        ) from None
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits, or too deep
        raise UserError(where, f"can't be read ({str(fault)[:60]})", "leave the row out") from None


def refuse_spread(places: Places, head: str) -> None:
    """Refuse JSON Lines whose first object is written over several lines.

    `head` is the file's beginning, which may end within it. A row that is damaged is not meant: it
    does not go on in the next line, and has a fault of its own.
    """
    text = head.strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except JSONDecodeError as fault:
        is_cut = fault.pos >= len(text) or fault.msg.startswith("Unterminated string")
        end = len(text) if is_cut else 0
    except (ValueError, RecursionError):  # its row's fault names it
        return
    if text.startswith("{") and "\n" in text[:end]:
        what, remedy = "an object over several lines", "write one per line, or all in one array"
        blank = head[: len(head) - len(head.lstrip())].count("\n")
        raise UserError(places.at(1 + blank), what, remedy)


def _messages(where: str, row: Any, shape: Shape) -> list[Message]:
    if not isinstance(row, dict):
        row = {}  # then the refusal names what a row needs
    return shape.messages(where, row)


def _conversation(
    where: str, line: int, row: Mapping[str, Any], messages: list[Message], shape: Shape
) -> Conversation:
    if shape.holds_documents:
        return Conversation(line, (Turn("document", _content(where, messages[0]["content"])),))
    turns: list[Turn] = []
    preamble: list[str] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        _refuse_tools(where, message)
        content = _content(where, message.get("content") if isinstance(message, dict) else None)
        if role in ("system", "developer") and not turns:
            preamble.append(content)
        elif isinstance(role, str) and role in _ROLES:
            turns.append(Turn(_ROLES[role], content, _is_trained(where, message)))
        else:
            raise UserError(
                where,
                f"role {repr(role)[:40]} can't be read",
                "use system (first), user, assistant",
            )
    if not turns:
        raise UserError(where, "a conversation without turns", "add user and assistant messages")
    extra = {k: v for k, v in row.items() if k in ("kind", "set") and isinstance(v, str)}
    return Conversation(line, tuple(turns), "\n\n".join(preamble), extra)


def _refuse_tools(where: str, message: Any) -> None:
    """Refuse a turn that calls a tool: its text alone would be trained on as the whole turn."""
    calls = [name for name in _TOOL_CALLS if isinstance(message, dict) and message.get(name)]
    if calls:
        raise UserError(where, f'"{calls[0]}" can\'t be read', "leave the row out: bad_rows skip")


def _content(where: str, content: Any) -> str:
    """Return a message's text; if it is a list of parts, join them."""
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                what = f'a part of "content" of type {str(kind)[:40]!r} can\'t be read'
                raise UserError(where, what, "use only text parts")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or _HALF_CHARACTER.search(content):
        raise UserError(where, '"content" is not text', "write each content as one string")
    return content.replace("\r\n", "\n").replace("\r", "\n").strip()


def _is_trained(where: str, message: Mapping[str, Any]) -> bool:
    """Return whether to train on a message; `weight` 0 or `train` false marks it as context."""
    weight, train = message.get("weight"), message.get("train")
    if weight not in (None, 0, 1) or train not in (None, True, False):
        name, value = ("weight", weight) if weight not in (None, 0, 1) else ("train", train)
        what = f'"{name}" {repr(value)[:40]} is not supported'
        raise UserError(where, what, "use weight 0 or 1, train false or true")
    return weight != 0 and train is not False


def _unread(row: Mapping[str, Any], shape: Shape, messages: list[Message]) -> list[str]:
    """Return the keys of a row and of its messages that are not read."""
    inside = {key: 0 for message in messages for key, value in message.items() if value is not None}
    given = [key for key, value in row.items() if value is not None]  # tables have all columns
    found = [key for key in given if key not in _ALWAYS_READ and not shape.reads(key)]
    found += [f"{shape.turns}[].{key}" for key in inside if key not in _READ_IN_A_MESSAGE]
    return [f'"{key[:60]}"' for key in found]
