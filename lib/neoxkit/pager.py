"""Page through conversations, token by token: all of a side, or those behind a finding."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from IPython.display import display

from neoxkit import browser, views
from neoxkit.data.audit import Finding
from neoxkit.data.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pager:
    """A list of kinds and a slider over the conversations of the chosen one.

    The slider's handle takes the arrow keys; the buttons go one back and one on.
    """

    def __init__(self, groups: Mapping[str, Table], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._groups, self._tokenizer = groups, tokenizer
        options = [(f"{name}: {len(rows):,}", name) for name, rows in groups.items()]
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "36em"}}
        self.kind = widgets.Dropdown(options=options, description="show", **wide)
        self.number = widgets.IntSlider(min=1, max=1, description="conversation", **wide)
        back, on = (widgets.Button(description=text, layout={"width": "3em"}) for text in "◀▶")
        back.tooltip, on.tooltip = "the one before", "the next one"
        back.on_click(lambda _: self._step(-1))
        on.on_click(lambda _: self._step(1))
        self.box = widgets.VBox([self.kind, widgets.HBox([self.number, back, on])])
        self._handle: Any = None
        self._choose(self.kind.value)
        self.kind.observe(lambda change: self._choose(change["new"]), "value")
        self.number.observe(lambda _: self._draw(), "value")

    def show(self) -> "Pager":
        """Display the widgets and the first conversation; returns itself."""
        browser.show(self.box, f"(with a kernel: pages through {self.kind.options[0][0]})")
        self._handle = display(self.page(), display_id=True)
        return self

    def page(self) -> views.View:
        """The conversation that the slider stands at."""
        return views.trained_tokens(self._rows[self.number.value - 1], self._tokenizer)

    def _choose(self, name: str) -> None:
        self._rows = self._groups[name]
        self.number.max = len(self._rows)
        if self.number.value == 1:
            self._draw()
        self.number.value = 1

    def _step(self, by: int) -> None:
        self.number.value += by  # the slider itself stays within its ends

    def _draw(self) -> None:
        if self._handle:
            self._handle.update(self.page())


def pages(
    sides: Mapping[str, Table], found: Sequence[Finding], tokenizer: "PreTrainedTokenizerBase"
) -> Pager:
    """A pager over the sides of a dataset, and over what was found in them; shown."""
    groups = {f"the {side} side": rows for side, rows in sides.items()}
    for finding in found:
        groups |= {f"{side}: {finding.what}": rows for side, rows in finding.rows.items()}
    return Pager({name: rows for name, rows in groups.items() if len(rows)}, tokenizer).show()
