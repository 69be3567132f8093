"""The lease on a run folder: what the lock is, for a training that may be on any of several hosts.

NEOXKIT_LEASE, in the environment of every rank, says whose it is: engine, job and restart count
("slurm 123 0"). Rank 0 takes it and renews it, every rank joins it, and whoever writes below the
folder calls `check` first: another's lease ends the training without a write (it is fenced).
Without the variable nothing here does anything.

A renewal goes through the descriptor of the file that was put there at the take-over. Once another
file has its name, it reaches nobody: however late, it can't bring a lost lease back.
"""

import contextlib
import errno
import json
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neoxkit import files
from neoxkit.errors import UserError

VARIABLE = "NEOXKIT_LEASE"
FILE = ".lease"
SLURM = "slurm"  # the engine whose jobs jobs.py knows
RENEW_SECONDS = 10.0
STALE_SECONDS = 90.0  # without a renewal, after which another may take it over
SETTLE_SECONDS = 2.0  # between taking it and reading it back: a rival may have taken it as well
LOOK_SECONDS = 0.5  # between two looks at another's lease
CLOCKS_SECONDS = 5.0  # the largest difference between two hosts' clocks
_SIZE = 1024  # of the file, always: a renewal is one write of whole content
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # a file system without hard links


@dataclass(frozen=True)
class Token:
    """Whose lease it is: the engine that started the training, its job, and how often that job was
    restarted."""

    engine: str
    job: str
    restart: int

    @classmethod
    def of(cls, text: str) -> "Token":
        """Read a token as NEOXKIT_LEASE has it.

        >>> Token.of("slurm 123 0")
        Token(engine='slurm', job='123', restart=0)
        """
        words = text.split()
        if len(words) != 3 or not words[2].isdigit() or len(text) > 200:
            what = f"must be an engine, a job and a restart count, got {text!r}"
            raise UserError(VARIABLE, what, 'unset it, or write it like "slurm 123 0"')
        return cls(words[0], words[1], int(words[2]))

    def follows(self, other: "Token") -> bool:
        """Return whether this is a later attempt of the same job, which fences the other."""
        same = (self.engine, self.job) == (other.engine, other.job)
        return same and self.restart > other.restart

    def __str__(self) -> str:
        again = f", restart {self.restart}" if self.restart else ""
        return f"{self.engine} job {self.job}{again}"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says; `once` is drawn anew each time that it is taken.

    `since` and `time` (of the last renewal) are in seconds since 1970 by the holder's clock.
    """

    token: Token
    once: str
    host: str
    pid: int
    since: float
    count: int
    time: float

    def __str__(self) -> str:
        return f"{self.token} on {self.host}"


_NOBODY = Holder(Token("unknown", "?", 0), "", "an unknown host", 0, 0.0, 0, 0.0)  # can't be read


class Lost(Exception):
    """The run folder is another training's now; this one must end without a write."""


class Lease:
    """A lease of this process: one that it takes and renews, or one of rank 0 that it joins."""

    def __init__(self, folder: Path, token: Token, once: str = "") -> None:
        self.folder, self.token, self.once = folder, token, once or uuid.uuid4().hex[:12]
        self._holder: Holder | None = None
        self._descriptor = -1
        self._writing = threading.Lock()  # a closed descriptor's number may be another file's
        self._over = threading.Event()
        self._lost = False

    def take(self) -> None:
        """Take the lease and keep it renewed; refuse if another training has it.

        One that has not been renewed for STALE_SECONDS, by this process's clock, is taken over, and
        one of an earlier attempt of the same job at once.
        """
        while True:
            seen = self._wait_for_it()
            if self._put(seen):
                time.sleep(SETTLE_SECONDS)
                if self._is_mine(_read(self.folder)):
                    break
            self._close()  # a rival was quicker, or an earlier attempt has just given it back
        threading.Thread(target=self._keep_renewed, daemon=True, name="lease").start()

    def _wait_for_it(self) -> Holder | None:
        """Return the holder that may be replaced now, None if there is none."""
        seen, since = _read(self.folder), time.monotonic()
        while seen and not self.token.follows(seen.token):
            if seen.token.follows(self.token):
                raise lost(self.folder)
            if time.monotonic() - since > STALE_SECONDS:
                break
            time.sleep(LOOK_SECONDS)
            now = _read(self.folder)
            if now and now != seen and not self.token.follows(now.token):
                raise is_training(self.folder, str(now))
            seen = now
        return seen

    def _put(self, over: Holder | None) -> bool:
        """Put a file of our own in place, whole; return False if there is another one than `over`.

        Two that replace the same one at the same moment are told apart when they read it back.
        """
        now = round(time.time(), 3)
        self._holder = Holder(self.token, self.once, platform.node(), os.getpid(), now, 0, now)
        path = self.folder / FILE
        part = path.with_name(f"{FILE}.{self.once}.part")
        self._descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write()
            if over is None and _linked(part, path):
                return True
            if _read(self.folder) == over:
                part.replace(path)
            return self._is_mine(_read(self.folder))
        finally:
            part.unlink(missing_ok=True)
            files.flush(self.folder)

    def _write(self) -> None:
        assert self._holder
        text = json.dumps(asdict(self._holder)).ljust(_SIZE - 1)
        with self._writing:
            if self._descriptor >= 0:
                os.pwrite(self._descriptor, f"{text}\n".encode(), 0)
                os.fsync(self._descriptor)

    def _keep_renewed(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # the next one may succeed
                if self.is_lost():
                    return
                self.renew()

    def renew(self) -> None:
        """Tell the others that this process is still here."""
        assert self._holder
        count, now = self._holder.count + 1, round(time.time(), 3)
        self._holder = replace(self._holder, count=count, time=now)
        self._write()

    def is_lost(self) -> bool:
        """Return whether another has the lease, or nobody; once lost, it stays so."""
        if not self._lost and not self._is_mine(_read(self.folder)):
            self._lost = True
        return self._lost

    def _is_mine(self, holder: Holder | None) -> bool:
        return holder is not None and (holder.token, holder.once) == (self.token, self.once)

    def release(self) -> None:
        """Give the lease back, if this process has taken it and has not lost it."""
        self._over.set()
        if self._descriptor >= 0 and not self.is_lost():
            (self.folder / FILE).unlink(missing_ok=True)
        self._close()
        self._lost = True

    def _close(self) -> None:
        with self._writing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _linked(part: Path, path: Path) -> bool:
    """Give a file its name unless that is taken, in one step; return whether that was done."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        return False
    return True


_mine: Lease | None = None  # of this process, once rank 0 has taken it


def is_wanted() -> bool:
    """Return whether this process belongs to a training that needs a lease."""
    return bool(os.environ.get(VARIABLE))


def take(folder: Path) -> str:
    """Take the lease for this training, in rank 0; return what the other ranks join it with."""
    global _mine
    taken = Lease(folder, Token.of(os.environ[VARIABLE]))
    taken.take()
    _mine = taken
    return taken.once


def join(folder: Path, once: str) -> None:
    """Take part in the lease that rank 0 has taken; nothing to do in rank 0 itself."""
    global _mine
    if not _mine:
        _mine = Lease(folder, Token.of(os.environ[VARIABLE]), once)


def release() -> None:
    """Give the lease back if this process took it and still has it."""
    if _mine:
        with contextlib.suppress(OSError):  # it is left to go stale
            _mine.release()


def clear(folder: Path, token: str) -> None:
    """Remove the lease of a training whose ranks have all ended, if one was killed with it."""
    found = _read(folder)
    if found and found.token == Token.of(token):
        (folder / FILE).unlink(missing_ok=True)


def is_lost(folder: Path) -> bool:
    """Return whether this training must not write into a folder: another one holds its lease.

    Before this training has taken it, whoever holds it is another one, and nobody may.
    """
    if not is_wanted():
        return False
    if _mine:
        return _mine.is_lost()
    token, found = Token.of(os.environ[VARIABLE]), _read(folder)
    return found is not None and found.token != token


def check(folder: Path) -> None:
    """Raise Lost if this training must not write into its folder; call it before each write."""
    if is_lost(folder):
        raise lost(folder)


def lost(folder: Path) -> Lost:
    """Return the error of a training that was fenced; it says who has the run now."""
    now = _read(folder)
    who = f"is trained by {now} now" if now else "has no lease any more"
    return Lost(f"{folder.name} {who}; this training ends without writing anything more")


def holder(folder: Path, seconds: float = STALE_SECONDS) -> Holder | None:
    """Return who holds the lease on a folder, for a reader that looks once.

    It goes by the holder's clock, so it is good for display and for refusing a start, no more.
    """
    found = _read(folder)
    live = found is not None and time.time() - found.time < seconds + CLOCKS_SECONDS
    return found if live else None


def silence(folder: Path) -> float:
    """Return for how many seconds a lease was not renewed, by its holder's clock; 0 without one."""
    found = _read(folder)
    return max(time.time() - found.time, 0.0) if found else 0.0


def is_training(folder: Path, who: str) -> UserError:
    """Return the refusal of a folder in which a training is running."""
    remedy = f'wait, watch("{folder.name}"), or neoxkit stop {folder.name}'
    return UserError("run", f"{folder.name} is training now ({who})", remedy)


def _read(folder: Path) -> Holder | None:
    """Return what the file says; None without one. Renewals don't move the token in it, so that
    a look during one finds the right one."""
    for _ in range(3):
        try:
            found = json.loads((folder / FILE).read_bytes())
            return Holder(**{**found, "token": Token(**found["token"])})
        except FileNotFoundError:
            return None
        except OSError as fault:
            if fault.errno != errno.ESTALE:  # NFS, when another has just taken it over
                raise
        except (ValueError, TypeError, KeyError):  # a look during a renewal, or a damaged file
            pass
        time.sleep(0.02)
    return _NOBODY
