"""The SLURM job of a run, and what the queue says of it."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files

JOB = "job.json"  # in the run folder: the job's id, from its submission on
TRIES = "requeues.json"  # in the run folder: how often the job came back, and with which step
LOOK_SECONDS = 5.0  # between two questions to the scheduler, which serves a whole site
PATIENCE_SECONDS = 20.0  # for an answer
WAITING = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    "SUSPENDED", "RESIZING",
)  # fmt: skip
ENDED = (
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE",
    "PREEMPTED", "BOOT_FAIL", "REVOKED",
)  # fmt: skip
UNKNOWN = "UNKNOWN"  # SLURM has not answered yet


@dataclass(frozen=True)
class Queued:
    """A job in the queue: SLURM's state of it, why it waits, and the nodes that it has."""

    id: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def says(self) -> str:
        """Say in a few words where the job is."""
        if self.is_waiting:
            return f"queued ({self.reason})" if self.reason not in ("", "None") else "queued"
        if self.state == UNKNOWN:
            return "SLURM does not answer"
        return f"on {self.nodes}" if self.nodes else self.state.lower()


def record(folder: Path, job: str) -> None:
    """Note the job that trains in a run folder; how often an earlier one came back is forgotten."""
    (folder / TRIES).unlink(missing_ok=True)
    files.write_json(folder / JOB, {"id": job})
    _newest.forget()


def record_own(folder: Path) -> None:
    """Note the job that this process runs in, if whoever submitted it could not."""
    if own() != job_of(folder):
        record(folder, own())


def job_of(folder: Path) -> str:
    """Return the id of the run's newest job; empty if it had none, or its file is damaged."""
    try:
        return str(files.read_json(folder / JOB)["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def look(folder: Path) -> Queued | None:
    """Return the run's job while it is in the queue or on nodes; None if there is none (any more).

    SLURM is asked at most every LOOK_SECONDS, for all jobs at once. Where it does not answer, a job
    is what it was; one that was never seen is in state UNKNOWN, unless its run has finished.
    """
    job = job_of(folder)
    found = _newest.of(job) if job and job != own() else None
    is_unknown = found is not None and found.state == UNKNOWN
    return None if is_unknown and (folder / files.FINISHED).exists() else found


def is_over(job: str) -> bool:
    """Return whether a job is certainly not in this person's queue (any more)."""
    return _newest.of(job) is None and _newest.is_known


def own(given: Mapping[str, str] = os.environ) -> str:
    """Return the job that this process runs in, as `job_of` writes it; empty if in none."""
    if array := given.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{given['SLURM_ARRAY_TASK_ID']}"
    return given.get("SLURM_JOB_ID", "")


class _Newest:
    """The newest answer of squeue."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._asked, self._jobs, self.is_known = -LOOK_SECONDS, dict[str, Queued](), False

    def of(self, job: str) -> Queued | None:
        if time.monotonic() - self._asked >= LOOK_SECONDS:
            self._ask()
        if not self.is_known:
            return Queued(job, UNKNOWN) if shutil.which("squeue") else None
        return self._jobs.get(job)

    def _ask(self) -> None:
        who = ("--all", "--user", str(os.getuid()))  # hidden partitions, too
        try:
            said = _run("squeue", "--noheader", "--array", *who, "--format", "%i|%T|%r|%N")
        except (OSError, subprocess.SubprocessError):
            said = None
        self._asked = time.monotonic()
        if said is not None:
            found = [Queued(*line.split("|")) for line in said.splitlines() if line.count("|") == 3]
            self._jobs = {job.id: job for job in found if job.state not in ENDED}
            self.is_known = True


_newest = _Newest()


def forget() -> None:
    """Ask SLURM at the next look, whenever it was asked last: something was changed."""
    _newest.forget()


def fate(job: str) -> str:
    """Return how a job ended, as SLURM knows it for some minutes; empty if it does not."""
    try:
        said = _run("scontrol", "--oneliner", "show", "job", job)
    except (OSError, subprocess.SubprocessError):
        return ""
    facts: dict[str, Any] = dict(w.split("=", 1) for w in said.split() if "=" in w)
    return f"{facts.get('JobState', '')} ({facts.get('Reason', '')})".replace(" (None)", "")


def _run(*command: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}  # a person's filters
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS, env=env
    )
    return done.stdout
