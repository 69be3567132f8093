"""restarts.py: which ends a run of a sweep goes on after, how often, and what it says."""

from pathlib import Path

import pytest

from neoxkit.errors import KILLED
from neoxkit.runs import checkpoints, restarts
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.restarts import MOST_RESTARTS, Restarts


@pytest.mark.parametrize(
    ("code", "goes_on"),
    [
        (KILLED, True),
        (-9, True),  # `neoxkit run` itself
        (0, False),
        (1, False),
        (2, False),  # a mistake, a loss that is not finite, a full disk
        (75, False),
        (130, False),
        (-15, False),  # TERM is a request to stop
        (137, False),  # not what `neoxkit run` returns
    ],
)
def test_only_a_run_that_was_killed_goes_on(tmp_path: Path, code: int, goes_on: bool) -> None:
    again = Restarts(tmp_path)
    assert again.may_go_on(code) == goes_on
    assert [e["event"] for e in read_events(tmp_path)] == ["restart"] * goes_on
    assert (len(again.causes), again.is_left) == (goes_on, "")


def test_it_is_left_when_restarts_bring_no_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Restarts(tmp_path)
    for step in (None, 4):  # a new checkpoint lets it go on as often again
        monkeypatch.setattr(checkpoints, "saved_step", lambda _, step=step: step)
        assert [again.may_go_on(KILLED) for _ in range(MOST_RESTARTS)] == [True] * MOST_RESTARTS
    assert not again.is_left
    assert not again.may_go_on(KILLED)
    left = "3 restarts brought no new checkpoint, and one of its processes was killed"
    assert (again.is_left, len(again.causes)) == (left, 2 * MOST_RESTARTS)


def test_the_cause_is_what_was_seen_since_the_last_restart(tmp_path: Path) -> None:
    append_event(tmp_path, "killed", what="of an earlier start")
    again = Restarts(tmp_path)
    assert again.may_go_on(KILLED)
    append_event(tmp_path, "killed", what="its kernel was killed")
    assert again.may_go_on(KILLED)
    append_event(tmp_path, "error", kind="silent", where="", what="rank 1 is silent", remedy="")
    assert again.may_go_on(KILLED)
    assert again.causes == [
        "one of its processes was killed",
        "its kernel was killed",
        "rank 1 is silent",
    ]
    assert restarts.causes_of(read_events(tmp_path)) == again.causes
    assert restarts.sentence(again.causes) == (
        "restarted 3 times, the last time after rank 1 is silent"
    )
    assert restarts.sentence([]) == ""


def test_a_full_disk_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restarts, "append_event", full)
    assert not Restarts(tmp_path).may_go_on(KILLED)
