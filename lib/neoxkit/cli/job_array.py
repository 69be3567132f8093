"""A sweep as one job array of SLURM: an element a run, each with its own 02, and 03 if named.

python -m neoxkit.cli.job_array runs/SWEEP/array-1.json      # the program of each element
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.cli import progress, sweep, terminal
from neoxkit.cli.variants import Variant
from neoxkit.errors import STOPPED, UserError
from neoxkit.fields import as_flags
from neoxkit.launch import job, slurm
from neoxkit.runs import jobs, lock
from neoxkit.runs.events import METRICS
from neoxkit.runs.folder import live_state, standing_of

LOOK_SECONDS = 2.0
# How a run ends that is asked to save and stop: in training, before its first step, without one.
CUT_SHORT = (STOPPED, sweep.INTERRUPTED, 128 + signal.SIGTERM)
ALIKE = ("launcher", "num_nodes", "num_ranks", "slurm")  # one array asks for the same nodes


def carry_out(
    name: str,
    made: Sequence[Variant],
    notebooks: Sequence[str],
    at_once: int = 0,
    dry_run: bool = False,
) -> int:
    """Submit every unfinished variant that has no job, wait for all, then run 04_compare.

    Ctrl-C ends the waiting alone. `at_once` elements run at the same time at most; 0: as many as
    SLURM has nodes for. `dry_run`: print the script, and submit nothing.
    """
    _check_alike(made)
    if at_once < 0:
        raise UserError("--at-once", f"got {at_once}", "give 0 or more")
    doubts = sweep.check_before(made, [{}], notebooks)
    folder = paths.run(name)
    jobs.forget()
    missing = [v for v in made if not (sweep.is_done(v, notebooks) or jobs.look(v.folder))]
    plan = _first_free(folder)
    script = _script(name, plan, missing, at_once)
    if dry_run:
        print(script or "every run is finished, or has a job: nothing to submit\n", end="")
        return 0
    terminal.note(*doubts)
    if missing:
        _submit(plan, script, missing, notebooks)
    try:
        _wait(made, notebooks)
    except KeyboardInterrupt:
        said = "the jobs go on -- the same command watches them, neoxkit stop RUN stops one"
        print(said, file=sys.stderr)
        return sweep.INTERRUPTED
    undone = [v for v in made if not sweep.is_done(v, notebooks)]
    return sweep.compare(name, made) or int(bool(undone))


def _check_alike(made: Sequence[Variant]) -> None:
    for name in ALIKE:
        if len({repr(getattr(variant.settings, name)) for variant in made}) > 1:
            what = "has several values, and one array asks for the same nodes"
            raise UserError(name, what, "make a sweep for each value")


def _first_free(folder: Path) -> Path:
    """Return the file for an array's plan; those of earlier arrays may still be read."""
    number = 1
    while (path := folder / f"array-{number}.json").exists():
        number += 1
    return path


def _script(name: str, plan: Path, missing: Sequence[Variant], at_once: int) -> str:
    if not missing:
        return ""
    elements = f"0-{len(missing) - 1}" + (f"%{at_once}" if at_once else "")
    program = ["neoxkit.cli.job_array", str(plan)]
    log = plan.with_suffix(".log")
    return slurm.script(name, log, program, missing[0].settings, elements)


def _submit(plan: Path, script: str, missing: Sequence[Variant], notebooks: Sequence[str]) -> None:
    """Write the plan, submit the array, and note each run's element in its folder."""
    only = [word for notebook in notebooks for word in ("--only", notebook)]
    elements = [{"run": v.settings.run, "words": [*only, *as_flags(v.parameters)]} for v in missing]
    plan.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(plan, elements)
    for variant in missing:  # an element may start at once
        variant.folder.mkdir(parents=True, exist_ok=True)
    array = slurm.submit(plan.with_suffix(".sh"), script)
    for number, variant in enumerate(missing):
        jobs.record(variant.folder, f"{array}_{number}")
    print(f"job array {array}: {len(missing)} runs; its script: {paths.short(plan.parent)}")


def _wait(made: Sequence[Variant], notebooks: Sequence[str]) -> None:
    """Show what each run does until none has a job any more."""
    table, begun = progress.LiveTable(), time.monotonic()
    while True:
        live = [v for v in made if jobs.look(v.folder) or live_state(v.folder)]
        table.show([_row(variant, notebooks, begun) for variant in made])
        if not live:
            return
        time.sleep(LOOK_SECONDS)


def _row(variant: Variant, notebooks: Sequence[str], begun: float) -> progress.SweepRow:
    if live_state(variant.folder) and not sweep.is_done(variant, notebooks):
        return progress.going(variant.folder, time.monotonic() - begun)
    if (variant.folder / METRICS).exists():
        return progress.ended(standing_of(variant.folder))
    return progress.SweepRow(variant.settings.run, "not started")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one element: the run that the plan has at this element's number."""
    plan = Path((sys.argv[1:] if argv is None else argv)[0])
    one = files.read_json(plan)[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    folder = paths.run(one["run"])
    jobs.record_own(folder)
    asked: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    while lock.locked_by(folder) and not asked:
        time.sleep(LOOK_SECONDS)  # what an earlier job has left; or it still saves
    with (folder / sweep.LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "neoxkit.cli", "run", *one["words"]],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, slurm.INSIDE: "1"},
        )  # fmt: skip
    code = _wait_for(child, asked)
    if code in CUT_SHORT and asked == [signal.SIGUSR1]:
        job.come_back(folder)
    return code


def _wait_for(child: "subprocess.Popen[Any]", asked: list[int]) -> int:
    """Wait for the run; at the warning before the time limit ask it to save and stop. TERM comes
    from SLURM, which sends it to every process of the job."""
    told = False
    while child.poll() is None:
        if signal.SIGUSR1 in asked and not told:
            child.send_signal(signal.SIGTERM)
            told = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
