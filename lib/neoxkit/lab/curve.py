"""The curve of a training: one figure that is kept, and whose lines get the new values.

Drawing text takes longest, so that the ground (axes, ticks, legends, marks) is drawn only when it
changes; otherwise the lines alone.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from neoxkit.lab import scales
from neoxkit.lab.figure import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SMOOTHED_FROM,
    STYLE,
    WIDTH,
    Picture,
    label_axes,
    packed,
    styled,
)
from neoxkit.runs.events import Event, History

MAX_POINTS = 1000  # a longer series is thinned before it is drawn
HEIGHT = 5.2  # inches
NATS = "(nats per trained token)"
PART_MARKERS = "sDv^P*"  # of a held-out set's parts
TITLE_PAD, LEGEND_ROW = 20, 15  # points above the panel


def draw(history: History, title: str = "", scale: str = "auto") -> "Curve":
    """Draw a run's curve once."""
    curve = Curve(title, scale)
    curve.set_history(history)
    return curve


class Curve(Picture):
    """Three panels over the steps, from metrics.jsonl: loss and learning rate; speed; gradient.

    `scale`: the scale of the losses, see `scales.of_losses`.
    """

    @styled
    def __init__(self, title: str = "", scale: str = "auto") -> None:
        scales.check(scale)
        super().__init__(figsize=(WIDTH, HEIGHT), dpi=DPI)
        self.run, self.scale = title, scale
        self._ground: Any = None  # as drawn, with what was on it
        self._shown: Any = None
        self.loss, self.speed, self.norm = self.subplots(3, sharex=True, height_ratios=[5, 3, 2])
        self.rate, self.share, self.loss_scale = (axes.twinx() for axes in self.axes[:3])
        self.subplots_adjust(left=0.13, right=0.85, top=0.89, bottom=0.095, hspace=0.42)
        self._label_panels()
        self._lines = {
            "loss": self._line(self.loss, "train loss", BLUE),
            "smooth": self._line(self.loss, "smoothed", BLUE, linewidth=1.6),
            "rate": self._line(self.rate, "learning rate (right)", GREEN, linestyle=":"),
            "eval": self._line(self.loss, "eval loss", ORANGE, marker="o", markersize=4),
            "saved": self._line(
                self.loss,
                "saved",
                GREY,
                linestyle="",
                marker="^",
                markersize=5,
                clip_on=False,
                transform=self.loss.get_xaxis_transform(),
            ),
            "tokens_per_second": self._line(self.speed, "useful tokens/s", BLUE),
            "mfu": self._line(self.share, "MFU (right)", ORANGE, linestyle="--"),
            "padding_share": self._line(self.share, "padding (right)", GREY, linestyle=":"),
            "grad_norm": self._line(self.norm, "gradient norm", BLUE),
            "loss_scale": self._line(self.loss_scale, "loss scale (right)", PURPLE, linestyle="--"),
        }
        self._lines["eval"].set_clip_box(self.loss.bbox.padded(6))  # whole at both ends
        self._began = self.loss.text(0, 1, "", transform=self.loss.transAxes, va="top")
        self._marks: list[Any] = []
        self._parts: list[str] = []

    def _label_panels(self) -> None:
        label_axes(self.loss, "", f"loss\n{NATS}", self.run)
        self.loss.set_title(self.run, loc="left", pad=TITLE_PAD)  # above the legend
        label_axes(self.speed, "", "tokens/s")
        label_axes(self.norm, "optimizer step", "gradient\nnorm")
        for axes, name in (
            (self.rate, "learning rate"),
            (self.share, "share (%)"),
            (self.loss_scale, "scale"),
        ):
            axes.set_ylabel(name)
            axes.spines[["top", "left"]].set_visible(False)
        self.norm.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        self.norm.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

    def _line(self, axes: Axes, label: str, colour: str, **options: Any) -> Line2D:
        options = {"linewidth": 1.0, "animated": True} | options
        (line,) = axes.plot([], [], color=colour, label=label, **options)
        return line

    @styled
    def set_history(self, history: History) -> None:
        """Show the newest state of the run."""
        train, evals = thin(history.train), history.evals
        steps = _values(train, "step")
        for name in ("loss", "tokens_per_second", "grad_norm", "loss_scale"):
            self._lines[name].set_data(steps, _values(train, name))
        for name in ("mfu", "padding_share"):
            self._lines[name].set_data(steps, 100 * _values(train, name))
        self._lines["rate"].set_data(steps, _values(train, "learning_rate"))
        self._lines["eval"].set_data(_values(evals, "step"), _values(evals, "loss"))
        self._set_parts(evals)
        smooth = len(train) >= SMOOTHED_FROM
        losses = _values(train, "loss")
        num_smooth = len(steps) if smooth else 0
        self._lines["smooth"].set_data(steps[:num_smooth], scales.centred(losses)[:num_smooth])
        self._lines["loss"].set(alpha=0.55 if smooth else 1, linewidth=0.8 if smooth else 1.2)
        for name in ("loss", "tokens_per_second", "grad_norm"):
            self._lines[name].set(marker="" if smooth else "o", markersize=2.5)
        self._set_limits(history)
        saved = [e["step"] for e in history.of("checkpoint")]
        self._lines["saved"].set_data(saved, [0.0] * len(saved))
        self._draw_ground_if_new(history, smooth)

    def _set_parts(self, evals: Sequence[Event]) -> None:
        """Show the loss of each part of the held-out set, if it has several."""
        for name in (name for event in evals for name in event.get("parts", ())):
            if name not in self._parts:
                marker = PART_MARKERS[len(self._parts) % len(PART_MARKERS)]
                options = {"linestyle": ":", "marker": marker, "markersize": 3.5, "alpha": 0.8}
                line = self._line(self.loss, name, ORANGE, **options)
                line.set_clip_box(self.loss.bbox.padded(6))  # whole at both ends
                self._lines[_of_part(name)] = line
                self._parts.append(name)
        for name in self._parts:
            of_part = [{"loss": event.get("parts", {}).get(name)} for event in evals]
            line = self._lines[_of_part(name)]
            line.set_data(_values(evals, "step"), _values(of_part, "loss"))

    def _draw_ground_if_new(self, history: History, smooth: bool) -> None:
        """Mark and explain what is shown, if that is another than before."""
        marks = _marked(history)
        views = [(axes.get_xlim(), axes.get_ylim(), axes.get_yscale()) for axes in self.axes]
        said = self.loss.get_ylabel(), self._began.get_text()
        has = self._has("saved"), self._has("loss_scale"), *self._parts
        shown = views, said, marks, smooth, has
        if shown != self._shown:
            self._shown, self._ground = shown, None
            self._mark(marks)
            self._explain(smooth)

    def png(self) -> bytes:
        """Draw the figure: the ground only if it has changed."""
        canvas = self.agg
        with rc_context(STYLE):
            if self._ground is None:
                canvas.draw()
                self._ground = canvas.copy_from_bbox(self.bbox)
            else:
                canvas.restore_region(self._ground)
            for line in self._lines.values():
                line.draw(canvas.get_renderer())
        return packed(canvas)

    def _has(self, name: str) -> bool:
        return bool(np.isfinite(self._lines[name].get_ydata()).any())

    def _set_limits(self, history: History) -> None:
        data = {name: np.asarray(line.get_ydata(), float) for name, line in self._lines.items()}
        last = max((e["step"] for e in (*history.train, *history.evals)), default=0)
        self.loss.set_xlim(0, max(history.start.get("planned_steps", 0), last, 1))
        of_loss = ("loss", "eval", *map(_of_part, self._parts))
        steps = np.concatenate([self._lines[name].get_xdata() for name in of_loss])
        losses = np.concatenate([data[name] for name in of_loss])
        kind, low, high = scales.of_losses(steps, losses, self.scale)
        scales.set_scale(self.loss, "log" if kind == "log" else "linear", low, high, 5)
        said = {"linear": "loss", "log": "loss, log scale", "zoom": "loss, zoomed"}[kind]
        self.loss.set_ylabel(f"{said}\n{NATS}")
        began = _first(steps, losses) if kind == "zoom" else 0.0
        self._began.set_text(f" began at {began:.4g}" if began > high else "")
        top = {name: scales.up(scales.most(values)) for name, values in data.items()}
        scales.set_scale(self.rate, "linear", 0, top["rate"], 5, "{x:.2g}")
        scales.set_scale(self.speed, "linear", 0, top["tokens_per_second"], 3, "{x:,.0f}")
        share = max(100.0, top["mfu"]) if scales.most(data["mfu"]) > 100 else 105
        scales.set_scale(self.share, "linear", 0, share, 3)
        scales.set_scale(self.norm, *scales.of_positive(data["grad_norm"]), 3)
        self.loss_scale.set_visible(self._has("loss_scale"))
        scales.set_scale(self.loss_scale, "linear", 0, top["loss_scale"], 2, "{x:,.0f}")

    def _mark(self, marks: dict[str, list[int]]) -> None:
        """Mark where the run was resumed, or has stopped."""
        for mark in self._marks:
            mark.remove()
        self._marks = []
        for name, steps in marks.items():
            for step in steps:
                side = "left" if step < 0.85 * self.loss.get_xlim()[1] else "right"
                at = {"transform": self.loss.get_xaxis_transform(), "ha": side, "va": "top"}
                self._marks += [
                    self.loss.axvline(step, color=RED, linewidth=0.9, linestyle="--"),
                    self.loss.text(step, 1, f" {name} ", **at),
                ]

    def _explain(self, smooth: bool) -> None:
        """Put legends above the panels, where no data is."""
        lines = self._lines
        first = [lines["loss"], *[lines["smooth"]] * smooth, lines["eval"], lines["rate"]]
        _legend(self.loss, [*first, *[lines["saved"]] * self._has("saved")])
        if self._parts:
            self.subplots_adjust(top=0.86)
            self.loss.set_title(self.run, loc="left", pad=TITLE_PAD + LEGEND_ROW)
            parts = [lines[_of_part(name)] for name in self._parts]
            _legend(self.rate, parts, "eval loss of", LEGEND_ROW)
        _legend(self.speed, [lines[n] for n in ("tokens_per_second", "mfu", "padding_share")])
        _legend(self.norm, [lines["grad_norm"], *[lines["loss_scale"]] * self._has("loss_scale")])


def _of_part(name: str) -> str:
    """Return the key of a part's line, which no other line has."""
    return f"part {name}"


def _legend(axes: Axes, lines: Iterable[Any], title: str = "", above: float = 0.0) -> None:
    """Put a legend above a panel, `above` points higher than the first row."""
    said = [Line2D([], [], linestyle="", label=f"{title}:")] if title else []
    place = axes.transAxes + ScaledTranslation(0, above / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        handles=[*said, *lines], loc="lower left", bbox_to_anchor=(-0.01, 0.96), ncols=7,
        bbox_transform=place, borderpad=0.2, handlelength=1.5, handletextpad=0.4,
        columnspacing=1.0,
    )  # fmt: skip


def _marked(history: History) -> dict[str, list[int]]:
    """Return the steps at which the run was resumed and stopped."""
    return {
        "resumed": [e["resumed_step"] for e in history.of("start") if e["resumed_step"]],
        "stopped": [e["step"] for e in history.of("stop")],
    }


def _first(steps: np.ndarray, losses: np.ndarray) -> float:
    """Return the loss of the earliest step that has one."""
    return float(losses[np.argmin(np.where(np.isfinite(losses), steps, np.inf))])


def _values(events: Sequence[Event], name: str) -> np.ndarray:
    """Return a field of each event; NaN where there is none, or it was not finite."""
    found = (e.get(name) for e in events)
    return np.array([np.nan if value is None else value for value in found], float)


def thin(points: Sequence[Event]) -> list[Event]:
    """Return at most about MAX_POINTS of the logs, evenly spread, the last one among them."""
    stride = max(math.ceil(len(points) / MAX_POINTS), 1)
    return [*points[::stride], *(points[-1:] if (len(points) - 1) % stride else [])]
