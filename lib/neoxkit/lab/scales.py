"""Scales and ends of a curve's axes, and its smoothed line."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    Formatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
    StrMethodFormatter,
)

from neoxkit.errors import UserError

SCALES = ("auto", "linear", "log", "zoom")
SMOOTHED_SHARE = 1 / 20  # of the points: about as many are averaged
FEWEST = 10  # losses, of which something can be said
NICE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # where an axis may end, times a power of ten


def check(scale: str) -> None:
    """Refuse a scale that is not one of SCALES."""
    if scale not in SCALES:
        raise UserError("scale", f"got {scale!r}", f"choose one of {', '.join(SCALES)}")


def of_losses(
    steps: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray, scale: str = "auto"
) -> tuple[str, float, float]:
    """Return how the losses are shown, and the least and the highest that are.

    "linear" begins at 0 and shows all; "log" shows all; "zoom" shows what follows the first quarter
    of the steps so far. "auto" is linear, unless there are ten losses or more and most of the run
    is flat there: what follows the first quarter (98 % of it) takes less than a third of the
    height. Then it is log where the highest loss is at least ten times the lowest, and zoom
    elsewhere.

    >>> of_losses(range(10), [8, 7, 6, 5, 4, 3, 2, 1, 1, 1])
    ('linear', 0.0, 10.0)
    >>> of_losses(range(10), [6, 4, 3, 2.4, 2.2, 2.1, 2.1, 2, 2, 2])[0]
    'zoom'
    >>> of_losses(range(10), [6, 2, 1, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1])[0]
    'log'
    """
    at, values = np.asarray(steps, float), np.asarray(losses, float)
    at, values = at[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return "linear", 0.0, 1.0
    least, most = float(values.min()), float(values.max())
    low, high = np.percentile(values[at >= at.max() / 4], [1, 99]).tolist()
    if scale == "auto":
        flat = len(values) >= FEWEST and (high - low) < most / 3 and most > high
        scale = ("log" if least > 0 and most >= 10 * least else "zoom") if flat else "linear"
    if scale == "log" and least > 0:
        return "log", down(0.9 * least), up(most)
    if scale == "zoom" and high > low:
        grid = up((high - low) / 10, 1.0)
        return "zoom", grid * math.floor(low / grid - 0.5), grid * math.ceil(high / grid + 0.5)
    return "linear", 0.0, up(most)


def centred(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the mean of about 1/20 of the values round each one, the nearest counting most.

    It does not lag behind: as many values after a point count as before it. At both ends there are
    fewer; values that are not numbers are left out.

    >>> centred([1.0, 1.0, 1.0]).tolist()
    [1.0, 1.0, 1.0]
    """
    values = np.asarray(values, float)
    if not len(values):
        return values
    reach = max(round(len(values) * SMOOTHED_SHARE), 1)
    weights = np.hanning(2 * reach + 3)[1:-1]
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), weights)[reach : reach + len(values)]
    counts = np.convolve(known.astype(float), weights)[reach : reach + len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def up(value: float, margin: float = 1.03) -> float:
    """Return the next number above `margin` times a value where an axis may end; 1 for none.

    >>> up(1.9), up(412.0)
    (2.0, 500.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value * margin))
    return float(power * next(n for n in NICE if n * power >= value * margin * (1 - 1e-9)))


def down(value: float) -> float:
    """Return the next such number below a value above 0.

    >>> down(0.13)
    0.12
    """
    power = 10.0 ** math.floor(math.log10(value))
    return float(round(power * max(n for n in NICE if n * power <= value * (1 + 1e-9)), 12))


def of_positive(values: np.ndarray) -> tuple[str, float, float]:
    """Return scale and limits for a series: log if the highest is ten times the lowest or more."""
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() >= 10 * known.min():
        return "log", down(0.9 * float(known.min())), up(float(known.max()))
    return "linear", 0.0, up(most(values))


def most(values: np.ndarray) -> float:
    """Return the highest of the values that are numbers; 0 if there is none."""
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else 0.0


def set_scale(axes: Axes, kind: str, low: float, high: float, ticks: int, form: str = "") -> None:
    """Set an axis's scale and limits, with ticks that need no exponents in small letters."""
    if axes.get_yscale() != kind:
        axes.set_yscale(kind)
    if kind == "log":
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if decades < 1.3 else (1, 3) if decades < 3 else (1,))
        )
        form = "{x:g}"
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    formatter: Formatter = StrMethodFormatter(form) if form else ScalarFormatter(useOffset=False)
    axes.yaxis.set_major_formatter(formatter)
    axes.set_ylim(low, high)
