"""A few steps of a training in a run of its own, which leaves neither checkpoint nor model."""

import shutil
import time
from collections.abc import Callable
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import NotFinite
from neoxkit.launch import command, process
from neoxkit.parallel import Progress
from neoxkit.runs import lock
from neoxkit.runs.events import EventReader
from neoxkit.runs.folder import ARGUMENTS, is_trial
from neoxkit.settings import TrainSettings


def of(settings: TrainSettings, name: str, steps: int, **changes: Any) -> TrainSettings:
    """So many steps of a training as runs/<run>.<name>; its loss is measured at their end."""
    others = settings.training_arguments | {"trial": True}
    return settings.replace(
        run=f"{settings.run}.{name}", max_steps=steps, logging_steps=1, save_steps=steps,
        eval_steps=steps, num_replies=0, probe_steps=0, range_test_steps=0, hub_model_id="",
        restart=False, allow_change=[], training_arguments=others,
    ).replace(**changes)  # fmt: skip


def train(settings: TrainSettings, progress: Progress) -> bool:
    """Train to the end (True), or to the step whose loss or gradient is not finite (False).

    A finished one of the same settings is not trained again; one of other settings is replaced.
    """
    _forget(settings)
    training = process.start(settings)
    reader, step = EventReader(training.folder), 0
    try:
        while training.poll() is None:
            time.sleep(0.5)
            step = max([step, *(e["step"] for e in reader.poll() if e["event"] == "train")])
            progress(step, settings.max_steps)
    except KeyboardInterrupt:
        training.stop()
        raise
    try:
        training.check()
    except NotFinite:
        return False
    return True


def probe(settings: TrainSettings, show: Callable[[str], Progress]) -> None:
    """Train `probe_steps` steps, by which estimates and forecasts are corrected; 0: nothing.

    Always anew: the machine may have other things to do than the last time.
    """
    if settings.probe_steps:
        test = of(settings, "probe", settings.probe_steps)
        _forget(test, even_the_same=True)
        train(test, show("probe, steps"))


def _forget(settings: TrainSettings, even_the_same: bool = False) -> None:
    """Delete the earlier trial of this name where it was one of other settings.

    Nothing else is deleted: a run of a person's own is refused as ever.
    """
    folder = paths.run(settings.run)
    if not is_trial(folder):
        return
    lock.refuse_locked(folder)
    began = files.read_json(folder / ARGUMENTS)
    if even_the_same or began != command.trainer_arguments(settings):
        shutil.rmtree(folder)
