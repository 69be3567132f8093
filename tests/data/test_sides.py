"""The third side of a dataset: split off by the same keyed hash, saved, and read by name alone."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tokenize

from neoxkit import files, paths
from neoxkit.cli import main as cli
from neoxkit.data import audit, encoding, manifests, overlap, selection, tokenized
from neoxkit.data.conversation import Conversation, Names, Turn
from neoxkit.data.table import Table
from neoxkit.errors import UserError
from neoxkit.lab import data
from neoxkit.models import loading
from neoxkit.settings import TokenizeSettings

TOKENIZER = loading.load_tokenizer("tiny")
LONG = "the cat sat on the mat by the door of the house in the cold of a long winter"


def talks(numbers: range, end: str = "") -> Table:
    found = [
        Conversation(i, (Turn("user", f"{LONG} {i}?"), Turn("agent", f"{LONG} is {i}{end}")))
        for i in numbers
    ]
    return encoding.encode(TOKENIZER, found, Names())


ROWS = talks(range(1, 61))
KEYS = np.concatenate([ROWS.keys(), ROWS.keys()[:20]])  # the first 20 are there twice


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("test_share", [0.0, 0.01, 0.2, 0.4])
@pytest.mark.parametrize("eval_share", [0.0, 0.01, 0.1])
def test_a_test_share_changes_nothing_of_the_held_out_set(
    eval_share: float, test_share: float, seed: int
) -> None:
    without = selection.split(KEYS, eval_share, seed)
    side = selection.split(KEYS, eval_share, seed, test_share)
    assert ((side == 1) == (without == 1)).all()
    of_key = {key: {int(s) for s in side[key == KEYS]} for key in KEYS}
    assert all(len(sides) == 1 for sides in of_key.values())  # equal keys are on one side
    for number, share in ((1, eval_share), (2, test_share)):
        wanted = max(round(share * 60), 1) if share else 0
        assert sum(sides == {number} for sides in of_key.values()) == wanted


def test_the_side_depends_on_the_seed_and_the_key_alone() -> None:
    side = selection.split(KEYS, 0.1, 0, 0.2)
    order = np.random.default_rng(0).permutation(len(KEYS))
    assert (selection.split(KEYS[order], 0.1, 0, 0.2) == side[order]).all()
    assert (selection.split(KEYS, 0.1, 1, 0.2) != side).any()


def test_what_a_larger_held_out_set_takes_was_the_test_side() -> None:
    """Whoever raises eval_share by what test_share was has the same conversations to train on."""
    with_test, without = selection.split(KEYS, 0.1, 0, 0.2), selection.split(KEYS, 0.3, 0)
    assert ((with_test == 0) == (without == 0)).all()


def test_every_row_is_on_one_side() -> None:
    sides, _ = selection.split_rows(ROWS, None, 0.1, 0, 0.2)
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 42, "eval": 6, "test": 12}
    at = np.concatenate([rows.at for rows in sides.values()])
    assert sorted(at) == list(range(60))


def test_with_an_eval_file_the_test_side_is_taken_from_the_train_file() -> None:
    other = talks(range(41, 101))
    sides, notes = selection.split_rows(ROWS, other, 0.05, 0, 0.5)
    assert notes == ["20 conversations are in both files: left out of the train side"]
    assert sides["eval"] is other and {n: len(of) for n, of in sides.items()} == {
        "train": 20, "eval": 60, "test": 20,
    }  # fmt: skip
    assert not {*sides["test"].keys()} & {*other.keys()}
    counts = {n: selection.fit(of, 280)[1] for n, of in (("train", ROWS), ("eval", other))}
    check = audit._nothing_is_lost_unseen(sides, counts, 0)
    assert check.passed and "+ 20 on both sides" in check.found
    assert not audit._nothing_is_lost_unseen(sides | {"test": ROWS}, counts, 0).passed


def test_shares_that_leave_less_than_half_to_train_on_are_refused() -> None:
    assert TokenizeSettings(eval_share=0.4, test_share=0.1).test_share == 0.1
    assert TokenizeSettings(eval_file="a.txt", eval_share=0.4, test_share=0.5).test_share == 0.5
    said = "test_share: and eval_share take 0.51 together, more than 0.5 -- lower one of them"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        TokenizeSettings(eval_share=0.4, test_share=0.11)


def test_a_test_side_without_a_conversation_is_refused() -> None:
    with pytest.raises(UserError, match=r"^test_share: no conversation is left for the test side"):
        selection.split_rows(talks(range(2)), None, 0.5, 0, 0.5)
    sides, _ = selection.split_rows(talks(range(2)), None, 0.0, 0, 0.5)
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 1, "eval": 0, "test": 1}


def test_a_small_test_side_is_reported_and_the_remedy_holds_out_enough() -> None:
    _, notes = selection.split_rows(ROWS, None, 0.05, 0, 0.05)
    assert notes == [
        "Only 3 conversations are held out: 03 can't tell whether a difference between two models "
        "is chance. eval_share 0.34 holds out 20 (of 60), or give an eval_file.",
        "Only 3 conversations are in the test side: 03 can't tell whether a difference between two "
        "models is chance. test_share 0.34 holds out 20 (of 60).",
    ]
    settings = TokenizeSettings(eval_share=0.05, test_share=0.34)
    sides, (note,) = selection.split_rows(ROWS, None, 0.05, 0, settings.test_share)
    assert len(sides["test"]) == 20 and "are held out" in note


def test_a_remedy_leaves_the_other_share_its_part() -> None:
    _, (note, other) = selection.split_rows(ROWS, None, 0.05, 0, 0.3)
    assert note.endswith(
        "Even eval_share 0.2 holds out 12 (of 60): give more conversations, or an eval_file."
    )
    assert other.endswith("test_share 0.34 holds out 20 (of 60).")
    _, (_, other) = selection.split_rows(ROWS, None, 0.3, 0, 0.05)
    assert other.endswith("Even test_share 0.2 holds out 12 (of 60): give more conversations.")


@pytest.mark.parametrize("how", ["tell", "drop", "ignore"])
def test_near_duplicates_of_both_held_out_sides_are_found_in_the_train_side(how: str) -> None:
    """A full stop more makes a near-duplicate: 1 to 9 are held out, 10 to 14 are the test side."""
    sides = {"train": talks(range(1, 40), "."), "eval": talks(range(1, 10)),
             "test": talks(range(10, 15))}  # fmt: skip
    left, near = overlap.look_through(sides, TOKENIZER, how)
    assert left["eval"] is sides["eval"] and left["test"] is sides["test"]
    shown = data.split([], near, TOKENIZER).text
    if how == "ignore":
        assert len(left["train"]) == 39 and overlap_counts(near) == {}
        assert "none is in two of them; near-duplicates may be." in shown
        return
    assert len(left["train"]) == (39 if how == "tell" else 25)
    assert overlap_counts(near) == {"eval": 9, "test": 5}
    assert "9 of 9 held-out conversations ha" in shown
    assert "5 of 5 conversations of the test side ha" in shown and "test set: nearly" in shown
    found = manifests._near_duplicates(near)
    assert found == near[0].as_dict() | {"test": near[1].as_dict()}
    assert manifests._near_duplicates(near[:1]) == near[0].as_dict()


def overlap_counts(near: list[overlap.Near]) -> dict[str, int]:
    return {one.side: len(one.found) for one in near if len(one.found)}


def test_what_is_asked_first_on_another_side_is_found() -> None:
    sides = {"train": talks(range(20)), "eval": talks(range(20, 25)), "test": talks(range(3))}
    found = {one.what: one.rows for one in audit.findings(sides)}[
        "asks what another side asks first"
    ]
    assert {side: len(rows) for side, rows in found.items()} == {"train": 3, "eval": 0, "test": 3}
    two = audit.findings({"train": sides["train"], "eval": sides["test"]})[1]
    assert two.what == "asks what the other side asks first" and len(two.rows["train"]) == 3


def test_a_test_side_is_saved_and_whoever_does_not_name_it_does_not_get_it(home: Path) -> None:
    tokenize("small.txt", "three", test_share=0.1)
    folder = paths.tokenized("three")
    dataset, manifest = tokenized.load(folder)
    assert [*manifest["sides"]] == ["train", "eval", "test"] and [*dataset] == ["train", "eval"]
    test, _ = tokenized.load(folder, ("test",))
    assert [*test] == ["test"] and len(test["test"]) == manifest["sides"]["test"]["conversations"]
    assert manifest["sides"]["test"]["conversations"] == 40
    ids = [tuple(map(tuple, rows["input_ids"])) for rows in (*dataset.values(), test["test"])]
    train, held_out, tested = map(set, ids)
    assert not tested & train and not tested & held_out
    assert "| test | 40 |" in (folder / "README.md").read_text()
    (arrow,) = (folder / "test").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-300])
    with pytest.raises(UserError, match="three/test is cut short or damaged -- run 01_tokenize"):
        tokenized.load(folder)


def test_a_dataset_without_a_test_share_has_no_trace_of_one(home: Path) -> None:
    """The held-out set of one with a test side has the same bytes."""
    tokenize("small.txt", "three", test_share=0.1)
    two, three = map(paths.tokenized, ("small", "three"))
    manifest = files.read_json(two / files.MANIFEST)
    assert [*manifest["sides"]] == ["train", "eval"] and manifest["settings"]["test_share"] == 0
    assert {path.name for path in two.iterdir()} == {
        "train", "eval", "dataset_dict.json", "README.md", files.MANIFEST,
    }  # fmt: skip
    eval_rows = [next((one / "eval").glob("*.arrow")).read_bytes() for one in (two, three)]
    assert eval_rows[0] == eval_rows[1]


def test_looks_stay_counted_when_a_dataset_is_replaced(home: Path) -> None:
    tokenize("small.txt", "looked", test_share=0.1)
    looks = paths.tokenized("looked") / tokenized.LOOKS
    assert not looks.exists()
    looks.write_text('{"run": "a"}\n')
    tokenize("small.txt", "looked", test_share=0.2)
    assert looks.read_text() == '{"run": "a"}\n'


@pytest.mark.process
def test_01_takes_the_test_side_and_drops_what_is_nearly_in_it(
    home: Path, capsys: pytest.CaptureFixture
) -> None:
    said = [f"User: {LONG} {i}{end}\n\nAgent: It is {i}." for end in "?!" for i in range(60)]
    (home / "data" / "twice.txt").write_text("".join(f"{one}<|endoftext|>\n" for one in said))
    flags = ["-p", "train_file", "data/twice.txt", "-p", "test_share", "0.2"]
    flags += ["-p", "eval_share", "0.2", "-p", "near_duplicates", "drop"]
    assert cli.main(["run", "--only", "01_tokenize", *flags]) == 0
    dataset, manifest = tokenized.load(paths.tokenized("twice"), selection.SIDES)
    near = manifest["near_duplicates"]
    dropped = [near["dropped"], near["test"]["dropped"]]
    assert min(dropped) > 0 and dropped == [near["train"], near["test"]["train"]]
    left = {"train": 120 - 24 - 24 - sum(dropped), "eval": 24, "test": 24}
    assert {side: len(rows) for side, rows in dataset.items()} == left
    assert {side: of["conversations"] for side, of in manifest["sides"].items()} == left
    out = " ".join(capsys.readouterr().out.split())
    assert f"{left['train']} train, 24 eval, 24 test" in out
    assert "of 24 conversations of the test side had a near-duplicate in the train side: " in out
