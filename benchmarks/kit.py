"""The kit itself: neoxkit.train under DeepSpeed, started as the notebook starts it.

Its figures come from the run's metrics.jsonl, which has a train event for each step. A step's
seconds are those between the times of two events, so that what the kit does between steps counts
as well.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

import inputs
from neoxkit import paths
from neoxkit.launch import checks, forecast, nodes, process
from neoxkit.runs.events import Event, History
from neoxkit.settings import TrainSettings
from stepclock import SKIPPED, StepClock

NEVER = 10**6


def settings(options: argparse.Namespace) -> TrainSettings:
    """Return settings: ZeRO-2, rows in the order of the file, only the last checkpoint."""
    return TrainSettings(
        run=f"{options.dataset}-{options.ranks}",
        dataset=options.dataset,
        model_name_or_path=str(inputs.MODELS / options.model),
        ds_config="zero2",
        num_ranks=options.ranks,
        precision=options.precision,
        attn_implementation=options.attention,
        per_device_train_batch_size=options.batch // options.ranks,
        max_steps=options.steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        warmup_steps=0,
        verify_steps=options.verify,
        save_steps=NEVER,
        eval_steps=NEVER,
        logging_steps=1,
        training_arguments={"train_sampling_strategy": "sequential"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a name below data/tokenized")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--batch", type=int, required=True, help="conversations per step, all ranks"
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--model", default=inputs.MODEL.name, help="a shape below home/models")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--verify", type=int, default=0, help="verify_steps")
    options = parser.parse_args()
    chosen = settings(options)
    shutil.rmtree(paths.run(chosen.run), ignore_errors=True)
    checks.check(chosen)  # imports what the start needs: the clock below is DeepSpeed's start alone
    started = time.time()
    training = process.start(chosen)
    while training.poll() is None:
        time.sleep(0.1)
    training.check()
    report(History.of_run(training.folder), started, chosen)
    shutil.rmtree(training.folder)


def forecast_gib(history: History, chosen: TrainSettings) -> float:
    """Return the memory of a rank by the formulas, for the run's largest micro-batch."""
    there = replace(nodes.of(chosen), precision=history.start["precision"])
    job = forecast.job_of(chosen, chosen.model_name_or_path, there)
    tokens = max(e["tokens"] / (1 - e["padding_share"]) for e in history.train)
    trained = max(e["trained_tokens"] for e in history.train)
    return sum(job.rank_gib(tokens / chosen.num_ranks, trained / chosen.num_ranks).values())


def verified_cost(history: History) -> float | None:
    """Return how much longer a step that is taken twice takes than another, as a share of the
    other's seconds; each by its tokens, and without the first steps."""
    twice = {e["step"] for e in history.of("verified")}
    events = [e for e in history.train if e["step"] > SKIPPED]

    def per_token(these: Sequence[Event]) -> float:
        return sum(e["seconds"] for e in these) / sum(e["tokens"] for e in these)

    if not twice:
        return None
    once = per_token([e for e in events if e["step"] not in twice])
    return per_token([e for e in events if e["step"] in twice]) / once - 1


def report(history: History, started: float, chosen: TrainSettings) -> None:
    """Print the result line of a run, from its events."""
    steps = history.train
    clock = StepClock([e["time"] for e in steps], [e["tokens"] for e in steps])
    clock.report(
        peak_rss_gib=max(e["memory_gib"] for e in steps),
        started=started,
        mfu=[e["mfu"] for e in steps[SKIPPED:]],
        matmul_peak_tflops=history.start["matmul_peak_tflops"],
        precision=history.start["precision"],
        forecast_gib=forecast_gib(history, chosen),
        verified_cost=verified_cost(history),
    )


if __name__ == "__main__":
    main()
