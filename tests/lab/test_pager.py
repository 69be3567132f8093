"""data.py without a browser: what the widgets show."""

from typing import Any

import pytest
from conftest import Outputs
from small_talk import EVAL, TRAIN

from neoxkit.data import audit
from neoxkit.lab import data, frontend, view
from neoxkit.models import loading
from neoxkit.settings import TINY

SIDES = {"train": TRAIN, "eval": EVAL}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Outputs:
    outputs = Outputs()
    monkeypatch.setattr(data, "display", outputs)
    monkeypatch.setattr(frontend, "display", outputs)
    return outputs


def pages(outputs: Outputs) -> data.Pager:
    return data.pages(SIDES, audit.findings(SIDES), loading.load_tokenizer(TINY))


def page_of(row: Any) -> view.View:
    return data.trained_tokens(row, loading.load_tokenizer(TINY))


def test_it_begins_at_the_first_conversation_and_turns_pages(shown: Outputs) -> None:
    pager = pages(shown)
    assert "the training set: 5" in shown[0]["text/plain"]
    assert shown[-1] == page_of(TRAIN[0]) and pager.number.max == 5
    back, on = pager.box.children[1].children[1:]
    on.click()
    assert shown[-1] == page_of(TRAIN[1])
    pager.number.value = 5
    assert shown[-1] == page_of(TRAIN[4])
    on.click()  # there is no sixth
    assert shown[-1] == page_of(TRAIN[4]) and pager.number.value == 5
    back.click()
    assert shown[-1] == page_of(TRAIN[3])


def test_each_finding_leads_to_its_conversations(shown: Outputs) -> None:
    pager = pages(shown)
    names = [name for _, name in pager.kind.options]
    assert names[:2] == ["the training set", "the held-out set"]
    assert len(names) == len(set(names))
    for finding in audit.findings(SIDES):
        for side, rows in finding.rows.items():
            name = f"{data.SETS[side]}: {finding.what}"
            assert (name in names) == (len(rows) > 0)
            if len(rows):
                pager.number.value = pager.number.max
                pager.kind.value = name
                assert shown[-1] == page_of(rows[0])
                assert (pager.number.value, pager.number.max) == (1, len(rows))


def test_the_longer_kind_after_a_shorter_one_pages_on(shown: Outputs) -> None:
    pager = pages(shown)
    pager.kind.value = "training set: repeats another one exactly"
    assert pager.number.max == 1 and shown[-1] == page_of(TRAIN[1])
    pager.kind.value = "the training set"
    assert pager.number.max == 5 and shown[-1] == page_of(TRAIN[0])
