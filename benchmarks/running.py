"""Run a program of the benchmark to its end, and watch its memory.

The harness must stay small itself: Linux counts what a parent had in memory into its child's
largest resident size.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

LIMIT_SECONDS = 3600
SAMPLE_SECONDS = 0.2


class Failed(RuntimeError):
    """An error: a program ended badly, or printed no result."""


def run(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, watch: bool = False
) -> dict[str, Any]:
    """Run a program; return the result that it printed, and what was measured from outside.

    `wall_seconds`; `maxrss_gb`, the largest resident size of any one of its processes; `pss_gb`,
    the largest sum over its process tree, each shared page counted once. Both in 10^9 bytes; the
    second is sampled, and only with `watch`.
    """
    with log.open("wb") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        peak = PeakPss(process.pid)
        alarm = threading.Timer(LIMIT_SECONDS, end_group, [process.pid])
        alarm.daemon = True
        alarm.start()
        try:
            with peak if watch else contextlib.nullcontext():
                _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            end_group(process.pid)
            raise
        finally:
            alarm.cancel()
        wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    result = last_result(log.read_text("utf-8", errors="replace"))
    if process.returncode or result is None:
        raise Failed(f"exit code {process.returncode}, see {log.name}")
    seen = {"wall_seconds": wall, "maxrss_gb": usage.ru_maxrss * 1024 / 1e9, "pss_gb": peak.gb}
    return {**result, **seen}


def last_result(said: str) -> dict[str, Any] | None:
    """Return the last line that is a JSON object.

    >>> last_result('noise\\n{"seconds": 2}\\nmore noise')
    {'seconds': 2}
    """
    for line in reversed(said.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return json.loads(line)
    return None


def end_group(pid: int) -> None:
    """End a program and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)


class PeakPss:
    """A sampler of a process tree's proportional set size while open; `gb` is the largest sum."""

    def __init__(self, pid: int) -> None:
        self.pid, self.gb = pid, 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakPss":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            self.gb = max(self.gb, sum(map(pss, tree(self.pid))) / 1e9)


def tree(pid: int) -> Iterator[int]:
    """Return a process and all its descendants."""
    with contextlib.suppress(psutil.Error):
        yield pid
        for child in psutil.Process(pid).children(recursive=True):
            yield child.pid


def pss(pid: int) -> int:
    """Return a process's bytes, each shared page divided by its users; 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
