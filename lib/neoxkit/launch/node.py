"""A host's part in a training by hostfile: its ranks, under a guard of their own.

    ssh n2 python -m neoxkit.launch.node runs/NAME START 1

The first call starts the guard, in a session that a dropped connection does not touch; any call
waits until the ranks have ended. The guard starts them by DeepSpeed's launcher for one node. When
the start's owner falls silent it has them save and stop; what is left then, it ends.
"""

import base64
import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neoxkit.errors import STOPPED, UserError, as_fields
from neoxkit.launch import command, guard, meeting, nodes, plan, routes
from neoxkit.runs import heartbeat, lease, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS, LOG

OWNER_SECONDS = 45.0  # without a sign of the owner, after which the ranks save and stop
GUARD_SECONDS = 60.0  # without a sign of a node's guard, after which it is dead
SAVE_SECONDS = 300.0  # for a save that nobody watches
ADDRESS_SECONDS = 120.0  # for the first node to say where the ranks meet
LOOK_SECONDS = 0.5
_GUARD = "--guard"
_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent dies


def main(argv: Sequence[str] | None = None) -> int:
    """Start this node's guard unless that was done, wait, and return its ranks' exit code."""
    words = sys.argv[1:] if argv is None else [*argv]
    is_guard = words[:1] == [_GUARD]
    run, start, number = words[is_guard:]
    met = meeting.Meeting(Path(run) / meeting.FOLDER / start)
    if is_guard:
        return _guard(Path(run), met, int(number))
    if met.claim(int(number)):
        given = json.loads(sys.stdin.readline())  # of the owner's environment
        _start_guard(Path(run), int(number), words, os.environ | given)
    seen = meeting.Watched(met, number)
    while (code := met.told(number).get("code")) is None:
        if seen.silence() > GUARD_SECONDS or not met.folder.is_dir():
            return 1
        time.sleep(LOOK_SECONDS)
    return code


def _start_guard(run: Path, number: int, words: Sequence[str], env: Mapping[str, str]) -> None:
    with log_of(run, number).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "neoxkit.launch.node", _GUARD, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=env,
        )


def log_of(run: Path, number: int) -> Path:
    """Return where the output of a node's ranks goes: no two hosts append to one file."""
    return run / LOG if number == 0 else (run / LOG).with_suffix(f".{number}.log")


def _guard(run: Path, met: meeting.Meeting, number: int) -> int:
    """Run this node's ranks, tell how they ended, and return their exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mine = meeting.Renewed(met, str(number))
    mine.keep()
    code = 1
    try:
        code = _run_ranks(run, met, number, mine)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        append_event(run, "error", **as_fields(mistake))
        code = 2
    finally:
        guard.clear_session()
        with contextlib.suppress(OSError):  # a later start has removed the folder
            met.tell(str(number), code=code)
    return code


def _run_ranks(run: Path, met: meeting.Meeting, number: int, mine: meeting.Renewed) -> int:
    planned = plan.facts(run)
    plan.check_here(planned)
    address = _meet(met, number, planned, mine)
    env = environment(run, planned, met, address)
    words = launcher_command(planned, number, address)
    arguments = str(run / ARGUMENTS)
    child = subprocess.Popen([*words, arguments], env=env, preexec_fn=_die_with_the_guard)
    return _wait(child, run, met, mine)


def _wait(child: subprocess.Popen, run: Path, met: meeting.Meeting, mine: meeting.Renewed) -> int:
    """Wait until the ranks end or must be ended; return the exit code as a shell counts."""
    owner, watch, asked = meeting.Watched(met, meeting.OWNER), heartbeat.Watch(run), 0.0
    while (code := child.poll()) is None or (code < 0 and guard.others()):
        mine.keep()
        if met.is_over():
            guard.clear_session(grace_seconds=0)
            break
        was_killed = code is not None  # the launcher; its ranks go on
        if not asked and (was_killed or owner.silence() > OWNER_SECONDS or owner.is_gone):
            if not watch.ranks():  # none takes steps: there is nothing to save
                break
            with contextlib.suppress(OSError):
                lock.ask_to_stop(run)
            asked = time.monotonic()
        if asked and time.monotonic() - asked > SAVE_SECONDS:
            break
        time.sleep(LOOK_SECONDS)
    if code is None:
        return STOPPED
    return code if code >= 0 else 128 - code


def _meet(
    met: meeting.Meeting, number: int, planned: Mapping[str, Any], mine: meeting.Renewed
) -> Mapping[str, Any]:
    """Return the address at which the ranks meet, which the first node chooses and tells."""
    if number == 0:
        met.tell(meeting.ADDRESS, host=_own_address(planned["hosts"]), port=command.free_port())
    deadline = time.monotonic() + ADDRESS_SECONDS
    while not (address := met.told(meeting.ADDRESS)):
        if time.monotonic() > deadline or met.is_over():
            what = f"{planned['hosts'][0]} did not say where the ranks meet"
            raise UserError(nodes.HOSTFILE, what, f"see {LOG}")
        mine.keep()
        time.sleep(LOOK_SECONDS)
    return address


def _own_address(hosts: Sequence[str]) -> str:
    """Return this host's address as the others reach it: on the way to another one or, where that
    has no name here, the one that ssh came by."""
    names = [host.rpartition("@")[2] for host in hosts[1:]]
    by_ssh = os.environ.get("SSH_CONNECTION", "").split()
    found = (routes.towards(name) for name in names)
    return next(filter(None, found), by_ssh[2] if len(by_ssh) == 4 else platform.node())


def token(met: meeting.Meeting) -> str:
    """Return whose the lease of a start is, as NEOXKIT_LEASE has it."""
    return f"{nodes.HOSTFILE} {met.start} 0"


def environment(
    run: Path, planned: Mapping[str, Any], met: meeting.Meeting, address: Mapping[str, Any]
) -> dict[str, str]:
    """Return the environment of this node's ranks."""
    if not planned["on_gpu"]:  # whatever the node has, none was asked for
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    env = command.environment(planned["ranks"])
    env[lease.VARIABLE] = token(met)
    env[lock.GUARDED] = str(run)
    here = routes.towards(address["host"])
    if not planned["on_gpu"] and here and (name := routes.interface(here)):
        env.setdefault("GLOO_SOCKET_IFNAME", name)
    return env


def launcher_command(
    planned: Mapping[str, Any], number: int, address: Mapping[str, Any]
) -> list[str]:
    """Return the command of DeepSpeed's launcher for the ranks of one node."""
    slots = {host: [*range(planned["ranks"])] for host in planned["hosts"]}
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={world}",
        f"--node_rank={number}",
        f"--master_addr={address['host']}",
        f"--master_port={address['port']}",
        "--no_local_rank",
        "--module",
        "neoxkit.train",
    ]


def _die_with_the_guard() -> None:
    """Have the kernel send TERM to this process when its parent dies: the launcher passes it on to
    its ranks, which save and stop."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
