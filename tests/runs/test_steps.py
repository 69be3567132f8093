"""The record of each step: whole lines count, the newest one of a step, and of all ranks."""

from dataclasses import replace
from pathlib import Path

import pytest

from neoxkit.errors import UserError
from neoxkit.runs import steps
from neoxkit.runs.steps import Attempt, Step, Taken

A, B, C = Taken(3, 1.5, 2), Taken(9, 0.25, 4), Taken(4, 0.1, 1)


def start(ranks: int = 1, resumed: int = 0, **arguments: object) -> Attempt:
    return Attempt(resumed, ranks, "2", False, arguments)


def begin(folder: Path, ranks: int, resumed: int = 0) -> None:
    for rank in range(ranks):
        steps.begin(folder, rank, start(ranks, resumed))


def test_steps_are_read_back_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    for number in (1, 2):
        steps.append(tmp_path, 1, number, [C])
        steps.append(tmp_path, 0, number, [A, B], 0.1 + number)
    expected = Step(2, (A, B, C), 2.1, start(2))
    assert steps.recorded(tmp_path, 2, 9) == {2: expected} and steps.at(tmp_path, 2) == expected
    assert steps.at(tmp_path, 2).start == start(2)
    assert expected.loss == pytest.approx(1.85 / 7)
    assert [*steps.recorded(tmp_path, 1, 2)] == [1, 2]


def test_a_start_takes_back_what_was_recorded_after_its_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    for number in range(1, 6):
        steps.append(tmp_path, 0, number, [A], 1.0)
    begin(tmp_path, 1, resumed=3)
    assert [*steps.recorded(tmp_path, 0, 9)] == [1, 2, 3]
    steps.append(tmp_path, 0, 4, [B], 2.0)
    found = steps.recorded(tmp_path, 0, 9)
    assert found[4] == Step(4, (B,), 2.0, start()) and [*found] == [1, 2, 3, 4]
    assert [one.start.resumed for one in found.values()] == [0, 0, 0, 3]


def test_half_a_line_does_not_count_and_spoils_no_other(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    path = tmp_path / steps.FOLDER / "rank-0.jsonl"
    for half in (b'{"step":2,"ranks":1,"conv', b'{"st', b'{"start":{"ra'):
        path.write_bytes(path.read_bytes() + half)
    steps.append(tmp_path, 0, 1, [B])
    assert steps.recorded(tmp_path, 0, 9) == {1: Step(1, (B,), None, start())}


def test_a_step_that_not_every_rank_recorded_is_left_out(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    steps.append(tmp_path, 0, 1, [A], 1.0)
    assert steps.recorded(tmp_path, 0, 9) == {}
    steps.append(tmp_path, 1, 1, [B])
    assert len(steps.at(tmp_path, 1).conversations) == 2


def test_ranks_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    for rank in (0, 1):
        steps.append(tmp_path, rank, 1, [A])
    begin(tmp_path, 1)
    steps.append(tmp_path, 0, 1, [A, B], 2.0)
    assert steps.at(tmp_path, 1) == Step(1, (A, B), 2.0, start())
    begin(tmp_path, 3)
    steps.append(tmp_path, 0, 1, [A])
    assert steps.recorded(tmp_path, 0, 9) == {}


def test_a_rank_that_has_not_begun_again_does_not_count(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    for rank in (0, 1):
        steps.append(tmp_path, rank, 1, [A])
    for rank in (0, 2):  # of three; the second was killed before it began
        steps.begin(tmp_path, rank, start(3))
        steps.append(tmp_path, rank, 1, [A])
    assert steps.recorded(tmp_path, 0, 9) == {}


def test_a_step_without_a_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of step 3, nor of any other: it was trained"):
        steps.at(tmp_path, 3)
    begin(tmp_path, 1)
    steps.append(tmp_path, 0, 1, [A])
    with pytest.raises(UserError, match=r"has no record of step 3 -- choose one from 1 to 1"):
        steps.at(tmp_path, 3)
    begin(tmp_path, 1)  # from the base: step 1 was taken back
    with pytest.raises(UserError, match="no record of step 1, nor of any other"):
        steps.at(tmp_path, 1)
    with pytest.raises(UserError, match="gone does not exist -- see neoxkit runs"):
        steps.at(tmp_path / "gone", 3)


def test_starts_with_other_settings_ranks_or_threads_give_something_else() -> None:
    first = start(2, 4, rate=0.1, num_replies=3)
    for same in (start(2, 8, rate=0.1), start(2, 4, rate=0.1, until_step=7, allow_change=["seed"])):
        assert first.computes_like(same)
    for other in (
        start(1, 4, rate=0.1),
        start(2, 4, rate=0.2),
        start(2, 4, rate=0.1, dataset_sha256="x"),
        replace(first, threads="1"),
    ):
        assert not first.computes_like(other)


def test_every_bit_counts() -> None:
    def step(*conversations: Taken, norm: float = 0.1) -> Step:
        return Step(1, conversations, norm, start())

    assert steps.differences(step(A, B), step(A, B)) == []
    other = ["other conversations, or in another order"]
    assert steps.differences(step(A, B), step(B, A)) == other
    (said,) = steps.differences(step(A, B), step(A, Taken(9, 0.25 + 2**-54, 4)))
    assert said.startswith("the losses of 1 of 2 conversations, by up to 1.39e-17 nats")
    (said,) = steps.differences(step(A, B), step(A, B, norm=0.1 + 2**-56))
    assert said == "the norm of the gradient, 0.1 then and 0.10000000000000002 now"


def test_losses_keep_every_bit_in_the_file(tmp_path: Path) -> None:
    odd = Taken(1, 0.1 + 0.2, 1)
    begin(tmp_path, 1)
    steps.append(tmp_path, 0, 1, [odd], 1 / 3)
    assert steps.at(tmp_path, 1) == Step(1, (odd,), 1 / 3, start())
