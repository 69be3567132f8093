"""Labels: which lines begin a turn, written as they should be or nearly so, and code blocks."""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from neoxkit.turns import Names

_INVISIBLE = "\u00ad\u200b-\u200f\u2060-\u2064\ufeff"
_SPACE = rf"[\s{_INVISIBLE}]"
# White space, quotes, headings, bullets and tags before a name; emphasis and a bracket round it.
_LEAD = (
    rf"(?:{_SPACE}|>|\#{{1,6}}(?=\s)|[-+•*](?=\s)|</?\w{{1,6}}>)*[*_`]{{0,3}}[\[(<]?[{_INVISIBLE}]*"
)
_TAIL = rf"{_SPACE}*[*_`]{{0,3}}[\])>]?[*_`]{{0,3}}{_SPACE}*[:：]"
_NAME = r"[^\W\d_][^\t:：;,!?()\[\]{}<>|/\\\"`*=]{0,39}?"
_ANY = re.compile(rf"(?P<lead>{_LEAD})(?P<name>{_NAME}){_TAIL}(?=\s|$|[*_`]{{1,3}}(?:\s|$)|</)")
_LONGEST = 400  # characters of a line in which its label must be over
_BULLET = re.compile(r"[-+•*]\s")
_CLOSING = re.compile(r"[*_`]{1,3}|</\w{1,6}>")
_FENCE_OPENS = re.compile(r"(?:[^\n:`]{1,40}:[ \t]*)? {0,3}(`{3,}(?=[^`]*$)|~{3,})")


class Label(NamedTuple):
    """A label of one of the two sides at the start of a line.

    `end`: where the turn's text begins in the line. `exact`: written `Name:`, in its own letters.
    """

    role: str
    end: int
    exact: bool


@lru_cache(maxsize=8)
def _either(names: Names) -> re.Pattern[str]:
    either = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return re.compile(rf"(?P<lead>{_LEAD})(?P<name>{either})(?P<tail>{_TAIL})", re.IGNORECASE)


def label_of(line: str, names: Names, paragraph: bool = True) -> Label | None:
    """The label of either side that a line begins with, if it does.

    Case, white space, markup and invisible characters don't hide one; a list item counts where it
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
    role = "user" if found["name"].casefold() == names.user.casefold() else "agent"
    exact = not found["lead"] and found["tail"] == ":" and found["name"] in names
    return Label(role, end, exact)


def any_label(line: str) -> str:
    """The name in whatever label a line begins with, "" where it begins with none.

    >>> any_label("### Response:"), any_label("http://x"), any_label("Note: it is late")
    ('Response', '', 'Note')
    """
    found = _ANY.match(line, 0, _LONGEST)
    return found["name"] if found and not _BULLET.search(found["lead"]) else ""


def begins_paragraph(lines: Sequence[str], i: int) -> bool:
    """Whether nothing, or a blank line, comes before a line."""
    return i == 0 or not lines[i - 1].strip()


def any_labels(lines: Sequence[str], glued: bool = False) -> Iterator[tuple[int, str]]:
    """(line index, name) of whatever labels begin paragraphs (`glued`: lines), not in code."""
    inside, _ = fenced(lines)
    for i in with_colon(lines):
        if (
            not inside[i]
            and (glued or begins_paragraph(lines, i))
            and (name := any_label(lines[i]))
        ):
            yield i, name


def with_colon(lines: Sequence[str]) -> Iterator[int]:
    """The lines that may begin with a label, quickly."""
    return (i for i, line in enumerate(lines) if ":" in line or "：" in line)


def fenced(lines: Sequence[str], breaks: Collection[int] = ()) -> tuple[list[bool], bool]:
    """Which lines are inside a code block that is closed (its opening line does not count), and
    whether one stays open. A block ends before a line of `breaks` at the latest."""
    inside, stays_open = [False] * len(lines), False
    text = "\n".join(lines)
    i = 0 if "```" in text or "~~~" in text else len(lines)
    while i < len(lines):
        opens = _FENCE_OPENS.match(lines[i]) if "```" in lines[i] or "~~~" in lines[i] else None
        if opens:
            end = _closing_line(lines, i, opens[1], breaks)
            stays_open = stays_open or end is None
            if end is not None:
                inside[i + 1 : end + 1] = [True] * (end - i)
                i = end
        i += 1
    return inside, stays_open


def _closing_line(
    lines: Sequence[str], opening: int, fence: str, breaks: Collection[int]
) -> int | None:
    closes = re.compile(rf" {{0,3}}{re.escape(fence)}{re.escape(fence[0])}*[ \t]*$")
    for j in range(opening + 1, len(lines)):
        if j in breaks:
            return None
        if closes.match(lines[j]):
            return j
    return None
