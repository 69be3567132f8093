"""Seconds that the live view takes to draw a long run's curve anew.

python benchmarks/redraw.py --points N --times N

A program of the benchmark: it prints one line of JSON. Every redraw shows one more log; where that
needs other axes, the whole figure is drawn, otherwise its lines alone.
"""

import argparse
import math
import statistics
import time

from neoxkit.lab.curve import Curve
from neoxkit.runs.events import Event, History
from stepclock import print_result

START: Event = {"event": "start", "resumed_step": 0}


def logs(count: int) -> list[Event]:
    """Return the logs of a run whose loss falls, with some noise."""
    return [
        {
            "event": "train",
            "step": step,
            "loss": 1 + 6 * math.exp(-step / 100) + 0.1 * math.sin(7 * step),
            "learning_rate": 1e-3 * (1 - step / (2 * count)),
            "tokens_per_second": 1000 + 50 * math.sin(step),
            "mfu": 0.5,
            "padding_share": 0.02,
            "grad_norm": 2 + math.sin(3 * step),
        }
        for step in range(1, count + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, required=True)
    parser.add_argument("--times", type=int, required=True)
    options = parser.parse_args()
    train = logs(options.points + options.times)
    start, curve = START | {"planned_steps": 2 * len(train)}, Curve("redraw")
    took = []
    for shown in range(options.points, len(train) + 1):
        begun = time.perf_counter()
        curve.set_history(History([start, *train[:shown]]))
        curve.png()
        took.append(time.perf_counter() - begun)
    first, *others = took
    print_result(seconds=statistics.median(others), most_seconds=max(others), first_seconds=first)


if __name__ == "__main__":
    main()
