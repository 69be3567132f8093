"""A training as a SLURM job: its script, its submission, and stopping it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from neoxkit import files, paths
from neoxkit.errors import UserError, shorten
from neoxkit.launch import cluster_file
from neoxkit.launch.nodes import Place
from neoxkit.runs import card, jobs, lock
from neoxkit.runs.folder import LOG
from neoxkit.settings import TrainSettings

PLAN = "launch.json"  # in the run folder: what each rank of a job needs to know
SCRIPT = "job.sh"
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


def script(folder: Path, place: Place, settings: TrainSettings) -> str:
    """Return the job's script: SLURM's options, the site's set-up lines, and the job's program."""
    said = cluster_file.read()
    options = {
        "job-name": folder.name,
        "nodes": place.num_nodes,
        "ntasks-per-node": place.ranks_a_node,
        "output": str(folder / LOG).replace("%", "%%"),
        "open-mode": "append",
        "requeue": True,
        "signal": f"B:USR1@{WARNING_SECONDS}",
        **cluster_file.options(settings.slurm),
    }
    lines = [f"#SBATCH {_option(name, value)}" for name, value in options.items() if value != ""]
    program = shlex.join([sys.executable, "-m", "neoxkit.launch.job", str(folder)])
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"cd {shlex.quote(str(paths.root()))} || exit 1",
            f"export NEOXKIT_HOME={shlex.quote(str(paths.root()))}",
            *map(str, said.get("setup", [])),
            f"exec {program}",
            "",
        ]
    )


def _option(name: str, value: object) -> str:
    """Write one option as sbatch reads it.

    >>> _option("gpus-per-node", 8), _option("exclusive", True), _option("comment", "two words")
    ('--gpus-per-node=8', '--exclusive', '--comment="two words"')
    """
    if value is True:
        return f"--{name}"
    text = str(value)
    return f"--{name}={text}" if " " not in text else f'--{name}="{text}"'


def submit(folder: Path, place: Place, settings: TrainSettings) -> str:
    """Write the plan and the script into the run folder, submit the script, return the job's id."""
    require()
    plan = {"ranks": place.ranks_a_node, "on_gpu": place.on_gpu, "versions": card.versions()}
    files.write_json(folder / PLAN, plan)
    files.write_text(folder / SCRIPT, script(folder, place, settings))
    done = _slurm("sbatch", "--parsable", str(folder / SCRIPT))
    if done.returncode:
        said = shorten(done.stderr.removeprefix("sbatch: error: "), 120)
        raise UserError("slurm", f"sbatch refused the job: {said}", "correct slurm or cluster.yaml")
    job = done.stdout.strip().partition(";")[0]
    jobs.record(folder, job)
    return job


def stop(folder: Path, now: bool = False) -> None:
    """Stop the run's job for good: one that runs saves first, unless `now`; one that waits, or has
    not come to its program, is cancelled."""
    job = jobs.look(folder)
    if not job:
        return
    _slurm("scontrol", "update", f"JobId={job.id}", "Requeue=0")
    if now or job.is_waiting:
        _slurm("scancel", job.id)
        jobs.forget()
    else:
        lock.ask_to_stop(folder)


def requeue(job: str) -> bool:
    """Put a job that is running back into the queue; return whether SLURM has taken it."""
    return not _slurm("scontrol", "requeue", job).returncode


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM's, as if outside of any job."""
    env = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_OF_ANOTHER_JOB)}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"{command[0]} did not answer in {PATIENCE_SECONDS:.0f} s"
        raise UserError("slurm", what, "try again once the scheduler answers") from None
