"""`neoxkit step`: what a step trained on, and whether the same step now gives the same bits."""

import json
import sys
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.cli import screen, terminal
from neoxkit.data.places import Places
from neoxkit.launch import replay
from neoxkit.parallel import silent
from neoxkit.runs import steps
from neoxkit.runs.folder import ARGUMENTS, DATASET


def show(run: str, number: int, only_list: bool, as_json: bool) -> int:
    """Print a step's conversations and losses, take it again unless `only_list`, and say what
    differs; return 1 if anything does."""
    folder, again = paths.run(run), None
    if not only_list:
        progress = silent if as_json else terminal.Counting(f"{run}.step, steps")
        again = replay.replay(run, number, progress)
    step = again.step if again else steps.at(folder, number)
    places = _places(folder, step)
    if as_json:
        print(json.dumps(_object(step, again, places), indent=1))
    else:
        print("\n".join(_lines(step, again, places)))
    return int(bool(again and not again.is_same))


def _places(folder: Path, step: steps.Step) -> Places:
    """Return the places of the data that the step was trained on; lines without a file if the run
    has gone on with other data since."""
    arguments, manifest = step.start.arguments, files.read_json(folder / DATASET)
    newest = files.read_json(folder / ARGUMENTS)
    same = arguments["dataset_sha256"] == newest.get("dataset_sha256")
    return Places.of(manifest["source"]) if same else Places("earlier data")


def _lines(step: steps.Step, again: replay.Replay | None, places: Places) -> list[str]:
    norm = "" if step.grad_norm is None else f", gradient norm {step.grad_norm:.4g}"
    ranks = f", {step.start.ranks} ranks" if step.start.ranks > 1 else ""
    count = len(step.conversations)
    said = f"step {step.number:,}: {count:,} conversations, loss {step.loss:.4f}{norm}{ranks}"
    header = ["conversation", "trained tokens", "loss"]
    rows = [
        [places.at(one.line), f"{one.tokens:,}", f"{one.mean:.4f}"] for one in step.conversations
    ]
    if again and again.differences and steps.same_lines(step, again.again):
        header.append("loss now")
        now = (f"{one.mean:.4f}" for one in again.again.conversations)
        rows = [[*row, new] for row, new in zip(rows, now, strict=True)]
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
    found: dict[str, Any] = {"step": step.number, "loss": step.loss, "grad_norm": step.grad_norm,
             "ranks": step.start.ranks, "conversations": rows}  # fmt: skip
    if again:
        found["again"] = {
            "since": again.since, "same": again.is_same, "differences": again.differences,
            "files": again.files,
        }  # fmt: skip
    return found
