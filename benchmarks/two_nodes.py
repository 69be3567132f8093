"""Six checks for someone with two nodes: each prints PASS or FAIL, and figures to send back.

    python benchmarks/two_nodes.py CHECK -p launcher slurm -p slurm '{"gpus-per-node": 8}'
    python benchmarks/two_nodes.py CHECK -p launcher hostfile

CHECK: doctor, train, same, stop, speed, save, in this order; -p as for neoxkit run, the same each
time. They train the built-in model on the built-in sample, or what -p names, in runs/two-nodes.*.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neoxkit import machine, paths
from neoxkit.cli import parameters
from neoxkit.launch import forecast, host_file, nodes
from neoxkit.runs import checkpoints, events
from neoxkit.settings import TrainSettings

STEPS, SAVED = 40, 20
PARAMETERS = {
    "dataset": "sample", "max_steps": STEPS, "save_steps": SAVED, "eval_steps": STEPS,
    "logging_steps": 1, "num_replies": 0, "num_nodes": 2,
}  # fmt: skip
TOLERANCE = 0.02  # of a loss, in half precision; in fp32 the losses differ by less than 1e-4
Given = dict[str, Any]
Outcome = tuple[bool, str]  # did it hold, and the figures


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one check; return 0 for PASS, 1 for FAIL."""
    words = sys.argv[1:] if argv is None else [*argv]
    if not words or words[0] not in CHECKS:
        print(__doc__, file=sys.stderr)
        return 2
    pairs = zip(words[2::3], words[3::3], strict=True)
    given = {**PARAMETERS, **parameters.read([], [*pairs])}
    if given.get("launcher") == nodes.HOSTFILE:
        del given["num_nodes"]  # the hostfile says it
    held, figures = CHECKS[words[0]](given)
    print(f"{'PASS' if held else 'FAIL'} {words[0]}: {figures}")
    return int(not held)


def command(*words: str, **given: Any) -> list[str]:
    flags = [w for name, v in given.items() for w in ("-p", name, _text(v))]
    return [sys.executable, "-m", "neoxkit.cli", *words, *flags]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def kit(*words: str, **given: Any) -> int:
    """Run a command of the kit's; what it shows goes to the terminal. Return its exit code."""
    return subprocess.run(command(*words, **given)).returncode


def trained(name: str, **given: Any) -> Path:
    """Train to the end, unless that was done; return the run's folder."""
    if not (paths.root() / "data" / "tokenized" / str(given["dataset"])).exists():
        kit("run", "--only", "01")
    if code := kit("run", "--only", "02", run=f"two-nodes.{name}", **given):
        raise SystemExit(f"FAIL {name}: neoxkit run ended with exit code {code}")
    return paths.run(f"two-nodes.{name}")


def on_one_node(given: Given) -> Given:
    """Return the same settings for the first node alone."""
    if given.get("launcher") != nodes.HOSTFILE:
        return {**given, "num_nodes": 1}
    first = host_file.hosts_in(str(given.get("hostfile", "hostfile")))[0]
    path = paths.root() / "runs" / "two-nodes.hostfile"
    path.write_text(f"{first.name} slots={first.slots}\n", encoding="utf-8")
    return {**given, "hostfile": str(path)}


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in events.read_events(folder) if e["event"] == "train"]


def farthest(folder: Path, other: Path) -> float:
    """Return the largest difference of two runs' losses, as a share."""
    pairs = zip(losses(folder), losses(other), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def speed(folder: Path) -> float:
    """Return the trained tokens a second in the second half of a run, over all ranks."""
    found = [e for e in events.read_events(folder) if e["event"] == "train"]
    half = found[len(found) // 2 :]
    return sum(e["tokens_per_second"] for e in half) / len(half)


def _doctor(given: Given) -> Outcome:
    code = kit("doctor", "--cluster", **given)
    return code == 0, "every node will do" if code == 0 else "see the table above"


def _train(given: Given) -> Outcome:
    folder = trained("train", **given)
    steps = len(losses(folder))
    return steps == STEPS, f"{steps} steps, {speed(folder):,.0f} tokens/s at the end"


def _same(given: Given) -> Outcome:
    """Compare with one node that takes batches of twice the size: the same conversations a step."""
    size = given.get("per_device_train_batch_size", TrainSettings().per_device_train_batch_size)
    two = trained("train", **given)
    one = trained("same", **on_one_node({**given, "per_device_train_batch_size": 2 * int(size)}))
    share = farthest(one, two)
    return share < TOLERANCE, f"losses of two nodes and of one differ by at most {share:.2e}"


def _stop(given: Given) -> Outcome:
    folder = paths.run("two-nodes.stop")
    training = subprocess.Popen(command("run", "--only", "02", run=folder.name, **given))
    while training.poll() is None and not (folder.exists() and len(losses(folder)) >= SAVED // 2):
        time.sleep(0.2)
    kit("stop", folder.name)
    training.wait()
    step = checkpoints.saved_step(folder)
    share = farthest(trained("stop", **given), trained("train", **given))
    starts = [e["resumed_step"] for e in events.read_events(folder) if e["event"] == "start"]
    held = bool(step) and starts[-1] == step and share < TOLERANCE
    return held, f"stopped at step {step}, then resumed; losses differ by at most {share:.2e}"


def _speed(given: Given) -> Outcome:
    two, one = (speed(trained("train", **given)), speed(trained("speed", **on_one_node(given))))
    settings = TrainSettings(**parameters.own(TrainSettings, given))
    base = settings.model_name_or_path or "tiny"
    gib = forecast.job_of(settings, base, nodes.of(settings)).network_gib()
    return two > one, (
        f"{two:,.0f} tokens/s on two nodes, {one:,.0f} on one ({two / one:.2f} x);"
        f" at least {machine.in_short(gib)} GiB into each node a step"
    )


def _save(given: Given) -> Outcome:
    """Take the time from the last log before a save to its end."""
    folder = trained("train", **given)
    found = events.read_events(folder)
    at = next(i for i, e in enumerate(found) if e["event"] == "checkpoint")
    seconds = found[at]["time"] - found[at - 1]["time"]
    saved = folder / found[at]["folder"]
    num_bytes = sum(p.stat().st_size for p in saved.rglob("*") if p.is_file())
    return num_bytes > 0, f"{num_bytes / 1e9:.2f} GB in {seconds:.1f} s"


CHECKS: dict[str, Callable[[Given], Outcome]] = {
    "doctor": _doctor, "train": _train, "same": _same, "stop": _stop, "speed": _speed,
    "save": _save,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
