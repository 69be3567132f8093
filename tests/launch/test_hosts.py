"""Trainings on the hosts of a hostfile: how they are named, reached, watched and ended.

A shell script stands for ssh, and runs here what it is given; tests/cluster does the same between
hosts of their own.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import BASE, losses

from neoxkit import files, paths
from neoxkit.errors import STOPPED, UserError
from neoxkit.launch import (
    checks,
    cluster_file,
    guard,
    host_file,
    hosts,
    inspection,
    meeting,
    node,
    nodes,
    plan,
    process,
    ssh,
)
from neoxkit.runs import heartbeat, lease
from neoxkit.runs.events import read_events

PATIENCE_SECONDS = 120.0  # only what hangs takes this long
SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
case "$1" in
    far*) echo "ssh: connect to host $1: No route to host" >&2; exit 255;;
esac
shift
SSH_CONNECTION="127.0.0.1 1 127.0.0.1 22" exec sh -c "$*"
"""

_names = (f"hosts-{i}" for i in itertools.count())


@pytest.fixture
def by_ssh(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in for ssh on PATH; return a hostfile of two hosts without GPUs."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return hostfile(tmp_path, "n1 slots=0\nn2 slots=0\n")


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_text(text)
    return path


def on(path: Path, **changes: object) -> nodes.Place:
    return nodes.of(BASE.replace(launcher="hostfile", hostfile=str(path), **changes))


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# The hostfile


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# ours\nn1 slots=8\n\n  me@n2.lab slots=4  # half of it\n")
    assert host_file.hosts_in(str(path)) == [
        host_file.Host("n1", 8),
        host_file.Host("me@n2.lab", 4),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n1 slots=8\nn2\n", "hostfile:2: can't read 'n2' -- write a line for each host"),
        ("-oProxyCommand=x slots=8\n", "hostfile:1: can't read '-oProxyCommand=x slots=8'"),
        ("n1 slots=8\nn1 slots=8\n", "names n1 twice"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_hostfile_with_a_fault_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as mistake:
        host_file.hosts_in(str(hostfile(tmp_path, text)))
    assert said in str(mistake.value)


def test_slots_are_gpus_and_every_host_has_as_many_ranks(home: Path, tmp_path: Path) -> None:
    place = on(hostfile(tmp_path, "n1 slots=8\nn2 slots=8\n"))
    assert (place.num_ranks, place.num_nodes, place.on_gpu, place.hosts) == (
        16, 2, True, ("n1", "n2"),
    )  # fmt: skip
    some = on(hostfile(tmp_path, "n1 slots=8\nn2 slots=4\n"), num_ranks=4)
    assert (some.num_ranks, some.ranks_a_node) == (8, 4)
    cpus = on(hostfile(tmp_path, "n1 slots=0\nn2 slots=0\n"), num_ranks=3)
    assert (cpus.num_ranks, cpus.on_gpu, cpus.precision) == (6, False, "fp32")


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("n1 slots=8\nn2 slots=4\n", {}, "num_ranks: 8 a host, but n2 has slots=4"),
        ("n1 slots=8\nn2 slots=0\n", {"num_ranks": 1}, "num_ranks: 1 a host, but n2 has slots=0"),
        ("n1 slots=0\n", {}, "hostfile: names no GPUs"),
        ("n1 slots=8\n", {"num_nodes": 2}, "num_nodes: is for launcher slurm"),
        ("n1 slots=8\n", {"launcher": "local"}, "hostfile: is for launcher hostfile"),
        ("n1 slots=8\n", {"hostfile": "nowhere"}, "hostfile: 'nowhere' does not exist"),
    ],
)  # fmt: skip
def test_what_no_hosts_can_be_is_refused(
    home: Path, tmp_path: Path, text: str, changes: dict, said: str
) -> None:
    with pytest.raises(UserError) as mistake:
        given = {"launcher": "hostfile", "hostfile": str(hostfile(tmp_path, text)), **changes}
        nodes.of(BASE.replace(**given))
    assert str(mistake.value).startswith(said)


def test_hosts_may_have_more_ranks_than_this_machine_has_cores(home: Path, tmp_path: Path) -> None:
    given = {"launcher": "hostfile", "hostfile": str(hostfile(tmp_path, "n1 slots=0\nn2 slots=0"))}
    assert checks.check(BASE.replace(run=next(_names), num_ranks=10, **given)).num_ranks == 20


# Reaching a host


def test_a_program_runs_in_the_root_folder_after_the_sites_set_up_lines(
    by_ssh: Path, home: Path, request: pytest.FixtureRequest
) -> None:
    site = home / cluster_file.FILE
    request.addfinalizer(site.unlink)
    site.write_text("""setup: ["export TOLD='two words'"]\n""")
    words = ssh.command("n1", ["timeit", "-n1", "-r1", "-s", "import os", NOTE])
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines()[0] == f"{home.resolve()} two words"


NOTE = "print(os.getcwd(), os.environ['TOLD'])"


def test_every_host_is_asked_before_anything_starts(by_ssh: Path) -> None:
    given = BASE.replace(launcher="hostfile", hostfile=str(by_ssh), num_ranks=1)
    found = inspection.inspect(given)
    assert [(host, remedy) for host, _, remedy in found] == [("n1", ""), ("n2", "")]
    hostfile(by_ssh.parent, "n1 slots=0\nfar slots=0\n")
    run = next(_names)
    with pytest.raises(UserError) as mistake:
        process.start(given.replace(run=run))
    assert str(mistake.value) == (
        "hostfile: far: ssh can't reach it: ssh: connect to host far: No route to host"
        " -- ssh far must work without a password"
    )
    assert not (paths.run(run) / "arguments.json").exists()


def test_a_host_without_the_gpus_of_its_slots_is_refused(by_ssh: Path) -> None:
    hostfile(by_ssh.parent, "n1 slots=4\n")
    with pytest.raises(UserError, match=r"n1: shows 0 GPUs, 4 are needed -- correct its slots"):
        inspection.refuse_faults(BASE.replace(launcher="hostfile", hostfile=str(by_ssh)))


def test_other_hosts_get_what_concerns_the_training_of_the_environment() -> None:
    given = {"HF_TOKEN": "t", "NCCL_DEBUG": "INFO", "HOME": "/root", "NEOXKIT_GUARDED": "1"}
    given |= {"NEOXKIT_ON_END": "curl secret"}
    assert hosts.carried({**given, "CUDA_VISIBLE_DEVICES": "3"}) == {
        "HF_TOKEN": "t", "NCCL_DEBUG": "INFO",
    }  # fmt: skip


# What the parts tell each other


@pytest.fixture
def met(tmp_path: Path) -> meeting.Meeting:
    return meeting.begin(tmp_path)


def test_one_only_may_start_a_nodes_guard(met: meeting.Meeting) -> None:
    assert [met.claim(1), met.claim(1), met.claim(0)] == [True, False, True]


def test_a_start_is_over_once_it_is_ended_or_a_later_one_has_begun(
    met: meeting.Meeting, tmp_path: Path
) -> None:
    assert not met.is_over()
    later = meeting.begin(tmp_path)
    assert met.is_over() and not later.is_over()
    meeting.end_all(tmp_path)
    assert later.is_over()


def test_another_process_is_silent_from_its_last_news_on(
    met: meeting.Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    owner, seen = meeting.Renewed(met, meeting.OWNER), meeting.Watched(met, meeting.OWNER)
    for second, silence in ((0, 0), (4, 4), (5, 0), (6, 1)):
        clock[0] = 100.0 + second
        owner.keep()
        assert seen.silence() == silence
    clock[0] = 190.0
    assert seen.silence() == 85


def test_a_lease_is_cleared_by_the_start_whose_it_is_only(tmp_path: Path) -> None:
    lease.Lease(tmp_path, lease.Token.of("hostfile a1 0"))._put(None)
    lease.clear(tmp_path, "hostfile b2 0")
    assert (tmp_path / lease.FILE).exists()
    lease.clear(tmp_path, "hostfile a1 0")
    assert not (tmp_path / lease.FILE).exists()


# A host's guard

# The guard's program, quicker, with a command of ours in place of DeepSpeed's launcher.
GUARD = """
import sys
from neoxkit.launch import node
node.OWNER_SECONDS, node.SAVE_SECONDS, node.LOOK_SECONDS = {owner_seconds}, 3.0, 0.05
node.launcher_command = lambda *_: [sys.executable, "-c", {program!r}]
sys.exit(node.main(["--guard", *sys.argv[1:]]))
"""
SLEEPS = "import time; time.sleep(600)"
STOPS = """
import pathlib, sys, time
while not (pathlib.Path(sys.argv[1]).parent / "STOP").exists():
    time.sleep(0.05)
sys.exit(75)
"""


STARTS = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STOPS!r}, sys.argv[1]])
time.sleep(600)
"""


class Guarded:
    """A run with a guard for node 0."""

    def __init__(self, run: Path) -> None:
        self.run = run
        facts = {"launcher": "hostfile", "hosts": ["n1"], "ranks": 1, "on_gpu": False}
        files.write_json(run / plan.FILE, facts | {"versions": {}})
        self.met = meeting.begin(run)

    def start(self, program: str, owner_seconds: float = 1.0) -> subprocess.Popen:
        text = GUARD.format(program=program, owner_seconds=owner_seconds)
        words = [sys.executable, "-c", text]
        return subprocess.Popen([*words, self.run, self.met.start, "0"], start_new_session=True)

    def takes_steps(self) -> None:
        heartbeat.Signs(self.run, 0).stepped(1.0)

    def children(self, of: subprocess.Popen) -> list[psutil.Process]:
        return psutil.Process(of.pid).children()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    yield Guarded(tmp_path)


@pytest.mark.process
def test_a_guard_tells_how_its_ranks_have_ended(guarded: Guarded) -> None:
    started = guarded.start("raise SystemExit(7)")
    assert started.wait() == 7
    assert guarded.met.told("0")["code"] == 7


@pytest.mark.process
def test_without_an_owner_ranks_that_take_steps_save_and_others_are_ended(
    guarded: Guarded, tmp_path: Path
) -> None:
    started = guarded.start(SLEEPS)
    assert started.wait() == STOPPED
    assert not (tmp_path / "STOP").exists()
    again = Guarded(tmp_path)
    again.takes_steps()
    assert again.start(STOPS).wait() == STOPPED
    assert (tmp_path / "STOP").exists()


@pytest.mark.process
def test_ranks_save_at_once_when_their_owner_is_said_to_be_gone(guarded: Guarded) -> None:
    guarded.takes_steps()
    started = guarded.start(STOPS, owner_seconds=600.0)
    until(lambda: guarded.children(started))
    meeting.leave_all(guarded.run)
    assert started.wait() == STOPPED
    assert (guarded.run / "STOP").exists()


@pytest.mark.process
def test_a_save_that_does_not_end_is_ended(guarded: Guarded) -> None:
    guarded.takes_steps()
    assert guarded.start(SLEEPS).wait() == STOPPED


@pytest.mark.process
def test_the_ranks_of_a_launcher_that_is_killed_save(guarded: Guarded) -> None:
    guarded.takes_steps()
    started = guarded.start(STARTS, owner_seconds=600.0)
    until(lambda: [c for c in guarded.children(started) if c.children()])
    (launcher,) = guarded.children(started)
    launcher.kill()
    assert started.wait() == 128 + 9
    assert (guarded.run / "STOP").exists() and guarded.met.told("0")["code"] == 128 + 9


@pytest.mark.process
def test_a_guard_ends_its_ranks_at_once_when_its_start_is_over(guarded: Guarded) -> None:
    guarded.takes_steps()
    owner = meeting.Renewed(guarded.met, meeting.OWNER)
    started = guarded.start(SLEEPS)
    until(lambda: owner.keep() or guarded.children(started))
    (child,) = guarded.children(started)
    guarded.met.end()
    assert started.wait() == STOPPED and not child.is_running()
    assert not (guarded.run / "STOP").exists()


@pytest.mark.process
def test_the_launcher_is_asked_to_end_when_its_guard_is_killed(guarded: Guarded) -> None:
    started = guarded.start(SLEEPS)
    until(lambda: guarded.children(started))
    (child,) = guarded.children(started)
    started.kill()
    started.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_guard_ends_the_ranks_on_other_hosts_with_its_own(
    met: meeting.Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "clear_session", lambda grace_seconds: None)
    guard._end_at_once(tmp_path)
    assert met.is_over()


# The whole


@pytest.mark.process
def test_two_hosts_compute_what_two_ranks_do(by_ssh: Path) -> None:
    together = BASE.replace(run=next(_names), num_ranks=2)
    apart = BASE.replace(run=next(_names), num_ranks=1, launcher="hostfile", hostfile=str(by_ssh))
    for settings in (together, apart):
        training = process.start(settings)
        training.process.wait()
        training.check()
    one, two = (paths.run(settings.run) for settings in (together, apart))
    assert losses(one) == losses(two)
    weights = "model/model.safetensors"
    assert files.sha256(one / weights) == files.sha256(two / weights)
    assert not (two / lease.FILE).exists()
    assert node.log_of(two, 1).exists()


@pytest.mark.process
def test_a_host_that_is_lost_ends_the_others(
    by_ssh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start could reach every host, and then not."""
    monkeypatch.setattr(inspection, "refuse_faults", lambda settings: None)
    hostfile(tmp_path, "n1 slots=0\nfar slots=0\n")
    given = {"launcher": "hostfile", "hostfile": str(by_ssh), "num_ranks": 1}
    training = process.start(BASE.replace(run=next(_names), **given))
    assert training.process.wait() == 1
    last = [e["what"] for e in read_events(training.folder) if e["event"] == "error"]
    assert "far is lost: ssh can't reach it: ssh: connect to host far: No route to host" in last
    with pytest.raises(Exception, match="far is lost"):
        training.check()


@pytest.mark.process
def test_a_stop_reaches_every_host(by_ssh: Path) -> None:
    given = {"launcher": "hostfile", "hostfile": str(by_ssh), "num_ranks": 1, "max_steps": 5000}
    training = process.start(BASE.replace(run=next(_names), eval_steps=5000, **given))
    until(lambda: any(e["event"] == "train" for e in training._events()))
    training.interrupt()
    training.process.wait()
    assert training.process.returncode == STOPPED
    mine = str(training.folder)
    left = [p for p in psutil.process_iter(["cmdline"]) if mine in (p.info["cmdline"] or [])]
    assert left == []
