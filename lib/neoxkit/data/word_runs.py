"""Runs of words, by which conversations that share some are found, and those of templates."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from neoxkit.data.words import Words, mixed, powers

RUN = 4  # words in a run: one changed word spoils 4 of them
KINDS = UNTRAINED, TRAINED, EDGE = range(3)  # by the last word; EDGE: a row's first and last run
KEPT = (8, 16)  # runs kept of a row, of the first two kinds
COMMON, COMMON_SHARE = 32, 0.5  # a run of more rows, or of a larger share, is a template's
_MOST_BITS = 22  # of the table of counts


@dataclass(frozen=True)
class Runs:
    """The hash (uint64), the row and the kind of each run."""

    hash: np.ndarray
    row: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.hash)

    def select(self, which: np.ndarray) -> "Runs":
        """Select runs by index or by mask."""
        return Runs(self.hash[which], self.row[which], self.kind[which])

    def once(self) -> "Runs":
        """Return each row's different runs, in the order of their hashes, a row's first kind."""
        runs = self.select(np.lexsort((self.kind, self.row, self.hash)))
        return runs.select(changes(runs.hash) | changes(runs.row))

    def count(self, num_rows: int) -> np.ndarray:
        """Return how many runs each row has of the first two kinds: int64, of this shape."""
        code = self.row * len(KINDS) + self.kind
        return np.bincount(code, minlength=num_rows * len(KINDS)).reshape(-1, len(KINDS)).T[:EDGE]


def joined(parts: Sequence[Runs]) -> Runs:
    """Return the runs of all parts."""
    return Runs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Runs)))


def changes(values: np.ndarray) -> np.ndarray:
    """Mark the values that differ from the one before, the first one too: bool."""
    return np.append(np.ones(min(len(values), 1), bool), values[1:] != values[:-1])


def runs_of(words: Words) -> Runs:
    """Return all runs of words that are within a row."""
    count = max(len(words.hash) - RUN + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for at, factor in enumerate(powers(RUN)):
        hashes += words.hash[at : at + count] * factor
    row, kind = words.row, words.trained[RUN - 1 :].astype(np.int64)
    within = row[:count] == row[RUN - 1 :]
    return Runs(mixed(hashes[within]), row[:count][within], kind[within])


def kept(runs: Runs) -> Runs:
    """Return KEPT runs of each row, and its first and last.

    The smallest hashes are kept: as good as chosen by lot, and the same in all rows that have them.
    """
    by_size = runs.once()
    by_size = by_size.select(np.lexsort((by_size.kind, by_size.row)))  # stable
    begins = np.flatnonzero(changes(by_size.row) | changes(by_size.kind))
    counts = np.diff(begins, append=len(by_size))
    rank = np.arange(len(by_size)) - np.repeat(begins, counts)
    first = changes(runs.row)
    last = np.append(first[1:], np.ones(min(len(runs), 1), bool))
    edges = runs.select(first | last)
    edges.kind[:] = EDGE
    return joined([by_size.select(rank < np.array(KEPT)[by_size.kind]), edges]).once()


class Templates:
    """The runs that many rows have, like those of a system prompt or a greeting.

    They are counted in a table of a fixed size, so two runs may share a count, which is then the
    sum of both.
    """

    def __init__(self, num_rows: int, num_words: int) -> None:
        self._shift = np.uint64(64 - min(max(num_words.bit_length() + 2, 8), _MOST_BITS))
        self._rows = np.zeros(1 << (64 - int(self._shift)), np.int32)
        self._most = min(COMMON, max(int(COMMON_SHARE * num_rows), 2))

    def add(self, runs: Runs) -> None:
        """Count the rows that have these runs."""
        np.add.at(self._rows, runs.once().hash >> self._shift, 1)

    def without(self, runs: Runs) -> Runs:
        """Return the runs that are no template's."""
        return runs.select(self._rows[runs.hash >> self._shift] <= self._most)
