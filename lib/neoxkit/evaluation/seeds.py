"""Runs that differ only in their seed: the mean of their eval losses, and how sure it is."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from neoxkit.evaluation.compare_runs import (
    AT_LAST_START,
    Run,
    differing,
    equal_tokens,
    eval_loss_at,
)
from neoxkit.settings import TrainSettings


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed: their eval losses at equal tokens, by seed.

    `differs`: what tells this group from the others. `side`: the dataset, and the trained tokens of
    its held-out set.
    """

    differs: dict[str, Any]
    side: tuple[Any, int]
    losses: dict[int, list[float]]

    @property
    def by_seed(self) -> dict[int, float]:
        """Return the loss of each seed: the mean, if it was trained more than once."""
        return {seed: float(np.mean(losses)) for seed, losses in sorted(self.losses.items())}

    @property
    def mean(self) -> float:
        return float(np.mean([*self.by_seed.values()]))

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean."""
        return mean_interval([*self.by_seed.values()])


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a mean (Student's t); None for fewer than two values.

    >>> [round(bound, 3) for bound in mean_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    if len(values) < 2:
        return None
    from scipy import stats

    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    return float(mean - half), float(mean + half)


def half_width(losses: np.ndarray) -> float:
    """Return half the width of the 95 % intervals that hold together for the differences of all
    pairs of means: Tukey's, with seeds as blocks.

    `losses` has shape (groups, seeds). All groups' losses are taken to vary as much over the seeds.
    Of two groups it is Student's paired interval.
    """
    groups, seeds = losses.shape
    rest = losses - losses.mean(0) - losses.mean(1, keepdims=True) + losses.mean()
    freedom = (groups - 1) * (seeds - 1)
    error = np.sqrt((rest**2).sum() / freedom / seeds)
    return float(_largest_range(groups, freedom) * error)


@functools.cache
def _largest_range(groups: int, freedom: int) -> float:
    """Return the studentized range of equal groups that is exceeded in 5 % of cases."""
    from scipy import stats

    return float(stats.studentized_range.ppf(0.95, groups, freedom))


def above_the_first(groups: Sequence[Group]) -> list[tuple[float, float] | None]:
    """Return the interval of each group's difference to the first's mean (`half_width`); None for
    one with another held-out set or other seeds, and where there is one seed alone."""
    first = groups[0].by_seed.keys()
    alike = [one.side == groups[0].side and one.by_seed.keys() == first for one in groups]
    if sum(alike) < 2 or len(first) < 2:
        return [None] * len(groups)
    compared = [[*one.by_seed.values()] for one, is_alike in zip(groups, alike, strict=True)
                if is_alike]  # fmt: skip
    half = half_width(np.array(compared))
    return [
        (mean - half, mean + half) if is_alike else None
        for mean, is_alike in zip((g.mean - groups[0].mean for g in groups), alike, strict=True)
    ]


def over_seeds(chosen: Sequence[Run]) -> list[Group]:
    """Group the finished runs that differ only in their seed, the lowest mean first.

    Empty if no two of them do. Other code or another machine does not split a group
    (compare_runs.notes mentions it); nor do the random weights of a base from scratch, which depend
    on the seed.
    """
    equal = equal_tokens(chosen)
    losses = {
        run.folder: loss
        for run in chosen
        if run.state == "finished" and (loss := eval_loss_at(run, equal)) is not None
    }
    finished = [run for run in chosen if run.folder in losses]
    values = {k: v for k, v in differing(finished).items() if k not in ("seed", *AT_LAST_START)}
    groups: list[Group] = []
    for i, run in enumerate(finished):
        what = {name: of[i] for name, of in values.items()}
        if run.settings.get("from_scratch"):
            what.pop("base_sha256", None)
        group = next((one for one in groups if one.differs == what), None)
        if group is None:
            side = (run.made_of["dataset_sha256"], run.evals[-1]["trained_tokens"])
            groups.append(group := Group(what, side, {}))
        seed = int(run.settings.get("seed", TrainSettings.seed))
        group.losses.setdefault(seed, []).append(losses[run.folder])
    several = any(len(group.losses) > 1 for group in groups)
    return sorted(groups, key=lambda group: group.mean) if several else []


def means(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the groups as plain figures, with their means and intervals, and the interval of the
    difference to the first mean (None on another held-out set)."""
    groups = over_seeds(chosen)
    return [
        {
            **asdict(group),
            "mean": group.mean,
            "interval": group.interval(),
            "above_the_first": above,
        }
        for group, above in zip(groups, above_the_first(groups) if groups else [], strict=True)
    ]
