"""Measure the kit on this machine's GPU, beside TRL, and write GPU.md: make bench-gpu.

python benchmarks/gpu.py [--rounds 3] [--steps 12] [--batch 64] [--rehearse]

Nobody needs to watch: a program that fails says so in the table, and the others go on. --rehearse
makes a few steps of the smallest shape, on a CPU if need be, and writes work/GPU-rehearsed.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import inputs
import measure
import running
import summary

SHAPES, SMALLEST = ("pythia-410m", "pythia-1.4b"), "pythia-14m"
DATASET = "gsm8k-agent"
REPORT = measure.HERE / "GPU.md"
Results = dict[str, dict[str, list[dict[str, Any] | str]]]  # by shape and program, or why not


def programs(shape: str, options: argparse.Namespace, on_gpu: bool) -> dict[str, list[str]]:
    """Return the programs that train a shape, in turn: each one's command after `python`."""
    steps = ["--steps", str(options.steps), "--batch", str(options.batch)]
    folder = inputs.HOME / "data" / "tokenized" / DATASET
    peer = ["trl_peer.py", "--dataset", str(folder), "--model", str(inputs.MODELS / shape)]
    peer += ["--work", str(inputs.WORK), *steps, *(["--on-gpu"] if on_gpu else [])]
    made = {"kit": ["kit.py", "--dataset", DATASET, *steps, "--model", shape]}
    made["kit"] += ["--precision", "auto"]
    for tokens in (560, 2240):
        rows = ["--row-tokens", str(tokens)]
        made[f"TRL, sdpa, rows of {tokens:,}"] = [*peer, *rows, "--attention", "sdpa"]
    flash = [*peer, "--row-tokens", "2240", "--rows-at-once", "--attention", "flash_attention_2"]
    return made | {"TRL, flash attention": flash}


def environment() -> dict[str, str]:
    """Return the benchmark's environment without what keeps its programs on the CPU."""
    env = measure.environment()
    del env["DS_ACCELERATOR"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {**env, "CUDA_VISIBLE_DEVICES": visible or "0"}  # one GPU


def run(shape: str, name: str, command: Sequence[str], env: Mapping[str, str]) -> Any:
    """Return a program's result, or why it has none."""
    if "flash_attention_2" in command and not has_flash_attention():
        return "flash-attn is not installed"
    python = str(measure.PEERS.get(command[0], sys.executable))
    log = inputs.WORK / f"gpu-{shape}-{name.replace(' ', '-').replace(',', '')}.log"
    script = [python, str(measure.HERE / command[0]), *command[1:]]
    try:
        return running.run(script, env, inputs.WORK, log)
    except (running.Failed, OSError) as fault:
        return f"failed: {fault}"


def has_flash_attention() -> bool:
    """Tell whether TRL's environment has flash-attn."""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('flash_attn') is None)"
    return subprocess.run([measure.TRL_PYTHON, "-c", code], check=False).returncode == 0


def train(shapes: Sequence[str], options: argparse.Namespace, on_gpu: bool) -> Results:
    """Run all programs of each shape, A B C A B C ..."""
    results: Results = {}
    for shape in shapes:
        of_shape = programs(shape, options, on_gpu)
        results[shape] = {name: [] for name in of_shape}
        for number in range(options.rounds):
            measure.say(f"{shape}, round {number + 1} of {options.rounds}")
            for name, command in of_shape.items():
                results[shape][name].append(found := run(shape, name, command, environment()))
                said = found if isinstance(found, str) else f"{found['wall_seconds']:.1f} s"
                measure.say(f"  {name}: {said}")
    return results


def table(results: Results) -> str:
    """Return the trainings as a Markdown table; ratios are medians of those of each round."""
    head = "| shape | program | useful tokens/s | kit / it | peak GiB | forecast GiB |"
    lines = [head, "|---|---|---|---|---|---|"]
    for shape, of_shape in results.items():
        for name, rounds in of_shape.items():
            cells = _cells(rounds, of_shape["kit"])
            lines.append(f"| {' | '.join([shape, name, *cells])} |")
    return "\n".join(lines)


def _cells(rounds: Sequence[Any], kit: Sequence[Any]) -> list[str]:
    """Return a program's speed, the kit's in units of it, and its memory, measured and forecast."""
    pairs = [(r, k) for r, k in zip(rounds, kit, strict=True) if isinstance(r, dict)]
    if not pairs:
        return [str(rounds[0]), "", "", ""]
    speeds = [summary.tokens_per_second(r) for r, _ in pairs]
    ratios = [summary.tokens_per_second(k) / s
              for (_, k), s in zip(pairs, speeds, strict=True) if isinstance(k, dict)]  # fmt: skip
    least, median, most = min(speeds), statistics.median(speeds), max(speeds)
    forecast = pairs[0][0].get("forecast_gib")
    return [
        f"{summary.number(median)} ({summary.number(least)} to {summary.number(most)})",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        summary.number(max(r["peak_rss_gib"] for r, _ in pairs)),
        summary.number(forecast) if forecast else "",
    ]


def tests() -> str:
    """Run the tests that need a GPU; return pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=inputs.REPOSITORY, capture_output=True, text=True)
    return (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")


def device() -> tuple[bool, str]:
    """Tell whether there is a GPU, and describe it."""
    import torch

    if not torch.cuda.is_available():
        return False, "no GPU: a rehearsal on a CPU"
    properties = torch.cuda.get_device_properties(0)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    gib = properties.total_memory / 2**30
    return True, f"{properties.name}, {gib:.0f} GiB, CUDA {torch.version.cuda}, NCCL {nccl}"


def report(device_line: str, tested: str, results: Results, options: argparse.Namespace) -> str:
    """Return the content of GPU.md."""
    return f"""# On a GPU

Written by `make bench-gpu`: {device_line}. {summary.machine_line(measure.machine())}

`pytest tests/test_gpu.py`: {tested}.

## Training, beside TRL

Random weights of Pythia's shapes, GSM8K, {options.batch} conversations a step in one micro-batch, {options.steps} steps of
which the first two are not counted, medians of {options.rounds} rounds. The kit: ZeRO-2 with one rank by NCCL, packed
rows, `precision auto`. TRL: SFTTrainer, bf16, packed its own way, without checkpointing.

{table(results)}

`peak` is what torch allocated; `forecast` the kit's formulas for the run's largest micro-batch.
"""  # noqa: E501


def main() -> int:
    """Return 0: written; 2: the inputs or the GPU are not there."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64, help="conversations a step")
    parser.add_argument("--rehearse", action="store_true", help="to see that all of it runs")
    options = parser.parse_args()
    if complaint := inputs.complaint(inputs.data_folder()):
        print(complaint, file=sys.stderr)
        return 2
    on_gpu, said = device()
    if not on_gpu and not options.rehearse:
        print("error: GPU: torch finds none -- try --rehearse on a CPU", file=sys.stderr)
        return 2
    if options.rehearse:
        options.rounds, options.steps, options.batch = 1, 3, 4
    shapes = (SMALLEST,) if options.rehearse else SHAPES
    measure.prepare()
    for shape in shapes:
        if not (inputs.MODELS / shape).is_dir():
            inputs.make_model(shape, "float16")  # as Pythia's own files
    target = inputs.WORK / "GPU-rehearsed.md" if options.rehearse else REPORT
    target.write_text(report(said, tests(), train(shapes, options, on_gpu), options), "utf-8")
    measure.say(f"written: {target.relative_to(inputs.REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
