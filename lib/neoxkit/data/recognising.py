"""Recognise the shape of rows, or say what to set for rows of an unknown one."""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from neoxkit.data import shapes
from neoxkit.data.shapes import DOCUMENTS, GUANACO, MESSAGES, SHAREGPT, TREE, Row, Shape
from neoxkit.errors import UserError

# How chat templates begin a turn, and how people write one.
_TURNS_INSIDE = re.compile(
    r"<\|im_start\|>|<\|(user|assistant|start_header_id)\|>|<start_of_turn>|\[INST\]"
    r"|### ?(Human|User|Instruction|Assistant|Response|Input)\b"
    r"|^(User|Human|Question|Q|Assistant|Agent|Answer|A|Bot): ",
    re.MULTILINE,
)


def shape_of(where: str, row: Any, columns: Mapping[str, str], documents: bool = False) -> Shape:
    """Return the shape of a row, which all rows of its file must have.

    `columns` (role -> column) explains rows that are not known by the names of their columns.
    `documents`: a row that holds only a text is a document.
    """
    if not isinstance(row, dict):
        raise UserError(where, "is not an object", 'write {"messages": [...]}')
    if columns:
        if missing := [name for name in columns.values() if name not in row]:
            what = f"{missing[0]!r}, named in columns, is not among {_listed(row)}"
            raise UserError(where, what, "name columns of this file")
        if "text" in columns:
            return Shape(DOCUMENTS.name, (columns["text"],))
        if "messages" in columns:
            return _of_turns(where, columns["messages"], row)
        return Shape("columns", tuple(columns.values()), tuple(columns.items()))
    if isinstance(row.get("messages"), list):
        return MESSAGES
    if isinstance(row.get("conversations"), list):
        return SHAREGPT
    if isinstance(row.get("chosen"), list | str):
        apart = ("prompt",) if isinstance(row.get("prompt"), list) else ()
        return Shape("hh-rlhf", ("chosen", *apart))
    for name, (question, answer) in shapes.PAIRS.items():
        if question in row and answer in row:
            more = [name for name in shapes.MORE if name in row and name != question]
            return Shape(name, (question, *more, answer))
    if "messages" in row:
        return MESSAGES
    if shapes.is_tree(row):
        return TREE
    if shapes.is_guanaco(row):
        return GUANACO
    if documents and isinstance(row.get("text"), str):
        return DOCUMENTS
    raise _unknown(where, row, documents)


def _of_turns(where: str, column: str, row: Row) -> Shape:
    """Return the shape of rows whose turns are in a column of their own name."""
    turns = row[column]
    if turns is None or turns == []:  # it says nothing of the others
        raise UserError(where, f'"{column}" has no turns', "leave the row out")
    is_sharegpt = isinstance(turns, list) and _has(turns[0], ("from", "value"))
    return (SHAREGPT if is_sharegpt else MESSAGES)._replace(read=(column,))


def _unknown(where: str, row: Row, documents: bool) -> UserError:
    for keys, right in ((("role", "content"), "messages"), (("from", "value"), "conversations")):
        if {*keys} <= {*row}:
            remedy = f'write each conversation as {{"{right}": [...]}}'
            return UserError(where, "is a message, not a conversation", remedy)
        for name, value in row.items():
            if isinstance(value, list) and value and _has(value[0], keys):
                what = f"no column is known: {_listed(row)}"
                return UserError(where, what, f"set columns to {{messages: {quoted(name)}}}")
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if "parent_id" in row and "text" in row:
        what = "is a message of OASST, whose conversations are in the trees"
        return UserError(where, what, "read the file of trees: ..._ready.trees.jsonl.gz")
    if "text" in texts and not {"user", "agent"} <= {*row}:
        what = f"has no turns, only a text: {_listed(row)}"
        remedy = "set train_on to all: each text is a document"
        if _TURNS_INSIDE.search(row["text"]):
            what = f"its turns are inside a text: {_listed(row)}"
            remedy = 'write {"messages": [...]}, or set train_on to all: questions are trained too'
        return UserError(where, what, remedy)
    remedy = 'write {"messages": [...]}'
    lists = [name for name, value in row.items() if isinstance(value, list) and value]
    if len(row) == len(lists) == 1 and isinstance(row[lists[0]][0], dict):
        remedy = f'write the list in "{lists[0][:40]}" alone, without the object around it'
    elif documents and len(texts) == 1:
        remedy = f"set columns to {{text: {quoted(texts[0])}}}"
    elif len(texts) == 2:
        both = f"{{user: {quoted(texts[0])}, agent: {quoted(texts[1])}}}"
        remedy = f"set columns to {both}, or the other way round"
    elif len(texts) > 2:
        remedy = "set columns to {user: COLUMN, agent: COLUMN} with two of these names"
    return UserError(where, f"no column is known: {_listed(row)}", remedy)


def _has(turn: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(turn, dict) and {*keys} <= {*turn}


def quoted(name: str) -> str:
    """Write a column's name so that YAML reads it back, between single quotes of a shell as well.

    >>> quoted("frage"), quoted("yes"), quoted("it's: so")
    ('frage', '"yes"', '"it\\\\u0027s: so"')
    """
    if name.isidentifier() and yaml.safe_load(name) == name:
        return name
    return json.dumps(name, ensure_ascii=False).replace("'", "\\u0027")


def _listed(row: Row, most: int = 6) -> str:
    names = [str(name)[:30] for name in row]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
