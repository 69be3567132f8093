"""Pair the conversations of two tokenized datasets by hashes of their rows.

A dataset is read once, part by part, and 37 bytes of each row stay in memory: two hashes, its side
and its line.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from neoxkit.data import tokenized

HASH_BYTES = 16


@dataclass(frozen=True)
class RowHashes:
    """The rows of a dataset, the train side first: hashes of tokens and of labels (bytes), which
    are held out (bool), and each one's line in its source (int32)."""

    tokens: np.ndarray
    labels: np.ndarray
    is_eval: np.ndarray
    line: np.ndarray

    @classmethod
    def of_dataset(cls, folder: Path) -> Self:
        """Hash the rows of a tokenized dataset."""
        sides = [_of_side(folder / side) for side in tokenized.OF_TRAINING]
        tokens, labels, line = (np.concatenate(parts) for parts in zip(*sides, strict=True))
        is_eval = np.repeat([False, True], [len(one) for one, *_ in sides])
        return cls(tokens, labels, is_eval, line)

    def __len__(self) -> int:
        return len(self.line)

    def place(self, row: int) -> tuple[str, int]:
        """Return the side of a row, and its number there."""
        num_train = len(self) - int(self.is_eval.sum())
        return ("eval", row - num_train) if self.is_eval[row] else ("train", row)


def _of_side(side: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hashes = {"input_ids": bytearray(), "labels": bytearray()}
    lines: list[np.ndarray] = [np.zeros(0, np.int32)]
    with tokenized.readable(side):
        for batch in tokenized.batches(side):
            for name, found in hashes.items():
                column = batch.column(name)
                values, ends = np.from_dlpack(column.values), np.from_dlpack(column.offsets)
                for begin, end in itertools.pairwise(ends.tolist()):
                    found += _hash(values[begin:end])
            lines.append(np.from_dlpack(batch.column("line")).copy())
    tokens, labels = (np.frombuffer(found, f"S{HASH_BYTES}") for found in hashes.values())
    return tokens, labels, np.concatenate(lines)


def _hash(values: np.ndarray) -> bytes:
    return hashlib.blake2b(values.data, digest_size=HASH_BYTES).digest()


Rows = tuple[np.ndarray, np.ndarray]  # indices into the rows of the one and of the other dataset


@dataclass(frozen=True)
class Pairing:
    """The rows of two datasets that have no equal row in the other one, on the same side.

    `moved`: it is on the other side. `relabelled`: one with the same tokens has other labels.
    `only`: no row there has these tokens. Equal rows are counted: a conversation that is twice in
    one dataset and once in the other has a row there without a partner. `reordered`: the first two
    of the equal rows (`num_equal` of them) that come in another order; None if none does.
    """

    num_equal: int
    moved: Rows
    relabelled: Rows
    only: Rows
    reordered: tuple[int, int] | None


def paired(a: RowHashes, b: RowHashes) -> Pairing:
    """Pair the rows of two datasets."""
    tokens, labels = _numbered(a.tokens, b.tokens), _numbered(a.labels, b.labels)
    num_labels = max(of.max(initial=0) for of in labels) + 1
    whole = [t * num_labels + of for t, of in zip(tokens, labels, strict=True)]
    on_a_side = [2 * key + rows.is_eval for key, rows in zip(whole, (a, b), strict=True)]
    left = np.arange(len(a)), np.arange(len(b))
    found: list[Rows] = []
    for one, other in (on_a_side, whole, tokens):
        has = _matched(one[left[0]], other[left[1]])
        found.append((left[0][has[0]], left[1][has[1]]))
        left = left[0][~has[0]], left[1][~has[1]]
    equal, moved, relabelled = found
    out_of_order = np.flatnonzero(on_a_side[0][equal[0]] != on_a_side[1][equal[1]])[:1]
    reordered = [(int(equal[0][i]), int(equal[1][i])) for i in out_of_order]
    return Pairing(len(equal[0]), moved, relabelled, left, next(iter(reordered), None))


def _numbered(one: np.ndarray, other: np.ndarray) -> Rows:
    """Replace the values of two arrays by numbers, equal ones by the same."""
    _, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
    return numbers[: len(one)], numbers[len(one) :]


def _matched(one: np.ndarray, other: np.ndarray) -> Rows:
    """Return which elements have a partner of the same value in the other array: bool. Of n and m
    equal ones, the first min(n, m) have.

    >>> [has.tolist() for has in _matched(np.array([5, 7, 5]), np.array([5, 8]))]
    [[True, False, False], [True, False]]
    """
    numbers = _numbered(one, other)
    size = len(one) + len(other)
    counts = [np.bincount(of, minlength=size) for of in numbers]
    has = [_earlier(of) < counts[1 - i][of] for i, of in enumerate(numbers)]
    return has[0], has[1]


def _earlier(numbers: np.ndarray) -> np.ndarray:
    """Return how many earlier elements are equal to each one.

    >>> _earlier(np.array([5, 7, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(numbers, kind="stable")
    in_order = numbers[order]
    begins = np.searchsorted(in_order, in_order)  # of each run of equal ones
    earlier = np.empty(len(numbers), np.int64)
    earlier[order] = np.arange(len(numbers)) - begins
    return earlier
