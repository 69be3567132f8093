"""`neoxkit fit`: whether a training fits, or which model fits on which machine."""

import sys
from collections.abc import Sequence

from neoxkit.cli import screen
from neoxkit.errors import UserError
from neoxkit.launch import machines
from neoxkit.launch.machines import Machine
from neoxkit.settings import TrainSettings


def forecast_of(settings: TrainSettings, asked: Sequence[Machine]) -> int:
    """Print the forecast of a training, here or on another machine; return 1 if it does not fit."""
    with screen.busy("importing"):
        from neoxkit.cli import terminal
        from neoxkit.lab.view import visible
        from neoxkit.launch import forecast, trials

    if len(asked) > 1:
        raise UserError("--machine", f"got {len(asked)} for one training", "give one")
    if asked and settings.probe_steps:
        raise UserError("probe_steps", "run here, not on --machine", "leave one of them out")
    if not asked:
        trials.probe(settings, terminal.Counting)
    with screen.busy("reading the dataset and the model"):
        found = forecast.on_dataset(settings, asked[0] if asked else None)
    rows = found.rows()
    side = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(screen.explained(name, visible(text), side, sys.stdout))
    return 1 if found.misfit else 0


def choices(asked: Sequence[Machine], lora_rank: int) -> int:
    """Print for each model and machine the first configuration that fits; return 0."""
    shown = asked or machines.MACHINES
    with screen.busy("computing what fits"):
        rows = machines.choices(machines.configurations(), lora_rank, shown)
    said = (
        "ds_config, how many conversations of 280 tokens fit on each GPU, GiB of host memory; by "
        "formulas (lib/neoxkit/models/memory.py) that were checked on CPUs, not yet on GPUs"
    )
    lines = screen.stacked(rows, ("model", *map(str, shown)), sys.stdout)
    print("\n".join([*lines, screen.wrapped(said, sys.stdout)]))
    return 0
