"""`neoxkit step`: what a step trained on, and whether the same step now gives the same bits."""

import json
import sys
from typing import Any

from neoxkit import files, paths
from neoxkit.cli import screen, terminal
from neoxkit.data.places import Places
from neoxkit.launch import replay
from neoxkit.runs import steps
from neoxkit.runs.folder import DATASET


def show(run: str, number: int, only_list: bool, as_json: bool) -> int:
    """Print a step's conversations and losses, take it again unless `only_list`, and say what
    differs; return 1 if anything does."""
    folder = paths.run(run)
    step = steps.of(folder, number)
    again = None
    if not only_list:
        again = replay.replay(run, number, terminal.Counting(f"{run}.step, steps"))
    places = Places.of(files.read_json(folder / DATASET)["source"])
    if as_json:
        print(json.dumps(_object(step, again, places), indent=1))
    else:
        print("\n".join(_lines(step, again, places)))
    return int(bool(again and not again.is_same))


def _lines(step: steps.Step, again: replay.Replay | None, places: Places) -> list[str]:
    norm = "" if step.grad_norm is None else f", gradient norm {step.grad_norm:.4g}"
    ranks = f", {step.ranks} ranks" if step.ranks > 1 else ""
    count = len(step.conversations)
    said = f"step {step.number:,}: {count:,} conversations, loss {step.loss:.4f}{norm}{ranks}"
    header = ["conversation", "trained tokens", "loss"]
    rows = [
        [places.at(one.line), f"{one.tokens:,}", f"{one.loss / max(one.tokens, 1):.4f}"]
        for one in step.conversations
    ]
    if again and again.differences:
        header.append("loss now")
        now = [f"{one.loss / max(one.tokens, 1):.4f}" for one in again.again.conversations]
        rows = [[*row, new] for row, new in zip(rows, now, strict=False)]
    table = screen.table(rows, header, sys.stdout)
    verdict = _verdict(again) if again else []
    return [said, *table, *(screen.wrapped(line, sys.stdout) for line in verdict)]


def _verdict(found: replay.Replay) -> list[str]:
    """Say what came out when the step was taken again."""
    since = f"checkpoint-{found.since}" if found.since else "the base"
    number = found.step.number
    of = (
        f"step {number:,}"
        if number == found.since + 1
        else f"steps {found.since + 1:,} to {number:,}"
    )
    said = (
        f"Taken again from {since}: the losses and gradient norms of {of} are the same to the bit"
    )
    if found.differences:
        first, how = next(iter(found.differences.items()))
        said = f"Taken again from {since}, step {first:,} differs: {'; '.join(how)}"
    lines = [f"{said}."]
    if found.files is not None:
        have = f"{', '.join(found.files)} differ" if found.files else "the same bytes"
        lines.append(f"checkpoint-{number}, then and now: {have}.")
    return lines


def _object(step: steps.Step, again: replay.Replay | None, places: Places) -> dict[str, Any]:
    rows = [
        {"place": places.at(one.line), "line": one.line, "tokens": one.tokens, "loss": one.loss}
        for one in step.conversations
    ]
    found = {"step": step.number, "loss": step.loss, "grad_norm": step.grad_norm,
             "ranks": step.ranks, "conversations": rows}  # fmt: skip
    if again:
        found["again"] = {
            "since": again.since, "same": again.is_same, "differences": again.differences,
            "files": again.files,
        }  # fmt: skip
    return found
