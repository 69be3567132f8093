"""health.py: no alarm on a good run at any moment; one sentence for each that breaks."""

import itertools
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from conftest import command, metrics, tokenize
from zygote import Zygote, job

from neoxkit import paths
from neoxkit.cli import main as cli
from neoxkit.cli import report
from neoxkit.evaluation import compare_runs
from neoxkit.lab import view
from neoxkit.runs import card as run_card
from neoxkit.runs import health
from neoxkit.runs.events import History
from neoxkit.runs.folder import LOG, finished_facts
from neoxkit.settings import TrainSettings

MOMENTS = 20  # at which a run is checked; the last one is its end
Events = list[dict[str, Any]]


def events(
    losses: Any, evals: Any = (), steps: int = 0, vocabulary: int = 1024, **start: Any
) -> Events:
    """Make a run that logged these losses and evaluations, evenly over its steps."""
    steps = steps or 10 * len(losses)
    made = [
        {"event": kind, "loss": loss, "step": round(steps * (i + 1) / len(of)), "epoch": 1.0}
        for kind, of in (("train", losses), ("eval", evals))
        for i, loss in enumerate(of)
    ]
    for event in made:
        if event["event"] == "train":
            event["learning_rate"] = 1e-3
    made.sort(key=lambda e: e["step"])
    begin = {"event": "start", "step": 0, "resumed_step": 0, "planned_steps": steps}
    return [{**begin, "vocabulary": vocabulary, "max_grad_norm": 1.0, **start}, *made]


def warnings(made: Events) -> list[str]:
    return health.warnings(History(made))


def moments(made: Events) -> list[Events]:
    """Return the run as it was at several moments."""
    at = np.unique(np.linspace(1, len(made), MOMENTS).astype(int))
    return [made[:end] for end in at]


# --- good runs ---


def noisy(chance: np.random.Generator, curve: np.ndarray) -> np.ndarray:
    """Add the noise of a log's batches: at most a quarter of the loss, or half a nat; even or with
    long tails, independent or slightly correlated, and sometimes with a spike."""
    num, spread, memory = len(curve), chance.uniform(0, 0.25), chance.uniform(0, 0.3)
    drawn = chance.standard_t(4, num) if chance.random() < 0.3 else chance.normal(0, 1, num)
    for i in range(1, num):
        drawn[i] = memory * drawn[i - 1] + math.sqrt(1 - memory**2) * drawn[i]
    losses = np.maximum(curve + spread * np.minimum(curve, 2) * drawn, 0.1 * curve)
    if chance.random() < 0.2:
        losses[chance.integers(num)] *= chance.uniform(1.5, 4)
    return losses


def good_curve(chance: np.random.Generator) -> Events:
    """Simulate a run that learns, or has nothing left to learn: the loss falls, by epochs or at
    once, to a level that it keeps, after a warm-up that sometimes has a small bump."""
    num, num_evals = int(chance.integers(2, 200)), int(chance.integers(0, 21))
    vocabulary = int(chance.choice([1024, 50277, 50304]))
    from_scratch = chance.random() < 0.5
    first = (
        math.log(vocabulary) * chance.uniform(1, 1.03) if from_scratch else chance.uniform(0.5, 4)
    )
    last = first * (chance.uniform(0.03, 0.7) if from_scratch else chance.uniform(0.1, 1))
    done = np.linspace(0, 1, 1001)
    warm_up = chance.uniform(0, 0.1)
    fall = 1 - np.exp(-np.maximum(done - warm_up, 0) * chance.uniform(6, 30))
    curve = first + (last - first) * fall
    if num_epochs := int(chance.integers(0, 5)):  # it falls where an epoch begins
        curve *= 1 - 0.05 * np.floor(done * num_epochs) / num_epochs
    if not from_scratch and chance.random() < 0.3:
        curve *= 1 + 0.04 * np.exp(-(((done - 0.05) / 0.05) ** 2))
    at = np.linspace(0, 1000, num + 1).astype(int)
    losses = [curve[a : b + 1].mean() for a, b in itertools.pairwise(at)]
    evals = curve[np.linspace(0, 1000, num_evals + 1).astype(int)[1:]]
    wiggle = np.exp(chance.normal(0, chance.uniform(0, 0.007), num_evals))
    steps = num * int(chance.choice([1, 2, 5, 10]))
    return events(noisy(chance, np.array(losses)), evals * wiggle, steps, vocabulary)


def alarms(made: Events) -> list[str]:
    return [said for then in moments(made) for said in warnings(then)]


def test_no_good_curve_raises_an_alarm_at_any_moment() -> None:
    """Simulate 1,500 runs, each at 20 moments."""
    chance = np.random.default_rng(0)
    assert [said for _ in range(1500) for said in alarms(good_curve(chance))] == []


def good_settings(number: int) -> TrainSettings:
    """List fifty ways to train `tiny`, the last fifteen from a model that was tuned before."""
    chance = random.Random(number)
    layout = chance.choice(["packed", "packed", "padded"])
    dataset = chance.choice(["small", "medium"])
    steps = chance.choice([20, 30, 40, 60, 90])
    is_tuned = number >= 35
    rates = [1e-5, 5e-5, 2.5e-4] if is_tuned else [5e-4, 1e-3, 2e-3, 4e-3]
    return TrainSettings(
        run=f"good-{number}",
        dataset=dataset,
        seed=number,
        model_name_or_path="runs/good-base/model" if is_tuned else "",
        learning_rate=chance.choice(rates),
        layout=layout,
        per_device_train_batch_size=chance.choice([4, 8, 16] if layout == "packed" else [4, 8]),
        warmup_steps=chance.choice([0, 0.05, 0.1, 10]),
        max_steps=steps if dataset == "small" else min(steps, 40),
        logging_steps=chance.choice([1, 2, 5, 10, 0.05]),
        eval_steps=chance.choice([0.1, 0.25]),
        lr_scheduler_type=chance.choice(["cosine", "linear", "constant", "constant_with_warmup"]),
        block_size=chance.choice([0, 0, 64]),
        max_grad_norm=chance.choice([1.0, 1.0, 0.0]),
        save_steps=1000,
        num_replies=0,
    )


def trained(zygote: Zygote, settings: TrainSettings) -> Path:
    folder = paths.run(settings.run)
    assert zygote.run(job(settings)) == [0], (folder / LOG).read_text()[-2000:]
    return folder


@pytest.fixture(scope="module")
def good_base(session_home: Path, zygote: Zygote) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        tokenize("sample.txt", "medium", eval_share=0.01)
        base = TrainSettings(
            run="good-base", dataset="medium", max_steps=150, save_steps=1000, num_replies=0
        )
        trained(zygote, base)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50))
def test_no_real_good_run_raises_an_alarm_at_any_moment(
    home: Path, zygote: Zygote, good_base: None, number: int
) -> None:
    """A run is good if its last eval loss is not above its first."""
    made = metrics(trained(zygote, good_settings(number)))
    losses = [e["loss"] for e in made if e["event"] == "eval"]
    assert losses[-1] < 1.01 * losses[0]
    every = [said for end in range(1, len(made) + 1) for said in warnings(made[:end])]
    assert every == []


# --- runs that break, or learn nothing ---


def broken_curve(chance: np.random.Generator) -> Events:
    """Simulate a fine-tuning whose loss falls and, in the middle, rises by 60 % to 400 %: slowly
    until the end, at once, or within a tenth of the run."""
    num = int(chance.integers(18, 200))
    done = np.linspace(0, 1, num)
    curve = chance.uniform(0.8, 3) * (0.6 + 0.4 * np.exp(-8 * done))
    since, times = chance.uniform(0.15, 0.6), chance.uniform(1.6, 5)
    length = [1 - since, 1e-9, 0.1][chance.integers(3)]
    curve *= 1 + (times - 1) * np.clip((done - since) / length, 0, 1)
    return events(np.maximum(curve * (1 + 0.1 * chance.normal(0, 1, num)), 0.05), vocabulary=50304)


def test_curves_that_rise_are_reported() -> None:
    chance = np.random.default_rng(1)
    told = [warnings(broken_curve(chance)) for _ in range(500)]
    assert sum(map(bool, told)) >= 0.93 * 500


RISES = [2.0, 1.8, 1.6, 1.4, 1.2, 1.1, 1.0, 1.0, 1.2, 1.4, 1.6, 1.8]


def test_a_train_loss_that_rises_for_the_last_third_is_reported_with_the_steps() -> None:
    assert warnings(events(RISES, vocabulary=50304)) == [
        "the train loss rose from 1 at step 80 to 1.6 at step 120: it did not come back for a "
        "third of the run -- lower learning_rate to 0.0001 (its peak is 0.001)"
    ]
    assert warnings(events(RISES[:8], vocabulary=50304)) == []
    assert warnings(events([*RISES, 1.6, 1.2, 1.0], vocabulary=50304)) == []


def test_a_rise_within_the_noise_is_not_reported() -> None:
    chance = np.random.default_rng(2)
    noise = chance.normal(0, 0.5, 60)
    assert warnings(events([3 + 0.005 * i + noise[i] for i in range(60)])) == []


@pytest.mark.parametrize(("rise", "is_told"), [(0.08, False), (0.15, True)])
def test_a_rise_of_less_than_a_tenth_is_not_reported_however_certain(
    rise: float, is_told: bool
) -> None:
    made = events([2.0] * 20 + [2.0 * (1 + rise)] * 20, vocabulary=50304)
    assert bool(warnings(made)) == is_told


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            [20, 165, 250, 310, 340, 320, 175, 170, 150, 130, 110, 100.7],
            "the train loss was 110 at step 110, where a uniform guess among 1,024 tokens has "
            "6.931 -- lower learning_rate to 0.0001 (its peak is 0.001)",
        ),
        (
            [6.9, 30, 33, 31, 9, 6, 5, 4.8, 4.7, 4.6, 4.5, 4.5],  # it learns again
            "the train loss was 31 at step 40, where a uniform guess among 1,024 tokens has 6.931 "
            "-- lower learning_rate to 0.0001 (its peak is 0.001)",
        ),
        (
            [6.93] * 12,
            "the train loss was 6.93 at step 110, where a uniform guess among 1,024 tokens has "
            "6.931; it began at 6.93 -- raise learning_rate (its peak is 0.001), or train more "
            "steps",
        ),
    ],
)
def test_a_loss_no_better_than_a_uniform_guess_is_reported(losses: list[float], said: str) -> None:
    assert warnings(events(losses)) == [said]
    without = [{k: v for k, v in e.items() if k != "vocabulary"} for e in events(losses)]
    assert not any("uniform" in line for line in warnings(without))


def test_random_weights_begin_near_a_uniform_guess_without_an_alarm() -> None:
    losses = [7.1, 7.0, 6.95, 6.9, 6.6, 6, 5.5, 5, 4.8, 4.6, 4.5, 4.5]
    assert alarms(events(losses)) == []


def test_a_single_spike_is_not_reported() -> None:
    losses = [6.9, 90, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 60, 1.9, 1.8, 1.7]
    assert alarms(events(losses)) == []


def test_with_few_logs_the_eval_loss_is_used() -> None:
    """Ten steps at a rate of 1 log only two losses."""
    made = events([30.0, 90.0], [70.0, 110.0], steps=10, max_grad_norm=0)
    assert warnings(made) == [
        "the eval loss was 110 at step 10, where a uniform guess among 1,024 tokens has 6.931 -- "
        "lower learning_rate to 0.0001 (its peak is 0.001), and set max_grad_norm to 1 (it is 0)"
    ]


def test_the_remedy_names_the_rate_that_fits_the_base_if_it_is_lower() -> None:
    for fits, said in ((3e-5, "3e-05"), (2e-3, "0.0001"), (None, "0.0001")):
        (warning,) = warnings(events([30.0, 90.0], [70.0], steps=10, fitting_rate=fits))
        assert f"lower learning_rate to {said} (its peak is 0.001)" in warning


FALLS = [3.0 - 0.2 * i for i in range(12)]


def test_an_eval_loss_that_rises_from_its_best_is_reported_with_both_steps() -> None:
    made = events(FALLS, [2.5, 2.2, 2.0, 2.15, 2.3, 2.5])
    made += [{"event": "checkpoint", "step": step} for step in (30, 60, 90, 120)]
    assert warnings(made) == [
        "the eval loss rose from its best, 2 at step 60, to 2.5 at step 120 -- train less: set "
        "max_steps to 60 (epoch 1); checkpoint-60 is the nearest to it, if save_total_limit kept it"
    ]
    assert "checkpoint" not in warnings(made[:-4])[0]


@pytest.mark.parametrize(
    ("evals", "is_told"),
    [
        ([2.5, 2.2, 2.0, 2.15], False),  # one evaluation after the best, 7 % above
        ([2.5, 2.2, 2.0, 2.25], True),  # 12 %
        ([2.5, 2.2, 2.0, 2.15, 2.15], True),  # two
        ([2.5, 2.2, 2.0, 2.15, 2.05], False),  # it comes back
        ([2.0, 2.02, 2.04, 2.06, 2.08], False),  # 4 %
        ([2.5, 2.2, 2.0, 2.15, 2.05, 2.18, 2.04, 2.19, 2.12], False),  # it wavers
    ],
)
def test_how_far_an_eval_loss_must_rise(evals: list[float], is_told: bool) -> None:
    assert bool(warnings(events(FALLS, evals))) == is_told


def test_the_evaluation_of_the_base_is_not_judged() -> None:
    """A base may be better on the held-out set, or worse than a guess: it was not trained here."""
    for loss in (0.1, 50.0):
        base = [{"event": "eval", "step": 0, "loss": loss, "epoch": 0.0}]
        made = events(FALLS[:2], [2.5, 2.4])
        assert warnings([made[0], *base, *made[1:]]) == []


def test_a_broken_run_is_reported_once() -> None:
    made = events([6.9, *[50.0 + i for i in range(11)]], [8.0, 40.0, 60.0, 80.0])
    (said,) = warnings(made)
    assert said.startswith("the train loss was ")


def test_missing_fields_and_other_events_break_nothing() -> None:
    none = events(RISES, [1.0, None, 2.0])
    none.insert(3, {"event": "train", "step": 11, "loss": None})
    none.insert(4, {"event": "replies", "step": 11, "replies": []})
    assert len(warnings(none)) == 1
    bare = [{"event": "start", "planned_steps": 120, "step": 0}]
    bare += [{"event": "train", "step": 10 * i, "loss": loss} for i, loss in enumerate(RISES, 1)]
    (said,) = warnings(bare)
    assert said.endswith("-- lower learning_rate")
    assert warnings([]) == warnings(bare[:1]) == warnings(bare[1:]) == []


def test_losses_logged_after_the_checkpoint_of_a_resume_do_not_count() -> None:
    first = events(RISES, vocabulary=50304)
    again = [{**first[0], "resumed_step": 60, "step": 60}]
    again += [{**e, "loss": 1.0} for e in first if e.get("step", 0) > 60]
    assert warnings(first) and warnings(first + again) == []


def test_a_long_run_is_checked_quickly() -> None:
    """The status line does so at every redraw."""
    made = events(2 + np.random.default_rng(0).normal(0, 0.1, 100_000), np.full(100, 2.0))
    begun = time.process_time()
    assert warnings(made) == []
    assert time.process_time() - begun < 2


# --- where it is shown ---

BROKEN = {"dataset": "small", "max_steps": 20, "logging_steps": 2, "eval_steps": 10}
RATE_1 = {"run": "broken", "learning_rate": 1.0, "max_grad_norm": 0}


@pytest.fixture(scope="module")
def told(session_home: Path) -> Iterator[tuple[str, str]]:
    """Run `tiny` at a rate of 1 without clipping; return its warning and the terminal's output."""
    flags = [part for k, v in {**BROKEN, **RATE_1}.items() for part in ("-p", k, str(v))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        done = command("neoxkit.cli", "run", "--only", "02_train", *flags)
        assert done.returncode == 0, done.stderr
        (warning,) = finished_facts(paths.run("broken"))["warnings"]
        yield warning, done.stdout


@pytest.mark.process
def test_a_rate_of_1_without_clipping_is_reported_with_what_to_change(
    told: tuple[str, str],
) -> None:
    assert re.fullmatch(
        r"the train loss was \d+(\.\d+)? at step \d+, where a uniform guess among 1,024 tokens has "
        r"6\.931 -- lower learning_rate to 0\.002 \(its peak is 1\), and set max_grad_norm to 1 "
        r"\(it is 0\)",
        told[0],
    )


@pytest.mark.process
def test_the_terminal_warns_before_the_start_and_in_the_last_line(told: tuple[str, str]) -> None:
    warning, said = told
    *_, last = said.splitlines()
    assert last.startswith("done: ") and last.endswith(f"; warning: {warning}")


@pytest.mark.process
def test_the_notebooks_status_summary_and_card_show_it_in_red(
    home: Path, told: tuple[str, str]
) -> None:
    nb = nbformat.read(paths.run("broken") / "02_train.ipynb", as_version=4)
    for cell in ("dashboard.watch(process", "training.summary"):
        shown = next(c for c in nb.cells if cell in c.source).outputs[0].data
        assert f"warning: {told[0]}" in shown["text/plain"]
        assert view.ALERT_COLOUR in shown["text/html"] and told[0] in shown["text/html"]
    card = next(c for c in nb.cells if "training.card(" in c.source).outputs[0].data
    assert told[0] in card["text/plain"]


@pytest.mark.process
def test_the_warning_is_in_the_runs_files_and_tables(
    home: Path, told: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = paths.run("broken")
    assert run_card.read(folder)["results"]["warnings"] == [told[0]]
    assert ("warning", told[0]) in run_card.rows(folder)
    assert f"**Warning.** {told[0]}" in (folder / "model" / "README.md").read_text()
    assert f"broken: {told[0]}" in compare_runs.notes(compare_runs.load_runs(["broken"]))
    assert cli.main(["runs"]) == 0
    assert f"broken: warning: {told[0]}" in capsys.readouterr().out.splitlines()
    page = report.write("broken").read_text()
    assert page.count(told[0]) >= 4  # overview, its card, the notebook's status and summary


@pytest.mark.process
def test_the_suggested_change_helps(home: Path, zygote: Zygote, told: tuple[str, str]) -> None:
    rate, clip = re.search(r"learning_rate to (\S+) .* max_grad_norm to (\S+)", told[0]).groups()
    settings = TrainSettings(
        **BROKEN, run="mended", learning_rate=float(rate), max_grad_norm=float(clip), num_replies=0
    )
    assert finished_facts(trained(zygote, settings))["warnings"] == []


@pytest.mark.slow
def test_the_suggestion_for_an_overfitted_run_helps(home: Path, zygote: Zygote) -> None:
    """Train on thirty conversations repeatedly at a high rate; then only up to the best step."""
    text = (home / "data" / "small.txt").read_text().split("<|endoftext|>\n")
    few = "".join(f"{conversation}<|endoftext|>\n" for conversation in text[:60])
    (home / "data" / "few.txt").write_text(few)
    tokenize("few.txt", "few", eval_share=0.5)
    settings = TrainSettings(
        run="overfitted", dataset="few", learning_rate=8e-3, lr_scheduler_type="constant",
        max_steps=100, per_device_train_batch_size=8, num_replies=0, save_steps=50,
    )  # fmt: skip
    overfitted = finished_facts(trained(zygote, settings))
    (said,) = overfitted["warnings"]
    assert said.startswith("the eval loss rose from its best, ")
    steps = int(re.search(r"set max_steps to (\d+)", said).group(1))
    mended = finished_facts(trained(zygote, settings.replace(run="shorter", max_steps=steps)))
    assert mended["warnings"] == [] and mended["eval_loss"] < overfitted["eval_loss"]
