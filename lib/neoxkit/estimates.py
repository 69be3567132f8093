"""What a training will take here, from the last run of the same model on this machine."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from neoxkit import models, paths, runs
from neoxkit.tiny import TINY


@dataclass(frozen=True)
class Measured:
    """Of a run: useful tokens a second of all ranks, peak memory of a rank, and its micro-batch."""

    run: str
    tokens_per_second: float
    memory_gib: float
    batch_size: int

    def time(self, num_tokens: float) -> str:
        """How long so many useful tokens take, in words."""
        seconds = num_tokens / self.tokens_per_second
        for limit, size, unit in ((90, 1, "s"), (5400, 60, "min")):
            if seconds < limit:
                return f"about {seconds / size:.0f} {unit}"
        return f"about {seconds / 3600:.1f} h"

    def speed(self) -> str:
        """Where the figure comes from, in words."""
        return f"at {self.tokens_per_second:,.0f} useful tokens/s, as in run {self.run}"


def base_name(name: str) -> str:
    """A model's name as a run writes it down."""
    portable = name if name == TINY else paths.portable(name)
    return portable if portable == TINY or paths.local_folder(portable) else models.resolve(name)


def last_run(model: str, num_ranks: int = 0) -> Measured | None:
    """The last run of this model (0: on any number of ranks) that has logged steps."""
    name = base_name(model)
    folders = [p.parent for p in (paths.root() / "runs").glob(f"*/{runs.METRICS}")]
    for folder in sorted(folders, key=lambda f: -(f / runs.METRICS).stat().st_mtime):
        found = _measured(folder, name, num_ranks)
        if found:
            return found
    return None


def _measured(folder: Path, model: str, num_ranks: int) -> Measured | None:
    events = runs.history(runs.read_events(folder))
    start = next((e for e in reversed(events) if e["event"] == "start"), None)
    train = [e for e in events if e["event"] == "train"]
    if not start or not train or start["model"] != model:
        return None
    if "micro_batch" not in start:  # of an earlier version
        return None
    if num_ranks not in (0, start["num_ranks"]):
        return None
    return Measured(
        run=folder.name,
        tokens_per_second=median(e["tokens_per_second"] for e in train[-20:]),
        memory_gib=max(e["memory_gib"] for e in train),
        batch_size=start["micro_batch"],
    )
