"""Report a training program's optimizer steps as one line."""

import json
import os
import resource
import time
from dataclasses import dataclass, field

SKIPPED = 2  # first optimizer steps that are not counted: allocators and caches warm up in them


@dataclass
class StepClock:
    """The end of each optimizer step (seconds since 1970), and its useful tokens.

    Useful tokens are those of conversations: padding does not count, prompts that are read and not
    trained on are.
    """

    ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def tick(self, tokens: int) -> None:
        """Note the end of an optimizer step."""
        self.ends.append(time.time())
        self.tokens.append(tokens)

    def report(self, **more: object) -> None:
        """Print the result of the steps; `more` adds to it, and wins over what is measured here."""
        seconds = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        result = {
            "step_seconds": seconds[SKIPPED - 1 :],
            "step_tokens": self.tokens[SKIPPED:],
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "started": float(os.environ.get("BENCH_STARTED", 0)),
            "first_step_end": self.ends[0],
        }
        print_result(**result | more)


def print_result(**values: object) -> None:
    """Print a JSON object on its own line: the harness reads the last line that begins with {."""
    print("\n" + json.dumps(values), flush=True)
