"""The style of the kit's figures.

Figures are made without pyplot (which would show them twice): colours that colour-blind people can
tell apart, labels with units, legible at notebook width in both themes.
"""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SMOOTHED_FROM = 50  # points; fewer are drawn as they are


class Picture(Figure):
    """A Figure that a notebook displays by itself, sharp on high-resolution screens."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=2 * self.dpi)
        return file.getvalue(), {"width": round(self.get_figwidth() * self.dpi)}


def new_figure(
    height: float = 3.2, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Picture, Any]:
    """Return a figure in the kit's style, `height` inches high, and its axes."""
    figure = Picture(figsize=(8, height), dpi=100, layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, **options)


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label both axes, and remove what is not needed."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
