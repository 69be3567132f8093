"""The first program of each rank in a SLURM job: it checks the node, then becomes the training.

    srun python -m neoxkit.launch.join runs/NAME

SLURM's variables become those of DeepSpeed and torch, which read none of SLURM's.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoxkit.errors import UserError, as_fields
from neoxkit.launch import command, plan, routes
from neoxkit.runs import jobs, lease
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS


def main(argv: Sequence[str] | None = None) -> int:
    """Become a rank of the training in a run folder; return 2 where this node can't be one."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    try:
        planned = plan.facts(folder)
        plan.check_here(planned)
        env = environment(planned, os.environ)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        append_event(folder, "error", **as_fields(mistake))
        return 2
    train = [sys.executable, "-u", "-m", "neoxkit.train", str(folder / ARGUMENTS)]
    os.execve(sys.executable, train, env)


def environment(planned: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return the rank's environment, by what SLURM has `given` it."""
    restart = given.get("SLURM_RESTART_COUNT") or "0"
    own = {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "WORLD_SIZE": given["SLURM_NTASKS"],
        "LOCAL_SIZE": str(planned["ranks"]),
        lease.VARIABLE: f"{lease.SLURM} {jobs.own(given)} {restart}",
    }
    if not planned["on_gpu"]:  # whatever the node has, the job has asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    env = command.environment(planned["ranks"]) | own
    if cores := given.get("SLURM_CPUS_PER_TASK"):
        env["OMP_NUM_THREADS"] = given.get("OMP_NUM_THREADS", cores)
    env["MASTER_ADDR"] = _reachable(given["MASTER_ADDR"], given.get("SLURM_LAUNCH_NODE_IPADDR"))
    if not planned["on_gpu"] and "GLOO_SOCKET_IFNAME" not in env and (name := _interface(given)):
        env["GLOO_SOCKET_IFNAME"] = name
    return env


def _reachable(name: str, address: str | None) -> str:
    """Return the first node's name, or its address where the name can't be looked up."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return address or name
    return name


def _interface(given: Mapping[str, str]) -> str:
    """Return the network interface that leads to the job's other nodes; empty if there are none.

    Gloo asks for the address of the own name, which many systems give as 127.0.1.1.
    """
    done = subprocess.run(
        ["scontrol", "show", "hostnames", given["SLURM_JOB_NODELIST"]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for other in done.stdout.split():
        if other != given.get("SLURMD_NODENAME") and (address := routes.towards(other)):
            return routes.interface(address)
    return ""


if __name__ == "__main__":
    sys.exit(main())
