"""Every run and how it stands: what `neoxkit runs` lists."""

from dataclasses import dataclass
from pathlib import Path

from neoxkit import health, lock, paths, runs


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    `state`: training, finished, stopped (on request), failed, or killed (it ended without a word).
    `step`, `planned` and the newest losses are None before the first of them; `changed` is in
    seconds since 1970; `says` is what stopped it, or the warnings of its losses. A trial (trial.py)
    leaves no model, and its losses are no matter.
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


def standing_of(folder: Path) -> Standing:
    """How the run in a folder stands, from its files alone."""
    events = runs.history(runs.read_events(folder))
    newest = {event["event"]: event for event in events}
    last = events[-1] if events else {"event": "", "time": folder.stat().st_mtime}
    trial = runs.is_trial(folder)
    warnings = [] if trial else [f"warning: {line}" for line in health.warnings(events)]
    return Standing(
        run=folder.name,
        state=_state(folder, last["event"]),
        step=max((e["step"] for e in events if "step" in e), default=None),
        planned=newest.get("start", {}).get("planned_steps"),
        train_loss=newest.get("train", {}).get("loss"),
        eval_loss=newest.get("eval", {}).get("loss"),
        changed=last["time"],
        says=last["message"] if last["event"] == "error" else "; ".join(warnings),
        is_trial=trial,
    )


def _state(folder: Path, last_event: str) -> str:
    if lock.locked_by(folder):
        return "training"
    if runs.state_of(folder) == "finished":
        return "finished"
    return {"stop": "stopped", "error": "failed"}.get(last_event, "killed")


def all_runs() -> list[Standing]:
    """Every run below runs/, the one that changed last first."""
    folders = (paths.root() / "runs").glob("*/")
    started = [f for f in folders if lock.locked_by(f) or runs.state_of(f) != "new"]
    return sorted(map(standing_of, started), key=lambda s: -s.changed)
