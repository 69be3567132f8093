"""Random conversation files, written from a small grammar that knows who says what, are read back.

The asking side says kiwis and the answering side plums, each with its own number.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from neoxkit.data import encoding, naming, reading, text_format
from neoxkit.data.table import NOT_TRAINED
from neoxkit.models import loading
from neoxkit.settings import TINY

END = "<|endoftext|>"
FILES = 2000
TOKENIZER = loading.load_tokenizer(TINY)

NAMES = [
    ("User", "Agent"), ("User", "Dr. Rosey"), ("Human", "Assistant"), ("Question", "Answer"),
    ("Q", "A"), ("Ann", "Bob"), ("Instruction", "Response"), ("Иван", "Zoë"),
]  # fmt: skip
NEAR = [  # inexact ways to write a label
    " {name}:", "\t{name}:", "\ufeff{name}:", "{upper}:", "{lower}:", "**{name}:**", "*{name}*:",
    "**{name}**:",
    "__{name}__:", "### {name}:", "> {name}:", "\u200b{name}:", "{name} :",
    "{name}\u00a0:", "[{name}]:", "<b>{name}:</b>", "`{name}`:",
]  # fmt: skip
OTHER = ["Note: n", "Step 1: do", "http://x.y", "x: y", "- one: two", "Users: all", "# Title: t"]
WITHIN = ["say {user}: hi", "<|padding|>", f"so {END} ends", f"`{END}`", "{agent}", "ü🙂", "  x"]


@dataclass
class Truth:
    """The contents of a file: the roles and words of each conversation's turns, and the notes."""

    names: tuple[str, str]
    talks: list[list[tuple[str, list[str]]]] = field(default_factory=list)
    num: Counter[str] = field(default_factory=Counter)


class Writer:
    """Writes a file, and keeps the truth about it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.user, self.agent = self.random.choice(NAMES)
        self.truth = Truth((self.agent, self.user))
        self.between = self.random.choice(["\n\n", "\n\n", "\n\n\n", "\n \n", "\n"])
        self.said = 0

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def file(self) -> str:
        talks = [self.talk() for _ in range(self.random.randint(4, 8))]
        behind = self.random.choice(["\n", "\n", "\n\n", "", " \t\n"])
        whole = "".join(f"{talk}{END}{behind}" for talk in talks)
        ends = self.random.choice(["\n", "\n", "\r\n", "\r"])
        return whole.replace("\n", ends)

    def talk(self) -> str:
        """Write a conversation; its code blocks hold labels, or one is left open, but not both."""
        self.truth.talks.append([])
        self.may_stay_open, self.is_open = self.often(0.2), False
        turns = [
            self.turn(role) for _ in range(self.random.randint(1, 3)) for role in ("user", "agent")
        ]
        preamble = self.random.choice(["You are a shop.", "[Rules]\nBe kind."])
        begins = [preamble] if self.often(0.15) else []
        self.truth.num["preamble"] += len(begins)
        if self.between == "\n":
            self.truth.num["glued"] += len(begins) + len(turns) - 1
        return self.between.join(begins + turns)

    def turn(self, role: str) -> str:
        name = self.user if role == "user" else self.agent
        label = self.near(name) if self.often(0.06) else f"{name}:"
        self.truth.num["near"] += label != f"{name}:"
        words: list[str] = []
        body = "".join(self.parts(role, words))
        self.truth.talks[-1].append((role, words))
        self.truth.num[role] += 1
        return f"{label}{self.random.choice([' ', ' ', chr(10)])}{body}"

    def near(self, name: str) -> str:
        """Write a label inexactly; the first of a conversation gets no white space before it."""
        label = self.random.choice(NEAR if self.truth.talks[-1] else NEAR[3:])
        return label.format(name=name, upper=name.upper(), lower=name.lower())

    def word(self, role: str, words: list[str]) -> str:
        self.said += 1
        words.append(f"{'kiwi' if role == 'user' else 'plum'}{self.said}")
        return words[-1]

    def parts(self, role: str, words: list[str]) -> Iterator[str]:
        yield self.word(role, words)
        for _ in range(self.random.randint(0, 3)):
            if self.often(0.3):
                yield " " + self.random.choice(WITHIN).format(user=self.user, agent=self.agent)
            elif self.often(0.3):
                yield self.random.choice(["\n", "\n\n"]) + self.random.choice(OTHER)
            elif self.often(0.3):
                yield self.code(role, words)
            yield self.random.choice([" ", "\n", "\n\n"]) + self.word(role, words)

    def code(self, role: str, words: list[str]) -> str:
        fence = self.random.choice(["```", "~~~"])
        if self.may_stay_open and not self.is_open:
            self.is_open = True
            return f"\n{fence}py\n{self.word(role, words)}"
        label = ""
        if not self.may_stay_open and self.often(0.5):
            label = f"{self.random.choice([self.user, self.agent])}: "
            self.truth.num["fenced"] += 1
        return f"\n{fence}\n{label}{self.word(role, words)}\n{fence}\n"


def said(text: str) -> list[str]:
    """Return the kiwis and plums of a text."""
    return re.findall(r"(?:kiwi|plum)\d+", text)


def read(path: Path, seed: int) -> tuple[Truth, reading.ConversationFile, str]:
    writer = Writer(seed)
    text = writer.file()
    path.write_bytes(text.encode())
    known = writer.user.casefold() in naming.ASKING
    given = ("", "") if known and seed % 3 else writer.truth.names
    return writer.truth, reading.read(path, *given), text


@pytest.mark.parametrize("part", range(8))
def test_what_was_written_is_read(tmp_path: Path, part: int) -> None:
    for seed in range(part, FILES, 8):
        truth, file, text = read(tmp_path / "t.txt", seed)
        why = f"seed {seed}:\n{text}"
        assert file.names == truth.names, why
        found = [[(t.role, said(t.text)) for t in c.turns] for c in file.conversations]
        assert found == truth.talks, why
        facts = file.facts
        assert facts.conversations == facts.marks == len(truth.talks), why
        assert (facts.questions, facts.replies) == (truth.num["user"], truth.num["agent"]), why
        assert facts.with_preamble == truth.num["preamble"], why
        for note in ("near", "glued", "fenced"):
            what = getattr(text_format, note.upper())
            assert len(facts.notes.get(what, [])) == truth.num[note], why


@pytest.mark.parametrize("part", range(2))
def test_plums_are_trained_and_kiwis_never(tmp_path: Path, part: int) -> None:
    """The trained tokens contain all words of the answering side, and none of the asking side."""
    for seed in range(part, FILES, 16):
        truth, file, text = read(tmp_path / "t.txt", seed)
        rows = encoding.encode_file(TOKENIZER, file, file.names)
        labels = [row.labels for row in rows]
        trained = TOKENIZER.decode([i for ids in labels for i in ids if i != NOT_TRAINED])
        plums = [
            w for talk in truth.talks for role, words in talk if role == "agent" for w in words
        ]
        assert said(trained) == plums, f"seed {seed}:\n{text}"
        assert not rows.column("astray").any(), f"seed {seed}:\n{text}"
