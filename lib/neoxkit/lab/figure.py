"""The style of the kit's figures, and how a notebook shows them.

Figures are made without pyplot (which would show them twice): transparent ground, text in one grey
and data in colours that can be read on white and on JupyterLab's dark ground (#111111), and that
colour-blind people can tell apart. Each is a PNG with an alternative text.
"""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from neoxkit.lab import view

GREY = "#767676"  # text, ticks and spines: contrast 4.5 on white, 4.2 on #111111
# After Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), the yellows darker: contrast of
# 3 or more on both grounds.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#B8860B", "#009E73", "#D5452B"
PURPLE, SKY, OLIVE = "#B8649A", "#2F9EC4", "#7F7F00"
SMOOTHED_FROM = 50  # points; fewer are drawn as they are

# A figure fills the cell's width up to MOST_WIDTH (CSS pixels). In a window 900 pixels wide, with
# the side bar open, JupyterLab 4.6 gives it LEAST_WIDTH: there SMALLEST is 9 pixels high.
WIDTH, DPI = 7.0, 200  # inches, pixels per inch
MOST_WIDTH, LEAST_WIDTH = 900, 448
SMALLEST = 10.2  # points, 1/72 inch
MOST_BARS = 8  # whose heights the alternative text names

STYLE: Any = {  # Any: matplotlib's hint lists every name
    "font.size": SMALLEST,
    "axes.titlesize": "medium",
    "text.parse_math": False,  # a run may be named $a$; exponents would be too small
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
    ),
}
styled = rc_context(STYLE)  # the decorator of every function that draws a figure


class Picture(Figure):
    """A Figure that a notebook displays by itself, with an alternative text."""

    def png(self) -> bytes:
        """Draw the figure."""
        with rc_context(STYLE):  # some ticks are made only now
            self.agg.draw()
        return packed(self.agg)

    @property
    def agg(self) -> FigureCanvasAgg:
        """The canvas that a figure without pyplot is drawn on."""
        if not isinstance(self.canvas, FigureCanvasAgg):
            FigureCanvasAgg(self)
        assert isinstance(self.canvas, FigureCanvasAgg)
        return self.canvas

    def html(self) -> str:
        """Draw the figure; return an HTML image as wide as its surroundings, within reason."""
        return self._image(base64.b64encode(self.png()).decode())

    def _image(self, png: str) -> str:
        style = f"width:100%;max-width:{MOST_WIDTH}px;height:auto"
        alt = view.escape(told(self))
        return f'<img alt="{alt}" style="{style}" src="data:image/png;base64,{png}">'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Return the figure for JupyterLab, whose own images have no alternative text (HTML); for
        other readers of a notebook (PNG); and in words."""
        png = base64.b64encode(self.png()).decode()
        return {"image/png": png, "text/html": self._image(png), "text/plain": told(self)}


def packed(canvas: FigureCanvasAgg) -> bytes:
    """Return what was drawn as a PNG of at most 256 colours: a third of the bytes, in less time."""
    width, height = canvas.get_width_height(physical=True)
    image = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    file = io.BytesIO()
    few = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, "png", compress_level=4)
    return file.getvalue()


def new_figure(
    height: float = 3.2, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Picture, Any]:
    """Return a figure in the kit's style, `height` inches high, and its axes."""
    figure = Picture(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label both axes, and remove what is not needed."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=GREY, alpha=0.3, linewidth=0.7)
    axes.set_axisbelow(True)


def told(figure: Figure) -> str:
    """Say what a drawn figure shows: titles, what is over what, the last value of each line."""
    parts = [part for axes in figure.axes if axes.get_visible() and (part := _told(axes))]
    return f"{'; '.join(parts)}." if parts else "An empty figure."


def _told(axes: Axes) -> str:
    over = " over ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
    lines = [_last(axes, line) for line in axes.get_lines()]
    bars = [_heights(axes, of) for of in axes.containers if isinstance(of, BarContainer)]
    others = [
        label
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        if not isinstance(handle, Line2D | BarContainer)
    ]
    parts = (axes.get_title("left"), over, ", ".join(filter(None, (*lines, *bars, *others))))
    return " ".join(": ".join(filter(None, parts)).split())


def _last(axes: Axes, line: Line2D) -> str:
    """Return the label of a line with its last value; of one that marks a place, its label."""
    label, x, y = str(line.get_label()).strip(), *map(np.asarray, line.get_data())
    known = np.isfinite(y.astype(float)) if len(y) else np.zeros(0, bool)
    if label.startswith("_") or not known.any():
        return ""
    if line.get_transform() != axes.transData or len({*x.tolist()}) < len(x):
        return label
    return f"{label} {y[known][-1]:.4g}"


def _heights(axes: Axes, bars: BarContainer) -> str:
    """Return the label of bars, and the height of each if they are few."""
    label = str(bars.get_label())
    if len(bars) > MOST_BARS:
        return "" if label.startswith("_") else label
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    at = ticks if len(ticks) == len(bars) else [""] * len(bars)
    heights = (f"{tick} {bar.get_height():.4g}" for tick, bar in zip(at, bars, strict=True))
    return " ".join(filter(None, ("" if label.startswith("_") else label, ", ".join(heights))))
