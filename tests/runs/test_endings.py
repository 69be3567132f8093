"""endings.py: a command of the person's is told every end once, by whoever is left to tell it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nights import Told

from neoxkit import files
from neoxkit.errors import KILLED, STOPPED, UserError
from neoxkit.runs import endings, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import FINISHED

COMMAND = Told.command


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, str]]]:
    """Make a home; return what gives the environment of each call so far, by kind and name."""
    for name in ("notebooks", "ds_configs", "runs/one", "calls"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path)

    def read() -> list[dict[str, str]]:
        found = Told(tmp_path / "calls").environments()
        return sorted(found, key=lambda e: (e["NEOXKIT_END_OF"], e["NEOXKIT_NAME"]))

    return read


def owed() -> list[Path]:
    return [*Path("runs").glob(".on_end*")]


def trained(name: str, loss: float, is_finished: bool = True) -> None:
    folder = Path("runs") / name
    folder.mkdir(exist_ok=True)
    append_event(folder, "start", step=0, resumed_step=0, planned_steps=8, num_ranks=1)
    append_event(folder, "train", step=8, loss=loss + 1)
    append_event(folder, "eval", step=8, loss=loss)
    if is_finished:
        files.write_json(folder / FINISHED, {})


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "finished"), (1, "failed"), (2, "failed"), (STOPPED, "stopped"), (KILLED, "killed")],
)
def test_an_end_is_told_once_with_what_is_known_of_it(
    calls: Callable, code: int, state: str
) -> None:
    trained("one", 2.5, is_finished=not code)
    said: list[str] = []
    with endings.told("run", "one", COMMAND, said.append) as ending:
        assert len(owed()) == 1 and calls() == []
        assert owed()[0].stat().st_mode & 0o777 == 0o600
        ending.reason = "so\nit is"
        assert ending.by(code) == code
    assert endings.tell_found() == said == owed() == []
    (env,) = calls()
    assert {k: v for k, v in env.items() if k.startswith("NEOXKIT_")} == {
        "NEOXKIT_HOME": str(Path.cwd()),
        "NEOXKIT_END_OF": "run",
        "NEOXKIT_NAME": "one",
        "NEOXKIT_STATE": state,
        "NEOXKIT_REASON": "so it is",
        "NEOXKIT_TRAIN_LOSS": "3.5000",
        "NEOXKIT_EVAL_LOSS": "2.5000",
        "NEOXKIT_BEST_RUN": "",
        "NEOXKIT_FOLDER": str(Path("runs/one").resolve()),
        "NEOXKIT_SAYS": f"one: {state}; step 8 of 8, train loss 3.5000, eval loss 2.5000; so it is",
    }


def test_a_run_that_stopped_early_says_so(calls: Callable) -> None:
    trained("one", 2.5)
    append_event(Path("runs/one"), "done", step=8, planned_steps=40, stopped_early=3)
    with endings.told("run", "one", COMMAND, pytest.fail) as ending:
        ending.by(0)
    (env,) = calls()
    said = "stopped early at step 8 of 40, no improvement in 3 evaluations"
    assert env["NEOXKIT_REASON"] == said and env["NEOXKIT_SAYS"].endswith(f"; {said}")


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        (UserError("seed", "is odd", "choose 2"), "failed", "seed: is odd -- choose 2"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(143), "stopped", ""),
        (KeyError("x"), "failed", "KeyError: 'x'"),
    ],
)
def test_an_error_is_an_end_as_well(
    calls: Callable, fault: BaseException, state: str, reason: str
) -> None:
    with pytest.raises(type(fault)), endings.told("run", "new", COMMAND, pytest.fail):
        raise fault
    (env,) = calls()
    assert (env["NEOXKIT_STATE"], env["NEOXKIT_REASON"]) == (state, reason)
    assert owed() == [] and not Path("runs/new").exists()


def test_a_sweep_is_told_with_its_best_run(calls: Callable) -> None:
    for name, loss in {"s.1": 2.5, "s.2": 2.25, "s.3": 1.0}.items():
        trained(name, loss, is_finished=name != "s.3")
    runs = ["s.1", "s.2", "s.3", "s.4"]
    with endings.told("sweep", "s", COMMAND, pytest.fail, runs) as ending:
        ending.by(1)
    (env,) = calls()
    assert (env["NEOXKIT_BEST_RUN"], env["NEOXKIT_EVAL_LOSS"]) == ("s.2", "2.2500")
    assert env["NEOXKIT_SAYS"] == "s: failed; 2 of 4 finished, 1 killed"


def test_no_text_becomes_part_of_the_command(calls: Callable) -> None:
    """Errors may quote the data."""
    reason = "'; touch hacked; $(touch hacked) `touch hacked` \" \0"
    with endings.told("run", "one", f': "$NEOXKIT_SAYS"; {COMMAND}', pytest.fail) as ending:
        ending.reason = reason
    assert calls()[0]["NEOXKIT_REASON"] == reason.replace("\0", "").strip()
    assert not Path("hacked").exists()


def test_nothing_is_called_or_written_unless_asked_for(calls: Callable) -> None:
    with endings.told("run", "one", "", pytest.fail) as ending:
        assert ending.by(3) == 3
    assert calls() == owed() == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo a; echo 'no network' >&2; exit 7", "ended with code 7: no network"),
        ("sleep 60 & echo late; wait", "took longer than 0 s and was ended"),
    ],
)
def test_a_command_that_fails_is_one_line(
    calls: Callable, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    if "late" in command:
        monkeypatch.setattr(endings, "PATIENCE_SECONDS", 0.3)
    lines: list[str] = []
    with endings.told("run", "one", command, lines.append) as ending:
        ending.by(0)
    assert len(lines) == 1 and lines[0].startswith(f"--on-end for one {said}")
    assert endings.tell_found() == owed() == []  # it is not tried again


def test_a_background_job_of_the_command_is_not_waited_for(calls: Callable) -> None:
    begun = time.monotonic()
    with endings.told("run", "one", f"{COMMAND}; sleep 20 &", pytest.fail):
        pass
    assert len(calls()) == 1 and time.monotonic() - begun < 20


OWNER = """
import sys, time
from neoxkit.runs import endings
kind, name, command = sys.argv[1:4]
with endings.told(kind, name, command, print, sys.argv[4:]) as ending:
    print("ready", flush=True)
    time.sleep(600)
"""


def killed_owner(kind: str, name: str, *runs: str) -> None:
    words = [sys.executable, "-c", OWNER, kind, name, COMMAND, *runs]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdout.readline() == "ready\n"
    assert endings.tell_found() == [] and len(owed()) == 1  # its process is there
    owner.send_signal(signal.SIGKILL)
    owner.wait()


def test_the_end_of_a_killed_process_is_told_by_whoever_finds_it(calls: Callable) -> None:
    trained("one", 2.5)
    killed_owner("sweep", "s", "one")
    assert endings.tell_found() == endings.tell_found() == owed() == []
    (env,) = calls()
    assert (env["NEOXKIT_STATE"], env["NEOXKIT_REASON"]) == ("killed", "its process was killed")
    killed_owner("run", "one")
    endings.tell_found()
    assert calls()[0]["NEOXKIT_REASON"] == "its process was killed; its training is finished"


def test_of_several_that_find_it_one_tells_it(calls: Callable) -> None:
    killed_owner("run", "one")
    finder = [sys.executable, "-m", "neoxkit.runs.endings"]
    finders = [subprocess.Popen(finder) for _ in range(6)]
    assert [finder.wait() for finder in finders] == [0] * 6
    assert len(calls()) == 1 and owed() == []


def test_a_run_that_still_trains_has_not_ended(calls: Callable) -> None:
    """Its command was killed, and its guard has not ended the ranks yet."""
    killed_owner("run", "one")
    held = lock.hold(Path("runs/one"))
    assert held and endings.tell_found() == calls() == []
    held.close()
    assert endings.tell_found() == [] and len(calls()) == 1


def test_what_can_not_be_read_is_left(calls: Callable) -> None:
    Path("runs/.on_end-x.json").write_text("{")
    assert endings.tell_found() == calls() == [] and len(owed()) == 1


def test_a_disk_without_space_does_not_keep_it_from_being_told(
    calls: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(endings, "_written", full)
    monkeypatch.setattr(endings.tempfile, "TemporaryFile", full)
    with endings.told("run", "one", COMMAND, pytest.fail) as ending:
        ending.by(0)
    assert calls()[0]["NEOXKIT_STATE"] == "finished"


def test_the_command_does_not_hear_of_itself(
    calls: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that calls neoxkit would be called for that in turn."""
    monkeypatch.setenv(endings.VARIABLE, COMMAND)
    with endings.told("run", "one", COMMAND, pytest.fail):
        pass
    assert endings.VARIABLE not in calls()[0] and os.environ[endings.VARIABLE]
