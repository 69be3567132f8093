"""errors.py: an error that crosses processes is the same on the other side."""

import json

import pytest

from neoxkit import errors
from neoxkit.errors import Faults, NotFinite, UserError

MISTAKES = [
    UserError("a: b", "what -- and: why", "do -- this: now"),
    UserError("block_size", "is " + "very " * 100 + "long", "choose 8"),
    NotFinite("learning_rate", "the loss is not finite at step 7", "lower it"),
    Faults([UserError("t.txt:1", "one", "mend"), UserError("t.txt:2", "two", "mend")]),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: type(mistake).__name__)
def test_an_error_comes_back_as_it_was(mistake: UserError) -> None:
    event = json.loads(json.dumps(errors.as_fields(mistake)))
    again = errors.from_fields(event)
    assert (
        (type(again), str(again))
        == (type(mistake), str(mistake))
        == (type(mistake), errors.sentence(event))
    )
    assert errors.as_fields(again) == event


def test_a_failure_that_is_not_a_users_mistake_is_its_own_sentence() -> None:
    event = {"kind": "failure", "where": "", "what": "RuntimeError: no", "remedy": ""}
    assert errors.sentence(event) == "RuntimeError: no"
