"""Compare two models' losses: how sure the difference is, and where it lies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit.data.selection import LEAST_HELD_OUT
from neoxkit.data.table import NOT_TRAINED
from neoxkit.models import power
from neoxkit.models.power import CONFIDENCE, POWER, ROUNDING, detectable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESAMPLES = 2000  # bootstrap resamples

Row = Mapping[str, Any]
Losses = Sequence[np.ndarray]  # per conversation: the loss of each trained token, in nats


@dataclass(frozen=True)
class Difference:
    """Tuned minus base in nats per trained token, with its 95 % interval.

    With fewer than LEAST_HELD_OUT conversations the bounds and `detectable` are None. `better`:
    conversations whose loss fell. `detectable`: see models/power.py.
    """

    mean: float
    low: float | None
    high: float | None
    conversations: int
    better: int
    detectable: float | None

    @property
    def needed(self) -> int | None:
        """Return with how many conversations the difference that was seen would be sure, if it is
        the true one; None where it is sure already, and where no number would do."""
        if self.low is None or self.high is None or not self.low <= 0 <= self.high:
            return None
        return power.needed(self.mean, self.detectable or 0.0, self.conversations) or None

    def text(self, noun: str = "conversations") -> str:
        """Return it in one sentence; `noun`: what was resampled."""
        said = f"tuned minus base: {self.mean:+.4f} nats per trained token"
        if self.low is None or self.high is None:
            return (
                f"{said}; it may be chance: an interval from fewer than {LEAST_HELD_OUT} {noun} "
                f"(here {self.conversations}) is too narrow to trust"
            )
        sign = "" if self.low * self.high > 0 else "; the interval includes zero"
        seen = ""
        if self.detectable:
            seen = (
                f"; these {self.conversations:,} {noun} would show a difference of "
                f"{self.detectable:.2g} nats ({POWER:.0%} power)"
            )
        if self.needed:
            seen += f"; {power.about(self.needed)} {noun} like these would show the one seen"
        return (
            f"{said}, between {self.low:+.4f} and {self.high:+.4f} (95 % bootstrap interval over "
            f"{self.conversations:,} {noun}){sign}; {self.better:,} of them got better{seen}"
        )


def difference(base: Losses, tuned: Losses, seed: int = 0) -> Difference:
    """Return the paired difference of two models on the same conversations.

    Conversations are resampled, not tokens, because tokens of one conversation are correlated.
    """
    pairs = [(a, b) for a, b in zip(base, tuned, strict=True) if len(a)]  # others have no loss
    tokens = np.array([len(a) for a, _ in pairs], dtype=float)
    gained = np.array([b.sum() - a.sum() for a, b in pairs])
    mean = gained.sum() / tokens.sum()
    low = high = seen = None
    if len(tokens) >= LEAST_HELD_OUT and np.ptp(gained / tokens) > ROUNDING:
        low, high = _interval(gained, tokens, seed)
        seen = detectable(gained, tokens)
    elif len(tokens) >= LEAST_HELD_OUT:  # the same in every conversation
        low, high, seen = float(mean), float(mean), 0.0
    return Difference(float(mean), low, high, len(tokens), int((gained < 0).sum()), seen)


def _interval(gained: np.ndarray, tokens: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of a ratio of sums (BCa; Efron,
    "Better Bootstrap Confidence Intervals", JASA 82, 1987).

    scipy's own BCa leaves out each conversation and adds up the others, which takes the square of
    their number; of a ratio of sums all these values follow at once. 50,000 conversations take
    2 to 4 s on two CPU cores.
    """
    from scipy import stats

    if not np.isfinite(gained).all():  # a logit that overflowed
        return math.nan, math.nan
    n = len(tokens)
    made = stats.bootstrap(
        (gained, tokens),
        lambda g, t, axis: g.sum(axis) / t.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=min(200, 2_000_000 // n + 1),  # resamples in memory at once
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    mean = gained.sum() / tokens.sum()
    bias = stats.norm.ppf(((made < mean).mean() + (made <= mean).mean()) / 2)
    without = (gained.sum() - gained) / (tokens.sum() - tokens)
    influence = without.mean() - without
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(made, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def worst(base: Losses, tuned: Losses, most: int = 10) -> list[int]:
    """Return the conversations whose loss per trained token rose most, worst first.

    None whose loss fell is among them.
    """
    pairs = enumerate(zip(base, tuned, strict=True))
    rose = {i: change for i, (a, b) in pairs if len(a) and (change := b.mean() - a.mean()) > 0}
    return sorted(rose, key=lambda i: -rose[i])[:most]


def turns(labels: Sequence[int]) -> np.ndarray:
    """Return the number of the agent's turn (from 1) that each trained token belongs to.

    Consecutive trained tokens are one turn. The first token of a conversation is never predicted,
    so it doesn't count.

    >>> turns([-100, -100, 5, 6, -100, -100, 7])
    array([1, 1, 2])
    """
    trained = np.asarray(labels)[1:] != NOT_TRAINED
    begins = trained & ~np.concatenate([[False], trained[:-1]])
    return np.cumsum(begins)[trained]


def sentences(facts: Mapping[str, Any] | None, name: str = "held-out set") -> list[str]:
    """Return the differences of `Evaluation.compare` in words; `name`: what was scored."""
    if not facts:
        return []
    said = [f"{name}, {Difference(**facts['difference']).text()}"]
    for part in facts.get("parts", ()):
        said.append(f"{part['name']}, {Difference(**part['difference']).text()}")
    if facts["plain"]:
        said.append(f"plain text, {Difference(**facts['plain']).text('pieces')}")
    return said


@dataclass(frozen=True)
class Slice:
    """A share of the trained tokens: its name, its size, and both models' mean loss on it."""

    name: str
    tokens: int
    base: float
    tuned: float


def by_turn(rows: Sequence[Row], base: Losses, tuned: Losses, most: int = 8) -> list[Slice]:
    """Return the losses by the number of the agent's turn; turns from `most` on share a slice."""
    numbers = np.concatenate([np.zeros(0, int), *(turns(row["labels"]) for row in rows)])
    shared = np.minimum(numbers, most)
    names = {n: f"{n}" if n < most or numbers.max() == most else f"{n} and later"
             for n in np.unique(shared)}  # fmt: skip
    return _slices(shared, names, base, tuned)


def by_length(rows: Sequence[Row], base: Losses, tuned: Losses) -> list[Slice]:
    """Return the losses by conversation length (tokens), in up to five slices of about equally many
    conversations."""
    lengths = np.array([row["length"] for row in rows])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6), method="lower"))[1:]
    of_row = np.searchsorted(edges, lengths)
    of_token = np.repeat(of_row, [len(losses) for losses in base])
    names = {n: f"{lengths[of_row == n].min()}-{lengths[of_row == n].max()}" for n in set(of_row)}
    return _slices(of_token, names, base, tuned)


def _slices(
    of_token: np.ndarray, names: Mapping[int, str], base: Losses, tuned: Losses
) -> list[Slice]:
    one, other = np.concatenate(base), np.concatenate(tuned)
    return [
        Slice(
            names[n],
            int((of_token == n).sum()),
            float(one[of_token == n].mean()),
            float(other[of_token == n].mean()),
        )
        for n in sorted(names)
        if (of_token == n).any()
    ]


def num_bytes(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the UTF-8 size of the text that is trained on, without special tokens."""
    trained = [[label for label in row["labels"][1:] if label != NOT_TRAINED] for row in rows]
    texts = tokenizer.batch_decode(trained, skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)


def bits_per_byte(losses: Losses, size: int) -> float | None:
    """Return the loss of all trained tokens in bits, divided by the bytes of their text.

    It does not depend on how the tokenizer splits the text. The end mark's loss counts, its letters
    don't.
    """
    total = sum(float(one.sum(dtype=np.float64)) for one in losses)
    return total / math.log(2) / size if size else None
