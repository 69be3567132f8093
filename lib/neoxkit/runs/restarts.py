"""Whether a run of a sweep that has ended goes on by itself."""

from collections.abc import Sequence
from pathlib import Path

from neoxkit.errors import KILLED, killed_by
from neoxkit.runs import checkpoints
from neoxkit.runs.events import METRICS, Event, EventReader, append_event

MOST_RESTARTS = 3  # without a new checkpoint between them


class Restarts:
    """How often a run was started again, and after what.

    It goes on if a process of it was killed or a rank fell silent: nothing about the run itself is
    known to be wrong, and its newest checkpoint is whole. It does not after a mistake, a loss that
    is not finite, a full disk or a stop request, which would all come back, or are meant.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        metrics = folder / METRICS
        size = metrics.stat().st_size if metrics.exists() else 0
        self._reader = EventReader(folder, size)
        self._step: int | None = None  # the checkpoint from which it went on last
        self._times = 0  # from there
        self.causes: list[str] = []  # of each restart
        self.is_left = ""  # why it does not go on once more

    def may_go_on(self, code: int) -> bool:
        """Return whether the run goes on after `neoxkit run` ended with this exit code.

        A restart is noted in the run's events.
        """
        if code != KILLED and not (code < 0 and killed_by(code)):
            return False
        cause = self._cause(code)
        step = checkpoints.saved_step(self._folder)
        self._times = self._times + 1 if step == self._step else 1
        self._step = step
        if self._times > MOST_RESTARTS:
            self.is_left = f"{MOST_RESTARTS} restarts brought no new checkpoint, and {cause}"
            return False
        try:
            append_event(self._folder, "restart", times=len(self.causes) + 1, what=cause)
        except OSError:  # the disk is full
            return False
        self.causes.append(cause)
        return True

    def _cause(self, code: int) -> str:
        """Return what was killed, as those who saw it have written it."""
        seen = [event["what"] for event in self._reader.poll() if _is_kill(event)]
        if code < 0:
            return f"its neoxkit run was killed ({killed_by(code)})"
        return seen[-1] if seen else "one of its processes was killed"


def _is_kill(event: Event) -> bool:
    return event["event"] == "killed" or event.get("kind") == "silent"


def sentence(causes: Sequence[str]) -> str:
    """Say how often a run was started again, and after what; empty if never.

    >>> sentence(["its kernel was killed"])
    'restarted 1 time, after its kernel was killed'
    """
    if not causes:
        return ""
    if len(causes) == 1:
        return f"restarted 1 time, after {causes[0]}"
    return f"restarted {len(causes)} times, the last time after {causes[-1]}"


def causes_of(events: Sequence[Event]) -> list[str]:
    """Return the cause of each restart in a run's events."""
    return [event["what"] for event in events if event["event"] == "restart"]
