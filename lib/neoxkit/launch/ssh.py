"""Programs of the kit on other hosts, by ssh."""

import shlex
import sys
from collections.abc import Sequence

from neoxkit.errors import shorten
from neoxkit.launch import cluster_file

UNREACHED = 255  # ssh's own exit code, where it reached no host or lost it
CONNECT_SECONDS = 10
# ssh itself finds out within 15 s that a host is gone.
_OPTIONS = (
    "BatchMode=yes",  # no question: nobody may be there to answer it
    f"ConnectTimeout={CONNECT_SECONDS}",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)


def command(host: str, program: Sequence[str]) -> list[str]:
    """Return the command that runs a module of Python on a host, in the kit's root folder there,
    after the site's set-up lines."""
    options = [word for option in _OPTIONS for word in ("-o", option)]
    script = "\n".join(cluster_file.script_of([sys.executable, "-m", *program]))
    return ["ssh", *options, host, shlex.join(["bash", "-c", script])]


def why(code: int, said: str) -> str:
    """Say in a few words why a command on a host failed, by the last line that it has said.

    >>> why(255, "n2: Permission denied (publickey).\\r\\n")
    "ssh can't reach it: n2: Permission denied (publickey)."
    """
    last = shorten(said.strip().rpartition("\n")[2].strip() or "no word", 80)
    if code == UNREACHED:
        return f"ssh can't reach it: {last}"
    return f"can't run the kit (exit code {code}): {last}"


def remedy(host: str, code: int) -> str:
    """Return what to do after a failed command on a host."""
    if code == UNREACHED:
        return f"ssh {host} must work without a password"
    return "put checkout and environment on a folder that all hosts share"
