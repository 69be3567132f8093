"""Check from its events whether a run learns: warn of a loss that is too high or rises."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from neoxkit.runs.events import History

FEW = 3  # logs in a row, of which the median counts
# Random weights begin near a uniform guess. From a third of the run on the loss may be at most
# LEARNING times that, at the end at most LEARNT times. A loss of BROKEN times that, or times the
# first loss if higher, is reported whenever it occurred.
LEARNT, LEARNING, BROKEN = 0.99, 1.1, 1.5
FEWEST = 4  # logs in a third of the run, and before it, needed to detect a rise
RISE = 0.1  # of the train loss: less does not count as a rise, however certain
EVAL_RISE = 0.05  # the same for the eval loss, if the last two are above the best
CLEAR_EVAL_RISE = 0.1  # the same if only the last one is
# A rise must also be this many standard errors. With this and the values above no good run raises
# an alarm at any time: none of 1,500 simulated ones (pytest tests/runs/test_health.py; of 12,000
# with more seeds, 2 at 5 errors) and none of 50 real ones (the same with -m slow). Of simulated
# runs that rise by 60 % or more, 95 % are reported.
ERRORS = 6.0


def warnings(history: History) -> list[str]:
    """Return what is wrong with a run, with the step and what to change; [] for a good one.

    A loss that broke is reported once: its consequences are not reported as well.
    """
    start = history.start
    if not start:
        return []
    train, evals = (  # the evaluation at step 0 says how good the base is
        [e for e in of if e.get("loss") is not None and e["step"]]
        for of in (history.train, history.evals)
    )
    found = (
        _no_better_than_a_guess(start, train, evals)
        or _train_loss_rises(start, train)
        or _eval_loss_rises(history, evals)
    )
    return [found] if found else []


def _no_better_than_a_guess(
    start: Mapping[str, Any], train: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]
) -> str:
    """Report a loss that is no better than a uniform guess among all tokens, or once was far worse:
    the train loss, or the eval loss if too few train losses were logged."""
    vocabulary = start.get("vocabulary")
    kind, seen = ("train", train) if len(train) >= FEW else ("eval", evals)
    if not seen or not vocabulary:
        return ""
    guess, first = math.log(vocabulary), (train or evals)[0]["loss"]
    at = _middles([e["loss"] for e in seen], FEW if kind == "train" else 1)
    broken = BROKEN * max(guess, first)
    told = seen[at[-1]]
    if told["loss"] <= _limit(guess, seen[-1]["step"] / start["planned_steps"], broken):
        told = max((seen[i] for i in at), key=lambda e: e["loss"])
        if told["loss"] <= broken:
            return ""
    what = (
        f"the {kind} loss was {told['loss']:.4g} at step {told['step']:,}, where a uniform guess "
        f"among {vocabulary:,} tokens has {guess:.4g}"
    )
    if told["loss"] > LEARNING * guess:
        return f"{what} -- {_calmer(start, train)}"
    return f"{what}; it began at {first:.4g} -- {_stronger(train)}"


def _limit(guess: float, done: float, broken: float) -> float:
    """Return how high the loss may be when the share `done` of the run is done."""
    if done >= 1:
        return LEARNT * guess
    return LEARNING * guess if done >= 1 / 3 else broken


def _middles(losses: Sequence[float], size: int) -> np.ndarray:
    """Return the index of the median of each `size` losses in a row, so that a spike is ignored.

    >>> _middles([5.0, 90.0, 4.0, 3.0], 3)
    array([0, 2])
    """
    rows = sliding_window_view(np.array(losses), size)
    return np.arange(len(rows)) + rows.argsort(axis=1)[:, size // 2]


def _train_loss_rises(start: Mapping[str, Any], train: Sequence[Mapping[str, Any]]) -> str:
    """Report a train loss that has not come back to its lowest for a third of the run.

    Compare medians over equally many logs: the lowest before the last third against those of the
    whole last third and of its end.
    """
    since = train[-1]["step"] - start["planned_steps"] / 3 if train else 0
    losses = np.array([e["loss"] for e in train])
    num = sum(e["step"] > since for e in train)
    size = max(num // 3, 3)
    if num < FEWEST or len(losses) - num < max(FEWEST, size):
        return ""
    stride = size // 3  # with many logs, not every window is needed
    before = np.median(sliding_window_view(losses[:-num], size)[::stride], axis=1)
    best, at = float(before.min()), int(before.argmin()) * stride
    end, third = float(np.median(losses[-size:])), float(np.median(losses[-num:]))
    scatter = max(_scatter(losses), _off_a_line(losses[-num:]))
    least = max(best * RISE, ERRORS * scatter * math.sqrt(2 / size))
    if min(end, third) - best <= least:
        return ""
    was, now = train[at + size - 1]["step"], train[-1]["step"]
    return (
        f"the train loss rose from {best:.4g} at step {was:,} to {end:.4g} at step {now:,}: it did "
        f"not come back for a third of the run -- {_calmer(start, train)}"
    )


def _eval_loss_rises(history: History, evals: Sequence[Mapping[str, Any]]) -> str:
    """Report an eval loss that rose from its best: the model now memorises the train side."""
    if not evals or history.start.get("exports_best"):
        return ""  # the best is exported
    losses = np.array([e["loss"] for e in evals])
    at = int(losses.argmin())
    best, last = evals[at], evals[-1]
    after = losses[at + 1 :]
    least = max(EVAL_RISE * best["loss"], ERRORS * _scatter(after))
    is_sure = len(after) > 1 and after[-2:].min() - best["loss"] > least
    is_clear = last["loss"] > (1 + CLEAR_EVAL_RISE) * best["loss"]
    if not (is_sure or is_clear):
        return ""
    return (
        f"the eval loss rose from its best, {best['loss']:.4g} at step {best['step']:,}, to "
        f"{last['loss']:.4g} at step {last['step']:,} -- {_shorter(history, best, last)}"
    )


def _scatter(losses: np.ndarray) -> float:
    """Return the standard deviation of a curve's noise, from its second differences: a straight
    rise or fall has none. 0 for fewer than three values."""
    second = np.diff(losses, 2)
    return float(np.median(np.abs(second))) / 0.6745 / math.sqrt(6) if len(second) else 0.0


def _off_a_line(losses: np.ndarray) -> float:
    """Return the standard deviation from the best straight line; correlated noise counts in full.
    For three values or more."""
    at = np.arange(len(losses))
    rest = losses - np.polyval(np.polyfit(at, losses, 1), at)
    return float(np.sqrt((rest**2).sum() / (len(losses) - 2)))


def _calmer(start: Mapping[str, Any], train: Sequence[Mapping[str, Any]]) -> str:
    """Say what to change after a loss broke."""
    clip = ", and set max_grad_norm to 1 (it is 0)" if start.get("max_grad_norm") == 0 else ""
    peak = _peak(train)
    if not peak:
        return f"lower learning_rate{clip}"
    lower = min(peak / 10, start.get("fitting_rate") or peak)
    return f"lower learning_rate to {lower:.2g} (its peak is {peak:.2g}){clip}"


def _stronger(train: Sequence[Mapping[str, Any]]) -> str:
    """Say what to change if a loss never came down."""
    peak = _peak(train)
    rate = f"raise learning_rate (its peak is {peak:.2g})" if peak else "raise learning_rate"
    return f"{rate}, or train more steps"


def _peak(train: Sequence[Mapping[str, Any]]) -> float:
    return max((e.get("learning_rate") or 0.0 for e in train), default=0.0)


def _shorter(history: History, best: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Say where to end a training whose eval loss rises, and name the nearest checkpoint."""
    said = f"train less: set max_steps to {best['step']}"
    if best.get("epoch"):
        said += f" (epoch {best['epoch']:.3g})"
    steps = [e["step"] for e in history.of("checkpoint") if e["step"] < last["step"]]
    if not steps:
        return said
    nearest = min(steps, key=lambda step: abs(step - best["step"]))
    return f"{said}; checkpoint-{nearest} is the nearest to it, if save_total_limit kept it"
