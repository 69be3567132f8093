"""Training.check: a training that was killed is told from one that failed or was stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import BASE

from neoxkit import files, paths
from neoxkit.errors import STOPPED, Killed, NotFinite, Stopped, TrainingError, UserError
from neoxkit.launch import command, guard, process
from neoxkit.launch.guard import SILENT
from neoxkit.runs import lock
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import ARGUMENTS

FAILURE = {"kind": "failure", "where": "", "what": "KeyError: 'x'", "remedy": ""}
SILENCE = {"kind": "silent", "where": "", "what": "rank 1 sent no heartbeat", "remedy": ""}
NOT_FINITE = {"kind": "NotFinite", "where": "learning_rate", "what": "is", "remedy": "lower it"}


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    made = paths.run(f"ended-{tmp_path.name}")
    made.mkdir(parents=True)
    files.write_json(made / ARGUMENTS, command.trainer_arguments(BASE))
    return made


def ended(code: int) -> subprocess.Popen:
    """Return a guard that has ended with this code, or by this signal."""
    line = f"import os, sys; os.kill(os.getpid(), {-code}) if {code} < 0 else sys.exit({code})"
    guard = subprocess.Popen([sys.executable, "-c", line])
    guard.wait()
    return guard


@pytest.mark.parametrize(
    ("code", "events", "raised", "said"),
    [
        (137, [("killed", {"what": "w"})], Killed, "killed, usually because memory ran out"),
        (247, [("error", FAILURE), ("killed", {"what": "w"})], Killed, "usually because memory"),
        (139, [("killed", {"what": "killed (SEGV)"})], Killed, r"failed \(killed \(SEGV\)\)"),
        (0, [("killed", {"what": "its launcher"})], Killed, "its launcher"),
        (137, [("done", {})], Killed, "usually because memory"),  # after its last step
        (SILENT, [("error", SILENCE)], Killed, "rank 1 sent no heartbeat"),
        (1, [("error", FAILURE)], TrainingError, "KeyError: 'x'"),
        (1, [], TrainingError, "exit code 1, no result was written"),
        (0, [], TrainingError, "exit code 0, no result was written"),
        (247, [("error", NOT_FINITE)], NotFinite, "learning_rate"),
        (2, [("error", NOT_FINITE)], NotFinite, "learning_rate"),
        (STOPPED, [], Stopped, "before the first checkpoint"),
        (-signal.SIGQUIT, [], Stopped, "before the first checkpoint"),
        (0, [("stop", {})], Stopped, "before the first checkpoint"),
    ],
)
def test_how_it_ended(
    folder: Path, code: int, events: list, raised: type[Exception], said: str
) -> None:
    for event, fields in events:
        append_event(folder, event, **fields)
    with pytest.raises(raised, match=said) as fault:
        process.Training(folder, ended(code), 0).check()
    assert type(fault.value) is raised
    assert len(read_events(folder)) == len(events)  # nothing was added


def test_the_ranks_of_a_guard_that_was_killed_are_ended(folder: Path) -> None:
    """Its owner sees it first, and may be the only one who does."""
    line = (
        "import subprocess, time; r = subprocess.Popen(['sleep', '600']); "
        "print(r.pid, flush=True); time.sleep(600)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", line], stdout=subprocess.PIPE, start_new_session=True,
        env=os.environ | {lock.GUARDED: str(folder)},
    )  # fmt: skip
    assert killed.stdout
    rank = psutil.Process(int(killed.stdout.readline()))
    killed.kill()
    killed.wait()
    assert rank.status() != "zombie"
    assert process.Training(folder, killed, 0).poll() == -signal.SIGKILL
    psutil.wait_procs([rank], timeout=60)  # it was killed, and may take a moment to be gone
    assert not rank.is_running() or rank.status() == "zombie"


def test_a_process_without_an_environment_yet_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel shows none while it replaces a process's program."""
    seen = iter([{}, {}, {lock.GUARDED: "runs/a"}])
    monkeypatch.setattr(psutil.Process, "environ", lambda self: next(seen))
    assert guard._trains(os.getpid(), Path("runs/a"))


@pytest.mark.parametrize("said", ["", "error", "stop", "done"])
def test_a_guard_that_was_killed_is_reported_in_its_place_once(folder: Path, said: str) -> None:
    if said:
        append_event(folder, said, **(NOT_FINITE if said == "error" else {}))
    training = process.Training(folder, ended(-signal.SIGKILL), 0)
    assert training.poll() == training.poll() == -signal.SIGKILL
    found = [(e["event"], e.get("what")) for e in read_events(folder)]
    killed = [("killed", "its guard was killed (KILL)")]
    assert found == ([(said, NOT_FINITE["what"] if said == "error" else None)] if said else killed)
    with pytest.raises((Killed, UserError)):
        training.check()
