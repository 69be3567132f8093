"""The lock on a run folder, and stop requests."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from neoxkit.errors import UserError
from neoxkit.runs import lock


def test_a_held_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert lock.locked_by(folder) is None
    held = lock.hold(folder)
    assert lock.locked_by(folder) == os.getpid()
    with pytest.raises(UserError, match=rf"mine is training now \(process {os.getpid()}\)"):
        lock.hold(folder)
    held.close()
    assert lock.locked_by(folder) is None
    lock.refuse_locked(folder)


def test_the_id_of_an_earlier_holder_is_not_taken_for_the_new_ones(tmp_path: Path) -> None:
    """The new one has locked the file and not written yet; an id may have a new owner as well."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = tmp_path / lock.LOCK
    with path.open("w") as held:
        lock.fcntl.flock(held, lock.fcntl.LOCK_EX)
        path.write_text(f"{gone.pid}\n")
        assert lock.locked_by(tmp_path) == lock.UNKNOWN
        path.write_text(f"{os.getpid()}\n")
        assert lock.locked_by(tmp_path) == os.getpid()
        before = psutil.Process().create_time() - 60
        os.utime(path, (before, before))
        assert lock.locked_by(tmp_path) == lock.UNKNOWN


def test_checking_does_not_take_the_lock(tmp_path: Path) -> None:
    """Two may check at once: a check that held the lock would look like a training."""
    (tmp_path / lock.LOCK).touch()
    with (tmp_path / lock.LOCK).open("r+") as other:
        lock.fcntl.flock(other, lock.fcntl.LOCK_SH)
        assert lock.locked_by(tmp_path) is None


def test_a_check_delays_a_start_and_does_not_refuse_it(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK).touch()
    with (tmp_path / lock.LOCK).open("r+") as look:
        lock.fcntl.flock(look, lock.fcntl.LOCK_SH)
        threading.Timer(0.1, look.close).start()
        lock.hold(tmp_path).close()


def test_a_guarded_training_leaves_the_lock_to_its_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lock.GUARDED, "1")
    assert lock.hold(tmp_path) is None and lock.locked_by(tmp_path) is None


def test_a_stop_request_from_before_the_start_is_forgotten(tmp_path: Path) -> None:
    assert not lock.asked_to_stop(tmp_path)
    lock.ask_to_stop(tmp_path)
    assert lock.asked_to_stop(tmp_path)
    begun = psutil.Process().create_time()
    os.utime(tmp_path / lock.STOP, (begun - 60, begun - 60))
    lock.hold(tmp_path).close()
    assert not lock.asked_to_stop(tmp_path)
    lock.answer_stop(tmp_path)  # without a request: no error


def test_a_stop_request_made_during_the_start_counts(tmp_path: Path) -> None:
    """Rank 0 takes the lock only after loading its libraries."""
    lock.ask_to_stop(tmp_path)
    lock.hold(tmp_path).close()
    assert lock.asked_to_stop(tmp_path)


def test_a_training_begins_with_its_launcher(tmp_path: Path) -> None:
    """A request made while DeepSpeed's runner starts is not older than the training."""
    code = """if True:
        import os, subprocess, sys, time
        import psutil
        stop, begun = sys.argv[1] + "/STOP", psutil.Process().create_time()
        open(stop, "w").close()
        os.utime(stop, (begun - 1.5, begun - 1.5))  # within the difference allowed between clocks
        time.sleep(1)
        subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], check=True)
    """
    take = (
        "import pathlib, sys\nfrom neoxkit.runs import lock\nlock.hold(pathlib.Path(sys.argv[1]))"
    )
    kept = {}
    for name in ("deepspeed", "another"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name), take, name], check=True)
        kept[name] = lock.asked_to_stop(tmp_path / name)
    assert kept == {"deepspeed": True, "another": False}


def test_a_parent_whose_command_line_is_hidden_is_not_taken_for_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some clusters hide the processes of other users."""

    def hidden(process: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", hidden)
    lock.ask_to_stop(tmp_path)
    lock.hold(tmp_path).close()
    assert lock.asked_to_stop(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Neither "is training now", at a start, nor a training where there can't be one."""
    folder = tmp_path / "mine"
    folder.mkdir()

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    said = f"^run: the file system of mine has no locks \\({os.strerror(number)}\\) -- mount it"
    with pytest.raises(UserError, match=said) as refused:
        lock.hold(folder)
    assert len(f"error: {refused.value}") <= 200
    assert lock.locked_by(folder) is None
    lock.refuse_locked(folder)
