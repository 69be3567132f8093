"""Rows in the columns of public data sets become the same conversation."""

import json
from pathlib import Path
from typing import Any

import pytest

from neoxkit.data import reading
from neoxkit.data.conversation import Turn
from neoxkit.errors import UserError
from neoxkit.settings import TokenizeSettings

ASK, SAY = "How much is 2 and 3?", "2 plus 3 is 5."
HH = f"\n\nHuman: {ASK}\n\nAssistant: {SAY}"
MESSAGES = [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]
SENT = [{"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "ShareGPT: conversations[].from/value": {"conversations": SENT},
    "hh-rlhf: chosen": {"chosen": HH},
    "Alpaca: instruction, output": {"instruction": ASK, "output": SAY},
    "Dolly: instruction, response": {"instruction": ASK, "response": SAY},
    "prompt and completion: prompt, completion": {"prompt": ASK, "completion": SAY},
    "prompt and response: prompt, response": {"prompt": ASK, "response": SAY},
    "question and answer: question, answer": {"question": ASK, "answer": SAY},
    "query and response: query, response": {"query": ASK, "response": SAY},
    "input and output: input, output": {"input": ASK, "output": SAY},
}


def read(tmp_path: Path, *rows: Any, name: str = "t.jsonl", **options: Any) -> Any:
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    return reading.read(tmp_path / name, **options)


def refusal(tmp_path: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        read(tmp_path, *rows, **options)
    return str(refused.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
@pytest.mark.parametrize("said", ROWS)
def test_each_known_shape_gives_the_same_turns(tmp_path: Path, said: str, name: str) -> None:
    file = read(tmp_path, ROWS[said], ROWS[said], name=name)
    turns = (Turn("user", ASK), Turn("agent", SAY))
    assert [c.turns for c in file.conversations] == [turns, turns]
    assert f"2 conversations (read as {said}); User asks 2 times" in file.sentences()[0]
    assert file.facts.notes == {}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": ASK, "input": "", "output": SAY}, ASK),
        ({"instruction": ASK, "input": "Slowly.", "output": SAY}, f"{ASK}\n\nSlowly."),
        ({"instruction": ASK, "context": "A sum.", "response": SAY}, f"{ASK}\n\nA sum."),
    ],
)
def test_a_second_column_follows_the_question(tmp_path: Path, row: dict, asked: str) -> None:
    (conversation,) = read(tmp_path, row).conversations
    assert conversation.turns == (Turn("user", asked), Turn("agent", SAY))


def test_what_goes_before_the_first_turn_is_the_preamble(tmp_path: Path) -> None:
    system = {"from": "system", "value": "Be brief."}
    rows = ({"conversations": [system, *SENT]}, {"conversations": SENT})
    assert [c.preamble for c in read(tmp_path, *rows).conversations] == ["Be brief.", ""]
    alpaca = {"instruction": ASK, "output": SAY, "system": "Be brief."}
    assert read(tmp_path, alpaca).conversations[0].preamble == "Be brief."
    given = {"user": "q", "agent": "a", "system": "s"}
    own = read(tmp_path, {"q": ASK, "a": SAY, "s": "Be brief."}, columns=given)
    assert own.conversations[0].preamble == "Be brief."


def test_replies_in_a_prompt_are_context(tmp_path: Path) -> None:
    last = [{"role": "assistant", "content": "Five."}]
    prompt = [*MESSAGES, {"role": "user", "content": "In a word?"}]
    (conversation,) = read(tmp_path, {"prompt": prompt, "completion": last}).conversations
    assert [turn.trained for turn in conversation.turns if turn.role == "agent"] == [False, True]


def test_a_rejected_answer_is_not_read_and_said(tmp_path: Path) -> None:
    file = read(tmp_path, {"chosen": HH, "rejected": HH.replace(SAY, "Six.")})
    assert file.conversations[0].turns[1].text == SAY
    assert file.facts.notes == {'not read: "rejected"': [1]}


def test_unknown_columns_are_refused_with_a_mapping_that_works(tmp_path: Path) -> None:
    """Paste what the refusal proposes."""
    row = {"id": 7, "frage": ASK, "antwort": SAY}
    said = refusal(tmp_path, row)
    assert said == (
        "t.jsonl:1: no column is known: id, frage, antwort -- "
        "set columns to {user: frage, agent: antwort}, or to others of them"
    )
    columns = {"user": "frage", "agent": "antwort"}
    assert TokenizeSettings(train_file="t.jsonl", columns=columns).columns == columns
    file = read(tmp_path, row, columns=columns)
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))
    assert file.facts.notes == {'not read: "id"': [1]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "A page."}], "t.jsonl:1: holds documents without turns, which are not read yet"),
        ([{"n": 1}], 't.jsonl:1: no column is known: n -- write {"messages": [...]}'),
        (
            [{"instruction": ASK, "output": SAY}, {"instruction": ASK}],
            't.jsonl:2: has no "output", which the first row has -- write all rows in the same',
        ),
        (
            [{"question": ASK, "answer": SAY}, {"question": ASK, "answer": 5}],
            't.jsonl:2: "answer" is not text -- write it as one string',
        ),
        ([{"chosen": SAY}], 't.jsonl:1: "chosen" does not begin with "Human:"'),
        ([{"conversations": ["Hi"]}], 't.jsonl:1: "conversations" is not a list of turns'),
        (
            [{"conversations": [{"from": "tool", "value": "5"}]}],
            "t.jsonl:1: role 'tool' can't be read -- use system (first), user, assistant",
        ),
        ([3], "t.jsonl:1: is not an object"),
    ],
)
def test_a_row_that_can_not_be_read_is_refused_by_its_line(
    tmp_path: Path, rows: list, said: str
) -> None:
    assert refusal(tmp_path, *rows).startswith(said)


def test_rows_of_another_shape_are_left_out_and_counted_if_told_to(tmp_path: Path) -> None:
    file = read(tmp_path, ROWS["messages"], {"instruction": ASK}, bad_rows="skip")
    assert file.facts.conversations == 1
    assert [*file.facts.notes.values()] == [[2]]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"user": "q", "agent": "a"}, "columns: 'q' is not among frage, antwort"),
        ({"user": "frage"}, "columns: got {'user': 'frage'} -- name a column for user and agent"),
        ({"asks": "frage", "agent": "antwort"}, "columns: got asks: 'frage' -- write {user: ask"),
        ({"user": 3, "agent": "antwort"}, "columns: got user: 3 -- write {user: ask, agent: say}"),
    ],
)
def test_columns_that_are_not_there_or_not_named_are_refused(
    tmp_path: Path, columns: dict, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        settings = TokenizeSettings(train_file="t.jsonl", columns=columns)
        read(tmp_path, {"frage": ASK, "antwort": SAY}, columns=settings.columns)
    assert str(refused.value).startswith(said)
