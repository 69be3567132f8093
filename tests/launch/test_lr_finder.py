"""The range test: reading a curve, and a rate that really rises."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BASE

from neoxkit import paths
from neoxkit.lab import training
from neoxkit.launch import lr_finder
from neoxkit.parallel import silent
from neoxkit.runs.events import read_events

RATES = np.geomspace(1e-7, 1, 100)


def curve(diverges: float, fall: float = 2.0, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """Make a loss of 4 that falls by `fall` around a hundredth of the rate where it explodes."""
    at = np.log10(RATES)
    falls = fall / (1 + np.exp(-4 * (at - np.log10(diverges / 100))))
    explodes = np.where(diverges < RATES, 20 * (at - np.log10(diverges)), 0)
    return 4 - falls + explodes + np.random.default_rng(seed).normal(0, noise, len(at))


@pytest.mark.parametrize("diverges", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_divergence_is_found_and_the_suggestion_is_well_below(
    diverges: float, seed: int
) -> None:
    found = lr_finder.analyse(RATES, curve(diverges, seed=seed))
    assert diverges <= found.divergence <= 2 * diverges
    assert diverges / 100 <= found.suggestion <= found.divergence / 10
    assert f"diverges at {found.divergence:.1e}" in found.says


def test_a_loss_that_is_not_finite_is_a_divergence() -> None:
    rates = RATES[RATES < 1e-3]
    falls = curve(1.0, noise=0.0)[: len(rates)] - np.linspace(0, 1, len(rates))
    assert lr_finder.analyse(rates, falls).divergence is None
    found = lr_finder.analyse(rates, falls, not_finite=True)
    assert found.divergence == rates[-1] and found.suggestion <= rates[-1] / 10


def test_a_curve_without_a_clear_descent_suggests_nothing() -> None:
    flat = lr_finder.analyse(RATES, curve(10.0, fall=0.0))
    assert (flat.divergence, flat.suggestion) == (None, None)
    assert "never falls by more than its noise; it does not diverge" in flat.says
    rises = lr_finder.analyse(RATES, 4 + np.linspace(0, 1, 100))
    assert rises.suggestion is None and rises.divergence is not None
    short = lr_finder.analyse(RATES[:5], curve(0.1)[:5], not_finite=True)
    assert short.suggestion is None and "only 5 steps" in short.says


def test_no_range_test_is_run_unless_asked_for(home: Path) -> None:
    assert lr_finder.find(BASE, lambda label: silent) is None
    assert "range_test_steps is 0" in training.learning_rates(None).text
    assert lr_finder.try_suggestion(BASE, None, lambda label: silent) == []
    assert training.short_runs([]).text == ""


def test_the_rate_rises_by_a_constant_factor_and_three_runs_try_the_suggestion(
    starts_sooner: None, home: Path
) -> None:
    settings = BASE.replace(run="ranged", range_test_steps=30)
    found = lr_finder.find(settings, lambda label: silent)
    steps = len(found.rates)
    assert found.rates == pytest.approx(np.geomspace(1e-7, 1, 30)[:steps], rel=1e-6)
    assert found.divergence and found.suggestion  # the built-in model at rates up to 1
    start = read_events(paths.run("ranged.range-test"))[0]
    assert start["learning_rate"] == 1 and start["notices"] == []  # so high on purpose
    table = training.short_runs(
        lr_finder.try_suggestion(settings, found, lambda label: silent)
    ).text.splitlines()
    assert len(table) == 4
    tried = [float(line.split()[0]) for line in table[1:]]
    assert tried == pytest.approx(
        [found.suggestion / 3, found.suggestion, 3 * found.suggestion], rel=0.05
    )
    losses = [float(line.split()[1]) for line in table[1:]]
    first = read_events(paths.run("ranged.range-test"))[1]["loss"]
    assert all(loss < first for loss in losses)
    assert not paths.run("ranged").exists()  # the run itself is untouched
    assert training.learning_rates(found)._repr_mimebundle_()["image/png"]
