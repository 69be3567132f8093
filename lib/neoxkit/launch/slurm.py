"""A training as a SLURM job: its script, its submission, and stopping it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from neoxkit import files
from neoxkit.errors import UserError, shorten
from neoxkit.launch import cluster_file, nodes, plan
from neoxkit.runs import jobs, lock
from neoxkit.runs.folder import LOG
from neoxkit.settings import TrainSettings

SCRIPT = "job.sh"
INSIDE = "NEOXKIT_INSIDE"  # set in an element of a sweep's array: its training starts right there
PATIENCE_SECONDS = 60.0  # for a command of SLURM's
WARNING_SECONDS = 180  # before its time limit SLURM tells the job to save; it looks every 30 s
# What a job would inherit from another one that it is submitted from (a kernel in an allocation).
_OF_ANOTHER_JOB = ("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_")
_KEPT = ("SLURM_CONF",)


def require() -> None:
    """Refuse a machine without SLURM's commands."""
    if not shutil.which("sbatch"):
        what = "has no sbatch here: this machine can't submit jobs"
        raise UserError("launcher", what, "go to a login node of the cluster, or set local")


def is_inside() -> bool:
    """Return whether this process runs in a job that is there for it: an element of a sweep."""
    return bool(os.environ.get(INSIDE))


def script(
    name: str, log: Path, program: Sequence[str], settings: TrainSettings, array: str = ""
) -> str:
    """Return a job's script: SLURM's options, the site's set-up lines, and the job's program.

    `array`: the elements of a job array, as sbatch takes them.
    """
    place = nodes.of(settings)
    options = {
        "job-name": name,
        "nodes": place.num_nodes,
        "ntasks-per-node": place.ranks_a_node,
        "output": str(log).replace("%", "%%"),
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR1@{WARNING_SECONDS}",
        "array": array,
        **cluster_file.options(settings.slurm),
    }
    lines = [f"#SBATCH {_option(name, value)}" for name, value in options.items() if value != ""]
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            *cluster_file.script_of([sys.executable, "-m", *program]),
            "",
        ]
    )


def _option(name: str, value: object) -> str:
    """Write one option as sbatch reads it in a script: it knows quotes, and nothing to escape them.

    >>> _option("gpus-per-node", 8), _option("exclusive", True), _option("comment", "two words")
    ('--gpus-per-node=8', '--exclusive', '--comment="two words"')
    """
    text = str(value)
    if value is True or not re.search(r"[\s\"'#\\]", text):
        return _word(name, value)
    quote = "'" if '"' in text else '"'
    if quote in text or "\\" in text:
        what = f"{name} would be {shorten(text, 80)}, which sbatch can't read"
        raise UserError("slurm", what, "use no backslash, and one kind of quotes")
    return f"--{name}={quote}{text}{quote}"


def _word(name: str, value: object) -> str:
    """Write one option as an argument of a command."""
    return f"--{name}" if value is True else f"--{name}={value}"


def start(folder: Path, settings: TrainSettings) -> str:
    """Submit a run's job; return its id."""
    plan.write(folder, settings)
    program = ["neoxkit.launch.job", str(folder)]
    job = submit(folder / SCRIPT, script(folder.name, folder / LOG, program, settings))
    jobs.record(folder, job)
    return job


def submit(path: Path, text: str) -> str:
    """Write a job's script and submit it; return the job's id."""
    require()
    files.write_text(path, text)
    done = _slurm("sbatch", "--parsable", str(path))
    if done.returncode:
        what = f"sbatch refused the job: {last_error(done.stderr)}"
        raise UserError("slurm", what, "correct slurm or cluster.yaml, or see sinfo")
    found = re.search(r"^(\d+)(;\S+)?$", done.stdout, re.M)  # a site may greet before it
    if not found:
        what = f"sbatch gave no job id: {shorten(done.stdout or 'nothing', 80)}"
        raise UserError("slurm", what, "see squeue, and stop what it submitted by scancel")
    return found[1]


def stop(folder: Path, now: bool = False) -> bool:
    """Stop the run's job for good; return whether it was cancelled.

    One that trains is asked to save first, unless `now`. One that waits, starts or evaluates has
    nothing to save and is cancelled.
    """
    jobs.forget()  # it may have come, or begun, since SLURM was asked
    job = jobs.look(folder)
    if not job:
        return False
    if job.state == jobs.UNKNOWN:
        raise UserError("slurm", f"does not answer, and job {job.id} may run", "try again later")
    _slurm("scontrol", "update", f"JobId={job.id}", "Requeue=0")
    if not now and lock.locked_by(folder) and not job.is_waiting:
        lock.ask_to_stop(folder)
        return False
    done = _slurm("scancel", job.id)
    if done.returncode:
        what = f"scancel refused: {last_error(done.stderr)}"
        raise UserError("slurm", what, "see squeue")
    jobs.forget()
    return True


def last_error(said: str) -> str:
    """Return the last line that a command of SLURM's has said, which tells the cause.

    >>> last_error("sbatch: error: dns_srv\\nsbatch: fatal: Could not find a configuration\\n")
    'Could not find a configuration'
    """
    line = said.strip().rpartition("\n")[2]
    return shorten(re.sub(r"^\w+: (error|fatal): ", "", line), 100)


def requeue(job: str) -> bool:
    """Put a job that is running back into the queue; return whether SLURM has taken it."""
    try:
        return not _slurm("scontrol", "requeue", job).returncode
    except UserError:  # it did not answer
        return False


def on_each_node(
    settings: TrainSettings, program: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run a Python module once on each node that the settings' job would have, in a job of its
    own; it may wait for its nodes."""
    place = nodes.of(settings)
    asked = {"job-name": "inspection", "nodes": place.num_nodes, "ntasks-per-node": 1}
    options = {**asked, **cluster_file.options(settings.slurm)}
    words = [_word(name, value) for name, value in options.items()]
    return _slurm("srun", *words, sys.executable, "-m", *program, seconds=None)


def configuration() -> dict[str, str]:
    """Return SLURM's own configuration, by its names."""
    lines = _slurm("scontrol", "show", "config").stdout.splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _slurm(
    *command: str, seconds: float | None = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM's, as if outside of any job."""
    env = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_OF_ANOTHER_JOB)}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"{command[0]} did not answer in {PATIENCE_SECONDS:.0f} s"
        raise UserError("slurm", what, "try again once the scheduler answers") from None
