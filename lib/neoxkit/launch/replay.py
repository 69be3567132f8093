"""Take a step of a run again, from the checkpoint before it, and compare what was recorded."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.errors import TrainingError, UserError
from neoxkit.launch import command, process
from neoxkit.machine import GIB
from neoxkit.parallel import Progress, silent
from neoxkit.runs import checkpoints, lock, steps
from neoxkit.runs.events import EventReader, History
from neoxkit.runs.folder import ARGUMENTS, LOG
from neoxkit.settings import TrainSettings

MINE = ".replay"  # in the folder of a replay, held while it is on
BASE = "base"  # the folder of a run's random start
# Files of a checkpoint that say when and where, not what was computed.
_ABOUT = {"trainer_state.json", "training_args.bin"}


@dataclass(frozen=True)
class Replay:
    """A step that was taken again.

    `since`: the step of the checkpoint that it began from; 0: the base. `again`: the step as it was
    now. `differences`: in words, by step from the first one taken again on, of those that differ in
    any bit. `files`: those of the step's own checkpoint that have other bytes; None if the run does
    not have that checkpoint, or took the step after its ranks were converted (DeepSpeed then writes
    that into its files).
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
    of its own that is deleted afterwards; on this machine, with the ranks and threads of then.

    Refuse a step without a record, other data than the run's, steps of several settings, and a run
    that is training. A failed training leaves its folder, runs/<run>.step, to be looked at.
    """
    folder = paths.run(run)
    step = steps.at(folder, number)
    process.refuse_running(folder)
    arguments = step.start.arguments
    data = paths.find("dataset", arguments["dataset"], file=False)
    tokenized.check_sha256(data, arguments["dataset_sha256"])
    checkpoint = _before(folder, step)
    since = checkpoints.step_of(checkpoint) if checkpoint else 0
    then = steps.recorded(folder, since + 1, number)
    _refuse_several_starts(run, step, then, since)
    own = folder / f"checkpoint-{number}"
    is_kept = checkpoints.fault(own) is None
    more: dict[str, Any] = {
        "trial": True,
        "until_step": number,
        "save_steps": number if is_kept else 2**30,
    }
    with _alone(folder) as scratch:
        if is_kept:
            _check_disk(own)
        _prepare(scratch, folder, checkpoint, arguments)
        settings = _settings(folder, step).replace(run=scratch.name)
        files.write_json(scratch / ARGUMENTS, command.trainer_arguments(settings) | more)
        with _threads(step.start.threads):
            _train(process.start(settings, **more), number, progress)
        now = steps.recorded(scratch, since + 1, number)
        if number not in now or now[number].start.resumed != since:
            log = paths.short(scratch / LOG)
            raise TrainingError(f"step {number} was not taken from step {since} -- see {log}")
        comparable = is_kept and not step.start.converted
        other = _other_files(own, scratch / own.name) if comparable else None
    said = {n: steps.differences(then[n], now[n]) for n in now}
    return Replay(step, since, now[number], {n: how for n, how in said.items() if how}, other)


def _check_disk(checkpoint: Path) -> None:
    """Refuse a disk without room for another checkpoint like this one."""
    need = sum(of["size"] for of in checkpoints.manifest(checkpoint)["files"].values())
    free = shutil.disk_usage(checkpoint).free
    if need > free:
        what = f"another {checkpoint.name} needs {need / GIB:.3g} GiB, {free / GIB:.3g} are free"
        raise UserError("disk", what, "free some, or add --list")


def _before(folder: Path, step: steps.Step) -> Path | None:
    """Return the newest good checkpoint before a step that has its number of ranks."""
    for one in reversed(checkpoints.whole(folder)):
        is_before = checkpoints.step_of(one) < step.number
        fits = is_before and checkpoints.manifest(one)["num_ranks"] == step.start.ranks
        if fits and checkpoints.fault(one) is None:
            return one
    return None


def _refuse_several_starts(
    run: str, step: steps.Step, then: Mapping[int, steps.Step], since: int
) -> None:
    """Refuse steps that no single start can take again."""
    if any(n not in then for n in range(since + 1, step.number)):
        what = f"{run} has no record of all steps from {since + 1} to {step.number}"
        raise UserError("STEP", what, "choose one soon after a checkpoint, or add --list")
    if not all(one.start.computes_like(step.start) for one in then.values()):
        what = f"the steps {since + 1} to {step.number} had several settings, ranks or threads"
        raise UserError("STEP", what, "choose one soon after a checkpoint, or add --list")


def _settings(folder: Path, step: steps.Step) -> TrainSettings:
    """Return the settings of a step for a trial here, in the precision that the run had."""
    settings = command.settings_if_any(step.start.arguments, step.start.ranks)
    if settings is None:
        what = f"{folder.name} was started at a shell, not by 02_train"
        raise UserError("RUN", what, "start it by neoxkit run --only 02, or add --list")
    precision = History.of_run(folder).start["precision"]
    here = {"launcher": "local", "allow_change": [], "restart": False, "precision": precision}
    return settings.replace(**{**settings.of_trials(), **here})


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Give the empty folder runs/<run>.step to one replay at a time; delete it afterwards, unless a
    training failed there."""
    scratch = folder.with_name(f"{folder.name}.step")
    scratch.mkdir(exist_ok=True)
    if any(scratch.iterdir()) and not (scratch / MINE).exists():
        raise UserError("RUN", f"{paths.short(scratch)} is in the way", "rename it")
    held = lock.take(scratch / MINE)
    if held is None or not os.fstat(held.fileno()).st_nlink:  # deleted by one that has ended now
        what = f"another neoxkit step takes a step of {folder.name}"
        raise UserError("RUN", what, "wait until it has ended, or add --list")
    with held:
        process.refuse_running(scratch)  # what a killed one has started
        for left in scratch.iterdir():
            if left.name != MINE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        is_done = False
        try:
            yield scratch
            is_done = True
        finally:
            if is_done or not (scratch / LOG).exists():  # else there is a failure to look at
                shutil.rmtree(scratch)


def _prepare(
    scratch: Path, folder: Path, checkpoint: Path | None, arguments: Mapping[str, Any]
) -> None:
    """Link the files of the checkpoint and of the random base, if any, and write the arguments of
    then, which name the base's commit."""
    files.write_json(scratch / ARGUMENTS, {**arguments, "trial": True})
    for one in (checkpoint, folder / BASE):
        if one and one.is_dir():
            shutil.copytree(one, scratch / one.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


@contextmanager
def _threads(number: str) -> Iterator[None]:
    """Give each rank as many threads as it had: sums depend on it."""
    was = os.environ.get("OMP_NUM_THREADS")
    try:
        if number:
            os.environ["OMP_NUM_THREADS"] = number
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if was is not None:
            os.environ["OMP_NUM_THREADS"] = was


def _train(training: process.Training, number: int, progress: Progress) -> None:
    """Wait until the training has reached the step; raise if it failed."""
    reader, step = EventReader(training.folder), 0
    try:
        while training.poll() is None:
            time.sleep(0.5)
            step = max([step, *(e["step"] for e in reader.poll() if e["event"] == "train")])
            progress(min(step, number - 1), number)
    except KeyboardInterrupt:
        training.stop()
        raise
    with contextlib.suppress(process.Stopped):  # as it was asked to
        training.check()
    progress(number, number)


def _other_files(then: Path, now: Path) -> list[str]:
    """Return the files of two checkpoints of a step that differ."""
    one, other = (checkpoints.manifest(path)["files"] for path in (then, now))
    names = sorted({*one, *other} - _ABOUT)
    return [name for name in names if one.get(name) != other.get(name)]
