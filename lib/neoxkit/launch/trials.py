"""Trials: a few steps of a training in a separate run, without checkpoint or model."""

import shutil
import time
from collections.abc import Callable
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import NotFinite
from neoxkit.launch import command, process, slurm
from neoxkit.parallel import Progress
from neoxkit.runs.events import EventReader
from neoxkit.runs.folder import ARGUMENTS, is_trial
from neoxkit.settings import TrainSettings


def trial_settings(settings: TrainSettings, name: str, steps: int, **changes: Any) -> TrainSettings:
    """Return the settings of a trial of `steps` steps, runs/<run>.<name>, evaluated at the end."""
    once = dict.fromkeys(("max_steps", "save_steps", "eval_steps"), steps)
    run = f"{settings.run}.{name}"
    return settings.replace(**settings.of_trials(), **once, run=run).replace(**changes)


def train(settings: TrainSettings, progress: Progress, **arguments: Any) -> bool:
    """Train to the end (True), or to the step whose loss or gradient is not finite (False).

    A finished trial with the same settings is not run again; one with other settings is replaced.
    `arguments`: more of the trainer's arguments.
    """
    arguments["trial"] = True
    _forget(settings, command.trainer_arguments(settings) | arguments)
    training = process.start(settings, **arguments)
    reader, step = EventReader(training.folder), 0
    try:
        while training.poll() is None:
            time.sleep(0.5)
            step = max([step, *(e["step"] for e in reader.poll() if e["event"] == "train")])
            progress(step, settings.max_steps)
    except KeyboardInterrupt:
        slurm.stop(training.folder, now=True)
        training.stop()
        raise
    try:
        training.check()
    except NotFinite:
        return False
    return True


def probe(settings: TrainSettings, show: Callable[[str], Progress]) -> None:
    """Train `probe_steps` steps, which correct estimates and forecasts; do nothing if 0.

    It runs anew each time: the machine may be busier or less busy than the last time.
    """
    if settings.probe_steps:
        test = trial_settings(settings, "probe", settings.probe_steps)
        _forget(test)
        train(test, show("probe, steps"))


def _forget(settings: TrainSettings, unless: dict[str, Any] | None = None) -> None:
    """Delete the earlier trial of this name, unless it had these of the trainer's arguments.

    Nothing else is deleted: the user's own run of that name is refused as usual.
    """
    folder = paths.run(settings.run)
    if not is_trial(folder):
        return
    process.refuse_running(folder)
    if files.read_json(folder / ARGUMENTS) != unless:
        shutil.rmtree(folder)
