"""A dial: a slider over the usual values, and beside it a field to type any other value into."""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets


class Dial:
    """A slider and a field that show one value; any value that is put widens the slider."""

    def __init__(self, label: str, values: Sequence[Any], value: Any) -> None:
        self._values, self._quiet = {*values, value}, False
        self._moved: Callable[[Any], None] = lambda _: None
        self.slider = widgets.SelectionSlider(
            options=sorted(self._values),
            value=value,
            description=label,
            continuous_update=False,
            readout=False,  # the field beside it shows the value
            style={"description_width": "8em"},
            layout={"width": "36em"},
        )
        self.field = widgets.Text(
            value=str(value),
            tooltip=f"{label}: any other value, then Enter",
            continuous_update=False,
            layout={"width": "8em"},
        )
        self.mistake = widgets.HTML(layout={"flex": "1 1 0%", "min_width": "8em"})
        self.box = widgets.HBox([self.slider, self.field, self.mistake])

    def on_change(self, moved: Callable[[Any], None], typed: Callable[[str], None]) -> None:
        """Call `moved` with a new value of the dial, `typed` with what was typed into its field."""
        self._moved = moved
        self.slider.observe(lambda change: self._quiet or self.put(change["new"]), "value")
        self.field.observe(lambda change: self._quiet or typed(change["new"]), "value")

    def refuse(self, html: str) -> None:
        """Show the value in use again, and beside it why what was typed can't be."""
        self._quiet = True
        self.field.value = str(self.slider.value)
        self._quiet = False
        self.mistake.value = f'<div style="line-height:1.3">{html}</div>'  # of a widget: 28 px

    def put(self, value: Any) -> None:
        """Turn to a value; one that the slider does not have yet widens it."""
        self._quiet = True  # new options move a slider to the first of them
        if value not in self._values:
            self._values.add(value)
            self.slider.options = sorted(self._values)
        self.slider.value = value
        self.field.value = str(value)
        self._quiet = False
        self._moved(value)
