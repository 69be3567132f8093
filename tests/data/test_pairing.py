"""pairing.py: rows of two datasets, equal, moved, with other labels, or without a partner."""

from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc

from neoxkit import files, paths
from neoxkit.data import pairing, tokenized
from neoxkit.data.pairing import RowHashes

Row = tuple[str, str, bool]  # tokens, labels, held out


def rows(made: list[Row]) -> RowHashes:
    tokens, labels = (np.array([row[i].encode() for row in made], "S16") for i in (0, 1))
    is_eval = np.array([row[2] for row in made], bool)
    return RowHashes(tokens, labels, is_eval, np.arange(len(made), dtype=np.int32))


def train(*tokens: str) -> list[Row]:
    return [(one, "", False) for one in tokens]


def found(a: list[Row], b: list[Row]) -> dict[str, tuple[list[int], list[int]]]:
    """Return the rows without an equal one, by kind."""
    it = pairing.paired(rows(a), rows(b))
    kinds = {kind: getattr(it, kind) for kind in ("moved", "relabelled", "only")}
    return {k: (of[0].tolist(), of[1].tolist()) for k, of in kinds.items() if sum(map(len, of))}


def test_each_kind() -> None:
    assert found(train("x", "y"), train("x", "y")) == {}
    assert found(train("x", "y"), train("y", "z")) == {"only": ([0], [1])}
    assert found(train("x"), [("x", "", True)]) == {"moved": ([0], [0])}
    assert found([("x", "l", False)], [("x", "m", False)]) == {"relabelled": ([0], [0])}
    assert found([("x", "l", False)], [("x", "m", True)]) == {"relabelled": ([0], [0])}
    assert found([], train("x")) == {"only": ([], [0])}
    assert found([], []) == {}


def test_equal_rows_are_counted() -> None:
    assert found(train("x", "y", "x", "x"), train("x", "y")) == {"only": ([2, 3], [])}
    assert pairing.paired(rows(train("x", "x")), rows(train("x"))).num_equal == 1


def test_order_is_compared_without_what_differs() -> None:
    def order(a: list[Row], b: list[Row]) -> tuple[int, int] | None:
        return pairing.paired(rows(a), rows(b)).reordered

    assert order(train("x", "y", "z"), train("x", "z", "y")) == (1, 1)
    assert order(train("x", "y", "z"), train("new", "x", "z")) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_by_counting(seed: int) -> None:
    """Few values, so that most rows are there several times."""
    chance = np.random.default_rng(seed)
    one, other = (
        [(str(t), str(label), bool(e)) for t, label, e in chance.integers(0, 3, (60, 3)).clip(0, 2)]
        for _ in range(2)
    )
    it = pairing.paired(rows(one), rows(other))
    assert it.num_equal == (Counter(one) & Counter(other)).total()
    tokens = [Counter(row[0] for row in of) for of in (one, other)]
    assert len(it.only[0]) >= (tokens[0] - tokens[1]).total()
    left = [Counter(of[i] for i in it.only[n]) for n, of in enumerate((one, other))]
    assert not {row[0] for row in left[0]} & {row[0] for row in left[1]}
    assert len(it.moved[0]) == len(it.moved[1]) and len(it.relabelled[0]) == len(it.relabelled[1])
    for n, of in enumerate((one, other)):
        parts = [len(rows[n]) for rows in (it.moved, it.relabelled, it.only)]
        assert it.num_equal + sum(parts) == len(of)


def test_a_dataset_is_hashed_row_by_row(home: Path) -> None:
    folder = paths.tokenized("small")
    hashes, (data, _) = RowHashes.of_dataset(folder), tokenized.load(folder)
    sides = [data[side][i] for side in ("train", "eval") for i in range(len(data[side]))]
    assert len(hashes) == len(sides) and hashes.line.tolist() == [row["line"] for row in sides]
    assert hashes.is_eval.sum() == len(data["eval"])
    assert len({*hashes.tokens}) == len({tuple(row["input_ids"]) for row in sides})
    last = len(sides) - 1
    assert hashes.place(0) == ("train", 0) and hashes.place(last) == ("eval", len(data["eval"]) - 1)
    for name, found in (("input_ids", hashes.tokens), ("labels", hashes.labels)):
        whole = [np.array(row[name], np.int32) for row in sides]
        as_numpy_gives_them = [one.ljust(16, b"\0") for one in found.tolist()]
        assert as_numpy_gives_them == [blake2b(row, digest_size=16).digest() for row in whole]


def test_rows_are_read_by_number_from_any_part(tmp_path: Path) -> None:
    """A side is written in parts of 4,000 rows, and may have several files."""
    files.write_json(tmp_path / "state.json", {"_data_files": [{"filename": f"{i}"} for i in "ab"]})
    table = pyarrow.table({"input_ids": [[i, 7] for i in range(7)]})
    for name, rows_of in (("a", table[:5]), ("b", table[5:])):
        with ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(rows_of, max_chunksize=2)
    read = tokenized.tokens_at(tmp_path, np.array([6, 0, 3]))
    assert read == {0: [0, 7], 3: [3, 7], 6: [6, 7]}
