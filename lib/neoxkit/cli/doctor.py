"""`neoxkit doctor`: what this machine has, what is missing for which feature, and the remedy."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from neoxkit import paths


@dataclass(frozen=True)
class Probe:
    """One line of the table; `remedy` is empty if nothing is missing."""

    what: str
    found: str
    remedy: str = ""


def examine() -> list[Probe]:
    """Examine everything, without changing anything or using GPU memory."""
    checks: list[Callable[[], list[Probe]]] = [
        _python, _torch, _gpus, _deepspeed, _compiler, _ninja, _nvcc, _numactl, _disk, _kernel,
    ]  # fmt: skip
    return [finding for check in checks for finding in _safely(check)]


def _safely(check: Callable[[], list[Probe]]) -> list[Probe]:
    try:
        return check()
    except ImportError as fault:
        name = check.__name__.strip("_")
        return [Probe(name, f"can't be examined: {fault}", "run make demo, or pip install -e .")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> list[Probe]:
    version = ".".join(map(str, sys.version_info[:3]))
    remedy = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    return [Probe("Python", version, remedy)]


def _torch() -> list[Probe]:
    if _version("torch") is None:
        return [Probe("torch", "missing", "make demo (or: pip install -e .)")]
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    found = [Probe("torch", f"{torch.__version__}, {built}")]
    if not torch.version.cuda and (shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0")):  # noqa: PTH110
        remedy = "to use the GPU: pip install --force-reinstall torch (its CUDA build)"
        found.append(Probe("torch and the GPU", "a GPU, but torch is built without CUDA", remedy))
    return found


def _gpus() -> list[Probe]:
    import torch

    if not torch.cuda.is_available():
        return [Probe("GPUs", "none: everything runs on the CPU, large models slowly")]
    found = []
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        found.append(
            Probe(
                f"GPU {i}",
                f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, "
                f"bf16 {'yes' if torch.cuda.is_bf16_supported(False) else 'no: use fp16 or fp32'}",
            )
        )
    return found


def _deepspeed() -> list[Probe]:
    version = _version("deepspeed")
    return [Probe("DeepSpeed", version or "missing", "" if version else "pip install deepspeed")]


def _compiler() -> list[Probe]:
    name = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    remedy = "only for offload configs (fast CPU Adam): install g++ (build-essential)"
    return [Probe("C++ compiler", name or "missing", "" if name else remedy)]


def _ninja() -> list[Probe]:
    beside = os.path.dirname(sys.executable)  # noqa: PTH120
    found = shutil.which("ninja", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    return [
        Probe(
            "ninja", "found" if found else "missing", "" if found else "pip install ninja (offload)"
        )
    ]


def _nvcc() -> list[Probe]:
    import torch

    if not torch.version.cuda:
        return [Probe("nvcc", "not needed with a CPU build of torch")]
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return [
            Probe(
                "nvcc",
                "missing",
                f"only to compile DeepSpeed's GPU ops: install CUDA toolkit {torch.version.cuda}",
            )
        ]
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    version = match[1] if match else "unknown"
    same = version.split(".")[0] == torch.version.cuda.split(".")[0]
    remedy = "" if same else f"its major version must be torch's ({torch.version.cuda})"
    return [Probe("nvcc", f"{version}, torch was built with {torch.version.cuda}", remedy)]


def _numactl() -> list[Probe]:
    if shutil.which("numactl"):
        return [Probe("numactl", "found")]
    return [
        Probe("numactl", "missing (optional)", "only to bind CPU ranks to cores: install numactl")
    ]


def _disk() -> list[Probe]:
    free = shutil.disk_usage(paths.root()).free / 2**30
    remedy = "" if free >= 20 else "free some: a checkpoint takes about 16 bytes per parameter"
    found = [Probe("free disk", f"{free:.0f} GiB below {paths.root()}", remedy)]
    if os.path.isdir("/dev/shm"):  # noqa: PTH112
        shm = shutil.disk_usage("/dev/shm").total / 2**30
        remedy = "" if shm >= 1 else "for several GPUs in a container: docker run --shm-size=8g"
        found.append(Probe("/dev/shm", f"{shm:.1f} GiB", remedy))
    return found


def _kernel() -> list[Probe]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        argv = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        return [
            Probe("JupyterLab kernel", "python3 is missing", "python -m ipykernel install --user")
        ]
    ours = argv[0] in ("python", "python3") or os.path.realpath(argv[0]) == os.path.realpath(
        sys.executable
    )
    remedy = "" if ours else f"{sys.executable} -m ipykernel install --sys-prefix"
    lab = _version("jupyterlab") or "missing"
    return [
        Probe("JupyterLab", lab, "" if lab != "missing" else "pip install jupyterlab"),
        Probe("JupyterLab kernel", f"python3 -> {argv[0]}", remedy),
    ]


def report() -> str:
    """Return the table as text."""
    findings = examine()
    width = max(len(f.what) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.what.ljust(width)}  {f.found}")
        if f.remedy:
            lines.append(f"{' ' * width}  -> {f.remedy}")
    return "\n".join(lines)
