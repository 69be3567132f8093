"""The pictures and tables of 02_train."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from IPython.display import Markdown, display
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from neoxkit import paths
from neoxkit.data import manifests, tokenized
from neoxkit.lab import view
from neoxkit.lab.figure import (
    BLUE,
    GREEN,
    GREY,
    RED,
    Picture,
    label_axes,
    new_figure,
    styled,
)
from neoxkit.lab.view import NOTHING, View
from neoxkit.launch import lr_finder, trials
from neoxkit.models import sharing
from neoxkit.runs import card as run_card
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import early, exported_step, finished_facts
from neoxkit.settings import TrainSettings


def schedule(
    steps: int, learning_rate: float, warmup_steps: float, kind: str, num_cycles: float = 0.5
) -> np.ndarray:
    """Return each step's learning rate, shape (steps,), as in transformers' schedulers.

    `warmup_steps` below 1 is a share of all steps, as in TrainingArguments; `num_cycles` is the
    cosine's.
    """
    warmup = math.ceil(steps * warmup_steps) if warmup_steps < 1 else int(warmup_steps)
    step = np.arange(steps)
    rising = step / max(warmup, 1)
    rest = (step - warmup) / max(steps - warmup, 1)
    after = {
        "linear": 1 - rest,
        "cosine": 0.5 * (1 + np.cos(2 * np.pi * num_cycles * rest)),
        "constant_with_warmup": np.ones(steps),
    }
    if kind == "constant":
        return np.full(steps, learning_rate)
    return learning_rate * np.where(step < warmup, rising, after[kind])


@styled
def schedule_figure(rates: np.ndarray, steps_an_epoch: int) -> Picture:
    """Draw the learning rate over the run's real steps, epochs marked."""
    figure, axes = new_figure(1.8)
    axes.plot(np.arange(1, len(rates) + 1), rates, color=GREEN, linewidth=2,
              label="at the last step")  # fmt: skip
    for epoch in range(steps_an_epoch, len(rates), steps_an_epoch):
        if len(rates) / steps_an_epoch <= 20:
            axes.axvline(epoch, color=GREY, alpha=0.4, linewidth=0.8)
    label_axes(axes, "optimizer step (a grey line ends an epoch)", "learning rate")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    axes.set_ylim(bottom=0)
    return figure


def conversations(dataset: str) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Return the length and the trained tokens of a dataset's training conversations, and its
    manifest."""
    sizes, manifest = tokenized.sizes(paths.tokenized(dataset))
    return sizes["train"], manifest


def dataset_card(manifest: dict[str, Any]) -> Markdown:
    """Show a dataset's card."""
    return Markdown(manifests.card(manifest))


def probe(settings: TrainSettings) -> View:
    """Run the probe; say if there was none."""
    trials.probe(settings, view.ProgressBar)
    return NOTHING if settings.probe_steps else view.sentence("No probe: probe_steps is 0.")


def range_test(settings: TrainSettings) -> View:
    """Run the range test and show its curve, then the short runs at the suggested rates."""
    found = lr_finder.find(settings, view.ProgressBar)
    shown = learning_rates(found)
    if isinstance(shown, View):
        return shown
    display(shown)
    return short_runs(lr_finder.try_suggestion(settings, found, view.ProgressBar))


@styled
def learning_rates(found: lr_finder.Found | None) -> Picture | View:
    """Draw the range test's loss over the learning rate, with its result; say if there was none."""
    if not found:
        return view.sentence("No range test: range_test_steps is 0.")
    figure, axes = new_figure(3.2)
    axes.plot(found.rates, found.losses, color=BLUE, alpha=0.55, linewidth=1, label="train loss")
    axes.plot(found.rates, found.smooth, color=BLUE, label="smoothed")
    for rate, colour, name in (
        (found.suggestion, GREEN, "suggestion"),
        (found.divergence, RED, "diverges"),
    ):
        if rate:
            axes.axvline(rate, color=colour, linestyle="--", label=f"{name}: {rate:.1e}")
    label_axes(axes, "learning rate", "loss (nats per trained token)", found.says)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))  # no exponents in small letters
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(found.losses):  # an exploding loss would flatten everything else
        low, first = float(np.min(found.losses)), float(np.max(found.losses[:3]))
        axes.set_ylim(low - 0.1 * (first - low), first + 0.5 * (first - low) + 0.1)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0)
    return figure


def short_runs(rows: Sequence[tuple[str, str]]) -> View:
    """Show the eval losses of the short runs round the suggested rate, if there were any."""
    header = ("learning rate", f"eval loss after {lr_finder.CHECK_STEPS} steps")
    return view.table(rows, header) if rows else view.NOTHING


def summary(run: str) -> View:
    """Show what a finished run took and reached, from its files."""
    folder = paths.run(run)
    facts = finished_facts(folder)
    loss = facts["eval_loss"]
    starts = [e for e in read_events(folder) if e["event"] == "start"]
    peak = f"{starts[-1]['matmul_peak_tflops'] * 1000:,.0f} GFLOP/s"
    opens = "opens with from_pretrained"
    if facts["lora_rank"]:
        opens = f"adapters only; neoxkit merge {folder.name} writes the whole model"
    notices = dict.fromkeys(notice for e in starts for notice in e["notices"])
    figures = view.table(
        [
            *(("note", notice) for notice in notices),
            ("steps", early(facts) or f"{facts['step']:,} of {facts['planned_steps']:,} planned"),
            ("time in training steps", f"{facts['train_seconds']:,} s"),
            *_verified(facts),
            ("tokens", f"{facts['tokens']:,}, {facts['trained_tokens']:,} of them trained"),
            ("speed", f"{facts['tokens_per_second']:,} useful tokens/s (no padding counted)"),
            ("padding", f"{facts['padding_share']:.1%} of what was computed"),
            ("MFU", f"{facts['mfu']:.1%} of the matrix-product speed measured first ({peak})"),
            ("attention", _kernel(starts[-1])),
            ("peak memory per rank", f"{facts['memory_gib']} GiB"),
            ("final train loss", f"{facts['train_loss']:.4f}"),
            (
                "final eval loss",
                "none: the held-out set is empty" if loss is None else f"{loss:.4f}",
            ),
            ("the model", f"{paths.short(folder / 'model')} ({_of_step(facts)}{opens})"),
        ]
    )
    return view.alert(facts["warnings"]) + figures


def _verified(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    count = facts.get("verified_steps", 0)  # not in runs of earlier versions
    return [("steps taken twice", f"{count:,}, each time with the same bits")] if count else []


def _of_step(facts: Mapping[str, Any]) -> str:
    step = exported_step(facts)
    return "" if step == facts["step"] else f"of step {step:,}, the lowest eval loss; "


def card(run: str) -> View:
    """Show a run's card."""
    return view.table(run_card.rows(paths.run(run)))


def share(settings: TrainSettings) -> View:
    """Show that the model answers on its own; push it to the hub if hub_model_id names where."""
    with view.doing("asking the model in a process of its own"):
        said = sharing.share(settings.run, settings.hub_model_id)
    return view.sentence("; ".join(said))


def _kernel(start: Mapping[str, Any]) -> str:
    if start["layout"] == "padded":
        return f"{start['attention']}, rows padded to {start['block_size']} tokens"
    rows = f"rows of about {start['row_tokens']:,} tokens" if start["row_tokens"] else "one row"
    return f"{start['attention']}, packed into {rows}"
