"""A small process around a training: when its owner is gone, so is everything it started.

    python -m neoxkit.guard --log train.log --lock .lock -- COMMAND ...

It leads a session of its own, runs the command in it with its output in the log, and watches its
standard input and its parent. At end of file, at another parent, or at TERM, INT or HUP it asks the
whole session to end and then ends it. It clears the session after a normal end as well.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from neoxkit import lock

GRACE_SECONDS = 5.0  # between asking and killing
STOPPED = 75  # exit code when somebody stopped the command
LOCKED = 73  # exit code when another guard holds the lock


def main() -> int:
    """Run the command under guard; its exit code, 128 + a signal's number, STOPPED or LOCKED."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--log", required=True)
    parser.add_argument("--lock", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    held = lock.take(Path(options.lock))  # until this process is gone
    if not held:
        return LOCKED
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    owner = os.getppid()
    with open(options.log, "ab") as log:  # noqa: PTH123
        child = subprocess.Popen(
            options.command[1:], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    stopped = False
    while child.poll() is None and not stopped:
        stopped = _end_of_file(0.2) or os.getppid() != owner or bool(asked)
    clear_session()
    if stopped:
        return STOPPED
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_of_file(seconds: float) -> bool:
    """Wait for standard input at most so long; True when its other end was closed."""
    try:
        ready, _, _ = select.select([0], [], [], seconds)
        return bool(ready) and os.read(0, 1024) == b""
    except InterruptedError:
        return False


def clear_session() -> None:
    """End every other process of this session: TERM first, KILL after the grace time."""
    for ask in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := others()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, ask)
                except ProcessLookupError:
                    continue
            time.sleep(0.1 if ask == signal.SIGKILL else 0.5)


def others() -> list[int]:
    """The living processes of this process's session, itself left out."""
    me, session, found = os.getpid(), os.getsid(0), []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            pid = process.pid
            if pid != me and os.getsid(pid) == session and process.status() != "zombie":
                found.append(pid)
        except (OSError, psutil.Error):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
