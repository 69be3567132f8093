"""The columns in which rows hold conversations, by the names that public data sets use.

Each shape turns a row into messages, `{"role": ..., "content": ...}`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from neoxkit.errors import UserError

Row = Mapping[str, Any]
Message = Mapping[str, Any]

# Columns of a question (a second one follows it after a blank line) and of its answer.
_PAIRS = {
    "Alpaca": (("instruction", "input"), "output"),
    "Dolly": (("instruction", "context"), "response"),
    "prompt and completion": (("prompt",), "completion"),
    "prompt and response": (("prompt",), "response"),
    "question and answer": (("question",), "answer"),
    "query and response": (("query",), "response"),
    "input and output": (("input",), "output"),
}
_SENDERS = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "model": "assistant", "bot": "assistant", "system": "system",
}  # fmt: skip
_HH_TURN = re.compile(r"\s*\n\n(Human|Assistant):")


class Shape(NamedTuple):
    """How the rows of a file are written: a name, and the columns that are read.

    `columns`: role -> column, for rows that only the parameter `columns` explains.
    """

    name: str
    read: tuple[str, ...]
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def said(self) -> str:
        """What is read, in words: ShareGPT: conversations[].from/value."""
        if self.name == "ShareGPT":
            return "ShareGPT: conversations[].from/value"
        return self.name if self.name in self.read else f"{self.name}: {', '.join(self.read)}"

    def reads(self, column: str) -> bool:
        """Tell whether a column of a row is read."""
        return column in self.read or (column == "system" and self.name in _PAIRS)

    def messages(self, where: str, row: Row) -> list[Message]:
        """Return a row's messages; refuse a row of another shape."""
        if missing := [column for column in self._needed() if column not in row]:
            what = f'has no "{missing[0]}", which the first row has'
            raise UserError(where, what, "write all rows in the same columns")
        return list(_READERS[self.name](self, where, row))

    def _needed(self) -> tuple[str, ...]:
        if self.name in _PAIRS:
            (question, *_), answer = _PAIRS[self.name]
            return question, answer
        return self.read if self.name != "messages" else ()


def _pair(shape: Shape, where: str, row: Row) -> list[Message]:
    questions, answer = _PAIRS[shape.name]
    asked, said = row[questions[0]], row[answer]
    if isinstance(asked, list) and isinstance(said, list):  # TRL's conversational kind
        return [*({**message, "train": False} for message in asked), *said]
    texts = [_text(where, row, column) for column in questions if row.get(column)]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, *_turns("\n\n".join(texts), _text(where, row, answer))]


def _mapped(shape: Shape, where: str, row: Row) -> list[Message]:
    columns = dict(shape.columns)
    preamble = _text(where, row, columns["system"]) if "system" in columns else ""
    system = [{"role": "system", "content": preamble}] if preamble else []
    turns = _turns(_text(where, row, columns["user"]), _text(where, row, columns["agent"]))
    return [*system, *turns]


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(where: str, row: Row, column: str) -> str:
    if not isinstance(row[column], str):
        raise UserError(where, f'"{column}" is not text', "write it as one string")
    return row[column]


def _messages(shape: Shape, where: str, row: Row) -> list[Message]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(where, 'has no list "messages"', 'write {"messages": [...]}')
    return messages


def _sharegpt(shape: Shape, where: str, row: Row) -> list[Message]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(where, '"conversations" is not a list of turns', "write from and value")
    return [
        {
            "role": _SENDERS.get(str(turn.get("from")).lower(), turn.get("from")),
            "content": turn.get("value"),
            **{name: turn[name] for name in ("weight", "train") if name in turn},
        }
        for turn in turns
    ]


def _hh(shape: Shape, where: str, row: Row) -> list[Message]:
    if isinstance(row["chosen"], list):
        return row["chosen"]
    before, *parts = _HH_TURN.split("\n\n" + _text(where, row, "chosen").lstrip("\n"))
    if before.strip() or not parts:
        what = '"chosen" does not begin with "Human:"'
        raise UserError(where, what, "write turns of Human: and Assistant:")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[name], "content": text} for name, text in pairs]


_READERS: dict[str, Callable[[Shape, str, Row], list[Message]]] = {
    "messages": _messages,
    "ShareGPT": _sharegpt,
    "hh-rlhf": _hh,
    "columns": _mapped,
    **dict.fromkeys(_PAIRS, _pair),
}
MESSAGES = Shape("messages", ("messages",))
SHAREGPT = Shape("ShareGPT", ("conversations",))
HH = Shape("hh-rlhf", ("chosen",))


def shape_of(where: str, row: Any, columns: Mapping[str, str]) -> Shape:
    """Return the shape of a row, which all rows of its file must have.

    `columns` (role -> column) explains rows that are not known by the names of their columns.
    """
    if not isinstance(row, dict):
        raise UserError(where, "is not an object", 'write {"messages": [...]}')
    if columns:
        if missing := [name for name in columns.values() if name not in row]:
            what = f"{missing[0]!r} is not among {_listed(row)}"
            raise UserError("columns", what, "name columns of the file")
        return Shape("columns", tuple(columns.values()), tuple(columns.items()))
    for shape in (MESSAGES, SHAREGPT, HH):
        if shape.name == "messages" and "messages" in row:
            return shape
        if shape.read[0] in row and isinstance(row[shape.read[0]], list | str):
            return shape
    for name, (questions, answer) in _PAIRS.items():
        if questions[0] in row and answer in row:
            return Shape(name, (*(q for q in questions if q in row), answer))
    raise _unknown(where, row)


def _unknown(where: str, row: Row) -> UserError:
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if texts == ["text"]:
        what = "holds documents without turns, which are not read yet"
        return UserError(where, what, "write conversations: messages, or User: and Agent:")
    remedy = 'write {"messages": [...]}'
    if len(texts) > 1:
        remedy = f"set columns to {{user: {texts[0]}, agent: {texts[1]}}}, or to others of them"
    return UserError(where, f"no column is known: {_listed(row)}", remedy)


def _listed(row: Row, most: int = 6) -> str:
    names = [str(name)[:30] for name in row]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
