"""Write the sample of short conversations that the kit's small models are trained and tested on.

The sample is a set of grids. A grid crosses facts ("3 plus 4 is 7.") with wordings
("What is 3 plus 4?", "Add 3 and 4."). One cell of a grid, a fact asked in one wording, is an
item. Some items of every grid are held out: they never occur in the training conversations,
while the same fact is trained in all its other wordings and the same wording with many other
facts. The held-out items become the test questions.

Run it as ``python data/make_sample.py``. It writes the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

SEED = 20240607
END_OF_TEXT = "<|endoftext|>"
TEXT_FILE = "sample.txt"
QUESTIONS_FILE = "sample_questions.jsonl"

# How many items of each kind are held out. With the names they make 200 questions.
HELD_OUT = {
    "sums": 40,
    "days": 8,
    "months": 16,
    "numbers": 14,
    "counting": 10,
    "opposites": 24,
    "colours": 10,
    "sizes": 28,
    "animals": 14,
}
HELD_OUT_NAMES = 36

# Training conversations besides the ones that ask one item alone.
TALK_AND_ITEM = 500
MIXTURES = 1850
NAME_CONVERSATIONS = 1060
SMALL_TALK = 120


def words(text: str, separator: str = " ") -> list[str]:
    """Return the words of a text as a list."""
    return text.split(separator)


# --- Hand-written material: small talk ------------------------------------------------------

Exchange = tuple[str, str]  # what the user says, what the agent replies

OPENINGS: list[Exchange] = [
    ("Hello.", "Hello! How can I help you?"),
    ("Hi.", "Hello! How can I help you?"),
    ("Hi there.", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! How can I help you?"),
    ("Good afternoon.", "Good afternoon! How can I help you?"),
    ("Good evening.", "Good evening! How can I help you?"),
]
CHAT: list[Exchange] = [
    ("How are you?", "I am fine, thank you."),
    ("How are you today?", "I am fine, thank you."),
    ("What can you do?", "I can answer short questions."),
    ("What are you?", "I am a small language model."),
    ("Are you a person?", "No, I am a small language model."),
]
BEFORE_A_QUESTION: list[Exchange] = [
    ("I have a question.", "Please ask your question."),
    ("Can I ask you a question?", "Please ask your question."),
    ("Can you help me?", "Yes, I can help you."),
]
AFTER_AN_ANSWER: list[Exchange] = [
    ("Thank you.", "You are welcome."),
    ("Well done.", "Thank you!"),
]
CLOSINGS: list[Exchange] = [
    ("Thanks for your help.", "You are welcome."),
    ("Thank you very much.", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Bye.", "Goodbye!"),
    ("See you later.", "See you later!"),
    ("Good night.", "Good night!"),
]

# --- Hand-written material: names -----------------------------------------------------------

NAMES = words(
    "Adam Alice Amy Anna Ben Clara Daniel David Emma Eric Eva Felix Fiona Frank George Grace "
    "Hannah Harry Helen Henry Ida Jack James Jane Julia Karl Kate Laura Leo Linda Lucy Maria "
    "Mark Max Mia Nina Noah Nora Oliver Oscar Paul Peter Robert Rosa Sam Sarah Simon Sofia "
    "Thomas Victor"
)
TELL_NAME = ["My name is {name}.", "I am {name}.", "You can call me {name}."]
GREET_AND_TELL_NAME = ["Hello, I am {name}.", "Hi, my name is {name}."]
MEET = "Nice to meet you, {name}."
ASK_NAME = [
    "What is my name?",
    "Who am I?",
    "Do you remember my name?",
    "Can you tell me my name?",
    "What am I called?",
]
RECALL = "Your name is {name}."

# --- Hand-written material: facts -----------------------------------------------------------

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
OPPOSITES = words(
    "hot cold, big small, tall short, fast slow, old young, happy sad, light dark, hard soft, "
    "wet dry, full empty, open closed, early late, loud quiet, rich poor, strong weak, "
    "clean dirty, high low, thick thin, wide narrow, near far, up down, left right, good bad, "
    "true false, first last, deep shallow, inside outside, awake asleep",
    ", ",
)
COLOURS = {
    "green": ["grass", "a frog", "a leaf"],
    "blue": ["the sky", "the sea"],
    "white": ["snow", "milk", "salt"],
    "yellow": ["a banana", "a lemon", "the sun"],
    "black": ["coal", "a raven"],
    "red": ["blood", "a tomato", "a strawberry"],
    "orange": ["a carrot", "a pumpkin"],
    "brown": ["chocolate", "a nut"],
    "grey": ["an elephant", "a stone"],
    "pink": ["a pig", "a flamingo"],
}
SMALL_TO_BIG = [
    "an ant",
    "a bee",
    "a mouse",
    "a rabbit",
    "a fox",
    "a sheep",
    "a horse",
    "an elephant",
    "a whale",
]
SOUNDS = {
    "a dog": "woof",
    "a cat": "meow",
    "a cow": "moo",
    "a sheep": "baa",
    "a duck": "quack",
    "a pig": "oink",
    "a horse": "neigh",
    "a hen": "cluck",
    "a bee": "buzz",
    "a snake": "hiss",
    "an owl": "hoot",
    "a frog": "croak",
    "a mouse": "squeak",
}
YOUNG = {
    "dog": "a puppy",
    "cat": "a kitten",
    "cow": "a calf",
    "sheep": "a lamb",
    "horse": "a foal",
    "duck": "a duckling",
    "pig": "a piglet",
    "hen": "a chick",
    "bear": "a cub",
    "goat": "a kid",
    "kangaroo": "a joey",
    "deer": "a fawn",
}
HOMES = {
    "a bee": "a hive",
    "a bird": "a nest",
    "a spider": "a web",
    "a rabbit": "a burrow",
    "a horse": "a stable",
    "a pig": "a sty",
    "a bear": "a cave",
    "a whale": "the sea",
    "a camel": "the desert",
    "a monkey": "the jungle",
}
# Pairs of numbers that the training conversations never show together, neither in a sum (in
# any wording or order) nor as the two ends of a count. They make the "harder" questions.
NEVER_SEEN_PAIRS = [(1, 7), (2, 5), (2, 9), (3, 8), (4, 6), (4, 10), (5, 9), (6, 8)]

# --- Hand-written material: wordings --------------------------------------------------------

SUM_WORDINGS = [
    "What is {a} plus {b}?",
    "How much is {a} and {b}?",
    "Add {a} and {b}.",
    "Tell me the sum of {a} and {b}.",
    "If I have {a} {apples} and get {b} more, how many do I have?",
]
SUM_REPLY = "{a} plus {b} is {c}."

Slots = dict[str, str]


@dataclass(frozen=True)
class Grid:
    """Facts, as values for the slots of the templates, and the wordings that ask for them."""

    kind: str
    wordings: list[str]
    reply: str
    facts: list[Slots]


@dataclass(frozen=True)
class Item:
    """One fact asked in one wording; the reply stands for the fact."""

    kind: str
    question: str
    reply: str

    def exchange(self) -> Exchange:
        """Return the item as one exchange of a conversation."""
        return self.question, self.reply


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def sum_slots(a: int, b: int) -> Slots:
    """Return the slots of the sum of a and b."""
    return {"a": str(a), "b": str(b), "c": str(a + b), "apples": "apple" if a == 1 else "apples"}


def never_seen(a: int, b: int) -> bool:
    """Tell whether the two numbers are kept out of the training conversations as a pair."""
    return (min(a, b), max(a, b)) in NEVER_SEEN_PAIRS


def sum_grids() -> list[Grid]:
    """Return the sums of two numbers from 1 to 10, both orders, without the reserved pairs."""
    numbers = range(1, 11)
    facts = [sum_slots(a, b) for a in numbers for b in numbers if not never_seen(a, b)]
    return [Grid("sums", SUM_WORDINGS, SUM_REPLY, facts)]


def neighbours(ring: Sequence[str], step: int) -> list[Slots]:
    """Return each entry x of a ring with the entry y that many steps away."""
    return [{"x": x, "y": ring[(i + step) % len(ring)]} for i, x in enumerate(ring)]


def day_grids() -> list[Grid]:
    """Return the days after and before each day of the week."""
    after = [
        "What day comes after {x}?",
        "Which day follows {x}?",
        "What is the day after {x}?",
        "Tell me the day after {x}.",
        "If today is {x}, what day is tomorrow?",
    ]
    before = [
        "What day comes before {x}?",
        "Which day is just before {x}?",
        "What is the day before {x}?",
        "Tell me the day before {x}.",
        "If today is {x}, what day was yesterday?",
    ]
    return [
        Grid("days", after, "The day after {x} is {y}.", neighbours(DAYS, 1)),
        Grid("days", before, "The day before {x} is {y}.", neighbours(DAYS, -1)),
    ]


def month_grids() -> list[Grid]:
    """Return the months after and before each month, and the number of each month."""
    after = [
        "What month comes after {x}?",
        "Which month follows {x}?",
        "What is the month after {x}?",
        "Tell me the month after {x}.",
    ]
    before = [
        "What month comes before {x}?",
        "Which month is just before {x}?",
        "What is the month before {x}?",
        "Tell me the month before {x}.",
    ]
    number = [
        "What number is the month of {x}?",
        "Which number does the month of {x} have?",
        "Tell me the number of the month of {x}.",
        "Do you know the number of the month of {x}?",
    ]
    numbered = [{"x": month, "n": str(i)} for i, month in enumerate(MONTHS, start=1)]
    return [
        Grid("months", after, "The month after {x} is {y}.", neighbours(MONTHS, 1)),
        Grid("months", before, "The month before {x} is {y}.", neighbours(MONTHS, -1)),
        Grid("months", number, "The month of {x} is month number {n}.", numbered),
    ]


def number_grids() -> list[Grid]:
    """Return the numbers after 1 to 20 and the numbers before 2 to 21."""
    after = [
        "What number comes after {x}?",
        "Which number follows {x}?",
        "What is the next number after {x}?",
        "Tell me the number after {x}.",
    ]
    before = [
        "What number comes before {x}?",
        "Which number is just before {x}?",
        "What is the number right before {x}?",
        "Tell me the number before {x}.",
    ]
    up = [{"x": str(n), "y": str(n + 1)} for n in range(1, 21)]
    down = [{"x": str(n), "y": str(n - 1)} for n in range(2, 22)]
    return [
        Grid("numbers", after, "The number after {x} is {y}.", up),
        Grid("numbers", before, "The number before {x} is {y}.", down),
    ]


def counting_grids() -> list[Grid]:
    """Return the counts of four to six numbers that start at 1 to 10."""
    wordings = [
        "Count from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "Say the numbers from {a} to {b}.",
        "Which numbers go from {a} to {b}?",
    ]
    facts = [
        {"a": str(a), "b": str(b), "row": ", ".join(str(n) for n in range(a, b + 1))}
        for a in range(1, 11)
        for b in range(a + 3, a + 6)
        if not never_seen(a, b)
    ]
    return [Grid("counting", wordings, "{row}.", facts)]


def opposite_grids() -> list[Grid]:
    """Return the opposites, each pair in both directions."""
    wordings = [
        "What is the opposite of {x}?",
        "Tell me the opposite of {x}.",
        "Which word means the opposite of {x}?",
        "Do you know the opposite of {x}?",
    ]
    pairs = [pair.split() for pair in OPPOSITES]
    facts = [{"x": x, "y": y} for one, other in pairs for x, y in ((one, other), (other, one))]
    return [Grid("opposites", wordings, "The opposite of {x} is {y}.", facts)]


def colour_grids() -> list[Grid]:
    """Return the colours of things."""
    wordings = [
        "What colour is {x}?",
        "What is the colour of {x}?",
        "Which colour does {x} have?",
        "Tell me the colour of {x}.",
    ]
    facts = [{"x": thing, "y": colour} for colour, things in COLOURS.items() for thing in things]
    return [Grid("colours", wordings, "The colour of {x} is {y}.", facts)]


def size_grids() -> list[Grid]:
    """Return the comparisons of every two animals, named in both orders."""
    bigger = [
        "Which is bigger, {x} or {y}?",
        "Tell me the bigger one, {x} or {y}.",
    ]
    smaller = [
        "Which is smaller, {x} or {y}?",
        "Tell me the smaller one, {x} or {y}.",
    ]
    facts = []
    for i, small in enumerate(SMALL_TO_BIG):
        for big in SMALL_TO_BIG[i + 1 :]:
            answer = {"small": small, "Small": capital(small), "big": big, "Big": capital(big)}
            facts += [answer | {"x": small, "y": big}, answer | {"x": big, "y": small}]
    return [
        Grid("sizes", bigger, "{Big} is bigger than {small}.", facts),
        Grid("sizes", smaller, "{Small} is smaller than {big}.", facts),
    ]


def animal_grids() -> list[Grid]:
    """Return the sounds, the young and the homes of animals."""
    sound = [
        "What does {x} say?",
        "What sound does {x} make?",
        "Tell me the sound of {x}.",
        "Which sound comes from {x}?",
    ]
    young = [
        "What is a young {x} called?",
        "What do you call a young {x}?",
        "Which word means a young {x}?",
        "Tell me the word for a young {x}.",
    ]
    home = [
        "Where does {x} live?",
        "What is the home of {x}?",
        "Tell me where {x} lives.",
        "In which place does {x} live?",
    ]
    sounds = [{"x": x, "X": capital(x), "y": y} for x, y in SOUNDS.items()]
    youngs = [{"x": x, "y": y} for x, y in YOUNG.items()]
    homes = [{"x": x, "X": capital(x), "y": y} for x, y in HOMES.items()]
    return [
        Grid("animals", sound, "{X} says {y}.", sounds),
        Grid("animals", young, "A young {x} is called {y}.", youngs),
        Grid("animals", home, "{X} lives in {y}.", homes),
    ]


def all_grids() -> list[Grid]:
    """Return every grid, in the order of the table."""
    return [
        *sum_grids(),
        *day_grids(),
        *month_grids(),
        *number_grids(),
        *counting_grids(),
        *opposite_grids(),
        *colour_grids(),
        *size_grids(),
        *animal_grids(),
    ]


def grid_items(grid: Grid) -> list[Item]:
    """Return every cell of a grid as an item."""
    return [
        Item(grid.kind, wording.format(**slots), grid.reply.format(**slots))
        for slots in grid.facts
        for wording in grid.wordings
    ]


# --- Chance that is the same everywhere -----------------------------------------------------

T = TypeVar("T")


def below(rng: Random, n: int) -> int:
    """Return a whole number from 0 to n - 1; only random() itself is promised to be stable."""
    return int(rng.random() * n)


def pick(rng: Random, choices: Sequence[T]) -> T:
    """Return one of the choices."""
    return choices[below(rng, len(choices))]


def shuffled(rng: Random, things: Sequence[T]) -> list[T]:
    """Return the things in a new order."""
    result = list(things)
    for i in range(len(result) - 1, 0, -1):
        j = below(rng, i + 1)
        result[i], result[j] = result[j], result[i]
    return result


@dataclass
class Deck:
    """Deals training items so that each comes up about equally often."""

    rng: Random
    items: list[Item]
    pile: list[Item] = field(default_factory=list)

    def deal(self, taken: Sequence[Exchange]) -> Exchange:
        """Deal the next item whose fact the conversation does not hold yet."""
        replies = [reply for _, reply in taken]
        while True:
            if not self.pile:
                self.pile = shuffled(self.rng, self.items)
            item = self.pile.pop()
            if item.reply not in replies:
                return item.exchange()
            self.pile.insert(0, item)


# --- What is held out -----------------------------------------------------------------------


def choose_held_out(rng: Random, items: Sequence[Item], count: int) -> list[Item]:
    """Choose items to hold out: at most one of a fact, and the wordings in turn."""
    by_fact: dict[str, list[Item]] = {}
    for item in items:
        by_fact.setdefault(item.reply, []).append(item)
    facts = shuffled(rng, list(by_fact.values()))[:count]
    return [cells[i % len(cells)] for i, cells in enumerate(facts)]


def choose_held_out_names(rng: Random) -> dict[str, str]:
    """Choose names, and for each the one wording in which it is never asked for."""
    names = shuffled(rng, NAMES)[:HELD_OUT_NAMES]
    return {name: ASK_NAME[i % len(ASK_NAME)] for i, name in enumerate(names)}


# --- Training conversations -----------------------------------------------------------------

Conversation = list[Exchange]


def fresh(rng: Random, choices: Sequence[Exchange], taken: Sequence[Exchange]) -> Exchange:
    """Pick small talk that the conversation does not hold yet."""
    return pick(rng, [choice for choice in choices if choice not in taken])


def talk_and_item(rng: Random, deck: Deck) -> Conversation:
    """Make a conversation of one item with small talk before or after it, or both."""
    shape = below(rng, 4)
    talk: Conversation = []
    if shape != 0:
        talk.append(pick(rng, BEFORE_A_QUESTION if shape == 1 else OPENINGS))
    talk.append(deck.deal(talk))
    if shape in (0, 2):
        talk.append(fresh(rng, CLOSINGS, talk))
    return talk


def mixture(rng: Random, deck: Deck) -> Conversation:
    """Make a conversation of two to five items, some of them with small talk around."""
    count = 2 + below(rng, 4)
    talk: Conversation = []
    if count < 5 and rng.random() < 0.35:
        talk.append(pick(rng, OPENINGS))
    for left in range(count - 1, -1, -1):
        talk.append(deck.deal(talk))
        if count < 4 and rng.random() < 0.2:
            between = AFTER_AN_ANSWER + (CHAT + BEFORE_A_QUESTION if left else [])
            talk.append(fresh(rng, between, talk))
    if count < 5 and rng.random() < 0.3:
        talk.append(fresh(rng, CLOSINGS, talk))
    return talk


def name_start(rng: Random, deck: Deck, name: str) -> Conversation:
    """Start a conversation in which the user tells a name and then talks of other things."""
    talk: Conversation = []
    tell = TELL_NAME + GREET_AND_TELL_NAME
    if rng.random() < 0.25:
        talk.append(pick(rng, OPENINGS))
        tell = TELL_NAME
    talk.append((pick(rng, tell).format(name=name), MEET.format(name=name)))
    for _ in range(below(rng, 3)):
        is_item = rng.random() < 0.7
        talk.append(deck.deal(talk) if is_item else fresh(rng, CHAT + BEFORE_A_QUESTION, talk))
    return talk


def name_conversation(rng: Random, deck: Deck, name: str, asks: Sequence[str]) -> Conversation:
    """Make a conversation that asks for the name in the first wording, perhaps in a second."""
    talk = name_start(rng, deck, name)
    recall = RECALL.format(name=name)
    talk.append((asks[0], recall))
    end = rng.random()
    if end < 0.3:
        talk.append(deck.deal(talk))
        talk.append((pick(rng, asks[1:]), recall))
    elif end < 0.5:
        talk.append(deck.deal(talk))
    elif end < 0.75:
        talk.append(fresh(rng, CLOSINGS, talk))
    return talk


def small_talk(rng: Random) -> Conversation:
    """Make a conversation of small talk only."""
    talk = [pick(rng, OPENINGS)]
    for _ in range(1 + below(rng, 2)):
        talk.append(fresh(rng, CHAT, talk))
    talk.append(pick(rng, CLOSINGS))
    return talk


def render(talk: Conversation) -> str:
    """Return the text of a conversation, its end mark included."""
    turns = [f"User: {user}\n\nAgent: {agent}" for user, agent in talk]
    return "\n\n".join(turns) + END_OF_TEXT + "\n"


@dataclass
class Training:
    """The training conversations, no two alike, with the kind of each."""

    conversations: list[Conversation] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    known: dict[str, bool] = field(default_factory=dict)

    def add(self, kind: str, make: Callable[[], Conversation]) -> None:
        """Add the first conversation that make() gives and that is not there yet."""
        talk = make()
        while render(talk) in self.known:
            talk = make()
        self.known[render(talk)] = True
        self.conversations.append(talk)
        self.kinds.append(kind)


def name_orders(rng: Random, held_out: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Return each name with its trained wordings, once for each wording in first place."""
    orders = []
    for name in NAMES:
        asks = [ask for ask in ASK_NAME if ask != held_out.get(name)]
        orders += [(name, asks[i:] + asks[:i]) for i in range(len(asks))]
    return shuffled(rng, orders)


def make_training(rng: Random, items: list[Item], held_out_names: dict[str, str]) -> Training:
    """Make all training conversations from the items that are not held out."""
    training = Training()
    deck = Deck(rng, items)
    for item in items:
        training.add(item.kind, lambda item=item: [item.exchange()])
    for _ in range(TALK_AND_ITEM):
        training.add("small talk and a question", lambda: talk_and_item(rng, deck))
    for _ in range(MIXTURES):
        training.add("mixtures", lambda: mixture(rng, deck))
    orders = name_orders(rng, held_out_names)
    for i in range(NAME_CONVERSATIONS):
        name, asks = orders[i % len(orders)]
        training.add("names", lambda name=name, asks=asks: name_conversation(rng, deck, name, asks))
    for _ in range(SMALL_TALK):
        training.add("small talk", lambda: small_talk(rng))
    return training


# --- Questions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A conversation whose last reply is the reference answer."""

    set: str
    kind: str
    talk: Conversation

    def to_json(self) -> str:
        """Return the question as one line of JSON."""
        messages = []
        for user, agent in self.talk:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": agent})
        return json.dumps({"set": self.set, "kind": self.kind, "messages": messages})


def lead_in(rng: Random, deck: Deck, item: Item) -> Conversation:
    """Make one or two trained exchanges to stand before a held-out item."""
    talk: Conversation = []
    if rng.random() < 0.35:
        talk.append(pick(rng, OPENINGS))
    if not talk or rng.random() < 0.6:
        talk.append(deck.deal([*talk, item.exchange()]))
    return talk


def held_out_questions(
    rng: Random, deck: Deck, held_out: list[Item], held_out_names: dict[str, str]
) -> list[Question]:
    """Make the held-out questions; every third item and every name is asked in several turns."""
    questions = []
    for i, item in enumerate(held_out):
        before = lead_in(rng, deck, item) if i % 3 == 2 else []
        questions.append(Question("held out", item.kind, [*before, item.exchange()]))
    for name, ask in held_out_names.items():
        talk = [*name_start(rng, deck, name), (ask, RECALL.format(name=name))]
        questions.append(Question("held out", "names", talk))
    return questions


def harder_questions() -> list[Question]:
    """Make sums of pairs that training never shows: each pair in each wording, orders in turn."""
    questions = []
    for i, (low, high) in enumerate(NEVER_SEEN_PAIRS):
        for j, wording in enumerate(SUM_WORDINGS):
            slots = sum_slots(low, high) if (i + j) % 2 == 0 else sum_slots(high, low)
            exchange = wording.format(**slots), SUM_REPLY.format(**slots)
            questions.append(Question("harder", "sums, pair never seen", [exchange]))
    return questions


# --- Table and files ------------------------------------------------------------------------


def table(training: Training, questions: Sequence[Question], items: Sequence[Item]) -> str:
    """Return the counts by kind as lines of text."""
    kind_of = {item.question: item.kind for item in items}
    kind_of |= {ask: "names" for ask in ASK_NAME}
    asked = [kind_of.get(user) for talk in training.conversations for user, _ in talk]
    kinds = list(dict.fromkeys([*training.kinds, *(question.kind for question in questions)]))
    rows = [("kind", "conversations", "asked in all", "held out", "harder")]
    counts = [
        (
            training.kinds.count(kind),
            asked.count(kind),
            sum(q.kind == kind and q.set == "held out" for q in questions),
            sum(q.kind == kind and q.set == "harder" for q in questions),
        )
        for kind in kinds
    ]
    rows += [(kind, *map(str, row)) for kind, row in zip(kinds, counts, strict=True)]
    rows.append(("total", *(str(sum(column)) for column in zip(*counts, strict=True))))
    lines = [f"{row[0]:<26}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    turns = sum(q.set == "held out" and len(q.talk) > 1 for q in questions)
    lines.append(f"held-out questions of several turns: {turns}")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write the text as UTF-8 with plain line ends, and print the name and the size."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    print(f"{path.name}: {len(text.encode('utf-8'))} bytes")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the sample and write its two files."""
    parser = argparse.ArgumentParser(description="Write the sample conversations and questions.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder to write to (default: the folder of this file)",
    )
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)

    rng = Random(SEED)
    items = [item for grid in all_grids() for item in grid_items(grid)]
    held_out: list[Item] = []
    for kind, count in HELD_OUT.items():
        held_out += choose_held_out(rng, [item for item in items if item.kind == kind], count)
    held_out_names = choose_held_out_names(rng)
    trained = [item for item in items if item not in held_out]

    training = make_training(rng, trained, held_out_names)
    questions = held_out_questions(rng, Deck(rng, trained), held_out, held_out_names)
    questions += harder_questions()

    print(table(training, questions, items))
    write(out / TEXT_FILE, "".join(shuffled(rng, [render(t) for t in training.conversations])))
    write(out / QUESTIONS_FILE, "".join(question.to_json() + "\n" for question in questions))


if __name__ == "__main__":
    main()
