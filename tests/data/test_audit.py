"""audit.py: each finding and each failed check appears where it should, and nowhere else."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_talk import EVAL, LONG, TOKENIZER, TRAIN, encode, talk

from neoxkit.data import audit, encoding, selection
from neoxkit.data.conversation import Conversation, Names, Turn
from neoxkit.data.detect import Form
from neoxkit.data.examining import ConversationFile, Examined
from neoxkit.data.places import Places
from neoxkit.data.sources import Source
from neoxkit.data.table import Table
from neoxkit.errors import UserError

TEXT = Path("t.txt")
SOURCE = ConversationFile(
    Source("t.txt", TEXT, "text", (TEXT,)),
    "",
    Places("t.txt"),
    Form("text", Names("Bot")),
    [],
    Examined(conversations=5, marks=5),
)


def lines(found: list[audit.Finding], what: str) -> dict[str, list[int]]:
    (finding,) = [f for f in found if what in f.what]
    return {side: rows.column("line").tolist() for side, rows in finding.rows.items()}


FOUND = audit.findings({"train": TRAIN, "eval": EVAL})


@pytest.mark.parametrize(
    ("what", "train", "evaluation"),
    [
        ("repeats another", [2], []),
        ("asks what the other side", [5], [1]),
        ("turn of fewer than 2", [3], []),
        ("less than 10%", [4], []),
    ],
)
def test_each_finding_has_its_conversations_and_no_others(
    what: str, train: list[int], evaluation: list[int]
) -> None:
    assert lines(FOUND, what) == {"train": train, "eval": evaluation}


def test_the_longest_conversations_come_first() -> None:
    found = lines(FOUND, "longest")["train"]
    assert found[0] == 4 and sorted(found) == [1, 2, 3, 4, 5]
    many = encode(*(talk(i, "a " * i, "Yes.") for i in range(1, 40)))
    rows = audit.findings({"train": many})[4].rows["train"]
    assert rows.column("line").tolist() == list(range(39, 29, -1))


def test_most_tokens_per_character_finds_text_unknown_to_the_tokenizer() -> None:
    odd = encode(talk(1, "What is 3 plus 4?", "It is 7."), talk(2, "⚙⚙⚙⚙⚙⚙⚙", "⚙⚙⚙⚙⚙⚙⚙"))
    assert lines(audit.findings({"train": odd}), "tokens per character")["train"] == [2, 1]


def test_first_questions_have_equal_hashes_if_their_ids_are_equal() -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["3", "4", "plus", "sea", "you"], 3)) for _ in range(300)]
    rows = encode(*(talk(i, word, f"No {i}") for i, word in enumerate(words)))
    hashes = audit.first_questions(rows)
    by_word = {}
    for word, value in zip(words, hashes.tolist(), strict=True):
        assert by_word.setdefault(word, value) == value
    assert len(set(by_word.values())) == len(by_word)
    assert len(audit.first_questions(rows.select(slice(0)))) == 0


def test_only_the_first_question_of_a_conversation_counts() -> None:
    one = encode(talk(1, "Hi", "Yes?", "Who are you?", "A program."))
    other = encode(talk(1, "Hi", "No.", "What?", "Nothing."), talk(2, "Who are you?", "A ship."))
    first, again, different = [*audit.first_questions(one), *audit.first_questions(other)]
    assert first == again != different


def test_turn_lengths_add_up_to_the_conversation() -> None:
    for rows in (TRAIN, EVAL):
        found = audit.turn_lengths(rows)
        assert sum(map(sum, found.values())) == rows.length.sum()
        assert len(found["agent"]) == len(rows.replies()[0])
    assert len(audit.turn_lengths(TRAIN)["user"]) == 6


def audited(rows: Table, block_size: int = 280, too_long: str = "drop") -> list[audit.Check]:
    fitted, counts = selection.fit(rows, block_size, too_long)
    sides, _ = selection.split_rows(fitted, None, 0.2, 0)
    return audit.audit(sides, {"train": counts}, TOKENIZER, {"train": SOURCE})


@pytest.mark.parametrize("train_on", ["agent", "all"])
@pytest.mark.parametrize(("block_size", "too_long"), [(280, "drop"), (40, "drop"), (18, "cut")])
def test_good_data_passes(train_on: str, block_size: int, too_long: str) -> None:
    many = [talk(i, f"What is {i} plus 4?", "It is 7.", "Sure?", "Yes " * i) for i in range(1, 20)]
    checks = audited(encode(*many, train_on=train_on), block_size, too_long)
    assert [check.passed for check in checks] == [True] * 5
    audit.require(checks)


def test_split_documents_pass() -> None:
    pages = [(i, f"Page {i}: and so on. " * 9) for i in range(1, 20)]
    found = [Conversation(i, (Turn("document", text),)) for i, text in pages]
    checks = audited(encoding.encode(TOKENIZER, found, Names(), "all"), 40, "split")
    assert [check.passed for check in checks] == [True] * 5
    assert re.fullmatch(r"19 = \d+ \+ 0 - \d+ more parts; cut: 0", checks[-1].found)


def failed(rows: Table, source: ConversationFile = SOURCE, **changes: object) -> str:
    sides = {"train": rows, "eval": rows.select(slice(0))}
    counts = {"train": selection.fit(rows, 280, "drop")[1]}
    for name, value in changes.items():
        setattr(counts["train"], name, value)
    checks = audit.audit(sides, counts, TOKENIZER, {"train": source})
    with pytest.raises(UserError) as refused:
        audit.require(checks)
    return str(refused.value)


def test_a_dataset_with_hardly_any_trained_token_is_refused() -> None:
    rows = encode(talk(1, LONG * 40, "No."))
    assert failed(rows).startswith("agent_name: trained tokens: 3 of ")


def test_an_untrained_end_of_a_turn_is_refused() -> None:
    rows = encode(talk(1, "Hi", "Yes?", "No", "Bye."), talk(2, "Hi", "Yes?"))
    store = rows.store
    try:
        store.replies[-1, 2] -= 1  # as if the last end mark did not belong to the reply
        assert failed(rows).startswith("train_on: agent turns whose end is trained: 2 of 3")
    finally:
        store.replies[-1, 2] += 1


@pytest.mark.parametrize(
    "changes", [{"read": 6}, {"read": 4}, {"dropped": {"lost": [9]}}, {"cut": [3]}]
)
def test_a_conversation_that_vanished_is_refused(changes: dict[str, object]) -> None:
    assert failed(TRAIN, **changes).startswith("too_long: conversations read = kept + dropped")


def test_an_uncounted_cut_is_refused() -> None:
    length = TRAIN.length.copy()
    length[0] -= 1
    assert failed(replace(TRAIN, length=length)).startswith("too_long: ")


def test_conversations_in_both_files_are_accounted_for() -> None:
    fitted = selection.fit_sides({"train": TRAIN, "eval": EVAL}, 280, "drop")
    again = encode(talk(7, "Who are you?", "A program."))
    counts = {"train": fitted["train"][1], "eval": selection.fit(again, 280, "drop")[1]}
    sides, notes = selection.split_rows(fitted["train"][0], again, 0.0, 0)
    assert notes[0].startswith("1 conversations are in both files")
    checks = audit.audit(sides, counts, TOKENIZER, {"train": SOURCE})
    assert checks[-1].passed and "+ 1 on both sides" in checks[-1].found


ASKED = "Fine.\n\nUSER : and you?\nMe too."
NOT_ASKED = ["Fine. User: x", "The user:\nyou", "Fine.\n\n```\nUser: x\n```", "A\nHuman: homo"]


@pytest.mark.parametrize(
    "label", ["USER :", "**User**:", "> User:", "- User：", "Human:", '"User":']
)
def test_words_after_a_label_of_the_asking_side_are_refused(label: str) -> None:
    """No agent turn may contain what looks like a question, however the file is read."""
    odd = talk(3, "Hi", ASKED.replace("USER :", label))
    said = failed(encode(talk(1, "Hi", "Yes?"), odd))
    assert said.startswith("train_file: trained tokens after a label of the asking side: ")
    assert "(line 3)" in said
    (row,) = encode(odd)
    behind = TOKENIZER(f"{label} and you?\nMe too.", add_special_tokens=False)["input_ids"]
    assert encode(odd).column("astray").tolist() == [len(behind)] and len(behind) < row.num_trained


@pytest.mark.parametrize("text", NOT_ASKED)
def test_other_mentions_of_a_user_are_accepted(text: str) -> None:
    assert encode(talk(1, "Hi\n\nUser: x", text)).column("astray").tolist() == [0]
    assert encode(talk(1, "Hi", ASKED), train_on="all").column("astray").tolist() == [0]


def test_conversations_without_end_marks_are_refused() -> None:
    unmarked = replace(SOURCE, facts=Examined(conversations=5, questions=10, marks=3))
    said = failed(TRAIN, unmarked)
    assert said.startswith("end_mark: conversations: 5, with 2.0 questions on average; 3 end with")
    without = replace(unmarked, form=Form("text", Names("Bot"), "none"))
    assert all(
        c.passed
        for c in audit.audit(
            {"train": TRAIN}, {"train": selection.fit(TRAIN, 280)[1]}, TOKENIZER, {"train": without}
        )
    )
