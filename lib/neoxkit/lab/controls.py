"""The dials of 01 (block size) and 02 (rate, block size, batch), and what follows from them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from neoxkit import machine
from neoxkit.data import selection, tokenized
from neoxkit.data.table import Table
from neoxkit.errors import UserError
from neoxkit.lab import data, figure, view
from neoxkit.lab.dials import Controls, Dial
from neoxkit.lab.training import schedule, schedule_figure
from neoxkit.lab.view import View
from neoxkit.launch import command, forecast, measured, nodes
from neoxkit.models import model_names, rates
from neoxkit.settings import TokenizeSettings, TrainSettings

Row = tuple[str, str]

_BLOCK_SIZES = (64, 96, 128, 192, 256, 280, 384, 512, 768, 1024, 1536, 2048)
_POWERS = tuple(2**i for i in range(9))
_RATES = (*(float(f"{m}e{e}") for e in range(-6, -2) for m in (1, 2, 5)), 1e-2)


def block_size(settings: TokenizeSettings, encoded: Table) -> Controls:
    """Show 01's slider: what a block size keeps, cuts and drops of these conversations."""
    longest = int(encoded.length.max(initial=0))
    base = model_names.at(settings.model_name_or_path, settings.revision)
    planned = TrainSettings()  # 02's defaults
    last = measured.last_run(base, nodes.of(planned).num_ranks) or measured.last_run(base)
    unknown = _unknown(base)

    def memory(counts: selection.Counts, limit: int) -> tuple[list[Row], list[Row]]:
        if unknown:
            return [("memory", unknown)], []
        found = forecast.forecast(planned, base, counts, limit, nodes.of(planned), last)
        return _in_brief(found, planned.per_device_train_batch_size)

    def consequences(chosen: TokenizeSettings) -> tuple[View, figure.Picture]:
        too_long = "drop" if chosen.too_long == "error" else chosen.too_long
        _, counts = selection.fit(encoded, chosen.block_size, too_long)
        needs, more = memory(counts, chosen.block_size)
        counted = counts.rows()
        shown = [
            *(row for row in counted if not row[0].endswith("tokens kept")),
            ("time per epoch", _time(last, counts.tokens)),
            *needs,
        ]
        rest = [row for row in counted if row not in shown]
        rest += [*_rows(counts, chosen.block_size), *more]
        picture = data.length_histogram(encoded.length, chosen.block_size)
        return _folded(shown, rest), picture

    values = [v for v in _BLOCK_SIZES if v < longest] + [longest] if longest >= 8 else []
    dial = Dial("block size", values, settings.block_size)
    return Controls(settings, {"block_size": dial}, consequences).show()


def _folded(shown: Sequence[Row], rest: Sequence[Row]) -> View:
    """Make a table whose second part is folded; plain text has all of it."""
    more = view.details("how this is made up", view.table(rest))
    return View(view.table(shown).html + more.html, view.table([*shown, *rest]).text)


def _rows(counts: selection.Counts, block_size: int) -> list[Row]:
    """Return the rows per epoch, packed and padded to the block size."""
    padding = 1 - counts.tokens / max(counts.kept * block_size, 1)
    packed = math.ceil(counts.tokens / block_size)
    size = f"of {block_size:,} tokens"
    return [
        ("rows per epoch, packed", f"about {packed:,} {size}, little padding"),
        ("rows per epoch, padded", f"{counts.kept:,} {size}, {padding:.0%} padding"),
    ]


def _time(last: measured.Measured | None, num_tokens: float) -> str:
    never = "unknown: this model has not been trained on this machine yet"
    return last.time(num_tokens) if last else never


def _left_out(counts: selection.Counts) -> str:
    """Say how many conversations are longer than the block size, and what is lost with them."""
    left = counts.read - counts.kept
    if not left:
        return f"nothing: all {counts.read:,} conversations are trained on"
    lost = counts.trained_tokens_lost / max(counts.trained_tokens + counts.trained_tokens_lost, 1)
    return f"{left:,} of {counts.read:,} conversations, {lost:.1%} of the trained tokens"


def _unknown(base: str) -> str:
    """Say why a base can't be forecast; empty if it can (a folder may hold a tokenizer alone)."""
    try:
        forecast.shape_of(base)
    except UserError as mistake:
        return f"unknown: {mistake.what}"
    return ""


def _needs(found: forecast.Forecast) -> list[Row]:
    """Return what a rank needs and what is free here, in words; the host only if it is too small.

    >>> _needs(forecast.Forecast({"weights": 3.1}, 14.6, 9))
    [('memory', 'needs about 3.1 GiB per rank; 14.6 GiB free here')]
    """
    need, free = f"needs about {machine.in_short(found.gib)} GiB per rank", found.device_gib
    misfit = forecast.MISFIT if free is not None and found.gib > free else ""
    beside = "" if free is None else f"; {free:.3g} GiB free here"
    return [("memory", f"{misfit}{need}{beside}"), *_host(found, too_small=True)]


def _host(found: forecast.Forecast, too_small: bool) -> list[Row]:
    """Return the row about the host's memory, if there is one and it is too small, or is not."""
    return [row for row in found.rows()[4:] if row[1].startswith(forecast.MISFIT) is too_small]


def _in_brief(found: forecast.Forecast, size: int) -> tuple[list[Row], list[Row]]:
    """Return 01's rows about memory: those to show, and those to fold.

    `size` is the micro-batch that 02 starts with.
    """
    (name, said), *host = _needs(found)
    by = f"corrected by run {found.run}" if found.run else "not measured yet"
    largest, conversations = found.rows()[3]
    shown = [(name, f"{said}; {by}"), *host]
    return shown, [(largest, f"{conversations}; 02 starts with {size}")]


def _network(settings: TrainSettings, base: str) -> list[Row]:
    """Return the row of what the network between several nodes must carry."""
    place = nodes.of(settings)
    if place.num_nodes == 1:
        return []
    job = forecast.job_of(settings, base, place)
    gib = machine.in_short(job.network_gib(settings.gradient_accumulation_steps))
    said = f"at least {gib} GiB into each node a step (weights and gradients; models/memory.py)"
    return [("network", said)]


def _num_cycles(settings: TrainSettings) -> float:
    """Return the cosine's cycles; the start refuses other arguments of a schedule."""
    given = settings.training_arguments.get("lr_scheduler_kwargs")
    cycles = given.get("num_cycles") if isinstance(given, dict) else None
    return cycles if isinstance(cycles, int | float) else 0.5


def training(
    settings: TrainSettings,
    lengths: Sequence[int],
    trained: Sequence[int],
    manifest: dict[str, Any],
) -> Controls:
    """Show 02's sliders: the learning-rate schedule over the real steps, and what makes up a step.

    `lengths` and `trained`: tokens and trained tokens of each training conversation.
    """
    all_lengths, all_trained = np.asarray(lengths), np.asarray(trained)
    place = nodes.of(settings)
    ranks, num_nodes = place.num_ranks, place.num_nodes
    first = model_names.at(manifest["model_name_or_path"], manifest["revision"])
    base = command.base_of(settings, first)
    last = measured.last_run(base, ranks)
    fit = command.fitting_rate(settings, first)
    settings = command.complete(settings, first)

    def consequences(chosen: TrainSettings) -> tuple[View, figure.Picture]:
        limit = tokenized.check_block_size(chosen.block_size, manifest)
        counts = forecast.counts(all_lengths, all_trained, limit)
        kept = counts.kept
        steps = machine.num_steps(chosen, kept, ranks)
        an_epoch = machine.num_steps(chosen.replace(num_train_epochs=1, max_steps=-1), kept, ranks)
        conversations = (
            chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps * ranks
        )
        a_step = min(conversations, kept) * counts.tokens / max(kept, 1)
        packed, padded = _rows(counts, limit)
        found = forecast.forecast(chosen, base, counts, limit, nodes.of(chosen), last)
        rate = ("learning rate", rates.beside(chosen.learning_rate, fit))
        doubtful = bool(rates.doubt(chosen.learning_rate, fit))
        more = "" if conversations <= kept else ", all there are"
        own = "" if chosen.block_size else " (the dataset's)"
        shown = [
            *([rate] * doubtful),
            ("optimizer steps", f"{steps:,} ({an_epoch:,} per epoch)"),
            ("time", _time(last, steps * a_step)),
            *_needs(found),
            ("left out", _left_out(counts)),
        ]
        rest = [
            *([rate] * (not doubtful)),
            ("block size", f"{limit:,} tokens{own}"),
            packed if chosen.layout == "packed" else padded,
            (
                "effective batch (one step)",
                f"{conversations:,} conversations{more}, about {a_step:,.0f} tokens, "
                f"{ranks} rank(s)" + (f" on {num_nodes} nodes" if num_nodes > 1 else ""),
            ),
            *_network(chosen, base),
            *found.rows()[1:4],
            *_host(found, too_small=False),
        ]
        kind, cycles = chosen.lr_scheduler_type, _num_cycles(chosen)
        planned = schedule(steps, chosen.learning_rate, chosen.warmup_steps, kind, cycles)
        return _folded(shown, rest), schedule_figure(planned, an_epoch)

    longest = int(all_lengths.max())
    sizes = [0] + [v for v in _BLOCK_SIZES if v < longest]
    dials = {
        name: Dial(label, values, getattr(settings, name))
        for name, label, values in (
            ("learning_rate", "learning rate", _RATES),
            ("block_size", "block size", sizes),
            ("per_device_train_batch_size", "batch size", _POWERS),
            ("gradient_accumulation_steps", "accumulation", _POWERS),
        )
    }
    return Controls(
        settings,
        dials,
        consequences,
        partial(command.complete, first=first),
        partial(command.started_with, settings),
    ).show()
