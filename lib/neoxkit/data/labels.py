"""Find labels, which begin turns: written exactly or nearly so, and outside code blocks."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from neoxkit.data.conversation import Names
from neoxkit.data.fences import code_lines

_INVISIBLE = "\u00ad\u200b-\u200f\u2060-\u2064\ufeff"
_SPACE = rf"[\s{_INVISIBLE}]"
# White space, quotes, headings, bullets and tags before a name; emphasis and brackets around it.
_LEAD = (
    rf"(?:{_SPACE}|>|\#{{1,6}}(?=\s)|[-+•*](?=\s)|</?\w{{1,6}}>)*[*_`]{{0,3}}[\[(<]?[{_INVISIBLE}]*"
)
_TAIL = rf"{_SPACE}*[*_`]{{0,3}}[\])>]?[*_`]{{0,3}}{_SPACE}*[:：]"
_NAME = r"[^\W\d_][^\t:：;,!?()\[\]{}<>|/\\\"`*=]{0,39}?"
_ANY = re.compile(
    rf"(?P<lead>{_LEAD})(?P<name>{_NAME}){_TAIL}(?:(?<=：)|(?=\s|$|[*_`]{{1,3}}(?:\s|$)|</))"
)
_LONGEST = 400  # the label of a known name must end within this many characters of a line
_LONGEST_ANY = 100  # the same for the label of any name
_BULLET = re.compile(r"[-+•*]\s")
_CLOSING = re.compile(r"[*_`]{1,3}|</\w{1,6}>")


class Label(NamedTuple):
    """A label of one of the two sides at the start of a line.

    `end`: where the turn's text begins in the line. `exact`: written `Name:`, capitals too.
    """

    role: str
    end: int
    exact: bool


@lru_cache(maxsize=8)
def _either(names: Names) -> re.Pattern[str]:
    user, agent = (re.escape(name) for name in (names.user, names.agent))
    name = rf"(?:(?P<user>{user})|(?P<agent>{agent}))"
    return re.compile(rf"(?P<lead>{_LEAD}){name}(?P<tail>{_TAIL})", re.IGNORECASE)


def label_of(line: str, names: Names, paragraph: bool = True) -> Label | None:
    """Return the label of either side at the start of a line, if there is one.

    Case, white space, markup and invisible characters don't matter; a list item counts only if it
    begins a paragraph.

    >>> label_of("User: Hi", Names()), label_of("**agent** : Yes?", Names())
    (Label(role='user', end=5, exact=True), Label(role='agent', end=11, exact=False))
    """
    found = _either(names).match(line, 0, _LONGEST)
    if not found or (not paragraph and _BULLET.search(found["lead"])):
        return None
    end = found.end()
    if found["lead"] and (closing := _CLOSING.match(line, end)):
        end = closing.end()
    role = "user" if found["user"] is not None else "agent"
    exact = not found["lead"] and found["tail"] in ":：" and found[role] == getattr(names, role)
    return Label(role, end, exact)


def finder(names: Sequence[str]) -> Callable[[str], str]:
    """Return a function that returns which of these names is the label of a line, else ""."""
    wanted = [name for name in names if name]

    def find(line: str) -> str:
        return next((name for name in wanted if label_of(line, Names(name, name))), "")

    return find


def any_label(line: str) -> str:
    """Return the name in any label at the start of a line, or "" if there is none.

    >>> any_label("### Response:"), any_label("http://x"), any_label("Note: it is late")
    ('Response', '', 'Note')
    """
    found = _ANY.match(line, 0, _LONGEST_ANY)
    return found["name"] if found and not _BULLET.search(found["lead"]) else ""


def begins_paragraph(lines: Sequence[str], i: int) -> bool:
    """Return whether a line is the first or follows a blank line."""
    return i == 0 or not lines[i - 1].strip()


def any_labels(
    lines: Sequence[str], glued: bool = False, given: Callable[[str], str] = lambda line: ""
) -> list[tuple[int, str]]:
    """Return (line index, name) of labels that begin paragraphs (`glued`: lines), outside code.

    `given` (from `finder`) finds the names that the user set, which may have any form.
    """
    found = [
        (i, name)
        for i in with_colon(lines)
        if (glued or begins_paragraph(lines, i))
        and (name := given(lines[i]) or any_label(lines[i]))
    ]
    inside = code_lines(lines, [i for i, _ in found])
    return [(i, name) for i, name in found if not inside[i]]


def with_colon(lines: Sequence[str]) -> Iterator[int]:
    """Return the indices of lines with a colon, a cheap filter before the regular expressions."""
    return (i for i, line in enumerate(lines) if ":" in line or "：" in line)
