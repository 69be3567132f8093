"""Run every comparison of the benchmark: make bench.

python benchmarks/measure.py [--rounds 3] [--only NAME] [--quick] [--list] [--check]
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import inputs
import running
import summary
from neoxkit.launch.command import CPU_ENVIRONMENT
from summary import Comparison, value

HERE = inputs.REPOSITORY / "benchmarks"
TRL_PYTHON = inputs.REPOSITORY / ".venv-trl" / "bin" / "python"
LITGPT_PYTHON = inputs.REPOSITORY / ".venv-litgpt" / "bin" / "python"
PEERS = {"trl_peer.py": TRL_PYTHON, "litgpt_peer.py": LITGPT_PYTHON}
RESULTS, README = HERE / "results.json", HERE / "README.md"
MEMORY_IS_WATCHED = (
    "tokenize_memory",
    "tables_memory",
)  # from outside, which costs the others some of their speed
# The programs of a contest that train on the same conversations, where not all do. TRL's packs its
# own way.
SAME_WORK = {"long": ("2,048", "by masks")}
FIRST_BATCH = 4  # conversations, where only the time to the first step counts: it costs little


@dataclass(frozen=True)
class Size:
    """The amounts that are measured."""

    steps: int  # optimizer steps, of which the first two are not counted
    batch: int  # conversations per optimizer step, in every program that trains
    few: int  # conversations to tokenize
    many: int
    in_one: int  # of GSM8K's conversations in one of 4 MB
    questions: int
    short: int  # optimizer steps through papermill and at a shell
    long: int
    runs: int  # of a sweep, each of `short` steps
    points: int  # of a curve


FULL = Size(
    steps=8,
    batch=32,
    few=100_000,
    many=1_000_000,
    in_one=7_100,
    questions=64,
    short=20,
    long=200,
    runs=10,
    points=1000,
)
QUICK = Size(
    steps=3,
    batch=4,
    few=2_000,
    many=8_000,
    in_one=100,
    questions=4,
    short=2,
    long=4,
    runs=2,
    points=50,
)


def contests(size: Size) -> dict[str, dict[str, list[str]]]:
    """Return the programs that alternate, by contest: each one's command after `python`."""
    steps = ["--steps", str(size.steps), "--batch", str(size.batch)]
    first = ["--steps", "1", "--batch", str(FIRST_BATCH)]
    work = ["--work", str(inputs.WORK)]

    def verified() -> list[str]:
        """Return a training of more steps, of which every second is taken twice."""
        count = ["--steps", str(2 * size.steps), "--batch", str(size.batch)]
        return kit("gsm8k-agent", *count, "--verify", "2")

    def kit(dataset: str, *more: str) -> list[str]:
        return ["kit.py", "--dataset", dataset, *(more or steps)]

    def baseline(data: str, *more: str) -> list[str]:
        return ["under_deepspeed.py", "baseline.py", "--data", data, *(more or steps)]

    def trl(dataset: str, *more: str) -> list[str]:
        folder = inputs.HOME / "data" / "tokenized" / dataset
        of = ["--dataset", str(folder), "--model", str(inputs.MODEL)]
        return ["trl_peer.py", *of, *work, *(more or steps)]

    def litgpt(dataset: str) -> list[str]:
        of = ["--rows", str(inputs.WORK / f"rows-{dataset}.json"), "--model", str(inputs.MODEL)]
        return ["litgpt_peer.py", *of, *work, *steps]

    def long() -> dict[str, list[str]]:
        """Return trainings of equally many tokens a step, in conversations of other lengths."""

        def of(block: int) -> list[str]:
            batch = max(size.batch * inputs.BLOCK_SIZE // block, 1)
            return ["--steps", str(size.steps), "--batch", str(batch)]

        # Joined ones nearly fill a block: so many of the others have about as many tokens.
        short = ["--steps", str(size.steps), "--batch", str(size.batch * 27 // 16)]
        longest = max(inputs.BLOCK_SIZES)
        by_size = {f"{n:,}": kit(f"joined-{n}", *of(n)) for n in inputs.BLOCK_SIZES}
        return {
            f"{inputs.BLOCK_SIZE}": kit("gsm8k-agent", *short),
            **by_size,
            "by masks": [*by_size[f"{longest:,}"], "--attention", "sdpa"],
            "trl": [
                *trl(f"joined-{longest}", *of(longest)), "--row-tokens", str(longest)
            ],
        }  # fmt: skip

    def replies(model: str, batch: int) -> list[str]:
        count = str(size.questions)
        of = ["--model", model, "--batch-size", str(batch), "--count", count]
        return ["answer_speed.py", *of]

    def tokenize(what: str, count: int) -> list[str]:
        return ["tokenization.py", what, "--count", str(count)]

    def tables(count: int) -> dict[str, list[str]]:
        kinds = ("txt", "jsonl", "csv", "parquet")
        return {k: [*tokenize("kit", count), "--one-reply-each", f".{k}"] for k in kinds}

    def notebook(how: str, length: int) -> list[str]:
        return ["notebook_or_shell.py", how, "--steps", str(length)]

    def dial(name: str, cell: str, *given: str) -> list[str]:
        return ["startup.py", "notebook", name, "--cell", cell, *given]

    return {
        "gsm8k": {
            "kit": kit("gsm8k-agent"),
            "baseline": baseline("gsm8k"),
            "trl": trl("gsm8k-agent"),
            "litgpt": litgpt("gsm8k-agent"),
            "bare loop": ["bare_loop.py", "--dataset", "gsm8k-agent", *steps],
            "two ranks": kit("gsm8k-agent", *steps, "--ranks", "2"),
        },
        "taskmaster": {
            "kit": kit("taskmaster-agent"),
            "baseline": baseline("taskmaster"),
            "trl": trl("taskmaster-agent"),
        },
        "long": long(),
        "verify": {"kit": verified()},
        "gsm8k_all": {
            "kit": kit("gsm8k-all"),
            "baseline": baseline("gsm8k", *steps, "--train-on", "all"),
        },
        "tokenize": {
            "kit": tokenize("kit", size.few),
            "encode_batch": tokenize("encode_batch", size.few),
        },
        "one_large": {
            what: [*tokenize(what, size.in_one), "--in-one"] for what in ("kit", "encode_batch")
        },
        "near_duplicates": {"search": ["near_duplicates.py"]},
        "tokenize_memory": {
            "few": tokenize("kit", size.few),
            "many": tokenize("kit", size.many),
        },
        "tables": tables(size.few),
        "tables_memory": tables(size.many),
        "replies_tiny": {"batch": replies("tiny", 32), "one by one": replies("tiny", 1)},
        "replies_70m": {
            "batch": replies("pythia-70m", 32),
            "one by one": replies("pythia-70m", 1),
        },
        "notebook_short": {
            "papermill": notebook("papermill", size.short),
            "shell": notebook("shell", size.short),
        },
        "notebook_long": {
            "papermill": notebook("papermill", size.long),
            "shell": notebook("shell", size.long),
        },
        "start": {
            "kit": kit("gsm8k-agent", *first),
            "baseline": baseline("gsm8k", *first),
        },
        "dials": {
            "01": dial("01_tokenize", "controls.block_size("),
            "02": dial("02_train", "controls.training(", "--given", "run='unstarted'"),
        },
        "redraw": {"redraw": ["redraw.py", "--points", str(size.points), "--times", "20"]},
        "hub": {how: ["startup.py", "hub", how] for how in ("nobody", "silent")},
        "sweep": {
            "sweep": ["startup.py", "sweep", "--runs", str(size.runs), "--steps", str(size.short)]
        },
    }


VERIFY = 50  # of which a step that is taken twice is one
SPEED, MEMORY = summary.tokens_per_second, value("peak_rss_gib")
COMPARISONS = (
    Comparison(
        "gsm8k_baseline",
        "GSM8K: useful tokens/s, kit / baseline",
        "gsm8k", SPEED, "kit", "baseline", least=2.3,
    ),
    Comparison(
        "taskmaster_baseline",
        "Taskmaster: useful tokens/s, kit / baseline",
        "taskmaster", SPEED, "kit", "baseline", least=5.0,
    ),
    Comparison(
        "gsm8k_trl",
        "GSM8K: useful tokens/s, kit / TRL packed",
        "gsm8k", SPEED, "kit", "trl", least=2.5,
    ),
    Comparison(
        "gsm8k_litgpt",
        "GSM8K: useful tokens/s, kit / LitGPT's full fine-tuning",
        "gsm8k", SPEED, "kit", "litgpt", least=1.0,
    ),
    Comparison(
        "taskmaster_trl",
        "Taskmaster: useful tokens/s, kit / TRL packed",
        "taskmaster", SPEED, "kit", "trl", least=1.9,
    ),
    Comparison(
        "gsm8k_all_baseline",
        "GSM8K, every turn trained: useful tokens/s, kit / baseline",
        "gsm8k_all", SPEED, "kit", "baseline", least=1.4,
    ),
    Comparison(
        "gsm8k_bare_loop",
        "GSM8K: useful tokens/s, kit / bare PyTorch loop",
        "gsm8k", SPEED, "kit", "bare loop", least=0.9,
    ),
    Comparison(
        "gsm8k_mfu",
        "GSM8K: the kit's useful FLOP/s by the matmul peak",
        "gsm8k", summary.mfu, "kit", how="alone", least=0.55, unit="",
    ),
    Comparison(
        "gsm8k_memory",
        "GSM8K: peak memory in training, kit / baseline (GiB)",
        "gsm8k", MEMORY, "kit", "baseline", most=0.7,
    ),
    Comparison(
        "taskmaster_memory",
        "Taskmaster: peak memory in training, kit / baseline (GiB)",
        "taskmaster", MEMORY, "kit", "baseline", most=0.45,
    ),
    *(
        Comparison(
            f"long_{block}",
            f"Conversations of {block:,} tokens: the kit's useful FLOP/s / that at up to 280",
            "long", summary.mfu, f"{block:,}", "280", least=0.95,
        )
        for block in inputs.BLOCK_SIZES
    ),
    Comparison(
        "long_memory",
        "Conversations of 2,048 tokens: peak memory in training / that at up to 280 (GiB)",
        "long", MEMORY, "2,048", "280", most=1.3,
    ),
    Comparison(
        "long_masks",
        "Conversations of 2,048 tokens: useful tokens/s, attention by conversation / by masks",
        "long", SPEED, "2,048", "by masks", least=1.0,
    ),
    Comparison(
        "long_trl",
        "Conversations of 2,048 tokens: useful tokens/s, kit / TRL packed",
        "long", SPEED, "2,048", "trl", least=2.5,
    ),
    Comparison(
        "verify",
        f"GSM8K: verify_steps {VERIFY}, share of the training's time",
        "verify", lambda result: 100 * result["verified_cost"] / VERIFY, "kit", how="alone",
        most=3.0, unit="%",
    ),
    Comparison(
        "gsm8k_ranks",
        "GSM8K: useful tokens/s, two ranks of one core / one rank of two",
        "gsm8k", SPEED, "two ranks", "kit", least=0.9,
    ),
    Comparison(
        "tokenize_speed",
        "Tokenizing 100,000 conversations: seconds, kit / encode_batch alone",
        "tokenize", value("seconds"), "kit", "encode_batch", most=1.5,
    ),
    Comparison(
        "one_large",
        "Tokenizing one conversation of 4 MB: seconds, kit / encode_batch alone",
        "one_large", value("seconds"), "kit", "encode_batch", most=1.5,
    ),
    Comparison(
        "near_duplicates",
        "GSM8K and Taskmaster: processor time, search for near-duplicates / encoding",
        "near_duplicates", value("share"), "search", how="alone", most=0.3,
    ),
    Comparison(
        "tokenize_memory",
        "Tokenizing: peak memory, 1,000,000 / 100,000 conversations (GB)",
        "tokenize_memory", summary.peak_memory_gb, "many", "few", most=1.3,
    ),
    Comparison(
        "tokenize_memory_size",
        "Tokenizing 1,000,000 conversations: peak memory",
        "tokenize_memory", summary.peak_memory_gb, "many", how="alone", most=1.0, unit="GB",
    ),
    Comparison(
        "jsonl_speed",
        "Tokenizing 100,000 conversations: seconds, JSON Lines / the text format",
        "tables", value("seconds"), "jsonl", "txt", most=1.3,
    ),
    Comparison(
        "csv_speed",
        "Tokenizing 100,000 conversations: seconds, CSV / the text format",
        "tables", value("seconds"), "csv", "txt", most=1.3,
    ),
    Comparison(
        "parquet_speed",
        "Tokenizing 100,000 conversations: seconds, Parquet / the text format",
        "tables", value("seconds"), "parquet", "txt", most=1.3,
    ),
    Comparison(
        "jsonl_memory",
        "Tokenizing 1,000,000 conversations: peak memory, JSON Lines / the text format (GB)",
        "tables_memory", summary.peak_memory_gb, "jsonl", "txt", most=1.3,
    ),
    Comparison(
        "csv_memory",
        "Tokenizing 1,000,000 conversations: peak memory, CSV / the text format (GB)",
        "tables_memory", summary.peak_memory_gb, "csv", "txt", most=1.3,
    ),
    Comparison(
        "parquet_memory",
        "Tokenizing 1,000,000 conversations: peak memory, Parquet / the text format (GB)",
        "tables_memory", summary.peak_memory_gb, "parquet", "txt", most=1.3,
    ),
    Comparison(
        "replies_tiny",
        "Replies of the built-in model: seconds, one by one / batches of 32",
        "replies_tiny", value("seconds"), "one by one", "batch", least=4.0,
    ),
    Comparison(
        "replies_70m",
        "Replies at the 70m shape: seconds, one by one / batches of 32",
        "replies_70m", value("seconds"), "one by one", "batch", least=4.0,
    ),
    Comparison(
        "notebook_short",
        f"02_train, {FULL.short} steps: seconds more through papermill than at a shell",
        "notebook_short", value("seconds"), "papermill", "shell", "difference", most=10.0, unit="s",
    ),
    Comparison(
        "notebook_long",
        f"02_train, {FULL.long} steps: seconds more through papermill than at a shell",
        "notebook_long", value("seconds"), "papermill", "shell", "difference", most=10.0, unit="s",
    ),
    Comparison(
        "start",
        "From the command to the first finished step: seconds, kit / bare Trainer",
        "start", summary.start_seconds, "kit", "baseline", most=1.3,
    ),
    Comparison(
        "dial_01",
        "01: seconds of the cell that shows the dial",
        "dials", value("seconds"), "01", how="alone", most=3.0, unit="s",
    ),
    Comparison(
        "dial_02",
        "02: seconds of the cell that shows the dials",
        "dials", value("seconds"), "02", how="alone", most=3.0, unit="s",
    ),
    Comparison(
        "sign_01",
        "01, up to the dial: the longest time without a sign in a cell",
        "dials", value("sign_seconds"), "01", how="alone", most=1.0, unit="s",
    ),
    Comparison(
        "sign_02",
        "02, up to the dials: the longest time without a sign in a cell",
        "dials", value("sign_seconds"), "02", how="alone", most=1.0, unit="s",
    ),
    Comparison(
        "redraw",
        f"Drawing a curve of {FULL.points:,} logs anew: seconds",
        "redraw", value("seconds"), "redraw", how="alone", most=0.1, unit="s",
    ),
    Comparison(
        "hub_nobody",
        "A hub that nobody serves: seconds to the refusal, the slowest of model, tokenizer, data",
        "hub", value("seconds"), "nobody", how="alone", most=10.0, unit="s",
    ),
    Comparison(
        "hub_silent",
        "A hub that never answers: seconds to the refusal, the slowest of the three",
        "hub", value("seconds"), "silent", how="alone", most=10.0, unit="s",
    ),
    Comparison(
        "sweep_run",
        f"A sweep of {FULL.runs} runs of {FULL.short} steps, 04 included: seconds per run",
        "sweep", value("seconds"), "sweep", how="alone", most=30.0, unit="s",
    ),
)  # fmt: skip

Rounds = dict[str, list[dict[str, Any]]]  # by contest: a round is a program's result by its name


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def environment() -> dict[str, str]:
    """Return the programs' environment: the root in benchmarks/work, our bin first on PATH."""
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "NEOXKIT_HOME": str(inputs.HOME),
        "BENCH_DATA": str(inputs.data_folder()),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }


def run_program(contest: str, name: str, command: Sequence[str]) -> dict[str, Any] | None:
    """Return a program's result; if it failed, say so and return None."""
    python = str(PEERS.get(command[0], sys.executable))
    log = inputs.WORK / f"{contest}-{name.replace(' ', '-')}.log"
    script = [python, str(HERE / command[0]), *command[1:]]
    env = environment() | (CPU_ENVIRONMENT if command[0] == "bare_loop.py" else {})
    watch = contest in MEMORY_IS_WATCHED
    try:
        result = running.run(script, env, inputs.WORK, log, watch)
    except (running.Failed, OSError) as fault:
        say(f"  {name}: FAILED, {fault}")
        return None
    say(f"  {name}: {result['wall_seconds']:.1f} s")
    return result


def measure(
    chosen: Sequence[Comparison], size: Size, num_rounds: int, save: Callable[[Rounds], None]
) -> Rounds:
    """Run the programs that the comparisons need, A B A B ..., and save after each contest."""
    rounds: Rounds = {}
    for contest, programs in contests(size).items():
        needed = {n for c in chosen if c.contest == contest for n in (c.one, c.other) if n}
        if not needed:
            continue
        rounds[contest] = []
        for number in range(num_rounds):
            say(f"{contest}, round {number + 1} of {num_rounds}")
            found = {n: run_program(contest, n, programs[n]) for n in programs if n in needed}
            check_equal_work({n: found[n] for n in SAME_WORK.get(contest, found) if n in found})
            rounds[contest].append({n: result for n, result in found.items() if result})
        save(rounds)
    return rounds


def check_equal_work(found: Mapping[str, dict[str, Any] | None]) -> None:
    """Check that all programs but TRL's had the same tokens each step."""
    steps = {
        n: r["step_tokens"] for n, r in found.items() if r and n != "trl" and "step_tokens" in r
    }
    if len({tuple(tokens) for tokens in steps.values()}) > 1:
        raise SystemExit(f"error: the programs had different conversations: {steps}")


def any_failed(chosen: Sequence[Comparison], rounds: Rounds) -> bool:
    """Return whether a program of a comparison gave no result in some round."""
    return any(
        side and side not in results
        for c in chosen
        for results in rounds[c.contest]
        for side in (c.one, c.other)
    )


def summaries(chosen: Sequence[Comparison], rounds: Rounds) -> list[dict[str, Any]]:
    return [summary.summarise(c, rounds[c.contest]) for c in chosen if c.contest in rounds]


def machine() -> dict[str, Any]:
    """Describe the machine, without names of hosts or folders."""
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    packages = ("torch", "transformers", "deepspeed", "tokenizers", "datasets")
    versions = {"Python": platform.python_version(), **{p: version(p) for p in packages}}
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "system": f"{release}, Linux {platform.release().split('-')[0]}",
        "versions": {
            **versions,
            **peer_versions("TRL", TRL_PYTHON),
            **peer_versions("LitGPT", LITGPT_PYTHON),
        },
    }


def peer_versions(name: str, python: Path) -> dict[str, str]:
    """Return a peer's version, and that of torch and transformers beside it where they differ."""
    if not python.exists():
        return {}
    code = "import importlib.metadata as m, json; "
    code += "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    there = {n.lower(): v for n, v in json.loads(said.stdout).items()}
    shared = [p for p in ("torch", "transformers") if there.get(p, version(p)) != version(p)]
    return {name: there[name.lower()], **{f"{p} beside {name}": there[p] for p in shared}}


def write_report(made: Sequence[Mapping[str, Any]], rounds: Rounds, quick: bool) -> None:
    """Write results.json and the README's table; a quick run writes neither.

    Comparisons that were not measured this time keep what results.json says of them.
    """
    path = inputs.WORK / "quick.json" if quick else RESULTS
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    by_name = {c["name"]: c for c in [*old.get("comparisons", []), *made]}
    report = {
        "quick": quick,
        "machine": machine(),
        "comparisons": [by_name[c.name] for c in COMPARISONS if c.name in by_name],
        "results": {**old.get("results", {}), **_with_older(rounds, old.get("results", {}))},
    }
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if not quick:
        README.write_text(summary.into_readme(README.read_text("utf-8"), report), "utf-8")


def _with_older(rounds: Rounds, old: Rounds) -> Rounds:
    """Put the older rounds of a contest that have a program that was not measured anew before the
    new ones: some comparison still rests on them."""
    anew = {contest: {name for one in of for name in one} for contest, of in rounds.items()}
    kept = {
        contest: [one for one in old.get(contest, []) if one.keys() - anew[contest]]
        for contest in rounds
    }
    return {contest: [*kept[contest], *of] for contest, of in rounds.items()}


def prepare() -> None:
    """Make the inputs in a process of their own: the harness itself stays small."""
    inputs.make_home()
    command = [sys.executable, str(HERE / "inputs.py")]
    if subprocess.run(command, env=environment(), check=False).returncode:
        raise SystemExit("error: the inputs could not be made -- see above")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    names = [c.name for c in COMPARISONS]
    parser.add_argument("--only", action="append", default=[], choices=names, metavar="NAME",
                        help="one comparison (repeat for more)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that all runs")
    parser.add_argument("--check", action="store_true", help="are the inputs there, and no more")
    parser.add_argument("--list", action="store_true", help="the comparisons' names, and no more")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0: measured; 1: something failed; 2: the inputs are not there; 130: stopped."""
    options = parse(argv)
    if options.list:
        print("\n".join(f"{c.name}: {c.title} ({c.target})" for c in COMPARISONS))
        return 0
    if complaint := inputs.complaint(inputs.data_folder()):
        print(complaint, file=sys.stderr)
        return 2
    if options.check:
        return 0
    chosen = [c for c in COMPARISONS if c.name in options.only or not options.only]
    prepare()

    def save(rounds: Rounds) -> None:
        write_report(summaries(chosen, rounds), rounds, options.quick)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else its programs would go on
    try:
        rounds = measure(chosen, QUICK if options.quick else FULL, options.rounds, save)
    except KeyboardInterrupt:
        say("stopped: contests that were finished are saved")
        return 130
    print(summary.table(summaries(chosen, rounds)))
    return int(any_failed(chosen, rounds))


if __name__ == "__main__":
    sys.exit(main())
