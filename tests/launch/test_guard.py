"""The guard: whatever happens to its owner, none of its processes is left."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE_SECONDS

from neoxkit import files
from neoxkit.errors import LOCKED, STOPPED
from neoxkit.launch import command
from neoxkit.launch.guard import GRACE_SECONDS, SILENT, end_orphans
from neoxkit.runs import endings, heartbeat, lease, lock
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import ARGUMENTS, LOG

pytestmark = pytest.mark.process

# A stand-in for the runner, its launcher and two ranks: each waits for its children, and all
# ignore TERM if told to.
TREE = """
import signal, subprocess, sys, time
depth, stubborn, folder = int(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if depth:
    children = [subprocess.Popen([sys.executable, __file__, str(depth - 1), *sys.argv[2:]])
                for _ in range(2 if depth == 1 else 1)]
    print("started", flush=True)
    [child.wait() for child in children]
else:
    open(f"{folder}/{__import__('os').getpid()}.rank", "w").close()
    time.sleep(600)
"""


def start(
    folder: Path, stubborn: bool = False, command: list[str] | None = None
) -> subprocess.Popen:
    (folder / "tree.py").write_text(TREE)
    tree = [sys.executable, str(folder / "tree.py"), "2", str(stubborn), str(folder)]
    guard = ["neoxkit.launch.guard", "--run", str(folder), "--"]
    process = subprocess.Popen(
        [sys.executable, "-m", *guard, *(command or tree)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    if command is None:
        wait_for(lambda: len(list(folder.glob("*.rank"))) == 2)
    return process


def wait_for(ready: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def left(folder: Path) -> list[int]:
    """Return the living processes with the folder's name in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.status() != "zombie":
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("how", ["end of file", "TERM", "INT", "HUP", "QUIT"])
def test_a_stop_leaves_nothing(tmp_path: Path, how: str, stubborn: bool) -> None:
    guard = start(tmp_path, stubborn)
    assert len(left(tmp_path)) == 5  # guard, runner, launcher, two ranks
    if how == "end of file":
        guard.stdin.close()
    else:
        guard.send_signal(getattr(signal, f"SIG{how}"))
    assert guard.wait(timeout=PATIENCE_SECONDS) == STOPPED
    assert left(tmp_path) == []


@pytest.mark.parametrize("how", ["TERM", "INT", "HUP"])
def test_a_training_with_steps_is_asked_to_stop_and_ended_at_the_second_signal(
    tmp_path: Path, how: str
) -> None:
    guard = start(tmp_path)
    heartbeat.Signs(tmp_path, 0).give()
    guard.send_signal(getattr(signal, f"SIG{how}"))
    wait_for(lambda: lock.asked_to_stop(tmp_path))
    lock.answer_stop(tmp_path)
    time.sleep(0.5)
    assert guard.poll() is None and len(left(tmp_path)) == 5
    assert not lock.asked_to_stop(tmp_path)  # it asks once
    guard.send_signal(getattr(signal, f"SIG{how}"))
    assert guard.wait(timeout=PATIENCE_SECONDS) == STOPPED and left(tmp_path) == []


def test_signals_in_the_last_moments_do_not_change_the_exit_code(tmp_path: Path) -> None:
    """Python restores the default handlers when it ends: QUIT would turn "stopped" into -3."""
    guard = start(tmp_path)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while guard.poll() is None and time.monotonic() < deadline:
        guard.send_signal(signal.SIGQUIT)
        time.sleep(0.01)
    assert guard.returncode == STOPPED and left(tmp_path) == []


def test_a_guard_in_a_shared_session_ends_no_other_process(tmp_path: Path) -> None:
    """A guard inside a shell's or a test's session must not clear that session."""
    owner = """if True:
        import os, subprocess, sys
        os.setsid()
        beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        guard = [sys.executable, "-m", "neoxkit.launch.guard", "--run", sys.argv[1], "--", "true"]
        code = subprocess.Popen(guard, stdin=subprocess.PIPE).wait()
        print(code, beside.poll())
        beside.kill()
    """
    done = subprocess.run([sys.executable, "-c", owner, str(tmp_path)],
                          capture_output=True, text=True, check=False,
                          timeout=PATIENCE_SECONDS)  # fmt: skip
    assert done.stdout == "0 None\n"


def test_a_guard_that_can_not_lead_a_session_says_so(tmp_path: Path) -> None:
    """A guard typed at a shell leads a process group, so it can't lead a session."""
    guard = [sys.executable, "-m", "neoxkit.launch.guard", "--run", str(tmp_path), "--", "true"]
    done = subprocess.run(guard, process_group=0, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False, timeout=PATIENCE_SECONDS)  # fmt: skip
    assert done.returncode == 2 and "use setsid" in done.stderr and "Traceback" not in done.stderr


def test_the_guard_does_not_load_numpy() -> None:
    """The guard must start fast: until it has, it can't handle signals."""
    code = "import sys, neoxkit.launch.guard; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_remaining_processes_are_killed_within_ten_seconds() -> None:
    """As the README says: one grace period after TERM, one after KILL."""
    assert 2 * GRACE_SECONDS <= 10


def test_heartbeats_of_an_earlier_start_are_ignored(tmp_path: Path) -> None:
    heartbeat.Signs(tmp_path, 0).give()
    guard = start(tmp_path)
    guard.send_signal(signal.SIGTERM)
    assert guard.wait(timeout=PATIENCE_SECONDS) == STOPPED and not lock.asked_to_stop(tmp_path)


def test_a_silent_rank_leaves_its_stacks_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop one of two ranks: the other would wait for it forever."""
    monkeypatch.setenv("NEOXKIT_STALL_SECONDS", "1")
    code = """
        import faulthandler, os, signal, sys, time
        from pathlib import Path
        from neoxkit.runs import heartbeat
        folder = Path(sys.argv[1])
        faulthandler.register(signal.SIGUSR1)
        if os.fork() == 0:
            heartbeat.Signs(folder, 1).stepped(0.1)
            os.kill(os.getpid(), signal.SIGSTOP)
        def waits_for_the_other():
            while True:
                signs.stepped(0.1)
                time.sleep(0.05)
        signs = heartbeat.Signs(folder, 0)
        waits_for_the_other()
    """
    guard = start(tmp_path, command=[sys.executable, "-c", textwrap.dedent(code), str(tmp_path)])
    assert guard.wait(timeout=PATIENCE_SECONDS) == SILENT
    assert left(tmp_path) == []
    (event,) = read_events(tmp_path)
    assert event["event"] == "error"
    found = re.match(r"rank 1 sent no heartbeat for (\d+) s;", event["what"])
    assert found and int(found[1]) < heartbeat.LEAST_SECONDS  # by the environment's limit
    assert "in waits_for_the_other" in (tmp_path / LOG).read_text()


# In a guard and its ranks: short limits, and a rank that begins a stage and then does something.
HASTE = """
import faulthandler, signal, sys, time
from pathlib import Path
from neoxkit.launch import guard
from neoxkit.runs import heartbeat
heartbeat.SILENT_SECONDS, guard.WORK_SECONDS = 1.0, 0.25
"""
IN_STAGE = f"""{HASTE}
faulthandler.register(signal.SIGUSR1)
def stand_still():
    time.sleep(600)
def work():
    end = time.monotonic() + 3
    while time.monotonic() < end:
        pass
if len(sys.argv) > 3:
    heartbeat.Signs(Path(sys.argv[1]), 0, int(sys.argv[3])).begin("loading the model")
globals()[sys.argv[2]]()
"""


def in_haste(folder: Path, *words: str) -> tuple[int, dict]:
    """Run a rank that does `words` under an impatient guard; return its exit code and event."""
    rank = [sys.executable, "-c", IN_STAGE, str(folder), *words]
    code = f"{HASTE}sys.exit(guard.main())"
    guard = subprocess.Popen(
        [sys.executable, "-c", code, "--run", str(folder), "--", *rank],
        stdin=subprocess.PIPE, start_new_session=True, env=os.environ | {heartbeat.LIMIT: "1"},
    )  # fmt: skip
    ended = guard.wait(timeout=PATIENCE_SECONDS)
    return ended, (read_events(folder) or [{}])[-1]


def test_a_rank_that_stands_still_in_a_stage_is_ended_with_its_stacks_and_the_stages_name(
    tmp_path: Path,
) -> None:
    code, event = in_haste(tmp_path, "stand_still", "1")
    assert code == SILENT and left(tmp_path) == []
    assert re.fullmatch(
        r"rank 0 sent no heartbeat for \d+ s while loading the model "
        r"\(NEOXKIT_STALL_SECONDS allows more\); the stacks of all ranks are in train\.log",
        event["what"],
    )
    assert "in stand_still" in (tmp_path / LOG).read_text()


@pytest.mark.parametrize("words", [(), ("2",)], ids=["none", "one of two"])
def test_a_rank_that_never_comes_is_ended_with_the_stacks_of_all(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, event = in_haste(tmp_path, "stand_still", *words)
    assert code == SILENT and left(tmp_path) == []
    rank = "1" if words else "0"
    assert event["what"].startswith(f"rank {rank} sent no heartbeat for ")
    assert " while importing libraries (" in event["what"]
    assert "in stand_still" in (tmp_path / LOG).read_text()


def test_a_rank_that_works_in_a_stage_may_take_longer(tmp_path: Path) -> None:
    assert in_haste(tmp_path, "work", "1") == (0, {})


def test_without_its_group_kill_these_tests_are_red(tmp_path: Path) -> None:
    (tmp_path / "tree.py").write_text(TREE)
    code = (
        "from neoxkit.launch import guard\nguard.clear_session = lambda *_, **__: 0\nguard.main()"
    )
    tree = [sys.executable, str(tmp_path / "tree.py"), "2", "False", str(tmp_path)]
    guard = subprocess.Popen(
        [sys.executable, "-c", code, "--run", str(tmp_path), "--", *tree],
        stdin=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(list(tmp_path.glob("*.rank"))) == 2)
    guard.stdin.close()
    guard.wait(timeout=PATIENCE_SECONDS)
    assert len(left(tmp_path)) == 4
    os.killpg(guard.pid, signal.SIGKILL)
    wait_for(lambda: left(tmp_path) == [])


def test_a_killed_owner_leaves_no_process(tmp_path: Path) -> None:
    """Kill the owner, a separate process, without a chance to clean up."""
    owner_code = f"""
        import subprocess, sys, time
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
        from pathlib import Path
        from test_guard import start
        start(Path({str(tmp_path)!r}))
        time.sleep(600)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(owner_code)])
    wait_for(lambda: len(list(tmp_path.glob("*.rank"))) == 2)
    owner.kill()
    owner.wait()
    wait_for(lambda: left(tmp_path) == [])


@pytest.mark.parametrize("victim", ["runner", "launcher"])
def test_a_killed_member_does_not_leave_its_children(tmp_path: Path, victim: str) -> None:
    guard = start(tmp_path)
    runner = psutil.Process(guard.pid).children()[0]
    target = runner if victim == "runner" else runner.children()[0]
    target.kill()
    code = guard.wait(timeout=PATIENCE_SECONDS)
    assert left(tmp_path) == []
    assert code == (128 + signal.SIGKILL if victim == "runner" else 0)
    said = "one of its processes was killed (KILL)"
    if victim == "launcher":
        said = "DeepSpeed's launcher was killed"
    assert [(e["event"], e["what"]) for e in read_events(tmp_path)] == [("killed", said)]


# A training that says how it ends, and then ends in this way.
SAYS = """
import os, sys
from pathlib import Path
from neoxkit.files import write_json
from neoxkit.runs.events import append_event
folder, event, fields, end = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
if event:
    append_event(folder, event, **fields)
if event == "done":
    write_json(folder / "FINISHED.json", {})
os.kill(os.getpid(), 9) if end == "KILL" else sys.exit(int(end))
"""


def says(folder: Path, event: str, end: str, **fields: str) -> list[str]:
    return [sys.executable, "-c", SAYS, str(folder), event, repr(fields), end]


@pytest.mark.parametrize(
    ("event", "kind"),
    [("error", "UserError"), ("error", "NotFinite"), ("stop", ""), ("done", "")],
)
def test_what_the_ranks_have_said_of_their_end_counts(
    tmp_path: Path, event: str, kind: str
) -> None:
    """A rank that has reported a mistake may be killed by its launcher."""
    fields = {"kind": kind, "where": "", "what": "", "remedy": ""} if kind else {}
    guard = start(tmp_path, command=says(tmp_path, event, "KILL", **fields))
    assert guard.wait(timeout=PATIENCE_SECONDS) == 128 + signal.SIGKILL
    assert [e["event"] for e in read_events(tmp_path)] == [event]


def test_a_rank_that_fails_because_another_was_killed_is_not_the_cause(tmp_path: Path) -> None:
    lost = {"kind": "failure", "where": "", "what": "connection lost", "remedy": ""}
    start(tmp_path, command=says(tmp_path, "error", "KILL", **lost)).wait(timeout=PATIENCE_SECONDS)
    assert [e["event"] for e in read_events(tmp_path)] == ["error", "killed"]


def killed_guard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Kill a guard whose training goes on; return its process id."""
    monkeypatch.setenv(lock.GUARDED, str(folder))
    guard = start(folder)
    guard.kill()
    guard.wait()
    assert len(left(folder)) == 4
    return guard.pid


def test_a_guard_first_ends_what_a_killed_one_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two trainings would write into one folder."""
    killed_guard(tmp_path, monkeypatch)
    old = [int(file.stem) for file in tmp_path.glob("*.rank")]
    code = f"""
        import psutil, sys
        here = [p for p in map(psutil.Process, filter(psutil.pid_exists, {old}))]
        sys.exit(any(p.status() != "zombie" for p in here))
    """
    second = start(tmp_path, command=[sys.executable, "-c", textwrap.dedent(code)])
    assert second.wait(timeout=PATIENCE_SECONDS) == 0
    assert left(tmp_path) == []


def test_nothing_is_ended_that_trains_another_run_or_has_its_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = killed_guard(tmp_path, monkeypatch)
    end_orphans(tmp_path / "another", pid)
    end_orphans(tmp_path, 0)
    assert len(left(tmp_path)) == 4
    end_orphans(tmp_path, pid)
    assert left(tmp_path) == []
    for file in tmp_path.glob("*.rank"):
        file.unlink()
    guard = start(tmp_path)
    end_orphans(tmp_path, guard.pid)
    assert len(left(tmp_path)) == 5
    guard.send_signal(signal.SIGQUIT)
    guard.wait(timeout=PATIENCE_SECONDS)


@pytest.fixture
def notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run; its end is to be written into the file `told`."""
    for name in ("notebooks", "ds_configs", "runs/one"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    tell = f'echo "$NEOXKIT_END_OF $NEOXKIT_STATE" >> {tmp_path}/told'
    monkeypatch.setenv(endings.VARIABLE, tell)
    return tmp_path / "runs" / "one"


@pytest.mark.parametrize(
    ("event", "end", "state"),
    [("done", "0", "finished"), ("stop", "75", "stopped"), ("error", "2", "failed"),
     ("", "KILL", "killed")],
)  # fmt: skip
def test_the_guard_tells_the_end_of_a_notebooks_training(
    notebook_run: Path, event: str, end: str, state: str
) -> None:
    fields = {"kind": "UserError", "where": "", "what": "", "remedy": ""} if end == "2" else {}
    guard = start(notebook_run, command=says(notebook_run, event, end, **fields))
    guard.wait(timeout=PATIENCE_SECONDS)
    told = notebook_run.parents[1] / "told"
    wait_for(lambda: told.exists() and not [*notebook_run.parent.glob(".on_end*")])
    assert endings.tell_found() == [] and told.read_text() == f"run {state}\n"


def test_the_end_of_a_killed_guards_training_is_found(
    notebook_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = killed_guard(notebook_run, monkeypatch)
    end_orphans(notebook_run, pid)
    assert endings.tell_found() == endings.tell_found() == []
    assert (notebook_run.parents[1] / "told").read_text() == "run killed\n"


def test_the_end_of_a_trial_is_not_told(notebook_run: Path) -> None:
    files.write_json(notebook_run / ARGUMENTS, {"trial": True})
    start(notebook_run, command=says(notebook_run, "done", "0")).wait(timeout=PATIENCE_SECONDS)
    assert endings.tell_found() == [] and not (notebook_run.parents[1] / "told").exists()


@pytest.mark.parametrize("code", [0, 2, 7])
def test_the_guard_passes_on_the_commands_exit_code_and_output(tmp_path: Path, code: int) -> None:
    guard = start(
        tmp_path, command=[sys.executable, "-c", f"print('said'); raise SystemExit({code})"]
    )
    assert guard.wait(timeout=PATIENCE_SECONDS) == code
    assert (tmp_path / LOG).read_text() == "said\n"


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    assert lock.locked_by(tmp_path) is None
    guard = start(tmp_path)
    assert lock.locked_by(tmp_path) == guard.pid
    second = start(tmp_path, command=[sys.executable, "-c", "print('must not run')"])
    assert second.wait(timeout=PATIENCE_SECONDS) == LOCKED
    assert "must not run" not in (tmp_path / LOG).read_text()
    os.killpg(guard.pid, signal.SIGKILL)
    guard.wait()
    assert lock.locked_by(tmp_path) is None


def test_a_file_system_without_locks_is_reported_by_the_guard(tmp_path: Path) -> None:
    code = """if True:
        import errno, sys
        from neoxkit.launch import guard
        def flock(*_):
            raise OSError(errno.ENOSYS, "Function not implemented")
        guard.lock.fcntl.flock = flock
        sys.exit(guard.main())
    """
    line = [sys.executable, "-c", code, "--run", str(tmp_path), "--", "true"]
    assert subprocess.run(line, start_new_session=True, check=False).returncode == 2
    (event,) = read_events(tmp_path)
    assert (event["event"], event["where"]) == ("error", "run")
    assert "has no locks (Function not implemented)" in event["what"]


def test_a_run_under_a_lease_is_not_started_beside_it(tmp_path: Path) -> None:
    held = lease.Lease(tmp_path, lease.Token.of("slurm 7 0"))
    held.take()
    guard = start(tmp_path, command=[sys.executable, "-c", "print('must not run')"])
    assert guard.wait(timeout=PATIENCE_SECONDS) == LOCKED
    assert not (tmp_path / LOG).exists()
    held.release()


def test_every_run_has_its_own_port() -> None:
    ports = {command.start_command(2)[0][3] for _ in range(5)}
    assert len(ports) > 1 and all(port.startswith("--master_port=") for port in ports)
    assert len({command.start_command(1)[1]["MASTER_PORT"] for _ in range(5)}) > 1
