"""A held-out set of several files: which rows are whose, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neoxkit import files, paths
from neoxkit.cli import parameters
from neoxkit.data import encoding, held_out, manifests, reading, selection, tokenized
from neoxkit.data.places import Places
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.runs import resuming
from neoxkit.settings import MOST_EVAL_FILES, TINY, TokenizeSettings

END = "<|endoftext|>"
TOKENIZER = loading.load_tokenizer(TINY)


def talk(number: int, lines: int = 1) -> dict[str, str]:
    return {"question": f"What is {number}?", "answer": "\n".join([f"It is {number}."] * lines)}


def as_text(rows: list[dict[str, str]]) -> str:
    return "".join(f"User: {r['question']}\n\nAgent: {r['answer']}\n{END}\n" for r in rows)


def as_csv(rows: list[dict[str, str]]) -> str:
    quoted = ("".join(f'"{r["question"]}","{r["answer"]}"\n') for r in rows)
    return "question,answer\n" + "".join(quoted)


WRITTEN: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "txt": as_text,
    "csv": as_csv,
    "jsonl": lambda rows: "\n\n".join(map(json.dumps, rows)) + "\n\n",
    "json": json.dumps,
}
SIZES = {"short": 3, "long": 4, "last": 2}  # conversations; a name's order is not the order here


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kit's folder with a train file and files to hold out, each in several formats."""
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(as_text([talk(n) for n in range(100, 130)]))
    for end, write in WRITTEN.items():
        first = 0
        for name, size in SIZES.items():
            rows = [talk(n, 1 + n % 2) for n in range(first, first + size)]
            (tmp_path / f"{name}.{end}").write_text(write(rows))
            first += size
    return tmp_path


def settings(eval_file: Any) -> TokenizeSettings:
    return TokenizeSettings(train_file="train.txt", dataset="d", eval_file=eval_file)


def made(eval_file: Any) -> dict[str, Any]:
    """Tokenize as 01 does; return the manifest of what was saved."""
    given = settings(eval_file)
    read = reading.read_sides(given)
    encoded = {s: encoding.encode_file(TOKENIZER, f, f.names) for s, f in read.items()}
    fitted = selection.fit_sides(encoded, 280, "drop")
    kept = {side: rows for side, (rows, _) in fitted.items()}
    sides, _ = selection.split_rows(kept["train"], kept.get("eval"), 0.1, 0)
    counts = {side: counts for side, (_, counts) in fitted.items()}
    of = manifests.make_manifest(given.as_dict(), TINY, TOKENIZER, read, counts, sides)
    tokenized.save(sides, paths.tokenized("d"), of)
    return files.read_json(paths.tokenized("d") / files.MANIFEST)


@pytest.mark.parametrize("end", WRITTEN)
def test_each_row_belongs_to_the_file_that_it_was_read_from(kit: Path, end: str) -> None:
    manifest = made({name: f"{name}.{end}" for name in SIZES})
    rows = tokenized.load(paths.tokenized("d"))[0]["eval"]
    found = held_out.rows_by_part(manifest, rows["line"][:])
    texts = {name: [TOKENIZER.decode(rows[int(i)]["input_ids"]) for i in of]
             for name, of in found.items()}  # fmt: skip
    assert [*texts] == [*SIZES]
    assert [len(of) for of in texts.values()] == [*SIZES.values()]
    asked = [
        int(text.partition("is ")[2].partition("?")[0]) for of in texts.values() for text in of
    ]
    assert asked == [*range(sum(SIZES.values()))]


def test_a_list_names_the_parts_after_the_files(kit: Path) -> None:
    manifest = made(["long.txt", "short.txt"])
    assert [part["name"] for part in manifest["eval_source"]["parts"]] == ["long", "short"]


@pytest.mark.parametrize("given", ["long.txt", ["long.txt"], {"all": "long.txt"}])
def test_one_file_has_no_parts(kit: Path, given: Any) -> None:
    manifest = made(given)
    assert "parts" not in manifest["eval_source"]
    assert held_out.rows_by_part(manifest, [1, 2]) == {}
    assert held_out.rows_by_part({"eval_source": None}, [1, 2]) == {}


def test_a_part_without_rows_is_left_out(kit: Path) -> None:
    manifest = made({"long": "long.txt", "short": "short.txt"})
    first = manifest["eval_source"]["parts"][1]["first"]
    found = held_out.rows_by_part(manifest, [first, first + 5])
    assert {name: rows.tolist() for name, rows in found.items()} == {"short": [0, 1]}


def test_a_part_of_which_nothing_is_kept_is_named(kit: Path) -> None:
    (kit / "huge.txt").write_text(as_text([talk(1, lines=300)]))
    notes = made({"long": "long.txt", "huge": "huge.txt"})["split_notes"]
    assert notes == ["No conversation of huge was kept: it will have no loss."]


def test_what_is_dropped_is_named_by_its_file(kit: Path) -> None:
    (kit / "odd.txt").write_text(as_text([talk(1)]) + f"User: Why?\n{END}\n")
    manifest = made({"long": "long.txt", "odd": "odd.txt"})
    (line,) = manifest["counts"]["eval"]["dropped_lines"]["no reply"]
    assert Places.of(manifest["eval_source"]).at(line) == "odd.txt:5"


def test_a_changed_file_is_noticed_and_a_missing_one_is_not_needed(kit: Path) -> None:
    made(["long.txt", "short.txt"])
    tokenized.load_manifest(paths.tokenized("d"))
    (kit / "short.txt").rename(kit / "away.txt")
    tokenized.load_manifest(paths.tokenized("d"))
    (kit / "short.txt").write_text(as_text([talk(55)]))
    with pytest.raises(UserError, match=r"long\.txt, short\.txt has changed since"):
        tokenized.load_manifest(paths.tokenized("d"))


def test_the_same_files_again_replace_nothing_and_another_name_is_told(kit: Path) -> None:
    given = {"a": "long.txt", "b": "short.txt"}
    made(given)
    assert resuming.replaced(settings(given)) == []
    (said,) = resuming.replaced(settings({"a": "long.txt", "c": "short.txt"}))
    assert "eval_file" in said
    (said,) = resuming.replaced(settings({"a": "long.txt", "b": "last.txt"}))
    assert "long.txt, short.txt -> long.txt, last.txt" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["long.txt", "short.csv"], "long.txt and short.csv are not files of one kind"),
        ({"a": "long.txt", "b": "long.txt"}, "names long.txt twice"),
        (["long.txt", "sub/long.csv"], "two of the files have one name"),
        ([], r"got \[\]"),
        ({}, "got {}"),
        ({"a": ["long.txt"]}, "got {'a': "),
        (["long.txt", " "], "got "),
        ({"a b": "long.txt"}, "'a b' is not a name"),
        ([f"{n}.txt" for n in range(MOST_EVAL_FILES + 1)], "names 7 files, at most 6"),
        (3, "must be text or a list or a mapping, got 3"),
        (["long.txt", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_is_no_list_of_files_is_one_line(kit: Path, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^eval_file: .*{said}"):
        reading.read_sides(settings(given))


def test_files_of_other_columns_are_named(kit: Path) -> None:
    (kit / "other.csv").write_text("user,agent\nHi,Hello\n")
    with pytest.raises(UserError, match=r"^other\.csv: has the columns user, agent"):
        reading.read_sides(settings(["long.csv", "other.csv"]))


def test_flags_take_a_file_a_list_and_a_mapping_and_a_sweep_takes_files(tmp_path: Path) -> None:
    def value(text: str) -> Any:
        return parameters.read([], [("eval_file", text)])["eval_file"]

    assert value("a.txt") == "a.txt" and value("a, b.txt") == "a, b.txt"
    assert value("[a.txt, b.txt]") == ["a.txt", "b.txt"]
    assert value(" {a: a.txt}") == {"a": "a.txt"}
    with pytest.raises(UserError, match="is not YAML"):
        value("{a: ")
    swept = parameters.read_swept([], [("eval_file", "a.txt,b.txt")])
    assert swept == ({}, {"eval_file": ["a.txt", "b.txt"]})
    assert parameters.read_swept([], [("eval_file", "[a.txt, b.txt]")])[1] == {}
    file = tmp_path / "p.yaml"
    file.write_text("eval_file: [a.txt, b.txt]\n")
    assert parameters.read_swept([str(file)], []) == ({"eval_file": ["a.txt", "b.txt"]}, {})
    file.write_text("eval_file: [[a.txt], [b.txt]]\n")
    assert parameters.read_swept([str(file)], [])[1] == {"eval_file": [["a.txt"], ["b.txt"]]}


def test_the_commands_that_repeat_a_notebook_carry_the_files(kit: Path) -> None:
    given = {"a": "long.txt", "b": "short.txt"}
    (command,) = [settings(given).run_command()]
    assert """-p eval_file '{"a": "long.txt", "b": "short.txt"}'""" in command
