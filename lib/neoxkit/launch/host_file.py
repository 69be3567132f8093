"""A hostfile, as DeepSpeed reads it: a line for each machine that ssh reaches, `n1 slots=8`.

A slot is a GPU. With `slots=0` the ranks are CPU processes, as many on each host as `num_ranks`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from neoxkit import paths
from neoxkit.errors import UserError

WHERE = "hostfile"  # the parameter
EXAMPLE = "write a line for each host: n1 slots=8"
_LINE = re.compile(r"(?P<name>[\w][\w.@:-]*)\s+slots=(?P<slots>\d+)")  # no name may be an option


@dataclass(frozen=True)
class Host:
    """A machine, by the name that ssh knows, and how many GPUs of it may be used."""

    name: str
    slots: int


def hosts_in(value: str) -> list[Host]:
    """Return a hostfile's hosts, in its order; the first has rank 0."""
    path = paths.find(WHERE, value)
    lines = path.read_text(encoding="utf-8").splitlines()
    hosts = [_host(path, number, line) for number, line in enumerate(lines, 1) if _is_said(line)]
    if not hosts:
        raise UserError(WHERE, f"{paths.short(path)} names no host", EXAMPLE)
    names = [host.name for host in hosts]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        what = f"{paths.short(path)} names {twice} twice"
        raise UserError(WHERE, what, "give it all its slots in one line")
    return hosts


def _is_said(line: str) -> bool:
    """Return whether a line says something: it is not empty, and no comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _host(path: Path, number: int, line: str) -> Host:
    found = _LINE.fullmatch(line.partition("#")[0].strip())
    if not found:
        raise UserError(f"{paths.short(path)}:{number}", f"can't read {line.strip()!r}", EXAMPLE)
    return Host(found["name"], int(found["slots"]))
