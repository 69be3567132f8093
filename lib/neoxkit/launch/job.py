"""The program of a SLURM job: it starts the ranks, has them save in time, and queues again.

    python -m neoxkit.launch.job runs/NAME

SLURM sends it USR1 some minutes before the job's time limit: the training finishes its step, saves
and stops, and the job goes back into the queue, to resume there. TERM (a job that is cancelled or
preempted) reaches the ranks too, which save; whether the job comes back is SLURM's affair then.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoxkit import files
from neoxkit.errors import STOPPED, UserError, as_fields
from neoxkit.launch import command, slurm
from neoxkit.launch.guard import SILENT
from neoxkit.runs import checkpoints, heartbeat, jobs, lock
from neoxkit.runs.events import append_event

MOST_REQUEUES = 20  # without a new checkpoint between them
WAIT_SECONDS = 60  # for the other ranks once one has ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ranks of this job; return their exit code."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    jobs.record_own(folder)
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        lock.answer_stop(folder)  # it was for the attempt before this one
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        with contextlib.suppress(OSError):
            lock.ask_to_stop(folder)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, ask)
    words, address = ranks_command(folder)
    watch = heartbeat.Watch(folder)
    watch.forget()
    code = _wait(subprocess.Popen(words, env=os.environ | address), folder, watch)
    if code == STOPPED and asked == [signal.SIGUSR1]:
        come_back(folder)
    return code


def _wait(ranks: subprocess.Popen, folder: Path, watch: heartbeat.Watch) -> int:
    """Wait for the ranks; end them if one falls silent. Return the exit code as a shell counts."""
    while (code := ranks.poll()) is None:
        if silent := watch.silent():
            what = f"rank {silent.rank} sent no heartbeat for {silent.seconds:.0f} s"
            what += f" while {silent.doing}" if silent.doing else ""
            append_event(folder, "error", kind="silent", where="", what=what, remedy="")
            ranks.terminate()  # srun ends every rank, and kills what does not end
            with contextlib.suppress(subprocess.TimeoutExpired):
                ranks.wait(WAIT_SECONDS)
            ranks.kill()
            return SILENT
        with contextlib.suppress(subprocess.TimeoutExpired):
            ranks.wait(1)
    return code if code >= 0 else 128 - code


def _first_node() -> str:
    done = subprocess.run(
        ["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


def ranks_command(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts a rank in each task of this job, and what it adds to their
    environment."""
    address = {"MASTER_ADDR": _first_node(), "MASTER_PORT": str(command.free_port())}
    return _srun(folder), address


def _srun(folder: Path) -> list[str]:
    cores = os.environ.get("SLURM_CPUS_PER_TASK")  # srun does not take it over by itself
    return [
        "srun",
        "--kill-on-bad-exit=0",  # 75 is no failure, and rank 0 is the last to end
        f"--wait={WAIT_SECONDS}",
        *([f"--cpus-per-task={cores}"] if cores else []),
        sys.executable,
        "-m",
        "neoxkit.launch.join",
        str(folder),
    ]


def come_back(folder: Path) -> None:
    """Put this job back into the queue, which ends it; say so in the run if it can't come back."""
    if may_come_back(folder) and not slurm.requeue(os.environ["SLURM_JOB_ID"]):
        _tell(folder, "did not take the job back at its time limit", "run it again to resume")


def may_come_back(folder: Path) -> bool:
    """Count this return to the queue; refuse one too many without a new checkpoint, and say so."""
    path, step = folder / jobs.TRIES, checkpoints.saved_step(folder)
    before = files.read_json(path) if path.is_file() else {}
    times = before["times"] + 1 if before.get("step") == step and before else 1
    files.write_json(path, {"step": step, "times": times})
    if times <= MOST_REQUEUES:
        return True
    what = f"the job came back {MOST_REQUEUES} times without a new checkpoint"
    _tell(folder, what, "give it more time: its start and a few steps must fit")
    return False


def _tell(folder: Path, what: str, remedy: str) -> None:
    append_event(folder, "error", **as_fields(UserError("slurm", what, remedy)))


if __name__ == "__main__":
    sys.exit(main())
