"""What a conversation is: turns in order, and the one text they are written as."""

from dataclasses import dataclass, field
from typing import NamedTuple

END_MARK = "<|endoftext|>"
USER = "User"


STOP_TEXT = f"\n\n{USER}:"  # what an agent turn in the middle of a conversation ends with


@dataclass(frozen=True)
class Turn:
    """One turn: role is "user" or "agent"; white space at the text's edges is not kept."""

    role: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the text before the first of them, and the file line where it starts."""

    line: int
    turns: tuple[Turn, ...]
    preamble: str = ""
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_reply(self) -> bool:
        return any(turn.role == "agent" for turn in self.turns)


class Span(NamedTuple):
    """Where a turn's text lies in the whole text: characters, end not included.

    `start` is right after the label's colon, so a reply's first blank belongs to the reply.
    """

    role: str
    start: int
    end: int


def render(conversation: Conversation, agent_name: str) -> tuple[str, list[Span]]:
    """The conversation's text without its end mark, and the span of each turn.

    >>> render(Conversation(1, (Turn("user", "Hi"), Turn("agent", "Yes?"))), "Joi")[0]
    'User: Hi\\n\\nJoi: Yes?'
    """
    parts, spans, at = [], [], 0
    if conversation.preamble:
        parts.append(conversation.preamble)
        at = len(conversation.preamble) + 2
    for turn in conversation.turns:
        label = f"{USER if turn.role == 'user' else agent_name}:"
        text = f"{label} {turn.text}" if turn.text else label
        parts.append(text)
        spans.append(Span(turn.role, at + len(label), at + len(text)))
        at += len(text) + 2
    return "\n\n".join(parts), spans


def prompt(conversation: Conversation, agent_name: str) -> str:
    """The text up to and with the label that the agent's next reply follows.

    It ends at the colon: a prompt that ends in a blank is no token prefix of the trained text.
    """
    text, _ = render(conversation, agent_name)
    return f"{text}\n\n{agent_name}:"
