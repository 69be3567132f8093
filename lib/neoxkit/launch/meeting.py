"""What the parts of a training on several hosts tell each other, on the folder that all see.

Each start has a folder of its own, runs/NAME/.hosts/START: `owner` is renewed while the start's
owner lives, `N` while node N's guard does; that also says how its ranks ended. END asks every guard
to end its ranks at once. A folder that is gone means the same: a later start has removed it.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = ".hosts"  # in the run folder
OWNER, ADDRESS, END = "owner", "address", "END"
RENEW_SECONDS = 5.0


def begin(run: Path) -> "Meeting":
    """Make the folder of a new start; those of earlier ones are removed, which ends their ranks."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    made = Meeting(run / FOLDER / uuid.uuid4().hex[:8])
    made.folder.mkdir(parents=True)
    return made


def leave_all(run: Path) -> None:
    """Tell the guards on other hosts, if there are any, that their owner is gone: what they still
    train is saved and stopped."""
    for folder in (run / FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            Meeting(folder).tell(OWNER, gone=True)


def end_all(run: Path) -> None:
    """Ask the guards on other hosts, if there are any, to end their ranks at once."""
    for folder in (run / FOLDER).glob("*"):
        Meeting(folder).end()


@dataclass(frozen=True)
class Meeting:
    """The folder of one start."""

    folder: Path

    @property
    def start(self) -> str:
        return self.folder.name

    def tell(self, name: str, **facts: Any) -> None:
        """Write what others may read whole."""
        part = self.folder / f".{name}.part"
        part.write_text(json.dumps(facts), encoding="utf-8")
        part.replace(self.folder / name)

    def told(self, name: str) -> dict[str, Any]:
        """Return what was told under a name; empty if nothing was, or it can't be read now."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def claim(self, number: int) -> bool:
        """Return whether node `number` is this process's to start: one only gets True."""
        try:
            os.close(os.open(self.folder / f"{number}.claimed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def end(self) -> None:
        """Ask every guard to end its ranks at once."""
        with contextlib.suppress(OSError):
            (self.folder / END).touch()

    def is_over(self) -> bool:
        """Return whether the ranks are to end at once."""
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 - NFS then asks its server
        except FileNotFoundError:
            return True
        except OSError:  # the network; a look that fails says nothing
            return False
        return END in names


class Renewed:
    """What is told under a name again and again, by a process that lives."""

    def __init__(self, meeting: Meeting, name: str) -> None:
        self._meeting, self._name = meeting, name
        self._count, self._renewed = 0, -RENEW_SECONDS

    def keep(self) -> None:
        """Renew it if it is time to."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._count += 1
            with contextlib.suppress(OSError):  # the next one may succeed
                self._meeting.tell(self._name, count=self._count)
            self._renewed = time.monotonic()


class Watched:
    """Another process, seen by what it renews; only this process's clock counts.

    `is_gone`: it was said to be gone.
    """

    def __init__(self, meeting: Meeting, name: str) -> None:
        self._meeting, self._name = meeting, name
        self._last: dict[str, Any] = {}
        self.is_gone = False
        self._since = time.monotonic()

    def silence(self) -> float:
        """Return for how many seconds nothing new was seen."""
        now = self._meeting.told(self._name)
        self.is_gone = "gone" in now
        if now and now != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since
