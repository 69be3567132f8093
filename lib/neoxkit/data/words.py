"""Hash the words of tokenized conversations: letters and digits alone, in lower case.

Texts that differ in punctuation, spaces or capitals have the same words, whatever their ids are.
Beyond ASCII a capital counts as another letter, and so do the bytes of a sign with several tokens.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neoxkit.data.table import NOT_TRAINED, Table, ragged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BASE = 0x9E3779B97F4A7C15  # odd: every power of it is different, modulo 2**64
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_OTHER = b"\0"
_SIGN = re.compile(rb"\xe2[\x80-\xbf]{0,2}")  # quotes, dashes and the like, in UTF-8
_PLAIN = bytes(
    ord(chr(b).lower()) if chr(b).isalnum() or b >= 128 else 0 for b in range(128)
) + bytes(range(128, 256))
# The letters that stand for bytes in a byte-level vocabulary, as in GPT-2's.
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {256 + i: b for i, b in enumerate(b for b in range(256) if b not in _SHOWN)}
_LONE = 0xE3  # from here on (Chinese, say) there are no spaces: each token begins a word


class Vocabulary:
    """What each id of a tokenizer adds to a word: a hash of its letters and digits (uint64), their
    number in bytes, and whether they begin a word, or there are none (bool).

    An id is looked up when it first occurs: most of a vocabulary is not in most files.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        count = len(tokenizer)
        self._tokenizer, self._special = tokenizer, {*tokenizer.all_special_ids}
        self.hash, self.size = np.zeros(count, np.uint64), np.full(count, -1, np.int32)
        self.apart = np.ones(count, bool)

    def learn(self, ids: np.ndarray) -> None:
        """Look up those of the ids that have not occurred before."""
        new = np.unique(ids[self.size[ids] < 0])
        texts = [
            b"" if at in self._special else _letters(token or "")
            for at, token in zip(
                new.tolist(), self._tokenizer.convert_ids_to_tokens(new.tolist()), strict=True
            )
        ]
        letters = [text.replace(_OTHER, b"") for text in texts]
        size = np.array([*map(len, letters)], np.int32)
        bytes_ = np.frombuffer(b"".join(letters), np.uint8).astype(np.uint64)
        place = ragged(np.zeros(len(size), np.int64), size)
        self.hash[new] = sums(bytes_ * powers(int(size.max(initial=0)))[place], size)
        self.size[new] = size
        self.apart[new] = [
            not text or text.startswith(_OTHER) or max(text) >= _LONE for text in texts
        ]


@dataclass(frozen=True)
class Words:
    """The words of some rows, concatenated: a hash of each (uint64), whether it is trained, and the
    first word of each row, with the number of all words at the end.

    `every_turn`: all turns are trained, not the agent's alone.
    """

    hash: np.ndarray
    trained: np.ndarray
    begin: np.ndarray
    every_turn: bool

    @property
    def count(self) -> np.ndarray:
        """Return the number of words in each row."""
        return np.diff(self.begin)

    @property
    def row(self) -> np.ndarray:
        """Return the row of each word."""
        return np.repeat(np.arange(len(self.count)), self.count)


def _letters(token: str) -> bytes:
    """Return a token of a byte-level vocabulary in UTF-8, in lower case and with _OTHER in place of
    each sign or space; what is beyond ASCII stays as it is.

    >>> _letters("\u0120Caf\u00c3\u00a9,").replace(_OTHER, b"_").decode()
    '_caf\u00e9_'
    """
    try:
        text = token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:  # not a byte's letter: the vocabulary has it as it is
        text = token.encode()
    return _SIGN.sub(_OTHER, text.translate(_PLAIN))


def powers(count: int) -> np.ndarray:
    """Return the first powers of the base of the hashes, modulo 2**64: uint64."""
    factors = np.full(max(count, 1), _BASE, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sum of each run of so many values, 0 for an empty one."""
    total = np.zeros(len(values) + 1, values.dtype)
    np.cumsum(values, dtype=values.dtype, out=total[1:])
    at = np.cumsum(counts, dtype=np.int64)
    return total[at] - total[at - counts]


def mixed(values: np.ndarray) -> np.ndarray:
    """Spread what differs in some bits of a hash over all of them."""
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return values ^ (values >> np.uint64(29))


def words_of(rows: Table, vocabulary: Vocabulary) -> Words:
    """Return the words of a table's rows; a large table needs `chunks`."""
    ids = rows.ids()
    vocabulary.learn(ids)
    first = np.cumsum(rows.length, dtype=np.int64) - rows.length
    apart = vocabulary.apart[ids]
    apart[first] = True  # a row that was cut has no end mark
    size = vocabulary.size[ids]
    kept = np.flatnonzero(size)
    word = np.cumsum(apart, dtype=np.int32)[kept]
    starts = np.flatnonzero(np.diff(word, prepend=-1))
    size = size[kept]
    place = np.cumsum(size, dtype=np.int64) - size
    place -= np.repeat(place[starts], np.diff(starts, append=len(kept)))
    hashes = vocabulary.hash[ids[kept]] * powers(int(place.max(initial=0)) + 1)[place]
    at = kept[starts]
    return Words(
        mixed(np.add.reduceat(hashes, starts) if len(starts) else hashes),
        rows.labels(ids)[at] != NOT_TRAINED,
        np.append(np.searchsorted(at, first), len(at)),
        rows.store.train_on == "all",
    )
