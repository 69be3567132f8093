"""Where a training runs: this machine, or a cluster's nodes; ranks, GPUs and memory there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.launch import cluster_file, host_file, machines
from neoxkit.models import loading
from neoxkit.settings import TrainSettings

LOCAL, SLURM, HOSTFILE = "local", "slurm", "hostfile"
# Options of sbatch that give a node GPUs, the best known first.
GPU_OPTIONS = ("gpus-per-node", "gres")
_ONLY_FOR = {"num_nodes": SLURM, "slurm": SLURM, "hostfile": HOSTFILE}
_UNITS = {"K": 2**-20, "M": 2**-10, "": 2**-10, "G": 1.0, "T": 1024.0}  # GiB of one; SLURM counts M


@dataclass(frozen=True)
class Place:
    """A place to run a training: a number of ranks, on GPUs or in CPU processes.

    `num_ranks` are those of all nodes together. `precision` is the meaning of "auto" there;
    `device_gib` is the memory that a rank can have, `host_gib` the memory that all of a node share;
    None if unknown.
    """

    num_ranks: int
    on_gpu: bool
    precision: str
    device_gib: float | None
    host_gib: float | None
    num_nodes: int = 1
    launcher: str = LOCAL
    hosts: tuple[str, ...] = ()  # of a hostfile, as ssh knows them

    @property
    def ranks_a_node(self) -> int:
        return self.num_ranks // self.num_nodes


def of(settings: TrainSettings, at_once: int = 1) -> Place:
    """Return the place that the settings name; `at_once` trainings share a host's memory here.

    What this machine has says nothing about a cluster's nodes.
    """
    for name, launcher in _ONLY_FOR.items():
        is_default = getattr(settings, name) == getattr(TrainSettings(), name)
        if launcher != settings.launcher and not is_default:
            remedy = f"set launcher to {launcher}, or leave {name} out"
            raise UserError(name, f"is for launcher {launcher}", remedy)
    if settings.launcher == SLURM:
        return _of_job(settings)
    if settings.launcher == HOSTFILE:
        return _of_hosts(settings)
    ranks, on_gpu = machine.num_ranks(settings), machine.num_gpus() > 0
    precision = loading.best_precision(on_gpu)
    device_gib = machine.device_gib(on_gpu, ranks if on_gpu else ranks * at_once)
    return Place(ranks, on_gpu, precision, device_gib, machine.available_gib() / at_once)


def _of_job(settings: TrainSettings) -> Place:
    """Return the nodes of a job, by what is asked of SLURM and what the site file says of them."""
    options = cluster_file.options(settings.slurm)
    gpus = _gpus(options)
    if gpus and settings.num_ranks > gpus:
        what = f"got {settings.num_ranks}, the job asks for {gpus} GPUs a node"
        raise UserError("num_ranks", what, "lower it, or raise gpus-per-node in slurm")
    if not (gpus or settings.num_ranks):
        what = "names no GPUs, and num_ranks is 0: how many ranks a node?"
        remedy = "write slurm: {gpus-per-node: 8}, or num_ranks for CPU processes"
        raise UserError("slurm", what, remedy)
    ranks = settings.num_ranks or gpus
    host = _gib(options.get("mem"))
    device = cluster_file.read().get("gpu_gib") if gpus else host and host / ranks
    precision = "bf16" if gpus else "fp32"
    return Place(
        ranks * settings.num_nodes, gpus > 0, precision, device, host, settings.num_nodes, SLURM
    )


def _of_hosts(settings: TrainSettings) -> Place:
    """Return the hosts of a hostfile, as many ranks on each; their slots are GPUs, if they have
    any."""
    hosts = host_file.hosts_in(settings.hostfile)
    least, most = (which(hosts, key=lambda host: host.slots) for which in (min, max))
    ranks = settings.num_ranks or most.slots
    if not ranks:
        what = "names no GPUs (slots=0), and num_ranks is 0: how many ranks a host?"
        raise UserError("hostfile", what, "write slots=8, or set num_ranks for CPU processes")
    if most.slots and ranks > least.slots:
        what = f"{ranks} a host, but {least.name} has slots={least.slots}"
        raise UserError("num_ranks", what, "lower it, or leave that host out of the hostfile")
    on_gpu = most.slots > 0
    return Place(
        ranks * len(hosts),
        on_gpu,
        "bf16" if on_gpu else "fp32",
        cluster_file.read().get("gpu_gib") if on_gpu else None,
        None,
        len(hosts),
        HOSTFILE,
        tuple(host.name for host in hosts),
    )


def _gpus(options: Mapping[str, Any]) -> int:
    """Return how many GPUs sbatch's options ask of each node.

    >>> _gpus({"gpus-per-node": "a100:4"}), _gpus({"gres": "gpu:2,tmp:9"}), _gpus({"gres": "gpu"})
    (4, 2, 1)
    """
    for name in GPU_OPTIONS:
        for part in str(options.get(name, "")).split(","):
            kind, _, count = part.rpartition(":") if ":" in part else ("", "", part)
            if name == "gres" and (kind or part).split(":")[0] != "gpu":
                continue
            if part == "gpu":
                return 1
            if re.fullmatch(r"\d+", count):
                return int(count)
    return 0


def _gib(memory: Any) -> float | None:
    """Return the GiB of sbatch's --mem; None if it is all of the node's, or not said.

    >>> _gib("64G"), _gib(512), _gib(0)
    (64.0, 0.5, None)
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", str(memory or "").upper())
    return int(found[1]) * _UNITS[found[2]] or None if found else None


def elsewhere(settings: TrainSettings, there: machines.Machine) -> Place:
    """Return another machine, with GPUs assumed to be fast at bf16 and an unknown host."""
    if settings.num_ranks > there.num_gpus:
        what = f"got {settings.num_ranks}, {there} has {there.num_gpus} GPUs"
        raise UserError("num_ranks", what, "lower it")
    num_ranks = settings.num_ranks or there.num_gpus
    num_nodes = min(there.num_nodes, num_ranks)
    return Place(num_ranks, True, "bf16", float(there.gib), None, num_nodes)
