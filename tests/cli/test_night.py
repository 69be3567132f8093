"""A night without a person: a sweep restarts what dies, and each end is told once.

The default tier takes a sample; `make test-crash` kills twenty processes of a sweep of twenty, and
counts sixty ends.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import reliability
from crashes import LONG, Crashes
from nights import VICTIMS, Told, kill_at, neoxkit, started, step_of, victim, wait_until

from neoxkit import files, paths
from neoxkit.runs import lock, restarts
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import finished_facts, state_of
from neoxkit.settings import TrainSettings

pytestmark = pytest.mark.process

Kill = tuple[str, int, float]  # which process, from which step on, seconds after that


def restarted(folder: Path) -> list[str]:
    return restarts.causes_of(read_events(folder))


def kill_all(owner: int, folders: Sequence[Path], plan: Sequence[Sequence[Kill]]) -> int:
    """Carry out the kills planned for each run, in turn; return how many were made.

    One that came too late is made in the next run.
    """
    due: list[Kill] = []
    num = 0
    for folder, kills in zip(folders, plan, strict=True):
        due += kills
        here = 0
        while due and here < restarts.MOST_RESTARTS:
            what, step, seconds = due[0]
            wait_until(lambda f=folder, s=step: step_of(f) >= s or state_of(f) == "finished")
            time.sleep(seconds)
            if not kill_at(owner, what, folder, step):
                break
            due.pop(0)
            num, here = num + 1, here + 1
            wait_until(lambda f=folder, n=here: len(restarted(f)) >= n or state_of(f) == "finished")
        wait_until(lambda f=folder: state_of(f) == "finished")
    return num


def night(
    crashes: Crashes, name: str, plan: Sequence[Sequence[Kill]], told: Told
) -> tuple[int, int, list[str]]:
    """Run a sweep of as many seeds as the plan has entries, killing as planned; return how many
    kills were made, how many runs finished with the bytes of an undisturbed one, and the log."""
    base = crashes.settings((1, 2), **LONG).replace(run=name, precision="fp32")
    seeds = range(1, len(plan) + 1)
    folders = [paths.run(f"{name}.seed={seed}") for seed in seeds]
    parameters = base.changed() | {"seed": ",".join(map(str, seeds))}
    log = paths.root() / f"{name}.log"
    words = ("sweep", "02_train", "--on-end", told.command)
    with neoxkit(*words, parameters=parameters, log=log, **told.environment) as sweep:
        kills = kill_all(sweep.pid, folders, plan)
        code = sweep.wait()
    said = log.read_text().splitlines()
    assert code == 0, said
    same = 0
    for seed, folder in zip(seeds, folders, strict=True):
        sha256 = finished_facts(folder)["model_sha256"]["model.safetensors"]
        assert sha256 == files.sha256(folder / "model" / "model.safetensors")
        same += sha256 == crashes.expected(base.replace(seed=seed))
    ends = [("run", folder.name, "finished") for folder in folders]
    assert told.calls() == Counter([*ends, ("sweep", name, "finished")])
    return kills, same, said


def test_a_sweep_restarts_a_run_whose_rank_or_kernel_was_killed(
    crashes: Crashes, tmp_path: Path
) -> None:
    plan = [[("rank", 4, 0.0)], [("kernel", 4, 0.0)]]
    assert night(crashes, "night-2", plan, Told(tmp_path))[:2] == (2, 2)
    causes = [restarted(paths.run(f"night-2.seed={seed}")) for seed in (1, 2)]
    assert causes == [["one of its processes was killed (KILL)"], ["its kernel was killed"]]
    said = (paths.root() / "night-2.log").read_text().splitlines()
    assert f"note: night-2.seed=1 was restarted 1 time, after {causes[0][0]}" in said
    assert f"night-2.seed=2  restarting  after {causes[1][0]}" in said


def test_a_mistake_and_a_loss_that_is_not_finite_are_not_tried_again(
    crashes: Crashes, tmp_path: Path
) -> None:
    """Weights of 1e30 and more have no finite loss."""
    told = Told(tmp_path)
    settings = crashes.settings((1, 2), max_steps=4).replace(run="nan-2")
    parameters = settings.changed() | {"weight_decay": "0,1e33"}
    log = paths.root() / "nan-2.log"
    words = ("sweep", "02_train", "--on-end", told.command)
    with neoxkit(*words, parameters=parameters, log=log, **told.environment) as sweep:
        assert sweep.wait() == 2, log.read_text()
    good, bad = (f"nan-2.weight_decay={value}" for value in ("0.0", "1e+33"))
    assert restarted(paths.run(bad)) == []
    assert [e["kind"] for e in read_events(paths.run(bad)) if e["event"] == "error"] == [
        "NotFinite"
    ]
    ends = [("run", good, "finished"), ("run", bad, "failed"), ("sweep", "nan-2", "failed")]
    assert told.calls() == Counter(ends)


# How an end comes about: what is told then, of the run, or of the sweep and its first run.
ENDINGS = {
    "run finished": ["finished"],
    "run mistake": ["failed"],
    "run nan": ["failed"],
    "run stop": ["stopped"],
    "run rank KILL": ["killed"],
    "run kernel KILL": ["killed"],
    "run guard KILL": ["killed"],
    "run run KILL": ["killed"],
    "run all KILL": ["killed"],  # found by the next command
    "run early KILL": ["killed"],  # as well: no training was there yet
    "notebook finished": ["finished"],
    "notebook owner KILL": ["stopped"],  # its guard has the ranks save
    "notebook guard KILL": ["killed"],
    "sweep finished": ["finished", "finished", "finished"],
    "sweep stop": ["stopped", "stopped"],
    "sweep sweep KILL": ["killed", "killed"],
}
ROUNDS = 3  # of these 20 ends
NOTEBOOK = """
import sys
from neoxkit.lab import dashboard
dashboard.display = lambda *_, **__: type("Output", (), {"update": lambda *_: None})()
from neoxkit.launch import process
from neoxkit.settings import TrainSettings
dashboard.watch(process.start(TrainSettings(**eval(sys.argv[1]))))
"""


def settings_for(how: str, run: str) -> TrainSettings:
    changes = {
        "finished": {"max_steps": 4},
        "mistake": {"dataset": "gone"},
        "nan": {"max_steps": 4, "weight_decay": 1e33},
    }.get(how, {"max_steps": 100_000, "save_steps": 20})
    base = TrainSettings(dataset="small", logging_steps=1, eval_steps=100, num_replies=0)
    return base.replace(run=run, **changes)


def end(owner: subprocess.Popen, how: str, folder: Path) -> None:
    """End a command, whose first run is in the folder, in this way."""
    what, _, number = how.rpartition(" ")
    if number == "stop":
        wait_until(lambda: step_of(folder) > 1)
        owner.terminate()
    elif what == "early":
        wait_until(lambda: victim(owner.pid, "kernel", folder.name))
        owner.kill()
    elif number == "KILL":
        wait_until(lambda: step_of(folder) > 1)
        pids = [victim(owner.pid, one, folder.name) for one in VICTIMS]
        if what in VICTIMS:
            pids = [victim(owner.pid, what, folder.name)]
        elif what in ("owner", "sweep"):
            pids = [owner.pid]
        for pid in filter(None, pids):
            os.kill(pid, signal.SIGKILL)


def ending(how: str, number: int, place: Path) -> str:
    """Bring about an end in this way; return what was not told exactly once, or ""."""
    kind, _, way = how.partition(" ")
    name = f"{how}-{number}".lower().replace(" ", "-")
    told, parameters = Told(place / name), settings_for(way, name).changed()
    first = paths.run(f"{name}.seed=1" if kind == "sweep" else name)
    with begun(kind, parameters, told, place / f"{name}.log") as owner:
        end(owner, way, first)
        owner.wait()
    wait_until(lambda: not lock.locked_by(first))
    if way not in ("all KILL", "early KILL"):  # nobody is left then, and the next command tells it
        wait_until(lambda: not owed())
    for _ in range(2):  # the second one finds nothing
        with neoxkit("runs", parameters={}, log=place / "runs.log", **told.environment) as runs:
            assert runs.wait() == 0
    whose = [("run", first.name)]
    if kind == "sweep":
        whose = [("sweep", name), ("run", first.name), ("run", f"{name}.seed=2")]
    expected = Counter((*one, state) for one, state in zip(whose, ENDINGS[how], strict=False))
    wait_until(lambda: told.calls().total() >= expected.total())  # the last one is being written
    return "" if told.calls() == expected and not owed() else f"{how}: {told.calls()} {owed()}"


def owed() -> list[Path]:
    return [*(paths.root() / "runs").glob(".on_end*")]


def begun(
    kind: str, parameters: dict[str, Any], told: Told, log: Path
) -> AbstractContextManager[subprocess.Popen]:
    """Begin a run, a sweep of two seeds, or a training as a notebook does."""
    if kind == "notebook":
        line = [sys.executable, "-c", NOTEBOOK, repr(parameters)]
        return started(line, log, **told.environment, NEOXKIT_ON_END=told.command)
    words = ["run", "--only", "02_train"]
    if kind == "sweep":
        words, parameters = ["sweep", "02_train"], parameters | {"seed": "1,2"}
    words += ["--on-end", told.command]
    return neoxkit(*words, parameters=parameters, log=log, **told.environment)


@pytest.mark.parametrize("how", ["run mistake", "run all KILL", "sweep sweep KILL"])
def test_an_end_is_told_exactly_once(home: Path, tmp_path: Path, how: str) -> None:
    assert ending(how, 0, tmp_path) == ""


# The whole series: make test-crash.


@pytest.mark.crash
def test_a_night_of_twenty_runs_and_twenty_kills(crashes: Crashes, tmp_path: Path) -> None:
    chance = random.Random(2026)
    plan: list[list[Kill]] = [[] for _ in range(20)]
    for _ in range(20):
        fewest = [kills for kills in plan[:-1] if len(kills) < restarts.MOST_RESTARTS]
        step = chance.randrange(-1, 16)
        latest = 3 if step < 0 else 0.1  # importing takes seconds, all of the steps about one
        chance.choice(fewest).append((chance.choice([*VICTIMS]), step, chance.uniform(0, latest)))
    kills, same, _ = night(crashes, "night-20", plan, Told(tmp_path))
    reliability.record(reliability.SERIES[12], f"{same} of 20, {kills} kills")
    assert (kills, same) == (20, 20)


@pytest.mark.crash
def test_sixty_endings(home: Path, tmp_path: Path) -> None:
    wrong = [
        (len(ENDINGS[how]), said)
        for number in range(1, ROUNDS + 1)
        for how in ENDINGS
        if (said := ending(how, number, tmp_path))
    ]
    num = ROUNDS * sum(map(len, ENDINGS.values()))
    print(wrong)
    right = num - sum(count for count, _ in wrong)
    reliability.record(reliability.SERIES[13], f"{right} of {num}")
    assert (wrong, num) == ([], 60)
