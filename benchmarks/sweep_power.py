"""How often 04_compare would name a better model of a sweep, beside how often it errs.

Twelve models, eleven of them equal and one better by some nats, on 200 simulated conversations;
the lowest loss is the first, chosen by looking. Three ways to call the others above it: an interval
for one pair (not adjusted), Holm's step-down over all 66 pairs (Scandinavian Journal of Statistics
6, 1979), and 04's own (evaluation/families.py).
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy import stats

from neoxkit.evaluation import families

MODELS, CONVERSATIONS = 12, 200
BETTER = (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)  # nats
WAYS = ("one pair", "Holm", "max-t")


def simulated(chance: np.random.Generator, better: float) -> list[list[np.ndarray]]:
    """Make the models' losses, the lowest first; the better one's index is 0 before that.

    Each model differs from the others in each conversation by chance, more in hard ones.
    """
    tokens = chance.integers(5, 60, CONVERSATIONS)
    hard = chance.gamma(4, 0.5, CONVERSATIONS)
    own = chance.standard_t(5, (MODELS, CONVERSATIONS)) * 0.02 * hard
    own[0] -= better
    return [[np.full(n, v) for n, v in zip(tokens, of + hard, strict=True)] for of in own]


def p_values(models: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return the p of each pair's paired difference of ratios (t); shape (models, models)."""
    sums = np.array([[one.sum() for one in losses] for losses in models])
    tokens = np.array([len(one) for one in models[0]])
    means = sums.sum(1) / tokens.sum()
    rest = (sums - means[:, None] * tokens) / tokens.sum()
    num = len(tokens)
    errors = np.sqrt(num / (num - 1) * ((rest[:, None] - rest[None]) ** 2).sum(-1))
    t = np.abs(means[:, None] - means) / np.where(errors > 0, errors, np.inf)
    found: np.ndarray = 2 * stats.t.sf(t, num - 1)
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """Return which pairs are claimed at 5 % over all of them; shape (models, models)."""
    one, other = np.triu_indices(len(p), 1)
    order = np.argsort(p[one, other])
    passed = p[one, other][order] <= 0.05 / np.arange(len(order), 0, -1)
    count = len(order) if passed.all() else int(np.argmin(passed))
    claimed = np.zeros(p.shape, bool)
    claimed[one[order[:count]], other[order[:count]]] = True
    return claimed | claimed.T


def shares(sweeps: int, better: float, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return for each way the share of sweeps with a false claim, of sweeps in which the better
    model is below at least one other for sure, and of its eleven differences that are sure."""
    chance = np.random.default_rng(seed)
    counts = {way: np.zeros(3) for way in WAYS}
    for _ in range(sweeps):
        models = simulated(chance, better)
        means = [np.concatenate(one).mean() for one in models]
        order = np.argsort(means)
        ranked = [models[i] for i in order]
        p = p_values(ranked)
        above = families.above_the_first(ranked)
        claimed = {
            "one pair": p[0, 1:] <= 0.05,
            "Holm": holm(p)[0, 1:],
            "max-t": np.array([one.low is not None and one.low > 0 for one in above]),
        }
        is_true = better > 0 and order[0] == 0
        for way, of in claimed.items():
            any_ = bool(of.any())
            counts[way] += np.array([any_ and not is_true, any_ and is_true, of.mean() * is_true])
    return {way: tuple(of / sweeps) for way, of in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200)
    options = parser.parse_args()
    print("| better by (nats) | way | false claim | below another for sure | of its differences |")
    print("|---|---|---|---|---|")
    for better in BETTER:
        for way, (false, found, sure) in shares(options.sweeps, better).items():
            print(f"| {better:g} | {way} | {false:.1%} | {found:.0%} | {sure:.0%} |")


if __name__ == "__main__":
    main()
