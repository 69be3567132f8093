"""What each node of a training must know, launch.json in the run folder, and its check there."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import files, machine
from neoxkit.errors import UserError
from neoxkit.launch import nodes
from neoxkit.runs import card
from neoxkit.settings import TrainSettings

FILE = "launch.json"
MORE_GPUS = {nodes.SLURM: "ask for gpus-per-node", nodes.HOSTFILE: "correct its slots"}


def write(folder: Path, settings: TrainSettings) -> None:
    """Write the plan of a run that starts."""
    place = nodes.of(settings)
    files.write_json(
        folder / FILE,
        {
            "launcher": place.launcher,
            "hosts": place.hosts,
            "ranks": place.ranks_a_node,
            "on_gpu": place.on_gpu,
            "versions": card.versions(),
        },
    )


def facts(folder: Path) -> dict[str, Any]:
    """Return what the start of a run has written for its nodes."""
    return files.read_json(folder / FILE)


def check_here(plan: Mapping[str, Any]) -> None:
    """Refuse a node with other packages than the host that the training was started from, or
    without the GPUs that were asked for."""
    node, here, where = platform.node(), card.versions(), plan["launcher"]
    for name, version in plan["versions"].items():
        if here.get(name) != version:
            what = f"node {node} has {name} {here.get(name, '(none)')}, the start had {version}"
            raise UserError(where, what, "use one environment for all, on a shared folder")
    gpus = machine.num_gpus()
    if plan["on_gpu"] and gpus < plan["ranks"]:
        what = f"node {node} shows {gpus} GPUs to its {plan['ranks']} ranks"
        remedy = f"{MORE_GPUS[where]}, and see neoxkit doctor on that node"
        raise UserError(where, what, remedy)
