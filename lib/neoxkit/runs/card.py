"""The run card, run_card.json: a run's exact inputs, and its results."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from neoxkit import files, notebook, paths
from neoxkit.machine import num_cores
from neoxkit.runs import lease, restarts
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import ARGUMENTS, early, state_of

CARD = "run_card.json"
PACKAGES = (
    "neoxkit", "torch", "transformers", "tokenizers", "datasets", "accelerate", "deepspeed",
    "safetensors", "numpy", "peft",
)  # fmt: skip
MADE_BY = ("lib", "notebooks", "ds_configs")  # parts of the checkout that affect a run
BYTES = ("cpu", "cpu_capability", "gpus", "cuda")  # of the machine: what sums depend on
CODE = Path(__file__).resolve().parents[3]  # the checkout that this package is imported from


def announce(folder: Path, num_ranks: int, as_started: Mapping[str, Any]) -> None:
    """Record before a start the settings and command lines behind its arguments.json."""
    files.write_json(folder / CARD, {**_written(folder), **_key(folder, num_ranks), **as_started})


def _key(folder: Path, num_ranks: int) -> dict[str, Any]:
    """Return what the announced settings belong to: the arguments and the number of ranks."""
    path = folder / ARGUMENTS
    sha256 = files.sha256(path) if path.is_file() else None
    return {"arguments_sha256": sha256, "num_ranks": num_ranks}


def _announced(folder: Path, num_ranks: int) -> dict[str, Any]:
    """Return what was announced for these arguments; empty if they came from elsewhere."""
    card, key = _written(folder), _key(folder, num_ranks)
    fits = key.items() <= card.items()
    return key | {name: card[name] if fits else {} for name in ("settings", "commands")}


def begin(folder: Path, num_ranks: int, made_of: Mapping[str, Any], base: Path) -> None:
    """Write the card at a run's first start, and add every start to it.

    `made_of`: the run's inputs other than its base model, whose files are in the folder `base`. The
    inputs may still change as long as the run has made no step.
    """
    card = read(folder)
    if not card or state_of(folder) == "new":
        starts = card.get("starts", [])
        card = {
            **_announced(folder, num_ranks),
            **made_of,
            "base_sha256": hashes(base),
            "starts": starts,
        }
    card["starts"].append(this_start())
    lease.check(folder)
    files.write_json(folder / CARD, card)


def finish(folder: Path, results: Mapping[str, Any]) -> None:
    """Add the results to the card."""
    lease.check(folder)
    files.write_json(folder / CARD, {**files.read_json(folder / CARD), "results": dict(results)})


def note(folder: Path, name: str, value: Any) -> None:
    """Write one more fact into the card of a finished run."""
    files.write_json(folder / CARD, {**_written(folder), name: value})


def noted(folder: Path, name: str) -> Any:
    """Return such a fact; None if the card has none of that name."""
    return _written(folder).get(name)


def read(folder: Path) -> dict[str, Any]:
    """Return a run's card; empty if the run has not begun."""
    card = _written(folder)
    return card if "starts" in card else {}


def _written(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / CARD) if (folder / CARD).is_file() else {}


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a model's weights, configuration and tokenizer, by file name."""
    wanted = [f for p in ("*.safetensors", "config.json", "tokenizer.json") for f in folder.glob(p)]
    return {file.name: files.sha256(file) for file in sorted(wanted)}


def this_start() -> dict[str, Any]:
    """Describe this start: time, command, code, packages and machine."""
    return {
        "time": round(time.time(), 3),
        "command": [paths.short(Path(word)) if "/" in word else word for word in sys.orig_argv],
        "code": code(),
        "versions": versions(),
        "machine": machine(),
        "threads_a_rank": os.environ.get("OMP_NUM_THREADS", ""),
    }


def code() -> dict[str, Any]:
    """Return the commit of the kit's checkout and the files changed since; none without git.

    Parameters and outputs saved in a notebook don't count as changes, nor do the user's own files
    uploaded beside the notebooks.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "clean": None, "changed": []}
    found = _git("status", "--porcelain", "--", *MADE_BY)
    paths_changed = [line[3:].strip('"') for line in (found or "").splitlines()]
    changed = [path for path in paths_changed if _is_other_code(path)]
    return {"commit": commit, "clean": not changed, "changed": changed[:20]}


def _is_other_code(path: str) -> bool:
    """Return whether a changed file affects a run; a notebook does if its own cells changed."""
    file, committed = CODE / path, _git("show", f"HEAD:{path}")
    if path.startswith("notebooks/") and file.suffix not in (".ipynb", ".py"):
        return False
    if file.suffix != ".ipynb" or committed is None or not file.is_file():
        return True
    now, was = notebook.parsed(file.read_bytes()), notebook.parsed(committed)
    return notebook.code(now) != notebook.code(was)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(CODE), *words], capture_output=True, encoding="utf-8", check=False
        )
    except OSError:  # git is not installed
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Describe processor, memory (GiB) and GPUs: they affect speed, and possibly sums."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        **_host(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
        "cuda": torch.version.cuda if gpus else None,
    }


def _host() -> dict[str, Any]:
    """Describe the machine without its GPUs, to tell it from others."""
    memory_gib = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpu": _cpu(), "cores": num_cores(), "memory_gib": memory_gib}


def is_of_this_machine(folder: Path) -> bool:
    """Return whether a run's last start was on a machine like this; true without a card."""
    card = read(folder)
    return not card or _host().items() <= card["starts"][-1]["machine"].items()


def _cpu() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def rows(folder: Path) -> list[tuple[str, str]]:
    """Return the card as a table for people: inputs, with shortened hashes and commits."""
    card = read(folder)
    if not card:
        return [("run card", "none: the run has not begun")]
    base, source = _files(card["base_sha256"]), card["source"]
    last = card["starts"][-1]
    found = last["machine"]
    where = ", ".join(found["gpus"]) or f"{found['cpu']} ({found['cpu_capability']})"
    changed = ", ".join(f"{k} {v}" for k, v in card["settings"].items() if k != "run")
    if not card["commands"]:
        changed = " ".join(last["command"])
    results = card.get("results", {})
    again = restarts.sentence(restarts.causes_of(read_events(folder)))
    return [
        *(("warning", line) for line in results.get("warnings", [])),
        *(("note", line) for line in [early(results)] if line),
        ("settings that differ from the defaults", changed or "none"),
        ("base", f"{_base(card)}{', only its shape' if card['from_scratch'] else ''}: {base}"),
        *(("note", line) for line in card["same_weights"]),
        ("dataset", f"{card['dataset']} {card['dataset_sha256'][:12]}"),
        ("its text", f"{source['path']} {source['sha256'][:12]}"),
        ("seeds", ", ".join(f"{k} {v}" for k, v in card["seeds"].items())),
        ("code", "; ".join(dict.fromkeys(_code(start["code"]) for start in card["starts"]))),
        ("packages", ", ".join(f"{k} {v}" for k, v in last["versions"].items())),
        ("machine", f"{where}, {found['cores']} cores, {found['memory_gib']} GiB"),
        ("starts", "; ".join(filter(None, (f"{len(card['starts'])}", again)))),
        ("weights", _files(results.get("model_sha256", {}))),
        *([("looks at the test side", _looks(card["looks"]))] if "looks" in card else []),
        ("to run it again", card["commands"].get("repeat", "its command at a shell")),
    ]


def _base(card: Mapping[str, Any]) -> str:
    """Name the base; one on the hub with its revision and the start of its commit."""
    at = f"{card['revision'] or 'main'}, commit {card['base_commit'][:12]}"
    return f"{card['base']} ({at})" if card["base_commit"] else card["base"]


def _looks(looks: Mapping[str, int]) -> str:
    return f"{looks['by_run']:,}; {looks['by_all']:,} by all runs of the dataset until then"


def _files(sha256: Mapping[str, str]) -> str:
    """List the shortened hashes of the weights; there may be many files."""
    weights = [f"{k} {v[:12]}" for k, v in sha256.items() if k.endswith(".safetensors")]
    return ", ".join(weights[:2]) + (f" and {len(weights) - 2} more" if len(weights) > 2 else "")


def _code(code: Mapping[str, Any]) -> str:
    if not code["commit"]:
        return "not from a git checkout"
    changed = "" if code["clean"] else f", changed since: {', '.join(code['changed'])}"
    return f"commit {code['commit'][:12]}{changed}"


def over_starts(card: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what a run's starts had of what decides its bytes, each value once, in order.

    Of the machine, its memory, cores and kernel don't; the threads of a rank do.

    >>> starts = [{"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}]
    >>> over_starts({"starts": starts})
    {'versions torch': ['1', '2']}
    """
    found: dict[str, list[Any]] = {}
    for start in card["starts"]:
        parts = {part: start.get(part, {}) for part in ("code", "versions", "machine")}
        parts["machine"] = {k: v for k, v in parts["machine"].items() if k in BYTES}
        had = {f"{part} {name}": v for part, of in parts.items() for name, v in of.items()}
        if threads := start.get("threads_a_rank"):
            had["threads per rank"] = threads
        for name, value in had.items():
            values = found.setdefault(name, [])
            values += [value] if value not in values else []
    return found


def differences(card: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences between a run's last start and another, as `what: was -> is`.

    >>> was = {"starts": [{"code": {"commit": "a"}, "versions": {"torch": "1"}, "machine": {}}]}
    >>> differences(was, {"code": {"commit": "b"}, "versions": {"torch": "1"}, "machine": {}})
    ['code commit: a -> b']
    """
    was = card["starts"][-1]
    return [
        f"{part} {name}: {was[part].get(name)} -> {now[part].get(name)}"
        for part in ("code", "versions", "machine")
        for name in {**was[part], **now[part]}
        if name != "memory_gib" and was[part].get(name) != now[part].get(name)
    ]
