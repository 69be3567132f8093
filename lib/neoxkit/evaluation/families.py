"""Several models on the same conversations: intervals that hold for all differences together.

Of twelve equal models one is the lowest by chance, and an interval meant for one pair calls some
other "above the first" in most sweeps: the first was chosen by looking. These intervals hold for
all pairs at once, and so for whichever is the first: single-step max-t (Hothorn, Bretz and
Westfall, "Simultaneous Inference in General Parametric Models", Biometrical Journal 50, 2008) on
differences of ratios of sums, whose errors and correlations come from the conversations
(Cochran, Sampling Techniques, 1977, equation 6.13).
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from neoxkit.data.selection import LEAST_HELD_OUT
from neoxkit.evaluation.compare_models import CONFIDENCE, ROUNDING, Difference, Losses

DRAWS = 20_000  # of the largest t among all pairs


def above_the_first(models: Sequence[Losses]) -> list[Difference]:
    """Return how far each later model's loss is above the first's, in nats per trained token.

    `models`: for each its losses on the same conversations. With probability 95 % all intervals of
    all pairs of models hold. With fewer than LEAST_HELD_OUT conversations there are none.
    """
    if len(models) < 2:
        return []
    sums = np.array([[one.sum() for one in losses if len(one)] for losses in models]).T
    tokens = np.array([len(one) for one in models[0] if len(one)], dtype=float)
    means = sums.sum(0) / tokens.sum()
    shares = (sums - tokens[:, None] * means) / tokens.sum()  # of each conversation in the error
    half = _half_widths(shares) if len(tokens) >= LEAST_HELD_OUT else None
    found = []
    for i in range(1, len(models)):
        mean, low, high = float(means[i] - means[0]), None, None
        if half is not None:
            low, high = mean - float(half[0, i]), mean + float(half[0, i])
        better = int((sums[:, i] < sums[:, 0]).sum())
        found.append(Difference(mean, low, high, len(tokens), better, None))
    return found


def _half_widths(shares: np.ndarray) -> np.ndarray:
    """Return half the width of each pair's interval; shape (models, models).

    `shares` has shape (conversations, models): what each conversation adds to a mean's error.
    """
    num = len(shares)
    covariance = num / (num - 1) * shares.T @ shares
    variance = np.diag(covariance)
    errors = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0))
    one, other = np.array([*combinations(range(len(covariance)), 2)]).T
    differ = errors[one, other] > ROUNDING / np.sqrt(num)
    if not differ.any() or not np.isfinite(errors).all():
        return errors
    one, other = one[differ], other[differ]
    chance = np.random.default_rng(0)
    drawn = chance.multivariate_normal(np.zeros(len(covariance)), covariance, DRAWS, method="eigh")
    t = np.abs(drawn[:, one] - drawn[:, other]) / errors[one, other]
    student = np.sqrt(chance.chisquare(num - 1, DRAWS) / (num - 1))  # the errors are estimates
    return np.quantile(t.max(axis=1) / student, CONFIDENCE) * errors
