"""Dials that override a parameter, and show what follows from it.

A dial never acts by itself: the cell below reads `Controls.settings`. Under papermill nobody
turns a dial, so the parameters count, and the same cells show the same consequences.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from neoxkit.errors import UserError
from neoxkit.fields import Settings, convert
from neoxkit.lab import figure, frontend, view
from neoxkit.lab.view import View

BELOW_THE_DIAL = "Keep, cut, drop"  # the heading in 01
AS_STARTED = "As it was started"  # a button
RUN_WAS = "this run was started with "
_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # 1,024, as the tables write it


class Dial:
    """A slider and a field for one value; a value new to the slider is added to it."""

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
            description=f"{label}: type any value, then Enter",  # for screen readers alone
            continuous_update=False,
            style={"description_width": "0"},
            layout={"width": "8em"},
        )
        self.mistake = widgets.HTML(layout={"flex": "1 1 0%", "min_width": "8em"})
        self.box = widgets.HBox([self.slider, self.field, self.mistake])

    def on_change(self, moved: Callable[[Any], None], typed: Callable[[str], None]) -> None:
        """Call `moved` with each new value, `typed` with each text typed into the field."""
        self._moved = moved
        self.slider.observe(self._unless_quiet(self.put), "value")
        self.field.observe(self._unless_quiet(typed), "value")

    def _unless_quiet(self, take: Callable[[Any], None]) -> Callable[[dict[str, Any]], None]:
        def observed(change: dict[str, Any]) -> None:
            if not self._quiet:
                take(change["new"])

        return observed

    def refuse(self, html: str) -> None:
        """Show the value in use again, and beside it why the typed one is refused."""
        self._quiet = True
        self.field.value = str(self.slider.value)
        self._quiet = False
        # A line is 28 px high in a widget; a screen reader announces an alert at once.
        self.mistake.value = f'<div role="alert" style="line-height:1.3">{html}</div>'

    def put(self, value: Any) -> None:
        """Set a value; one that the slider does not have yet is added."""
        self._quiet = True  # new options move a slider to its first one
        if value not in self._values:
            self._values.add(value)
            self.slider.options = sorted(self._values)
        self.slider.value = value
        self.field.value = str(value)
        self._quiet = False
        self._moved(value)


class Controls:
    """Dials over a settings object; `settings` holds what the dials show."""

    def __init__(
        self,
        settings: Settings,
        dials: Mapping[str, Dial],
        consequences: Callable[[Any], tuple[View, figure.Picture]],
        complete: Callable[[Any], Any] = lambda settings: settings,
        started: Callable[[], Settings | None] = lambda: None,
    ) -> None:
        """`complete` replaces a typed value that stands for another (0: by the base); `started`
        returns the settings that the run was started with, if it would go on."""
        self.settings = self._given = settings
        self._dials, self._consequences, self._complete = dials, consequences, complete
        self._started = started
        self._handles: tuple[Any, Any] | None = None
        for name, dial in dials.items():
            dial.on_change(partial(self._moved, name), partial(self._typed, name))
        reset = widgets.Button(
            description="Reset", tooltip="Restore the values of the parameters cell"
        )
        reset.on_click(lambda _: self.reset())
        self._again = widgets.Button(
            description=AS_STARTED, tooltip="Turn the dials to what the run was started with"
        )
        self._again.on_click(lambda _: self._put(started() or self.settings))
        buttons = widgets.HBox([reset, self._again])
        self.box = widgets.VBox([*(d.box for d in dials.values()), buttons])

    def show(self) -> "Controls":
        """Display the sliders, their consequences and the picture; return itself."""
        names = ", ".join(f"{n} {getattr(self.settings, n)}" for n in self._dials)
        table, picture = self._views()
        frontend.show(self.box, f"(dials, with a kernel: {names})", "the dials")
        self._handles = (display(table, display_id=True), display(picture, display_id=True))
        return self

    def reset(self) -> None:
        """Restore the values of the parameters cell."""
        self._put(self._given)

    def _put(self, settings: Settings) -> None:
        self._forget_mistakes()
        for name, dial in self._dials.items():
            dial.put(getattr(settings, name))

    def overrides(self) -> dict[str, tuple[Any, Any]]:
        """Return what the sliders changed: name -> (parameter, now)."""
        return self._differences(self._given, self.settings)

    def require(self, chosen: Settings) -> None:
        """Refuse to continue in 01 with settings that its dial no longer shows."""
        for name, (was, now) in self._differences(chosen, self.settings).items():
            what = f"the dial says {now}, the cells below it were run with {was}"
            raise UserError(name, what, f"run them again from {BELOW_THE_DIAL!r}")

    def _differences(self, one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
        pairs = {n: (getattr(one, n), getattr(other, n)) for n in self._dials}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _typed(self, name: str, text: str) -> None:
        """Take what was typed into a field, or refuse it in one line."""
        rule = type(self.settings).__dataclass_fields__[name]
        try:
            if rule.type is int and _GROUPED.fullmatch(text.strip()):
                text = text.replace(",", "")
            value = convert(name, rule.type, text, rule.default)
            chosen = self._complete(self.settings.replace(**{name: value}))
            self._consequences(chosen)
        except UserError as mistake:
            self._dials[name].refuse(f"<b>{view.escape(mistake)}</b>")
            return
        self._forget_mistakes()
        self._dials[name].put(getattr(chosen, name))

    def _moved(self, name: str, value: Any) -> None:
        if value == getattr(self.settings, name):
            return
        self._forget_mistakes()
        self.settings = self.settings.replace(**{name: value})
        if self._handles:
            for handle, shown in zip(self._handles, self._views(), strict=True):
                handle.update(shown)

    def _forget_mistakes(self) -> None:
        for dial in self._dials.values():
            dial.mistake.value = ""

    def _views(self) -> tuple[View, figure.Picture]:
        table, picture = self._consequences(self.settings)
        changed = [f"{n}: {old} → {new}" for n, (old, new) in self.overrides().items()]
        differs = f"differs from the parameters: {'; '.join(changed)}"
        says = [differs if changed else "as the parameters say", *self._unlike_the_start()]
        line = view.command(self.settings.papermill_command())
        html = "".join(f'<p style="margin:0">{view.escape(one)}</p>' for one in says)
        html += table.html + view.details("the command for it, unattended", line).html
        return View(html, "\n".join([table.text, *says, line.text])), picture

    def _unlike_the_start(self) -> list[str]:
        """Say how the dials differ from what the run was started with; show or hide the button."""
        started = self._started()
        differs = self._differences(started, self.settings) if started else {}
        self._again.layout.display = None if differs else "none"
        was = ", ".join(f"{name} {old} (here {now})" for name, (old, now) in differs.items())
        return [f"{RUN_WAS}{was}; {AS_STARTED!r} turns the dials to it"] if differs else []
