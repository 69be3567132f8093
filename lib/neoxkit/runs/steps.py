"""What each optimizer step trained on: the lines of its conversations, and their losses then.

Each rank appends a line a step to a file of its own, runs/<run>/steps/rank-<n>.jsonl. After a kill
a resumed run takes some steps again: the last line of a step counts.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit.errors import UserError
from neoxkit.runs import lease

FOLDER = "steps"


@dataclass(frozen=True)
class Conversation:
    """A conversation in a step: its line in the source, the sum of its trained tokens' losses
    (nats), and how many there are."""

    line: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class Step:
    """An optimizer step of all ranks: the conversations, in the order of ranks and micro-batches,
    the norm of the gradient, and the number of ranks."""

    number: int
    conversations: tuple[Conversation, ...]
    grad_norm: float | None
    ranks: int

    @property
    def loss(self) -> float:
        """The mean loss per trained token, as the training logs it for a single step."""
        tokens = sum(one.tokens for one in self.conversations)
        return math.fsum(one.loss for one in self.conversations) / max(tokens, 1)


def append(
    folder: Path, rank: int, step: int, conversations: Sequence[Conversation], **values: Any
) -> None:
    """Append a step to a rank's file; `values`: `ranks`, and of rank 0 `grad_norm`."""
    lease.check(folder)
    path = folder / FOLDER / f"rank-{rank}.jsonl"
    path.parent.mkdir(exist_ok=True)
    columns = [[one.line, one.loss, one.tokens] for one in conversations]
    line = json.dumps({"step": step, **values, "conversations": columns}, separators=(",", ":"))
    with path.open("ab") as file:
        file.write(f"\n{line}\n".encode())  # after half a line, if a writer was killed


def read(folder: Path, first: int, last: int) -> dict[int, Step]:
    """Return the recorded steps from `first` to `last`, by number; those that not all ranks have
    recorded are left out."""
    of_first = _of_rank(folder, 0, first, last)
    others: dict[int, dict[int, dict[str, Any]]] = {}
    found = {}
    for number, line in of_first.items():
        lines = [line]
        for rank in range(1, line["ranks"]):
            if rank not in others:
                others[rank] = _of_rank(folder, rank, first, last)
            lines.append(others[rank].get(number, {}))
        if all(one.get("ranks") == line["ranks"] for one in lines):
            conversations = (Conversation(*row) for one in lines for row in one["conversations"])
            norm = line.get("grad_norm")
            found[number] = Step(number, tuple(conversations), norm, line["ranks"])
    return dict(sorted(found.items()))


def _of_rank(folder: Path, rank: int, first: int, last: int) -> dict[int, dict[str, Any]]:
    """Return the newest line of each step that a rank recorded."""
    path = folder / FOLDER / f"rank-{rank}.jsonl"
    lines = _lines(path) if path.is_file() else ()
    return {line["step"]: line for line in lines if first <= line["step"] <= last}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # an empty one, or one cut by a kill
                continue


def of(folder: Path, number: int) -> Step:
    """Return one recorded step; refuse one that was not recorded."""
    found = read(folder, number, number)
    if number not in found:
        known = read(folder, 1, 2**62)
        what = f"has no record of step {number}"
        if not known:
            what += ", nor of any other: it was trained before steps were recorded"
        remedy = f"choose one from {min(known)} to {max(known)}" if known else "train it again"
        raise UserError("RUN", f"{folder.name} {what}", remedy)
    return found[number]


def differences(was: Step, now: Step) -> list[str]:
    """Say in which respects two records of a step differ in any bit; nothing if in none."""
    if [one.line for one in was.conversations] != [one.line for one in now.conversations]:
        return ["other conversations, or in another order"]
    pairs = [*zip(was.conversations, now.conversations, strict=True)]
    said = []
    if other := [abs(a.loss - b.loss) / max(a.tokens, 1) for a, b in pairs if a != b]:
        most = f"by up to {max(other):.3g} nats per token"
        said.append(f"the losses of {len(other)} of {len(pairs)} conversations, {most}")
    if was.grad_norm != now.grad_norm:
        said.append(f"the norm of the gradient, {was.grad_norm} then and {now.grad_norm} now")
    return said
