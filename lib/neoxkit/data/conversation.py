"""A conversation: turns in order, and the text they are rendered as."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from neoxkit.errors import UserError

Notes = dict[str, list[int]]  # what was read in an unusual way -> line numbers
Fault = tuple[int, UserError]  # a line number, and why what begins there can't be read


class Names(NamedTuple):
    """The names of the two sides: the labels of their turns, without the colon."""

    agent: str = "Agent"
    user: str = "User"

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Read the names from a dataset's manifest or a run's facts."""
        return cls(facts["agent_name"], facts["user_name"])

    @property
    def stop_text(self) -> str:
        """Return the text that ends an agent turn in the middle of a conversation."""
        return f"\n\n{self.user}:"

    def label(self, role: str) -> str:
        """Return the label of a role's turns, with the colon; "" for a document."""
        if role == "document":
            return ""
        return f"{self.user if role == 'user' else self.agent}:"


@dataclass(frozen=True)
class Turn:
    """A turn of the "user" or the "agent" (role); white space around its text is not kept.

    A document is a conversation of one turn, whose role is "document".

    `trained` is False for an agent turn that the file marks as context only.
    """

    role: str
    text: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the text before them (preamble), and the line where it starts in its file.

    `extra`: a JSON row's "kind" and "set".
    """

    line: int
    turns: tuple[Turn, ...]
    preamble: str = ""
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_reply(self) -> bool:
        return any(turn.role == "agent" and turn.trained for turn in self.turns)


class Span(NamedTuple):
    """The range of a turn's text within the whole text: characters, end not included.

    `start` is right after the label's colon: the space after it belongs to the reply.
    """

    role: str
    start: int
    end: int


def render(conversation: Conversation, names: Names) -> tuple[str, list[Span]]:
    """Return the conversation's text without its end mark, and the span of each turn.

    >>> render(Conversation(1, (Turn("user", "Hi"), Turn("agent", "Yes?"))), Names("Joi"))[0]
    'User: Hi\\n\\nJoi: Yes?'
    """
    parts, spans, at = [], [], 0
    if conversation.preamble:
        parts.append(conversation.preamble)
        at = len(conversation.preamble) + 2
    for turn in conversation.turns:
        label = names.label(turn.role)
        text = f"{label} {turn.text}" if label and turn.text else label or turn.text
        parts.append(text)
        spans.append(Span(turn.role, at + len(label), at + len(text)))
        at += len(text) + 2
    return "\n\n".join(parts), spans


def prompt(conversation: Conversation, names: Names) -> str:
    """Return the text up to and including the label of the agent's next reply.

    It ends at the colon: a prompt that ends in a space is not a token prefix of the trained text.
    """
    text, _ = render(conversation, names)
    return f"{text}\n\n{names.label('agent')}"
