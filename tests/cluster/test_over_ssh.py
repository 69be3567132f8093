# ruff: noqa: F811 - fixtures that are imported
"""Trainings on the hosts of a hostfile, by ssh: the same bytes, and nothing left whatever dies."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hosts
import pytest
from conftest import losses
from on_login import (  # noqa: F401 - fixtures
    PARAMETERS,
    STEPS,
    WEIGHTS,
    Login,
    cluster,
    login,
    starts_of,
    steps_of,
    told,
    undisturbed,
)

from neoxkit import files, paths
from neoxkit.launch import meeting
from neoxkit.runs import checkpoints
from neoxkit.runs.folder import FINISHED

pytestmark = [pytest.mark.cluster, pytest.mark.process]

BY_SSH = {"launcher": "hostfile", "num_nodes": 1, "num_ranks": 1}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LEFT_SECONDS = 90.0
# What runs on a node for a training, as pgrep knows it.
OF_A_RUN = "neoxkit.train|deepspeed.launcher|neoxkit.launch.node"


@pytest.fixture
def by_ssh(login: Login) -> Login:
    """Return a person on the login node with a hostfile of two hosts."""
    if why := hosts.ssh_missing():
        pytest.skip(why)
    (paths.root() / "hostfile").write_text("n1 slots=0\nn2 slots=0  # no GPUs\n")
    return login


def left_on(login: Login, host: str) -> list[str]:
    return login.cluster.on(host, ["pgrep", "-fa", OF_A_RUN]).stdout.splitlines()


def nothing_is_left(login: Login, seconds: float = LEFT_SECONDS) -> None:
    """Wait until no process of a training is left on a node."""
    deadline = time.monotonic() + seconds
    while left := [line for node in hosts.NODES for line in left_on(login, node)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_two_hosts_compute_what_two_ranks_on_one_host_do(by_ssh: Login, undisturbed: str) -> None:
    done = by_ssh.train("hosts", STEPS, **BY_SSH)
    folder = paths.run("hosts")
    assert done.returncode == 0, done.stderr + told(folder)
    assert files.sha256(folder / WEIGHTS) == undisturbed
    assert losses(folder) == losses(paths.run("undisturbed"))
    nothing_is_left(by_ssh, 5)


def test_the_doctor_asks_every_host(by_ssh: Login) -> None:
    done = by_ssh.kit("doctor", "--cluster", **BY_SSH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["n1", "n2"]


def test_a_host_out_of_reach_is_refused_in_one_line_before_anything_starts(by_ssh: Login) -> None:
    (paths.root() / "hostfile").write_text("n1 slots=0\nnowhere slots=0\n")
    done = by_ssh.train("nowhere", STEPS, **BY_SSH)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere: ssh can't reach it" in done.stderr, done.stderr
    assert not (paths.run("nowhere") / "arguments.json").exists()


def test_stop_saves_and_the_same_command_goes_on(by_ssh: Login, undisturbed: str) -> None:
    training = by_ssh.begin("paused", STEPS, **BY_SSH)
    by_ssh.until_step("paused", 10)
    assert by_ssh.kit("stop", "paused").returncode == 0
    assert training.wait() == 75
    nothing_is_left(by_ssh, 5)
    assert checkpoints.saved_step(paths.run("paused")) >= 10
    again = by_ssh.train("paused", STEPS, **BY_SSH)
    assert again.returncode == 0, again.stderr
    assert files.sha256(paths.run("paused") / WEIGHTS) == undisturbed


def kill(host: str, pattern: str) -> Callable[[Login], None]:
    """Return a fault: the newest process of a pattern on a host is killed."""

    def carry_out(login: Login) -> None:
        done = login.cluster.on(host, ["pkill", "-KILL", "--newest", "-f", pattern])
        assert done.returncode == 0, pattern

    return carry_out


def cut(login: Login) -> None:
    login.cluster.cut("n2")


# What happens to a training, and whether it goes on to its end; None: if it gets there before the
# hosts miss the guard, which takes seconds.
FAULTS: dict[str, tuple[Callable[[Login], None], bool | None]] = {
    "the owner is killed": (kill("login", "ipykernel_launcher"), False),
    "the command is killed": (kill("login", "neoxkit.cli run"), False),
    "the guard is killed": (kill("login", "neoxkit.launch.guard"), None),
    "what starts the hosts is killed": (kill("login", "neoxkit.launch.hosts"), False),
    "an ssh is killed": (kill("login", "^ssh .* n2 "), True),
    "an sshd is killed": (kill("n2", "^sshd: "), True),
    "a host's guard is killed": (kill("n2", "neoxkit.launch.node --guard"), False),
    "the first host's guard is killed": (kill("n1", "neoxkit.launch.node --guard"), False),
    "a launcher is killed": (kill("n2", "deepspeed.launcher.launch"), False),
    "a rank is killed": (kill("n2", "neoxkit.train"), False),
    "the first rank is killed": (kill("n1", "neoxkit.train"), False),
    "a link is cut": (cut, False),
}


@pytest.mark.parametrize("what", FAULTS)
def test_nothing_is_left_after_a_fault_and_the_same_command_ends_with_the_same_bytes(
    by_ssh: Login, undisturbed: str, request: pytest.FixtureRequest, what: str
) -> None:
    fault, goes_on = FAULTS[what]
    run = re.sub(r"\W+", "-", what)
    folder = paths.run(run)
    request.addfinalizer(lambda: by_ssh.cluster.mend("n2"))
    training = by_ssh.begin(run, STEPS, **BY_SSH)
    by_ssh.until_step(run, 30)
    fault(by_ssh)
    if goes_on:
        assert training.wait() == 0, told(folder)
        assert len(starts_of(folder)) == 1
    else:
        nothing_is_left(by_ssh)
        assert training.wait() != 0, told(folder)
        by_ssh.cluster.mend("n2")
    is_finished = (folder / FINISHED).exists()
    assert goes_on in (is_finished, None), told(folder)
    if not is_finished:
        assert checkpoints.saved_step(folder) >= 20
        by_ssh.cluster.wait_for(lambda: by_ssh.train(run, STEPS, **BY_SSH).returncode == 0)
    nothing_is_left(by_ssh, 5)
    assert files.sha256(folder / WEIGHTS) == undisturbed
    assert steps_of(folder)[-1] == STEPS


def test_where_locks_are_local_the_lease_refuses_a_second_training(by_ssh: Login) -> None:
    """Through sshfs a host sees no lock that another one holds."""
    if not shutil.which("sshfs"):
        pytest.skip("sshfs not found: apt-get install sshfs")
    root = str(paths.root())
    mounted = by_ssh.cluster.on("n2", ["sshfs", f"login:{root}", root])
    assert mounted.returncode == 0, mounted.stderr
    training = by_ssh.begin("leased", STEPS, **BY_SSH)
    by_ssh.until_step("leased", 10)
    here = by_ssh.words("run", "--only", "02", run="leased", max_steps=STEPS, **PARAMETERS)
    second = by_ssh.cluster.on("n2", here)
    assert second.returncode == 2 and "is training now (hostfile job" in second.stderr
    assert training.wait() == 0
    assert by_ssh.cluster.on("n2", ["umount", root]).returncode == 0


def test_the_six_checks_for_two_nodes_pass(by_ssh: Login) -> None:
    flags = [w for name, value in BY_SSH.items() for w in ("-p", name, str(value))]
    flags += ["-p", "dataset", "small"]
    said = []
    for check in ("doctor", "train", "same", "stop", "save"):
        words = [sys.executable, str(BENCHMARKS / "two_nodes.py"), check, *flags]
        said.append(by_ssh.cluster.on("login", words).stdout.splitlines()[-1])
    assert [line.split(":")[0].split()[0] for line in said] == ["PASS"] * 5, said


def test_a_start_that_a_later_one_has_replaced_ends_without_a_word(by_ssh: Login) -> None:
    """Nobody sees the old start's folder any more: its guards end their ranks."""
    training = by_ssh.begin("replaced", STEPS, **BY_SSH)
    by_ssh.until_step("replaced", 30)
    subprocess.run(["rm", "-r", paths.run("replaced") / meeting.FOLDER], check=True)
    nothing_is_left(by_ssh, 30)
    assert training.wait() != 0
