"""The sample conversations and questions keep the promises of data/README.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
END = "<|endoftext|>\n"

Pairs = list[tuple[str, str]]


def parse(conversation: str) -> Pairs:
    """Return the user and agent texts of one conversation, checking its format."""
    turns = conversation.split("\n\n")
    assert len(turns) % 2 == 0, conversation
    texts = []
    for i, turn in enumerate(turns):
        match = re.fullmatch(r"(User|Agent): (\S(?:.*\S)?)", turn)
        assert match, repr(turn)
        assert match[1] == ("User", "Agent")[i % 2], conversation
        assert "  " not in match[2] and "<|" not in match[2], conversation
        texts.append(match[2])
    return list(zip(texts[::2], texts[1::2], strict=True))


def exchanges(question: dict) -> Pairs:
    """Return the user and assistant texts of a question, checking the roles."""
    messages = question["messages"]
    roles = [message["role"] for message in messages]
    assert roles == ["user", "assistant"] * (len(messages) // 2) and roles
    texts = [message["content"] for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def prompt(question: dict) -> str:
    """Return the question in the text format, up to its last reply."""
    *before, (last, _) = exchanges(question)
    return "".join(f"User: {u}\n\nAgent: {a}\n\n" for u, a in before) + f"User: {last}\n\nAgent:"


def numbers(text: str) -> list[int]:
    """Return the numbers written in a text, in ascending order."""
    return sorted(int(number) for number in re.findall(r"\d+", text))


def pair_of(question: dict) -> list[int]:
    """Return the two numbers of a question of the harder set, in ascending order."""
    pair = numbers(exchanges(question)[-1][0])
    assert len(pair) == 2
    return pair


@pytest.fixture(scope="module")
def text() -> str:
    return (DATA / "sample.txt").read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def raw_conversations(text: str) -> list[str]:
    *conversations, rest = text.split(END)
    assert rest == ""
    return conversations


@pytest.fixture(scope="module")
def training(raw_conversations: list[str]) -> list[Pairs]:
    return [parse(conversation) for conversation in raw_conversations]


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    lines = (DATA / "sample_questions.jsonl").read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def held_out(questions: list[dict]) -> list[dict]:
    return [question for question in questions if question["set"] == "held out"]


@pytest.fixture(scope="module")
def harder(questions: list[dict]) -> list[dict]:
    return [question for question in questions if question["set"] == "harder"]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_generator_writes_the_committed_bytes(tmp_path: Path, hash_seed: str) -> None:
    command = [sys.executable, str(DATA / "make_sample.py"), "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["sample.txt", "sample_questions.jsonl"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name
    assert done.stdout in (DATA / "README.md").read_text(encoding="utf-8")


def test_number_of_conversations(raw_conversations: list[str]) -> None:
    assert 4800 <= len(raw_conversations) <= 5200
    assert len(set(raw_conversations)) == len(raw_conversations)


def test_every_conversation_follows_the_format(text: str, training: list[Pairs]) -> None:
    rewritten = [
        "\n\n".join(f"User: {user}\n\nAgent: {agent}" for user, agent in talk) + END
        for talk in training
    ]
    assert "".join(rewritten) == text
    assert "\r" not in text


def test_sets_and_counts(questions: list[dict], held_out: list[dict], harder: list[dict]) -> None:
    assert len(held_out) == 200
    assert 35 <= len(harder) <= 45
    assert len(questions) == len(held_out) + len(harder)
    assert {question["kind"] for question in harder} == {"sums, pair never seen"}
    assert sum(len(exchanges(question)) > 1 for question in held_out) >= 60
    assert len({prompt(question) for question in questions}) == len(questions)
    assert len({exchanges(q)[-1] for q in held_out}) == len(held_out)


def test_no_prompt_starts_a_training_conversation(
    questions: list[dict], raw_conversations: list[str]
) -> None:
    for question in questions:
        start = prompt(question)
        assert not any(talk.startswith(start) for talk in raw_conversations), start


def test_no_held_out_combination_is_trained(
    held_out: list[dict], text: str, training: list[Pairs]
) -> None:
    trained = {pair for talk in training for pair in talk}
    for question in held_out:
        asked, reply = exchanges(question)[-1]
        assert (asked, reply) not in trained, asked
        if question["kind"] != "names":
            assert asked not in text, asked


def test_no_held_out_pair_of_name_and_wording_is_trained(
    held_out: list[dict], training: list[Pairs]
) -> None:
    trained = set()
    for talk in training:
        met = [re.fullmatch(r"Nice to meet you, (\w+)\.", agent) for _, agent in talk]
        trained |= {(match[1], user) for match in met if match for user, _ in talk}
    names = [question for question in held_out if question["kind"] == "names"]
    assert len(names) >= 30
    for question in names:
        asked, reply = exchanges(question)[-1]
        name = re.fullmatch(r"Your name is (\w+)\.", reply)[1]
        assert (name, asked) not in trained, (name, asked)


def test_every_part_of_a_held_out_question_is_well_trained(
    held_out: list[dict], training: list[Pairs]
) -> None:
    times = Counter(reply for talk in training for _, reply in talk)
    wordings = defaultdict(set)
    for talk in training:
        for asked, reply in talk:
            wordings[reply].add(asked)
    for question in held_out:
        *before, (_, reply) = exchanges(question)
        assert len(wordings[reply]) >= 3, reply
        assert times[reply] >= 12, reply
        for asked, answer in before:
            assert asked in wordings[answer] or answer.startswith("Nice to meet you"), asked


def test_replies_are_determined(questions: list[dict], training: list[Pairs]) -> None:
    """Equal questions have equal replies; a reply about a name has the one that the user gave."""
    replies: dict[str, str] = {}
    for talk in training + [exchanges(question) for question in questions]:
        name = None
        for asked, reply in talk:
            if met := re.fullmatch(r"Nice to meet you, (\w+)\.", reply):
                assert asked.endswith(f" {met[1]}."), asked
                assert name is None, talk
                name = met[1]
            elif reply.startswith("Your name is"):
                assert reply == f"Your name is {name}.", talk
                reply = "Your name is ..."
            assert replies.setdefault(asked, reply) == reply, asked


def test_sums_and_counts_are_correct(questions: list[dict], training: list[Pairs]) -> None:
    sums = 0
    for talk in training + [exchanges(question) for question in questions]:
        for asked, reply in talk:
            if match := re.fullmatch(r"(\d+) plus (\d+) is (\d+)\.", reply):
                a, b, c = map(int, match.groups())
                assert a + b == c, reply
                assert [int(n) for n in re.findall(r"\d+", asked)] == [a, b], asked
                sums += 1
            elif re.fullmatch(r"\d+(, \d+)+\.", reply):
                first, last = map(int, re.findall(r"\d+", asked))
                assert reply == ", ".join(map(str, range(first, last + 1))) + ".", reply
    assert sums > 1000


def test_harder_pairs_occur_nowhere_in_training(harder: list[dict], training: list[Pairs]) -> None:
    pairs = [pair_of(question) for question in harder]
    assert len({tuple(pair) for pair in pairs}) == 8
    for talk in training:
        for asked, reply in talk:
            assert numbers(asked) not in pairs, asked
            if " plus " in reply:
                assert numbers(reply.split(" is ")[0]) not in pairs, reply


def test_harder_sums_use_trained_wordings(harder: list[dict], training: list[Pairs]) -> None:
    def wording(asked: str) -> str:
        return re.sub(r"\d+", "#", asked).replace("apple ", "apples ")

    trained = Counter(wording(asked) for talk in training for asked, _ in talk)
    for question in harder:
        asked, reply = exchanges(question)[-1]
        assert trained[wording(asked)] >= 100, asked
        low, high = pair_of(question)
        assert reply in (
            f"{low} plus {high} is {low + high}.",
            f"{high} plus {low} is {low + high}.",
        )
