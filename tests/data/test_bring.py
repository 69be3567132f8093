"""Files as users bring them: the asking side says kiwi, the answering side says plum.

However a file is written, no kiwi is trained and every plum is, unless the file says otherwise.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neoxkit import paths
from neoxkit.data import chunks, encoding, reading, text_format
from neoxkit.data.examining import ConversationFile
from neoxkit.data.table import NOT_TRAINED
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.settings import TINY, TokenizeSettings

END = "<|endoftext|>"
TOKENIZER = loading.load_tokenizer(TINY)
Read = Callable[..., ConversationFile]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: str, name: str = "t.txt", **given: str) -> ConversationFile:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        return reading.read(tmp_path / name, **given)

    return read


def trained(file: ConversationFile) -> str:
    """Return the trained tokens of a file as text."""
    train_on = "all" if file.form.holds_documents else "agent"
    rows = encoding.encode_file(TOKENIZER, file, file.names, train_on)
    return TOKENIZER.decode([i for row in rows for i in row.labels.tolist() if i != NOT_TRAINED])


def talks(user: str, agent: str, between: str = "\n\n", end: str = f"{END}\n", num: int = 4) -> str:
    """Write conversations of one question and one reply, with these labels."""
    return "".join(f"{user}kiwi {i}?{between}{agent}plum {i}.{end}" for i in range(num))


TWICE = f"Human: kiwi\n\nAssistant: plum\n\nHuman: kiwi\n\nAssistant: plum{END}\n"
NOTES = "Note: one.\n\nExample: two.\n\nStep 1: three.\n\nAnswer: four.\n\n"
OPEN = f"User: kiwi\n\nAgent: plum\n```py\n1\n\nUser: kiwi\n\nAgent: plum:\n```\nx\n```{END}\n"
GOOD = {  # what: (content, plums, the names that are found)
    "Human and Assistant": (TWICE * 3, 6, ("Assistant", "Human")),
    "headings": (talks("### Instruction:\n", "### Response:\n"), 4, ("Response", "Instruction")),
    "short names": (talks("Q: ", "A: "), 4, ("A", "Q")),
    "unknown names": (talks("Ann: ", "Bob: "), 4, ("Bob", "Ann")),
    "single line breaks": (talks("User: ", "Bot: ", "\n"), 4, ("Bot", "User")),
    "all in one line break": (talks("Human: ", "AI: ", "\n", f"\n{END}\n"), 4, ("AI", "Human")),
    "indented labels": (talks("User: ", "Agent: ") + talks(" User: ", " Agent: "), 8, None),
    "bold": (talks("**User:** ", "**Agent:** "), 4, None),
    "invisible": (talks("\u200bUser: ", "\u200bAgent: "), 4, None),
    "capitals": (talks("User: ", f"Agent: {NOTES}") + talks("USER: ", "Agent: ", num=1), 5, None),
    "a preamble after the mark": (talks("Rules.\n\nUser: ", "Agent: ", end=END), 4, None),
    "the agent after the mark": (talks("User: ", "Agent: ", end=f"{END}Agent: plum\n\n"), 8, None),
    "a rule before User": (talks("Instruction: be kind.\n\nUser: ", "Agent: "), 4, None),
    "an open code block": (OPEN + talks("User: ", "Agent: "), 6, None),
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_plums_are_trained_and_kiwis_are_not(read: Read, what: str) -> None:
    content, plums, names = GOOD[what]
    file = read(content)
    assert file.names == (names or ("Agent", "User"))
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (plums, 0)


@pytest.mark.parametrize("given", [{"agent_name": "Assistant"}, {"user_name": "human"}])
def test_one_name_given_finds_the_other(read: Read, given: dict[str, str]) -> None:
    """If the asker were not looked for, a Human's words would be trained as the agent's."""
    file = read(TWICE * 3, **given)
    assert file.facts.questions == file.facts.replies == 6
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (6, 0)


def test_a_file_with_a_silent_side_is_refused(read: Read) -> None:
    for given in ({"user_name": "User"}, {"agent_name": "Assistant", "user_name": "User"}):
        with pytest.raises(UserError, match='no turn starts with "User:"'):
            read(TWICE, **given)


def test_the_eval_file_is_read_with_the_names_of_the_train_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TWICE * 3)
    (tmp_path / "b.txt").write_text(TWICE)
    (tmp_path / "c.txt").write_text(talks("User: ", "Agent: "))
    a, b, c = (str(tmp_path / f"{name}.txt") for name in "abc")
    sides = reading.read_sides(TokenizeSettings(train_file=a, eval_file=b))
    assert sides["train"].names == sides["eval"].names == ("Assistant", "Human")
    with pytest.raises(UserError, match='no turn starts with "Human:"'):
        reading.read_sides(TokenizeSettings(train_file=a, eval_file=c))


def test_an_ambiguous_agent_label_is_refused(read: Read) -> None:
    content = talks("User: a\n\nNote: ", "Agent: ")
    with pytest.raises(
        UserError, match=r"Agent \(4\), Note \(4\) -- set agent_name, for example to \"Agent"
    ):
        read(content)
    assert trained(read(content, agent_name="Agent")).count("plum") == 4


@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.parametrize("user", ["User", "Human"])
def test_a_given_asker_followed_only_by_an_asking_name_is_refused(
    read: Read, user: str, num: int
) -> None:
    """A Human seldom answers a User; the remedy is to say who answers, and it works."""
    other = {"User": "Human", "Human": "User"}[user]
    content = talks(f"{user}: ", f"{other}: ", num=num)
    said = f'follows {user}: {other} ({num}) -- set agent_name, for example to "{other}"'
    with pytest.raises(
        UserError, match=re.escape(f"t.txt:1: only a name that usually asks {said}")
    ):
        read(content, user_name=user)
    file = read(content, user_name=user, agent_name=other)
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (num, 0)


UNENDED = talks("User: ", "Agent: ", end="\n\n")


@pytest.mark.parametrize(
    ("content", "end_mark"),
    [
        (UNENDED, "none"),
        (talks("User: ", "Agent: ", end="</s>\n"), "</s>"),
        (talks("User: ", "Agent: ", end="\n###\n"), "###"),
        (talks("User: ", "Agent: ", end="\n\n---\n\n"), "---"),
    ],
)
def test_the_remedy_for_a_file_without_end_marks_works(
    read: Read, content: str, end_mark: str
) -> None:
    with pytest.raises(UserError, match=f'set end_mark to "?{end_mark}') as refused:
        read(content)
    assert '4 "User:" labels' in str(refused.value)
    file = read(content, end_mark=end_mark)
    assert (file.facts.conversations, file.facts.marks) == (4, 0 if end_mark == "none" else 4)
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (4, 0)


def test_a_single_conversation_needs_no_end_mark(read: Read) -> None:
    assert read("User: kiwi\n\nAgent: plum").facts.conversations == 1


def test_a_file_without_marks_is_one_chunk(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its conversations begin is known only after all of it has been read."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 30)
    file = read(f"Rules.\n\n{UNENDED}", end_mark="none")
    assert [c.preamble for c in file.conversations] == ["Rules.", "", "", ""]
    assert len(file.chunks) == 1


def test_mentions_of_the_end_mark_are_text(read: Read) -> None:
    """A mark in a line ends a conversation only if text like a conversation follows directly."""
    about = f"User: kiwi\n\nAgent: {END} ends, or `{END}`. plum\n\nUser: kiwi {END}.\n\nAgent: plum"
    file = read(f"{about}{END}\n{about}{END}")
    assert file.facts.conversations == 2
    assert file.facts.notes == {f"{END} in the text, read as text": [3, 3, 5, 10, 10, 12]}


def row(*messages: dict[str, object], **more: object) -> str:
    return json.dumps({"messages": messages, **more}) + "\n"


ASK = {"role": "user", "content": "kiwi"}
SAY = {"role": "assistant", "content": "plum"}
PARTS = {**SAY, "content": [{"type": "text", "text": "pl"}, {"type": "text", "text": "um"}]}
ROWS = {  # what: (name, content, plums)
    "an array": ("t.json", f"[\n{row(ASK, SAY)},\n{row(ASK, SAY)}]", 2),
    "parts": ("t.jsonl", row(ASK, PARTS) * 2, 2),
    "weight 0": ("t.jsonl", row(ASK, {**SAY, "content": "pear", "weight": 0}, ASK, SAY), 1),
    "train false": ("t.jsonl", row(ASK, {**SAY, "content": "pear", "train": False}, ASK, SAY), 1),
    "weight 1": ("t.jsonl", row(ASK, {**SAY, "weight": 1, "train": True}), 1),
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_of_messages(read: Read, what: str) -> None:
    name, content, plums = ROWS[what]
    said = trained(read(content, name))
    assert (said.count("plum"), said.count("kiwi"), said.count("pear")) == (plums, 0, 0)


def test_each_row_of_an_array_has_its_own_line(read: Read) -> None:
    assert [c.line for c in read(ROWS["an array"][1], "t.json").conversations] == [2, 4]
    with pytest.raises(UserError, match=r't\.json:4: has no list "messages"'):
        read(f"[\n{row(ASK, SAY)},\n3]", "t.json")


def test_unread_keys_are_named_with_their_counts(read: Read) -> None:
    rows = row(ASK, {**SAY, "tool_calls": []}, system="x") * 3 + row(ASK, SAY, kind="k")
    assert read(rows, "t.jsonl").sentences()[1:] == [
        'not read: "system": 3 (lines 1, 2, 3)',
        'not read: "messages[].tool_calls": 3 (lines 1, 2, 3)',
    ]


def test_train_on_all_refuses_a_turn_marked_as_untrained(read: Read) -> None:
    file = read(ROWS["weight 0"][1], "t.jsonl")
    with pytest.raises(UserError, match="line 1 marks one as untrained -- set it to agent"):
        encoding.encode_file(TOKENIZER, file, file.names, "all")


def test_a_conversation_without_a_trained_turn_has_no_reply(read: Read) -> None:
    file = read(row(ASK, {**SAY, "weight": 0}) + row(ASK, SAY), "t.jsonl")
    train_on = "all" if file.form.holds_documents else "agent"
    rows = encoding.encode_file(TOKENIZER, file, file.names, train_on)
    assert [encoded.fault for encoded in rows] == ["no reply", ""]


def test_a_label_in_a_message_is_text(read: Read) -> None:
    """JSON rows say who speaks, so the label is noted and the audit does not count it."""
    quoted = {**SAY, "content": "I read:\n\nUser: so\nplum"}
    file = read(row(ASK, quoted), "t.jsonl")
    assert file.facts.notes == {"a blank line and User: inside a message, read as text": [1]}
    train_on = "all" if file.form.holds_documents else "agent"
    rows = encoding.encode_file(TOKENIZER, file, file.names, train_on)
    assert rows.column("astray").tolist() == [0] and trained(file).count("plum") == 1


MORE = "".join(f"User: kiwi\n\nAgent: plum{END}\n" for _ in range(4))
PY, YAML = "```py\nx", "```yaml\nuser: plum\n```"
CODE = {  # what: (content, given, turns of the last conversation, plums)
    "a fence was forgotten": (
        f"User: kiwi\n\nAgent: plum\n{PY}\n\nUser: kiwi\n\nAgent: plum\n{PY}\n```\nplum{END}",
        {}, 4, 3,
    ),
    "a block stays open at the end": (
        f"User: kiwi\n\nAgent: plum\n{YAML}\nplum\n\n" * 3 + f"User: kiwi\n\nAgent: plum\n{PY}",
        {"end_mark": "none"}, 2, 10,
    ),
    "rules are not fences": (
        "".join(f"~~~~~~~~\nUser: kiwi\n\nAgent: plum{END}\n" for _ in range(3)), {}, 2, 3,
    ),
    "a block in a list": (
        f"User: a\n\nAgent: plum\n\n1. a\n\n    ```yaml\n    user: plum\n    ```\n\n2. plum{END}",
        {}, 2, 3,
    ),
    "a block in a longer one": (
        f"User: kiwi\n\nAgent: ````\n```\nHuman: plum\n\nUser: plum\n```\n````{END}", {}, 2, 2,
    ),
    "a mark in a block": (
        f"{MORE}User: kiwi\n\nAgent: plum\n```\nplum\n{END}\n```\nplum{END}", {}, 2, 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CODE)
def test_code_blocks(read: Read, what: str) -> None:
    content, given, turns, plums = CODE[what]
    file = read(content, **given)
    assert len(file.conversations[-1].turns) == turns
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (plums, 0)
    assert not encoding.encode_file(TOKENIZER, file, file.names).column("astray").any()


@pytest.mark.parametrize(
    "label", ["User, 10:15:", "**User**", "User -", "<|user|>", "User 2:", "U:"]
)
def test_an_unrecognised_label_leaves_two_replies_in_a_row(read: Read, label: str) -> None:
    """However it is written, the turn between the replies was read as text."""
    file = read(f"{MORE}User: a\n\nAgent: plum\n\n{label} b\n\nAgent: plum{END}\n")
    assert file.facts.notes[text_format.SAME_SIDE] == [19]
    assert text_format.SAME_SIDE not in read(MORE).facts.notes


@pytest.mark.parametrize("label", ["[10:15] User:", "1) User:", "User (me):", "User∶", "## User\n"])
def test_the_audit_finds_unrecognised_labels(read: Read, label: str) -> None:
    rows = (f"{MORE}User: kiwi\n\nAgent: plum\n\n{label} kiwi\n\n[9] Agent: plum{END}\n", MORE)
    bad, good = (encoding.encode_file(TOKENIZER, f, f.names) for f in map(read, rows))
    assert bad.column("astray")[-1] > 0 and not good.column("astray").any()


@pytest.mark.parametrize(("agent", "user"), [("AI", "Ann"), ("Assistant", "Dave"), ("Bot", "Q")])
def test_the_agent_may_speak_first(read: Read, agent: str, user: str) -> None:
    talk = f"{agent}: plum\n\n{user}: kiwi\n\n{agent}: plum\n\n{user}: kiwi{END}\n"
    file = read(talk * 4)
    assert file.names == (agent, user)
    assert (trained(file).count("plum"), trained(file).count("kiwi")) == (8, 0)


def test_a_rule_with_a_label_does_not_ask(read: Read) -> None:
    talk = (
        "Prompt: be kind.\n\nCustomer: kiwi\n\nAssistant: plum\n\nCustomer: kiwi\n\nAssistant: plum"
    )
    assert read(f"{talk}{END}\n" * 4).names == ("Assistant", "Customer")
    with pytest.raises(UserError, match=r"several names ask: .* set user_name"):
        read(f"{talk}{END}\n".replace("Assistant", "Joi") * 4)


def test_a_known_name_does_not_beat_one_that_asks_more_often(read: Read) -> None:
    talks = (
        f"Ann: a\n\nBob: b{END}\n" * 28 + f"Ann: a\n\nBob: b\n\nQuestion: c\n\nBob: d{END}\n" * 12
    )
    with pytest.raises(UserError, match=r"several names ask: Ann \(28\), Question \(12\)"):
        read(talks)
    assert read(talks, user_name="Ann").names == ("Bob", "Ann")


@pytest.mark.parametrize("name", ["3PO", "Ann (customer)", "用户"])
def test_a_given_name_may_have_any_form(read: Read, name: str) -> None:
    assert read(f"{name}: kiwi\n\nBob: plum{END}\n" * 4, user_name=f" {name} ").names == (
        "Bob",
        name,
    )


@pytest.mark.parametrize(
    "heading", ["You are kind.\n\n", "=== Conversation 1 ===\n", "System: so\n"]
)
def test_text_before_each_question_is_not_trained_as_the_end_of_a_reply(
    read: Read, heading: str
) -> None:
    """With `end_mark none` it would be, so that is refused; the remedy works."""
    talks = [f"{heading.replace('1', str(i))}User: kiwi\n\nAgent: plum\n" for i in range(3)]
    with pytest.raises(UserError, match=re.escape("write <|endoftext|> at the end of each")):
        read("\n".join(talks), end_mark="none")
    file = read(f"{END}\n".join([*talks, ""]))
    assert file.facts.conversations == file.facts.with_preamble == 3


def test_marks_after_every_turn_are_refused_with_a_remedy(read: Read) -> None:
    with pytest.raises(UserError, match="-- keep </s> only where a conversation ends, then"):
        read("User: kiwi</s>\nAgent: plum</s>\n" * 4)
    assert read("User: kiwi\nAgent: plum</s>\n" * 4, end_mark="</s>").facts.conversations == 4


def test_few_marks_for_many_questions_are_noted(read: Read) -> None:
    said = read("User: kiwi\n\nAgent: plum\n\n" * 40 + END).sentences()
    assert (
        "end marks for 40 questions: 1 (if these are several conversations, set end_mark to none)"
        in said
    )
    assert not any("end marks for" in line for line in read(MORE).sentences())


def test_json_rows_need_two_different_names(read: Read) -> None:
    """The trained text could not distinguish two equal labels."""
    for given in (
        {"user_name": "Agent"},
        {"agent_name": "user"},
        {"user_name": "J", "agent_name": "j"},
    ):
        with pytest.raises(UserError, match="can't answer itself -- set user_name"):
            read(row(ASK, SAY), "t.jsonl", **given)
    assert read(row(ASK, SAY), "t.jsonl", agent_name="User", user_name="Ann").names == (
        "User",
        "Ann",
    )


CASES = paths.root().parent / "shared" / "cases"  # beside the checkout, if present
SET = {  # part of the refusal, and the setting that it suggests
    "no_end_mark.txt": ("end_mark to none", {"end_mark": "none"}),
    "other_end_mark.txt": ('end_mark to "</s>"', {"end_mark": "</s>"}),
    "odd_columns.jsonl": (
        "columns to {user: frage, agent: antwort}",
        {"columns": {"user": "frage", "agent": "antwort"}},
    ),
    "documents.txt": ("set train_on to all", {"documents": True}),
    "text_only.jsonl": ("set train_on to all", {"documents": True}),
}
# What the table leaves to its text.
NUMBERS = {"open_fence.txt": 7, "odd_columns.jsonl": 6, "documents.txt": 6, "text_only.jsonl": 6}
FAULTY = {  # part of the refusal
    "one_bad_byte.txt": ":12: damaged",
    "late_nul.txt": ":217: contains a NUL byte",
    "ends_in_the_middle.txt": ":19: the file ends inside a character",
}


def cases() -> list[dict[str, Any]]:
    found = CASES / "cases.json"
    return json.loads(found.read_text()) if found.is_file() else []


@pytest.mark.skipif(not cases(), reason="no shared/cases beside the checkout")
def test_the_shared_cases_are_read_as_expected() -> None:
    num_read = 0
    for case in cases():
        name = case["file"]
        plums = case.get("plums", 6 if name in SET else 0)
        if name in FAULTY:
            with pytest.raises(UserError, match=re.escape(name + FAULTY[name])):
                reading.read(CASES / name)
        elif plums:
            said, given = SET.get(name, ("", {}))
            if given:
                with pytest.raises(UserError, match=re.escape(said)):
                    reading.read(CASES / name)
            file = reading.read(CASES / name, **given)
            wanted = case["conversations"] if "conversations" in case else NUMBERS[name]
            assert file.facts.conversations == wanted, name
            words = trained(file)
            assert (words.count("plum"), words.count("kiwi")) == (plums, 0), name
            assert not any(word in words for word in case.get("never", [])), name
            num_read += 1
    assert num_read == 25


@pytest.mark.skipif(not cases(), reason="no shared/cases beside the checkout")
def test_an_unreadable_row_of_the_shared_cases_is_left_out_and_counted() -> None:
    path = CASES / "messages_tool_row.jsonl"
    with pytest.raises(UserError, match=r":7: role 'tool' can't be read"):
        reading.read(path)
    file = reading.read(path, bad_rows="skip")
    assert file.facts.conversations == 6 and trained(file).count("plum") == 6


PAGE = "A page about plums.\n\nNote: it has two paragraphs.\n"
DOCUMENTS = {
    "pages": (f"{PAGE}{END}\n" * 5, 5),
    "a book": (PAGE * 3, 1),
    "labels in some": (f"{PAGE}{END}\n" * 5 + f"User: a\n\nAgent: b{END}\n", 6),
    "another mark": (f"{PAGE}</s>\n" * 5, 5),
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_text_without_turns_is_documents_where_all_is_trained_on(read: Read, what: str) -> None:
    """Every token after the first is trained, the end mark too, and no label is added."""
    content, number = DOCUMENTS[what]
    given = {"end_mark": "</s>"} if what == "another mark" else {}
    with pytest.raises(UserError):
        read(content, **given)
    file = read(content, documents=True, **given)
    assert (file.form.format, file.facts.documents) == ("documents", number)
    rows = [*encoding.encode_file(TOKENIZER, file, file.names, "all")]
    assert [TOKENIZER.decode(row.ids) for row in rows] == [
        c.turns[0].text + END for c in file.conversations
    ]
    assert all(row.trained.tolist() == [False] + [True] * (len(row) - 1) for row in rows)


def test_conversations_stay_conversations_where_all_is_trained_on(read: Read) -> None:
    for content in (talks("User: ", "Agent: "), talks("Q: ", "A: "), talks("Ann: ", "Bob: ")):
        file = read(content, documents=True)
        assert (file.form.format, file.facts.replies) == ("text", 4)
