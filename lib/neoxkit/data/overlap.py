"""Find held-out conversations that the train side has in nearly the same words.

The held-out side is put into an index, some hashes for each conversation and its words in a
nameless file, and the train side streams past it. Punctuation, spaces and capitals make no
difference (words.py). Two conversations are nearly the same if

- they have the same words, or
- they differ at one place: in an eighth of the words at most, in words that were moved, or by a
  turn that one of them has more, or
- they share 70 % of the runs of words in the replies and of all runs, and half of the others. What
  more than 32 held-out conversations have, like a system prompt, is not counted.

Below 8 words, the names of both sides included, only the first counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neoxkit.data.near_index import Index, parts_of, whole_of
from neoxkit.data.table import Table
from neoxkit.data.words import Vocabulary, words_of
from neoxkit.errors import UserError
from neoxkit.parallel import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Near:
    """The near-duplicates between two sides, and what is done with them: tell, drop or ignore.

    `partner`: for each held-out row a train row that is nearly the same, -1 if none is. `marked`:
    the train rows that a held-out row is nearly the same as. `templates`: how many held-out rows
    have nothing but runs of templates, so that only the same words would have been found. `side`:
    that of the held-out rows, eval or test.
    """

    train: Table
    held_out: Table
    partner: np.ndarray
    marked: np.ndarray
    templates: int = 0
    how: str = "tell"
    side: str = "eval"

    @property
    def found(self) -> np.ndarray:
        """Return the indices of the held-out rows that have a near-duplicate."""
        return np.flatnonzero(self.partner >= 0)

    @property
    def left(self) -> Table:
        """Return the train side without what is dropped, which is all parts of a document."""
        if self.how != "drop":
            return self.train
        return self.train.select(~np.isin(self.train.at, self.train.at[self.marked]))

    @property
    def num_dropped(self) -> int:
        return len(self.train) - len(self.left)

    def notes(self) -> list[str]:
        """Say what was found and done, for the user."""
        said = []
        are = "held-out conversations"
        if self.side == "test":
            are = "conversations of the test side"
        if len(self.found):
            have = "had" if self.how == "drop" else "have"
            what = f"{are} {have} a near-duplicate in the train side"
            done = f"{self.num_dropped:,} of its own are left out"
            if self.how != "drop":
                num = int(self.marked.sum())
                done = f"set near_duplicates to drop to leave out {num:,} of its own"
            said.append(f"{len(self.found):,} of {len(self.held_out):,} {what}: {done}")
        if self.templates:
            said.append(
                f"{self.templates:,} {are} have only words that many others have: "
                "of their near-duplicates, those with the same words alone are found"
            )
        return said

    def as_dict(self) -> dict[str, int]:
        """Return the counts for the manifest."""
        return {
            "held_out": len(self.found),
            "train": int(self.marked.sum()),
            "dropped": self.num_dropped,
            "templates": self.templates,
        }


def look_for(
    train: Table,
    held_out: Table,
    tokenizer: "PreTrainedTokenizerBase",
    how: str = "tell",
    progress: Progress = silent,
    side: str = "eval",
) -> Near:
    """Look for near-duplicates between the train side and held-out rows; with "ignore", don't.

    Refuse to drop all conversations of the train side.
    """
    marked, done = np.zeros(len(train), bool), 0
    if how == "ignore" or not len(held_out):
        progress(0, 0)
        return Near(train, held_out, np.full(len(held_out), -1, np.int64), marked, 0, how, side)
    vocabulary = Vocabulary(tokenizer)
    wholes = np.concatenate([whole_of(words_of(part, vocabulary)) for part in parts_of(held_out)])
    _, first, which = np.unique(wholes, return_index=True, return_inverse=True)
    index = Index(held_out.select(np.sort(first)), vocabulary)
    which = np.argsort(np.argsort(first))[which]  # the index is in the order of the file
    partner = np.full(len(first), -1, np.int64)
    for part in parts_of(train):
        ours, theirs = index.near(words_of(part, vocabulary), partner >= 0)
        marked[done + ours] = True
        found, at = np.unique(theirs, return_index=True)
        new = partner[found] < 0
        partner[found[new]] = done + ours[at[new]]
        done += len(part)
        progress(done, len(train))
    templates = int(index.is_template[which].sum())
    near = Near(train, held_out, partner[which], marked, templates, how, side)
    if not len(near.left):
        what = "every conversation of the train side is nearly the same as a held-out one"
        raise UserError("near_duplicates", what, "set it to tell")
    return near


def look_through(
    sides: Mapping[str, Table],
    tokenizer: "PreTrainedTokenizerBase",
    how: str = "tell",
    progress: Progress = silent,
) -> tuple[dict[str, Table], list[Near]]:
    """Look for near-duplicates of each held-out side in the train side, one side after the other.

    Return the sides that are left, and what was found of the held-out set, then of the test side.
    """
    left, found = dict(sides), []
    for side in sides:
        if side != "train":
            near = look_for(left["train"], sides[side], tokenizer, how, progress, side)
            left["train"] = near.left
            found.append(near)
    return left, found
