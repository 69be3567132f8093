"""Take a step of a run again, from the checkpoint before it, and compare what was recorded."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.errors import TrainingError, UserError
from neoxkit.launch import command, process
from neoxkit.parallel import Progress, silent
from neoxkit.runs import checkpoints, steps
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, is_trial
from neoxkit.settings import TrainSettings

BASE = "base"  # the folder of a run's random start
# Files of a checkpoint that say when and where, not what was computed.
_ABOUT = {"trainer_state.json", "training_args.bin"}


@dataclass(frozen=True)
class Replay:
    """A step that was taken again.

    `since`: the step of the checkpoint that it began from; 0: the base. `again`: the step as it was
    now. `differences`: in words, by step from the first one taken again on, of those that differ in
    any bit. `files`: those of the step's own checkpoint that have other bytes; None if the run does
    not have that checkpoint.
    """

    step: steps.Step
    since: int
    again: steps.Step
    differences: dict[int, list[str]]
    files: list[str] | None

    @property
    def is_same(self) -> bool:
        return not self.differences and not self.files


def replay(run: str, number: int, progress: Progress = silent) -> Replay:
    """Train from the newest checkpoint before a step (or from the base) up to the step, in a folder
    of its own that is deleted afterwards; on this machine, with as many ranks as then.

    Refuse a step without a record, other data than the run's, and a run that is training.
    """
    folder = paths.run(run)
    step = steps.of(folder, number)
    process.refuse_running(folder)
    arguments = files.read_json(folder / ARGUMENTS)
    tokenized.check_sha256(
        paths.find("dataset", arguments["dataset"], file=False), arguments["dataset_sha256"]
    )
    checkpoint = _before(folder, step)
    since = checkpoints.step_of(checkpoint) if checkpoint else 0
    with _scratch(folder, checkpoint) as scratch:
        more = {name: arguments[name] for name in ("dataset_sha256", "base_commit")}
        settings = _settings(folder, arguments, step.ranks).replace(run=scratch.name)
        _train(process.start(settings, trial=True, until_step=number, **more), number, progress)
        then, now = (steps.read(one, since + 1, number) for one in (folder, scratch))
        if number not in now:
            raise TrainingError(f"training ended before step {number} of {scratch.name}")
        found = {n: steps.differences(then[n], now[n]) for n in now if n in then}
        return Replay(
            step, since, now[number], {n: said for n, said in found.items() if said},
            _other_files(*(one / f"checkpoint-{number}" for one in (folder, scratch))),
        )  # fmt: skip


def _before(folder: Path, step: steps.Step) -> Path | None:
    """Return the newest whole checkpoint before a step that has its number of ranks."""
    earlier = [
        one
        for one in checkpoints.whole(folder)
        if checkpoints.step_of(one) < step.number
        and checkpoints.manifest(one)["num_ranks"] == step.ranks
    ]
    return earlier[-1] if earlier else None


def _settings(folder: Path, arguments: dict[str, Any], ranks: int) -> TrainSettings:
    """Return the run's settings for a trial here, in the precision that it had."""
    settings = command.settings_if_any(arguments, ranks)
    if settings is None:
        what = f"{folder.name} was started at a shell, not by 02_train"
        raise UserError("RUN", what, "start it by neoxkit run --only 02")
    precision = History.of_run(folder).start["precision"]
    here = {"launcher": "local", "allow_change": [], "restart": False, "precision": precision}
    return settings.replace(**{**settings.of_trials(), **here})


@contextmanager
def _scratch(folder: Path, checkpoint: Path | None) -> Iterator[Path]:
    """Make the folder runs/<run>.step with the checkpoint and the random base, if any; it holds
    links, so that it takes no room."""
    scratch = folder.with_name(f"{folder.name}.step")
    if scratch.exists() and not is_trial(scratch):
        what = f"{paths.short(scratch)} is in the way"
        raise UserError("RUN", what, "rename it")
    process.refuse_running(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for one in (checkpoint, folder / BASE):
        if one and one.is_dir():
            shutil.copytree(one, scratch / one.name, copy_function=_link)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _train(training: process.Training, number: int, progress: Progress) -> None:
    """Wait until the training has reached the step; raise if it failed."""
    try:
        while training.poll() is None:
            time.sleep(0.5)
            progress(max(steps.read(training.folder, 0, number), default=0), number)
    except KeyboardInterrupt:
        training.stop()
        raise
    try:
        training.check()
    except process.Stopped:  # as it was asked to
        progress(number, number)


def _other_files(then: Path, now: Path) -> list[str] | None:
    """Return the files of two checkpoints of a step that differ; None if one is not there."""
    if checkpoints.fault(then, hashes=False) or checkpoints.fault(now, hashes=False):
        return None
    one, other = (checkpoints.manifest(path)["files"] for path in (then, now))
    names = sorted({*one, *other} - _ABOUT)
    return [name for name in names if one.get(name) != other.get(name)]
