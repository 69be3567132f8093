"""An index of conversations, in which others look for those with nearly the same words.

overlap.py says which are. The index holds some hashes of each conversation, and its words in a
nameless file.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from neoxkit import paths
from neoxkit.data.table import Table, ragged
from neoxkit.data.word_runs import (
    EDGE,
    KINDS,
    RUN,
    TRAINED,
    UNTRAINED,
    Runs,
    Templates,
    changes,
    joined,
    kept,
    runs_of,
)
from neoxkit.data.words import Vocabulary, Words, mixed, powers, sums, words_of

SHORT = 2 * RUN  # words: a changed one may leave a shorter conversation without a whole run
PER_CHANGED, PER_MOVED = 8, 4  # own words for each that may differ at one place
MOSTLY, HALF = 0.7, 0.5  # shares of the runs
_AT_ONCE = 1 << 19  # tokens read, and words compared, at once: what memory is needed for


@dataclass(frozen=True)
class Facts:
    """What is known of each row: hashes of its words in their order and in any order, the number of
    words, of its own ones and of those in the longest turn, and the runs of each kind."""

    whole: np.ndarray
    bag: np.ndarray
    words: np.ndarray
    own: np.ndarray
    turn: np.ndarray
    runs: np.ndarray


def parts_of(rows: Table) -> Iterator[Table]:
    """Yield the table, which is in the order of its store, in parts that span _AT_ONCE tokens there
    or are one row: all that lies between a part's rows is read with them."""
    for at in _batches(rows.store.start[rows.at] + rows.begin):
        yield rows.select(at)


def _batches(begins: np.ndarray) -> list[np.ndarray]:
    """Return the indices of what begins at these places, those that are done at once together."""
    batch = begins // _AT_ONCE
    return np.split(np.arange(len(batch)), np.flatnonzero(np.diff(batch)) + 1) if len(batch) else []


def whole_of(words: Words) -> np.ndarray:
    """Hash the words of each row in their order: uint64."""
    place = ragged(np.zeros(len(words.count), np.int64), words.count)
    return mixed(sums(words.hash * powers(int(words.count.max(initial=0)))[place], words.count))


def facts_of(words: Words, runs: Runs) -> Facts:
    """Return the facts of each row, from its words and its runs."""
    return Facts(
        whole_of(words),
        sums(mixed(words.hash), words.count),
        words.count,
        own_words(words),
        longest_turns(words),
        runs.count(len(words.count)),
    )


def own_words(words: Words) -> np.ndarray:
    """Return the number of words in each row that are the conversation's own: a system prompt,
    which is not trained, must not make room for more that differ."""
    trained = sums(words.trained.astype(np.int64), words.count)
    return trained if words.every_turn else np.minimum(2 * trained, words.count)


def longest_turns(words: Words) -> np.ndarray:
    """Return the words of each row's longest turn, with a label; where every turn is trained, they
    can't be told apart: half of all."""
    begins = np.flatnonzero(changes(words.row) | changes(words.trained))
    longest = np.zeros(len(words.count), np.int64)
    np.maximum.at(longest, words.row[begins], np.diff(begins, append=len(words.hash)))
    return longest // 2 if words.every_turn else longest


class Index:
    """Held-out rows, of which no two have the same words, to look for others' near-duplicates."""

    def __init__(self, rows: Table, vocabulary: Vocabulary) -> None:
        self._templates = Templates(len(rows), int(rows.length.sum(dtype=np.int64)))
        for part in parts_of(rows):
            self._templates.add(runs_of(words_of(part, vocabulary)))
        folder = paths.root() / "data" / "tokenized"  # beside the file of the rows' ids
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        facts, found, done = [], [], 0
        for part in parts_of(rows):
            words = words_of(part, vocabulary)
            runs = self._templates.without(runs_of(words))
            self._file.write(words.hash.astype(np.uint32).data)
            facts.append(facts_of(words, runs))
            runs = kept(runs)
            found.append(Runs(runs.hash, runs.row + done, runs.kind))
            done += len(part)
        self._file.flush()
        self.facts = Facts(
            *(np.concatenate([getattr(f, n.name) for f in facts], -1) for n in fields(Facts))
        )
        self._begin = np.cumsum(self.facts.words) - self.facts.words
        self._words = np.memmap(
            self._file, np.uint32, "r", shape=(max(int(self.facts.words.sum()), 1),)
        )
        self._by_whole = np.argsort(self.facts.whole)
        self._set_runs(joined(found).once())
        self.is_template = (self.facts.words >= SHORT) & (self.facts.runs.sum(0) == 0)

    def _set_runs(self, runs: Runs) -> None:
        """Keep the runs, how often each occurs from its first place on, and a table of those that
        may occur, which spares most searches."""
        self._runs, self._kept = runs, runs.count(len(self.facts.words))
        begins = np.flatnonzero(changes(runs.hash))
        self._times = np.zeros(len(runs), np.int64)
        self._times[begins] = np.diff(begins, append=len(runs))
        self._shift = np.uint64(64 - (8 * len(runs) + 1).bit_length())
        self._may_occur = np.zeros(1 << (64 - int(self._shift)), bool)
        self._may_occur[runs.hash >> self._shift] = True

    def near(self, words: Words, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of nearly equal rows: rows of the words, and rows of the index.

        Not each pair is there, but each row that is in one, of the index only if not yet `found`.
        They are in the order of the index.
        """
        runs = self._templates.without(runs_of(words))
        facts = facts_of(words, runs)
        pairs, hits = self._sharing(runs)
        mostly = self._mostly(facts, pairs, hits)
        sure = np.concatenate([self._same(facts.whole), pairs[:, mostly]], axis=1)
        known, found = np.zeros(len(facts.words), bool), found.copy()
        known[sure[0]], found[sure[1]] = True, True
        may = ~(known[pairs[0]] & found[pairs[1]]) & self._may_be_one_place(facts, pairs, hits)
        pairs = pairs[:, may]
        sure = np.concatenate([sure, pairs[:, self._one_place(words, facts, pairs)]], axis=1)
        ours, theirs = sure[:, np.lexsort(sure)]
        return ours, theirs

    def _same(self, wholes: np.ndarray) -> np.ndarray:
        """Return pairs of rows with the same words."""
        at = np.searchsorted(self.facts.whole, wholes, sorter=self._by_whole)
        theirs = self._by_whole[np.minimum(at, len(self._by_whole) - 1)]
        ours = np.flatnonzero(self.facts.whole[theirs] == wholes)
        return np.stack([ours, theirs[ours]])

    def _sharing(self, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of rows that share kept runs, and how many of the first two kinds."""
        runs = runs.select(self._may_occur[runs.hash >> self._shift])
        if not len(runs):
            return np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64)
        at = np.minimum(np.searchsorted(self._runs.hash, runs.hash), len(self._runs) - 1)
        there = self._runs.hash[at] == runs.hash
        once = np.sort(runs.row[there] * len(self._runs) + at[there])
        ours, at = np.divmod(once[changes(once)], len(self._runs))
        entry, num_rows = ragged(at, self._times[at]), len(self.facts.words)
        pair = np.repeat(ours, self._times[at]) * num_rows + self._runs.row[entry]
        pair, kind = np.divmod(np.sort(pair * len(KINDS) + self._runs.kind[entry]), len(KINDS))
        begins = np.flatnonzero(changes(pair))
        counts = np.diff(begins, append=len(pair))
        hits = [sums((kind == k).astype(np.int64), counts) for k in KINDS[:EDGE]]
        return np.stack(np.divmod(pair[begins], num_rows)), np.stack(hits)

    def _mostly(self, facts: Facts, pairs: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """Mark pairs that share most runs, by the share of the kept ones that are shared."""
        ours, theirs = facts.runs[:, pairs[0]], self.facts.runs[:, pairs[1]]
        kept = self._kept[:, pairs[1]]
        share = hits / np.maximum(kept, 1)
        shared = share * theirs
        return (
            (shared[TRAINED] >= MOSTLY * np.maximum(ours, theirs)[TRAINED])
            & (shared.sum(0) >= MOSTLY * np.maximum(ours.sum(0), theirs.sum(0)))
            & ((share[UNTRAINED] >= HALF) | (kept[UNTRAINED] == 0))
            & (hits.sum(0) > 0)
            & (np.minimum(facts.words[pairs[0]], self.facts.words[pairs[1]]) >= SHORT)
        )

    def _may_be_one_place(self, facts: Facts, pairs: np.ndarray, hits: np.ndarray) -> np.ndarray:
        """Mark pairs that may differ at one place, by their lengths and the runs they share."""
        ours, theirs = pairs
        more = facts.words[ours] - self.facts.words[theirs]
        turn = np.where(more > 0, facts.turn[ours], self.facts.turn[theirs])
        shorter, others = self._others(facts, pairs)
        # So many of the index's runs can be missing at the one place.
        broken = RUN - 1 + others + np.maximum(-more, 0)
        missing = self._kept[:, theirs].sum(0) - hits.sum(0)
        return (np.abs(more) <= turn + others) & (shorter >= SHORT) & (missing <= broken)

    def _others(self, facts: Facts, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the words of the shorter row of each pair, and how many of them may be others at
        the one place: more if both rows have the same words in another order."""
        ours, theirs = pairs
        shorter = np.minimum(facts.words[ours], self.facts.words[theirs])
        own = np.minimum(facts.own[ours], self.facts.own[theirs])
        moved = facts.bag[ours] == self.facts.bag[theirs]
        return shorter, np.where(
            moved, np.maximum(own // PER_MOVED, 2), np.maximum(own // PER_CHANGED, 1)
        )

    def _one_place(self, words: Words, facts: Facts, pairs: np.ndarray) -> np.ndarray:
        """Mark pairs whose beginnings and ends are the same, up to other words at one place."""
        shorter, others = self._others(facts, pairs)
        marked = np.zeros(len(shorter), bool)
        for at in _batches(np.cumsum(shorter) - shorter):
            ours, theirs = pairs[:, at]
            ahead = self._equal(words, words.begin[ours], self._begin[theirs], shorter[at])
            ends = words.begin[ours + 1] - 1, self._begin[theirs] + self.facts.words[theirs] - 1
            back = self._equal(words, *ends, shorter[at], -1)
            marked[at] = ahead + back >= (shorter - others)[at]
        return marked

    def _equal(
        self, words: Words, ours: np.ndarray, theirs: np.ndarray, count: np.ndarray, step: int = 1
    ) -> np.ndarray:
        """Return how many words of each pair are equal in turn, from these ones on."""
        place = step * ragged(np.zeros(len(count), np.int64), count)
        own = words.hash[np.repeat(ours, count) + place].astype(np.uint32)
        other = own != self._words[np.repeat(theirs, count) + place]
        equal = count.copy()
        np.minimum.at(equal, np.repeat(np.arange(len(count)), count)[other], np.abs(place[other]))
        return equal
