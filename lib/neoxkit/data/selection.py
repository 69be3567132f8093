"""Keep, cut, drop and hold out conversations, and count everything."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neoxkit.data.places import NO_PLACES, Places
from neoxkit.data.table import FAULTS, Table
from neoxkit.errors import UserError
from neoxkit.settings import MOST_SHARE

# The sides of a dataset, and their names for people; not every dataset has a test side.
SETS = {"train": "training set", "eval": "held-out set", "test": "test set"}
SIDES = (*SETS,)
LEAST_HELD_OUT = 20  # conversations: an interval computed from fewer can't be trusted


@dataclass
class Counts:
    """The effects of the length policy: everything that is lost, with line numbers."""

    read: int = 0
    kept: int = 0
    cut: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    trained_tokens_lost: int = 0
    places: Places = NO_PLACES
    split: int = 0  # documents kept in parts, each of which counts as kept
    parts: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Return the counts as a table: what was counted, and how many."""
        lost = self.trained_tokens_lost / max(self.trained_tokens + self.trained_tokens_lost, 1)
        return [
            ("conversations read", f"{self.read:,}"),
            ("kept", f"{self.kept - self.more_parts:,}"),
            ("of them cut", f"{len(self.cut):,}" + self._where(self.cut)),
            *([("of them split", f"{self.split:,}, into {self.parts:,}")] if self.split else []),
            *(
                (f"dropped: {why}", f"{len(at):,}{self._where(at)}")
                for why, at in self.dropped.items()
            ),
            ("tokens kept", f"{self.tokens:,}"),
            ("trained tokens kept", f"{self.trained_tokens:,}"),
            ("trained tokens lost", f"{self.trained_tokens_lost:,} ({lost:.1%})"),
        ]

    @property
    def more_parts(self) -> int:
        """Return how many more rows there are than documents, because some were split."""
        return self.parts - self.split

    def _where(self, lines: Sequence[int]) -> str:
        return f" ({self.places.listed(lines)})" if lines else ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept - self.more_parts,
            "cut_lines": self.cut,
            "dropped_lines": self.dropped,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_tokens_lost": self.trained_tokens_lost,
        }


def fit(
    encoded: Table, block_size: int, too_long: str = "drop", side: str = "train"
) -> tuple[Table, Counts]:
    """Apply the length policy: keep conversations of at most `block_size` tokens as they are.

    A longer one is dropped, or cut after its last agent turn that fits (at `block_size` if none
    does), without an end mark. Conversations without a trained token are dropped. With "error"
    the first one that is too long is refused. With "split" a longer document becomes equal parts.
    """
    if too_long == "split" and encoded.column("num_replies").any():
        what = "split is for documents, and these are conversations"
        raise UserError("too_long", what, "set it to drop, cut or error")
    long = encoded.length > block_size
    line, fault = encoded.column("line"), encoded.column("fault")
    faulty = fault > 0
    if too_long == "error" and (long & ~faulty).any():
        row = int(np.flatnonzero(long & ~faulty)[0])
        raise UserError(
            f"{side} file, {encoded.places.listed([int(line[row])])}",
            f"a conversation has {encoded.length[row]} tokens, block_size is {block_size}",
            "raise block_size, or set too_long to drop or cut",
        )
    short = encoded
    if too_long != "split":
        short = encoded.cut(np.where(long, cut_length(encoded, block_size), encoded.length))
    dropped_for_length = long & ~faulty if too_long == "drop" else np.zeros_like(long)
    trained, kept_trained = encoded.trained, short.trained
    untrained = ~faulty & ~dropped_for_length & (kept_trained == 0)
    kept = ~faulty & ~dropped_for_length & ~untrained
    reasons = {why: fault == code for code, why in enumerate(FAULTS, start=1)}
    reasons[f"longer than {block_size} tokens"] = dropped_for_length
    reasons["no trained token within block_size"] = untrained
    fitted = short.select(kept)
    if too_long == "split":
        fitted = fitted.in_parts(block_size)
    trained_tokens = int(fitted.trained.sum())
    return fitted, Counts(
        read=len(encoded),
        kept=len(fitted),
        cut=line[kept & long].tolist() if too_long != "split" else [],
        split=int((kept & long).sum()) if too_long == "split" else 0,
        parts=fitted.num_parts,
        dropped={why: line[rows].tolist() for why, rows in reasons.items() if rows.any()},
        tokens=int(fitted.length.sum()),
        trained_tokens=trained_tokens,
        trained_tokens_lost=int(trained.sum()) - trained_tokens,
        places=encoded.places,
    )


def cut_length(encoded: Table, block_size: int) -> np.ndarray:
    """Return the length to which each row would be cut: int32.

    It keeps all whole agent turns that fit; if there is none, all tokens that fit.
    """
    rows, replies = encoded.replies()
    fits = replies[:, 2] <= block_size
    length = np.zeros(len(encoded), np.int32)
    np.maximum.at(length, rows[fits], replies[fits, 2])
    return np.where(length > 0, length, np.minimum(encoded.length, block_size)).astype(np.int32)


def fit_sides(
    encoded: Mapping[str, Table], block_size: int, too_long: str
) -> dict[str, tuple[Table, Counts]]:
    """Apply `fit` to each file; refuse if nothing is left to train on."""
    fitted = {side: fit(rows, block_size, too_long, side) for side, rows in encoded.items()}
    counts = fitted["train"][1]
    if not counts.kept:
        why = ", ".join(f"{len(at):,} {reason}" for reason, at in counts.dropped.items())
        whole = encoded["train"].column("num_replies").any()
        remedy = "raise it, or use cut" if whole else "set too_long to split"
        raise UserError("block_size", f"no conversation is left ({why})", remedy)
    return fitted


def split(keys: np.ndarray, eval_share: float, seed: int, test_share: float = 0.0) -> np.ndarray:
    """Return the side of each row, as an index into SIDES: int8, one per key; equal keys are on the
    same side.

    The side depends only on the seed and the key, not on the order in the file. The lowest of the
    keyed hashes are held out and the next ones are the test side, so that a test_share leaves the
    held-out set as it is. A share above 0 gets at least one key, if one is left for the train side.
    """
    unique, which = np.unique(keys, return_inverse=True)
    seed_key = str(seed).encode()
    digests = (hashlib.blake2b(k, digest_size=8, key=seed_key).digest() for k in unique)
    ranks = np.fromiter(digests, "S8", len(unique))
    num_eval = _of_share(eval_share, len(unique), len(unique) - 1)
    num_test = _of_share(test_share, len(unique), len(unique) - 1 - num_eval)
    side = np.zeros(len(unique), np.int8)
    order = np.argsort(ranks, kind="stable")
    side[order[:num_eval]] = SIDES.index("eval")
    side[order[num_eval : num_eval + num_test]] = SIDES.index("test")
    return side[which]


def _of_share(share: float, num: int, most: int) -> int:
    """Return how many of `num` keys a share takes: at least one, but no more than `most`.

    >>> _of_share(0.05, 100, 99), _of_share(0.05, 4, 3), _of_share(0.05, 1, 0), _of_share(0, 9, 8)
    (5, 1, 0, 0)
    """
    return max(min(max(round(share * num), int(share > 0)), most), 0)


def split_rows(
    rows: Table, eval_rows: Table | None, eval_share: float, seed: int, test_share: float = 0.0
) -> tuple[dict[str, Table], list[str]]:
    """Return the sides, and notes on the split for the user; there is a test side only if
    `test_share` is above 0.

    With `eval_rows` (from a separate file) they are the held-out set, and conversations in both
    files leave the others.
    """
    notes, keys = [], rows.side_keys()
    if eval_rows is not None:
        repeated, eval_share = np.isin(keys, eval_rows.side_keys()), 0.0
        if both := len(np.unique(rows.at[repeated])):
            notes.append(f"{both} conversations are in both files: left out of the train side")
        if repeated.all():
            what = "has every conversation that train_file has left to train on"
            remedy = "name another file, or leave it out: a share is then held out"
            raise UserError("eval_file", what, remedy)
        rows, keys = rows.select(~repeated), keys[~repeated]
    of_row = split(keys, eval_share, seed, test_share)
    sides = {side: rows.select(of_row == i) for i, side in enumerate(SIDES)}
    if eval_rows is not None:
        sides["eval"] = eval_rows
    if test_share and not len(sides["test"]):
        what = "no conversation is left for the test side"
        raise UserError("test_share", what, "give more conversations, or set it to 0")
    shares = {"eval_share": eval_share, "test_share": test_share}
    notes += _on_held_out(sides["eval"], rows, seed, shares, eval_rows is not None)
    if not test_share:
        del sides["test"]
    elif len(sides["test"]) < LEAST_HELD_OUT:
        remedy = _more_held_out("test_share", rows, seed, shares)
        notes.append(f"{_too_few(len(sides['test']), 'in the test side')} {remedy}")
    return sides, notes


def _on_held_out(
    held_out: Table, rows: Table, seed: int, shares: Mapping[str, float], own_file: bool
) -> list[str]:
    """Say that the held-out set is empty or small; nothing otherwise.

    `own_file`: whether it comes from an eval_file, `rows` are those of train_file.
    """
    if not len(held_out):
        why = "there is only one conversation to split"
        if own_file:
            why = "no conversation of eval_file was kept"
        elif shares["eval_share"] == 0:
            why = "eval_share is 0"
        return [f"The held-out set is empty ({why}): 02 and 03 will show no eval loss."]
    if len(held_out) < LEAST_HELD_OUT:
        remedy = "Give an eval_file of at least 20 conversations that fit."
        if not own_file:
            remedy = _more_held_out("eval_share", rows, seed, shares)
        return [f"{_too_few(len(held_out), 'held out')} {remedy}"]
    return []


def _too_few(num: int, where: str) -> str:
    are = "conversation is" if num == 1 else "conversations are"
    return (
        f"Only {num} {are} {where}: 03 can't tell whether a difference between two models "
        "is chance."
    )


def _more_held_out(name: str, rows: Table, seed: int, shares: Mapping[str, float]) -> str:
    """Suggest the smallest share (in hundredths, finer for large files) that holds out enough, of
    those that the other share leaves. `name`: eval_share or test_share."""
    keys = rows.keys()
    different = len(np.unique(keys))
    side = SIDES.index(name.removesuffix("_share"))

    def held_out(share: float) -> int:
        both = {**shares, name: share}
        return int((split(keys, both["eval_share"], seed, both["test_share"]) == side).sum())

    fine = 10 ** max(2, math.ceil(math.log10(different)))
    share = math.ceil(LEAST_HELD_OUT / different * fine) / fine
    most = round(MOST_SHARE - sum(of for other, of in shares.items() if other != name), 9)
    a_file = name == "eval_share"
    if share <= most:
        said = f"{name} {share:g} holds out {held_out(share)} (of {len(keys):,})"
        return f"{said}, or give an eval_file." if a_file else f"{said}."
    said = f"Even {name} {most:g} holds out {held_out(most)} (of {len(keys):,}): give more "
    return said + ("conversations, or an eval_file." if a_file else "conversations.")


def num_duplicates(*sides: Table) -> int:
    """Count the conversations that repeat an earlier one exactly; they are kept, on its side."""
    keys = np.concatenate([side.keys() for side in sides])
    keys.sort()
    return int((keys[1:] == keys[:-1]).sum())
