"""`neoxkit doctor`: what this machine has, what is missing for which feature, and the remedy."""

import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from neoxkit import paths
from neoxkit.cli import parameters, screen
from neoxkit.settings import TrainSettings

Found = tuple[str, bool]  # what was found, and whether it will do

BESIDE = f"{Path(sys.executable).parent}{os.pathsep}"  # before PATH, as a training has it


def _package(name: str) -> Found:
    try:
        return importlib.metadata.version(name), True
    except importlib.metadata.PackageNotFoundError:
        return "missing", False


def _program(*names: str) -> Found:
    path = BESIDE + os.environ.get("PATH", "")
    found = next((program for n in names if (program := shutil.which(n, path=path))), None)
    return found or "missing", found is not None


def _python() -> Found:
    return ".".join(map(str, sys.version_info[:3])), sys.version_info >= (3, 11)


def _torch() -> Found:
    import torch

    if torch.version.cuda:
        return f"{torch.__version__}, CUDA {torch.version.cuda}", True
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        return f"{torch.__version__}, a CPU build, though there is a GPU", False
    return f"{torch.__version__}, a CPU build", True


def _gpus() -> Found:
    import torch

    if not torch.cuda.is_available():
        return "none: everything runs on the CPU, large models slowly", True
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    kinds = Counter(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
    bf16 = "yes" if torch.cuda.is_bf16_supported(False) else "no: use fp16 or fp32"
    return "; ".join(f"{n} x {kind}" for kind, n in kinds.items()) + f"; bf16 {bf16}", True


def _nvcc() -> Found:
    import torch

    if not torch.version.cuda:
        return "not needed with a CPU build of torch", True
    version = "missing"
    if nvcc := shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin"):
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
        match = re.search(r"release (\d+\.\d+)", done.stdout)
        version = match[1] if match else "unknown"
    same = version.split(".")[0] == torch.version.cuda.split(".")[0]
    return f"{version}; torch was built with {torch.version.cuda}", same


def _disk() -> Found:
    free_gib = shutil.disk_usage(paths.root()).free / 2**30
    return f"{free_gib:.0f} GiB below {paths.root()}", free_gib >= 20


def _shm() -> Found:
    if not Path("/dev/shm").is_dir():
        return "none", True
    gib = shutil.disk_usage("/dev/shm").total / 2**30
    return f"{gib:.1f} GiB", gib >= 1


def _kernel() -> Found:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "python3 is missing", False
    same = Path(program).resolve() == Path(sys.executable).resolve()
    return f"python3 -> {program}", same or program in ("python", "python3")


# What is examined, how, and the remedy if what is found won't do. Nothing is changed, and no GPU
# memory used.
CHECKS = (
    ("Python", _python, "install Python 3.11 or newer"),
    ("torch", _torch, "to use the GPU: pip install --force-reinstall torch (its CUDA build)"),
    ("GPUs", _gpus, ""),
    ("DeepSpeed", lambda: _package("deepspeed"), "pip install deepspeed"),
    ("C++ compiler", lambda: _program(os.environ.get("CXX", "c++"), "c++", "g++", "clang++"),
     "only for offload configs (fast CPU Adam): install g++ (build-essential)"),
    ("ninja", lambda: _program("ninja"), "pip install ninja (offload)"),
    ("nvcc", _nvcc, "only to compile DeepSpeed's GPU ops: install torch's major version of CUDA"),
    ("numactl", lambda: _program("numactl"), "only to bind CPU ranks to cores: install numactl"),
    ("free disk", _disk, "free some: a checkpoint takes about 16 bytes per parameter"),
    ("/dev/shm", _shm, "for several GPUs in a container: docker run --shm-size=8g"),
    ("JupyterLab", lambda: _package("jupyterlab"), "pip install jupyterlab"),
    ("JupyterLab kernel", _kernel,
     "neoxkit run and make lab don't mind; for papermill -k neoxkit, or JupyterLab's kernel menu: "
     f"{sys.executable} -m ipykernel install --user --name neoxkit"),
)  # fmt: skip


def report() -> str:
    """Return the table as text; a remedy has its own line, below what it is for."""
    return "\n".join(examined(io.StringIO()))


def examined(out: TextIO) -> Iterator[str]:
    """Yield the table's lines, as they are to be printed to `out`, each when it is known."""
    side = max(len(what) for what, _, _ in CHECKS)
    for what, examine, remedy in CHECKS:
        try:
            with screen.busy(f"examining {what}"):
                found, will_do = examine()
        except ImportError as fault:
            found, will_do = f"can't be examined: {fault}", False
            remedy = "run make demo, or pip install -e ."
        yield screen.explained(what, found, side, out)
        if not will_do:
            yield screen.explained("", f"-> {remedy}", side, out)


def show_cluster(given: Mapping[str, Any]) -> int:
    """Print what a job's nodes, or a hostfile's, are like, with remedies; return 1 if something
    won't do."""
    from neoxkit.launch import inspection

    by_ssh = given.get("launcher") == "hostfile"
    launcher = {"launcher": "hostfile" if by_ssh else "slurm"}
    settings = TrainSettings(**parameters.own(TrainSettings, {**given, **launcher}))
    by = "by ssh" if by_ssh else "in a job of its own"
    with screen.busy(f"asking the nodes, {by}"):
        found = inspection.inspect(settings)
    side = max(len(what) for what, _, _ in found)
    for what, said, remedy in found:
        print(screen.explained(what, said, side, sys.stdout))
        if remedy:
            print(screen.explained("", f"-> {remedy}", side, sys.stdout))
    return int(any(remedy for _, _, remedy in found))
