"""Runs that differ only in their seed: the mean of their eval losses, and how sure it is."""

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

    def above(self, other: "Group") -> tuple[float, float] | None:
        """Return the 95 % interval of the difference to another group's mean, paired by seed; None
        if their seeds differ."""
        one, two = self.by_seed, other.by_seed
        if one.keys() != two.keys():
            return None
        return mean_interval([one[seed] - two[seed] for seed in one])


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
            "above_the_first": group.above(groups[0]) if group.side == groups[0].side else None,
        }
        for group in groups
    ]
