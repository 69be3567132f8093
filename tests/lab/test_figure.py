"""The figures: the schedule is transformers' own, and all draw with little or no data."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from neoxkit.evaluation import compare_runs
from neoxkit.lab import comparison, data, evaluation, training, view
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
    return loss | {"tokens_per_second": 100.0 * step, "mfu": 0.5, "padding_share": 0.02}


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
    "curve": lambda: training.curve(
        History([start(), train(1), train(2), evaluated(2), start(2)]), "demo"
    ),
    "curve, empty": lambda: training.curve(History([])),
    "curve, only started": lambda: training.curve(History([start()])),
    "curve, one": lambda: training.curve(History([start(), train(1)])),
    "comparison": lambda: evaluation.comparison(compared(3.0, 2.0, 2)),
    "comparison, empty": lambda: evaluation.comparison(compared(None, None, 0)),
    "comparison, one": lambda: evaluation.comparison(compared(3.0, 2.0, 1)),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error")
def test_every_figure_renders_and_has_labels(name: str) -> None:
    figure = FIGURES[name]()
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width = int.from_bytes(png[16:20], "big")
    assert size == {"width": width / 2}  # drawn twice as dense as it is shown
    for axes in figure.axes:
        assert axes.get_ylabel()
    assert (
        name.startswith("comparison") or sum(bool(axes.get_xlabel()) for axes in figure.axes) == 1
    )


def test_the_overlay_draws_each_runs_losses_over_its_tokens() -> None:
    figure = comparison.overlay(runs(2))
    (axes,), (legend,) = figure.axes, figure.legends
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
    figure = comparison.heat_map([])
    axes = figure.axes[0]
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
    events = [start(), train(1), evaluated(1), train(2), {"event": "checkpoint", "step": 2}]
    loss, speed, rate, share = training.curve(History(events), "demo").axes
    assert drawn(loss, "train loss") == ([1, 2], [2.0, 4 / 3])
    assert drawn(loss, "eval loss") == ([1], [2.5])
    assert drawn(rate, "learning rate (right)") == ([1, 2], [1e-3, 1e-3])
    assert drawn(speed, "useful tokens/s") == ([1, 2], [100.0, 200.0])
    assert drawn(share, "MFU (right)") == ([1, 2], [50.0, 50.0])
    assert drawn(share, "padding (right)") == ([1, 2], [2.0, 2.0])
    assert loss.get_xlim() == (0, 50) and loss.get_title(loc="left") == "demo"
    assert [text.get_text() for text in loss.texts] == []
    marked = training.curve(History([*events, start(resumed=2)])).axes[0]
    assert [text.get_text().strip() for text in marked.texts] == ["resumed"]


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1999, 2000, 2001, 12345])
def test_a_long_series_is_thinned_and_keeps_both_ends(count: int) -> None:
    axes = training.curve(History([start(planned=count), *map(train, range(1, count + 1))])).axes[0]
    steps, losses = drawn(axes, "train loss")
    assert (steps[0], steps[-1]) == (1, count)
    assert steps == sorted(set(steps)) and len(steps) <= training.MAX_POINTS + 1
    assert len(steps) == count if count <= training.MAX_POINTS else len(steps) >= 500
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
        figures = (
            data.length_histogram(lengths, 64),
            data.turn_histogram({"user": np.array(few), "agent": np.array(lengths)}),
        )
        assert [figure.axes[0].get_title(loc="left") for figure in figures] == [title] * 2


def test_schedule_figure_marks_epochs() -> None:
    (axes,) = training.schedule_figure(training.schedule(40, 1e-3, 0, "linear"), 10).axes
    curve, *epochs = axes.get_lines()
    assert list(curve.get_xdata()) == list(range(1, 41))
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


@pytest.mark.parametrize(("points", "shown"), [(49, False), (50, True)])
def test_few_points_are_drawn_as_they_are(points: int, shown: bool) -> None:
    train = {
        "event": "train", "loss": 1.0, "learning_rate": 1e-3, "tokens_per_second": 1.0, "mfu": 0.1,
        "padding_share": 0.1,
    }  # fmt: skip
    figure = training.curve(History([train | {"step": i} for i in range(points)]))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("train loss, smoothed" in labels) == shown and "eval loss" in labels
