"""Read a run folder: its files, its metrics, and whether it is finished."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import paths
from neoxkit.errors import UserError, sentence
from neoxkit.files import FINISHED, read_json
from neoxkit.runs import heartbeat, jobs, lease, lock
from neoxkit.runs.events import Event, History, read_events

LOG = "train.log"
ARGUMENTS = "arguments.json"
DATASET = "dataset.json"  # the manifest of the dataset that the run was started on
DIALS = "dials.json"  # setting -> [parameter, dial], if dials had changed any at the start
EVALUATION = "evaluation.json"  # what 03 measured on the held-out set


def of_side(name: str, side: str) -> str:
    """Return the name of a file that 03 writes: what it measures on the test side is kept apart.

    >>> of_side("evaluation.json", "eval"), of_side("evaluation.json", "test")
    ('evaluation.json', 'evaluation_test.json')
    """
    stem, dot, end = name.partition(".")
    return name if side == "eval" else f"{stem}_{side}{dot}{end}"


def state_of(folder: Path) -> str:
    """Return "new", "finished", or "started": it has logged or saved a step."""
    if (folder / FINISHED).exists():
        return "finished"
    made = any(e.get("step") for e in read_events(folder)) or any(folder.glob("checkpoint-*"))
    return "started" if made else "new"


def live_state(folder: Path) -> str:
    """Return "training", "queued" if the run's job waits for its nodes, or "" if neither."""
    job = jobs.look(folder)
    if job and job.is_waiting:
        return "queued"
    is_running = job and job.state != jobs.UNKNOWN
    return "training" if is_running or lock.locked_by(folder) else ""


def doing(folder: Path) -> tuple[str, float]:
    """Return what a run does besides its steps, and for how many seconds; "" if nothing.

    It is a job that waits in a queue, a start that waits for the end of an earlier one's lease, or
    the stage of the rank furthest behind.
    """
    job = jobs.look(folder)
    if job and job.is_waiting:
        return job.says, max(time.time() - (folder / jobs.JOB).stat().st_mtime, 0.0)
    stage, seconds = heartbeat.stage(folder)
    silence = lease.silence(folder)
    if not stage and silence > 2 * lease.RENEW_SECONDS:  # nobody who trains here renews it
        limit = lease.STALE_SECONDS
        return f"making sure that an earlier start is over (up to {limit:.0f} s)", silence
    return stage, seconds


def is_trial(folder: Path) -> bool:
    """Return whether a run was started as a trial (trials.py), which leaves no model."""
    path = folder / ARGUMENTS
    return path.is_file() and bool(read_json(path).get("trial"))


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free <name>.old-N and return the new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def finished_facts(folder: Path) -> dict[str, Any]:
    """Read FINISHED.json of a finished run; refuse any other."""
    if not folder.is_dir():
        raise UserError("run", f"{paths.short(folder)} does not exist", "run 02_train first")
    if state_of(folder) != "finished":
        raise UserError("run", f"{paths.short(folder)} is not finished", "run 02_train again")
    if is_trial(folder):
        what = f"{paths.short(folder)} was a trial: it left no model"
        raise UserError("run", what, "name the run that it was made for")
    return read_json(folder / FINISHED)


def exported_step(facts: Mapping[str, Any]) -> int:
    """Return the step whose weights are model/; a run that an earlier version of the kit finished
    has those of its last one.

    >>> exported_step({"step": 40, "model_step": 12}), exported_step({"step": 40})
    (12, 40)
    """
    return int(facts.get("model_step", facts["step"]))


def early(facts: Mapping[str, Any]) -> str:
    """Say that a run stopped early, and why; "" if it did not.

    `facts`: FINISHED.json, or the done event.

    >>> early({"step": 12, "planned_steps": 40, "stopped_early": 3})
    'stopped early at step 12 of 40, no improvement in 3 evaluations'
    """
    count = facts.get("stopped_early", 0)
    if not count:
        return ""
    evaluations = "evaluation" if count == 1 else "evaluations"
    at = f"step {facts['step']:,} of {facts['planned_steps']:,}"
    return f"stopped early at {at}, no improvement in {count:,} {evaluations}"


@dataclass(frozen=True)
class Standing:
    """The status of a run.

    `state`: queued (a job that waits), training, finished, stopped (on request), failed, killed
    (ended without an event), or unknown (a job while SLURM does not answer).
    `step`, `planned` and the newest losses are None until the first is logged; `changed` is in
    seconds since 1970; `says` is what stopped it, or that it stopped early and warnings about its
    losses. A trial (trials.py) leaves no model, and its losses don't matter.
    """

    run: str
    state: str
    step: int | None
    planned: int | None
    train_loss: float | None
    eval_loss: float | None
    changed: float
    says: str = ""
    is_trial: bool = False


def standing_of(folder: Path, history: History | None = None) -> Standing:
    """Return the status of the run in a folder, from its files alone.

    `history`: its events, if they have been read already.
    """
    history = History.of_run(folder) if history is None else history
    newest = {event["event"]: event for event in history.events}
    last = history.last or {"event": "", "time": folder.stat().st_mtime}
    trial = is_trial(folder)
    from neoxkit.runs import health  # it imports numpy, which the guard doesn't need

    warnings = [] if trial else [f"warning: {line}" for line in health.warnings(history)]
    said = [line for event in history.of("done")[-1:] if (line := early(event))]
    return Standing(
        run=folder.name,
        state=_state(folder, last["event"]),
        step=max((e["step"] for e in history.events if "step" in e), default=None),
        planned=history.start.get("planned_steps"),
        train_loss=newest.get("train", {}).get("loss"),
        eval_loss=newest.get("eval", {}).get("loss"),
        changed=last["time"],
        says=_says(folder, last) or "; ".join([*said, *warnings]),
        is_trial=trial,
    )


def _state(folder: Path, last_event: str) -> str:
    if live := live_state(folder):
        return live
    if (folder / FINISHED).exists():
        return "finished"
    if jobs.look(folder):
        return "unknown"
    return {"stop": "stopped", "error": "failed"}.get(last_event, "killed")


def _says(folder: Path, last: Event) -> str:
    """Say why the run's job waits or is unknown, or what its newest event says went wrong."""
    job = jobs.look(folder)
    if job and (job.is_waiting or job.state == jobs.UNKNOWN):
        return job.says
    is_wrong = last["event"] == "error" or (
        last["event"] in ("killed", "restart") and not (folder / FINISHED).exists()
    )
    return sentence(last) if is_wrong else ""


def all_runs() -> list[Standing]:
    """List every run below runs/, most recently changed first."""
    folders = (paths.root() / "runs").glob("*/")
    started = [f for f in folders if live_state(f) or state_of(f) != "new"]
    return sorted(map(standing_of, started), key=lambda s: -s.changed)
