"""A run's losses to explore with the mouse: hover, zoom, log scale.

JupyterLab draws them with the Vega that it brings, so they need neither a package nor a network.
Where there is no Vega, the picture that `dashboard.watch` left in the notebook has the same curves.
"""

from collections.abc import Sequence
from typing import Any

from neoxkit import paths
from neoxkit.lab.curve import thin
from neoxkit.lab.figure import BLUE, GREEN, GREY, OLIVE, ORANGE, PURPLE, RED, SKY
from neoxkit.runs.events import History

VEGA = "application/vnd.vegalite.v5+json"
TRAIN, EVAL = "train loss", "eval loss"
COLOURS = [
    BLUE,
    ORANGE,
    PURPLE,
    GREEN,
    SKY,
    OLIVE,
    RED,
]  # train, eval, and the held-out set's parts
HOW = "drag to move, Shift and the wheel to zoom, double-click to see all of it"
_EMBED = {"actions": False, "defaultStyle": ".vega-embed, .chart-wrapper {width: 100%}"}


class Chart:
    """A Vega-Lite chart; elsewhere a sentence that says what it shows."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        data = {VEGA: self.spec, "text/plain": f"({self.spec['description']})"}
        return data, {VEGA: {"embed_options": _EMBED}}


def losses(run: str) -> Chart:
    """Return the train and eval losses of a run as a chart."""
    return Chart(spec(run, points(History.of_run(paths.run(run)))))


def points(history: History) -> list[dict[str, Any]]:
    """Return the points of all curves, those of a long run thinned (`curve.thin`): the train loss,
    the eval loss, and that of each part of the held-out set, if it has several.

    Losses that are not finite are left out: Vega would draw them as 0.
    """
    evals = thin(history.evals)
    parts = dict.fromkeys(name for event in evals for name in event.get("parts", ()))
    of_parts = (
        (f"{EVAL} of {name}", event["step"], event.get("parts", {}).get(name))
        for name in parts
        for event in evals
    )
    whole = (
        (name, event["step"], event["loss"])
        for name, events in ((TRAIN, thin(history.train)), (EVAL, evals))
        for event in events
    )
    return [
        {"curve": name, "step": step, "loss": loss}
        for name, step, loss in (*whole, *of_parts)
        if loss is not None
    ]


def spec(name: str, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the chart in Vega-Lite's terms; a scale can't change its kind, so the logarithm is
    taken of the values, and the axis shows what they were."""
    axis = {
        "title": "loss (nats per trained token)",
        "labelExpr": "log ? format(pow(10, datum.value), '.3~r') : datum.label",
        "minExtent": 36,
    }
    y = {"field": "drawn", "type": "quantitative", "scale": {"zero": False}, "axis": axis}
    x = {
        "field": "step",
        "type": "quantitative",
        "axis": {"title": "optimizer step", "grid": False},
    }
    curves = [*dict.fromkeys([TRAIN, EVAL, *(point["curve"] for point in values)])]
    scale = {"domain": curves, "range": COLOURS}
    colour = {"field": "curve", "type": "nominal", "title": None, "scale": scale}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": f"losses of {name} by step: {HOW}",
        "width": "container",
        "height": 260,
        "background": None,
        "config": _config(),
        "data": {"values": [*values]},
        "params": [
            {"name": "log", "value": False, "bind": {"input": "checkbox", "name": "log scale "}}
        ],
        "transform": [{"calculate": "log ? log(datum.loss) / LN10 : datum.loss", "as": "drawn"}],
        "encoding": {"x": x, "y": y, "color": colour},
        "layer": [_lines(), _evaluations(), _nearest()],
    }


def _config() -> dict[str, Any]:
    """Return the colours: grey letters, which both themes of JupyterLab show."""
    letters = {"labelColor": GREY, "titleColor": GREY, "labelFontSize": 11, "titleFontSize": 11}
    lines = {"tickColor": GREY, "domainColor": GREY, "gridColor": GREY, "gridOpacity": 0.25}
    return {
        "view": {"stroke": None},
        "axis": letters | lines,
        "legend": letters | {"orient": "top"},
    }


def _lines() -> dict[str, Any]:
    zoom = {"type": "interval", "zoom": "wheel![event.shiftKey]"}  # a plain wheel scrolls the page
    return {
        "mark": {"type": "line", "strokeWidth": 1.2, "clip": True},
        "params": [{"name": "view", "select": zoom, "bind": "scales"}],
    }


def _evaluations() -> dict[str, Any]:
    return {
        "transform": [{"filter": f"datum.curve != '{TRAIN}'"}],
        "mark": {"type": "point", "filled": True, "size": 40, "clip": True},
    }


def _nearest() -> dict[str, Any]:
    """Return the point nearest to the mouse, with its figures."""
    near = {
        "type": "point", "nearest": True, "on": "pointermove", "clear": "pointerout",
    }  # fmt: skip
    shown = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    figures = [
        {"field": "curve", "type": "nominal"},
        {"field": "step", "type": "quantitative", "format": ","},
        {"field": "loss", "type": "quantitative", "format": ".4f"},
    ]
    return {
        "mark": {"type": "point", "filled": True, "size": 70, "clip": True},
        "params": [{"name": "near", "select": near}],
        "encoding": {"opacity": shown, "tooltip": figures},
    }
