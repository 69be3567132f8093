"""Heartbeats: how long a rank may be silent, and who notices."""

import json
import os
from pathlib import Path

import pytest

from neoxkit.errors import UserError
from neoxkit.runs import heartbeat


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def allowed(folder: Path) -> float:
    sign = json.loads((folder / heartbeat.FOLDER / "3").read_text())
    assert sign["pid"] == os.getpid()
    return sign["allowed"]


def test_a_rank_is_there_while_it_writes_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a TERM at that moment would end the training without a save."""
    signs, watch = heartbeat.Signs(tmp_path, 0), heartbeat.Watch(tmp_path)
    signs.give()
    write, seen = Path.write_text, []

    def slowly(path: Path, text: str) -> None:
        write(path, text[:9])
        seen.append(watch.ranks())
        write(path, text)

    monkeypatch.setattr(Path, "write_text", slowly)
    signs.stepped(30.0)
    assert seen == [[os.getpid()]] == [watch.ranks()]


def test_a_heartbeat_allows_ten_median_steps_and_at_least_two_minutes(
    tmp_path: Path, clock: Clock
) -> None:
    signs = heartbeat.Signs(tmp_path, 3)
    signs.give()
    assert allowed(tmp_path) == 1800  # the first step may compile
    signs.stepped(1.0)
    assert allowed(tmp_path) == 120
    for seconds in (20.0, 900.0, 20.0):
        signs.stepped(seconds)
    assert allowed(tmp_path) == 200
    signs.give(silent=True)
    assert allowed(tmp_path) == 1800
    signs.give()
    assert allowed(tmp_path) == 200


def test_heartbeats_are_written_at_most_twice_a_second(tmp_path: Path, clock: Clock) -> None:
    signs, path = heartbeat.Signs(tmp_path, 3), tmp_path / heartbeat.FOLDER / "3"
    signs.give()
    path.unlink()
    clock.now += 0.4
    signs.give()
    assert not path.exists()
    clock.now += 0.1
    signs.give()
    assert path.exists()


def test_a_rank_is_silent_without_a_heartbeat_for_longer_than_it_announced(
    tmp_path: Path, clock: Clock
) -> None:
    watch = heartbeat.Watch(tmp_path)
    assert watch.silent() is None and watch.ranks() == []
    one, two = heartbeat.Signs(tmp_path, 0), heartbeat.Signs(tmp_path, 1)
    one.stepped(1.0)
    two.stepped(1.0)
    assert watch.ranks() == [os.getpid()] * 2 and watch.silent() is None
    look_for(119, watch, clock)
    assert watch.silent() is None
    one.give()
    os.utime(tmp_path / heartbeat.FOLDER / "0", ns=(1, 1))  # a different time, even an older one
    assert watch.silent() is None
    clock.now += 2
    assert watch.silent() == heartbeat.Silent("1", os.getpid(), 121)


def look_for(seconds: int, watch: heartbeat.Watch, clock: Clock) -> None:
    """The guard checks every second."""
    for _ in range(seconds):
        clock.now += 1
        watch.silent()


def test_a_machine_that_stood_still_does_not_make_a_rank_silent(
    tmp_path: Path, clock: Clock
) -> None:
    watch, signs = heartbeat.Watch(tmp_path), heartbeat.Signs(tmp_path, 0)
    signs.stepped(1.0)
    look_for(5, watch, clock)
    clock.now += 3600  # the guard did not look either
    assert watch.silent() is None
    look_for(119, watch, clock)
    assert watch.silent() is None
    look_for(2, watch, clock)
    assert watch.silent() is not None
    signs.over()
    assert watch.silent() is None and watch.ranks() == []


def test_a_heartbeat_that_is_being_written_is_ignored(tmp_path: Path, clock: Clock) -> None:
    heartbeat.Signs(tmp_path, 0).give()
    watch = heartbeat.Watch(tmp_path)
    watch.forget()
    assert watch.ranks() == []
    (tmp_path / heartbeat.FOLDER / "0").write_text('{"pid')
    clock.now += 1e6
    assert watch.ranks() == [] and watch.silent() is None


def test_a_stage_before_the_first_step_is_no_step(tmp_path: Path) -> None:
    """A TERM during it ends the training at once: there is nothing to save, and nobody listens."""
    signs, watch = heartbeat.Signs(tmp_path, 0), heartbeat.Watch(tmp_path)
    for stage in heartbeat.STAGES:
        signs.begin(stage)
        assert watch.ranks() == [] and heartbeat.stage(tmp_path)[0] == stage
    signs.begin(heartbeat.EVALUATING)  # a stop request is carried out after the first step
    assert watch.ranks() == [os.getpid()]
    signs.begin(heartbeat.FIRST_STEP)
    signs.give()
    assert watch.ranks() == [os.getpid()]
    assert heartbeat.stage(tmp_path)[0] == heartbeat.FIRST_STEP
    signs.stepped(1.0)
    assert watch.ranks() == [os.getpid()] and heartbeat.stage(tmp_path)[0] == ""


def test_the_stage_is_the_one_of_the_rank_that_is_furthest_behind(
    tmp_path: Path, clock: Clock
) -> None:
    assert heartbeat.stage(tmp_path) == ("", 0)
    heartbeat.Signs(tmp_path, 0).begin(heartbeat.PREPARING)
    heartbeat.Signs(tmp_path, 1).begin(heartbeat.COMPILING, "cpu_adam")
    os.utime(tmp_path / heartbeat.FOLDER / "1", (clock.time() - 40, clock.time() - 40))
    assert heartbeat.stage(tmp_path) == ("compiling cpu_adam", 40)


def test_a_stage_says_how_far_it_has_come(tmp_path: Path, clock: Clock) -> None:
    signs = heartbeat.Signs(tmp_path, 3)
    signs.begin(heartbeat.LOADING)
    clock.now += 1
    signs.tell("(weights 2 of 3)")
    assert heartbeat.stage(tmp_path)[0] == "loading the model (weights 2 of 3)"
    assert allowed(tmp_path) == 1800
    signs.begin(heartbeat.PREPARING)
    assert heartbeat.stage(tmp_path)[0] == heartbeat.PREPARING


def test_a_stage_has_half_an_hour_or_more_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, seconds in (("3", 1800), ("7200", 7200)):
        monkeypatch.setenv(heartbeat.LIMIT, limit)
        heartbeat.Signs(tmp_path, 3).begin(heartbeat.LOADING)
        assert allowed(tmp_path) == seconds


@pytest.mark.parametrize("ahead", [heartbeat.PREPARING, heartbeat.FIRST_STEP])
def test_a_rank_that_stands_still_before_its_first_step_is_named_with_its_stage(
    tmp_path: Path, clock: Clock, ahead: str
) -> None:
    """The other one waits for it, and may have been silent for longer."""
    watch = heartbeat.Watch(tmp_path)
    heartbeat.Signs(tmp_path, 0, 2).begin(ahead)
    look_for(10, watch, clock)
    heartbeat.Signs(tmp_path, 1, 2).begin(heartbeat.READING)
    look_for(1791, watch, clock)
    assert watch.silent() is None
    clock.now += 1
    assert watch.silent() == heartbeat.Silent("1", os.getpid(), 1791, "reading the dataset")


def test_a_rank_that_never_came_is_the_one_that_is_named(tmp_path: Path, clock: Clock) -> None:
    watch = heartbeat.Watch(tmp_path)
    look_for(100, watch, clock)
    heartbeat.Signs(tmp_path, 0, 2).begin(heartbeat.MEETING)
    look_for(1801, watch, clock)
    assert watch.silent() is None
    look_for(1, watch, clock)
    assert watch.silent() == heartbeat.Silent("1", 0, 1902, "importing libraries")


def test_without_any_heartbeat_a_start_is_silent_after_half_an_hour(
    tmp_path: Path, clock: Clock
) -> None:
    watch = heartbeat.Watch(tmp_path)
    look_for(1800, watch, clock)
    assert watch.silent() is None
    clock.now += 1
    assert watch.silent() == heartbeat.Silent("0", 0, 1801, "importing libraries")


def test_work_excuses_the_start_and_not_a_step(tmp_path: Path, clock: Clock) -> None:
    watch, signs = heartbeat.Watch(tmp_path), heartbeat.Signs(tmp_path, 0)
    for begin in (lambda: None, lambda: signs.begin(heartbeat.LOADING)):
        begin()
        look_for(1800, watch, clock)
        watch.excuse()
        look_for(1800, watch, clock)
        assert watch.silent() is None
    signs.begin(heartbeat.FIRST_STEP)
    look_for(1800, watch, clock)
    watch.excuse()
    look_for(2, watch, clock)
    assert watch.silent() == heartbeat.Silent("0", os.getpid(), 1801, "taking the first step")


def test_a_rank_writes_nothing_before_its_run_folder_exists(tmp_path: Path) -> None:
    """A start that is refused leaves no folder."""
    signs = heartbeat.Signs(tmp_path / "run", 0)
    signs.begin(heartbeat.READING)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    signs.begin(heartbeat.LOADING)
    assert heartbeat.stage(tmp_path / "run")[0] == heartbeat.LOADING


def test_a_wrong_limit_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEOXKIT_STALL_SECONDS", "soon")
    with pytest.raises(UserError, match=r"^NEOXKIT_STALL_SECONDS: must be a number"):
        heartbeat.Signs(tmp_path, 0)


def test_a_rank_on_another_host_is_there_and_has_no_process_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to its id would reach whatever has that id on this host."""
    watch = heartbeat.Watch(tmp_path)
    heartbeat.Signs(tmp_path, 0).stepped(1.0)
    with monkeypatch.context() as there:
        there.setattr(heartbeat.platform, "node", lambda: "n2")
        heartbeat.Signs(tmp_path, 1).stepped(1.0)
    assert watch.ranks() == [os.getpid()] * 2 and watch.ranks_here() == [os.getpid()]
