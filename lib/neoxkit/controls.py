"""Sliders that override a parameter in sight: what they change, and what follows from it.

A slider never acts by itself: the cell below reads `controls.settings`. Under papermill nobody
moves a slider, so the parameters win and the same cells show the same consequences.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from neoxkit import plan, plots, policy, views
from neoxkit.settings import Settings, TokenizeSettings, TrainSettings
from neoxkit.table import Table
from neoxkit.views import View

_BLOCK_SIZES = (64, 96, 128, 192, 256, 280, 384, 512, 768, 1024, 1536, 2048)
_RATES = (*(float(f"{m}e{e}") for e in range(-6, -2) for m in (1, 2, 5)), 1e-2)


class Controls:
    """Sliders over a settings object; `settings` is the settings with what the sliders say."""

    def __init__(
        self,
        settings: Settings,
        sliders: dict[str, widgets.SelectionSlider],
        consequences: Callable[[Any], tuple[View, plots.Picture]],
    ) -> None:
        self.settings = self._given = settings
        self._sliders, self._consequences = sliders, consequences
        self._handles: tuple[Any, Any] | None = None
        for name, slider in sliders.items():
            slider.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        reset = widgets.Button(description="Reset", tooltip="Back to the parameters cell")
        reset.on_click(lambda _: self.reset())
        self.box = widgets.VBox([*sliders.values(), reset])

    def show(self) -> "Controls":
        """Display the sliders, their consequences and the picture; returns itself."""
        names = ", ".join(f"{n} {getattr(self.settings, n)}" for n in self._sliders)
        bundle = self.box._repr_mimebundle_()
        bundle["text/plain"] = f"(sliders, with a kernel: {names})"
        display(bundle, raw=True)
        view, picture = self._views()
        self._handles = (display(view, display_id=True), display(picture, display_id=True))
        return self

    def reset(self) -> None:
        """Back to what the parameters cell says."""
        for name, slider in self._sliders.items():
            slider.value = getattr(self._given, name)

    def overrides(self) -> dict[str, tuple[Any, Any]]:
        """What the sliders changed: name -> (parameter, now)."""
        pairs = {n: (getattr(self._given, n), getattr(self.settings, n)) for n in self._sliders}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _moved(self, name: str, value: Any) -> None:
        self.settings = self.settings.replace(**{name: value})
        if self._handles:
            for handle, shown in zip(self._handles, self._views(), strict=True):
                handle.update(shown)

    def _views(self) -> tuple[View, plots.Picture]:
        view, picture = self._consequences(self.settings)
        changed = [f"{n}: {old} → {new}" for n, (old, new) in self.overrides().items()]
        says = (
            "differs from the parameters: " + "; ".join(changed)
            if changed
            else "as the parameters say"
        )
        command = self.settings.papermill_command()
        html = f"{view.html}<p>{views.escape(says)}</p><pre>{views.escape(command)}</pre>"
        return View(html, f"{view.text}\n{says}\n{command}"), picture


def _slider(label: str, values: Sequence[Any], value: Any, show: Callable[[Any], str]) -> Any:
    """A slider over a list of values, which always holds the parameter's own value."""
    return widgets.SelectionSlider(
        options=[(show(v), v) for v in sorted({*values, value})],
        value=value,
        description=label,
        continuous_update=False,
        style={"description_width": "8em"},
        layout={"width": "36em"},
    )


def block_size(settings: TokenizeSettings, encoded: Table) -> Controls:
    """01's slider: what a block size keeps, cuts and drops of these conversations."""
    longest = int(encoded.length.max(initial=0))

    def consequences(chosen: TokenizeSettings) -> tuple[View, plots.Picture]:
        too_long = "drop" if chosen.too_long == "error" else chosen.too_long
        _, counts = policy.fit(encoded, chosen.block_size, too_long)
        return views.table(counts.rows()), plots.length_histogram(encoded.length, chosen.block_size)

    values = [v for v in _BLOCK_SIZES if v < longest] + [longest] if longest >= 8 else []
    slider = _slider("block size", values, settings.block_size, lambda v: f"{v} tokens")
    return Controls(settings, {"block_size": slider}, consequences).show()


def training(
    settings: TrainSettings, lengths: Sequence[int], trained: Sequence[int], largest: int
) -> Controls:
    """02's sliders: the learning rate's schedule over the real steps, and a smaller block size.

    `lengths` and `trained`: tokens and trained tokens of each conversation of the train side;
    `largest`: the dataset's block size.
    """
    all_lengths, all_trained = np.asarray(lengths), np.asarray(trained)
    ranks = plan.num_ranks(settings)

    def consequences(chosen: TrainSettings) -> tuple[View, plots.Picture]:
        limit = chosen.block_size or largest
        fits = all_lengths <= limit
        steps = plan.num_steps(chosen, int(fits.sum()), ranks)
        an_epoch = plan.num_steps(
            chosen.replace(num_train_epochs=1, max_steps=-1), int(fits.sum()), ranks
        )
        conversations = (
            chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps * ranks
        )
        kept_tokens = int(all_lengths[fits].sum())
        padding = 1 - kept_tokens / max(int(fits.sum()) * limit, 1)
        lost = 1 - all_trained[fits].sum() / max(all_trained.sum(), 1)
        rows = [
            ("conversations trained on", f"{fits.sum():,} of {len(fits):,}"),
            ("trained tokens left out", f"{lost:.1%}"),
            ("optimizer steps", f"{steps:,} ({an_epoch:,} an epoch)"),
            (
                "a step",
                f"{conversations} conversations, about "
                f"{conversations * kept_tokens / max(fits.sum(), 1):,.0f} tokens, {ranks} rank(s)",
            ),
            (
                "padding",
                "little (packed)" if chosen.layout == "packed" else f"{padding:.0%} (padded)",
            ),
        ]
        rates = plots.schedule(
            steps, chosen.learning_rate, chosen.warmup_steps, chosen.lr_scheduler_type
        )
        return views.table(rows), plots.schedule_figure(rates, an_epoch)

    longest = int(all_lengths.max())
    sizes = [0] + [v for v in _BLOCK_SIZES if v < longest]
    show_size = lambda v: f"{v} tokens" if v else "the dataset's"  # noqa: E731
    sliders = {
        "learning_rate": _slider(
            "learning rate", _RATES, settings.learning_rate, lambda v: f"{v:g}"
        ),
        "block_size": _slider("block size", sizes, settings.block_size, show_size),
    }
    return Controls(settings, sliders, consequences).show()
