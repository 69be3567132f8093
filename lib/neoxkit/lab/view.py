"""Tables and coloured text: HTML in notebooks, plain text everywhere else.

Text from a data file or a model is escaped here, invisible characters included.
"""

import html
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from IPython.display import display

from neoxkit.fields import Settings

_EVEN = "table-layout:fixed;width:100%;overflow-wrap:anywhere"
_LONGEST = 40  # characters of a cell without a break
_CELL = "text-align:left;vertical-align:top;padding:2px 10px;white-space:pre-wrap"
_CLOSE = _CELL.replace("10px", "5px")
# Visible on white and on near-black; the words keep the theme's colour.
ALERT_COLOUR = "#e53935"
_ALERT = f"border-left:6px solid {ALERT_COLOUR};background:{ALERT_COLOUR}22;padding:4px 10px"


@dataclass(frozen=True)
class View:
    """Something to show: `html` in a notebook, `text` in a terminal, a diff or a log."""

    html: str
    text: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __add__(self, other: "View") -> "View":
        """Put one below the other."""
        return View(self.html + other.html, "\n\n".join(filter(None, (self.text, other.text))))


NOTHING = View("", "")


def visible(text: str) -> str:
    """Make text safe to look at: control, bidi and unassigned characters become marks.

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
    """Return any value as harmless HTML text."""
    return html.escape(visible(str(text)))


def table(
    rows: Sequence[Sequence[Any]],
    header: Sequence[str] = (),
    even: bool = False,
    close: bool = False,
) -> View:
    """Make a table of plain values, or of views; `even`: columns of equal width; `close`: with
    little space between them."""
    cell = _CLOSE if close else _CELL
    shown = [[_cell(value) for value in row] for row in rows]
    head = "".join(f'<th style="{cell}">{narrow(name).html}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value.html}</td>' for value in row) + "</tr>"
        for row in shown
    )
    cells = [[value.text for value in row] for row in shown]
    lines = [[visible(name) for name in header], *cells] if header else cells
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))] if lines else []
    text = "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )
    opening = f"<thead><tr>{head}</tr></thead>" if head else ""
    style = f' style="{_EVEN}"' if even else ""
    return View(f"<table{style}>{opening}<tbody>{body}</tbody></table>", text)


def _cell(value: Any) -> View:
    if isinstance(value, View):
        return value
    text = visible(str(value))
    return View("<wbr>".join(map(html.escape, parts(text))), text)


def narrow(value: str) -> View:
    """Show a cell that breaks wherever it may."""
    text = visible(value)
    return View("<wbr>".join(map(html.escape, parts(text, everywhere=True))), text)


def parts(value: str, everywhere: bool = False) -> list[str]:
    """Return the parts between which a cell may break: a long name without blanks, like a sweep's
    runs, at dots; `everywhere`: also at _.

    >>> parts("night.learning_rate=0.001"), parts("learning_rate=0.001", everywhere=True)
    (['night.', 'learning_rate=0.001'], ['learning_', 'rate=0.001'])
    """
    if " " in value:
        return [value]
    at_dots = r"(?<=\.)(?=[a-z])"
    found = re.split(rf"{at_dots}|(?<=_)(?=\w)" if everywhere else at_dots, value)
    return [part[i : i + _LONGEST] for part in found for i in range(0, len(part), _LONGEST)] or [""]


def folded(title: str, text: str) -> View:
    """Fold a longer text behind its title; in plain text, show only the title."""
    if not text:
        return NOTHING
    return details(title, View(f'<pre style="overflow-x:auto">{escape(text)}</pre>', ""))


def details(title: str, inside: View) -> View:
    """Fold a view behind its title; in plain text, show only the title."""
    summary = f"<summary>{escape(title)}</summary>"
    return View(f"<details>{summary}{inside.html}</details>", f"({visible(title)})")


def fold(title: str, shown: View) -> View:
    """Fold a view behind its title; in plain text, it follows the title."""
    return View(details(title, shown).html, f"{visible(title)}:\n{shown.text}")


def command(line: str) -> View:
    """Show a shell command with a button that copies it."""
    copy = (
        "navigator.clipboard.writeText(this.previousElementSibling.textContent)"
        ".then(() => { this.textContent = 'Copied' })"
    )
    text = f'<pre style="white-space:pre-wrap;margin:0">{escape(line)}</pre>'
    return View(f'<div>{text}<button onclick="{copy}">Copy</button></div>', visible(line))


def settings_table(
    settings: Settings, given: Settings | None = None, notes: Sequence[str] = ()
) -> View:
    """Show the settings that differ from their defaults, with value and help; the rest is folded.

    `given`: the settings before those left to the base were filled in. `notes`: sentences to show
    below the table.
    """
    before = (given or settings).as_dict()
    marks = dict.fromkeys((given or settings).changed(), "changed")
    marks |= {k: "by the base" for k, v in settings.as_dict().items() if v != before[k]}
    rows = [
        (f.name, repr(getattr(settings, f.name)), marks.get(f.name, ""), f.metadata["help"])
        for f in fields(settings)
    ]
    header = ("setting", "value", "", "what it is")
    differ, rest = [row for row in rows if row[2]], [row for row in rows if not row[2]]
    shown = table(differ, header) if differ else NOTHING
    if rest:
        count = f"the other {len(rest)}" if differ else f"all {len(rest)}"
        title = f"{count} settings have their defaults"
        shown += details(title, table([(name, value, said) for name, value, _, said in rest]))
    return shown + sentences(notes) if notes else shown


def sentences(lines: Sequence[str], none: str = "Nothing to note.") -> View:
    """Show a short list of sentences."""
    if not lines:
        return sentence(none)
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return View(f"<ul>{items}</ul>", "\n".join(f"- {visible(line)}" for line in lines))


def sentence(text: str) -> View:
    """Show one sentence."""
    return View(f"<p>{escape(text)}</p>", visible(text))


def alert(lines: Sequence[str]) -> View:
    """Show each warning in red; nothing if there are none."""
    html = "".join(
        f'<p style="{_ALERT}"><strong>warning:</strong> {escape(line)}</p>' for line in lines
    )
    return View(html, "\n".join(f"warning: {visible(line)}" for line in lines))


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say at once what a cell does, for as long as the block takes, and then how long it took."""
    begun = time.monotonic()
    handle = display(sentence(f"{what} ..."), display_id=True)
    yield
    handle.update(sentence(f"{what}: {time.monotonic() - begun:.1f} s"))


class ProgressBar:
    """A progress line in the notebook for a long loop: call it with (done, of)."""

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
