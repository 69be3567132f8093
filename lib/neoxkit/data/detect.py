"""Detect how a conversation file is written: its format, the two names, labels in mid-paragraph."""

import re
from typing import NamedTuple

from neoxkit.data import naming, text_format
from neoxkit.data.conversation import Names
from neoxkit.data.naming import Votes
from neoxkit.data.places import Places
from neoxkit.data.shapes import MESSAGES, Shape
from neoxkit.errors import UserError
from neoxkit.settings import END_MARK


class Form(NamedTuple):
    """The form of a source: "text", "documents" (a text without turns) or "rows"; the two names,
    and what ends a conversation.

    `glued`: labels need no blank line before them. `shape`: what rows hold.
    """

    format: str
    names: Names
    end_mark: str = END_MARK
    glued: bool = False
    shape: Shape = MESSAGES

    @property
    def said(self) -> str:
        """The form in words."""
        return f"read as {self.shape.said}" if self.format == "rows" else "text"

    @property
    def holds_documents(self) -> bool:
        return self.format == "documents" or (self.format == "rows" and self.shape.holds_documents)


def check_names(given: Names) -> None:
    """Refuse names set by the user that can't be the labels of two sides; "" is not set."""
    for parameter, name in (("agent_name", given.agent), ("user_name", given.user)):
        if any(c in name for c in ":\n<>`"):
            raise UserError(parameter, f"{name!r} can't be a label", "give the name alone")
    if given.agent and naming.same(given.agent, given.user or "User"):
        what = f"{given.agent!r} can't answer itself"
        raise UserError("agent_name", what, "set user_name to the other side's name")


def text_form(
    places: Places, head: str, given: Names, end_mark: str, names_of: str, documents: bool
) -> tuple[Form, list[text_format.Piece], Votes]:
    """Detect a text's form from its beginning; also return the conversations and votes there.

    `documents`: it may be documents without turns; it is, unless a known name asks in nearly all.

    Search for labels at the start of paragraphs; then at the start of any line, if few
    conversations have an answer there or no name is known to ask.
    """
    mark = end_mark if end_mark != text_format.NO_MARK else END_MARK
    pieces = text_format.split(head, mark).pieces
    votes, glued = naming.collect_votes(pieces, given), False
    if votes.answered() < naming.SHARE or not votes.known():
        other = naming.collect_votes(pieces, given, glued=True)
        if (other.known(), other.answered()) > (votes.known(), votes.answered()):
            votes, glued = other, True
    if documents and not any(given) and votes.answered() < naming.SHARE and not votes.mostly_asks():
        return Form("documents", Names(), end_mark), pieces, votes
    names = naming.choose(places, votes, given)
    if not names and given.user and not votes.has(given.user):
        raise text_format.no_turn_of(places, given.user, "user_name", votes, names_of)
    if not names:
        raise text_format.nobody_answers(places, pieces, votes)
    return Form("text", names, end_mark, glued), pieces, votes


def refuse_other_formats(where: str, text: str) -> None:
    """Refuse a well-known format under the wrong file name, and name it."""
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise UserError(
            where, "is HTML or XML, not conversations", "save the conversations as text"
        )
    if start.startswith("<|im_start|>"):
        raise UserError(where, "is ChatML", 'write "User: ...", or JSON Lines "messages"')
    if re.match(r'\[\s*[\]{]|\{\s*"', start):
        raise UserError(where, "is JSON", "name it .jsonl (one object per line) or .json")
