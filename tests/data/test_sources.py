"""Every kind of source gives the same conversations, and what can't be read is named."""

import csv
import gc
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fake_hub
import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from neoxkit.data import encoding, manifests, reading, sources
from neoxkit.data.conversation import Turn
from neoxkit.data.places import Places
from neoxkit.data.rows import open_rows
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.settings import TINY, TokenizeSettings

END = "<|endoftext|>"
TOKENIZER = loading.load_tokenizer(TINY)
ROWS = [{"question": f"00{i}", "answer": said} for i, said in enumerate(["NA", "null", "1e5"])]
TURNS = [(Turn("user", row["question"]), Turn("agent", row["answer"])) for row in ROWS]
TEXT = "".join(f"User: {r['question']}\n\nAgent: {r['answer']}\n{END}\n" for r in ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS[:1]).encode()
PACKED_TWICE = gzip.compress(gzip.compress(b"a", mtime=0), mtime=0)  # the same in each process
DAMAGED = bytearray(gzip.compress(TEXT.encode() * 99))
DAMAGED[60:80] = bytes(20)


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty kit's folder, which is also the working directory."""
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(value: str, **given: Any) -> reading.ConversationFile:
    return reading.read(sources.find("train_file", value), **given)


def refusal(value: str, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(value, **given)
    return str(caught.value)


def write_csv(path: Path, separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, ["question", "answer"], delimiter=separator)
        table.writeheader()
        table.writerows(ROWS)


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_arrow(path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(path, table.schema) as out:
        out.write_table(table)


def write_saved(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def write_splits(path: Path) -> None:
    both = {"train": ROWS, "test": ROWS[:1]}
    made = {split: datasets.Dataset.from_list(rows) for split, rows in both.items()}
    datasets.DatasetDict(made).save_to_disk(path)


def write_zstd(path: Path, text: str) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
        out.write(text.encode())


def write_files(folder: Path, **texts: str) -> None:
    folder.mkdir()
    for name, text in texts.items():
        name, _, end = name.rpartition("_")
        (folder / f"{name}.{end}").write_text(text, encoding="utf-8")


SOURCES: dict[str, Callable[[Path], object]] = {
    "t.csv": write_csv,
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "t.tsv": lambda path: write_csv(path, "\t"),
    "t.parquet": write_parquet,
    "t.arrow": write_arrow,
    "saved": write_saved,
    "splits": write_splits,
    "t.txt.gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "two.jsonl.gz": lambda path: path.write_bytes(
        b"".join(gzip.compress(line.encode()) for line in LINES.splitlines(keepends=True))
    ),
    "odd-name": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "t.jsonl.zst": lambda path: write_zstd(path, LINES),
    "t.csv.gz": lambda path: (
        write_csv(path.with_name("plain.csv")),
        path.write_bytes(gzip.compress(path.with_name("plain.csv").read_bytes())),
    ),
    "texts": lambda path: write_files(path, b_txt=TEXT.partition(END)[2].strip(),
                                      a_txt=TEXT.partition(END)[0]),
    "lines": lambda path: write_files(path, x_jsonl=LINES, README_md="What it is."),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_the_conversations_that_were_written(kit: Path, name: str) -> None:
    """Numbers keep their zeros, and NA and null are answers."""
    SOURCES[name](kit / name)
    file = read(name)
    assert [c.turns for c in file.conversations] == TURNS
    assert len(encoding.encode_file(TOKENIZER, file, file.names)) == 3
    described = manifests._source(file)
    assert described["path"] == name and Places.of(described) == file.places
    assert sources.here(described) == file.source and file.source.sha256() == described["sha256"]


def test_a_change_of_any_file_changes_the_hash_and_a_move_does_not(kit: Path) -> None:
    write_files(kit / "texts", a_txt=TEXT, b_txt=TEXT)
    before = read("texts").sha256
    shutil.move(kit / "texts", kit / "moved")
    assert read("moved").sha256 == before
    (kit / "moved" / "b.txt").write_text(TEXT.replace("NA", "no"))
    changed = read("moved")
    assert changed.sha256 != before
    said = [c.turns[1].text for c in changed.conversations]
    assert said == ["NA", "null", "1e5", "no", "null", "1e5"]


def test_a_table_that_was_written_again_is_read_again(kit: Path) -> None:
    write_csv(kit / "t.csv")
    assert len(read("t.csv").conversations) == 3
    (kit / "t.csv").write_text("question,answer\na,b\n")
    (talk,) = read("t.csv").conversations
    assert talk.turns == (Turn("user", "a"), Turn("agent", "b"))


def test_a_split_is_chosen_by_its_name(kit: Path) -> None:
    write_splits(kit / "splits")
    assert len(read("splits:test").conversations) == 1
    file = read("splits")
    assert len(file.conversations) == 3
    assert "splits that are not read: test" in file.sentences()
    assert refusal("splits:tets") == (
        "train_file: splits:tets has no split 'tets', only train, test -- write splits:train"
    )


def test_the_files_of_a_folder_are_put_into_splits_by_their_names(kit: Path) -> None:
    write_files(kit / "f", train_jsonl=LINES, test_jsonl=LINES.split("\n")[0])
    assert [len(read(name).conversations) for name in ("f", "f:test")] == [3, 1]
    assert "splits that are not read: test" in read("f").sentences()


def test_without_a_training_split_a_choice_is_asked_for(kit: Path) -> None:
    write_files(kit / "f", test_jsonl=LINES, validation_jsonl=LINES)
    said = refusal("f")
    assert said == "train_file: f has the splits validation, test -- choose one: f:validation"
    assert len(read("f:validation").conversations) == 3


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a_txt": TEXT, "b_jsonl": LINES}, "also holds "),
        ({"a_txt": TEXT, "b_txt": TEXT, "my-test_txt": TEXT}, "also holds a.txt"),
        ({"a_foo": TEXT}, "holds no file that can be read -- name files .txt, .jsonl"),
        ({}, "holds no file that can be read"),
        ({"a_txt": " \n", "b_txt": ""}, "f:1: the files are empty"),
    ],
)
def test_a_folder_that_would_be_read_in_part_is_refused(
    kit: Path, texts: dict[str, str], said: str
) -> None:
    write_files(kit / "f", **texts)
    assert said in refusal("f")


def test_a_configuration_is_chosen_by_its_name(kit: Path) -> None:
    write_files(kit / "f", one_jsonl=LINES, two_jsonl=LINES.split("\n")[0])
    configs = [{"config_name": n, "data_files": f"{n}.jsonl"} for n in ("one", "two")]
    (kit / "f" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    said = "train_file: f has the configurations one, two -- choose one: f:one"
    assert refusal("f") == said
    (kit / "f" / "two.jsonl").rename(kit / "two.jsonl")
    assert [c.turns for c in read("f:one").conversations] == TURNS


def test_a_damaged_saved_data_set_is_one_line(kit: Path) -> None:
    write_saved(kit / "saved")
    (file,) = (kit / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:40])
    assert refusal("saved").startswith("saved: can't be read (")


def test_documents_are_not_evaluated_on_conversations(kit: Path) -> None:
    (kit / "pages.txt").write_text(f"A page.\n{END}\n" * 3)
    (kit / "talks.txt").write_text(TEXT)
    for train, evaluation in (("pages", "talks"), ("talks", "pages")):
        files = {"train_file": f"{train}.txt", "eval_file": f"{evaluation}.txt"}
        settings = TokenizeSettings(**files, train_on="all")
        with pytest.raises(UserError):
            reading.read_sides(settings)
    sides = reading.read_sides(settings.replace(train_file="pages.txt"))
    assert [side.facts.documents for side in sides.values()] == [3, 3]


def test_lines_of_a_folder_are_named_by_their_file(kit: Path) -> None:
    """Faults, notes and what is dropped; a file may end without a line break."""
    write_files(kit / "f", a_txt=TEXT.rstrip(), b_txt=TEXT + f"just words\n{END}\n")
    assert refusal("f").startswith("f/b.txt:13: a conversation without turns")
    file = read("f", bad_rows="skip")
    (left_out,) = [said for said in file.sentences() if "left out" in said]
    assert left_out.endswith(": 1 (f/b.txt:13)")
    assert [file.places.at(c.line) for c in file.conversations] == [
        f"f/{name}.txt:{line}" for name in "ab" for line in (1, 5, 9)
    ]


def mapped(name: str) -> bool:
    """Tell whether this process has a file of this kind mapped."""
    gc.collect()
    return f"{name}\n" in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone lists its mappings")
@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "saved"])
def test_rows_are_in_memory_only_while_they_are_read(kit: Path, name: str) -> None:
    """A million rows of a mapped file would stay: half a gigabyte."""
    SOURCES[name](kit / name)
    source = sources.find("train_file", name)
    read(name)
    assert not mapped(".arrow")
    rows = open_rows(source)
    assert mapped(".arrow") and len(rows) == len(ROWS)
    del rows
    assert not mapped(".arrow")


def test_a_row_group_is_read_in_parts(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neoxkit.data.rows.BYTES_AT_ONCE", 1)
    many = [{"question": f"{i}?", "answer": f"{i}."} for i in range(25)]
    parquet.write_table(pyarrow.Table.from_pylist(many), kit / "t.parquet")
    rows = open_rows(sources.find("train_file", "t.parquet"))
    assert [len(batch) for batch in rows.data.to_batches()] == [1] * 25
    assert rows["question"][:] == [row["question"] for row in many]


def test_parquet_files_of_other_columns_are_named(kit: Path) -> None:
    (kit / "many").mkdir()
    for name, column in (("a", "answer"), ("b", "response")):
        table = pyarrow.table({"question": ["a"], column: ["b"]})
        parquet.write_table(table, kit / "many" / f"{name}.parquet")
    assert refusal("many") == (
        "many/b.parquet: has the columns question, response, and another file question, answer -- "
        "write all files in the same columns"
    )
    in_another_way = pyarrow.table({"answer": [7], "question": ["c"]})  # order and type
    parquet.write_table(in_another_way, kit / "many" / "b.parquet")
    assert open_rows(sources.find("train_file", "many"))[:] == {
        "question": ["a", "c"],
        "answer": ["b", "7"],
    }


def test_rows_of_a_table_are_named_by_their_number(kit: Path) -> None:
    parquet.write_table(pyarrow.table({"question": ["a", "c"], "answer": ["b", None]}), kit / "t")
    (kit / "t").rename(kit / "t.parquet")
    assert refusal("t.parquet").startswith('t.parquet, row 2: "answer" is not text -- write it as')
    said = read("t.parquet", bad_rows="skip").sentences()
    assert said[1] == 'left out, can\'t be read: "answer" is not text: 1 (row 2)'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "t.txt.gz",
            gzip.compress(TEXT.encode() * 99, mtime=0)[:-20],
            "t.txt.gz: is a damaged gzip file",
        ),
        ("t.txt.gz", DAMAGED, "t.txt.gz: is a damaged gzip file, or cut off -- copy it again"),
        ("t.zst", b"\x28\xb5\x2f\xfd" + b"x" * 40, "t.zst: is a damaged zstd file, or cut off"),
        ("t.parquet", b"PAR1 and no more", "t.parquet: can't be read ("),
        ("t.csv", b"question,answer\na,b,c,d\ne,f\n", "t.csv:2: a row of 4 fields, and 2"),
        ("t.csv", b'question,answer\na,"b\nc,d\n', "t.csv:3: is not CSV (unexpected end of data)"),
        ("t.tsv", b'question\tanswer\na\t"b" c\n', "t.tsv:2: is not CSV ("),
        ("t.csv", b"question,answer\n", "t.csv: has no rows -- write conversations into it"),
        ("t.csv", b"", "t.csv:1: the file is empty"),
        ("t.csv", b"question,answer\na,\xe9\n", "t.csv:2: not UTF-8 at byte"),
        ("t.csv", b"frage,antwort\na,b\n", "row 1: no column is known: frage, antwort -- set"),
        ("t.jsonl", b'{"text": "a", "parent_id": null}\n', "is a message of OASST"),
        ("t.csv", b"question,answer,answer\na,b,c\n", "t.csv:1: has 2 columns named answer -- re"),
        ("t.jsonl.gz", PACKED_TWICE, "t.jsonl.gz:1: is packed by gzip twice"),
        ("t.jsonl.bz2", b"BZh91AY&SY" + b"x" * 40, "t.jsonl.bz2:1: is packed by bzip2 -- unpack"),
        ("t.txt", b"PAR1" + b"x" * 40, "t.txt:1: is a Parquet file -- name it .parquet"),
        ("t.json", b"[]", "t.json: has no rows -- write conversations into it"),
        ("t.json", ARRAY + b"\n" + ARRAY, "t.json:2: more follows the array's end -- write all"),
        ("t.json", ARRAY[:-1] + b",\n", "t.json, row 2: the array has no end (])"),
        ("t.json", b"[\n" + ARRAY[1:-1], "t.json:2: the array has no end (]) -- copy the file"),
        ("t.json", b'[{"messages": []}, {}]', "t.json, row 1: has no list"),
        ("t.json", json.dumps(ROWS[0], indent=1).encode(), "t.json:1: an object over several lin"),
        ("t.jsonl", b'{"data": [\n{"a": 1}\n]}', "t.jsonl:1: an object over several lines -- wri"),
    ],
)
def test_what_can_not_be_read_is_refused_in_one_line(
    kit: Path, name: str, content: bytes, said: str
) -> None:
    (kit / name).write_bytes(content)
    assert said in refusal(name) and "\n" not in refusal(name)


def test_columns_without_a_name_are_read_beside_the_others(kit: Path) -> None:
    """pandas writes its row numbers into one."""
    (kit / "t.csv").write_text(",question,answer,\n0,007,NA,\n1,a,b,\n")
    file = read("t.csv")
    assert file.conversations[0].turns == (Turn("user", "007"), Turn("agent", "NA"))
    assert file.facts.notes == {'not read: "column 1"': [1, 2], 'not read: "column 4"': [1, 2]}


def test_tsv_is_separated_by_tabs_whatever_else_its_header_holds(kit: Path) -> None:
    (kit / "t.tsv").write_text("asked, by whom, and when\tanswer\na\tb\n")
    file = read("t.tsv", columns={"user": "asked, by whom, and when", "agent": "answer"})
    assert file.conversations[0].turns == (Turn("user", "a"), Turn("agent", "b"))
    (kit / "t.csv").write_text('"a, b, c";answer\nx;y\n')
    assert "no column is known: a, b, c, answer -- set columns" in refusal("t.csv")


def test_equal_faults_of_rows_are_one_line(kit: Path) -> None:
    table = pyarrow.table({"question": ["a", "c"], "answer": pyarrow.array([None] * 2, "string")})
    parquet.write_table(table, kit / "t.parquet")
    said = refusal("t.parquet")
    assert said.startswith('t.parquet, row 1: "answer" is not text (2 of these, this is the first)')
    assert "\n" not in said


def test_a_mistyped_name_is_no_name_of_the_hub(kit: Path) -> None:
    assert refusal("tlaks/a.jsonl").startswith("train_file: 'tlaks/a.jsonl' does not exist in")
    (kit / "data").mkdir(exist_ok=True)
    assert refusal("data/tlaks.txt").startswith("train_file: 'data/tlaks.txt' does not exist in")
    assert refusal("data/tlaks").startswith("train_file: 'data/tlaks' does not exist in")


def test_a_data_set_of_the_hub_that_is_not_here_is_one_line(kit: Path) -> None:
    assert refusal("owner/name:train") == (
        "train_file: owner/name is not in the cache, and HF_HUB_OFFLINE is set -- "
        "unset it, or give a folder"
    )


ASK = """
import sys
from neoxkit.data import reading, sources
from neoxkit.errors import UserError
for name in sys.argv[1:]:
    try:
        file = reading.read(sources.find("train_file", name))
        print(name, [c.turns[1].text for c in file.conversations], file.sha256)
    except UserError as fault:
        print(fault)
"""


def test_a_data_set_is_fetched_from_the_hub_once(kit: Path) -> None:
    """In a process of its own, whose hub is a folder; then without any hub."""
    write_files(kit / "repo", train_jsonl=LINES, test_jsonl=LINES.split("\n")[0])

    def ask(endpoint: str, *names: str) -> list[str]:
        hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(kit / "hf"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", ASK, *names]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **hub}
        )
        return done.stdout.splitlines()

    with fake_hub.serve(kit / "repo") as endpoint:
        train, test, no_split, no_name = ask(
            endpoint, "owner/name", "owner/name:test", "owner/name:dev", "owner/other"
        )
    assert train.startswith("owner/name ['NA', 'null', '1e5'] ")
    assert test.startswith("owner/name:test ['NA'] ")
    assert no_split == (
        "train_file: owner/name:dev has no split 'dev', only train, test -- write owner/name:train"
    )
    assert no_name == ("train_file: owner/other is not on the hub, or is private -- check the name")
    nowhere = "http://127.0.0.1:9"
    assert ask(nowhere, "owner/name", "owner/other") == [
        train,
        "train_file: owner/other is not in the cache, and the hub can't be reached -- "
        "connect to the network, or give a folder",
    ]
