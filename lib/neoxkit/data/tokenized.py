"""Save and load tokenized datasets, and check a training against them."""

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit import files, paths
from neoxkit.data import manifests, sources
from neoxkit.data.table import Table
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features
    from pyarrow import RecordBatch
    from transformers import PreTrainedTokenizerBase

OF_TRAINING = ("train", "eval")  # the sides that a training reads
LOOKS = "looks.jsonl"  # each look at the test side; no part of what a dataset is


def features() -> "Features":
    """Return the columns of a tokenized dataset: one row per conversation, not padded.

    input_ids and labels (int32 lists), length and trained (numbers of tokens), line (in the source
    file), reply_start and reply_end (of the last whole reply; -1 if there is none).
    """
    from datasets import Features, Sequence, Value

    lists = {name: Sequence(Value("int32")) for name in ("input_ids", "labels")}
    names = ("length", "trained", "line", "reply_start", "reply_end")
    return Features(lists | {name: Value("int32") for name in names})


def _columns(rows: Table) -> dict[str, Any]:
    """Return a part of a table as Arrow arrays, one per column."""
    import pyarrow

    ids = rows.ids()
    offsets = pyarrow.array(np.concatenate([[0], np.cumsum(rows.length)]).astype(np.int32))
    last = np.full((len(rows), 3), -1, np.int32)
    of, replies = rows.replies()
    last[of] = replies  # a row's later replies overwrite earlier ones
    return {
        "input_ids": pyarrow.ListArray.from_arrays(offsets, ids),
        "labels": pyarrow.ListArray.from_arrays(offsets, rows.labels(ids)),
        "length": rows.length,
        "trained": rows.trained,
        "line": rows.column("line"),
        "reply_start": last[:, 0],
        "reply_end": last[:, 1],
    }


def _replace_arrow_file(file: Path, rows: Table) -> None:
    """Replace a side's Arrow file without rows by one with these, which has the same schema.

    It is written part by part, so that memory does not grow with the rows.
    """
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(file)) as without_rows:
        schema = ipc.open_stream(without_rows).schema
    part = file.with_suffix(".part")
    with ipc.new_stream(str(part), schema) as writer:
        for chunk in rows.chunks():
            writer.write_table(pyarrow.table(_columns(chunk), schema=schema))
    part.replace(file)


def within(rows: "Dataset", block_size: int) -> "Dataset":
    """Select the rows that are no longer than the block size."""
    return rows.select([i for i, length in enumerate(rows["length"]) if length <= block_size])


def save(sides: Mapping[str, Table], folder: Path, manifest: dict) -> None:
    """Write the dataset, its card and its manifest; an earlier dataset stays until all is there.

    The looks at its test side (runs/looks.py) stay counted: who replaces a dataset has seen them.
    """
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with files.whole_folder(folder) as part:
            # `datasets` would need all rows in memory or write them twice. So it saves sides
            # without rows, for the files that describe them, and we write each side's Arrow file.
            none = datasets.Dataset.from_dict({n: [] for n in features()}, features=features())
            empty = dict.fromkeys(sides, none)
            one_shard = dict.fromkeys(sides, 1)  # no rows would be no shard
            datasets.DatasetDict(empty).save_to_disk(part, num_shards=one_shard)
            for side, rows in sides.items():
                _replace_arrow_file(part / side / "data-00000-of-00001.arrow", rows)
            (part / "README.md").write_text(manifests.card(manifest), encoding="utf-8")
            if (folder / LOOKS).is_file():
                shutil.copy(folder / LOOKS, part / LOOKS)
            files.write_json(part / files.MANIFEST, manifest)
    finally:
        if bars:
            datasets.enable_progress_bars()


def load(folder: Path, sides: Sequence[str] = OF_TRAINING) -> tuple["DatasetDict", dict[str, Any]]:
    """Load these sides of a dataset, and its manifest; refuse what `sizes` refuses.

    Whoever does not name the test side does not get it.
    """
    from datasets import DatasetDict, load_from_disk

    _, manifest = sizes(folder)
    with readable(folder):
        found = load_from_disk(folder)
        return DatasetDict({side: found[side] for side in sides}), manifest


def check_side(side: str, known: Collection[str]) -> None:
    """Refuse the test side of a dataset that has none; `known`: its sides."""
    if side not in known:
        remedy = "run 01_tokenize with test_share and another dataset name, and train on that"
        raise UserError("side", f"the dataset has no {side} side", remedy)


def sizes(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Return the length and the trained tokens of each conversation, by side, and the manifest;
    refuse a dataset that is damaged, or has other numbers of rows than its manifest says.

    Arrow alone is asked: the import of `datasets` takes longer than the reading.
    """
    manifest, read = load_manifest(folder), {}
    for side, numbers in manifest["sides"].items():
        with readable(folder / side):
            read[side] = _side_sizes(folder / side)
        if (found := len(read[side]["length"])) != numbers["conversations"]:
            raise UserError(
                "dataset",
                f"{paths.short(folder)}/{side} has {found} rows, its manifest says "
                f"{numbers['conversations']}",
                "run 01_tokenize again",
            )
    return read, manifest


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Refuse a folder of rows that lacks a file, or whose files can't be read."""
    try:
        yield
    except PermissionError:
        raise
    except FileNotFoundError:
        what = f"{paths.short(folder)} lacks some of its files"
        raise UserError("dataset", what, "run 01_tokenize again") from None
    except (OSError, ValueError, KeyError, TypeError):  # Arrow's, and those of a damaged JSON file
        what = f"{paths.short(folder)} is cut short or damaged"
        raise UserError("dataset", what, "run 01_tokenize again") from None


def _side_sizes(side: Path) -> dict[str, np.ndarray]:
    """Return two columns of a side."""
    parts: dict[str, list[np.ndarray]] = {"length": [], "trained": []}
    for batch in batches(side):
        for name, found in parts.items():
            found.append(np.from_dlpack(batch.column(name)).copy())  # to_numpy asks pandas
    return {n: np.concatenate([np.zeros(0, np.int32), *found]) for n, found in parts.items()}


def batches(side: Path) -> "Iterator[RecordBatch]":
    """Yield the rows of a side part by part, from the files that its state.json lists in order."""
    import pyarrow
    from pyarrow import ipc

    for file in files.read_json(side / "state.json")["_data_files"]:
        with pyarrow.memory_map(str(side / file["filename"])) as source:
            yield from ipc.open_stream(source)


def tokens_at(side: Path, rows: np.ndarray) -> dict[int, list[int]]:
    """Return the tokens of some rows of a side, by row number."""
    found: dict[int, list[int]] = {}
    begin = 0
    for batch in batches(side):
        inside = rows[(rows >= begin) & (rows < begin + batch.num_rows)]
        column = batch.column("input_ids")
        found |= {int(row): column[int(row) - begin].as_py() for row in inside}
        begin += batch.num_rows
    return found


def sha256(folder: Path) -> str:
    """Hash the manifest, which covers everything the rows were made of; "" if there is none."""
    path = folder / files.MANIFEST
    return files.sha256(path) if path.is_file() else ""


def unchanged(facts: Mapping[str, Any]) -> Path:
    """Return the folder of the dataset that a finished run was trained on (the facts of its
    FINISHED.json); refuse if it has changed since."""
    folder = paths.find("dataset", facts["dataset"], file=False)
    check_sha256(folder, facts["dataset_sha256"])
    return folder


def check_sha256(folder: Path, expected: str) -> None:
    """Refuse a dataset other than the one that a run was started with."""
    if expected and sha256(folder) != expected:
        raise UserError(
            "dataset",
            f"{paths.short(folder)} was tokenized again after the run started",
            "run 01_tokenize with its old settings, or train under another run name",
        )


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read a tokenized dataset's manifest; refuse it if its sources have changed since."""
    manifest = _manifest(folder)
    for source in filter(None, (manifest["source"], manifest["eval_source"])):
        now = sources.here(source)
        if now and now.sha256() != source["sha256"]:
            raise UserError(
                "dataset",
                f"{source['path']} has changed since it was tokenized",
                "run 01_tokenize again",
            )
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / files.MANIFEST
    if not path.is_file():
        raise UserError(
            "dataset", f"{paths.short(folder)} is not a tokenized dataset", "run 01_tokenize"
        )
    return files.read_json(path)


def model_of(folder: Path) -> tuple[str, str]:
    """Return the name and revision of the model whose tokenizer a dataset was made with."""
    manifest = _manifest(folder)
    return manifest["model_name_or_path"], manifest["revision"]


def check_block_size(block_size: int, manifest: dict[str, Any]) -> int:
    """Return the block size for training; 0 means the dataset's, and a larger one is refused."""
    largest = manifest["block_size"]
    if block_size > largest:
        raise UserError(
            "block_size",
            f"{block_size} is above the dataset's {largest}",
            f"choose at most {largest}, or run 01_tokenize with block_size {block_size}",
        )
    return block_size or largest


def check_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", manifest: dict[str, Any], revision: str = ""
) -> None:
    """Refuse a model, at a revision, whose tokenizer is not the one a dataset was made with."""
    if manifests.tokenizer_sha256(tokenizer) != manifest["tokenizer_sha256"]:
        raise UserError(
            "model_name_or_path",
            f"its tokenizer is not the dataset's ({manifests._model(manifest)})",
            "run 01_tokenize with this model" + (" and revision" if revision else ""),
        )
