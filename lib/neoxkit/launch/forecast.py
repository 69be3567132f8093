"""Memory forecasts, here or on another machine: formulas, corrected by the last run here.

01's and 02's dials, `neoxkit fit` and the notes before a sweep all ask `forecast`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from neoxkit import files, machine, paths
from neoxkit.data import selection, tokenized
from neoxkit.launch import command, machines, measured, nodes
from neoxkit.launch.nodes import Place
from neoxkit.models import loading, memory, shape
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings
from neoxkit.training import ds_file

LEAST_SHOWN_GIB = 0.005  # smaller parts are not shown
MISFIT = "DOES NOT FIT: "


def counts(lengths: ArrayLike, trained: ArrayLike, block_size: int) -> selection.Counts:
    """Count the conversations of at most `block_size` tokens, and their tokens, by those of each
    conversation."""
    num_tokens, num_trained = np.asarray(lengths), np.asarray(trained)
    fits = num_tokens <= block_size
    return selection.Counts(
        read=len(fits),
        kept=int(fits.sum()),
        tokens=int(num_tokens[fits].sum()),
        trained_tokens=int(num_trained[fits].sum()),
        trained_tokens_lost=int(num_trained[~fits].sum()),
    )


@dataclass(frozen=True)
class Forecast:
    """The GiB of one rank, and the largest micro-batch.

    `parts` come from the formulas. All are multiplied by `correction`: the memory that `run` used,
    over the formulas' result for it (1 and empty if nothing was measured). `device_gib`, `host_gib`
    and `largest` are None if the machine's memory is unknown. `host` is the host memory of all
    ranks, besides that of CPU ranks' `parts`: while they load the model, or for offloaded parts.
    """

    parts: Mapping[str, float]
    device_gib: float | None
    largest: int | None
    correction: float = 1.0
    run: str = ""
    host: Mapping[str, float] = field(default_factory=dict)
    host_gib: float | None = None

    @property
    def gib(self) -> float:
        """The sum of all parts, corrected."""
        return sum(self.parts.values()) * self.correction

    @property
    def misfit(self) -> str:
        """The rows that do not fit on a rank or the host; empty if all fit, or are unknown."""
        rows = [f"{name}: {said}" for name, said in self.rows() if said.startswith(MISFIT)]
        return "; ".join(rows)

    def rows(self) -> list[tuple[str, str]]:
        """Return a table's rows: the sum beside the machine's memory, its parts, the largest
        micro-batch, and the host's memory if it counts beside the ranks'."""
        parts = [
            f"{n} {machine.in_short(g)}" for n, g in self.parts.items() if g >= LEAST_SHOWN_GIB
        ]
        by = "not measured: set probe_steps 3 to measure it where it runs"
        if self.run:
            by = f"all times {self.correction:.2f}, as measured in run {self.run}"
        most = "unknown" if self.largest is None else f"about {self.largest:,} conversations"
        rows = [
            ("memory per rank", _beside(self.gib, self.device_gib)),
            ("by the formulas", ", ".join(parts)),
            ("correction", by),
            ("largest micro-batch", most),
        ]
        if self.host:
            host = [f"{name} {machine.in_short(gib)}" for name, gib in self.host.items() if gib]
            said = _beside(max(self.host.values()), self.host_gib, ", ".join(host))
            rows.append(("memory of the host", said))
        return rows


def _beside(gib: float, there: float | None, parts: str = "") -> str:
    """Put the need and the memory that there is into words."""
    said = f"about {machine.in_short(gib)} GiB" + (f" ({parts})" if parts else "")
    if there is None:
        return said
    return f"{'' if gib <= there else MISFIT}{said}, {there:.3g} available"


def job_of(settings: TrainSettings, base: str, place: Place) -> memory.Job:
    """Return the job that a training of this base is at a place."""
    config = ds_file.read("ds_config", settings.ds_config)
    of_base, precision = shape_of(base), settings.precision
    if precision == "auto":
        narrow = not place.on_gpu and of_base.width < loading.NARROWEST
        precision = "fp32" if narrow else place.precision
    return memory.Job.of(
        of_base,
        settings.lora_rank,
        num_ranks=place.num_ranks,
        num_nodes=place.num_nodes,
        zero=config.get("zero_optimization", {}),
        half=precision != "fp32",
        on_gpu=place.on_gpu,
        checkpointing=settings.gradient_checkpointing,
        from_scratch=settings.from_scratch,
        verifies=settings.verify_steps > 0,
    )


@functools.cache
def shape_of(base: str) -> shape.ModelShape:
    """Return a base's shape, looked up once."""
    return shape.look_up(base)


def forecast(
    settings: TrainSettings,
    base: str,
    rows: selection.Counts,
    block_size: int,
    place: Place,
    last: measured.Measured | None,
) -> Forecast:
    """Forecast the memory of a training of `base` at a place, corrected by the last run there."""
    job = job_of(settings, base, place)
    mean = rows.tokens / rows.kept if settings.layout == "packed" and rows.kept else block_size
    one = (mean, rows.trained_tokens / max(rows.kept, 1))
    per_rank = max(-(-rows.kept // place.num_ranks), 1)
    size = min(settings.per_device_train_batch_size, per_rank)
    parts = job.rank_gib(size * one[0], size * one[1])
    correction, run = correction_by(last, base, place)
    device_gib = place.device_gib
    host = job.host_gib() if job.on_gpu else {}  # else the ranks' parts are in it, and are more
    largest = None
    if device_gib is not None:
        largest = job.largest_micro_batch(*one, device_gib / correction)
    return Forecast(parts, device_gib, largest, correction, run, host, place.host_gib)


def on_dataset(
    settings: TrainSettings, there: machines.Machine | None = None, at_once: int = 1
) -> Forecast:
    """Forecast a training on the dataset that the settings name, here or on another machine.

    `at_once` trainings share the host's memory.
    """
    sides, manifest = tokenized.sizes(paths.tokenized(settings.dataset))
    limit = tokenized.check_block_size(settings.block_size, manifest)
    rows = counts(sides["train"]["length"], sides["train"]["trained"], limit)
    base = command.base_of(settings)
    place = nodes.elsewhere(settings, there) if there else nodes.of(settings, at_once)
    last = None if there else measured.last_run(base, place.num_ranks)
    return forecast(settings, base, rows, limit, place, last)


def doubts(settings: Sequence[TrainSettings], at_once: int = 1) -> list[str]:
    """Name the trainings that may not fit, in words; one for each distinct need of memory."""
    first: dict[str, TrainSettings] = {}
    for one in settings:
        first.setdefault(repr([getattr(one, name) for name in one.with_role("memory")]), one)
    found = {one.run: on_dataset(one, at_once=at_once).misfit for one in first.values()}
    return [f"{run}, {misfit}" for run, misfit in found.items() if misfit]


def correction_by(last: measured.Measured | None, base: str, place: Place) -> tuple[float, str]:
    """Return the memory of this base's last run over the formulas' result, and the run's name.

    1 and "" if there is none, or it had other ranks or another device, or was started at a shell.
    """
    if not last or (last.num_ranks, last.on_gpu) != (place.num_ranks, place.on_gpu):
        return 1.0, ""
    path = last.folder / ARGUMENTS
    arguments = files.read_json(path) if path.is_file() else {}
    settings = command.settings_if_any(arguments, place.num_ranks)
    if not settings:
        return 1.0, ""
    job = job_of(settings, base, place)
    parts = job.rank_gib(last.micro_batch_tokens, last.micro_batch_trained)
    return last.memory_gib / sum(parts.values()), last.run
