"""What a conversation is: turns in order, and the one text they are written as."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

Notes = dict[str, list[int]]  # what was read in a way one may not expect -> line numbers


class Names(NamedTuple):
    """What the two sides are called: the labels of their turns, without the colon."""

    agent: str = "Agent"
    user: str = "User"

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Read them from a dataset's manifest, or from what a run says of itself."""
        return cls(facts["agent_name"], facts["user_name"])

    @property
    def stop_text(self) -> str:
        """What an agent turn in the middle of a conversation ends with."""
        return f"\n\n{self.user}:"

    def label(self, role: str) -> str:
        """The label of a role's turns, colon included."""
        return f"{self.user if role == 'user' else self.agent}:"


@dataclass(frozen=True)
class Turn:
    """One turn: role is "user" or "agent"; white space at the text's edges is not kept.

    `trained` False: an agent turn that its file marks as context, not to be learnt.
    """

    role: str
    text: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, the text before the first of them, and the file line where it starts."""

    line: int
    turns: tuple[Turn, ...]
    preamble: str = ""
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def has_reply(self) -> bool:
        return any(turn.role == "agent" and turn.trained for turn in self.turns)


class Span(NamedTuple):
    """Where a turn's text lies in the whole text: characters, end not included.

    `start` is right after the label's colon, so a reply's first blank belongs to the reply.
    """

    role: str
    start: int
    end: int


def render(conversation: Conversation, names: Names) -> tuple[str, list[Span]]:
    """The conversation's text without its end mark, and the span of each turn.

    >>> render(Conversation(1, (Turn("user", "Hi"), Turn("agent", "Yes?"))), Names("Joi"))[0]
    'User: Hi\\n\\nJoi: Yes?'
    """
    parts, spans, at = [], [], 0
    if conversation.preamble:
        parts.append(conversation.preamble)
        at = len(conversation.preamble) + 2
    for turn in conversation.turns:
        label = names.label(turn.role)
        text = f"{label} {turn.text}" if turn.text else label
        parts.append(text)
        spans.append(Span(turn.role, at + len(label), at + len(text)))
        at += len(text) + 2
    return "\n\n".join(parts), spans


def prompt(conversation: Conversation, names: Names) -> str:
    """The text up to and with the label that the agent's next reply follows.

    It ends at the colon: a prompt that ends in a blank is no token prefix of the trained text.
    """
    text, _ = render(conversation, names)
    return f"{text}\n\n{names.label('agent')}"
