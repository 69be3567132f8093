"""Does a training fit on this machine? fit's formulas, corrected by what its last run took here."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit import estimates, fit, lora, models, needs, paths, plan, runs, tokenized
from neoxkit.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_SHOWN_GIB = 0.005  # of a part


@dataclass(frozen=True)
class Setup:
    """What of the settings decides the memory of a rank, whatever its micro-batch is."""

    shape: fit.Shape
    job: needs.Job
    zero: Mapping[str, Any]
    checkpointing: bool

    def gib(self, tokens: float, trained: float) -> dict[str, float]:
        """The parts with a micro-batch of so many tokens (with padding) and trained tokens."""
        return fit.rank_gib(self.shape, self.job, self._batch(tokens, trained), self.zero)

    def largest(self, tokens: float, trained: float, device_gib: float) -> int:
        """How many conversations of so many tokens fit at once."""
        one = self._batch(tokens, trained)
        return fit.largest_micro_batch(self.shape, self.job, one, device_gib, self.zero)

    def _batch(self, tokens: float, trained: float) -> fit.Batch:
        return fit.Batch(tokens, trained, self.checkpointing)


@dataclass(frozen=True)
class Forecast:
    """GiB of one rank, and the largest micro-batch.

    `parts` are by the formulas; all are multiplied by `correction`, what the run `measured` took
    over what the formulas say of it (1 and empty where there is no such run). `device_gib` and
    `largest` are None where it is not known what there is.
    """

    parts: Mapping[str, float]
    device_gib: float | None
    largest: int | None
    correction: float = 1.0
    measured: str = ""

    @property
    def gib(self) -> float:
        """The sum of all parts, corrected."""
        return sum(self.parts.values()) * self.correction

    @property
    def fits(self) -> bool:
        """Whether a rank has so much, as far as is known."""
        return self.device_gib is None or self.gib <= self.device_gib

    def rows(self) -> list[tuple[str, str]]:
        """For a table: the sum beside what there is, its parts, the largest micro-batch."""
        there = "" if self.device_gib is None else f", {self.device_gib:.3g} are there"
        said = f"about {self.gib:.2g} GiB{there}"
        parts = [f"{n} {g:.2g}" for n, g in self.parts.items() if g >= LEAST_SHOWN_GIB]
        by = "not measured yet: probe_steps 3 does"
        if self.measured:
            by = f"all times {self.correction:.2f}, as run {self.measured} took"
        most = "unknown" if self.largest is None else f"about {self.largest:,} conversations"
        return [
            ("memory of a rank", said if self.fits else f"DOES NOT FIT: {said}"),
            ("by the formulas", f"{', '.join(parts)}; {by}"),
            ("largest micro-batch", most),
        ]


def setup(settings: TrainSettings, base: str, num_ranks: int) -> Setup:
    """Of a training of this base on so many ranks of this machine."""
    model = _model(base)
    config = model.config
    zero = runs.read_json(paths.ds_config("ds_config", settings.ds_config))
    zero, on_gpu = zero.get("zero_optimization", {}), plan.num_gpus() > 0
    precision = settings.precision
    if precision == "auto":
        precision = models.best_precision(on_gpu)
    rank = settings.lora_rank
    job = needs.Job.under(
        zero,
        num_parameters=model.num_parameters(),
        num_trained=lora.num_trained(model, rank) if rank else None,
        num_ranks=num_ranks,
        half=precision != "fp32",
        on_gpu=on_gpu,
    )
    shape = fit.Shape(config.hidden_size, config.num_hidden_layers, config.vocab_size)
    return Setup(shape, job, zero, settings.gradient_checkpointing)


@functools.cache
def _model(base: str) -> "PreTrainedModel":
    return models.without_weights(base)


def of(
    settings: TrainSettings,
    manifest: Mapping[str, Any],
    lengths: Sequence[int],
    trained: Sequence[int],
) -> Forecast:
    """Of a training on conversations of so many tokens and trained tokens."""
    ranks = plan.num_ranks(settings)
    base = settings.model_name_or_path or manifest["model_name_or_path"]
    limit = tokenized.check_block_size(settings.block_size, manifest)
    lengths, trained = np.asarray(lengths), np.asarray(trained)
    kept = lengths <= limit
    tokens = float(lengths[kept].mean()) if settings.layout == "packed" and kept.any() else limit
    one = (tokens, float(trained[kept].mean()) if kept.any() else 0.0)
    size = min(settings.per_device_train_batch_size, max(-(-int(kept.sum()) // ranks), 1))
    chosen = setup(settings, base, ranks)
    correction, measured = correction_of(base, ranks)
    device_gib = needs.device_gib(chosen.job.on_gpu, ranks)
    largest = None if device_gib is None else chosen.largest(*one, device_gib / correction)
    parts = chosen.gib(size * one[0], size * one[1])
    return Forecast(parts, device_gib, largest, correction, measured)


def correction_of(base: str, num_ranks: int) -> tuple[float, str]:
    """What the last run of this base took over what the formulas say of it, and the run's name.

    1 and "" where none ran, or one on another device, or one that was started at a shell.
    """
    last = estimates.last_run(base, num_ranks)
    if not last or last.on_gpu != (plan.num_gpus() > 0):
        return 1.0, ""
    arguments = runs.read_json(paths.run(last.run) / runs.ARGUMENTS)
    settings = plan.settings_if_any(arguments, num_ranks)
    if not settings:
        return 1.0, ""
    parts = setup(settings, base, num_ranks).gib(last.micro_batch_tokens, last.micro_batch_trained)
    return last.memory_gib / sum(parts.values()), last.run
