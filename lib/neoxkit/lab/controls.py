"""Dials that override a parameter, and show what follows from it.

A dial never acts by itself: the cell below reads `controls.settings`. Under papermill nobody
turns a dial, so the parameters count, and the same cells show the same consequences.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from neoxkit import machine
from neoxkit.data import selection, tokenized
from neoxkit.data.table import Table
from neoxkit.errors import UserError
from neoxkit.fields import Settings, convert
from neoxkit.lab import data, figure, frontend, view
from neoxkit.lab.training import schedule, schedule_figure
from neoxkit.lab.view import View
from neoxkit.launch import command, forecast, measured
from neoxkit.models import rates
from neoxkit.settings import TokenizeSettings, TrainSettings

BELOW_THE_DIAL = "Keep, cut, drop"  # the heading in 01
_BLOCK_SIZES = (64, 96, 128, 192, 256, 280, 384, 512, 768, 1024, 1536, 2048)
_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # 1,024, as the tables write it
_POWERS = tuple(2**i for i in range(9))
_RATES = (*(float(f"{m}e{e}") for e in range(-6, -2) for m in (1, 2, 5)), 1e-2)


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
            tooltip=f"{label}: type any other value, then Enter",
            continuous_update=False,
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
        self.mistake.value = f'<div style="line-height:1.3">{html}</div>'  # 28 px in a widget

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
    ) -> None:
        """`complete` replaces a typed value that stands for another (0: by the base)."""
        self.settings = self._given = settings
        self._dials, self._consequences, self._complete = dials, consequences, complete
        self._handles: tuple[Any, Any] | None = None
        for name, dial in dials.items():
            dial.on_change(partial(self._moved, name), partial(self._typed, name))
        reset = widgets.Button(
            description="Reset", tooltip="Restore the values of the parameters cell"
        )
        reset.on_click(lambda _: self.reset())
        self.box = widgets.VBox([*(d.box for d in dials.values()), reset])

    def show(self) -> "Controls":
        """Display the sliders, their consequences and the picture; return itself."""
        names = ", ".join(f"{n} {getattr(self.settings, n)}" for n in self._dials)
        frontend.show(self.box, f"(dials, with a kernel: {names})")
        table, picture = self._views()
        self._handles = (display(table, display_id=True), display(picture, display_id=True))
        return self

    def reset(self) -> None:
        """Restore the values of the parameters cell."""
        self._forget_mistakes()
        for name, dial in self._dials.items():
            dial.put(getattr(self._given, name))

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
        says = (
            "differs from the parameters: " + "; ".join(changed)
            if changed
            else "as the parameters say"
        )
        line = self.settings.papermill_command()
        html = f"{table.html}<p>{view.escape(says)}</p>{view.command(line).html}"
        return View(html, f"{table.text}\n{says}\n{line}"), picture


def block_size(settings: TokenizeSettings, encoded: Table) -> Controls:
    """Show 01's slider: what a block size keeps, cuts and drops of these conversations."""
    longest = int(encoded.length.max(initial=0))
    base = settings.model_name_or_path
    planned = TrainSettings(model_name_or_path=base)  # 02's defaults
    last = measured.last_run(base, machine.num_ranks(planned)) or measured.last_run(base)
    unknown = _unknown(base)

    def memory(counts: selection.Counts, limit: int) -> list[tuple[str, str]]:
        if unknown:
            return [("memory per rank", unknown)]
        found = forecast.forecast(planned, base, counts, limit, forecast.here(planned), last)
        return _in_brief(found, planned.per_device_train_batch_size)

    def consequences(chosen: TokenizeSettings) -> tuple[View, figure.Picture]:
        too_long = "drop" if chosen.too_long == "error" else chosen.too_long
        _, counts = selection.fit(encoded, chosen.block_size, too_long)
        rows = [
            *counts.rows(),
            *_rows(counts, chosen.block_size),
            ("time per epoch", _time(last, counts.tokens)),
            *memory(counts, chosen.block_size),
        ]
        return view.table(rows), data.length_histogram(encoded.length, chosen.block_size)

    values = [v for v in _BLOCK_SIZES if v < longest] + [longest] if longest >= 8 else []
    dial = Dial("block size", values, settings.block_size)
    return Controls(settings, {"block_size": dial}, consequences).show()


def _rows(counts: selection.Counts, block_size: int) -> list[tuple[str, str]]:
    """Return the rows per epoch, packed and padded to the block size."""
    padding = 1 - counts.tokens / max(counts.kept * block_size, 1)
    packed = math.ceil(counts.tokens / block_size)
    size = f"of {block_size:,} tokens"
    return [
        ("rows per epoch, packed", f"about {packed:,} {size}, little padding"),
        ("rows per epoch, padded", f"{counts.kept:,} {size}, {padding:.0%} padding"),
    ]


def _time(last: measured.Measured | None, num_tokens: float) -> str:
    never = "unknown: this model has not been trained on this machine yet"
    return last.time(num_tokens) if last else never


def _unknown(base: str) -> str:
    """Say why a base can't be forecast; empty if it can (a folder may hold a tokenizer alone)."""
    try:
        forecast.model(base)
    except UserError as mistake:
        return f"unknown: {mistake.what}"
    return ""


def _in_brief(found: forecast.Forecast, size: int) -> list[tuple[str, str]]:
    """Return the rows for 01: a forecast without its parts, and the host only if it is too small.

    `size` is the micro-batch that 02 starts with.
    """
    (name, said), _, _, (largest, conversations), *host = found.rows()
    by = f"corrected by run {found.run}" if found.run else "not measured yet"
    return [
        (name, f"{said}; {by}"),
        (largest, f"{conversations}; 02 starts with {size}"),
        *(row for row in host if row[1].startswith(forecast.MISFIT)),
    ]


def training(
    settings: TrainSettings,
    lengths: Sequence[int],
    trained: Sequence[int],
    manifest: dict[str, Any],
) -> Controls:
    """Show 02's sliders: the learning-rate schedule over the real steps, and what makes up a step.

    `lengths` and `trained`: tokens and trained tokens of each training conversation.
    """
    all_lengths, all_trained = np.asarray(lengths), np.asarray(trained)
    ranks = machine.num_ranks(settings)
    base = settings.model_name_or_path or manifest["model_name_or_path"]
    last = measured.last_run(base, ranks)
    fit = command.fitting_rate(settings, base)
    settings = command.complete(settings, base)

    def consequences(chosen: TrainSettings) -> tuple[View, figure.Picture]:
        limit = tokenized.check_block_size(chosen.block_size, manifest)
        counts = forecast.counts(all_lengths, all_trained, limit)
        kept = counts.kept
        steps = machine.num_steps(chosen, kept, ranks)
        an_epoch = machine.num_steps(chosen.replace(num_train_epochs=1, max_steps=-1), kept, ranks)
        conversations = (
            chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps * ranks
        )
        a_step = min(conversations, kept) * counts.tokens / max(kept, 1)
        lost = counts.trained_tokens_lost / max(all_trained.sum(), 1)
        packed, padded = _rows(counts, limit)
        more = "" if conversations <= kept else ", all there are"
        own = "" if chosen.block_size else " (the dataset's)"
        rows = [
            ("learning rate", rates.beside(chosen.learning_rate, fit)),
            ("block size", f"{limit:,} tokens{own}"),
            ("conversations trained on", f"{kept:,} of {counts.read:,}"),
            ("trained tokens left out", f"{lost:.1%}"),
            packed if chosen.layout == "packed" else padded,
            ("optimizer steps", f"{steps:,} ({an_epoch:,} per epoch)"),
            (
                "effective batch (one step)",
                f"{conversations:,} conversations{more}, about {a_step:,.0f} tokens, "
                f"{ranks} rank(s)",
            ),
            ("time", _time(last, steps * a_step)),
            *forecast.forecast(chosen, base, counts, limit, forecast.here(chosen), last).rows(),
        ]
        planned = schedule(
            steps, chosen.learning_rate, chosen.warmup_steps, chosen.lr_scheduler_type
        )
        return view.table(rows), schedule_figure(planned, an_epoch)

    longest = int(all_lengths.max())
    sizes = [0] + [v for v in _BLOCK_SIZES if v < longest]
    dials = {
        name: Dial(label, values, getattr(settings, name))
        for name, label, values in (
            ("learning_rate", "learning rate", _RATES),
            ("block_size", "block size", sizes),
            ("per_device_train_batch_size", "batch size", _POWERS),
            ("gradient_accumulation_steps", "accumulation", _POWERS),
        )
    }
    return Controls(settings, dials, consequences, partial(command.complete, base=base)).show()
