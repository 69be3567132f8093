"""A cluster's own facts: cluster.yaml in the kit's root folder, which a site writes once.

slurm: {partition: gpu, account: lab, gpus-per-node: 8}   # of every job; a run's own win
setup: ["module load cuda/12.8"]                          # lines before the job's program
gpu_gib: 80                                               # memory of a GPU, for the forecast
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from neoxkit import fields, paths
from neoxkit.errors import UserError, near

FILE = "cluster.yaml"
_KEYS: dict[str, Any] = {"slurm": dict, "setup": list, "gpu_gib": (int, float)}
# What a job's own script says, and where else a person says it.
_OURS = {
    "nodes": "set num_nodes",
    "ntasks": "set num_nodes and num_ranks",
    "ntasks-per-node": "set num_ranks",
    "job-name": "set run",
    "output": "its log is runs/RUN/train.log",
    "error": "its log is runs/RUN/train.log",
    "open-mode": "leave it out",
    "signal": "leave it out",
    "requeue": "leave it out",
    "no-requeue": "leave it out",
    "array": "start several runs",
    "chdir": "leave it out",
    "wrap": "leave it out",
    "wait": "leave it out",
    "test-only": "use neoxkit doctor --cluster",
    "clusters": "submit where the cluster is",
    "export": "set variables in setup, in cluster.yaml",
    "gpus": "use gpus-per-node",
    "gpus-per-task": "use gpus-per-node",
    "gpu-bind": "leave it out",
}


def read() -> dict[str, Any]:
    """Return what cluster.yaml says; empty if there is none."""
    path = paths.root() / FILE
    if not path.is_file():
        return {}
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as fault:
        line = getattr(getattr(fault, "problem_mark", None), "line", 0) + 1
        raise UserError(f"{FILE}:{line}", "is not YAML", "correct that line") from None
    if not isinstance(said, dict):
        raise UserError(FILE, "is not a mapping", f"write {', '.join(_KEYS)}")
    for name, value in said.items():
        if name not in _KEYS:
            remedy = near(str(name), _KEYS, f"it may have {', '.join(_KEYS)}")
            raise UserError(FILE, f"{name!r} is not known", remedy)
        if not isinstance(value, _KEYS[name]):
            kind = fields.NOUNS.get(_KEYS[name], "a number")
            raise UserError(FILE, f"{name} must be {kind}, got {value!r}", "correct it")
    return said


def script_of(program: Sequence[str]) -> list[str]:
    """Return the shell lines that run a program on a node, in the kit's root folder, after the
    site's set-up lines."""
    root = shlex.quote(str(paths.root()))
    setup = map(str, read().get("setup", []))
    to_root = [f"cd {root} || exit 1", f"export NEOXKIT_HOME={root}"]
    return [*to_root, *setup, f"exec {shlex.join(program)}"]


def options(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's options: the site's, then the run's; refuse what the kit itself decides."""
    site = read().get("slurm", {})
    for where, given in ((FILE, site), ("slurm", own)):
        for name, value in given.items():
            _check(where, str(name), value)
    return {**site, **own}


def _check(where: str, name: str, value: Any) -> None:
    """Refuse an option that is no long name, is ours, or could break its line of the script."""
    if not re.fullmatch(r"[a-z][a-z-]+", name):
        what = f"{name!r} is not a long name of sbatch's options"
        raise UserError(where, what, "write {partition: gpu, time: '8:00:00'}")
    if name in _OURS:
        raise UserError(where, f"{name} is not for a person to set here", _OURS[name])
    if isinstance(value, float | list | dict) or value is None or not str(value).isprintable():
        raise UserError(where, f"{name} can't be {value!r}", "write it as sbatch takes it, quoted")
    if name == "time" and isinstance(value, int):  # YAML reads 8:00:00 as seconds
        what = f"time is the number {value}: YAML reads 8:00:00 as 28800"
        raise UserError(where, what, 'quote it: time: "8:00:00"')
