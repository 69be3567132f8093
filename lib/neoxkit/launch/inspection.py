"""What a cluster's nodes are like, asked before anything starts there: `neoxkit doctor --cluster`.

srun python -m neoxkit.launch.inspection TOKEN     # on each node, or by ssh: one line of JSON
"""

import json
import platform
import resource
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from neoxkit import machine, paths
from neoxkit.errors import UserError
from neoxkit.launch import nodes, plan, slurm, ssh
from neoxkit.runs import card
from neoxkit.settings import TrainSettings

CLOCK_SECONDS = 5.0
HOST_SECONDS = 60.0  # for an answer by ssh: Python starts slowly from a shared folder
LEAST_FILES = 1024  # open ones: a rank with several loaders needs some hundred
LEAST_KILL_WAIT = 30  # seconds: in these a preempted job must save

SHARED = "on a folder that all nodes share"

# What is asked, what was found, and what to do; empty if it will do.
Found = tuple[str, str, str]


def facts(token: Path) -> dict[str, Any]:
    """Return what this node is like; `token` is a file that the asking host has just written."""
    try:
        address = socket.gethostbyname(platform.node())
    except OSError:
        address = ""
    return {
        "node": platform.node(),
        "sees": token.is_file(),
        "time": time.time(),
        "versions": card.versions(),
        "commit": card.code()["commit"],
        "address": address,
        "gpus": machine.num_gpus(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def inspect(settings: TrainSettings) -> list[Found]:
    """Ask the nodes that a training with these settings would have, and SLURM about itself.

    On SLURM it takes a job of its own, which waits in the queue like any other.
    """
    place = nodes.of(settings)
    token = paths.root() / "runs" / f".inspection-{uuid.uuid4().hex[:8]}"
    token.parent.mkdir(exist_ok=True)
    token.touch()
    try:
        if place.launcher == nodes.HOSTFILE:
            return _of_hosts(place, token)
        return [*_of_job(settings, place, token), *_of_slurm(slurm.configuration())]
    finally:
        token.unlink()


def refuse_faults(settings: TrainSettings) -> None:
    """Refuse to start a training on hosts of which one won't do."""
    for host, what, remedy in inspect(settings):
        if remedy:
            raise UserError("hostfile", f"{host}: {what}", remedy)


def _of_job(settings: TrainSettings, place: nodes.Place, token: Path) -> list[Found]:
    slurm.require()
    before = time.time()
    done = slurm.on_each_node(settings, _program(token))
    after = time.time()
    if done.returncode:
        what = f"no job could ask the nodes: {slurm.last_error(done.stderr)}"
        raise UserError("slurm", what, "correct slurm or cluster.yaml, or see sinfo")
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [_of_node(one, place, before, after) for one in sorted(answers, key=_name)]
    return [line for lines in found for line in lines]


def _of_hosts(place: nodes.Place, token: Path) -> list[Found]:
    """Ask all hosts of a hostfile at once, by ssh."""
    with ThreadPoolExecutor(len(place.hosts)) as pool:
        found = pool.map(lambda host: _of_host(host, place, token), place.hosts)
        return [line for lines in found for line in lines]


def _of_host(host: str, place: nodes.Place, token: Path) -> list[Found]:
    before = time.time()
    try:
        done = subprocess.run(
            ssh.command(host, _program(token)),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HOST_SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError("hostfile", "there is no ssh here", "install openssh-client") from None
    except subprocess.TimeoutExpired:
        return [(host, f"gave no answer in {HOST_SECONDS:.0f} s", "look at its shared folder")]
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not said:
        what = ssh.why(done.returncode, done.stderr)
        return [(host, what, ssh.remedy(host, done.returncode))]
    return _of_node({**json.loads(said[-1]), "node": host}, place, before, time.time())


def _program(token: Path) -> list[str]:
    return ["neoxkit.launch.inspection", str(token)]


def _name(one: Mapping[str, Any]) -> str:
    return one["node"]


def _of_node(
    one: Mapping[str, Any], place: nodes.Place, before: float, after: float
) -> list[Found]:
    """Return a line for the node, and one for each of its faults."""
    here, its = card.versions(), one["versions"]
    other = [f"{name} {its.get(name, '(none)')}" for name in here if its.get(name) != here[name]]
    off = one["time"] - after
    faults = [
        (not one["sees"], "does not see this folder's newest file", f"put it {SHARED}"),
        (other, f"has {', '.join(other)}", f"use one environment for all, {SHARED}"),
        (one["commit"] != card.code()["commit"], f"has commit {(one['commit'] or 'none')[:12]}",
         f"use one checkout for all, {SHARED}"),
        (not before - CLOCK_SECONDS < one["time"] < after + CLOCK_SECONDS,
         f"its clock is off by {off:+.0f} s", "set it (NTP)"),
        (place.on_gpu and one["gpus"] < place.ranks_a_node,
         f"shows {one['gpus']} GPUs, {place.ranks_a_node} are needed",
         f"{plan.MORE_GPUS[place.launcher]}; see neoxkit doctor on that node"),
        (one["files"] < LEAST_FILES, f"allows {one['files']} open files",
         f"ulimit -n {LEAST_FILES}, in setup of cluster.yaml"),
    ]  # fmt: skip
    good = f"sees this folder, has the same versions, {one['gpus']} GPUs"
    if not one["address"] or one["address"].startswith("127."):
        good += f"; its own name is {one['address'] or 'unknown there'}, which the kit works around"
    lines = [(what, remedy) for is_so, what, remedy in faults if is_so] or [(good, "")]
    return [(one["node"], what, remedy) for what, remedy in lines]


def _of_slurm(config: Mapping[str, str]) -> list[Found]:
    """Return what matters of SLURM's own configuration."""
    wait = int(config.get("KillWait", "30 sec").split()[0])
    preempts = config.get("PreemptMode", "OFF")
    site = "do" if config.get("JobRequeue", "1") == "1" else "do not"
    rows = [
        ("KillWait", f"{wait} s to save in at a preemption",
         "" if wait >= LEAST_KILL_WAIT else "save often (save_steps): a save may be cut off"),
        ("PreemptMode", preempts,
         "" if preempts != "CANCEL" else "a preempted job does not come back: run it again"),
        ("JobRequeue", f"other jobs {site} come back by themselves; the kit's ask for it", ""),
        ("MaxArraySize", config.get("MaxArraySize", "?") + " runs in a sweep, at most", ""),
    ]  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print this node's facts."""
    print(json.dumps(facts(Path((sys.argv[1:] if argv is None else argv)[0]))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
