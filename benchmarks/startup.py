"""Seconds that a person waits before something can be seen, and what a short run of a sweep takes.

python benchmarks/startup.py notebook NAME --cell PIECE    a notebook's cells up to that one
python benchmarks/startup.py hub HOW                       a hub that can't be reached
python benchmarks/startup.py sweep --runs N --steps N      a sweep of short runs

Programs of the benchmark: each prints one line of JSON.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

import inputs
from neoxkit import paths
from neoxkit.runs.events import read_events
from stepclock import print_result

PATIENCE_SECONDS = 600
SHOWN = {"display_data", "execute_result", "stream", "comm_open"}  # what a person sees first
NAME = "owner/name"
ASK = f"""import time
from neoxkit.data import downloads
from neoxkit.errors import UserError
from neoxkit.models import loading
ask = {{
    "model": lambda: loading.load_model({NAME!r}),
    "tokenizer": lambda: loading.load_tokenizer({NAME!r}),
    "data": lambda: downloads.fetch("train_file", {NAME!r}, []),
}}
import sys, datasets, transformers.models.auto.tokenization_auto  # not what is measured
begun = time.perf_counter()
try:
    ask[sys.argv[1]]()
except UserError:
    print(time.perf_counter() - begun)
"""


def cells(notebook: str) -> list[str]:
    """Return the code of a notebook's cells, in order."""
    path = inputs.REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    made = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in made if cell["cell_type"] == "code"]


@contextmanager
def kernel() -> Iterator[BlockingKernelClient]:
    """Start a kernel of this Python in the kit's root; yield its client, ready to execute."""
    own = KernelSpecManager(kernel_dirs=[])  # which knows no Python but this one
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=own)
    manager.start_kernel(cwd=str(inputs.HOME), extra_arguments=["--log-level=CRITICAL"])
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE_SECONDS)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(client: BlockingKernelClient, code: str) -> tuple[float | None, float]:
    """Execute a cell; return the seconds to its first output, None without one, and to its end."""
    begun, first = time.perf_counter(), None
    asked = client.execute(code)
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE_SECONDS)
        if message["parent_header"].get("msg_id") != asked:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind in SHOWN and first is None:
            first = time.perf_counter() - begun
        if kind == "error":
            raise SystemExit("\n".join(content["traceback"]))
        if kind == "status" and content["execution_state"] == "idle":
            return first, time.perf_counter() - begun


def notebook(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of the cell with that piece of code, and of all from the imports up to it,
    in a new kernel; `sign_seconds`: the longest time that one of them showed nothing at first."""
    code = cells(options.name)
    (last,) = [i for i, cell in enumerate(code) if options.cell in cell]
    given = "\n".join(options.given)
    with kernel() as client:
        execute(client, f"{code[0]}\n{given}")
        took = [execute(client, cell) for cell in code[1 : last + 1]]
    ends = [end for _, end in took]
    signs = [end if first is None else first for first, end in took]
    return {"seconds": ends[-1], "sign_seconds": max(signs), "together_seconds": sum(ends)}


def hub(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds to each refusal of a hub that nobody serves, or that never answers."""
    address = {"nobody": "http://127.0.0.1:9", "silent": _silent()}[options.name]
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
    took = {}
    for what in ("model", "tokenizer", "data"):
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-c", ASK, what], env=env | {"HF_HOME": cache},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        took[f"{what}_seconds"] = float(done.stdout)
    return took | {"seconds": max(took.values())}


def _silent() -> str:
    """Return the address of a server that takes connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    taken: list[socket.socket] = []

    def take() -> None:
        while True:
            taken.append(server.accept()[0])

    threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def sweep(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds, and those of processor time, that a run of a sweep takes, 04 included;
    `training_seconds`: between its start event and its last, evaluations included."""
    for folder in (inputs.HOME / "runs").glob("short*"):
        shutil.rmtree(folder)
    seeds = ",".join(map(str, range(options.runs)))
    flags = ["-p", "run", "short", "-p", "max_steps", str(options.steps), "-p", "seed", seeds]
    begun, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "neoxkit.cli", "sweep", "02_train", *flags], check=True)
    took, after = time.perf_counter() - begun, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # of children, theirs included
    events = [read_events(paths.run(f"short.seed={seed}")) for seed in range(options.runs)]
    trained = mean(run[-1]["time"] - run[0]["time"] for run in events)
    return {
        "seconds": took / options.runs,
        "cpu_seconds": cpu / options.runs,
        "training_seconds": trained,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["notebook", "hub", "sweep"])
    parser.add_argument("name", nargs="?", help="a notebook's; or nobody, silent")
    parser.add_argument("--cell", help="a piece of the code of the notebook's last cell")
    parser.add_argument("--given", action="append", default=[], help="a line after its parameters")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    print_result(**{"notebook": notebook, "hub": hub, "sweep": sweep}[options.what](options))


if __name__ == "__main__":
    main()
