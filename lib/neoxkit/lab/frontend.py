"""Is anybody looking? How many browser tabs are connected to this kernel, by its Jupyter server."""

import json
import os
import urllib.request
from functools import cache
from pathlib import Path

import ipywidgets as widgets
import psutil
from IPython.display import display

UNATTENDED = {"papermill", "neoxkit", "nbconvert", "jupyter-nbconvert", "jupyter-execute"}


def show(box: widgets.Widget, text: str) -> None:
    """Display a widget; where nobody can move it, the text that stands for it alone.

    A widget in a notebook that papermill executed is an empty place in its HTML.
    """
    bundle = {} if unattended() else box._repr_mimebundle_()
    display({**bundle, "text/plain": text}, raw=True)


@cache
def unattended() -> bool:
    """Whether this kernel was started by a program that executes notebooks."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False
    program = command[2:3] if command[1:2] == ["-m"] else command[1:2]
    return any(Path(name).stem in UNATTENDED for name in program)


def num_tabs() -> int | None:
    """Connections to this process's kernel; None where no Jupyter server tells (papermill, say)."""
    found = _address()
    if not found:
        return None
    url, token = found
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return int(json.load(answer)["connections"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def _address() -> tuple[str, str] | None:
    """Where this kernel's server tells of it, and the server's token."""
    started_by = os.environ.get("JPY_PARENT_PID", "")
    try:
        from ipykernel.connect import get_connection_file
        from jupyter_server.serverapp import list_running_servers

        kernel = Path(get_connection_file()).stem.removeprefix("kernel-")
        for server in list_running_servers():
            if str(server["pid"]) == started_by and server["token"]:
                return f"{server['url']}api/kernels/{kernel}", server["token"]
    except (ImportError, RuntimeError, OSError, KeyError):
        pass
    return None
