"""Memory forecasts, here or on another machine: formulas, corrected by the last run here."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from neoxkit import files, machine, paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.launch import command, machines, measured
from neoxkit.models import loading, memory
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_SHOWN_GIB = 0.005  # smaller parts are not shown
MISFIT = "DOES NOT FIT: "


@dataclass(frozen=True)
class Place:
    """A place to run a training: a number of ranks, on GPUs or in CPU processes.

    `precision` is the meaning of "auto" there; `device_gib` is the memory that a rank can have,
    `host_gib` the memory that all share; None if unknown.
    """

    num_ranks: int
    on_gpu: bool
    precision: str
    device_gib: float | None
    host_gib: float | None


def here(settings: TrainSettings, at_once: int = 1) -> Place:
    """Return this machine, with the ranks that the settings mean here; `at_once` trainings share
    the host's memory."""
    ranks, on_gpu = machine.num_ranks(settings), machine.num_gpus() > 0
    precision = loading.best_precision(on_gpu)
    device_gib = machine.device_gib(on_gpu, ranks if on_gpu else ranks * at_once)
    return Place(ranks, on_gpu, precision, device_gib, machine.available_gib() / at_once)


def elsewhere(settings: TrainSettings, machine: machines.Machine) -> Place:
    """Return another machine, with GPUs assumed to be fast at bf16 and an unknown host."""
    if settings.num_ranks > machine.num_gpus:
        what = f"got {settings.num_ranks}, {machine} has {machine.num_gpus} GPUs"
        raise UserError("num_ranks", what, "lower it")
    ranks = settings.num_ranks or machine.num_gpus
    return Place(ranks, True, "bf16", float(machine.gib), None)


@dataclass(frozen=True)
class Forecast:
    """The GiB of one rank, and the largest micro-batch.

    `parts` come from the formulas. All are multiplied by `correction`: the memory that the run
    `measured` used, over the formulas' result for it (1 and empty if there is no such run).
    `device_gib`, `host_gib` and `largest` are None if the machine's memory is unknown. `host` is
    the host memory of all ranks on GPUs: while they load the model, or for offloaded parts.
    """

    parts: Mapping[str, float]
    device_gib: float | None
    largest: int | None
    correction: float = 1.0
    measured: str = ""
    host: Mapping[str, float] = field(default_factory=dict)
    host_gib: float | None = None

    @property
    def gib(self) -> float:
        """The sum of all parts, corrected."""
        return sum(self.parts.values()) * self.correction

    @property
    def fits(self) -> bool:
        """Tell whether a rank and the host have that much memory, as far as is known."""
        return _is_there(self.gib, self.device_gib) and _is_there(self._of_host, self.host_gib)

    @property
    def misfit(self) -> str:
        """The rows that do not fit, in words; empty if all fit."""
        rows = [f"{name}: {said}" for name, said in self.rows() if said.startswith(MISFIT)]
        return "; ".join(rows)

    @property
    def _of_host(self) -> float:
        return max(self.host.values(), default=0.0)

    def rows(self) -> list[tuple[str, str]]:
        """Return a table's rows: the sum beside the machine's memory, its parts, the largest
        micro-batch, and on GPUs the host's memory."""
        parts = [
            f"{n} {machine.in_short(g)}" for n, g in self.parts.items() if g >= LEAST_SHOWN_GIB
        ]
        by = "not measured: set probe_steps 3 to measure it where it runs"
        if self.measured:
            by = f"all times {self.correction:.2f}, as measured in run {self.measured}"
        most = "unknown" if self.largest is None else f"about {self.largest:,} conversations"
        rows = [
            ("memory per rank", _beside(self.gib, self.device_gib)),
            ("by the formulas", f"{', '.join(parts)}; {by}"),
            ("largest micro-batch", most),
        ]
        if self.host:
            host = [f"{name} {machine.in_short(gib)}" for name, gib in self.host.items() if gib]
            said = _beside(self._of_host, self.host_gib, ", ".join(host))
            rows.append(("memory of the host", said))
        return rows


def _is_there(gib: float, there: float | None) -> bool:
    return there is None or gib <= there


def _beside(gib: float, there: float | None, parts: str = "") -> str:
    """Put the need and the memory that there is into words."""
    said = f"about {machine.in_short(gib)} GiB" + (f" ({parts})" if parts else "")
    said += "" if there is None else f", {there:.3g} available"
    return said if _is_there(gib, there) else MISFIT + said


def job_of(settings: TrainSettings, base: str, place: Place) -> memory.Job:
    """Return the job that a training of this base is at a place."""
    config = files.read_json(paths.ds_config("ds_config", settings.ds_config))
    precision = place.precision if settings.precision == "auto" else settings.precision
    return memory.Job.of(
        _model(base),
        settings.lora_rank,
        num_ranks=place.num_ranks,
        zero=config.get("zero_optimization", {}),
        half=precision != "fp32",
        on_gpu=place.on_gpu,
        checkpointing=settings.gradient_checkpointing,
    )


@functools.cache
def _model(base: str) -> "PreTrainedModel":
    return loading.without_weights(base)


def forecast(
    settings: TrainSettings,
    manifest: dict[str, Any],
    lengths: ArrayLike,
    trained: ArrayLike,
    machine: machines.Machine | None = None,
    at_once: int = 1,
) -> Forecast:
    """Forecast the memory of a training, here or on `machine`; `at_once` trainings share the host.

    `lengths` and `trained` count the tokens and the trained tokens of each conversation.
    """
    place = elsewhere(settings, machine) if machine else here(settings, at_once)
    base = settings.model_name_or_path or manifest["model_name_or_path"]
    limit = tokenized.check_block_size(settings.block_size, manifest)
    num_tokens, num_trained = np.asarray(lengths), np.asarray(trained)
    kept = num_tokens <= limit
    tokens = float(num_tokens[kept].mean()) if settings.layout == "packed" and kept.any() else limit
    one = (tokens, float(num_trained[kept].mean()) if kept.any() else 0.0)
    per_rank = max(-(-int(kept.sum()) // place.num_ranks), 1)
    size = min(settings.per_device_train_batch_size, per_rank)
    job = job_of(settings, base, place)
    correction, measured = (1.0, "") if machine else correction_of(base, place)
    device_gib = place.device_gib
    return Forecast(
        job.rank_gib(size * one[0], size * one[1]),
        device_gib,
        None if device_gib is None else job.largest_micro_batch(*one, device_gib / correction),
        correction,
        measured,
        job.host_gib() if place.on_gpu else {},
        place.host_gib,
    )


def on_dataset(settings: TrainSettings, **where: Any) -> Forecast:
    """Forecast a training on the dataset that the settings name."""
    data, manifest = tokenized.load(paths.tokenized(settings.dataset))
    rows = data["train"]
    return forecast(settings, manifest, rows["length"][:], rows["trained"][:], **where)


def doubts(settings: Sequence[TrainSettings], at_once: int = 1) -> list[str]:
    """Name the trainings that may not fit, in words; one for each distinct need of memory."""
    first: dict[tuple, TrainSettings] = {}
    for one in settings:
        first.setdefault(tuple(getattr(one, name) for name in one.with_role("memory")), one)
    found = {one.run: on_dataset(one, at_once=at_once) for one in first.values()}
    return [f"{run}, {one.misfit}" for run, one in found.items() if not one.fits]


def correction_of(base: str, place: Place) -> tuple[float, str]:
    """Return the memory of this base's last run over the formulas' result, and the run's name.

    1 and "" if there is none, or it ran on another kind of device or was started at a shell.
    """
    last = measured.last_run(base, place.num_ranks)
    if not last or last.on_gpu != place.on_gpu:
        return 1.0, ""
    path = last.folder / ARGUMENTS
    arguments = files.read_json(path) if path.is_file() else {}
    settings = command.settings_if_any(arguments, place.num_ranks)
    if not settings:
        return 1.0, ""
    job = job_of(settings, base, place)
    parts = job.rank_gib(last.micro_batch_tokens, last.micro_batch_trained)
    return last.memory_gib / sum(parts.values()), last.run
