"""Errors that a user can cause, each reported in one line."""

import copy
import difflib
import os
import re
import signal
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

STOPPED = 75  # exit code after a stop request
LOCKED = 73  # exit code when another guard holds the lock
FENCED = 76  # exit code of a training whose run another has taken over (lease.py)
KILLED = 71  # exit code of `neoxkit run` when a rank, the kernel or the guard was killed
# What ends a process that nobody has asked to end; the others are a request to stop.
KILLS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)

MAX_FAULTS_SHOWN = 20
MOST_CHARACTERS = 200  # in one error line; the description is shortened to fit


class UserError(ValueError):
    """A user's mistake: where it is, what is wrong, and what to do.

    >>> print(UserError("block_size", "must be at least 8, got 4", "choose 8 or more"))
    block_size: must be at least 8, got 4 -- choose 8 or more
    """

    label = "error"

    def __init__(self, where: str, what: str, remedy: str) -> None:
        room = MOST_CHARACTERS - len(f"{self.label}: {where}:  -- {remedy}")
        if len(what) > max(room, 40):
            what = f"{what[: max(room, 40) - 4].rstrip()} ..."
        self.where, self.what, self.remedy = where, what, remedy
        super().__init__(f"{where}: {what} -- {remedy}")

    def of(self, run: str) -> "UserError":
        """Return a copy whose message begins with the name of the run."""
        again = copy.copy(self)
        again.args = (f"{run}: {self}",)
        return again

    def __reduce__(self) -> tuple:
        """Support pickling, so that a worker process can pass the error on."""
        return _again, (type(self), str(self), vars(self))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in a notebook: the message without a traceback."""
        if os.environ.get("NEOXKIT_DEBUG") == "1":
            import traceback

            return traceback.format_exception(self)
        return [f"{self.label}: {self}"]


class Faults(UserError):
    """The first 20 faults, one per line; equal faults in several lines of a file count as one."""

    def __init__(self, faults: Sequence[UserError]) -> None:
        first: dict[tuple[str, ...], UserError] = {}
        counts: Counter[tuple[str, ...]] = Counter()
        for fault in faults:
            kind = (re.sub(r"(:|, row )\d+$", "", fault.where), fault.what, fault.remedy)
            first.setdefault(kind, fault)
            counts[kind] += 1
        lines = [_counted(fault, counts[kind]) for kind, fault in first.items()]
        shown = lines[:MAX_FAULTS_SHOWN]
        if more := len(lines) - len(shown):
            shown.append(f"... and {more} more")
        self.where, self.what, self.remedy = "", "\n".join(shown), ""
        ValueError.__init__(self, self.what)


class NotFinite(UserError):
    """A loss or gradient that is not finite: the training diverged."""


KINDS = {kind.__name__: kind for kind in (UserError, Faults, NotFinite)}


def as_fields(mistake: UserError) -> dict[str, str]:
    """Return an error as it crosses processes, in an event: its kind, where, what and remedy.

    >>> as_fields(NotFinite("learning_rate", "the loss is not finite", "lower it"))["kind"]
    'NotFinite'
    """
    parts = {name: getattr(mistake, name) for name in ("where", "what", "remedy")}
    return {"kind": type(mistake).__name__, **parts}


def from_fields(event: Mapping[str, str]) -> UserError:
    """Return the error that an event of another process holds (`as_fields`)."""
    parts = {name: event[name] for name in ("where", "what", "remedy")}
    return _again(KINDS[event["kind"]], sentence(event), parts)


def sentence(event: Mapping[str, str]) -> str:
    """Return an error event as one line; a failure that is nobody's mistake has only a `what`."""
    if not event.get("where"):
        return event.get("what", "")
    return f"{event['where']}: {event['what']} -- {event['remedy']}"


def _counted(fault: UserError, count: int) -> str:
    if count == 1:
        return str(fault)
    what = f"{fault.what} ({count:,} of these, this is the first)"
    return str(UserError(fault.where, what, fault.remedy))


def _again(kind: type[UserError], text: str, parts: Mapping[str, str]) -> UserError:
    fault = kind.__new__(kind)
    ValueError.__init__(fault, text)
    vars(fault).update(parts)
    return fault


class Stopped(UserError):
    """A training, or watching it, was stopped on request: nothing is wrong, and it can resume."""

    label = "stopped"


class TrainingError(RuntimeError):
    """A training failed for a reason other than a mistake in the settings."""

    label = "error"

    _render_traceback_ = UserError._render_traceback_


class Killed(TrainingError):
    """A training of which a process was killed, or fell silent: it can resume as it is."""


def killed_by(code: int) -> str:
    """Return the signal that ended a process unasked, by its exit code; empty if none did.

    Python writes a signal as -N, a shell and the guard as 128 + N, DeepSpeed's launcher as 256 - N.

    >>> killed_by(-9), killed_by(137), killed_by(247), killed_by(143), killed_by(1)
    ('KILL', 'KILL', 'KILL', '', '')
    """
    found = [s for s in KILLS if code in (-s, 128 + s, 256 - s)]
    return found[0].name.removeprefix("SIG") if found else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that was probably meant; empty if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def near(name: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """Return the remedy for an unknown name: the known name that was probably meant.

    >>> near("lerning_rate", ["learning_rate", "seed"], "see --help")
    'did you mean learning_rate?'
    """
    found = closest(name, known)
    return f"did you mean {prefix}{found}?" if found else otherwise


def shorten(text: str, most: int = 120) -> str:
    """Return the first line of a text; if too long, cut after a sentence, else after a word.

    >>> shorten("It broke. Nobody knows why.", 15), shorten("It broke in two", 13)
    ('It broke. ...', 'It broke ...')
    """
    line = text.strip().partition("\n")[0]
    short = textwrap.shorten(line, most, placeholder=" ...")
    whole, dot, rest = short.removesuffix(" ...").rpartition(". ")
    return f"{whole}. ..." if dot and rest and short.endswith(" ...") else short
