"""reading.py: reading, refusals, the split, and the trained text."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neoxkit.data import reading
from neoxkit.data.conversation import Conversation, Names, Span, Turn, prompt, render
from neoxkit.data.reading import Form
from neoxkit.data.selection import split
from neoxkit.data.text_format import GLUED
from neoxkit.errors import Faults, UserError

END = "<|endoftext|>"
FENCED = (
    f"User: q\n\nAgent: see\n\n{{0}}\nUser: no\n\nAgent: no\n{{0}}\n\nUser: w\n\nAgent: b{END}\n"
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file in the kit's root folder, so that errors use its bare name."""
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))

    def write(content: str | bytes, name: str = "talks.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def talk(*texts: str) -> tuple[Turn, ...]:
    """Make turns with these texts, user first."""
    return tuple(Turn(("user", "agent")[i % 2], text) for i, text in enumerate(texts))


def chat(*messages: tuple[object, object], **extra: object) -> str:
    """Write a line of JSON Lines from (role, content) pairs."""
    row = {"messages": [{"role": r, "content": c} for r, c in messages], **extra}
    return json.dumps(row, ensure_ascii=False)


def refusal(path: Path, agent_name: str = "") -> UserError:
    """Return the reading error; check that its lines are short and `where: what -- remedy`."""
    with pytest.raises(UserError) as caught:
        reading.read(path, agent_name)
    for line in str(caught.value).split("\n"):
        more = re.fullmatch(r"\.\.\. and \d+ more", line)
        where = rf"{re.escape(path.name)}((:|, row )[1-9]\d*)?"
        assert more or re.fullmatch(rf"{where}: \S.+ -- \S.+", line), line
        assert len(line) <= 200, line
    return caught.value


# --- reading ---


def test_text_format(write: Write) -> None:
    content = f"User: a\n\nAgent: b\nb2\n\nUser: c\n\nAgent: d{END}\n\nUser:e\n\nAgent:\nf{END}\n"
    file = reading.read(write(content))
    assert file.conversations == [
        Conversation(1, talk("a", "b\nb2", "c", "d")),
        Conversation(10, talk("e", "f")),
    ]
    assert (file.form, file.facts.notes) == (Form("text", Names()), {})
    assert file.sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_json_lines(write: Write, end: str) -> None:
    one = chat(
        ("system", " s "), ("user", "a\u2028a\x85"), ("assistant", "b"), kind="k", id="x", n=3
    )
    two = chat(("developer", "s1"), ("system", "s2"), ("user", "c"), ("agent", "d"), ("user", "e"))
    file = reading.read(write(f"{one}{end} {end}{two}{end}", "talks.jsonl"))
    assert file.conversations == [
        Conversation(1, talk("a\u2028a", "b"), "s", {"kind": "k"}),
        Conversation(3, talk("c", "d", "e"), "s1\n\ns2"),
    ]
    assert (file.form, file.facts.notes) == (
        Form("rows", Names()),
        {'not read: "id"': [1], 'not read: "n"': [1]},
    )
    assert reading.read(file.path, "Joi", "Me").names == ("Joi", "Me")


FOUND = ["Agent", "Joi", "Dr. Rosey", "Zoë Élan", "Mary-Jane O'Neil", "R2-D2", "Иван", "x" * 40]


@pytest.mark.parametrize("name", [*FOUND, "Zoe\u0308", "अर्जुन"])
def test_any_agent_name_is_found(write: Write, name: str) -> None:
    file = reading.read(write(f"User: a\n\n{name}: b\n\nUser: c\n\n{name}: d{END}"))
    assert (file.names.agent, file.conversations) == (name, [Conversation(1, talk(*"abcd"))])


@pytest.mark.parametrize("name", [*FOUND, "Zoe\u0308", "अर्जुन", "2B", "🤖", "Bot (v2)", "a.*"])
def test_any_given_agent_name_is_used(write: Write, name: str) -> None:
    file = reading.read(write(f"User: a\n\n{name}: b\n\nNote: n{END}"), name)
    assert file.names == (name, "User")
    assert file.conversations == [Conversation(1, talk("a", "b\n\nNote: n"))]


def test_other_labels_are_text_of_their_turn(write: Write) -> None:
    content = f"User: a\n\nNote: n\n\nJoi: b{END}\n" + f"User: c\n\nJoi: d{END}\n" * 40
    file = reading.read(write(content))
    assert file.names.agent == "Joi"
    assert file.conversations[0].turns == talk("a\n\nNote: n", "b")


@pytest.mark.parametrize(("joi", "rosey"), [(1, 1), (20, 2), (3, 2)])
def test_two_likely_agents_are_refused(write: Write, joi: int, rosey: int) -> None:
    content = f"User: a\n\nJoi: b{END}\n" * joi + f"User: a\n\nDr. Rosey: b{END}\n" * rosey
    message = str(refusal(write(content)))
    assert f"Joi ({joi})" in message and f"Dr. Rosey ({rosey})" in message
    assert len(reading.read(write(content + f"User: x{END}"), "Joi").conversations) > joi


@pytest.mark.parametrize("given", ["", "Joi"])
def test_a_misspelt_name_is_reported(write: Write, given: str) -> None:
    """It is read as text of the previous turn, like a paragraph that begins with "Note:"."""
    right, wrong = f"User: a\n\nJoi: b{END}\n", f"User: a\n\nJoy: b{END}\n"
    file = reading.read(write(right * 30 + wrong + right * 9), given)
    assert file.sentences()[-1] == (
        "labels of neither side, read as text: Joy: (1, first in the conversation at line 91)"
    )


def test_preamble_and_unanswered_turn_are_kept(write: Write) -> None:
    file = reading.read(write(f"\n\nBe kind.\n\nA: b\n\nUser: a\n\nJoi: b\n\nUser: c{END}\n"))
    assert file.conversations == [Conversation(3, talk("a", "b", "c"), "Be kind.\n\nA: b")]
    assert file.facts.notes == {}
    assert file.sentences()[1:] == [
        "with text before the first turn, kept and not trained on: 1",
        "with an unanswered last turn, not trained on: 1",
        "labels of neither side, read as text: A: (1, first in the conversation at line 3)",
    ]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_line_ends_and_bom_change_nothing(write: Write, bom: bytes, end: str) -> None:
    text = FENCED.format("```") + f"Hi\n\nUser: a\nUser: glued\n\nAgent: b\nb {END}{END}\n\nUser: c"
    plain = reading.read(write(text))
    other = reading.read(write(bom + text.replace("\n", end).encode(), "other.txt"))
    assert other.conversations == plain.conversations and len(plain.conversations) == 3
    assert other.facts.notes == plain.facts.notes and len(plain.facts.notes) == 5


def test_missing_and_doubled_end_marks_are_noted(write: Write) -> None:
    file = reading.read(write(f"User: a\n\nAgent: b{END}\n{END}{END}\n\nUser: c\n\nAgent: d\n"))
    assert file.conversations == [Conversation(1, talk("a", "b")), Conversation(6, talk("c", "d"))]
    missing = "no end mark at the end of the file, conversation kept"
    doubled = "end marks without a conversation before them, ignored"
    assert file.facts.notes == {missing: [6], doubled: [4, 4]}
    first = "talks.txt: 2 conversations (text); User asks 2 times, Agent answers 2 times"
    notes = [f"{missing}: 1 (line 6)", f"{doubled}: 2 (lines 4, 4)"]
    assert file.sentences()[0] == first and sorted(file.sentences()[1:]) == sorted(notes)


def test_end_mark_within_a_line_is_text(write: Write) -> None:
    file = reading.read(write(f"User: a\n\nAgent: so {END} ends{END}User: c\n\nAgent: d{END}"))
    assert file.conversations == [
        Conversation(1, talk("a", f"so {END} ends")),
        Conversation(3, talk("c", "d")),
    ]
    assert file.facts.notes == {f"{END} in the text, read as text": [3]}


def test_label_without_blank_line_begins_a_turn(write: Write) -> None:
    """Read as text of the previous turn, the asking side's words would be trained."""
    file = reading.read(write(f"\nUser: a\n\nAgent: b\nUser: c\nAgent: d\n \nUser: e{END}"))
    assert file.conversations == [Conversation(2, talk(*"abcde"))]
    assert file.facts.notes == {GLUED: [5, 6]}


@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_label_in_code_block_is_text(write: Write, fence: str) -> None:
    file = reading.read(write(FENCED.format(fence)))
    shown = f"see\n\n{fence}\nUser: no\n\nAgent: no\n{fence}"
    assert file.conversations == [Conversation(1, talk("q", shown, "w", "b"))]
    assert file.facts.notes == {"labels in a code block, read as text": [6, 8]}


OPENINGS = ["Agent: ```", "Agent: ```python\nx", "Agent:\n```python title=x\nx", "Agent: ~~~ a b"]


@pytest.mark.parametrize("opening", OPENINGS)
def test_code_block_with_info_ends_at_its_fence(write: Write, opening: str) -> None:
    fence = "~~~" if "~" in opening else "```"
    content = f"User: a\n\n{opening}\n{fence}\n\nUser: b\n\nAgent: c\n{fence}\nd\n{fence}{END}"
    file = reading.read(write(content))
    assert [turn.role for turn in file.conversations[0].turns] == ["user", "agent"] * 2
    assert file.facts.notes == {}


def test_unclosed_code_block_hides_nothing(write: Write) -> None:
    file = reading.read(write(f"User: a\n\nAgent: ```\nx\n\nUser: c\n\nAgent: d{END}"))
    assert file.conversations == [Conversation(1, talk("a", "```\nx", "c", "d"))]


def test_only_newlines_split_lines(write: Write) -> None:
    odd = "a\u2028\u2028User: x\x0c\x0cUser: y\x85\x85User: z\x0b\x0bUser: w\x1c\x1cUser: v"
    file = reading.read(write(f"User: {odd}\n\nAgent: {odd}{END}\nUser: c\n\nAgent: d{END}"))
    assert file.conversations == [Conversation(1, talk(odd, odd)), Conversation(4, talk("c", "d"))]
    assert file.facts.notes == {}


# --- refusing ---

TALK = f"User: a\n\nAgent: b{END}\n"
OK = chat(("user", "a"), ("assistant", "b"))
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
REFUSED = {  # what: (file, content, line or None, parts of the message)
    "empty": ("t.txt", "", 1, ["empty"]),
    "white space": ("t.txt", " \r\n\t\n", 1, ["empty"]),
    "bom only": ("t.txt", b"\xef\xbb\xbf", 1, ["empty"]),
    "bom only, json": ("t.jsonl", b"\xef\xbb\xbf\n", 1, ["empty"]),
    "wide space": ("t.txt", "\u00a0\n\u3000", 1, ["empty"]),
    "latin-1": ("t.txt", b"User: a\n\nJos\xe9: b", 3, ["byte 12 (0xe9)", "WINDOWS-1252"]),
    "damaged": (
        "t.txt",
        "User: é\n\nA: b".encode() + b"\x92\n",
        3,
        ["damaged at byte 14 (0x92)", "UTF-8"],
    ),
    "damaged, far": (
        "t.txt",
        b"User: \x92\n\nA: b" + "é".encode(),
        1,
        ["damaged at byte 6 (0x92)"],
    ),
    "cut off": ("t.txt", TALK.encode() + "User: é".encode()[:-1], 4, ["ends inside a character"]),
    "cut off, wide": ("t.txt", TALK.encode() + "“".encode()[:-1], 4, ["ends inside a character"]),
    "a NUL": ("t.txt", TALK * 900 + "User: \0", 2701, ["contains a NUL byte"]),
    "latin-1, crlf": ("t.txt", b"User: a\r\n\r\nJos\xe9", 3, ["byte 14 (0xe9)", "WINDOWS-1252"]),
    "latin-1, bom": ("t.txt", b"\xef\xbb\xbfUser: caf\xe9\n", 1, ["byte 12 (0xe9)"]),
    "utf-16": ("t.txt", TALK.encode("utf-16"), 1, ["UTF-16", "iconv"]),
    "utf-16-le": ("t.txt", TALK.encode("utf-16-le"), 1, ["UTF-16", "iconv -f UTF-16LE"]),
    "utf-16-be": ("t.txt", TALK.encode("utf-16-be"), 1, ["UTF-16", "iconv -f UTF-16BE"]),
    "json as text": ("t.txt", OK, 1, ["JSON", ".jsonl"]),
    "array as text": ("t.txt", f"[\n {OK}]", 1, ["is JSON", ".json"]),
    "array, broken": ("t.json", f"[\n{OK},\n{{3]", 3, ["not JSON", "one object per line"]),
    "array of others": ("t.json", f"[\n{OK},\n3]", 3, ['no list "messages"']),
    "text as json": ("t.jsonl", TALK, 1, ["text format", ".txt"]),
    "chatml": ("t.txt", "<|im_start|>user\na<|im_end|>\n", 1, ["ChatML"]),
    "lfs": ("t.txt", LFS, 1, ["Git LFS", "git lfs pull"]),
    "html": ("t.txt", "\n<!DOCTYPE html>\n<html>", 1, ["HTML"]),
    "other labels": ("t.txt", "Ann: a\n\nBob: b", 1, ['"User:"', "Ann (1), Bob (1)", "user_name"]),
    "no mark": (
        "t.txt",
        "User: a\n\nAgent: b\n\n" * 3,
        None,
        ['3 "User:" labels', "end_mark to none"],
    ),
    "another mark": (
        "t.txt",
        "User: a\n\nAgent: b</s>\n" * 3,
        None,
        ['3 "User:"', 'end_mark to "</s>"'],
    ),
    "another mark, alone": ("t.txt", "User: a\n\nAgent: b\n###\n" * 3, None, ['end_mark to "###"']),
    "two who ask": (
        "t.txt",
        f"Human: a\n\nJoi: b{END}\nQuestion: a\n\nJoi: b{END}\n" * 3,
        4,
        ["several names ask", "Human (3)", "user_name"],
    ),
    "two who answer once each": (
        "t.txt",
        f"User: a\n\nNote: n\n\nUser: b\n\nAgent: c{END}",
        1,
        ["several names answer: Agent (1), Note (1) -- set agent_name"],
    ),
    "a few others ask": (
        "t.txt",
        f"{TALK}" * 9 + f"Human: a\n\nAgent: b{END}\n" * 2,
        28,
        ["several names ask: User (9), Human (2)", "user_name"],
    ),
    "a stranger asks": (
        "t.txt",
        f"{TALK * 9}Ann: a\n\nAgent: b\n\nAnn: c\n\nAgent: d{END}",
        32,
        ['"Ann:" begins a line of a turn of Agent', 'write "User:"'],
    ),
    "Human among User": (
        "t.txt",
        f"{TALK * 9}User: a\n\nAgent: b\n\nHuman: c\n\nAgent: d{END}",
        32,
        ['"Human:"'],
    ),
    "no agent": ("t.txt", f"\nUser: a{END}\nUser: b{END}", 2, ["no turns", "answer User", "Agent"]),
    "prose": ("t.txt", "Call me Ishmael.", 1, ['none starts with "User:"']),
    "end marks only": ("t.txt", f"{END}\n{END}\n", 1, ["no turns"]),
    "no blank after colon": ("t.txt", f"User:a\n\nJoi:b{END}", 1, ["user_name and agent_name"]),
    "a turnless one": ("t.txt", f"{TALK}\nx\ny{END}{TALK}", 5, ["without turns", '"User: "']),
    "bad json": ("t.jsonl", f'{OK}\n\n{{"messages": [}}\n', 3, ["not JSON at column 15"]),
    "no messages": ("t.jsonl", '{"messages": []}', 1, ['no list "messages"']),
    "no turns": (
        "t.jsonl",
        '{"text": "a"}',
        1,
        ["no turns, only a text: text", "set train_on to all"],
    ),
    "no object": ("t.jsonl", "3", 1, ["is not an object"]),
    "wrong role": ("t.jsonl", chat(("tool", "a")), 1, ["role 'tool'", "assistant"]),
    "late system": ("t.jsonl", chat(("user", "a"), ("system", "b")), 1, ["role 'system'"]),
    "list role": ("t.jsonl", chat((["user"], "a")), 1, ["role"]),
    "long role": ("t.jsonl", chat(("x" * 500, "a")), 1, ["role"]),
    "number content": ("t.jsonl", chat(("user", 3)), 1, ['"content" is not text']),
    "a picture": (
        "t.jsonl",
        chat(("user", [{"type": "image"}])),
        1,
        ["type 'image'", "only text parts"],
    ),
    "a part of text": ("t.jsonl", chat(("user", ["a"])), 1, ["type 'str'"]),
    "weight": ("t.jsonl", OK.replace('"b"', '"b", "weight": 0.5'), 1, ['"weight" 0.5', "0 or 1"]),
    "train": ("t.jsonl", OK.replace('"b"', '"b", "train": "no"'), 1, ["\"train\" 'no'"]),
    "half a character": ("t.jsonl", OK.replace('"a"', '"\\ud800"'), 1, []),
    "long number": ("t.jsonl", "1" * 5000, 1, []),
    "nobody answers": ("t.jsonl", chat(("user", "a")), 1, ["no turns of the assistant found"]),
    "system only": ("t.jsonl", chat(("system", "a")), 1, ["without turns"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(write: Write, case: str) -> None:
    name, content, line, parts = REFUSED[case]
    message = str(refusal(write(content, name)))
    assert message.startswith(f"{name}:{line}: " if line else f"{name}: ") and "\n" not in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("name", ["Joi", "Agents", "Z" * 300])
def test_agent_name_that_never_occurs_is_refused(write: Write, name: str) -> None:
    message = str(refusal(write(TALK), name))
    assert name[:40] in message and "agent_name" in message and "found Agent" in message


@pytest.mark.parametrize("asker", ["User", "Ann"])
def test_refusals_stay_short_with_long_names(write: Write, asker: str) -> None:
    names = [letter * 40 for letter in "ABCDE"]
    refusal(write("".join(f"{asker}: a\n\n{name}: b{END}\n" for name in names)))
    refusal(write("".join(f"{name}: b{END}\n" for name in names)))


@pytest.mark.parametrize("num", [2, 20, 21, 25])
def test_every_kind_of_fault_is_listed(write: Write, num: int) -> None:
    rows = "".join(f"{OK}\n\n{chat((f'role {i}', 'a'))}\n" for i in range(num))
    fault = refusal(write(rows, "t.jsonl"))
    *lines, last = str(fault).split("\n")
    lines += [] if num > 20 else [last]
    assert isinstance(fault, Faults)
    assert [line.split(": ")[0] for line in lines] == [f"t.jsonl:{3 + 3 * i}" for i in range(num)][
        :20
    ]
    assert num <= 20 or last == f"... and {num - 20} more"


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_equal_faults_are_one_line_with_their_count(write: Write, name: str) -> None:
    good, bad = (TALK, f"prose\n\n{END}\n") if name == "t.txt" else (f"{OK}\n\n\n", "{\n\n\n")
    said = str(refusal(write((good + bad) * 1500, name)))
    assert said.startswith(f"{name}:4: ") and "(1,500 of these, this is the first)" in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_unreadable_conversations_are_left_out_if_allowed(write: Write, name: str) -> None:
    good, bad = (TALK, f"prose\n\n{END}\n") if name == "t.txt" else (f"{OK}\n\n\n", "{\n\n\n")
    file = reading.read(write((good + bad) * 3, name), bad_rows="skip")
    assert [c.line for c in file.conversations] == [1, 7, 13]
    (note,) = [n for n in file.sentences() if n.startswith("left out, can't be read: ")]
    assert note.endswith(": 3 (lines 4, 10, 16)") and file.facts.conversations == 3
    file = reading.read(write(bad + good, name), "Agent", "User", bad_rows="skip")
    assert [c.line for c in file.conversations] == [4]
    with pytest.raises(UserError, match=r"no conversation can be read|no turn starts with"):
        reading.read(write(bad * 3, name), "Agent", "User", bad_rows="skip")


# --- split, render, prompt ---

KEYS = np.array([f"text {i % 60}" for i in range(90)], "S16")  # the first 30 appear twice


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_split_divides_the_unique_keys(share: float) -> None:
    held_out = split(KEYS, share, seed=3).astype(bool)
    sides = set(KEYS[~held_out].tolist()), set(KEYS[held_out].tolist())
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 60
    assert len(sides[1]) == {0.0: 0, 0.001: 1, 0.05: 3, 0.5: 30, 0.999: 59}[share]


def test_split_depends_on_seed_and_keys_alone() -> None:
    def held_out(keys: np.ndarray, seed: int) -> frozenset[bytes]:
        return frozenset(keys[split(keys, 0.2, seed) > 0].tolist())

    assert held_out(KEYS, 0) == held_out(KEYS[::-1], 0) == held_out(np.roll(KEYS, 40), 0)
    assert len({held_out(KEYS, seed) for seed in range(5)}) == 5
    letters = np.array(list("abcdefgh"), "S16")
    assert split(letters, 0.25, 0).nonzero()[0].tolist() == [0, 6]  # on every machine


@pytest.mark.parametrize("texts", [[], ["a"], ["a"] * 5])
def test_split_of_one_text_is_all_train(texts: list[str]) -> None:
    assert split(np.array(texts, "S16"), 0.5, 0).tolist() == [False] * len(texts)


def test_split_of_two_texts_has_both_sides() -> None:
    two = np.array(["a", "b"], "S16")
    assert all(split(two, 0.01, seed).sum() == 1 for seed in range(9))


def test_render_and_prompt_give_exact_text() -> None:
    conversation = Conversation(7, talk("Hi", "Yes?", "", "No\n\nnever"), "Be kind.")
    text, spans = render(conversation, Names("Dr. Rosey"))
    assert text == "Be kind.\n\nUser: Hi\n\nDr. Rosey: Yes?\n\nUser:\n\nDr. Rosey: No\n\nnever"
    assert [(s.role, text[s.start : s.end]) for s in spans] == [
        ("user", " Hi"),
        ("agent", " Yes?"),
        ("user", ""),
        ("agent", " No\n\nnever"),
    ]
    asked = Conversation(7, talk("Hi"), "Be kind.")
    assert prompt(asked, Names("Dr. Rosey")) == "Be kind.\n\nUser: Hi\n\nDr. Rosey:"
    assert render(Conversation(1, talk("Hi")), Names("Joi", "Q")) == ("Q: Hi", [Span("user", 2, 5)])


def test_rendered_text_reads_back(write: Write) -> None:
    conversation = Conversation(1, talk("Hi\nthere", "Yes?\n\n- one\n- two", "Bye"), "Be kind.")
    text, _ = render(conversation, Names("Zoë Élan"))
    assert reading.read(write(text + END), "Zoë Élan").conversations == [conversation]


def test_each_line_of_a_wrong_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("User: né\r\n\r\nAgent: oui\r\nça\rà<|endoftext|>".encode("latin-1"))
    with pytest.raises(Faults) as refused:
        reading.read(file)
    lines = [line.split(": ")[0].rsplit(":", 1)[1] for line in str(refused.value).splitlines()]
    assert lines == ["1", "4", "5"]
    assert "not UTF-8 at byte 7 (0xe9)" in str(refused.value).splitlines()[0]


def test_a_misspelt_first_label_is_noted(write: Write) -> None:
    """Its whole turn becomes preamble, which nobody would expect."""
    file = reading.read(write(f"{TALK}Uesr: a\n\nAgent: b{END}\nBe kind.\n\n{TALK}"))
    (what,) = file.facts.notes
    assert "begins with a label other than User: or Agent:" in what
    assert file.facts.notes[what] == [4] and file.facts.with_preamble == 2
