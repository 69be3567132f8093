"""overlap.py: near-duplicates between the sides are found, and nothing else; nothing is lost."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import planted
import pytest
from conftest import REPOSITORY, SHARED_DATA
from small_talk import TOKENIZER, encode, talk

from neoxkit.data import (
    audit,
    encoding,
    manifests,
    near_index,
    overlap,
    reading,
    selection,
    word_runs,
    words,
)
from neoxkit.data.conversation import Conversation, Names, Turn
from neoxkit.data.overlap import Near
from neoxkit.data.table import Store, Table
from neoxkit.errors import UserError
from neoxkit.lab import data
from neoxkit.models import loading
from neoxkit.settings import TokenizeSettings

SEED, PLANTED = 0, 100
SHARED = ("gsm8k_test", "taskmaster4_small", "oasst_en100")


@cache
def conversations(name: str) -> tuple[Conversation, ...]:
    """Return the conversations of the sample, or of a file of shared/data."""
    folder = REPOSITORY / "data" if name == "sample" else SHARED_DATA
    if not (folder / f"{name}.txt").is_file():
        pytest.skip(f"no {name}.txt in shared/data beside the checkout")
    settings = TokenizeSettings(train_file=str(folder / f"{name}.txt"))
    return tuple(reading.read_sides(settings)["train"].conversations)


def split(name: str, share: float) -> tuple[Table, Table]:
    sides, _ = selection.split_rows(encode(*conversations(name)), None, share, SEED)
    return sides["train"], sides["eval"]


def look(train: Table, held_out: Table, how: str = "tell") -> Near:
    return overlap.look_for(train, held_out, TOKENIZER, how)


def one_pair(mine: Conversation, other: Conversation, **options: str) -> bool:
    """Return whether two conversations are nearly the same, which must not depend on the side."""
    a, b = encode(mine, **options), encode(other, **options)
    found = [look(a, b), look(b, a)]
    for near in found:
        assert near.marked.tolist() == [len(near.found) == 1]
    assert len(found[0].found) == len(found[1].found)
    return bool(found[0].marked[0])


@pytest.mark.parametrize("edit", planted.EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("name", ["sample", *SHARED])
def test_every_planted_edit_is_found(name: str, edit: planted.Edit) -> None:
    """In the train side a copy with an edit stands for each of a hundred held-out conversations."""
    rng = random.Random(SEED)
    known = [c for c in conversations(name) if sum(len(t.text.split()) for t in c.turns) > 7]
    chosen = rng.sample(known, min(PLANTED, len(known)))
    edited = [edit(c, rng) for c in chosen]
    originals, copies = encode(*chosen), encode(*edited)
    for train, held_out in ((copies, originals), (originals, copies)):
        near = look(train, held_out)
        assert len(near.found) == len(chosen)
        assert near.marked.all()


# What was read and is the same to a reader, by the held-out line: Hi there! and Hello!, with one
# reply, Hi, what can I get for you today?
READ = {"gsm8k_test": [], "taskmaster4_small": [1745], "oasst_en100": []}


@pytest.mark.parametrize("name", SHARED)
def test_real_files_have_no_others_than_a_reader_finds(name: str) -> None:
    near = look(*split(name, 0.5))
    assert near.held_out.column("line")[near.found].tolist() == READ[name]


def text_words(rows: Table, row: int) -> Counter[str]:
    return Counter(re.findall(r"\w+", str(TOKENIZER.decode(rows[row].ids)).lower()))


def test_what_is_found_in_the_sample_shares_its_words() -> None:
    """The sample asks the same in many ways; a pair has all but a few words of the shorter one."""
    near = look(*split("sample", 0.05))
    assert 0 < len(near.found) < 0.3 * len(near.held_out)
    for row in near.found.tolist():
        one = text_words(near.held_out, row)
        other = text_words(near.train, int(near.partner[row]))
        shared = (one & other).total() / min(one.total(), other.total())
        assert shared > 0.7, (one, other)


LONG = "Tell me all that you know about the sea, and why it is so cold there in the winter."
REPLY = "The sea is wide and deep, and in the winter the sun is low, so it warms the water less."


def test_a_shorter_conversation_must_have_the_same_words() -> None:
    hi = talk(1, "Hi", "Good day.")
    assert one_pair(hi, talk(1, "hi!", "Good  day"))
    assert not one_pair(hi, talk(1, "Hey", "Good day."))
    assert not one_pair(talk(1, "Is it?", "Yes, it is"), talk(1, "Is it?", "No, it is"))
    assert not one_pair(talk(1, "So?", "Yes, it is true"), talk(1, "So?", "Yes, it is good"))
    eight = talk(1, "Is it so?", "Yes, it is")  # with the two names
    assert one_pair(eight, talk(1, "Is it so?", "No, it is"))


def test_other_replies_or_questions_are_no_near_duplicates() -> None:
    mine = talk(1, LONG, REPLY)
    assert one_pair(mine, mine)
    assert not one_pair(mine, talk(1, LONG, "I don't know what to say to that, ask someone else."))
    assert not one_pair(mine, talk(1, "Why do we have to learn so much at school?", REPLY))
    assert not one_pair(talk(1, LONG, REPLY * 4), talk(1, REPLY, REPLY * 4))
    assert not one_pair(talk(1, "What is 3 plus 4?", "It is 7."), talk(1, "What is 2 plus 4?", "6"))


@pytest.mark.parametrize("number", [2, 5, 40])
@pytest.mark.parametrize("train_on", ["agent", "all"])
def test_a_shared_system_prompt_is_no_near_duplicate(number: int, train_on: str) -> None:
    """Few and many: it is not counted as many have it, and it is not trained."""
    prompt = "You are a friend who says what is true. " * 3 + " ".join(map(str, range(100, 160)))
    talks = [c for c in conversations("sample") if len(c.turns) == 2 and "plus" in c.turns[1].text]
    chosen = [replace(c, preamble=prompt) for c in talks[: 2 * number]]
    bare = encode(*talks[: 2 * number], train_on=train_on)
    rows = encode(*chosen, train_on=train_on)
    half = np.arange(number)
    expected = look(bare.select(half + number), bare.select(half))
    near = look(rows.select(half + number), rows.select(half))
    assert {*near.found} <= {*expected.found}


def test_a_refusal_that_many_get_is_no_near_duplicate() -> None:
    no = "I am sorry, but I can't help with that. Please ask someone who knows more than I do."
    known, rng = (
        sorted({w for t in conversations("sample")[0].turns for w in t.text.split()}),
        random.Random(SEED),
    )
    for number in (6, 80):
        asked = [talk(i, " ".join(rng.sample(known, 12)), no) for i in range(number)]
        rows, half = encode(*asked), np.arange(number) < number // 2
        assert not len(look(rows.select(half), rows.select(~half)).found)


def documents(*texts: str) -> Table:
    found = [Conversation(i, (Turn("document", text),)) for i, text in enumerate(texts, 1)]
    return encoding.encode(TOKENIZER, found, Names(), "all")


PAGES = [" ".join(f"{word}{page}" for word in LONG.split()) * 4 for page in range(6)]


def test_documents_are_compared_in_parts_and_dropped_as_wholes() -> None:
    long = documents(*PAGES[:3]).in_parts(40)
    held_out = documents(PAGES[1].replace("sea", "lake", 1)).in_parts(40)
    near = look(long, held_out, "drop")
    assert {*long.column("line")[near.marked]} == {2}
    assert {*near.left.column("line")} == {1, 3}
    assert near.num_dropped == (long.column("line") == 2).sum()


def sides() -> tuple[Table, Table]:
    train = encode(talk(1, LONG, REPLY), talk(2, "Hi", "Good day."), talk(3, LONG, REPLY + " Yes."))
    return train, encode(talk(9, LONG, REPLY.replace("low", "high")), talk(12, "Bye", "Bye."))


def test_tell_keeps_all_and_drop_leaves_out_what_is_marked() -> None:
    near = look(*sides())
    assert near.left is near.train and near.num_dropped == 0
    assert near.found.tolist() == [0] and near.marked.tolist() == [True, False, True]
    assert near.notes() == [
        "1 of 2 held-out conversations have a near-duplicate in the train side: "
        "set near_duplicates to drop to leave out 2 of its own"
    ]
    dropped = look(*sides(), how="drop")
    assert dropped.left.column("line").tolist() == [2]
    assert dropped.held_out.column("line").tolist() == [9, 12]
    assert dropped.notes()[0].endswith(
        "held-out conversations had a near-duplicate in the train side: 2 of its own are left out"
    )
    assert dropped.as_dict() == {"held_out": 1, "train": 2, "dropped": 2, "templates": 0}


def test_ignore_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "words_of", None)
    near = look(*sides(), how="ignore")
    assert near.left is near.train and not len(near.found) and near.notes() == []
    assert look(sides()[0], sides()[1].select(slice(0))).notes() == []


def test_a_train_side_of_near_duplicates_alone_is_not_dropped() -> None:
    train, held_out = sides()
    with pytest.raises(UserError, match="near_duplicates: every conversation of the train side"):
        look(train.select(slice(1)), held_out, "drop")


def test_a_conversation_that_only_has_what_many_have_is_counted() -> None:
    """No run of words tells these apart, so only the same words would be found; a note says it."""
    asked = [talk(i, LONG, REPLY, str(i), REPLY) for i in range(100, 150)]
    alike = encode(*asked, talk(200, LONG, REPLY))
    near = look(encode(talk(1, LONG, REPLY + " Yes.")), alike)
    assert near.templates == 1 and near.partner[-1] == -1
    assert near.notes()[-1].startswith("1 held-out conversations have only words that many others")


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the rows are read; of each held-out row a few hashes are kept; same result."""
    train, held_out = split("sample", 0.05)
    whole, most, longest = look(train, held_out), 4000, int(train.length.max())
    read: list[int] = []
    ids, index_of = Store.ids, near_index.Index._set_runs

    def spied(store: Store, start: int, end: int) -> np.ndarray:
        read.append(end - start)
        return ids(store, start, end)

    def kept(index: near_index.Index, runs: word_runs.Runs) -> None:
        assert np.bincount(runs.row).max() <= sum(word_runs.KEPT) + 2
        index_of(index, runs)

    monkeypatch.setattr(Store, "ids", spied)
    monkeypatch.setattr(near_index.Index, "_set_runs", kept)
    monkeypatch.setattr(near_index, "_AT_ONCE", most)
    near = look(train, held_out)
    assert max(read) <= most + 2 * longest and sum(read) > train.length.sum()
    assert near.marked.tolist() == whole.marked.tolist()
    assert near.found.tolist() == whole.found.tolist()


def test_words_are_the_same_whatever_the_signs_and_capitals() -> None:
    def hashes(text: str) -> list[int]:
        return words.words_of(documents(text), words.Vocabulary(TOKENIZER)).hash.tolist()

    assert hashes("Hello, WORLD: caf\u00e9!") == hashes("hello world  Caf\u00e9")
    assert hashes("(The end) - 12,000") == hashes("the\n\nEnd 12.000")
    assert len(hashes("Is it 12,000?")) == 4
    rows = documents("A sea of ice", "Are you?")
    both = words.words_of(rows.cut(np.array([2, 2])), words.Vocabulary(TOKENIZER))
    assert both.count.tolist() == [len(hashes(one)) for one in ("A sea", "Are")]
    assert both.hash.tolist() == hashes("A sea") + hashes("Are")
    assert hashes("ab c") != hashes("a bc") != hashes("abc")


def test_the_audit_counts_what_is_dropped() -> None:
    source = reading.read_sides(TokenizeSettings(train_file=str(REPOSITORY / "data/sample.txt")))
    rows = encode(*conversations("sample")[:400])
    fitted, counts = selection.fit(rows, 40, "cut")
    sides, _ = selection.split_rows(fitted, None, 0.2, SEED)
    near = look(*sides.values(), "drop")
    assert near.num_dropped
    kept = {"train": near.left, "eval": sides["eval"]}
    check = audit.audit(kept, {"train": counts}, TOKENIZER, source, near.num_dropped)[-1]
    assert check.passed and f"+ {near.num_dropped} near-duplicates" in check.found
    for wrong in (0, near.num_dropped + 1):
        assert not audit.audit(kept, {"train": counts}, TOKENIZER, source, wrong)[-1].passed


def test_the_manifest_and_the_card_say_what_was_found() -> None:
    settings = TokenizeSettings(train_file=str(REPOSITORY / "data/sample.txt"))
    near = look(*sides(), how="drop")
    given = settings.as_dict(), "tiny", TOKENIZER, reading.read_sides(settings), {}
    kept = {"train": near.left, "eval": near.held_out}
    manifest = manifests.make_manifest(*given, kept, ["A note."], [near])
    assert manifest["near_duplicates"] == near.as_dict()
    assert manifest["split_notes"] == ["A note.", *near.notes()]
    assert near.notes()[0] in manifests.card(manifest)
    ignored = look(*sides(), how="ignore")
    for none in ([], [ignored]):
        manifest = manifests.make_manifest(*given, kept, [], none)
        assert manifest["near_duplicates"] is None and manifest["split_notes"] == []


def test_01_shows_three_pairs_side_by_side_and_escapes_them() -> None:
    held_out = encode(*(talk(i, f"<b>{LONG}</b> {i}", REPLY) for i in range(10, 15)))
    train = encode(*(talk(i, f"<b>{LONG}</b> {i}!", REPLY) for i in range(10, 15)))
    shown = data.split(["A note."], [look(train, held_out)], TOKENIZER)
    assert "<b>" not in shown.html and "winter.&lt;/b&gt; 10" in shown.html
    lines = shown.text.splitlines()
    assert lines[0] == "- A note." and lines[1].startswith("- 5 of 5 held-out")
    assert [line.split(": ")[0] for line in lines[4:]] == ["line 10", "line 11", "line 12"]
    assert all(line.count("line 1") == 2 and "↵↵" in line for line in lines[4:])
    ignored = look(train.select([0]), held_out.select([4]), "ignore")
    nothing = data.split([], [ignored], TOKENIZER)
    assert "near-duplicates may be" in nothing.text


def test_the_pythia_tokenizer_gives_the_same_pairs() -> None:
    """Pairs are found by words: the ids of a text, and its tokens, decide nothing."""
    folder = SHARED_DATA / "gpt-neox-tokenizer"
    if not folder.is_dir():
        pytest.skip("no gpt-neox-tokenizer in shared/data beside the checkout")
    tokenizer = loading.load_tokenizer(str(folder))
    some: Sequence[Conversation] = conversations("sample")[:600]
    found = []
    for one in (TOKENIZER, tokenizer):
        rows = encoding.encode(one, some, Names("Bot"))
        near = overlap.look_for(rows.select(slice(100, None)), rows.select(slice(100)), one)
        found.append((near.found.tolist(), near.marked.tolist()))
    assert found[0] == found[1] and found[0][0]
