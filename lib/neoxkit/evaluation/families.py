"""Several models on the same conversations: intervals that hold for all differences together.

Of twelve equal models one is the lowest by chance, and an interval meant for one pair calls some
other "above the first" in most sweeps: the first was chosen by looking. These intervals hold for
all pairs at once, and so for whichever is the first: single-step max-t (Hothorn, Bretz and
Westfall, "Simultaneous Inference in General Parametric Models", Biometrical Journal 50, 2008) on
differences of ratios of sums, whose errors and correlations come from the conversations
(Cochran, Sampling Techniques, 1977, equation 6.13).

What this costs and what it finds, of 200 sweeps of twelve models on 200 conversations, eleven of
them equal and one better by d nats (`python benchmarks/sweep_power.py`): sweeps with a false claim,
and sweeps in which the better one is below another for sure. Holm's step-down over all pairs finds
less, and has no intervals.

| d | one pair | Holm | max-t |
|---|---|---|---|
| 0 | 69 % false | 1.5 % false | 3 % false |
| 0.01 | 21 % false, 72 % found | 1 %, 26 % | 1.5 %, 32 % |
| 0.02 | 0.5 % false, 98 % found | 0 %, 88 % | 0 %, 90 % |
| 0.03 | 0 % false, 100 % found | 0 %, 99 % | 0 %, 99 % |
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from neoxkit.data.selection import LEAST_HELD_OUT
from neoxkit.evaluation.compare_models import Difference, Losses
from neoxkit.models.power import CONFIDENCE, POWER, ROUNDING

DRAWS = 20_000  # of the largest t among all pairs


def above_the_first(models: Sequence[Losses]) -> list[Difference]:
    """Return how far each later model's loss is above the first's, in nats per trained token.

    `models`: for each its losses on the same conversations. With probability 95 % all intervals of
    all pairs of models hold; `detectable` is what such an interval would show. With fewer than
    LEAST_HELD_OUT conversations there are none.
    """
    if len(models) < 2:
        return []
    sums = np.array([[one.sum() for one in losses if len(one)] for losses in models]).T
    tokens = np.array([len(one) for one in models[0] if len(one)], dtype=float)
    means = sums.sum(0) / tokens.sum()
    shares = (sums - tokens[:, None] * means) / tokens.sum()  # of each conversation in the error
    sure = _sure(shares) if len(tokens) >= LEAST_HELD_OUT else None
    found = []
    for i in range(1, len(models)):
        mean, low, high, seen = float(means[i] - means[0]), None, None, None
        if sure is not None:
            half, seen = (float(one[0, i]) for one in sure)
            low, high = mean - half, mean + half
        better = int((sums[:, i] < sums[:, 0]).sum())
        found.append(Difference(mean, low, high, len(tokens), better, seen))
    return found


def _sure(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return half the width of each pair's interval, and the smallest true difference that this
    interval would show in 80 % of cases; shapes (models, models).

    `shares` has shape (conversations, models): what each conversation adds to a mean's error.
    """
    from scipy import stats

    num = len(shares)
    covariance = num / (num - 1) * shares.T @ shares
    variance = np.diag(covariance)
    errors = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0))
    largest = _largest_t(covariance, errors, num)
    return largest * errors, (largest + stats.t.ppf(POWER, num - 1)) * errors


def _largest_t(covariance: np.ndarray, errors: np.ndarray, num: int) -> float:
    """Return what the largest t among all pairs of equal models exceeds in 5 % of cases; 1 where no
    two of them differ."""
    one, other = np.array([*combinations(range(len(covariance)), 2)]).T
    differ = errors[one, other] > ROUNDING / np.sqrt(num)
    if not differ.any() or not np.isfinite(errors).all():
        return 1.0
    one, other = one[differ], other[differ]
    chance = np.random.default_rng(0)
    drawn = chance.multivariate_normal(np.zeros(len(covariance)), covariance, DRAWS, method="eigh")
    t = np.abs(drawn[:, one] - drawn[:, other]) / errors[one, other]
    student = np.sqrt(chance.chisquare(num - 1, DRAWS) / (num - 1))  # the errors are estimates
    return float(np.quantile(t.max(axis=1) / student, CONFIDENCE))
