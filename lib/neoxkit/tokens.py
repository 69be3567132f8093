"""Conversations to token ids and labels by character offsets; the length policy; the split."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit.conversations import lines_in_short, split
from neoxkit.errors import UserError
from neoxkit.turns import USER, Conversation, Span, render

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


NOT_TRAINED = -100  # the label that torch's cross entropy ignores
_BATCH = 1000  # conversations a tokenizer call; the tokenizer spreads them over the cores


@dataclass(frozen=True)
class Reply:
    """Token indices of one agent turn: its text is start..end, what ends it reaches to `over`."""

    start: int
    end: int
    over: int


@dataclass(frozen=True)
class Encoded:
    """One conversation in tokens.

    `ids` (int32, length n, end mark last) and `trained` (bool, length n). Token 0 is never trained:
    nothing comes before it, and in a packed row that keeps conversations apart.
    """

    ids: np.ndarray
    trained: np.ndarray
    replies: tuple[Reply, ...]
    line: int
    fault: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())

    @property
    def key(self) -> str:
        """Equal for equal ids: rows that a model can't tell apart must land on one side."""
        return hashlib.sha256(self.ids.tobytes()).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        """int32, length n: the id where it is trained on, else -100; the model shifts by one."""
        return np.where(self.trained, self.ids, NOT_TRAINED).astype(np.int32)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    agent_name: str,
    train_on: str = "agent",
) -> list[Encoded]:
    """Tokenize conversations whole; nothing is cut or left out here.

    `train_on` "agent": each agent turn and what ends it (the end mark, or the blank line and the
    next label). "all": every turn, not the preamble. Special tokens written in a text stay text.
    """
    encoded: list[Encoded] = []
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        rendered = [render(conversation, agent_name) for conversation in batch]
        tokens = tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        )
        for conversation, (text, spans), encoding in zip(
            batch, rendered, tokens.encodings, strict=True
        ):
            first = partial(_first_token, encoding, len(text))
            replies = _replies(spans, first)
            encoded.append(
                Encoded(
                    ids=np.array([*encoding.ids, tokenizer.eos_token_id], dtype=np.int32),
                    trained=_trained(spans, first, replies, agent_name, train_on),
                    replies=replies,
                    line=conversation.line,
                    fault=_fault(conversation, train_on),
                )
            )
    return encoded


def _first_token(encoding: "Encoding", num_chars: int, char: int) -> int:
    """The first token that begins at or after a character; the number of tokens if none does.

    Asking for the few characters that matter is much faster than turning all offsets into lists.
    """
    for at in range(char, num_chars):
        token = encoding.char_to_token(at)
        if token is not None:  # None: white space that some tokenizers count to no token
            break
    else:
        token = len(encoding)
    while token < len(encoding) and encoding.token_to_chars(token)[0] < char:
        token += 1
    while token > 0 and encoding.token_to_chars(token - 1)[0] >= char:
        token -= 1
    return token


def _replies(spans: Sequence[Span], first: Callable[[int], int]) -> tuple[Reply, ...]:
    """The agent turns in tokens; `first` gives the first token from a character on.

    A reply is over where the next turn's text begins, or behind the end mark.
    """
    num_tokens = first(spans[-1].end)
    begins = [*(first(span.start) for span in spans), num_tokens + 1]
    return tuple(
        Reply(begins[i], first(span.end), begins[i + 1])
        for i, span in enumerate(spans)
        if span.role == "agent"
    )


def _trained(
    spans: Sequence[Span],
    first: Callable[[int], int],
    replies: Sequence[Reply],
    agent_name: str,
    train_on: str,
) -> np.ndarray:
    """Which tokens are trained on, the end mark last: bool, shape (tokens + 1,)."""
    trained = np.zeros(first(spans[-1].end) + 1, dtype=bool)
    for reply in replies:
        trained[reply.start : reply.over] = True
    if train_on == "all":  # from the first label on
        name = USER if spans[0].role == "user" else agent_name
        trained[first(spans[0].start - len(f"{name}:")) :] = True
    trained[0] = False
    return trained


def _fault(conversation: Conversation, train_on: str) -> str:
    if any(not turn.text for turn in conversation.turns):
        return "a turn is empty"
    return "" if train_on == "all" or conversation.has_reply else "no reply"


@dataclass
class Counts:
    """What the length policy did: nothing is lost without being counted here, with line numbers."""

    read: int = 0
    kept: int = 0
    cut: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    trained_tokens_lost: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """For a table: what, and how much."""
        lost = self.trained_tokens_lost / max(self.trained_tokens + self.trained_tokens_lost, 1)
        return [
            ("conversations read", f"{self.read:,}"),
            ("kept", f"{self.kept:,}"),
            ("of them cut", f"{len(self.cut):,}" + _where(self.cut)),
            *((f"dropped: {why}", f"{len(at):,}{_where(at)}") for why, at in self.dropped.items()),
            ("tokens kept", f"{self.tokens:,}"),
            ("trained tokens kept", f"{self.trained_tokens:,}"),
            ("trained tokens lost", f"{self.trained_tokens_lost:,} ({lost:.1%})"),
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "cut_lines": self.cut,
            "dropped_lines": self.dropped,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_tokens_lost": self.trained_tokens_lost,
        }


def _where(lines: Sequence[int]) -> str:
    return f" ({lines_in_short(lines)})" if lines else ""


def fit(
    encoded: Sequence[Encoded], block_size: int, too_long: str = "drop"
) -> tuple[list[Encoded], Counts]:
    """Apply the length policy: conversations of at most `block_size` tokens are kept as they are.

    A longer one is dropped, or cut: after its last agent turn that fits, else (when not even the
    first one does) at `block_size`, always without an end mark that was not reached. What has no
    trained token left is dropped. With "error" the first too long one is refused.
    """
    counts, kept = Counts(read=len(encoded)), []
    for row in encoded:
        short = row if len(row) <= block_size else cut(row, block_size)
        if row.fault:
            counts.dropped.setdefault(row.fault, []).append(row.line)
        elif len(row) > block_size and too_long == "error":
            raise UserError(
                f"line {row.line}",
                f"a conversation of {len(row)} tokens, block_size is {block_size}",
                "raise block_size, or set too_long to drop or cut",
            )
        elif len(row) > block_size and too_long == "drop":
            counts.dropped.setdefault(f"longer than {block_size} tokens", []).append(row.line)
        elif not short.num_trained:
            counts.dropped.setdefault("no trained token within block_size", []).append(row.line)
        else:
            if short is not row:
                counts.cut.append(row.line)
            kept.append(short)
    counts.kept = len(kept)
    counts.tokens = sum(map(len, kept))
    counts.trained_tokens = sum(row.num_trained for row in kept)
    counts.trained_tokens_lost = sum(row.num_trained for row in encoded) - counts.trained_tokens
    return kept, counts


def fit_sides(
    encoded: Mapping[str, Sequence[Encoded]], block_size: int, too_long: str
) -> dict[str, tuple[list[Encoded], Counts]]:
    """`fit` for each file; refused when nothing is left to train on."""
    fitted = {side: fit(rows, block_size, too_long) for side, rows in encoded.items()}
    counts = fitted["train"][1]
    if not counts.kept:
        why = ", ".join(f"{len(at):,} {reason}" for reason, at in counts.dropped.items())
        raise UserError("block_size", f"no conversation is left ({why})", "raise it, or use cut")
    return fitted


def cut(row: Encoded, block_size: int) -> Encoded:
    """The longest part that fits and ends with a whole agent turn, if any does; else what fits."""
    ends = [reply.over for reply in row.replies if reply.over <= block_size]
    length = ends[-1] if ends else block_size
    replies = tuple(reply for reply in row.replies if reply.over <= length)
    return replace(row, ids=row.ids[:length], trained=row.trained[:length], replies=replies)


def split_rows(
    rows: Sequence[Encoded], eval_rows: Sequence[Encoded] | None, eval_share: float, seed: int
) -> tuple[list[Encoded], list[Encoded], list[str]]:
    """Train side, eval side, and what a person should know about the split.

    With `eval_rows` given (from a file of their own) no share is split off, but a conversation that
    is on both sides leaves the train side.
    """
    if eval_rows is not None:
        held_out = {row.key for row in eval_rows}
        train = [row for row in rows if row.key not in held_out]
        both = len(rows) - len(train)
        notes = (
            [f"{both} conversations stand in both files: left out of the train side"]
            if both
            else []
        )
        evaluation = list(eval_rows)
    else:
        train_at, eval_at = split([row.key for row in rows], eval_share, seed)
        train, evaluation = [rows[i] for i in train_at], [rows[i] for i in eval_at]
        notes = []
    if not train:
        raise UserError("block_size", "no conversation is left to train on", "raise it, or use cut")
    if not evaluation:
        why = "there is only one conversation to split"
        if eval_rows is not None:
            why = "no conversation of eval_file was kept"
        elif eval_share == 0:
            why = "eval_share is 0"
        notes.append(f"The eval side is empty ({why}): 02 and 03 will show no eval loss.")
    return train, evaluation, notes


def num_duplicates(rows: Sequence[Encoded]) -> int:
    """How many conversations repeat another one to the letter (they are kept, on one side)."""
    return len(rows) - len({row.key for row in rows})
