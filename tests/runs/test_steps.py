"""The record of each step: whole lines count, the newest one of a step, and of all ranks."""

import json
from pathlib import Path

import pytest

from neoxkit.errors import UserError
from neoxkit.runs import steps
from neoxkit.runs.steps import Conversation, Step

A, B, C = Conversation(3, 1.5, 2), Conversation(9, 0.25, 4), Conversation(4, 0.1, 1)


def test_steps_are_read_back_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    for number in (1, 2):
        steps.append(tmp_path, 1, number, [C], ranks=2)
        steps.append(tmp_path, 0, number, [A, B], ranks=2, grad_norm=0.1 + number)
    expected = Step(2, (A, B, C), 2.1, 2)
    assert steps.read(tmp_path, 2, 9) == {2: expected} and steps.of(tmp_path, 2) == expected
    assert expected.loss == pytest.approx(1.85 / 7)
    assert [*steps.read(tmp_path, 1, 2)] == [1, 2]


def test_the_newest_line_of_a_step_counts_and_half_a_line_does_not(tmp_path: Path) -> None:
    steps.append(tmp_path, 0, 1, [A], ranks=1, grad_norm=1.0)
    path = tmp_path / steps.FOLDER / "rank-0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step":2,"ranks":1,"conv')
    steps.append(tmp_path, 0, 1, [B], ranks=1, grad_norm=None)
    assert steps.read(tmp_path, 0, 9) == {1: Step(1, (B,), None, 1)}


def test_a_step_that_not_every_rank_recorded_is_left_out(tmp_path: Path) -> None:
    steps.append(tmp_path, 0, 1, [A], ranks=2, grad_norm=1.0)
    assert steps.read(tmp_path, 0, 9) == {}
    steps.append(tmp_path, 1, 1, [B], ranks=3)  # of an attempt with other ranks
    assert steps.read(tmp_path, 0, 9) == {}
    steps.append(tmp_path, 1, 1, [B], ranks=2)
    assert len(steps.of(tmp_path, 1).conversations) == 2


def test_ranks_that_are_no_more_do_not_count(tmp_path: Path) -> None:
    for rank in (0, 1):
        steps.append(tmp_path, rank, 1, [A], ranks=2)
    steps.append(tmp_path, 0, 1, [A, B], ranks=1, grad_norm=2.0)
    assert steps.of(tmp_path, 1) == Step(1, (A, B), 2.0, 1)


def test_a_step_without_a_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of step 3, nor of any other: it was trained"):
        steps.of(tmp_path, 3)
    steps.append(tmp_path, 0, 1, [A], ranks=1)
    with pytest.raises(UserError, match=r"has no record of step 3 -- choose one from 1 to 1"):
        steps.of(tmp_path, 3)


def test_every_bit_counts(tmp_path: Path) -> None:
    was = Step(1, (A, B), 0.1, 1)
    assert steps.differences(was, Step(1, (A, B), 0.1, 1)) == []
    assert steps.differences(was, Step(1, (B, A), 0.1, 1)) == [
        "other conversations, or in another order"
    ]
    next_to = Conversation(9, 0.25 + 2**-54, 4)
    (said,) = steps.differences(was, Step(1, (A, next_to), 0.1, 1))
    assert said.startswith("the losses of 1 of 2 conversations, by up to 1.39e-17 nats")
    (said,) = steps.differences(was, Step(1, (A, B), 0.1 + 2**-56, 1))
    assert said.startswith("the norm of the gradient, 0.1 then and 0.10000000000000002 now")


def test_losses_keep_every_bit_in_the_file(tmp_path: Path) -> None:
    odd = Conversation(1, 0.1 + 0.2, 1)
    steps.append(tmp_path, 0, 1, [odd], ranks=1, grad_norm=1 / 3)
    assert steps.of(tmp_path, 1) == Step(1, (odd,), 1 / 3, 1)
    lines = (tmp_path / steps.FOLDER / "rank-0.jsonl").read_text().split()
    assert [json.loads(line)["step"] for line in lines] == [1]
