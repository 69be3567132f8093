"""Find code blocks: the lines between two fences, one of which may have been forgotten."""

import re
from bisect import bisect, bisect_left
from collections.abc import Sequence
from typing import NamedTuple

_FENCE = re.compile(
    r"(?P<label>[^\n:：`~]{1,40}[:：])?[\s>]*(?P<fence>`{3,}|~{3,5}(?!~))(?P<info>[^`]*)$"
)


def in_code(text: str, at: int) -> bool:
    """Return whether a place in a text is inside a closed code block."""
    if "```" not in text and "~~~" not in text:
        return False
    return code_lines(text.split("\n"))[text.count("\n", 0, at)]


def is_fence(line: str) -> bool:
    """Return whether a line begins or ends a code block."""
    return ("```" in line or "~~~" in line) and bool(_FENCE.match(line))


class _Fence(NamedTuple):
    """A line with a fence. `bare`: nothing follows the fence, so it may close a block."""

    line: int
    char: str
    length: int
    bare: bool


def code_lines(lines: Sequence[str], labels: Sequence[int] = ()) -> list[bool]:
    """Mark the lines inside closed code blocks, closing lines included, opening lines not.

    `labels`: the lines, in order, that would begin a turn outside a block. If a block would contain
    one, its first fence gets no partner instead, unless more fences would then be without one. A
    block with a language after the label shows that a fence was forgotten.

    >>> code_lines(["A: see", "```", "B: no", "```"], [0, 2])
    [False, False, True, True]
    >>> code_lines(["A: see", "```", "B: yes", "```", "x", "```"], [0, 2])
    [False, False, False, False, True, True]
    """
    inside = [False] * len(lines)
    for first, last in _blocks(_fences(lines), labels):
        inside[first + 1 : last + 1] = [True] * (last - first)
    return inside


def _fences(lines: Sequence[str]) -> list[_Fence]:
    text = "\n".join(lines)
    if "```" not in text and "~~~" not in text:
        return []
    found = []
    for i, line in enumerate(lines):
        if is_fence(line) and (match := _FENCE.match(line)):
            fence, bare = match["fence"], not match["info"].strip() and not match["label"]
            found.append(_Fence(i, fence[0], len(fence), bare))
    return found


def _blocks(fences: Sequence[_Fence], labels: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last line of each block, so that the fewest fences have no partner.

    Work from the last fence to the first, counting how many from there on have no partner.
    """
    alone = [0] * (len(fences) + 1)
    partner: list[int | None] = [None] * len(fences)
    next_bare: dict[tuple[str, int], int] = {}  # by character and length, after this fence
    at_lines = [fence.line for fence in fences]
    for k in range(len(fences) - 1, -1, -1):
        fence = fences[k]
        closes = [at for (c, n), at in next_bare.items() if c == fence.char and n >= fence.length]
        end = min(closes, default=None)
        after = bisect(labels, fence.line)
        label = labels[after] if after < len(labels) else at_lines[-1] + 1
        turn_ends = max(bisect_left(at_lines, label), k + 1)
        alone[k] = 1 + alone[k + 1 if end is None else turn_ends]
        if end is not None:
            holds_label = label < fences[end].line
            forgotten = holds_label and any(not f.bare for f in fences[turn_ends:end])
            if not holds_label or (not forgotten and alone[end + 1] < alone[k]):
                alone[k], partner[k] = alone[end + 1], end
        if fence.bare:
            next_bare[fence.char, fence.length] = k
    found, k = [], 0
    while k < len(fences):
        end = partner[k]
        if end is not None:
            found.append((fences[k].line, fences[end].line))
        k = k + 1 if end is None else end + 1
    return found
