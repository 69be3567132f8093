"""process.start of a run that another process trains: it is watched, not started twice."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from conftest import BASE

from neoxkit import files, paths
from neoxkit.errors import FENCED, UserError
from neoxkit.launch import command, process
from neoxkit.runs import lease, lock
from neoxkit.runs.folder import ARGUMENTS

ASKED = BASE.replace(run="beside")


@pytest.fixture
def elsewhere(home: Path) -> Iterator[IO[str]]:
    """Hold a run's lock, as a training of another process does before its first step."""
    folder = paths.run(ASKED.run)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / ARGUMENTS, command.trainer_arguments(ASKED))
    held = lock.take(folder / lock.LOCK)
    assert held
    yield held
    held.close()


def test_it_is_watched_until_its_process_ends(elsewhere: IO[str]) -> None:
    written = (paths.run(ASKED.run) / ARGUMENTS).stat().st_mtime_ns
    training = process.start(ASKED)
    assert training.process is None and training.poll() is None
    assert (paths.run(ASKED.run) / ARGUMENTS).stat().st_mtime_ns == written
    elsewhere.close()
    assert training.poll() == 0


def test_other_settings_are_refused(elsewhere: IO[str]) -> None:
    dialled = {"learning_rate": (0.0, 5e-4)}
    with pytest.raises(UserError, match=r"turn the dial learning_rate to 0\.002 or set that p"):
        process.start(ASKED.replace(learning_rate=5e-4), dialled)
    assert process.start(ASKED.replace(save_total_limit=9)).poll() is None  # this may differ


def test_it_is_neither_replaced_nor_taken_for_a_trial(elsewhere: IO[str]) -> None:
    with pytest.raises(UserError, match="beside is training now"):
        process.start(ASKED.replace(restart=True))
    with pytest.raises(UserError, match="beside is training now"):
        process.start(ASKED, trial=True)


def test_a_training_that_was_fenced_says_who_has_the_run(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    folder = paths.run("fenced")
    folder.mkdir(parents=True)
    later = lease.Lease(folder, lease.Token.of("slurm 7 1"))
    later.take()
    ended = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({FENCED})"])
    ended.wait()
    with pytest.raises(UserError, match=r"fenced is training now \(slurm job 7, restart 1 on "):
        process.Training(folder, ended, 0).check()
    later.release()
