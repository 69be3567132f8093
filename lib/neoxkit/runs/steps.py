"""What each optimizer step trained on: the lines of its conversations, and their losses then.

Each rank appends a line a step to a file of its own, runs/<run>/steps/rank-<n>.jsonl, and a line at
each start. A start goes back to its checkpoint's step: what was recorded after it no longer counts.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.runs import lease, resuming

FOLDER = "steps"
_STEP = b'{"step":'


class Taken(NamedTuple):
    """A conversation in a step: its line in the source, the sum of its trained tokens' losses
    (nats), and how many there are."""

    line: int
    loss: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.loss / max(self.tokens, 1)


@dataclass(frozen=True)
class Attempt:
    """A start of a training: the step that it went on from, the number of ranks and the threads of
    each, whether its checkpoint was converted to them, and the trainer's arguments."""

    resumed: int
    ranks: int
    threads: str
    converted: bool
    arguments: Mapping[str, Any]

    def computes_like(self, other: "Attempt") -> bool:
        """Return whether the other start takes the same steps."""
        alike = (self.ranks, self.threads) == (other.ranks, other.threads)
        return alike and resuming.computes_like(self.arguments, other.arguments)


@dataclass(frozen=True)
class Step:
    """An optimizer step of all ranks: the conversations, in the order of ranks and micro-batches,
    the norm of the gradient (None if it was not finite), and the start that it belongs to."""

    number: int
    conversations: tuple[Taken, ...]
    grad_norm: float | None
    start: Attempt = field(compare=False)

    @property
    def loss(self) -> float:
        """The mean loss per trained token, as the training logs it for a single step."""
        tokens = sum(one.tokens for one in self.conversations)
        return math.fsum(one.loss for one in self.conversations) / max(tokens, 1)


def begin(folder: Path, rank: int, start: Attempt) -> None:
    """Record a start in a rank's file; the arguments are in the first rank's alone."""
    values = asdict(start)
    if rank:
        del values["arguments"]
    _append(folder, rank, {"start": values})


def append(
    folder: Path,
    rank: int,
    step: int,
    conversations: Sequence[Taken],
    grad_norm: float | None = None,
) -> None:
    """Record a step in a rank's file."""
    _append(folder, rank, {"step": step, "grad_norm": grad_norm, "conversations": conversations})


def _append(folder: Path, rank: int, values: Mapping[str, Any]) -> None:
    lease.check(folder)
    path = folder / FOLDER / f"rank-{rank}.jsonl"
    path.parent.mkdir(exist_ok=True)
    line = json.dumps(values, separators=(",", ":"))
    with path.open("ab") as file:
        file.write(f"\n{line}\n".encode())  # after half a line, if a writer was killed


def recorded(folder: Path, first: int, last: int) -> dict[int, Step]:
    """Return the recorded steps from `first` to `last`, by number; those that not all ranks have
    recorded are left out."""
    lines = {0: _of_rank(folder, 0, first, last)}
    found = {}
    for number, (line, start) in lines[0].items():
        of_ranks = [line["conversations"]]
        for rank in range(1, start["ranks"]):
            if rank not in lines:
                lines[rank] = _of_rank(folder, rank, first, last)
            other, its_start = lines[rank].get(number, ({}, {"ranks": 0}))
            if its_start["ranks"] == start["ranks"]:
                of_ranks.append(other["conversations"])
        if len(of_ranks) == start["ranks"]:
            conversations = tuple(Taken(*row) for rows in of_ranks for row in rows)
            found[number] = Step(number, conversations, line["grad_norm"], Attempt(**start))
    return dict(sorted(found.items()))


def _of_rank(
    folder: Path, rank: int, first: int, last: int
) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the newest line of each step that a rank recorded, with its start."""
    found: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    start: dict[str, Any] = {}
    for number, line in _lines(folder, rank):
        if number is not None and not first <= number <= last:
            continue
        try:
            values = json.loads(line)
        except ValueError:  # cut by a kill
            continue
        if number is not None:
            found[number] = values, start
        else:
            start = values["start"]
            found = {n: of for n, of in found.items() if n <= start["resumed"]}
    return found


def _lines(folder: Path, rank: int) -> Iterator[tuple[int | None, bytes]]:
    """Yield each line of a rank's file, with the number of its step; None for a start."""
    path = folder / FOLDER / f"rank-{rank}.jsonl"
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if line.startswith(_STEP):
                number = line[len(_STEP) : len(_STEP) + 20].partition(b",")[0]
                if number.isdigit():
                    yield int(number), line
            elif line.strip():
                yield None, line


def at(folder: Path, number: int) -> Step:
    """Return one recorded step; refuse one that was not recorded."""
    if not folder.is_dir():
        raise UserError("RUN", f"{paths.short(folder)} does not exist", "see neoxkit runs")
    found = recorded(folder, number, number)
    if number in found:
        return found[number]
    known = [*_of_rank(folder, 0, 1, 2**62)]
    what = f"{folder.name} has no record of step {number}"
    if not known:
        what += ", nor of any other: it was trained before steps were recorded, or has taken none"
    remedy = f"choose one from {min(known)} to {max(known)}" if known else "train it again"
    raise UserError("RUN", what, remedy)


def differences(was: Step, now: Step) -> list[str]:
    """Say in which respects two records of a step differ in any bit; nothing if in none."""
    if not same_lines(was, now):
        return ["other conversations, or in another order"]
    pairs = [*zip(was.conversations, now.conversations, strict=True)]
    said = []
    if other := [abs(a.loss - b.loss) / max(a.tokens, 1) for a, b in pairs if a != b]:
        most = f"by up to {max(other):.3g} nats per token"
        said.append(f"the losses of {len(other)} of {len(pairs)} conversations, {most}")
    if was.grad_norm != now.grad_norm:
        said.append(f"the norm of the gradient, {was.grad_norm} then and {now.grad_norm} now")
    return said


def same_lines(was: Step, now: Step) -> bool:
    """Return whether two records of a step name the same conversations in the same order."""
    return [one.line for one in was.conversations] == [one.line for one in now.conversations]
