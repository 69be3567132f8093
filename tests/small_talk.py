"""A few short conversations, encoded with the built-in model's tokenizer."""

from neoxkit.data import encoding
from neoxkit.data.conversation import Conversation, Names, Turn
from neoxkit.data.table import Table
from neoxkit.models import loading
from neoxkit.settings import TINY


def talk(line: int, *texts: str) -> Conversation:
    roles = ("user", "agent")
    return Conversation(line, tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))


TOKENIZER = loading.load_tokenizer(TINY)


def encode(*conversations: Conversation, train_on: str = "agent") -> Table:
    return encoding.encode(TOKENIZER, conversations, Names("Bot"), train_on)


LONG = "Tell me all that you know about the sea, and then some more of it, please."
TRAIN = encode(
    talk(1, "What is 3 plus 4?", "It is 7."),
    talk(2, "What is 3 plus 4?", "It is 7."),
    talk(3, "Hi", "x", "What?", "Nothing at all."),
    talk(4, LONG * 4, "No way."),
    talk(5, "Who are you?", "A program."),
)
EVAL = encode(
    talk(1, "Who are you?", "A ship."),
    talk(2, "Who are you", "A ship."),
    talk(3, "Good day", "Who are you?", "Who are you?", "A program."),
)
