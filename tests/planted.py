"""Edits of conversations that a reader would still call the same, planted with a seed."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from neoxkit.data.conversation import Conversation

Edit = Callable[[Conversation, random.Random], Conversation]


def _with(talk: Conversation, at: int, text: str) -> Conversation:
    turns = list(talk.turns)
    turns[at] = replace(turns[at], text=text)
    return replace(talk, turns=tuple(turns))


def _replaced(
    talk: Conversation, rng: random.Random, pattern: str, new: Sequence[str]
) -> Conversation:
    """Replace a match of the pattern in some turn; a last full stop is put where there is none."""
    places = [(at, m) for at, t in enumerate(talk.turns) for m in re.finditer(pattern, t.text)]
    if not places:
        return _with(talk, 0, talk.turns[0].text + ".")
    at, match = rng.choice(places)
    text = talk.turns[at].text
    return _with(talk, at, text[: match.start()] + rng.choice(new) + text[match.end() :])


def _words(talk: Conversation, rng: random.Random, least: int) -> tuple[int, list[str]]:
    """Return a turn of at least so many words, and these."""
    turns = [(at, t.text.split(" ")) for at, t in enumerate(talk.turns)]
    return rng.choice([turn for turn in turns if len(turn[1]) >= least])


def full_stop(talk: Conversation, rng: random.Random) -> Conversation:
    return _replaced(talk, rng, "[.?!,]", ("", "!", ";", "..."))


def number_or_name(talk: Conversation, rng: random.Random) -> Conversation:
    return _replaced(talk, rng, r"\d+|(?<=[a-z,] )[A-Z][a-z]+|\w+", ("17", "Marguerite"))


def inserted(talk: Conversation, rng: random.Random) -> Conversation:
    at, words = _words(talk, rng, 1)
    words.insert(rng.randrange(len(words) + 1), "really")
    return _with(talk, at, " ".join(words))


def removed(talk: Conversation, rng: random.Random) -> Conversation:
    at, words = _words(talk, rng, 2)
    del words[rng.randrange(len(words))]
    return _with(talk, at, " ".join(words))


def swapped(talk: Conversation, rng: random.Random) -> Conversation:
    at, words = _words(talk, rng, 2)
    first = rng.randrange(len(words) - 1)
    words[first : first + 2] = reversed(words[first : first + 2])
    return _with(talk, at, " ".join(words))


def case(talk: Conversation, rng: random.Random) -> Conversation:
    change = rng.choice((str.lower, str.upper, str.title))
    return replace(talk, turns=tuple(replace(t, text=change(t.text)) for t in talk.turns))


def greeting(talk: Conversation, rng: random.Random) -> Conversation:
    at = rng.choice([at for at, turn in enumerate(talk.turns) if turn.role == "agent"])
    said = rng.choice(("Hello! ", "Hi there, I am happy to help you with that today. "))
    return _with(talk, at, said + talk.turns[at].text)


def turn(talk: Conversation, rng: random.Random) -> Conversation:
    """Take out one of several turns, so that a reply is left; of two, change a full stop."""
    ways = [talk.turns[:at] + talk.turns[at + 1 :] for at in range(len(talk.turns))]
    ways = [way for way in ways if len(way) > 1 and any(t.role == "agent" for t in way)]
    return replace(talk, turns=rng.choice(ways)) if ways else full_stop(talk, rng)


def space(talk: Conversation, rng: random.Random) -> Conversation:
    at = rng.randrange(len(talk.turns))
    change = rng.choice(((" ", "  "), (" ", "\n"), (" ", "\t"), (". ", ".\n\n")))
    return _with(talk, at, talk.turns[at].text.replace(*change) + " ")


EDITS: tuple[Edit, ...] = (
    full_stop, number_or_name, inserted, removed, swapped, case, greeting, turn, space,
)  # fmt: skip
