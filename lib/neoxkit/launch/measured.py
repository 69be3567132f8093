"""Speed and memory of the last run of a model on this machine, from which the next is estimated."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neoxkit import paths
from neoxkit.machine import duration
from neoxkit.models import model_names
from neoxkit.runs import card as run_card
from neoxkit.runs.events import METRICS, History
from neoxkit.runs.folder import FINISHED


@dataclass(frozen=True)
class Measured:
    """A run's measurements: useful tokens per second of all ranks, peak memory per rank.

    `micro_batch_tokens` are a micro-batch's mean tokens with padding, `micro_batch_trained` the
    trained ones.
    """

    folder: Path
    num_ranks: int
    on_gpu: bool
    tokens_per_second: float
    memory_gib: float
    micro_batch_tokens: float
    micro_batch_trained: float

    @property
    def run(self) -> str:
        """The run's name."""
        return self.folder.name

    def time(self, num_tokens: float) -> str:
        """Return how long `num_tokens` useful tokens take, and by which run, in words."""
        took = duration(num_tokens / self.tokens_per_second)
        speed = f"{self.tokens_per_second:,.0f} useful tokens/s as in run {self.run}"
        return f"about {took}, of steps, at {speed}"


def last_run(model: str, num_ranks: int = 0) -> Measured | None:
    """Return the newest run of this model on this machine, finished ones first; `num_ranks` 0
    means any."""
    name = model_names.base_name(model)
    folders = [p.parent for p in (paths.root() / "runs").glob(f"*/{METRICS}")]
    for folder in sorted(folders, key=_finished_and_new, reverse=True):
        found = _measured(folder, name, num_ranks)
        if found:
            return found
    return None


def _finished_and_new(folder: Path) -> tuple[bool, float]:
    return (folder / FINISHED).exists(), (folder / METRICS).stat().st_mtime


def _measured(folder: Path, model: str, num_ranks: int) -> Measured | None:
    history = History.of_run(folder)
    start, train = history.start, history.train
    if not start or not train or start.get("model") != model:
        return None
    if num_ranks not in (0, start["num_ranks"]) or not run_card.is_of_this_machine(folder):
        return None
    micro_batches = train[-1]["step"] * start["conversations_a_step"] / start["micro_batch"]
    return Measured(
        folder=folder,
        num_ranks=start["num_ranks"],
        on_gpu=start["device"] != "cpu",
        tokens_per_second=median(e["tokens_per_second"] for e in train[-20:]),
        memory_gib=max(e["memory_gib"] for e in train),
        micro_batch_tokens=sum(e["tokens"] / (1 - e["padding_share"]) for e in train)
        / micro_batches,
        micro_batch_trained=sum(e["trained_tokens"] for e in train) / micro_batches,
    )
