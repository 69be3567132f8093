"""The columns in which rows hold conversations, by the names that public data sets use.

Each shape turns a row into messages, `{"role": ..., "content": ...}`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from neoxkit.errors import UserError

Row = Mapping[str, Any]
Message = dict[str, Any]

# The columns of a question and of its answer.
PAIRS = {
    "Alpaca": ("instruction", "output"),
    "Dolly": ("instruction", "response"),
    "prompt and completion": ("prompt", "completion"),
    "prompt and response": ("prompt", "response"),
    "question and answer": ("question", "answer"),
    "question and response": ("question", "response"),
    "query and response": ("query", "response"),
    "input and output": ("input", "output"),
}
MORE = ("input", "context")  # follows the question after a blank line
_SYSTEM = ("system", "system_prompt")
_SENDERS = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "model": "assistant", "bot": "assistant", "system": "system",
}  # fmt: skip
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_GUANACO_TURN = re.compile(r"### (Human|Assistant):")


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
            return f"ShareGPT: {self.turns}[].from/value"
        return self.name if self.name in self.read else f"{self.name}: {', '.join(self.read)}"

    @property
    def turns(self) -> str:
        """The column that holds a row's turns."""
        of_turns = ("messages", "ShareGPT", "hh-rlhf")
        return self.read[0] if self.name in of_turns else "messages"

    @property
    def holds_documents(self) -> bool:
        return self.name == "documents"

    def reads(self, column: str) -> bool:
        """Tell whether a column of a row is read."""
        beside: tuple[str, ...] = ()
        if self.name in PAIRS:
            beside = (*MORE, *_SYSTEM)
        elif self.name == "ShareGPT":
            beside = _SYSTEM
        elif self.name == TREE.name:
            beside = ("message_tree_id", "tree_state")
        return column in self.read or column in beside

    def messages(self, where: str, row: Row) -> list[Message]:
        """Return a row's messages; refuse a row of another shape."""
        needed = PAIRS.get(self.name, self.read)
        if self != MESSAGES and (missing := [name for name in needed if name not in row]):
            what = f'has no "{missing[0]}", by which the file is read as {self.name}'
            raise UserError(where, what, "write all rows in the same columns")
        if row.get("history") and not self.reads("history"):
            what = '"history" holds earlier turns, which are not read'
            raise UserError(where, what, 'write all turns as {"messages": [...]}')
        return _READERS[self.name](self, where, row)


def _pair(shape: Shape, where: str, row: Row) -> list[Message]:
    question, answer = PAIRS[shape.name]
    asked, said = row[question], row[answer]
    if isinstance(asked, list) and isinstance(said, list):  # TRL's conversational kind
        _check_turns(where, question, asked)
        _check_turns(where, answer, said)
        return [*_system(where, row), *_context(asked), *said]
    texts = [_text(where, row, question)]
    texts += [_text(where, row, name) for name in MORE if _is_given(row, name, shape.read)]
    turns = _turns("\n\n".join(texts), _text(where, row, answer))
    return [*_system(where, row), *turns]


def _is_given(row: Row, name: str, read: tuple[str, ...]) -> bool:
    return row.get(name) not in (None, "") and name != read[0]


def _system(where: str, row: Row) -> list[Message]:
    given = [_text(where, row, name) for name in _SYSTEM if row.get(name) not in (None, "")]
    return [{"role": "system", "content": text} for text in given]


def _context(turns: list[Message]) -> list[Message]:
    """Return turns whose answers are not trained on."""
    return [turn | {"train": False} if turn.get("role") == "assistant" else turn for turn in turns]


def _mapped(shape: Shape, where: str, row: Row) -> list[Message]:
    columns = dict(shape.columns)
    given = row.get(columns.get("system", "")) not in (None, "")
    system = [{"role": "system", "content": _text(where, row, columns["system"])}] if given else []
    turns = _turns(_text(where, row, columns["user"]), _text(where, row, columns["agent"]))
    return [*system, *turns]


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(where: str, row: Row, column: str) -> str:
    if not isinstance(row[column], str):
        raise UserError(where, f'"{column}" is not text', "write it as one string")
    return row[column]


def _check_turns(where: str, column: str, turns: Any) -> None:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        remedy = "write each turn as an object, or one text"
        raise UserError(where, f'"{column}" is not a list of turns', remedy)


def _messages(shape: Shape, where: str, row: Row) -> list[Message]:
    messages = row.get(shape.turns)
    if isinstance(messages, str):
        what = f'"{shape.turns}" is text, not a list of messages'
        raise UserError(where, what, 'write JSON Lines: {"messages": [...]}')
    if not isinstance(messages, list) or not messages:
        raise UserError(where, f'has no list "{shape.turns}"', 'write {"messages": [...]}')
    return messages


def _sharegpt(shape: Shape, where: str, row: Row) -> list[Message]:
    turns = row[shape.turns]
    _check_turns(where, shape.turns, turns)
    read = {"from": "role", "value": "content"}
    messages = [{read.get(key, key): value for key, value in turn.items()} for turn in turns]
    for turn, message in zip(turns, messages, strict=True):
        sender = message.get("role")
        message["role"] = _SENDERS.get(str(sender).lower(), sender)
        if "from" in turn and str(sender).lower() not in _SENDERS:
            what = f'"from" {repr(sender)[:40]} can\'t be read'
            raise UserError(where, what, "use system (first), human, gpt")
        if "from" in turn and not isinstance(turn.get("value"), str | list):
            raise UserError(where, '"value" is not text', "write each value as one string")
    return [*_system(where, row), *messages]


def _hh(shape: Shape, where: str, row: Row) -> list[Message]:
    chosen, prompt = row["chosen"], row.get("prompt")
    if isinstance(chosen, list):
        _check_turns(where, "chosen", chosen)
        if isinstance(prompt, list) and chosen[: len(prompt)] != prompt:
            _check_turns(where, "prompt", prompt)
            return [*_context(prompt), *chosen]
        if chosen and chosen[0].get("role") == "assistant":
            what = '"chosen" begins with an answer, and no "prompt" has its question'
            raise UserError(where, what, 'write "prompt" as a list of turns')
        return chosen
    text = "\n\n" + _lines(_text(where, row, "chosen")).lstrip("\n")
    if isinstance(prompt, str) and not _HH_TURN.search(text):
        what, remedy = '"chosen" has no turns', "set columns to {user: prompt, agent: chosen}"
        raise UserError(where, what, remedy)
    return _labelled(where, "chosen", _HH_TURN.split(text), "Human:", "Assistant:")


def is_guanaco(row: Row) -> bool:
    """Return whether a row's turns are in one text, as Guanaco publishes them."""
    text = row.get("text")
    return isinstance(text, str) and bool(_GUANACO_TURN.match(text.lstrip()))


def _guanaco(shape: Shape, where: str, row: Row) -> list[Message]:
    parts = _GUANACO_TURN.split(_text(where, row, "text"))
    return _labelled(where, "text", parts, "### Human:", "### Assistant:")


def _labelled(where: str, column: str, parts: list[str], asks: str, says: str) -> list[Message]:
    """Return the turns of a text that is split at its labels: what is before the first, then
    names and texts by turns."""
    before, *parts = parts
    if before.strip() or not parts:
        what = f'"{column}" does not begin with "{asks}"'
        remedy = f"write turns of {asks} and {says}"
        if column == "text":
            remedy += ", or set columns to {text: text} for documents"
        raise UserError(where, what, remedy)
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[name], "content": text} for name, text in pairs]


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_tree(row: Row) -> bool:
    """Return whether a row is a tree of messages, as OASST publishes them."""
    root = row.get("prompt")
    return isinstance(root, dict) and "text" in root and "replies" in root


def _best_path(shape: Shape, where: str, row: Row) -> list[Message]:
    """Return the messages from a tree's root on, each followed by its best reply."""
    messages: list[Message] = []
    if not is_tree(row):
        raise UserError(where, '"prompt" is not a tree of messages', "leave the row out")
    message = row["prompt"]
    if message.get("deleted"):
        raise UserError(where, "the tree's first message is deleted", "leave the row out")
    while message:
        role = _SENDERS.get(str(message.get("role")), message.get("role"))
        if not isinstance(message.get("text"), str):
            raise UserError(where, '"text" of a message is not text', "leave the row out")
        messages.append({"role": role, "content": message["text"]})
        replies = message.get("replies") or []
        _check_turns(where, "replies", replies)
        kept = [reply for reply in replies if not reply.get("deleted")]
        message = min(kept, key=lambda reply: _rank(where, reply), default=None)
    return messages


def _rank(where: str, reply: Message) -> float:
    """Return a reply's rank, 0 for the best; one without a rank comes after the others."""
    rank = reply.get("rank")
    if not isinstance(rank, int | float | None):
        raise UserError(where, f'"rank" is {repr(rank)[:40]}, not a number', "leave the row out")
    return float("inf") if rank is None else float(rank)


def _document(shape: Shape, where: str, row: Row) -> list[Message]:
    return [{"role": "document", "content": _text(where, row, shape.read[0])}]


_READERS: dict[str, Callable[[Shape, str, Row], list[Message]]] = {
    "messages": _messages,
    "ShareGPT": _sharegpt,
    "hh-rlhf": _hh,
    "Guanaco": _guanaco,
    "columns": _mapped,
    "OASST trees, the best replies": _best_path,
    "documents": _document,
    **dict.fromkeys(PAIRS, _pair),
}
MESSAGES = Shape("messages", ("messages",))
TREE = Shape("OASST trees, the best replies", ("prompt",))
DOCUMENTS = Shape("documents", ("text",))
GUANACO = Shape("Guanaco", ("text",))
SHAREGPT = Shape("ShareGPT", ("conversations",))
