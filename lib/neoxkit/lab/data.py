"""The pictures and tables of 01_tokenize, and a pager through conversations, token by token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from IPython.display import Markdown, display
from matplotlib.ticker import MaxNLocator

from neoxkit import paths
from neoxkit.data import manifests, tokenized
from neoxkit.data.audit import Check, Finding
from neoxkit.data.overlap import Near
from neoxkit.data.places import NO_PLACES, Places
from neoxkit.data.selection import SETS
from neoxkit.data.table import Encoded, Table
from neoxkit.lab import frontend, view
from neoxkit.lab.figure import BLUE, GREY, ORANGE, RED, Picture, label_axes, new_figure, styled
from neoxkit.lab.view import View

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKEN = "border-right:1px solid rgba(128,128,128,0.35);padding:1px 0"
_TRAINED = "background:rgba(0,114,178,0.28)"
_MARK = "border:1px solid;border-radius:3px;font-size:80%;padding:0 3px"
_MUTED = "opacity:0.6"


class Pager:
    """A list of kinds and a slider over the conversations of the chosen one.

    The slider's handle takes the arrow keys; the buttons go one back or forward.
    """

    def __init__(self, groups: Mapping[str, Table], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._groups, self._tokenizer = groups, tokenizer
        options = [(f"{name}: {len(rows):,}", name) for name, rows in groups.items()]
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "36em"}}
        self.kind = widgets.Dropdown(options=options, description="show", **wide)
        self.number = widgets.IntSlider(min=1, max=1, description="conversation", **wide)
        back, on = (
            widgets.Button(description=way, layout={"width": "7em", "min_width": "7em"})
            for way in ("Previous", "Next")
        )
        back.on_click(lambda _: self._step(-1))
        on.on_click(lambda _: self._step(1))
        self.box = widgets.VBox([self.kind, widgets.HBox([self.number, back, on])])
        self._handle: Any = None
        self._choose(self.kind.value)
        self.kind.observe(lambda change: self._choose(change["new"]), "value")
        self.number.observe(lambda _: self._draw(), "value")

    def show(self) -> "Pager":
        """Display the widgets and the first conversation; return itself."""
        pages = f"(with a kernel: pages through {self.kind.options[0][0]})"
        frontend.show(self.box, pages, "the pages")
        self._handle = display(self.page(), display_id=True)
        return self

    def page(self) -> View:
        """Return the conversation that the slider is at."""
        row = self._rows[self.number.value - 1]
        return trained_tokens(row, self._tokenizer, self._rows.places)

    def _choose(self, name: str) -> None:
        self._rows = self._groups[name]
        self.number.max = len(self._rows)
        if self.number.value == 1:
            self._draw()
        self.number.value = 1

    def _step(self, by: int) -> None:
        self.number.value += by  # the slider keeps it within its range

    def _draw(self) -> None:
        if self._handle:
            self._handle.update(self.page())


def pages(
    sides: Mapping[str, Table], found: Sequence[Finding], tokenizer: "PreTrainedTokenizerBase"
) -> Pager:
    """Show a pager over a dataset's two sets and over what was found in them; return it."""
    groups = {f"the {SETS[side]}": rows for side, rows in sides.items()}
    for finding in found:
        groups |= {f"{SETS[side]}: {finding.what}": rows for side, rows in finding.rows.items()}
    return Pager({name: rows for name, rows in groups.items() if len(rows)}, tokenizer).show()


def trained_tokens(
    row: Encoded, tokenizer: "PreTrainedTokenizerBase", places: Places = NO_PLACES
) -> View:
    """Show one conversation as the model sees it: trained tokens coloured, the others grey.

    Special tokens are shown in boxes; the same letters typed in a text are not special, and shown
    as text. In plain text, trained parts are in ⟦brackets⟧.
    """
    parts, text, before = [], "", False
    for piece, ids, trained in _pieces(row, tokenizer):
        styles = [_TOKEN, _TRAINED if trained else _MUTED]
        styles += [_MARK] if ids[0] in tokenizer.all_special_ids else []
        shown = view.escape(piece).replace("\n", "↵\n")
        title = " ".join(map(str, ids))
        parts.append(f'<span style="{";".join(styles)}" title="{title}">{shown}</span>')
        if trained != before:
            text += "⟦" if trained else "⟧"
        text, before = text + view.visible(piece), trained
    text += "⟧" if before else ""
    where = places.listed([row.line])
    caption = f"{where}: {len(row)} tokens, {row.num_trained} of them trained (coloured)"
    body = f'<div style="white-space:pre-wrap;line-height:1.6">{"".join(parts)}</div>'
    return View(f"{body}<p style='{_MUTED}'>{caption}</p>", f"{text}\n({caption})")


def _pieces(
    row: Encoded, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[str, list[int], bool]]:
    """Yield text, ids and whether it is trained, per token or per tokens that share a character."""
    waiting: list[int] = []
    tokens = list(zip(row.ids.tolist(), row.trained.tolist(), strict=True))
    for at, (token, trained) in enumerate(tokens):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        assert isinstance(text, str)  # a list of texts only for a list of lists
        last = at + 1 == len(tokens) or tokens[at + 1][1] != trained
        if not text.endswith("\ufffd") or len(waiting) == 8 or last:
            yield text, waiting, trained
            waiting = []


def save(sides: Mapping[str, Table], manifest: dict[str, Any], notes: Sequence[str]) -> Markdown:
    """Write a dataset and show its card, below the notes."""
    folder = paths.tokenized(manifest["settings"]["dataset"])
    tokenized.save(sides, folder, manifest)
    return Markdown("\n\n".join([*notes, manifests.card(manifest)]))


def split(
    notes: Sequence[str], near: Sequence[Near], tokenizer: "PreTrainedTokenizerBase", most: int = 3
) -> View:
    """Show the notes on the split, and each held-out side's first near-duplicates side by side."""
    none = "Both sets have conversations, and none is in both"
    if len(near) > 1:
        none = "All three sets have conversations, and none is in two of them"
    if any(one.how == "ignore" for one in near):
        none += "; near-duplicates may be."
    else:
        others = ", and the training set has none of the others' nearly the same."
        none += ", not even nearly." if len(near) == 1 else others
    shown = view.sentences([*notes, *(line for one in near for line in one.notes())], none=none)
    for one in near:
        if rows := _pairs(one, tokenizer, most):
            header = [f"{SETS[side]}: nearly the same" for side in (one.side, "train")]
            shown += view.table(rows, header, even=True)
    return shown


def _pairs(near: Near, tokenizer: "PreTrainedTokenizerBase", most: int) -> list[list[str]]:
    """Return the first near-duplicates, from a little before where they differ, with places."""
    rows = []
    for at in near.found[:most].tolist():
        one, other = near.held_out[at], near.train[int(near.partner[at])]
        shown = _where_they_differ(
            str(tokenizer.decode(one.ids.tolist())), str(tokenizer.decode(other.ids.tolist()))
        )
        places = (near.held_out.places.listed([one.line]), near.train.places.listed([other.line]))
        rows.append([f"{place}: {text}" for place, text in zip(places, shown, strict=True)])
    return rows


def _where_they_differ(one: str, other: str, before: int = 80, most: int = 240) -> tuple[str, str]:
    """Return a part of each text, line ends as marks, from a little before where they differ.

    >>> _where_they_differ("Hi.\\n\\nYes, of course.", "Hi.\\n\\nYes.", before=5, most=9)
    ('... ↵↵Yes, of ...', '... ↵↵Yes.')
    """
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    begin = max(same - before, 0)

    def part(text: str) -> str:
        shown = text[begin : begin + most].replace("\n", "↵")
        return ("... " if begin else "") + shown + (" ..." if len(text) > begin + most else "")

    return part(one), part(other)


def findings(found: Sequence[Finding]) -> View:
    """Show what is worth a look, with the number of conversations in each set and their lines."""
    sides = list(found[0].rows)
    rows = [(finding.what, *(_counted(finding.rows[side]) for side in sides)) for finding in found]
    return view.table(rows, ("a conversation ...", *(SETS[side] for side in sides)))


def _counted(rows: Table) -> str:
    return f"{len(rows):,}" + (
        f" ({rows.places.listed(rows.column('line')[:6].tolist())})" if len(rows) else ""
    )


def audit(checks: Sequence[Check]) -> View:
    """Show the audit line by line, each passed or a reason to stop."""
    rows = [
        (
            "✓" if check.passed else "✗ stop",
            check.what,
            check.found,
            "" if check.passed else f"{check.parameter}: {check.remedy}",
        )
        for check in checks
    ]
    return view.table(rows, ("", "checked", "found", "what to change"))


@styled
def length_histogram(lengths: Sequence[int] | np.ndarray, block_size: int) -> Picture:
    """Draw the lengths of the conversations (tokens), and which exceed the block size."""
    figure, axes = new_figure(2.0)
    values = np.asarray(lengths)
    shown = max(_most_shown(values), block_size)
    edges = np.linspace(0, shown * 1.05, 60)
    fits, over = values[values <= block_size], values[values > block_size]
    axes.hist(
        [np.minimum(fits, edges[-1]), np.minimum(over, edges[-1])],
        bins=edges,
        stacked=True,
        color=[BLUE, ORANGE],
        label=[f"{len(fits):,} conversations that fit", f"{len(over):,} longer"],
    )
    axes.axvline(block_size, color=RED, linewidth=1.5, linestyle="--")
    axes.text(
        block_size, 0.98, f" block size {block_size} ", va="top",
        ha="left" if block_size < shown * 0.8 else "right",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    title = _last_bar(values, edges[-1])
    label_axes(axes, "length of a conversation (tokens)", "conversations", title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


def _most_shown(lengths: np.ndarray) -> int:
    """Return where a histogram ends, so that a few very long texts don't flatten the rest."""
    return max(int(np.percentile(lengths, 99)) if len(lengths) else 1, 1)


def _last_bar(lengths: np.ndarray, end: float) -> str:
    """Say that the last bar collects longer texts, if it does."""
    longest = lengths.max(initial=0)
    return f"the last bar holds all up to {longest:,} tokens" if longest > end else ""


@styled
def turn_histogram(lengths: Mapping[str, np.ndarray]) -> Picture:
    """Draw the lengths of each role's turns (tokens)."""
    figure, axes = new_figure(2.6)
    every = np.concatenate([np.zeros(0, int), *lengths.values()])
    shown = _most_shown(every)
    edges = np.linspace(0, shown, min(shown, 60) + 1)
    for (role, values), colour in zip(lengths.items(), (GREY, BLUE), strict=True):
        median = f", median {np.median(values):.0f}" if len(values) else ""
        axes.hist(
            np.minimum(values, shown), bins=edges, histtype="stepfilled", color=colour, alpha=0.55,
            label=f"{role}: {len(values):,} turns{median}",
        )  # fmt: skip
    title = _last_bar(every, shown)
    label_axes(axes, "length of a turn with its label and end (tokens)", "turns", title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure
