"""How large a difference of two models the conversations at hand can show.

It depends on how differently two models change each conversation's loss, and no figure of one model
alone tells that. Measured with the built-in model, the variance of the paired difference was 9 to
800 times the base's own for a base of random weights, 0.02 to 1.6 times for a trained one that went
on with other text, and down to 0.0005 times between two seeds of that: no share is right within
20 %. So a run measures it, from its second evaluation on, beside the losses of its base at step 0.
"""

import math

import numpy as np

from neoxkit.data.selection import LEAST_HELD_OUT

CONFIDENCE = 0.95
POWER = 0.8  # how often a difference as large as `detectable` would be seen
ROUNDING = 1e-9  # nats: smaller differences between conversations are rounding errors


def detectable(gained: np.ndarray, tokens: np.ndarray) -> float:
    """Return the smallest true difference, in nats per trained token, whose 95 % interval on these
    conversations would exclude 0 in 80 % of cases.

    `gained`: tuned minus base, summed over each conversation's trained tokens; `tokens`: how many
    those are. (t(0.975) + t(0.8)) standard errors, Student's t with n - 1 degrees of freedom
    (Bloom, "Minimum Detectable Effects", Evaluation Review 19, 1995); the standard error is that of
    a ratio of sums (Cochran, Sampling Techniques, 1977, equation 6.13). It takes the spread of the
    differences as it is: of two models that differ more, or less, another one would be right.
    """
    from scipy import stats

    n = len(tokens)
    rest = gained - gained.sum() / tokens.sum() * tokens
    error = math.sqrt(n / (n - 1) * (rest**2).sum()) / tokens.sum()
    quantiles = stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], n - 1)
    return float(quantiles.sum() * error)


def detectable_of(before: np.ndarray, now: np.ndarray, tokens: np.ndarray) -> float | None:
    """Return `detectable` from two models' summed losses per conversation; those without a trained
    token don't count. None of fewer than LEAST_HELD_OUT, and where a loss is not finite.

    >>> alike = np.ones(20)
    >>> detectable_of(alike, alike * 2, alike), detectable_of(alike[1:], alike[1:], alike[1:])
    (0.0, None)
    """
    counts = tokens > 0
    gained = (now - before)[counts]
    if counts.sum() < LEAST_HELD_OUT or not np.isfinite(gained).all():
        return None
    return detectable(gained, tokens[counts])


def needed(mean: float, seen: float, num: int) -> int | None:
    """Return how many conversations like these would show a difference of `mean` nats in 80 % of
    cases, if `num` of them show one of `seen` nats (`detectable`); None for no difference at all.

    What can be shown shrinks with the root of their number.

    >>> needed(0.01, 0.02, 100), needed(-0.01, 0.02, 100), needed(0.0, 0.02, 100)
    (400, 400, None)
    """
    if abs(mean) <= ROUNDING or not math.isfinite(seen):
        return None
    return math.ceil(round(num * (seen / mean) ** 2, 6))


def about(num: int) -> str:
    """Return a number of conversations in two digits: it is an estimate.

    >>> about(1883), about(97), about(20_000_000)
    ('about 1,900', 'about 97', 'more than a million')
    """
    if num > 1_000_000:
        return "more than a million"
    digits = max(len(str(num)) - 2, 0)
    return f"about {round(num, -digits):,}"
