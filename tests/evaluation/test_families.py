"""Intervals that hold together: sweeps of equal settings, simulated, make few false claims."""

import itertools
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from neoxkit.evaluation import compare_models, families, seeds

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import sweep_power

NUM = 12  # models, or settings
MOST_FALSE = 0.06  # of sweeps with any false claim, of 0.05 meant


def simulated(chance: np.random.Generator, conversations: int, effects: np.ndarray) -> list:
    """Make the losses of models that differ by `effects` on average, and in each conversation by
    chance, more in a few (whose differences are not normal)."""
    tokens = chance.integers(5, 60, conversations)
    hard = chance.gamma(4, 0.5, conversations)
    own = chance.standard_t(5, (len(effects), conversations)) * 0.05 * hard
    return [
        [np.full(n, h + e + o) for n, h, o in zip(tokens, hard, of, strict=True)]
        for e, of in zip(effects, own, strict=True)
    ]


def sweep(chance: np.random.Generator, conversations: int, effects: np.ndarray) -> list:
    """Return what 04 does with such models: the lowest first, each difference to it."""
    models = simulated(chance, conversations, effects)
    means = [np.concatenate(one).mean() for one in models]
    order = np.argsort(means)
    ranked = [models[i] for i in order]
    return [*zip(order[1:], families.above_the_first(ranked), strict=True)]


def shares(sweeps: int, conversations: int, effects: np.ndarray) -> tuple[float, float]:
    """Return the share of sweeps with a false claim, and of true differences that are claimed."""
    chance = np.random.default_rng(7)
    false, seen, there = 0, 0, 0
    for _ in range(sweeps):
        found = sweep(chance, conversations, effects)
        lowest = min(set(range(NUM)) - {int(i) for i, _ in found})
        apart = [effects[i] > effects[lowest] for i, _ in found]
        claimed = [one.low > 0 or one.high < 0 for _, one in found]
        false += any(c and not a for c, a in zip(claimed, apart, strict=True))
        seen += sum(c and a for c, a in zip(claimed, apart, strict=True))
        there += sum(apart)
    return false / sweeps, seen / max(there, 1)


@pytest.mark.parametrize(
    ("sweeps", "conversations"),
    [(100, 60), pytest.param(1000, 60, marks=pytest.mark.slow),
     pytest.param(1000, 400, marks=pytest.mark.slow)],
)  # fmt: skip
def test_few_sweeps_of_equal_models_make_a_false_claim(sweeps: int, conversations: int) -> None:
    false, _ = shares(sweeps, conversations, np.zeros(NUM))
    assert false <= MOST_FALSE


def test_an_interval_for_one_pair_makes_them_in_most_sweeps() -> None:
    """What 04 had before: the first is chosen by looking."""
    chance, false = np.random.default_rng(7), 0
    for _ in range(30):
        models = simulated(chance, 60, np.zeros(NUM))
        models.sort(key=lambda one: np.concatenate(one).mean())
        found = [compare_models.difference(models[0], one) for one in models[1:]]
        false += any(one.low > 0 for one in found)
    assert false > 15


def test_a_model_that_is_worse_is_found() -> None:
    effects = np.array([0.0] * (NUM - 1) + [0.15])
    false, seen = shares(30, 200, effects)
    assert false <= 0.1 and seen == 1


@pytest.mark.parametrize("sweeps", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_better_model_is_found_nearly_as_often_as_by_claims_that_err(sweeps: int) -> None:
    """What families.py's table says, with room for fewer sweeps; Holm's step-down finds less."""
    equal, better = (sweep_power.shares(sweeps, d) for d in (0.0, 0.02))
    assert equal["one pair"][0] > 0.5 and equal["max-t"][0] <= 0.1
    assert better["max-t"][1] > 0.75 and better["max-t"][0] <= 0.05
    assert better["Holm"][2] <= better["max-t"][2] < better["one pair"][2]


def test_holm_stops_at_the_first_pair_that_is_not_sure() -> None:
    p = np.ones((4, 4))
    p[0, 1], p[0, 2], p[0, 3] = 0.001, 0.02, 0.009  # sorted: against 0.05 / 6, / 5, / 4
    assert sweep_power.holm(p)[0].tolist() == [False, True, False, True]
    p[0, 1] = 0.01
    assert not sweep_power.holm(p).any()


@pytest.mark.parametrize("sweeps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spread", [0.0, 0.005, 0.02])
def test_few_sweeps_of_equal_settings_make_one_over_seeds(sweeps: int, spread: float) -> None:
    """Three seeds each, in blocks: a seed may be lucky for all settings."""
    chance, false = np.random.default_rng(3), 0
    for _ in range(sweeps):
        lucky, own = chance.normal(0, 0.05, 3), chance.normal(0, spread, (NUM, 3))
        losses = 2 + lucky + own
        means = np.sort(losses.mean(1))
        false += means[-1] - means[0] > seeds.half_width(losses) + 1e-12
    assert false / sweeps <= MOST_FALSE


def test_of_two_groups_it_is_students_paired_interval() -> None:
    losses = np.array([[1.0, 2.0, 4.0], [1.5, 2.1, 4.7]])
    low, high = seeds.mean_interval([0.5, 0.1, 0.7])
    assert 2 * seeds.half_width(losses) == pytest.approx(high - low)


def test_all_pairs_are_covered_together() -> None:
    """Of models that do differ: the true differences of all pairs, in at least 94 % of cases."""
    chance, effects, held = np.random.default_rng(5), np.linspace(0, 0.2, 4), 0
    for _ in range(200):
        models = simulated(chance, 100, effects)
        covered = []
        for i, j in itertools.combinations(range(4), 2):
            others = [m for n, m in enumerate(models) if n not in (i, j)]
            first = families.above_the_first([models[i], models[j], *others])[0]
            covered.append(first.low <= effects[j] - effects[i] <= first.high)
        held += all(covered)
    assert held / 200 >= 0.94


def test_few_conversations_or_equal_models_have_no_chance_in_them() -> None:
    losses = [np.ones(3), np.ones(2)] * 10
    (same,) = families.above_the_first([losses, losses])
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    (few,) = families.above_the_first([losses[:19], losses[:19]])
    assert (few.low, few.high, few.conversations) == (None, None, 19)
    assert families.above_the_first([losses]) == []
