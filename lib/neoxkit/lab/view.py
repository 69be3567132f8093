"""Tables and coloured text for notebooks: HTML where it is shown, plain text everywhere else.

Whatever comes from a data file or a model is escaped here, invisible characters included.
"""

import html
import re
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from IPython.display import display

from neoxkit.fields import Settings

if TYPE_CHECKING:
    pass

_EVEN = "table-layout:fixed;width:100%;overflow-wrap:anywhere"
_CELL = "text-align:left;vertical-align:top;padding:2px 10px;white-space:pre-wrap"
_MUTED = "opacity:0.6"


@dataclass(frozen=True)
class View:
    """Something to show: `html` in a notebook, `text` in a terminal, a diff or a log."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __add__(self, other: "View") -> "View":
        """One below the other."""
        return View(self.html + other.html, "\n\n".join(filter(None, (self.text, other.text))))


NOTHING = View("", "")


def visible(text: str) -> str:
    """Text as it can be looked at safely: control, bidi and unassigned characters become marks.

    >>> visible("a\\x1b[31m\\u202eb\\n")
    'a\\u241b[31m‹U+202E›b\\n'
    """
    marks = []
    for char in text:
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Co", "Cn", "Cs"):
            marks.append(char)
        elif ord(char) < 32:
            marks.append(chr(0x2400 + ord(char)))
        else:
            marks.append(f"‹U+{ord(char):04X}›")
    return "".join(marks)


def escape(text: Any) -> str:
    """Any value as harmless HTML text."""
    return html.escape(visible(str(text)))


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = (), even: bool = False) -> View:
    """Rows of plain values; the first column is what the row is about. `even`: equal columns."""
    cells = [[visible(str(value)) for value in row] for row in rows]
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_breakable(value)}</td>' for value in row) + "</tr>"
        for row in cells
    )
    lines = [[visible(name) for name in header], *cells] if header else cells
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))] if lines else []
    text = "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )
    opening = f"<thead><tr>{head}</tr></thead>" if head else ""
    style = f' style="{_EVEN}"' if even else ""
    return View(f"<table{style}>{opening}<tbody>{body}</tbody></table>", text)


def _breakable(value: str) -> str:
    """A cell's HTML; a long name without blanks, as a sweep's runs have, may break behind a dot."""
    escaped = html.escape(value)
    return escaped if " " in value else re.sub(r"\.(?=[a-z])", ".<wbr>", escaped)


def folded(title: str, text: str) -> View:
    """A longer text behind its title; in plain text the title alone."""
    if not text:
        return NOTHING
    body = f'<pre style="overflow-x:auto">{escape(text)}</pre>'
    return View(f"<details><summary>{escape(title)}</summary>{body}</details>", f"({title})")


def command(line: str) -> View:
    """A line for a shell, with a button that copies it."""
    copy = (
        "navigator.clipboard.writeText(this.previousElementSibling.textContent)"
        ".then(() => { this.textContent = 'Copied' })"
    )
    text = f'<pre style="white-space:pre-wrap;margin:0">{escape(line)}</pre>'
    return View(f'<div>{text}<button onclick="{copy}">Copy</button></div>', visible(line))


def settings_table(
    settings: Settings, given: Settings | None = None, notes: Sequence[str] = ()
) -> View:
    """Every setting with its value, its help, and a mark where it differs from its default.

    `given`: the settings before what was left to the base was filled in. `notes`: sentences to show
    below the table.
    """
    before = (given or settings).as_dict()
    marks = dict.fromkeys((given or settings).changed(), "changed")
    marks |= {k: "by the base" for k, v in settings.as_dict().items() if v != before[k]}
    rows = [
        (f.name, repr(getattr(settings, f.name)), marks.get(f.name, ""), f.metadata["help"])
        for f in fields(settings)
    ]
    shown = table(rows, ("setting", "value", "", "what it is"))
    return shown + sentences(notes) if notes else shown


def sentences(lines: Sequence[str], none: str = "Nothing to note.") -> View:
    """A short list of sentences."""
    if not lines:
        return View(f"<p>{escape(none)}</p>", visible(none))
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return View(f"<ul>{items}</ul>", "\n".join(f"- {visible(line)}" for line in lines))


# Red enough to be seen on white and on near-black alike; the words keep the theme's colour.
ALERT_COLOUR = "#e53935"
_ALERT = f"border-left:6px solid {ALERT_COLOUR};background:{ALERT_COLOUR}22;padding:4px 10px"


def alert(lines: Sequence[str]) -> View:
    """What went wrong, each in red; nothing where nothing did."""
    html = "".join(
        f'<p style="{_ALERT}"><strong>warning:</strong> {escape(line)}</p>' for line in lines
    )
    return View(html, "\n".join(f"warning: {visible(line)}" for line in lines))


class Progress:
    """One line in the notebook for a long loop: call it with (done, of)."""

    def __init__(self, label: str) -> None:
        self.label, self.begun, self.drawn = label, time.monotonic(), 0.0
        self.handle = display(View(f"<p>{escape(label)} ...</p>", f"{label} ..."), display_id=True)

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if done < of and now - self.drawn < 0.5:
            return
        self.drawn = now
        text = f"{self.label}: {done:,} of {of:,}, {now - self.begun:.1f} s"
        bar = "" if done == of else f' <progress value="{done}" max="{of}"></progress>'
        self.handle.update(View(f"<p>{escape(text)}{bar}</p>", text))
