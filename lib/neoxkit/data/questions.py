"""Questions for a model: from a file, or from the held-out conversations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit import paths
from neoxkit.data import reading
from neoxkit.data.conversation import Conversation, Names, Turn, prompt
from neoxkit.data.selection import SETS
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """A prompt that ends at the agent's label, and the reference reply, if there is one."""

    prompt: str
    reference: str | None
    kind: str = ""
    set: str = ""


def own_questions(texts: Iterable[str], names: Names) -> list[Question]:
    """Turn the user's own texts into questions without references."""
    return [
        Question(
            prompt(Conversation(0, (Turn("user", text.strip()),)), names),
            None,
            "my questions",
            "my questions",
        )
        for text in texts
    ]


def example(questions: Sequence[Question], names: Names) -> str:
    """Return what the user says last in the first question; a greeting if there is no question.

    >>> example([Question("User: Hi\\n\\nAgent: Yes?\\n\\nUser: How?\\n\\nAgent:", None)], Names())
    'How?'
    """
    return asked(questions[0], names) if questions else "Hello."


def asked(question: Question, names: Names) -> str:
    """Return what the user says last in a question."""
    last = f"\n\n{question.prompt}".rpartition(f"{names.stop_text} ")[2]
    return last.rpartition("\n\n")[0]


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spread.

    >>> spread(list(range(10)), 3), spread([1, 2], 3), spread([1, 2], 0)
    ([0, 3, 6], [1, 2], [])
    """
    step = max(len(items) / max(most, 1), 1)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def questions_for(
    manifest: Mapping[str, Any],
    eval_rows: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    file: str = "",
    side: str = "eval",
) -> tuple[list[Question], str]:
    """Return the held-out questions and where they come from.

    They are read from `file`; else from <train_file>_questions.jsonl beside the training text;
    else each held-out conversation is asked for its last reply. Those of the test side are not
    read from beside the text, where they are the same for every side.
    """
    beside = reading.questions_beside(paths.root() / manifest["source"]["path"])
    if file or (side == "eval" and beside.is_file()):
        path = paths.find("questions_file", file) if file else beside
        return read_questions(path, Names.of(manifest)), paths.short(path)
    found = [
        Question(
            decode(tokenizer, row["input_ids"][: row["reply_start"]]),
            decode(tokenizer, row["input_ids"][row["reply_start"] : row["reply_end"]]).strip(),
            "last reply",
            SETS[side],
        )
        for row in eval_rows
        if row["reply_start"] >= 0
    ]
    return found, f"the {SETS[side]}"


def read_questions(path: Path, names: Names) -> list[Question]:
    """Read questions in either conversation format; a last agent turn is the reference.

    JSON Lines may give each question a "kind" and a "set"; tables group by them.
    """
    source = reading.read(path, *names)
    found = []
    for c in source.conversations:
        before, reference = c, None
        if c.turns[-1].role == "agent":
            before, reference = replace(c, turns=c.turns[:-1]), c.turns[-1].text
        if not before.turns:
            raise UserError(source.places.at(c.line), "has no question", "add a user turn")
        kind, set_name = c.extra.get("kind", "all"), c.extra.get("set", "held out")
        found.append(Question(prompt(before, names), reference, kind, set_name))
    return found


def normal(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Return a text as the tokenizer normalises it: GPT-NeoX's composes accents (NFC)."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer.normalize_str(text) if normalizer else text


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Return the text of token ids as it was written: spaces are not cleaned up."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # only a batch gives a list
    return text
