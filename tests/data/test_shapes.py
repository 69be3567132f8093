"""Rows in the columns of public data sets become the same conversation."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from neoxkit.cli import parameters
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
    "Guanaco: text": {"text": f"### Human: {ASK}### Assistant: {SAY}"},
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
        "set columns to {user: frage, agent: antwort}, or the other way round"
    )
    columns = {"user": "frage", "agent": "antwort"}
    assert TokenizeSettings(train_file="t.jsonl", columns=columns).columns == columns
    file = read(tmp_path, row, columns=columns)
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))
    assert file.facts.notes == {'not read: "id"': [1]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"text": "A page."}],
            "t.jsonl:1: has no turns, only a text: text -- set train_on to all: each text is a",
        ),
        (
            [{"text": f"<|im_start|>user\n{ASK}<|im_end|>"}],
            't.jsonl:1: its turns are inside a text: text -- write {"messages": [...]}, or set',
        ),
        ([{"text": "### Human: Hi"}, {"text": ASK}], 't.jsonl:2: "text" does not begin with "##'),
        ([{"n": 1}], 't.jsonl:1: no column is known: n -- write {"messages": [...]}'),
        (
            [{"instruction": ASK, "output": SAY}, {"instruction": ASK}],
            't.jsonl:2: has no "output", by which the file is read as Alpaca -- write all rows',
        ),
        (
            [{"question": ASK, "answer": SAY}, {"question": ASK, "answer": 5}],
            't.jsonl:2: "answer" is not text -- write it as one string',
        ),
        ([{"chosen": SAY}], 't.jsonl:1: "chosen" does not begin with "Human:"'),
        ([{"conversations": ["Hi"]}], 't.jsonl:1: "conversations" is not a list of turns'),
        (
            [{"conversations": [{"from": "tool", "value": "5"}]}],
            "t.jsonl:1: \"from\" 'tool' can't be read -- use system (first), human, gpt",
        ),
        ([3], "t.jsonl:1: is not an object"),
        ([{"prompt": ["hi"], "completion": ["x"]}], 't.jsonl:1: "prompt" is not a list of turns'),
        ([{"instruction": None, "output": SAY}], 't.jsonl:1: "instruction" is not text'),
        ([{"instruction": ASK, "input": 0, "output": SAY}], 't.jsonl:1: "input" is not text'),
        ([{"chosen": MESSAGES[1:]}], 't.jsonl:1: "chosen" begins with an answer, and no "prompt"'),
        (
            [{"instruction": ASK, "output": SAY, "history": [["a", "b"]]}],
            't.jsonl:1: "history" holds earlier turns, which are not read -- write all turns',
        ),
        ([{"a": "1", "b": "2", "c": "3"}], "t.jsonl:1: no column is known: a, b, c -- set columns"),
        (
            [{"conversations": [{"from": "human", "value": None}]}],
            't.jsonl:1: "value" is not text -- write each value as one string',
        ),
        ([{"messages": "[]"}], 't.jsonl:1: "messages" is text, not a list of messages'),
        (
            [{"prompt": ASK, "chosen": SAY, "rejected": "No."}],
            't.jsonl:1: "chosen" has no turns -- set columns to {user: prompt, agent: chosen}',
        ),
        (
            MESSAGES,
            't.jsonl:1: is a message, not a conversation -- write each conversation as {"messages"',
        ),
        (
            [{"data": [{"messages": MESSAGES}]}],
            't.jsonl:1: no column is known: data -- write the list in "data" alone',
        ),
    ],
)
def test_a_row_that_can_not_be_read_is_refused_by_its_line(
    tmp_path: Path, rows: list, said: str
) -> None:
    assert refusal(tmp_path, *rows).startswith(said)


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
@pytest.mark.parametrize("said", [None, "", "Let me look."])
def test_a_turn_that_calls_a_tool_is_refused_by_that(
    tmp_path: Path, said: str | None, key: str
) -> None:
    """Its text alone would be trained on as the whole turn."""
    call = {"role": "assistant", "content": said, key: [{"function": {"name": "add"}}]}
    row = {"messages": [MESSAGES[0], call, {"role": "tool", "content": "5"}, MESSAGES[1]]}
    assert refusal(tmp_path, row) == (
        f't.jsonl:1: "{key}" can\'t be read -- leave the row out: bad_rows skip'
    )
    assert len(read(tmp_path, ROWS["messages"], row, bad_rows="skip").conversations) == 1
    without = {"messages": [MESSAGES[0], MESSAGES[1] | {key: None}]}
    assert len(read(tmp_path, without).conversations) == 1


@pytest.mark.parametrize(
    ("turns", "said"),
    [(MESSAGES, "messages: talk"), (SENT, "ShareGPT: talk[].from/value")],
)
def test_turns_in_a_column_of_another_name_are_read_as_the_refusal_proposes(
    tmp_path: Path, turns: list, said: str
) -> None:
    row = {"id": 1, "talk": [turns[0] | {"language": "English"}, turns[1]]}
    assert refusal(tmp_path, row) == (
        "t.jsonl:1: no column is known: id, talk -- set columns to {messages: talk}"
    )
    columns = TokenizeSettings(train_file="t.jsonl", columns={"messages": "talk"}).columns
    file = read(tmp_path, row, columns=columns)
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))
    assert f"(read as {said})" in file.sentences()[0]
    assert file.facts.notes == {'not read: "id"': [1], 'not read: "talk[].language"': [1]}
    for nothing in (None, []):  # in the first row: the next one says how turns are written
        file = read(tmp_path, {"talk": nothing}, row, columns=columns, bad_rows="skip")
        assert file.facts.conversations == 1
    other = refusal(tmp_path, row, {"talk": "Hi"}, columns=columns)
    assert other.startswith('t.jsonl:2: "talk" is ')


def test_a_text_with_turns_in_it_is_read_as_turns_whatever_is_trained_on(tmp_path: Path) -> None:
    text = f"### Human: {ASK}\n### Assistant: {SAY}### Human: Sure?### Assistant: Yes."
    file = read(tmp_path, {"text": text}, documents=True)
    assert [turn.text for turn in file.conversations[0].turns] == [ASK, SAY, "Sure?", "Yes."]
    assert not file.form.holds_documents


NAMES = ("yes", "1", " answer", "What is up?", "it's: {x}", "1e5", "a#b", "#", 'say "a"', "frage")


@pytest.mark.parametrize("name", NAMES)
def test_a_mapping_of_odd_names_works_as_it_is_pasted(tmp_path: Path, name: str) -> None:
    """In a YAML file, and in a shell between the quotes that the README shows."""
    row = {name: ASK, "antwort": SAY}
    said = refusal(tmp_path, row)
    pasted = said.partition("set columns to ")[2].partition(", or the other")[0]
    assert shlex.split(f"-p columns '{pasted}'")[2] == pasted
    columns = parameters.read([], [("columns", pasted)])["columns"]
    assert columns == {"user": name, "agent": "antwort"}
    (tmp_path / "p.yaml").write_text(f"columns: {pasted}\n", encoding="utf-8")
    assert parameters.read([str(tmp_path / "p.yaml")], [])["columns"] == columns
    assert TokenizeSettings(train_file="t.jsonl", columns=columns).columns == columns
    assert read(tmp_path, row, columns=columns).facts.replies == 1


def test_a_column_of_texts_is_named_for_documents(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"content": "A page."}, documents=True)
    assert said == "t.jsonl:1: no column is known: content -- set columns to {text: content}"


def test_chosen_may_have_line_ends_of_windows(tmp_path: Path) -> None:
    file = read(tmp_path, {"chosen": HH.replace("\n", "\r\n")})
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))


def test_rows_of_another_shape_are_left_out_and_counted_if_told_to(tmp_path: Path) -> None:
    file = read(tmp_path, ROWS["messages"], {"instruction": ASK}, bad_rows="skip")
    assert file.facts.conversations == 1
    assert [*file.facts.notes.values()] == [[2]]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"user": "q", "agent": "a"},
            "t.jsonl:1: 'q', named in columns, is not among frage, antwo",
        ),
        (
            {"user": "frage", "agent": "frage"},
            "columns: got {'user': 'frage', 'agent': 'frage'} --",
        ),
        ({"user": "frage"}, "columns: got {'user': 'frage'} -- name columns for user and agent"),
        (
            {"user": "frage", "messages": "antwort"},
            "columns: got {'user': 'frage', 'messages': 'antwort'} -- name columns for user and ag",
        ),
        ({"asks": "frage", "agent": "antwort"}, "columns: got asks: 'frage' -- write {user: ask"),
        ({"user": 3, "agent": "antwort"}, "columns: got user: 3 -- write the column's name in"),
    ],
)
def test_columns_that_are_not_there_or_not_named_are_refused(
    tmp_path: Path, columns: dict, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        settings = TokenizeSettings(train_file="t.jsonl", columns=columns)
        read(tmp_path, {"frage": ASK, "antwort": SAY}, columns=settings.columns)
    assert str(refused.value).replace(f"{tmp_path}/", "").startswith(said)


def test_a_preference_with_its_prompt_apart_has_its_question(tmp_path: Path) -> None:
    apart = {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]}
    whole = {"prompt": MESSAGES[:1], "chosen": MESSAGES, "rejected": MESSAGES}
    for row in (apart, whole):
        file = read(tmp_path, row)
        assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))
        assert file.facts.notes == {'not read: "rejected"': [1]}


def test_nothing_of_a_row_is_lost_without_a_word(tmp_path: Path) -> None:
    trl = {"system": "Be brief.", "prompt": MESSAGES[:1], "completion": MESSAGES[1:]}
    assert read(tmp_path, trl).conversations[0].preamble == "Be brief."
    odd = {"conversations": [SENT[0], {**SENT[1], "loss": False}]}
    assert read(tmp_path, odd).facts.notes == {'not read: "conversations[].loss"': [1]}
    later = ({"instruction": ASK, "output": SAY}, {"instruction": ASK, "input": "x", "output": SAY})
    assert read(tmp_path, *later).facts.notes == {}
    assert read(tmp_path, *later).conversations[1].turns[0].text == f"{ASK}\n\nx"


@pytest.mark.parametrize("turns", [SENT, [{"role": "user", "content": ASK}, MESSAGES[1]]])
def test_the_turns_of_sharegpt_may_have_the_keys_of_messages(tmp_path: Path, turns: list) -> None:
    file = read(tmp_path, {"conversations": turns})
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))


def test_messages_that_are_null_give_way_to_other_columns(tmp_path: Path) -> None:
    file = read(tmp_path, {"messages": None, "prompt": ASK, "completion": SAY})
    assert file.conversations[0].turns == (Turn("user", ASK), Turn("agent", SAY))


def test_a_first_row_that_is_broken_or_long_does_not_decide_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.dumps({"prompt": ASK, "completion": SAY})
    (tmp_path / "t.jsonl").write_text(f"{{bad\n{row}\n")
    with pytest.raises(UserError, match=r"t\.jsonl:1: not JSON"):
        reading.read(tmp_path / "t.jsonl")
    assert reading.read(tmp_path / "t.jsonl", bad_rows="skip").facts.conversations == 1
    for module in ("chunks", "json_format"):
        monkeypatch.setattr(f"neoxkit.data.{module}.HEAD_BYTES", 20)
    for name in ("long.jsonl", "long.json"):
        file = read(tmp_path, ROWS["Alpaca: instruction, output"], name=name)
        assert file.facts.conversations == 1


def test_columns_are_refused_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    with pytest.raises(UserError, match=r"^columns: is for rows, and .*t\.txt is a text"):
        reading.read(tmp_path / "t.txt", columns={"user": "a", "agent": "b"})


def message(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": [*replies], **more}


def test_a_tree_gives_its_best_replies(tmp_path: Path) -> None:
    """The best has the lowest rank; one without a rank or that was deleted is not taken."""
    replies = (
        message("assistant", "worse", rank=1),
        message("assistant", "unranked"),
        message("assistant", "deleted", rank=0, deleted=True),
        message("assistant", SAY, message("prompter", "And?", message("assistant", "So.")), rank=0),
    )
    row = {
        "message_tree_id": "7",
        "tree_state": "ready",
        "prompt": message("prompter", ASK, *replies),
    }
    file = read(tmp_path, row)
    assert [turn.text for turn in file.conversations[0].turns] == [ASK, SAY, "And?", "So."]
    assert [turn.role for turn in file.conversations[0].turns] == ["user", "agent"] * 2
    assert (
        file.facts.notes == {} and file.form.said == "read as OASST trees, the best replies: prompt"
    )


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ({"deleted": True}, "the tree's first message is deleted"),
        ({"replies": 5}, '"replies" is not a list of turns'),
        ({"replies": ["x"]}, '"replies" is not a list of turns'),
        (
            {"replies": [message("assistant", SAY, rank="first")]},
            "\"rank\" is 'first', not a number",
        ),
        ({"text": None}, '"text" of a message is not text'),
    ],
)
def test_a_tree_that_is_no_tree_is_one_line(tmp_path: Path, root: dict, said: str) -> None:
    row = {"prompt": message("prompter", ASK, message("assistant", SAY)) | root}
    assert refusal(tmp_path, row).startswith(f"t.jsonl:1: {said} -- ")


def test_rows_of_text_are_documents_where_all_is_trained_on(tmp_path: Path) -> None:
    """Their text is trained from its second token to the end mark, without a label."""
    file = read(tmp_path, {"text": "A page.", "source": "x"}, {"text": "User: b"}, documents=True)
    assert [c.turns for c in file.conversations] == [
        (Turn("document", "A page."),), (Turn("document", "User: b"),)
    ]  # fmt: skip
    assert file.sentences()[0].endswith(
        "2 documents (read as documents: text), without turns: all of their text is trained on "
        "(too_long split keeps long ones, in parts)"
    )
    assert file.facts.notes == {'not read: "source"': [1]}


def test_a_column_of_documents_is_named(tmp_path: Path) -> None:
    columns = {"text": "body"}
    assert TokenizeSettings(columns=columns, train_on="all").columns == columns
    with pytest.raises(UserError, match=r"^columns: names the text of documents, .* to all"):
        TokenizeSettings(columns=columns)
    with pytest.raises(UserError, match=r"name text alone, or other roles"):
        TokenizeSettings(columns={**columns, "user": "a", "agent": "b"}, train_on="all")
    file = read(tmp_path, {"body": "A page.", "title": "x"}, columns=columns, documents=True)
    assert file.conversations[0].turns == (Turn("document", "A page."),)
