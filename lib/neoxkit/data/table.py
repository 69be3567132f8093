"""Tables of millions of encoded conversations: token ids in a file, the rest in arrays.

A Table is a view: selecting or shortening rows makes small new arrays over the same store.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from neoxkit import paths
from neoxkit.data.places import NO_PLACES, Places

NOT_TRAINED = -100  # the label that torch's cross entropy ignores


@dataclass(frozen=True)
class ReplySpan:
    """Token indices of an agent turn: its text is start..end, what ends it is end..over."""

    start: int
    end: int
    over: int


@dataclass(frozen=True)
class Encoded:
    """One conversation in tokens.

    `ids` (int32) and `trained` (bool) have one value per token; the end mark is the last. Token 0
    is never trained: nothing comes before it, and this keeps conversations in a packed row apart.
    """

    ids: np.ndarray
    trained: np.ndarray
    replies: tuple[ReplySpan, ...]
    line: int
    fault: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())

    @property
    def labels(self) -> np.ndarray:
        """Return the ids of trained tokens, else -100: int32; the model shifts them by one."""
        return np.where(self.trained, self.ids, NOT_TRAINED).astype(np.int32)


# What is kept of each conversation beside its ids and replies.
COLUMNS = {
    "length": "int32",  # tokens
    "first": "int32",  # the first label's token
    "num_replies": "int32",
    "line": "int32",  # where it begins in the file
    "fault": "uint8",  # 0: none, else 1 + an index into FAULTS
    "key": "S16",  # equal for equal ids
    "chars": "int32",  # characters of its text
    "astray": "int32",  # tokens of agent turns after a label of the asking side
    "shortest": "int32",  # characters of its shortest turn
}
# A worker's conversations, concatenated: COLUMNS, "ids" and "replies" (rows of start, end, over).
Part = dict[str, np.ndarray]

FAULTS = ("a turn is empty", "no reply")


def key_of(ids: np.ndarray) -> bytes:
    """Return a key of the ids: rows with equal ids must stay on the same side of the split."""
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


class Store:
    """Parts joined together; the ids are in a nameless file that vanishes with the process."""

    def __init__(self, parts: Iterable[Part], train_on: str, places: Places) -> None:
        self.train_on, self.places = train_on, places
        folder = paths.root() / "data" / "tokenized"  # not /tmp, which may be in memory
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        # Arrays grow in place: joining many small ones later would need the memory twice.
        grown = {name: bytearray() for name in ("replies", *COLUMNS)}
        for part in parts:
            self._file.write(part["ids"].data)
            for name, raw in grown.items():
                raw.extend(part[name].data)
        self._file.flush()
        self.replies = np.frombuffer(grown.pop("replies"), np.int32).reshape(-1, 3)
        self.columns = {name: np.frombuffer(raw, COLUMNS[name]) for name, raw in grown.items()}
        length, num_replies = self.columns["length"], self.columns["num_replies"]
        self.start = np.cumsum(length, dtype=np.int64) - length
        self.first_reply = np.cumsum(num_replies, dtype=np.int64) - num_replies

    def ids(self, start: int, end: int) -> np.ndarray:
        """Return the ids from `start` up to `end` in the file: int32."""
        raw = os.pread(self._file.fileno(), 4 * (end - start), 4 * start)
        return np.frombuffer(raw, dtype=np.int32)


@dataclass(frozen=True)
class Table:
    """Rows of a store: their indices (`at`, int64), the tokens of each (`length`, int32), and how
    many tokens are skipped before them (`begin`, int64): 0, but for later parts of a document."""

    store: Store
    at: np.ndarray
    length: np.ndarray
    begin: np.ndarray

    def __len__(self) -> int:
        return len(self.at)

    @property
    def places(self) -> Places:
        return self.store.places

    def select(self, rows: np.ndarray) -> "Table":
        """Select rows by index or by mask."""
        return Table(self.store, self.at[rows], self.length[rows], self.begin[rows])

    def cut(self, length: np.ndarray) -> "Table":
        """Shorten each row to its first `length` tokens."""
        return Table(self.store, self.at, length, self.begin)

    def in_parts(self, most: int) -> "Table":
        """Cut each row, a document, into equal parts of at most `most` tokens."""
        parts = -(-self.length // most)
        row = np.repeat(np.arange(len(self)), parts)
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        length = self.length[row].astype(np.int64)
        begin, end = (length * i // parts[row] for i in (part, part + 1))
        return Table(self.store, self.at[row], (end - begin).astype(np.int32), begin)

    @property
    def is_part(self) -> np.ndarray:
        """Mark the parts of documents, the first ones too: bool."""
        return np.isin(self.at, self.at[self.begin > 0])

    @property
    def num_parts(self) -> int:
        return int(self.is_part.sum())

    def column(self, name: str) -> np.ndarray:
        """Return one of COLUMNS for these rows; it describes them as encoded, before any cut."""
        return self.store.columns[name][self.at]

    @property
    def trained(self) -> np.ndarray:
        """Return the number of trained tokens in each row: int32."""
        rows, starts, ends = self.spans()
        return np.bincount(rows, ends - starts, len(self)).astype(np.int32)

    def replies(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row index and (start, end, over) of each reply that is whole in its row."""
        rows, replies = self._all_replies()
        whole = replies[:, 2] <= self.length[rows]
        return rows[whole], replies[whole]

    def _all_replies(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all replies, including those beyond the end of a shortened row."""
        count = self.column("num_replies")
        replies = self.store.replies[ragged(self.store.first_reply[self.at], count)]
        return np.repeat(np.arange(len(self)), count), replies

    def spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ranges of trained tokens: row index, start, end (not included)."""
        if self.store.train_on == "all":
            rows = np.arange(len(self))
            starts, ends = self.column("first"), self.length
        else:
            rows, replies = self._all_replies()
            starts, ends = replies[:, 0], np.minimum(replies[:, 2], self.length[rows])
        starts = np.maximum(starts, 1)
        some = starts < ends
        return rows[some], starts[some], ends[some]

    def keys(self) -> np.ndarray:
        """Return 16 bytes per row (dtype S16), equal for rows with equal ids."""
        keys = self.column("key")
        for row in np.flatnonzero(self.length < self.column("length")):
            start = self.store.start[self.at[row]] + self.begin[row]
            keys[row] = key_of(self.store.ids(start, start + self.length[row]))
        return keys

    def side_keys(self) -> np.ndarray:
        """Return keys like `keys`, but equal for the parts of a document: all are on one side."""
        return np.where(self.is_part, self.column("key"), self.keys())

    def ids(self) -> np.ndarray:
        """Return the concatenated ids of all rows: int32. A large table needs `chunks`."""
        if not len(self):
            return np.zeros(0, np.int32)
        starts = self.store.start[self.at] + self.begin
        low, high = starts.min(), (starts + self.length).max()
        return self.store.ids(low, high)[ragged(starts - low, self.length)]

    def labels(self, ids: np.ndarray) -> np.ndarray:
        """Return the labels of these ids, NOT_TRAINED where nothing is learnt: int32."""
        rows, starts, ends = self.spans()
        begins = np.cumsum(self.length, dtype=np.int64) - self.length
        edges = np.zeros(len(ids) + 1, np.int8)
        np.add.at(edges, begins[rows] + starts, 1)
        np.add.at(edges, begins[rows] + ends, -1)
        return np.where(np.cumsum(edges[:-1], dtype=np.int8) > 0, ids, NOT_TRAINED).astype(np.int32)

    def chunks(self, rows: int = 4000) -> Iterator["Table"]:
        """Yield the table in parts of `rows` rows."""
        for start in range(0, len(self), rows):
            yield self.select(np.arange(start, min(start + rows, len(self))))

    def __getitem__(self, row: int) -> Encoded:
        one = self.select(np.array([row]))
        ids = one.ids()
        fault = int(one.column("fault")[0])
        return Encoded(
            ids=ids,
            trained=one.labels(ids) != NOT_TRAINED,
            replies=tuple(ReplySpan(*map(int, reply)) for reply in one.replies()[1]),
            line=int(one.column("line")[0]),
            fault=FAULTS[fault - 1] if fault else "",
        )

    def __iter__(self) -> Iterator[Encoded]:
        return (self[row] for row in range(len(self)))


def from_parts(parts: Iterable[Part], train_on: str, places: Places = NO_PLACES) -> Table:
    """Join the parts into a table of all their conversations; `places`: what its lines mean."""
    store = Store(parts, train_on, places)
    length = store.columns["length"]
    return Table(store, np.arange(len(length)), length, np.zeros(len(length), np.int64))


def ragged(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the indices of several ranges, concatenated.

    >>> ragged(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(counts, dtype=np.int64) - counts
    return np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - before, counts)
