"""`neoxkit stop`: have a training save and stop, or end it at once, wherever it runs."""

import os
import signal
import time
from pathlib import Path

from neoxkit import paths
from neoxkit.cli import screen, terminal
from neoxkit.errors import UserError
from neoxkit.launch import slurm
from neoxkit.runs import jobs, lease, lock
from neoxkit.runs.folder import live_state, standing_of


def stop(run: str, now: bool) -> int:
    """Stop the training of a run and wait until it has ended; return 1 if it could not save."""
    folder = paths.run(run)
    if job := jobs.look(folder):
        now = slurm.stop(folder, now)
        does = "is cancelled" if now else "finishes its step and saves"
        print(f"{run}: job {job.id} ({job.says}) {does} ...", flush=True)
    else:
        _stop_here(folder, now)
    with screen.busy("waiting until it has ended"):
        while live_state(folder):
            time.sleep(0.2)
    lock.answer_stop(folder)  # a training that had just ended did not see it
    standing = standing_of(folder)
    print(terminal.how_it_stands(standing))
    return 0 if now or standing.state in ("stopped", "finished") else 1


def _stop_here(folder: Path, now: bool) -> None:
    """Ask a training that is no job to stop, or end the one on this machine."""
    for _ in range(100):
        if (pid := lock.locked_by(folder)) != lock.UNKNOWN or lease.holder(folder):
            break
        time.sleep(0.05)  # it has just started
    if not pid:
        raise UserError("RUN", f"{folder.name} is not training", "see neoxkit runs")
    if now and pid == lock.UNKNOWN:
        what = f"{folder.name} is trained by a process that is not on this machine"
        raise UserError("RUN", what, "use --now there, or leave it out here")
    if now:
        os.kill(pid, signal.SIGQUIT)  # the guard, which ends the whole tree
        return
    lock.ask_to_stop(folder)
    print(f"{folder.name} finishes its step and saves ...", flush=True)
