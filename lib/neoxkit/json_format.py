"""JSON Lines of `{"messages": [{"role": ..., "content": ...}, ...]}`, one conversation a line."""

import json
import re
from pathlib import Path

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.turns import USER, Conversation, Turn

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold them, UTF-8 can't
_ROLES = {"user": "user", "assistant": "agent", "agent": "agent"}


def read(path: Path, text: str, first_line: int = 1) -> tuple[list[Conversation], list[UserError]]:
    """The conversations of a JSON Lines text, and a fault for each line that is not one."""
    faults, conversations = [], []
    for number, line in enumerate(text.split("\n"), start=first_line):
        if not line.strip():
            continue
        where = f"{paths.short(path)}:{number}"
        try:
            conversations.append(_from_json(where, number, line))
        except UserError as fault:
            faults.append(fault)
            if number == 1 and line.startswith((f"{USER}:", "[")):
                break
    return conversations, faults


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
    except (ValueError, RecursionError) as fault:
        raise UserError(
            where, f"can't be read ({str(fault)[:60]})", "write one object a line"
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
        if not isinstance(content, str) or _HALF_CHARACTER.search(content):
            raise UserError(where, '"content" is not text', "write each content as one string")
        content = content.replace("\r\n", "\n").replace("\r", "\n").strip()
        if role in ("system", "developer") and not turns:
            preamble.append(content)
        elif isinstance(role, str) and role in _ROLES:
            turns.append(Turn(_ROLES[role], content))
        else:
            raise UserError(
                where,
                f"role {repr(role)[:40]} can't be read here",
                "use system (first), user, assistant",
            )
    if not turns:
        raise UserError(where, "a conversation without turns", "add user and assistant messages")
    extra = {k: v for k, v in row.items() if k != "messages" and isinstance(v, str)}
    return Conversation(number, tuple(turns), "\n\n".join(preamble), extra)
