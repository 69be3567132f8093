"""Time and memory of a training here, from the last run of the same model on this machine."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neoxkit import paths
from neoxkit.models import loading
from neoxkit.runs import card as run_card
from neoxkit.runs.events import METRICS, history, read_events
from neoxkit.runs.folder import FINISHED


@dataclass(frozen=True)
class Measured:
    """A run's measurements: useful tokens per second of all ranks, memory per rank, micro-batches.

    `model_gib` was measured before the first step (weights, optimizer, libraries), `memory_gib` is
    the peak; `micro_batch` counts conversations, `micro_batch_tokens` their mean tokens with
    padding, `micro_batch_trained` the trained ones.
    """

    folder: Path
    on_gpu: bool
    tokens_per_second: float
    model_gib: float
    memory_gib: float
    micro_batch: int
    micro_batch_tokens: float
    micro_batch_trained: float

    @property
    def run(self) -> str:
        """The run's name."""
        return self.folder.name

    def memory(self, num_tokens: float) -> str:
        """Return a rank's peak memory with micro-batches of `num_tokens` tokens, in words.

        The memory that steps add to the model is assumed to grow with their tokens.
        """
        steps_gib = self.memory_gib - self.model_gib
        gib = self.model_gib + steps_gib * num_tokens / self.micro_batch_tokens
        run = f"{self.memory_gib:.2g} with {self.micro_batch_tokens:,.0f} in run {self.run}"
        return f"about {gib:.2g} GiB with {num_tokens:,.0f} tokens per micro-batch; {run}"

    def time(self, num_tokens: float) -> str:
        """Return how long `num_tokens` useful tokens take, in words."""
        seconds = num_tokens / self.tokens_per_second
        for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
            if seconds < limit:
                return f"about {seconds / size:.0f} {unit}"
        return f"about {seconds / 3600:.1f} h"

    def speed(self) -> str:
        """Return the source of the figure, in words."""
        return f"of steps, at {self.tokens_per_second:,.0f} useful tokens/s as in run {self.run}"


def last_run(model: str, num_ranks: int = 0) -> Measured | None:
    """Return the newest run of this model on this machine, finished ones first; `num_ranks` 0
    means any."""
    name = loading.base_name(model)
    folders = [p.parent for p in (paths.root() / "runs").glob(f"*/{METRICS}")]
    for folder in sorted(folders, key=_finished_and_new, reverse=True):
        found = _measured(folder, name, num_ranks)
        if found:
            return found
    return None


def _finished_and_new(folder: Path) -> tuple[bool, float]:
    return (folder / FINISHED).exists(), (folder / METRICS).stat().st_mtime


def _measured(folder: Path, model: str, num_ranks: int) -> Measured | None:
    events = history(read_events(folder))
    start = next((e for e in reversed(events) if e["event"] == "start"), None)
    train = [e for e in events if e["event"] == "train"]
    if not start or not train or start["model"] != model:
        return None
    if "model_gib" not in start:  # written by an earlier version
        return None
    if num_ranks not in (0, start["num_ranks"]) or not run_card.is_of_this_machine(folder):
        return None
    micro_batches = train[-1]["step"] * start["conversations_a_step"] / start["micro_batch"]
    return Measured(
        folder=folder,
        on_gpu=start["device"] != "cpu",
        tokens_per_second=median(e["tokens_per_second"] for e in train[-20:]),
        model_gib=start["model_gib"],
        memory_gib=max(e["memory_gib"] for e in train),
        micro_batch=start["micro_batch"],
        micro_batch_tokens=sum(e["tokens"] / (1 - e["padding_share"]) for e in train)
        / micro_batches,
        micro_batch_trained=sum(e["trained_tokens"] for e in train) / micro_batches,
    )
