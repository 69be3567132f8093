"""Stops of every kind at every stage: no process is left, and the next start works.

The default tier takes a sample; `make test-crash` takes all of them.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import reliability
from conftest import PATIENCE_SECONDS
from jupyter_client.manager import KernelManager

from neoxkit import files, paths
from neoxkit.errors import TrainingError
from neoxkit.launch import process
from neoxkit.launch.guard import SILENT
from neoxkit.runs import checkpoints, heartbeat, lock
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import DATASET, LOG, state_of
from neoxkit.settings import TrainSettings

pytestmark = pytest.mark.process

LEFT_SECONDS = 10.0  # the README's figure, measured by the crash series on an idle machine
BASE = TrainSettings(
    dataset="small",
    max_steps=100_000,
    save_steps=20,
    eval_steps=20,
    logging_steps=5,
    num_replies=0,
    save_total_limit=2,
)
HOWS = (
    "cell interrupt", "kernel restart", "kernel KILL", "papermill INT", "papermill TERM",
    "papermill KILL", "runner TERM", "runner KILL", "launcher KILL", "rank KILL",
)  # fmt: skip
WHERES = ("import", "load", "step", "save", "evaluate")


def reached(folder: Path, where: str) -> bool:
    """Return whether the training in a folder has reached a phase."""
    events = [e["event"] for e in read_events(folder)]
    if where == "import":
        return lock.locked_by(folder) not in (None, lock.UNKNOWN)
    if where == "load":
        return (folder / DATASET).exists()
    if where == "step":
        return "train" in events
    if where == "save":
        return any(not (c / files.MANIFEST).exists() for c in checkpoints.folders(folder))
    return any(e["event"] == "train" and e["step"] % 20 == 0 for e in read_events(folder))


def wait_until(ready: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def members(session: int) -> list[psutil.Process]:
    """Return the living processes of a guard's session."""
    found = []
    for one in psutil.process_iter():
        try:
            if os.getsid(one.pid) == session and one.status() != "zombie":
                found.append(one)
        except (OSError, psutil.Error):
            continue
    return found


def part(session: int, name: str) -> psutil.Process:
    """Return the runner, the launcher or the first rank of a training."""
    signs = {"runner": "launcher.runner", "launcher": "launcher.launch", "rank": "neoxkit.train"}
    others = ("launcher.", "neoxkit.launch.guard")  # carry a rank's module in their lines as well
    # A line is read once: that of a process that is just being loaded is empty for a moment.
    lines = [(p, " ".join(p.cmdline())) for p in members(session) if p.pid != session]
    found = [p for p, line in lines if signs[name] in line
             and (name != "rank" or not any(other in line for other in others))]  # fmt: skip
    return found[0]


@contextmanager
def kernel(settings: TrainSettings) -> Iterator[KernelManager]:
    """Run a kernel that watches a training."""
    manager = KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE_SECONDS)
    changed = settings.changed()
    client.execute(
        "from neoxkit.lab import dashboard\nfrom neoxkit.launch import process\n"
        "from neoxkit.settings import TrainSettings\n"
        f"dashboard.watch(process.start(TrainSettings(**{changed!r})))"
    )
    yield manager
    client.stop_channels()
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


@contextmanager
def papermill(settings: TrainSettings) -> Iterator[subprocess.Popen]:
    """Start `neoxkit run` of 02_train as a separate process."""
    flags = [w for k, v in settings.changed().items() for w in ("-p", k, str(v))]
    started = subprocess.Popen(
        [sys.executable, "-m", "neoxkit.cli", "run", "--only", "02_train", *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield started
    if started.poll() is None:
        started.wait(timeout=PATIENCE_SECONDS)
    assert started.returncode != 0, "a stopped run looked like success"


def stop(how: str, where: str, within_seconds: float = PATIENCE_SECONDS) -> str:
    """Start a training and stop it there in this way; return what is wrong afterwards, or ""."""
    ranks = 2 if how.startswith(("runner", "launcher")) else 1  # one alone has neither
    settings = BASE.replace(run=f"{how}-{where}".replace(" ", "-").lower(), num_ranks=ranks)
    folder = paths.run(settings.run)
    begin = papermill if how.startswith("papermill") else kernel
    with begin(settings) as owner:
        if not wait_until(lambda: reached(folder, where)):
            return "it did not get there"
        session = lock.locked_by(folder)
        what, number = how.split(" ")
        if how == "cell interrupt":
            owner.interrupt_kernel()
        elif how == "kernel restart":
            owner.restart_kernel(now=True)
        elif how == "kernel KILL":
            os.kill(owner.provisioner.pid, signal.SIGKILL)
        elif what == "papermill":
            owner.send_signal(getattr(signal, f"SIG{number}"))
        else:
            if not wait_until(lambda: _has(session, what)):
                return f"no {what}"
            part(session, what).send_signal(getattr(signal, f"SIG{number}"))
        begun = time.monotonic()
        gone = wait_until(lambda: not members(session), within_seconds)
        took = time.monotonic() - begun
        if not gone:
            left = [" ".join(p.cmdline())[-60:] for p in members(session)]
            for one in members(session):
                one.kill()
            return f"left after {within_seconds:.0f} s: {left}"
    if lock.locked_by(folder) or state_of(folder) == "finished":
        return f"after {took:.1f} s: locked or finished"
    return starts_again(settings)


def _has(session: int, what: str) -> bool:
    try:
        return bool(part(session, what))
    except (IndexError, psutil.Error):
        return False


def starts_again(settings: TrainSettings) -> str:
    """Start the same settings again, or resume; return "" if that works."""
    training = process.start(settings)
    before = len(read_events(training.folder))
    try:
        begun = wait_until(lambda: len(read_events(training.folder)) > before)
        newest = [e["event"] for e in read_events(training.folder)[-1:]]
    finally:
        training.stop()
    return "" if begun and newest != ["error"] else f"the next start did not work ({newest})"


@pytest.mark.parametrize(
    ("how", "where"),
    [("kernel restart", "load"), ("launcher KILL", "step")],
)
def test_a_stop_leaves_nothing_and_the_next_start_works(home: Path, how: str, where: str) -> None:
    assert stop(how, where) == ""


def stand_still(number: int) -> str:
    """Stop one of two ranks while it trains; return what is wrong then, or ""."""
    settings = BASE.replace(run=f"still-{number}", num_ranks=2, per_device_train_batch_size=8)
    training = process.start(settings)
    if not wait_until(lambda: reached(training.folder, "step")):
        return "no step"
    time.sleep(0.1 * number)
    victim = sorted(heartbeat.Watch(training.folder).ranks())[number % 2]
    os.kill(victim, signal.SIGSTOP)
    try:
        code = training.process.wait(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        training.stop()
        return "not found"
    said = read_events(training.folder)[-1]
    stacks = (training.folder / LOG).read_text().count("most recent call first")
    found = re.search(r"sent no heartbeat for (\d+) s", said["what"])
    soon = found is not None and int(found[1]) < heartbeat.LEAST_SECONDS
    right = soon and (code, said["event"], bool(stacks)) == (SILENT, "error", True)
    return "" if right else f"{code} {said} {stacks}"


def test_a_rank_that_hangs_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOXKIT_STALL_SECONDS", "3")
    assert stand_still(1) == ""


def test_ranks_that_never_meet_end_in_one_line(home: Path) -> None:
    """One of two ranks dies while it imports: the other would wait for it for half an hour."""
    training = process.start(BASE.replace(run="never-met", num_ranks=2))
    session = training.process.pid
    assert wait_until(lambda: _has(session, "rank"))
    part(session, "rank").kill()
    assert training.process.wait(timeout=PATIENCE_SECONDS) != 0
    with pytest.raises(TrainingError, match=r"one of its processes was killed, .*/train\.log$"):
        training.check()
    assert members(session) == []


def test_two_runs_can_train_at_once_but_not_in_one_folder(home: Path) -> None:
    first, second = (
        process.start(BASE.replace(run=f"beside-{i}", max_steps=6, save_steps=3)) for i in (1, 2)
    )
    assert wait_until(lambda: lock.locked_by(first.folder))
    guard = [sys.executable, "-m", "neoxkit.launch.guard", "--run", str(first.folder), "--", "true"]
    assert subprocess.run(guard, check=False, stdin=subprocess.PIPE).returncode == 73
    with pytest.raises(process.UserError, match=r"beside-1 is training now \(process \d+\)"):
        lock.refuse_locked(first.folder)
    for training in (first, second):
        training.process.wait(timeout=PATIENCE_SECONDS)
        assert training.check()["step"] == 6


@pytest.mark.crash
@pytest.mark.parametrize("where", WHERES)
def test_every_stop(home: Path, where: str) -> None:
    wrong = {how: said for how in HOWS if (said := stop(how, where, LEFT_SECONDS))}
    print(wrong)
    reliability.add(reliability.SERIES[9], where, f"{len(HOWS) - len(wrong)} of {len(HOWS)}")
    assert wrong == {}


@pytest.mark.crash
def test_ten_ranks_that_hang(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOXKIT_STALL_SECONDS", "3")
    wrong = [said for number in range(10) if (said := stand_still(number))]
    reliability.record(reliability.SERIES[7], f"{10 - len(wrong)} of 10")
    assert wrong == []
