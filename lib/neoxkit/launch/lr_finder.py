"""The learning-rate finder: a range test (Smith 2017, arXiv:1506.01186) with a rising rate.

It is a separate training under the same DeepSpeed configuration, from the same weights, in
runs/<run>.range-test; it leaves the run itself untouched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neoxkit import files, paths
from neoxkit.launch import trials
from neoxkit.parallel import Progress
from neoxkit.runs.events import History, smoothed
from neoxkit.runs.folder import FINISHED
from neoxkit.settings import TrainSettings

LOWEST, HIGHEST = 1e-7, 1.0
FEWEST = 20  # steps that make a readable curve
BELOW = 10  # the suggestion is this many times below the end of the descent
CHECKED = (1 / 3, 1, 3)  # times the suggestion: the rates of the short runs
CHECK_STEPS = 20
LEAST_DESCENT = 0.005  # share of the initial loss
NOISE = 4  # standard deviations that a rise or a fall must exceed: there are many points


@dataclass(frozen=True)
class Found:
    """The result of a range test: the losses by rate, where they diverge, a suggestion.

    `divergence` is None if the loss never rose again, `suggestion` if it never clearly fell; `says`
    puts it all into words.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    divergence: float | None
    suggestion: float | None
    says: str


def analyse(rates: Sequence[float], losses: Sequence[float], not_finite: bool = False) -> Found:
    """Read a curve; `not_finite`: the step after the last had a loss or gradient that was not.

    The loss diverges where its average, after the minimum, exceeds the minimum by a tenth of the
    descent and by four times the noise. The suggestion is a tenth of the rate of the lowest loss,
    and at most a tenth of the rate where it diverges.
    """
    x, y = np.asarray(rates), np.asarray(losses)
    if len(y) < FEWEST:
        said = f"only {len(y)} steps before the loss was not finite: start lower"
        return Found(x, y, y, x[-1] if len(x) else None, None, said)
    smooth = smoothed(losses)
    noise = float(np.std(np.diff(y)[: len(y) // 2])) / np.sqrt(2)
    begun = max(len(y) // 20, 3)  # before that the average has few losses and is noisy
    lowest = begun + int(np.argmin(smooth[begun:]))
    start = float(np.mean(y[: 2 * begun]))
    descent = start - smooth[lowest]
    after = np.flatnonzero(smooth[lowest:] > smooth[lowest] + max(descent / 10, NOISE * noise))
    divergence = float(x[lowest + after[0]]) if len(after) else None
    if divergence is None and not_finite:
        divergence = float(x[-1])
    ends = (
        f"it diverges at {divergence:.1e}"
        if divergence
        else f"it does not diverge up to {x[-1]:.1e}"
    )
    if descent < max(NOISE * noise, LEAST_DESCENT * start):
        said = f"the loss never falls by more than its noise; {ends}. The curve suggests nothing"
        return Found(x, y, smooth, divergence, None, said)
    suggestion = min(float(x[lowest]), divergence or np.inf) / BELOW
    suggestion = float(f"{suggestion:.0e}")
    said = f"the loss is lowest at {x[lowest]:.1e}; {ends}. A rate well below: {suggestion:.0e}"
    return Found(x, y, smooth, divergence, suggestion, said)


def find(settings: TrainSettings, show: Callable[[str], Progress]) -> Found | None:
    """Run the range test of a training; return None if `range_test_steps` is 0.

    A finished one with the same settings is read, not run again.
    """
    if not settings.range_test_steps:
        return None
    test = trials.trial_settings(
        settings, "range-test", settings.range_test_steps, learning_rate=HIGHEST
    )
    finite = trials.train(test, show("range test, steps"), lr_range_from=LOWEST)
    train = History.of_run(paths.run(test.run)).train
    return analyse([e["learning_rate"] for e in train], [e["loss"] for e in train], not finite)


def try_suggestion(
    settings: TrainSettings, found: Found | None, show: Callable[[str], Progress]
) -> list[tuple[str, str]]:
    """Make three short runs at constant rates: a third of the suggestion, the suggestion, and three
    times it. Return each rate and the eval loss it reaches, in words; nothing without a suggestion.
    """
    if not found or not found.suggestion:
        return []
    rows = []
    for share in CHECKED:
        rate = float(f"{share * found.suggestion:.1e}")
        name = f"range-check-{rate:.1e}"
        constant = {"lr_scheduler_type": "constant", "warmup_steps": 0.0}
        test = trials.trial_settings(settings, name, CHECK_STEPS, learning_rate=rate, **constant)
        finite = trials.train(test, show(f"learning rate {rate:.1e}, steps"))
        facts = files.read_json(paths.run(test.run) / FINISHED) if finite else {}
        loss = facts.get("eval_loss")
        said = "not finite" if not finite else "" if loss is None else f"{loss:.4f}"
        rows.append((f"{rate:.1e}", said))
    return rows
