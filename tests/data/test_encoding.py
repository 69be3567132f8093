"""encoding.py, selection.py and tokenized.py: ids, labels, length policy, dataset folder."""

import copy
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import SHARED_DATA as DATA
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from neoxkit import files, paths
from neoxkit.data import encoding, manifests, reading, selection, tokenized
from neoxkit.data.conversation import Conversation, Names, Turn, prompt, render
from neoxkit.data.table import ReplySpan, Table
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.settings import TokenizeSettings

END = "<|endoftext|>"
Tokenizer = PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return loading.load_tokenizer("tiny")


@pytest.fixture(scope="session")
def neox() -> Tokenizer:
    if not (DATA / "gpt-neox-tokenizer").is_dir():
        pytest.skip(f"the GPT-NeoX tokenizer is not in {DATA}")
    return loading.load_tokenizer(str(DATA / "gpt-neox-tokenizer"))


def talk(*texts: str, preamble: str = "", line: int = 1) -> Conversation:
    """Make a conversation whose turns have these texts, user first."""
    turns = tuple(Turn(("user", "agent")[i % 2], text) for i, text in enumerate(texts))
    return Conversation(line, turns, preamble)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def stretches(tokenizer: Tokenizer, ids: Sequence[int], labels: Sequence[int]) -> list[str]:
    """Return the text of each unbroken range of trained tokens."""
    edges = np.flatnonzero(np.diff([0, *(np.asarray(labels) != -100), 0]))
    parts = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(list(ids[a:b]), clean_up_tokenization_spaces=False) for a, b in parts]


def piece_by_piece(
    tokenizer: Tokenizer, conversation: Conversation, names: Names, train_on: str
) -> tuple[list[int], list[bool]]:
    """Return ids and trained tokens without offsets, from the pieces between labels' colons.

    A colon ends a word for the tokenizer, so the ids of the pieces, joined, are those of the whole.
    """
    labels = [f"{getattr(names, t.role)}:" for t in conversation.turns]
    after = [f"\n\n{label}" for label in labels[1:]] + [""]
    pieces = [(conversation.preamble and f"{conversation.preamble}\n\n") + labels[0]]
    for turn, end in zip(conversation.turns, after, strict=True):
        pieces.append((turn.text and f" {turn.text}") + end)
    learnt = [False, *(turn.role == "agent" and turn.trained for turn in conversation.turns)]
    ids: list[int] = []
    trained: list[bool] = []
    for piece, learn in zip(pieces, learnt, strict=True):
        some = ids_of(tokenizer, piece)
        ids += some
        trained += [learn] * len(some)
    trained.append(learnt[-1])
    if train_on == "all":
        num = len(ids_of(tokenizer, labels[0] + "".join(pieces[1:]))) + 1
        trained = [False] * (len(ids) + 1 - num) + [True] * num
        trained[0] = False
    return [*ids, tokenizer.eos_token_id], trained


def assert_same_as_piece_by_piece(
    tokenizer: Tokenizer, talks: Sequence[Conversation], names: Names
) -> None:
    for train_on in ("agent", "all"):
        rows = encoding.encode(tokenizer, talks, names, train_on)
        for row, conversation in zip(rows, talks, strict=True):
            ids, trained = piece_by_piece(tokenizer, conversation, names, train_on)
            assert row.ids.tolist() == ids, conversation
            assert row.trained.tolist() == trained, conversation
            whole = render(conversation, names)[0] + END
            assert tokenizer.decode(ids) == unicodedata.normalize("NFC", whole)
            assert ids.count(tokenizer.eos_token_id) == 1 and tokenizer.pad_token_id not in ids


# --- ids and labels ---


def test_a_token_is_found_in_a_few_looks_however_long_the_text() -> None:
    """Two characters a token; the first has its space in the token's text."""

    class Long:
        looks = 0

        def __len__(self) -> int:
            return 10**6

        def token_to_chars(self, token: int) -> tuple[int, int]:
            self.looks += 1
            return 2 * token + 1, 2 * token + 2

    long = Long()
    found = [encoding._first_token(long, char) for char in (0, 1, 2, 1_999_998, 2_000_000)]
    assert found == [0, 0, 1, 999_999, 10**6] and long.looks < 5 * 22


def test_ids_and_labels_by_hand(tiny: Tokenizer) -> None:
    (row,) = encoding.encode(
        tiny, [talk("hi", "reply", "more", "reply2", line=4)], Names("Dr. Rosey")
    )
    asked, again = "User: hi\n\nDr. Rosey:", " more\n\nDr. Rosey:"
    reply, last = ids_of(tiny, " reply\n\nUser:"), [*ids_of(tiny, " reply2"), 0]
    a, b = len(ids_of(tiny, asked)), len(ids_of(tiny, again))
    assert row.ids.tolist() == [*ids_of(tiny, asked), *reply, *ids_of(tiny, again), *last]
    assert row.labels.tolist() == [-100] * a + reply + [-100] * b + last
    assert (row.ids.dtype, row.labels.dtype, row.trained.dtype) == (np.int32, np.int32, bool)
    end = a + len(ids_of(tiny, " reply"))
    second = a + len(reply) + b
    assert row.replies == (
        ReplySpan(a, end, a + len(reply)),
        ReplySpan(second, len(row) - 1, len(row)),
    )
    assert (row.line, row.fault, row.num_trained) == (4, "", len(reply) + len(last))


TWO_AGENT_TURNS = Conversation(1, (Turn("agent", "w"), Turn("agent", "x"), Turn("user", "y")))
TOYS = {  # what: (conversation, text of each stretch of tokens trained under "agent")
    "one": (talk("hi", "yes"), [f" yes{END}"]),
    "two": (talk("a", "reply", "b", "reply2"), [" reply\n\nUser:", f" reply2{END}"]),
    "preamble": (talk("a", "b", preamble="User manual.\n\nBe kind."), [f" b{END}"]),
    "unanswered": (talk("a", "b", "c"), [" b\n\nUser:"]),
    "agent first": (TWO_AGENT_TURNS, [" w\n\nJoi: x\n\nUser:"]),
    "never answered": (talk("a"), []),
    "typed marks": (
        talk(f"a {END} b", f"say {END}\nor <|padding|>{END}"),
        [f" say {END}\nor <|padding|>{END}{END}"],
    ),
    "labels in text": (
        talk("Joi: a\nUser: b", "User: c\n\nUser: d\n\nJoi: e", "f", "g"),
        [" User: c\n\nUser: d\n\nJoi: e\n\nUser:", f" g{END}"],
    ),
}


@pytest.mark.parametrize("toy", TOYS)
def test_trained_text(tiny: Tokenizer, toy: str) -> None:
    conversation, wanted = TOYS[toy]
    (row,) = encoding.encode(tiny, [conversation], Names("Joi"))
    assert stretches(tiny, row.ids, row.labels) == wanted
    whole = render(replace(conversation, preamble=""), Names("Joi"))[0] + END
    begin = "" if conversation.preamble else tiny.decode([row.ids[0]])  # token 0 is never trained
    (row,) = encoding.encode(tiny, [conversation], Names("Joi"), "all")
    assert stretches(tiny, row.ids, row.labels) == [whole.removeprefix(begin)]
    assert begin in ("", "User", "J") and not row.trained[0]


ODD = {
    "decomposed": "cafe\u0301 a\u0301\u0323 \u1100\u1161\u11a8 \u212b\u0958\U0001d15e \u0344",
    "mark first": "\u0301e\u0301",
    "emoji": "👩‍👩‍👧 🇩🇪 👍🏽",
    "separators": "a\u2028\u2029b\x0cc\x85d\x1ce",
    "right to left": "\u200fשלום \u202bעולם\u202c مرحبا",
    "punctuation": "?!: ...:",
    "long word": "Donaudampfschiff" * 40,
    "blanks": "a  b    c\t\td \n\n\n e\u00a0\u3000f",
    "marks": f"{END}<|padding|>|||IP_ADDRESS|||",
    "lines": "one\n\ntwo\n- three:\n\n    four",
}


@pytest.mark.parametrize("name", ["tiny", "neox"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_text_is_encoded_as_piece_by_piece(
    request: pytest.FixtureRequest, name: str, odd: str
) -> None:
    text = ODD[odd]
    talks = [talk(text, f"r {text}", text, text, preamble=text), talk(text, text, text)]
    for names in (
        Names(), Names("Dr. Zoe\u0308"), Names("🤖", "Human"), Names("J.", "Dr. Zoe\u0308"),
    ):  # fmt: skip
        assert_same_as_piece_by_piece(request.getfixturevalue(name), talks, names)


@pytest.mark.parametrize("name", ["tiny", "neox"])
def test_toys_are_encoded_as_piece_by_piece(request: pytest.FixtureRequest, name: str) -> None:
    talks = [talk("", "", "a", ""), *(toy for toy, _ in TOYS.values())]
    assert_same_as_piece_by_piece(request.getfixturevalue(name), talks, Names("Joi"))


@pytest.mark.parametrize(  # counts and lengths from the README.md of the data
    ("name", "num", "median", "longest"),
    [
        ("gsm8k_test", 1319, 155, 407),
        ("taskmaster4_small", 286, 59, 167),
        ("oasst_en100", 99, 324, 2725),
    ],
)
def test_real_text(neox: Tokenizer, name: str, num: int, median: int, longest: int) -> None:
    if not (DATA / f"{name}.txt").is_file():
        pytest.skip(f"{name}.txt is not in {DATA}")
    file = reading.read(DATA / f"{name}.txt")
    lengths = [len(row) for row in encoding.encode(neox, file.conversations, file.names)]
    assert (file.names, len(lengths)) == (Names(), num)
    assert (int(np.median(lengths)), max(lengths)) == (median, longest)
    assert_same_as_piece_by_piece(neox, file.conversations[:150], Names())


def test_ids_are_those_of_the_real_tokenizer(neox: Tokenizer) -> None:
    (row,) = encoding.encode(neox, [talk("x", "y", preamble="Hello world")], Names("Joi"))
    assert neox("Hello world")["input_ids"] == row.ids[:2].tolist() == [12092, 1533]


@pytest.mark.parametrize("name", ["tiny", "neox"])
def test_prompt_ids_begin_the_conversation(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer = request.getfixturevalue(name)
    texts = ["Hi  there:", "Yes?", "cafe\u0301", "  odd \n\n", "??", "last"]
    for names in (Names(), Names("Dr. Rosey", "Q"), Names("J.")):
        (row,) = encoding.encode(tokenizer, [talk(*texts, preamble="Be kind.")], names)
        for i, reply in enumerate(row.replies):
            asked = talk(*texts[: 2 * i + 1], preamble="Be kind.")
            head = ids_of(tokenizer, prompt(asked, names))
            assert row.ids[: reply.start].tolist() == head


def test_batches_change_nothing(tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [talk("a" * i, "b" * (7 - i), line=i) for i in range(1, 7)]
    whole = [(row.ids.tolist(), row.line) for row in encoding.encode(tiny, talks, Names("Joi"))]
    monkeypatch.setattr(encoding, "_BATCH", 4)
    assert [
        (row.ids.tolist(), row.line) for row in encoding.encode(tiny, talks, Names("Joi"))
    ] == whole
    assert len(encoding.encode(tiny, [], Names("Joi"))) == 0


# --- the length policy ---

LONG = talk("q one", "first reply", "q two", "second reply here", "q three", "the third", line=5)


def test_block_size_is_inclusive(tiny: Tokenizer) -> None:
    rows = encoding.encode(tiny, [LONG], Names("Joi"))
    n = len(rows[0])
    for too_long in ("drop", "cut", "error"):
        kept, counts = selection.fit(rows, n, too_long)
        assert kept[0].ids.tolist() == rows[0].ids.tolist()
        assert (counts.kept, counts.cut, counts.dropped) == (1, [], {})
    kept, counts = selection.fit(rows, n - 1, "drop")
    assert len(kept) == 0 and counts.dropped == {f"longer than {n - 1} tokens": [5]}
    with pytest.raises(UserError, match=rf"^train file, line 5: .*{n} tokens.* {n - 1} -- \S"):
        selection.fit(rows, n - 1, "error")


@pytest.mark.parametrize("last", ["agent", "user"])
def test_cut_ends_after_a_whole_agent_turn(tiny: Tokenizer, last: str) -> None:
    """At every block size the most whole exchanges are kept; if none fits, all tokens that fit."""
    conversation = LONG if last == "agent" else talk(*(t.text for t in LONG.turns[:5]), line=5)
    (row,) = rows = encoding.encode(tiny, [conversation], Names("Joi"))
    begin = "User: q one\n\nJoi:"
    once = f"{begin} first reply\n\nUser:"
    twice = f"{once} q two\n\nJoi: second reply here\n\nUser:"
    asked, *overs = (len(ids_of(tiny, text)) for text in (begin, once, twice))
    for block_size in range(1, len(row)):
        length = max((over for over in overs if over <= block_size), default=block_size)
        kept, counts = selection.fit(rows, block_size, "cut")
        if length <= asked:
            assert len(kept) == 0 and counts.dropped == {"no trained token within block_size": [5]}
            continue
        assert counts.cut == [5] and counts.dropped == {}
        assert kept[0].ids.tolist() == row.ids[:length].tolist()
        assert kept[0].labels.tolist() == row.labels[:length].tolist()
        assert tiny.eos_token_id not in kept[0].ids
        assert kept[0].replies == row.replies[: sum(over <= block_size for over in overs)]


def test_cut_without_an_agent_turn_ends_at_block_size(tiny: Tokenizer) -> None:
    (row,) = rows = encoding.encode(
        tiny, [talk("a long question nobody answers")], Names("Joi"), "all"
    )
    kept, _ = selection.fit(rows, 9, "cut")
    assert kept[0].ids.tolist() == row.ids[:9].tolist() and kept[0].num_trained == 8


@pytest.mark.parametrize("train_on", ["agent", "all"])
@pytest.mark.parametrize("too_long", ["drop", "cut"])
@pytest.mark.parametrize("block_size", [8, 14, 20, 10_000])
def test_counts_add_up(tiny: Tokenizer, train_on: str, too_long: str, block_size: int) -> None:
    talks = [talk(*(f"text {j}" for j in range(1 + i % 5)), line=i) for i in range(1, 60)]
    talks += [talk("a", "", line=90), talk("", "b", line=91), talk("c", line=92)]
    rows = encoding.encode(tiny, talks, Names("Joi"), train_on)
    kept, counts = selection.fit(rows, block_size, too_long)
    dropped = [line for lines in counts.dropped.values() for line in lines]
    assert sorted([row.line for row in kept] + dropped) == [t.line for t in talks]
    assert (
        counts.read
        == len(talks)
        == counts.kept + sum(map(len, counts.dropped.values()))
        == len(kept) + len(dropped)
    )
    assert counts.tokens == sum(len(row.ids) for row in kept)
    assert counts.trained_tokens == sum((row.labels != -100).sum() for row in kept)
    assert counts.trained_tokens + counts.trained_tokens_lost == sum(r.num_trained for r in rows)
    whole = {row.line: len(row) for row in rows}
    assert counts.cut == [row.line for row in kept if len(row) < whole[row.line]]
    assert all(row.num_trained > 0 and len(row) <= block_size for row in kept)
    assert counts.dropped["a turn is empty"] == [90, 91]
    no_reply = [t.line for t in talks if len(t.turns) == 1] if train_on == "agent" else None
    assert counts.dropped.get("no reply") == no_reply
    shown = dict(counts.rows())
    assert (shown["conversations read"], shown["kept"]) == (f"{counts.read}", f"{counts.kept}")
    assert shown["dropped: a turn is empty"] == "2 (lines 90, 91)"


# --- the split and the dataset folder ---


def test_eval_file_leaves_no_shared_text_on_the_train_side(tiny: Tokenizer) -> None:
    rows = encoding.encode(tiny, [talk("a", "b"), talk("c", "d"), talk("a", "b")], Names("Joi"))
    sides, notes = selection.split_rows(rows, rows.select(slice(1)), 0.5, 0)
    assert {side: of.at.tolist() for side, of in sides.items()} == {"train": [1], "eval": [0]}
    assert notes[0].startswith("2 conversations are in both files")
    with pytest.raises(UserError, match=r"^eval_file: has every conversation that train_file has"):
        selection.split_rows(rows, rows, 0.5, 0)


def test_an_empty_held_out_set_is_reported(tiny: Tokenizer) -> None:
    rows = encoding.encode(tiny, [talk("a", "b"), talk("a", "b")], Names("Joi"))
    assert selection.num_duplicates(rows) == 1
    for share, why in ((0, "eval_share is 0"), (0.5, "only one conversation")):
        sides, notes = selection.split_rows(rows, None, share, 0)
        assert {side: of.at.tolist() for side, of in sides.items()} == {"train": [0, 1], "eval": []}
        assert why in notes[0]


def talks(num: int) -> list[Conversation]:
    return [talk(f"what is {i}?", f"it is {i}") for i in range(num)]


@pytest.mark.parametrize("num", [40, 41, 60, 63, 77, 399, 2000, 5001])
@pytest.mark.parametrize("seed", [0, 1])
def test_too_few_held_out_are_reported_and_the_remedy_holds_out_enough(
    tiny: Tokenizer, num: int, seed: int
) -> None:
    rows = encoding.encode(tiny, talks(num), Names("Joi"))
    share = 3 / num
    sides, (note,) = selection.split_rows(rows, None, share, seed)
    assert len(sides["eval"]) == 3
    assert note.startswith(
        "Only 3 conversations are held out: 03 can't tell whether a difference between two models "
        "is chance. eval_share "
    )
    better, said = re.search(r"eval_share (\S+) holds out (\d+) \(of", note).groups()
    settings = TokenizeSettings(eval_share=float(better))
    sides, notes = selection.split_rows(rows, None, settings.eval_share, seed)
    assert (len(sides["eval"]), notes) == (int(said), [])
    least = selection.LEAST_HELD_OUT
    assert least <= len(sides["eval"]) <= least + num // 100


def test_the_suggested_share_counts_repeats_once(tiny: Tokenizer) -> None:
    """20 of the 60 conversations are copies of one, and all copies are on the same side."""
    rows = encoding.encode(tiny, talks(40) + talks(1) * 20, Names("Joi"))
    *_, (note,) = selection.split_rows(rows, None, 0.05, 0)
    assert "eval_share 0.5 holds out" in note and "(of 60)" in note
    sides, notes = selection.split_rows(rows, None, 0.5, 0)
    assert len(sides["eval"]) >= selection.LEAST_HELD_OUT and notes == []


def test_more_conversations_are_asked_for_if_no_share_holds_out_enough(tiny: Tokenizer) -> None:
    rows = encoding.encode(tiny, talks(30), Names("Joi"))
    *_, (note,) = selection.split_rows(rows, None, 0.05, 0)
    assert note.startswith("Only 2 conversations are held out: ")
    assert note.endswith(
        " Even eval_share 0.5 holds out 15 (of 30): give more conversations, or an eval_file."
    )
    assert len(selection.split_rows(rows, None, selection.MOST_SHARE, 0)[0]["eval"]) == 15
    with pytest.raises(UserError, match="eval_share"):
        TokenizeSettings(eval_share=selection.MOST_SHARE + 0.01)
    *_, notes = selection.split_rows(
        rows, encoding.encode(tiny, talks(60)[30:], Names("Joi")), 0.05, 0
    )
    assert notes == []  # the eval_file that was asked for


def test_a_small_eval_file_is_reported(tiny: Tokenizer) -> None:
    rows, other = (encoding.encode(tiny, part, Names("Joi")) for part in (talks(60)[1:], talks(1)))
    *_, (note,) = selection.split_rows(rows, other, 0.05, 0)
    assert note == (
        "Only 1 conversation is held out: 03 can't tell whether a difference between two models is "
        "chance. Give an eval_file of at least 20 conversations that fit."
    )


@pytest.mark.parametrize(
    ("block_size", "pair"),
    [
        (10_000, (talk("cafe\u0301", "b"), talk("caf\u00e9", "b"))),  # the same text after NFC
        (
            12,
            (talk("a", "b", "c" * 40, "d"), talk("a", "b", "e" * 40, "f")),
        ),  # the same after the cut
    ],
    ids=["nfc", "cut"],
)
def test_equal_ids_are_never_on_both_sides(
    tiny: Tokenizer, block_size: int, pair: tuple[Conversation, Conversation]
) -> None:
    rows, _ = selection.fit(encoding.encode(tiny, pair, Names("Joi")), block_size, "cut")
    assert len(rows) == 2 and rows[0].ids.tolist() == rows[1].ids.tolist()
    sides, _ = selection.split_rows(rows, None, 0.5, 0)
    assert {side: len(of) for side, of in sides.items()} == {"train": 2, "eval": 0}


Saved = tuple[Path, dict, list[Table], list[Table]]


@pytest.fixture
def saved(tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """Make a dataset folder from a file of 20 conversations, as 01_tokenize does."""
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    text = "".join(f"User: what is {i}?\n\nAgent: it is {i}{END}\n" for i in range(20))
    (tmp_path / "talks.txt").write_text(text, encoding="utf-8")
    settings = TokenizeSettings(train_file="talks.txt", dataset="toy", block_size=64).as_dict()
    sources = {"train": reading.read(tmp_path / "talks.txt")}
    rows, counts = selection.fit(
        encoding.encode(tiny, sources["train"].conversations, Names("Agent")), 64
    )
    sides, notes = selection.split_rows(rows, None, 0.2, 0)
    manifest = manifests.make_manifest(
        settings, "tiny", tiny, sources, {"train": counts}, sides, notes
    )
    folder = paths.tokenized("toy")
    tokenized.save(sides, folder, manifest)
    return folder, manifest, *sides.values()


def test_saved_dataset_opens_with_datasets(tiny: Tokenizer, saved: Saved) -> None:
    folder, manifest, train, evaluation = saved
    sides = datasets.load_from_disk(folder)
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 16, "eval": 4}
    for side, rows in (("train", train), ("eval", evaluation)):
        assert sides[side].to_list() == [
            {
                "input_ids": row.ids.tolist(),
                "labels": row.labels.tolist(),
                "length": len(row.ids),
                "trained": int((row.labels != -100).sum()),
                "line": row.line,
                "reply_start": row.replies[-1].start,
                "reply_end": len(row.ids) - 1,
            }
            for row in rows
        ]
        numbers = manifest["sides"][side]
        assert numbers["tokens"] == sum(sides[side]["length"])
        assert numbers["trained_tokens"] == sum(sides[side]["trained"])
        assert numbers["longest"] == max(sides[side]["length"])
    first = sides["train"][0]
    asked = tiny.decode(first["input_ids"][: first["reply_start"]])
    assert asked == f"User: what is {(first['line'] - 1) // 3}?\n\nAgent:"
    assert tokenized.load(folder)[1] == manifest == files.read_json(folder / "manifest.json")
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    (note,) = manifest["split_notes"]
    assert "| train | 16 |" in card and f"**Held out.** {note}" in card
    assert note.startswith("Only 4 conversations are held out")


@pytest.mark.parametrize("num_eval", [2, 0])
def test_second_save_replaces_the_first(saved: Saved, num_eval: int) -> None:
    folder, manifest, train, evaluation = saved
    numbers = {"train": {"conversations": 3}, "eval": {"conversations": num_eval}}
    sides = {side: {**manifest["sides"][side], **numbers[side]} for side in numbers}
    (folder / "stale").touch()
    rows = {"train": train.select(slice(3)), "eval": evaluation.select(slice(num_eval))}
    tokenized.save(rows, folder, {**manifest, "sides": sides})
    loaded, _ = tokenized.load(folder)
    assert loaded["train"]["line"] == train.column("line")[:3].tolist()
    assert loaded["eval"]["line"] == evaluation.column("line")[:num_eval].tolist()
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    assert not (folder / "stale").exists()


def cut(arrow: Path) -> None:
    arrow.write_bytes(arrow.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut, "toy/train is cut short or damaged"),
        (Path.unlink, "toy/train lacks some of its files"),
        (lambda arrow: (arrow.parent / "state.json").unlink(), "toy/train lacks some of its files"),
        (lambda arrow: (arrow.parent / "state.json").write_text("{"), "is cut short or damaged"),
    ],
)
@pytest.mark.parametrize("read", [tokenized.load, tokenized.sizes])
def test_a_damaged_dataset_is_refused_in_one_line(
    saved: Saved, read: Callable[[Path], object], damage: Callable[[Path], object], what: str
) -> None:
    folder = saved[0]
    (arrow,) = (folder / "train").glob("*.arrow")
    damage(arrow)
    with pytest.raises(UserError, match=rf"^dataset: .*{what} -- run 01_tokenize again$"):
        read(folder)


def test_load_refuses_a_dataset_that_does_not_match_its_manifest_or_text(
    saved: Saved, tmp_path: Path
) -> None:
    folder, manifest, train, evaluation = saved
    sides = {"train": train, "eval": evaluation}
    tokenized.save(sides | {"eval": evaluation.select(slice(1, None))}, folder, manifest)
    with pytest.raises(UserError, match=r"toy/eval has 3 rows, its manifest says 4 -- run 01"):
        tokenized.load(folder)
    tokenized.save(sides, folder, manifest)
    with (tmp_path / "talks.txt").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"talks\.txt has changed since it was tokenized -- run 01"):
        tokenized.load(folder)
    (tmp_path / "talks.txt").unlink()
    assert len(tokenized.load(folder)[0]["train"]) == 16  # a dataset may travel without its text
    with pytest.raises(
        UserError, match=r"data/tokenized/none is not a tokenized dataset -- run 01"
    ):
        tokenized.load(paths.tokenized("none"))


def test_checks_against_the_manifest(tiny: Tokenizer, saved: Saved) -> None:
    manifest = saved[1]
    assert [tokenized.check_block_size(size, manifest) for size in (0, 8, 64)] == [64, 8, 64]
    with pytest.raises(UserError, match=r"^block_size: 65 is above the dataset's 64 -- "):
        tokenized.check_block_size(65, manifest)
    tokenized.check_tokenizer(tiny, manifest)
    other = copy.deepcopy(tiny)
    other.add_tokens(["zzz"])
    with pytest.raises(UserError, match="its tokenizer is not the dataset's"):
        tokenized.check_tokenizer(other, manifest)


def test_nothing_left_to_train_on_is_refused_with_reasons(tiny: PreTrainedTokenizerBase) -> None:
    talk = Conversation(4, (Turn("user", "Hi"), Turn("agent", "a reply of some more tokens")))
    encoded = {"train": encoding.encode(tiny, [talk], Names("Agent"))}
    with pytest.raises(UserError, match=r"no conversation is left \(1 longer than 8 tokens\)"):
        selection.fit_sides(encoded, 8, "drop")
    assert selection.fit_sides(encoded, 280, "drop")["train"][1].kept == 1


@pytest.mark.parametrize("train_on", ["agent", "all"])
def test_trimmed_offsets_give_the_same_labels(tiny: Tokenizer, train_on: str) -> None:
    """GPT-2's tokenizer assigns the space before a word to no token, which must not matter."""
    trimmed = copy.deepcopy(tiny)
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert trimmed("a b", return_offsets_mapping=True)["offset_mapping"][1] == (2, 3)
    talks = [
        Conversation(1, (Turn("user", "Hi"), Turn("agent", "Yes, I do."), Turn("user", "é x"))),
        Conversation(2, (Turn("agent", "🙂  two  blanks"), Turn("agent", "3")), "A shop."),
    ]
    for one, other in zip(
        encoding.encode(tiny, talks, Names("Joi"), train_on),
        encoding.encode(trimmed, talks, Names("Joi"), train_on),
        strict=True,
    ):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.replies == other.replies


def documents(tokenizer: Tokenizer, *texts: str) -> Table:
    found = [Conversation(i, (Turn("document", text),)) for i, text in enumerate(texts, start=1)]
    return encoding.encode(tokenizer, found, Names(), "all")


@pytest.mark.parametrize("block_size", [8, 13, 40, 1000])
def test_a_document_is_split_into_equal_parts_and_nothing_is_lost(
    tiny: Tokenizer, block_size: int
) -> None:
    """The parts in order are the document; only the first token of each is not trained."""
    whole = documents(tiny, "one two three four " * 30, "short", "a b c d e f g " * 11)
    rows, counts = selection.fit(whole, block_size, "split")
    joined = {line: np.concatenate([r.ids for r in rows if r.line == line]) for line in (1, 2, 3)}
    assert all(np.array_equal(joined[row.line], row.ids) for row in whole)
    assert all(len(row) <= block_size for row in rows)
    for line in (1, 2, 3):
        lengths = [len(row) for row in rows if row.line == line]
        assert max(lengths) - min(lengths) <= 1
    assert all(row.trained.tolist() == [False] + [True] * (len(row) - 1) for row in rows)
    assert counts.trained_tokens == sum(map(len, rows)) - len(rows)
    assert counts.trained_tokens_lost == counts.more_parts == len(rows) - 3
    assert (counts.kept, counts.cut, counts.dropped) == (len(rows), [], {})
    assert dict(counts.rows())["kept"] == "3"


def test_all_parts_of_a_document_are_on_one_side(tiny: Tokenizer) -> None:
    pages = documents(tiny, *(f"{i} and so on " * 20 for i in range(30)))
    rows = selection.fit(pages, 16, "split")[0]
    sides, _ = selection.split_rows(rows, None, 0.3, 0)
    train, evaluation = sides.values()
    assert len(train) + len(evaluation) == len(rows) and len({*evaluation.at}) == 9
    assert not {*train.at.tolist()} & {*evaluation.at.tolist()}
    again, notes = selection.split_rows(rows, evaluation, 0.3, 0)
    assert again["train"].at.tolist() == train.at.tolist()
    assert notes == ["9 conversations are in both files: left out of the train side"]


def test_conversations_are_not_split(tiny: Tokenizer) -> None:
    rows = encoding.encode(tiny, [talk("a", "b")], Names())
    with pytest.raises(UserError, match=r"^too_long: split is for documents, and these are"):
        selection.fit(rows, 280, "split")
