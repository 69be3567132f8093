"""Is anybody looking? How many browser tabs are connected to this kernel, by its Jupyter server."""

import json
import os
import urllib.request
from functools import cache
from pathlib import Path


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
