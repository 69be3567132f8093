"""The figures: the schedule is transformers' own, and all draw with little or no data."""

import base64
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from transformers import TrainingArguments, get_scheduler

from neoxkit.evaluation import compare_runs
from neoxkit.lab import comparison, curve, data, evaluation, figure, scales, training, view
from neoxkit.runs.events import History, append_event, smoothed

KINDS = ("linear", "cosine", "constant", "constant_with_warmup")


def stepped(kind: str, steps: int, peak: float, warmup_steps: float, **more: float) -> list[float]:
    """Return the learning rate that a real optimizer gets at each step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=peak)
    few = TrainingArguments(output_dir="unused", warmup_steps=warmup_steps, use_cpu=True)
    scheduler = get_scheduler(kind, optimizer, few.get_warmup_steps(steps), steps, more)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup_steps", [0, 0.05, 0.3, 1, 7, 60])
@pytest.mark.parametrize("steps", [1, 41])
def test_schedule_equals_that_of_transformers(kind: str, warmup_steps: float, steps: int) -> None:
    rates = training.schedule(steps, 2e-3, warmup_steps, kind)
    assert rates.shape == (steps,)
    np.testing.assert_allclose(rates, stepped(kind, steps, 2e-3, warmup_steps), rtol=0, atol=1e-15)


def test_a_cosine_of_several_cycles_equals_that_of_transformers() -> None:
    rates = training.schedule(41, 2e-3, 7, "cosine", 1.5)
    expected = stepped("cosine", 41, 2e-3, 7, num_cycles=1.5)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-15)


def test_schedule_of_no_steps_is_empty() -> None:
    for kind in KINDS:
        assert training.schedule(0, 1e-3, 0.1, kind).shape == (0,)


def train(step: int) -> dict[str, Any]:
    loss = {"event": "train", "step": step, "loss": 4 / (step + 1), "learning_rate": 1e-3}
    return loss | {
        "tokens_per_second": 100.0 * step,
        "mfu": 0.5,
        "padding_share": 0.02,
        "grad_norm": 2.0,
    }


def evaluated(step: int) -> dict[str, Any]:
    return {"event": "eval", "step": step, "loss": 5 / (step + 1)}


def start(resumed: int = 0, planned: int = 50) -> dict[str, Any]:
    return {"event": "start", "step": resumed, "resumed_step": resumed, "planned_steps": planned}


def compared(base: Any, tuned: Any, sets: int) -> dict[str, Any]:
    total = {"kind": "total", "base": 1, "tuned": 3, "questions": 4}
    return {
        "eval_loss": {"base": base and {"loss": base}, "tuned": tuned and {"loss": tuned}},
        "exact": [{"set": f"set {i}", **total} for i in range(sets)]
        + [{"set": "set 0", **total, "kind": "a part"}] * bool(sets),
    }


def runs(count: int, evals: int = 2) -> list[compare_runs.Run]:
    """Make runs of 60 steps that differ in their rate; the last `evals` steps are evaluated."""
    each = {"loss": 1.0, "trained_tokens": 100}
    made = [start(), *({"event": "train", "step": step, **each} for step in range(1, 61))]
    made += [{"event": "eval", "step": 61 - i, **each} for i in range(evals, 0, -1)]
    return [
        compare_runs.Run(
            f"r{i}", Path(f"r{i}"), "finished", {"learning_rate": i}, {}, History(made)
        )
        for i in range(count)
    ]


FIGURES = {
    "overlay": lambda: comparison.overlay(runs(2)),
    "overlay, many": lambda: comparison.overlay(runs(20)),
    "overlay, empty": lambda: comparison.overlay([]),
    "overlay, no evaluation": lambda: comparison.overlay(runs(1, evals=0)),
    "histogram": lambda: data.length_histogram([10, 20, 300], 64),
    "histogram, empty": lambda: data.length_histogram([], 64),
    "histogram, one": lambda: data.length_histogram([5], 64),
    "schedule": lambda: training.schedule_figure(training.schedule(40, 1e-3, 5, "cosine"), 10),
    "schedule, empty": lambda: training.schedule_figure(np.zeros(0), 1),
    "schedule, one": lambda: training.schedule_figure(np.array([1e-3]), 1),
    "curve": lambda: curve.draw(
        History([start(), train(1), train(2), evaluated(2), start(2)]), "demo"
    ),
    "curve, empty": lambda: curve.draw(History([])),
    "curve, only started": lambda: curve.draw(History([start()])),
    "curve, one": lambda: curve.draw(History([start(), train(1)])),
    "curve, in fp16": lambda: curve.draw(History([start(), train(1) | {"loss_scale": 65536.0}])),
    "comparison": lambda: evaluation.comparison(compared(3.0, 2.0, 2)),
    "comparison, empty": lambda: evaluation.comparison(compared(None, None, 0)),
    "comparison, one": lambda: evaluation.comparison(compared(3.0, 2.0, 1)),
}


GROUNDS = ("white", "#111111")  # of JupyterLab's light and dark theme


def contrast(colour: Any, ground: str) -> float:
    """Return the contrast of two colours by WCAG, 1 to 21."""

    def luminance(rgb: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(rgb)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, bright = sorted(map(luminance, (colour, ground)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error")
def test_every_figure_renders_and_has_labels(name: str) -> None:
    drawn = FIGURES[name]()
    bundle = drawn._repr_mimebundle_()
    assert sorted(bundle) == ["image/png", "text/html", "text/plain"]
    image = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert image.format == "PNG" and image.width == figure.WIDTH * figure.DPI
    assert image.width >= 1.5 * figure.MOST_WIDTH  # two pixels or more where it is narrower
    for axes in filter(lambda axes: axes.get_visible(), drawn.axes):
        assert axes.get_ylabel()
    assert name.startswith("comparison") or sum(bool(axes.get_xlabel()) for axes in drawn.axes) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read_in_both_themes(name: str) -> None:
    drawn = FIGURES[name]()
    image = Image.open(io.BytesIO(drawn.png())).convert("RGBA")
    assert {image.getpixel(at)[3] for at in ((0, 0), (image.width - 1, image.height - 1))} == {0}
    texts = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
    assert texts or "empty" in name
    for text in texts:
        assert to_rgb(text.get_color()) == to_rgb(figure.GREY), text
        height = text.get_fontsize() / 72 / figure.WIDTH * figure.LEAST_WIDTH
        assert height >= 9, text
    spines = [spine for axes in drawn.axes for spine in axes.spines.values()]
    assert {to_rgb(spine.get_edgecolor()) for spine in spines} == {to_rgb(figure.GREY)}


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_stand_out_from_both_grounds(ground: str) -> None:
    assert contrast(figure.GREY, ground) >= 4
    data_colours = [*comparison.SERIES, figure.BLUE, figure.ORANGE, figure.GREEN, figure.RED]
    assert all(contrast(colour, ground) >= 3 for colour in data_colours)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_an_alternative_text_that_is_escaped(name: str) -> None:
    drawn = FIGURES[name]()
    drawn.axes[0].set_title('<b>"odd"</b>', loc="left")
    bundle = drawn._repr_mimebundle_()
    assert '<b>"odd"</b>' in bundle["text/plain"]
    assert bundle["text/html"].count("<") == 1
    assert 'alt="&lt;b&gt;&quot;odd&quot;&lt;/b&gt;' in bundle["text/html"]


def test_the_alternative_text_says_what_is_drawn() -> None:
    said = figure.told(FIGURES["curve"]())
    assert said.startswith("demo: loss (nats per trained token): train loss 1.333, eval loss 1.667")
    assert "useful tokens/s 200" in said and "learning rate (right) 0.001" in said
    said = figure.told(FIGURES["histogram"]())
    expected = (
        "conversations over length of a conversation (tokens): 2 conversations that fit, 1 lon"
    )
    assert expected in said
    drawn = FIGURES["comparison"]()
    drawn.png()
    assert "held-out set: loss (nats per trained token): base 3, tuned 2" in figure.told(drawn)


def test_the_overlay_draws_each_runs_losses_over_its_tokens() -> None:
    made = comparison.overlay(runs(2))
    (axes,), (legend,) = made.axes, made.legends
    assert [text.get_text() for text in legend.get_texts()] == [" 0", " 1"]
    assert legend.get_title().get_text() == "learning_rate"
    assert drawn(axes, " 1") == ([5900, 6000], [1.0, 1.0])
    faint = axes.get_lines()[0]
    assert faint.get_alpha() < 1 and list(faint.get_xdata())[:2] == [100, 200]
    (said,) = axes.texts
    assert (said.get_text(), said.get_position()[0]) == ("compared here ", 6000)
    assert comparison.overlay(runs(1, evals=0)).axes[0].texts[:] == []


def test_the_lowest_loss_is_framed_and_a_gap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = np.array([[2.0, 1.5], [np.nan, 3.0]])
    counts = np.array([[1, 1], [0, 3]])
    found = {
        "losses": losses, "counts": counts, "rows": [8, 16], "columns": [1e-3, 2e-3],
        "row_name": "block_size", "column_name": "learning_rate", "equal_tokens": 9000,
    }  # fmt: skip
    monkeypatch.setattr(compare_runs, "grid", lambda chosen: found)
    axes = comparison.heat_map([]).axes[0]
    assert (
        axes.get_title("left")
        == "eval loss at 9,000 tokens (means of up to 3 runs); the lowest is framed"
    )
    assert [text.get_text() for text in axes.texts] == ["2.0000", "1.5000", "none", "3.0000"]
    (frame,) = axes.patches
    assert frame.get_xy() == (0.5, -0.5)  # around the second of the first line
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "block_size")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.002"]


def drawn(axes: Any, label: str) -> tuple[list[float], list[float]]:
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def test_curve_draws_the_events_values() -> None:
    events = [start(), evaluated(0), train(1), evaluated(1), train(2)]
    found = curve.draw(History([*events, {"event": "checkpoint", "step": 2}]), "demo")
    loss, speed, norm, rate, share, scale = found.axes
    assert drawn(loss, "train loss") == ([1, 2], [2.0, 4 / 3])
    assert drawn(loss, "eval loss") == ([0, 1], [5.0, 2.5])
    assert drawn(loss, "saved") == ([2], [0.0])
    assert drawn(rate, "learning rate (right)") == ([1, 2], [1e-3, 1e-3])
    assert drawn(speed, "useful tokens/s") == ([1, 2], [100.0, 200.0])
    assert drawn(share, "MFU (right)") == ([1, 2], [50.0, 50.0])
    assert drawn(share, "padding (right)") == ([1, 2], [2.0, 2.0])
    assert drawn(norm, "gradient norm") == ([1, 2], [2.0, 2.0])
    assert not scale.get_visible()
    assert loss.get_xlim() == (0, 50) and loss.get_title(loc="left") == "demo"
    assert marks(found) == []
    resumed = History([*events, start(resumed=2)])
    assert marks(curve.draw(resumed)) == [("resumed", 2)]
    stopped = History([*resumed.events, {"event": "stop", "step": 2}])
    assert marks(curve.draw(stopped)) == [("resumed", 2), ("stopped", 2)]


def test_the_parts_of_a_held_out_set_have_curves_of_their_own() -> None:
    """From the first evaluation that has them, and with another one before it that has not."""
    evals = [evaluated(0), *(evaluated(s) | {"parts": {"a": 1 / s, "b": None}} for s in (10, 20))]
    for event in evals[1:]:  # by its name, it could be taken for the whole set's
        event["parts"]["eval"] = 70.0
    found = curve.draw(History([start(), train(10), *evals[:2]]))
    found.set_history(History([start(), train(10), *evals]))
    steps, losses = drawn(found.loss, "a")
    assert steps == [0, 10, 20]
    assert np.isnan(losses[0]) and losses[1:] == [0.1, 0.05]
    assert np.isnan(drawn(found.loss, "b")[1]).all()
    legend = found.rate.get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == [
        "eval loss of:",
        "a",
        "b",
        "eval",
    ]
    assert found.loss.get_ylim()[1] >= 70
    assert drawn(found.loss, "eval loss")[1] == [event["loss"] for event in evals]
    plain = curve.draw(History([start(), train(10), evaluated(0)]))
    assert plain.rate.get_legend() is None


def marks(found: curve.Curve) -> list[tuple[str, float]]:
    return [(said, text.get_position()[0]) for text in found.loss.texts
            if (said := text.get_text().strip())]  # fmt: skip


def test_the_loss_scale_is_drawn_where_there_is_one() -> None:
    fp16 = [train(step) | {"loss_scale": 2.0**step, "grad_norm": None} for step in (15, 16)]
    found = curve.draw(History([start(), *fp16]))
    assert drawn(found.loss_scale, "loss scale (right)") == ([15, 16], [32768.0, 65536.0])
    assert found.loss_scale.get_visible()
    assert np.isnan(drawn(found.norm, "gradient norm")[1]).all()


@pytest.mark.parametrize("points", [1, 49])
def test_few_points_have_markers(points: int) -> None:
    found = curve.draw(History([start(), *map(train, range(1, points + 1))]))
    assert found.loss.get_lines()[0].get_marker() == "o"


def test_legends_are_outside_of_the_data() -> None:
    found = FIGURES["curve"]()
    found.png()
    for axes in (found.loss, found.speed, found.norm):
        panel, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
        assert legend.y0 > panel.y1 - 0.06 * panel.height
        texts = [text.get_window_extent() for text in axes.get_legend().get_texts()]
        assert all(text.y0 >= panel.y1 for text in texts)


def test_a_kept_figure_shows_what_a_new_one_does() -> None:
    """Only its lines are drawn anew as long as nothing else changes."""
    events = [start(), *map(train, range(1, 41)), evaluated(40)]
    kept = curve.Curve("demo", "linear")
    grounds = []
    for end in (1, 2, 33, 34, len(events)):
        kept.set_history(History(events[:end]))
        png = kept.png()
        grounds.append(kept._ground)
    assert grounds[2] is grounds[3]
    assert png == curve.draw(History(events), "demo", "linear").png()


def test_losses_are_zoomed_only_where_most_of_the_run_is_flat() -> None:
    steps = np.arange(101)
    falls, flat, deep = 4 - 0.035 * steps, 2 + 4.0 * (steps == 0), 0.05 + 4 * np.exp(-steps / 5)
    assert scales.of_losses(steps, falls) == ("linear", 0.0, 5.0)
    kind, low, high = scales.of_losses(steps, 2 + 4 * np.exp(-steps / 5))
    assert kind == "zoom" and 1.9 < low < 2 < 2.02 < high < 2.1
    assert scales.of_losses(steps, deep)[0] == "log"
    assert scales.of_losses(steps, deep)[1] <= 0.05 and scales.of_losses(steps, deep)[2] >= 4.05
    assert scales.of_losses(steps, flat)[0] == "linear"  # there is nothing to zoom in on
    spike = flat + 50.0 * (steps == 70)
    assert scales.of_losses(steps, spike, "linear") == ("linear", 0.0, 60.0)
    assert scales.of_losses(range(9), [6, *[2.0] * 8])[0] == "linear"  # too few to tell
    assert scales.of_losses([], []) == ("linear", 0.0, 1.0)
    for scale in ("linear", "log", "zoom"):
        assert scales.of_losses(steps, deep, scale)[0] == scale
    assert scales.of_losses([1], [0.0], "log")[0] == "linear"  # 0 has no logarithm


def test_a_zoomed_curve_says_so_and_where_it_began() -> None:
    losses = 2 + 4 * np.exp(-np.arange(100) / 5)
    events = [start(planned=100), *(train(i) | {"loss": x} for i, x in enumerate(losses, 1))]
    found = curve.draw(History([*events, evaluated(0) | {"loss": 6.5}]))
    assert found.loss.get_ylabel().startswith("loss, zoomed")
    assert marks(found) == [("began at 6.5", 0)]
    assert found.loss.get_ylim()[1] < 6
    assert curve.draw(History(events), scale="linear").loss.get_ylim() == (0, 8)


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1999, 2000, 2001, 12345])
def test_a_long_series_is_thinned_and_keeps_both_ends(count: int) -> None:
    axes = curve.draw(History([start(planned=count), *map(train, range(1, count + 1))])).axes[0]
    steps, losses = drawn(axes, "train loss")
    assert (steps[0], steps[-1]) == (1, count)
    assert steps == sorted(set(steps)) and len(steps) <= curve.MAX_POINTS + 1
    assert len(steps) == count if count <= curve.MAX_POINTS else len(steps) >= 500
    assert losses == [4 / (step + 1) for step in steps]


@pytest.mark.parametrize(
    ("lengths", "block_size"),
    [
        ([], 64),
        ([64], 64),
        ([1, 64, 65, 65, 200], 64),
        (list(range(1, 1001)), 280),
        ([10] * 500 + [100_000], 64),  # one so long that the last bar must hold it
        ([500] * 7, 8),
    ],
)
def test_histogram_counts_every_conversation_once(lengths: list[int], block_size: int) -> None:
    axes = data.length_histogram(lengths, block_size).axes[0]
    fits, over = ([p.get_height() for p in container] for container in axes.containers)
    assert sum(fits) == sum(n <= block_size for n in lengths)
    assert sum(over) == sum(n > block_size for n in lengths)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        f"{int(sum(fits)):,} conversations that fit",
        f"{int(sum(over)):,} longer",
    ]


def test_a_histogram_says_that_its_last_bar_holds_longer_texts() -> None:
    few, many = [10] * 500, [10] * 500 + [100_000]
    said = "the last bar holds all up to 100,000 tokens"
    for lengths, title in ((few, ""), (many, said)):
        made = (
            data.length_histogram(lengths, 64),
            data.turn_histogram({"user": np.array(few), "agent": np.array(lengths)}),
        )
        assert [one.axes[0].get_title(loc="left") for one in made] == [title] * 2


def test_schedule_figure_marks_epochs() -> None:
    (axes,) = training.schedule_figure(training.schedule(40, 1e-3, 0, "linear"), 10).axes
    rates, *epochs = axes.get_lines()
    assert list(rates.get_xdata()) == list(range(1, 41))
    assert [line.get_xdata()[0] for line in epochs] == [10, 20, 30]


def test_comparison_bars_are_the_numbers_of_the_evaluation() -> None:
    left, right = evaluation.comparison(compared(3.0, 2.0, 2)).axes
    assert [bar.get_height() for bar in left.patches] == [3.0, 2.0]
    assert [bar.get_height() for bar in right.patches] == [25.0, 25.0, 75.0, 75.0]
    assert {text.get_text() for text in right.texts} == {"1/4", "3/4"}
    assert math.isclose(right.get_ylim()[0], 0)


def evaluated_pair(folder: Path, conversations: int) -> Any:
    """A stand-in for evaluate.Evaluation: both models' losses, one token a conversation."""
    base = [np.array([2.0 + i / 9]) for i in range(conversations)]
    return SimpleNamespace(folder=folder, losses=lambda: (base, [loss - 0.5 for loss in base]))


def depth(low: float | None, high: float | None) -> dict[str, Any]:
    one = {"name": "1", "base": 2.0, "tuned": 1.5}
    found = {"mean": -0.5, "low": low, "high": high}
    return {"depth": {"difference": found, "turns": [one], "lengths": [one]}}


@pytest.mark.parametrize("bounds", [(-0.6, -0.4), (None, None)])
def test_a_band_is_named_where_one_is_drawn(
    tmp_path: Path, bounds: tuple[float | None, float | None]
) -> None:
    left = evaluation.where(evaluated_pair(tmp_path, 3), depth(*bounds)).axes[0]
    bands = [patch for patch in left.patches if patch.get_height() == 1]  # from bottom to top
    bands = [(band.get_x(), band.get_x() + band.get_width()) for band in bands if band.get_x()]
    if bounds[0] is None:
        assert left.get_title("left") == "mean in red" and bands == []
    else:
        assert left.get_title("left") == "mean and 95 % in red"
        assert bands == [pytest.approx(bounds)]


def test_counts_have_whole_numbers_at_their_axes(tmp_path: Path) -> None:
    turns = data.turn_histogram({"user": np.array([1, 2]), "agent": np.array([2])}).axes[0]
    lengths = data.length_histogram([1, 2], 2).axes[0]
    changes = evaluation.where(evaluated_pair(tmp_path, 1), depth(None, None)).axes[0]
    for axis in (turns.xaxis, turns.yaxis, lengths.xaxis, lengths.yaxis, changes.yaxis):
        assert all(tick == round(tick) for tick in axis.get_majorticklocs())


def test_the_checkpoints_curve_has_every_evaluation_and_marks_those_scored_here(
    tmp_path: Path,
) -> None:
    for event in [start(), evaluated(5), evaluated(10), evaluated(15)]:
        append_event(tmp_path, event.pop("event"), **event)
    append_event(tmp_path, "eval", step=16, loss=math.nan)
    results = {"losses_by_step": {"0": 4.0, "10": 1.5, "20": 1.25}}
    (axes,) = evaluation.checkpoints(SimpleNamespace(folder=tmp_path), results).axes
    during, here = "evaluated while training", "scored here"
    assert drawn(axes, during) == ([5, 10, 15], [5 / 6, 5 / 11, 5 / 16])
    assert drawn(axes, here) == ([0, 10, 20], [4.0, 1.5, 1.25])
    assert [text.get_text() for text in axes.texts] == ["4.000", "1.500", "1.250"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [during, here]
    without = SimpleNamespace(folder=tmp_path / "none")
    (axes,) = evaluation.checkpoints(without, results).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [here]
    assert evaluation.checkpoints(without, {"losses_by_step": {}}) == view.NOTHING


def test_smoothing_follows_a_level_and_not_the_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400)
    smooth = smoothed(3 + noise)
    assert np.std(smooth[50:]) < 0.4 and abs(smooth[50:].mean() - 3) < 0.3
    assert smoothed([5.0, 1.0])[0] == 5.0  # begins with the first value
    assert abs(smoothed([9.0] * 50 + [1.0] * 350)[-1] - 1) < 0.1


def test_the_smoothed_line_does_not_lag_behind() -> None:
    """A straight fall stays where it is, except at the ends; a spike spreads to both sides."""
    falls = np.linspace(4, 1, 400)
    assert np.allclose(scales.centred(falls)[20:-20], falls[20:-20])
    spike = scales.centred(np.eye(1, 400, 200)[0])
    assert spike.argmax() == 200 and np.allclose(spike, spike[::-1][np.r_[399, :399]])
    gap = falls.copy()
    gap[100] = np.nan
    assert np.isfinite(scales.centred(gap)).all() and scales.centred([]).tolist() == []


@pytest.mark.parametrize(("points", "shown"), [(49, False), (50, True)])
def test_few_points_are_drawn_as_they_are(points: int, shown: bool) -> None:
    train = {
        "event": "train", "loss": 1.0, "learning_rate": 1e-3, "tokens_per_second": 1.0, "mfu": 0.1,
        "padding_share": 0.1,
    }  # fmt: skip
    found = curve.draw(History([train | {"step": i} for i in range(points)]))
    labels = [text.get_text() for text in found.axes[0].get_legend().get_texts()]
    assert ("smoothed" in labels) == shown and "eval loss" in labels
