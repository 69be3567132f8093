"""The program that trains on the hosts of a hostfile: it starts each one's guard, and waits.

    python -m neoxkit.launch.hosts runs/NAME

The local guard runs it. A connection that drops is made again and ends nothing. A host is lost when
its guard falls silent, or when ssh can't reach it and no rank makes progress: the others end then.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from neoxkit.errors import STOPPED
from neoxkit.launch import meeting, node, plan, ssh
from neoxkit.runs import endings, heartbeat, lease, lock
from neoxkit.runs.events import append_event

ALONE_SECONDS = 45.0  # that a host may be out of ssh's reach while no rank makes progress
OTHERS_SECONDS = 60.0  # for the other hosts to end by themselves once one has failed
END_SECONDS = 30.0  # for the guards to end their ranks once they were told to
RETRY_SECONDS = 3.0
# What the ranks get of the owner's environment; the rest is each host's own.
CARRIED = (
    "NEOXKIT_", "HF_", "DS_", "OMP_", "NCCL_", "GLOO_", "TORCH_", "PYTHONPATH", "LD_LIBRARY_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
NOT_CARRIED = (lock.GUARDED, endings.VARIABLE)  # the command may hold a secret


class Remote:
    """A host of the hostfile: its ssh, and what is known of its ranks."""

    def __init__(self, name: str, number: int, run: Path, met: meeting.Meeting) -> None:
        self.name = name
        self._program = ["neoxkit.launch.node", str(run), met.start, str(number)]
        self._met, self._number = met, str(number)
        self._guard = meeting.Watched(met, self._number)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the host
        self._reached = time.monotonic()
        self._connect()

    def _connect(self) -> None:
        """Run this host's part there, which starts its guard or waits for it."""
        self._ssh = subprocess.Popen(
            ssh.command(self.name, self._program),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )
        self._connected = time.monotonic()
        assert self._ssh.stdin
        with contextlib.suppress(BrokenPipeError), self._ssh.stdin as given:
            given.write(json.dumps(carried(os.environ)).encode() + b"\n")

    def code(self) -> int | None:
        """Return how its ranks have ended; None while they run, or nothing is known."""
        return self._met.told(self._number).get("code")

    def look(self, without_progress: float) -> str:
        """Keep the connection; return why this host is lost, empty if it is not.

        `without_progress`: for how many seconds no rank has given a sign.
        """
        now, ended = time.monotonic(), self._ssh.poll()
        if ended is None and now - self._connected > ssh.CONNECT_SECONDS + 2:  # it has not failed
            self._reached = now
        if ended is not None and not self._met.told(self._number):
            self._said.seek(0)
            return ssh.why(ended, self._said.read().decode(errors="replace"))
        if ended is not None and now - self._connected > RETRY_SECONDS:
            self._connect()
        away = now - self._reached
        if min(away, without_progress) > ALONE_SECONDS:
            return f"ssh can't reach it for {away:.0f} s, and no rank makes progress"
        if (silence := self._guard.silence()) > node.GUARD_SECONDS:
            return f"its guard gave no sign for {silence:.0f} s"
        return ""

    def close(self) -> None:
        self._ssh.kill()
        self._ssh.wait()
        self._said.close()


def carried(given: Mapping[str, str]) -> dict[str, str]:
    """Return what the ranks on other hosts get of an environment."""
    return {k: v for k, v in given.items() if k.startswith(CARRIED) and k not in NOT_CARRIED}


class _Progress:
    """The ranks' heartbeats, seen from here."""

    def __init__(self, run: Path) -> None:
        self._folder, self._newest, self._since = run / heartbeat.FOLDER, 0, time.monotonic()

    def silence(self) -> float:
        """Return for how many seconds no rank has given a sign."""
        with contextlib.suppress(OSError):  # one that has just finished
            newest = max((p.stat().st_mtime_ns for p in self._folder.glob("*")), default=0)
            if newest != self._newest:
                self._newest, self._since = newest, time.monotonic()
        return time.monotonic() - self._since


def main(argv: Sequence[str] | None = None) -> int:
    """Train on every host of the run's plan; return the exit code of all."""
    run = Path((sys.argv[1:] if argv is None else argv)[0])
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    names, met = plan.facts(run)["hosts"], meeting.begin(run)
    mine = meeting.Renewed(met, meeting.OWNER)
    mine.keep()
    hosts = [Remote(name, number, run, met) for number, name in enumerate(names)]
    try:
        _wait(hosts, run, met, mine, asked)
    finally:
        met.end()  # whatever is left
        codes = _last_codes(hosts)
        for host in hosts:
            host.close()
    if None not in codes:  # so nobody is left who could hold it
        lease.clear(run, node.token(met))
    return outcome(codes)


def _wait(
    hosts: Sequence[Remote],
    run: Path,
    met: meeting.Meeting,
    mine: meeting.Renewed,
    asked: Sequence[int],
) -> None:
    """Wait until the ranks of all hosts have ended, or must be ended."""
    progress, watch, failed, requested = _Progress(run), heartbeat.Watch(run), 0.0, False
    guard = os.getppid()
    while None in (codes := [host.code() for host in hosts]):
        mine.keep()
        ends = asked or os.getppid() != guard  # which was killed
        if ends and not watch.ranks():  # none takes steps: there is nothing to save
            return
        if ends and not requested:
            lock.ask_to_stop(run)
            requested = True
        quiet = progress.silence()
        for host, code in zip(hosts, codes, strict=True):
            if code is None and (why := host.look(quiet)):
                what = f"{host.name} is lost: {why}"
                append_event(run, "error", kind="lost", where="", what=what, remedy="")
                return
        if not failed and any(code not in (None, 0, STOPPED) for code in codes):
            failed = time.monotonic()
        if failed and time.monotonic() - failed > OTHERS_SECONDS:
            return
        time.sleep(node.LOOK_SECONDS)


def _last_codes(hosts: Sequence[Remote]) -> list[int | None]:
    """Return how the hosts' ranks have ended, once they have or it takes too long."""
    deadline = time.monotonic() + END_SECONDS
    while None in (codes := [host.code() for host in hosts]) and time.monotonic() < deadline:
        time.sleep(node.LOOK_SECONDS)
    return codes


def outcome(codes: Sequence[int | None]) -> int:
    """Return the exit code of all: a failure's before a stop's before that of a good end.

    >>> outcome([0, 0]), outcome([0, STOPPED]), outcome([STOPPED, 2]), outcome([0, None])
    (0, 75, 2, 1)
    """
    known = [1 if code is None else code for code in codes]
    return next((code for code in known if code not in (0, STOPPED)), max(known))


if __name__ == "__main__":
    sys.exit(main())
