"""Conversations to token ids and labels by character offsets; the length policy; the dataset."""

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit import paths, runs
from neoxkit.conversations import (
    END_MARK,
    Conversation,
    ConversationFile,
    lines_in_short,
    render,
    split,
)
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
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
    key: str
    fault: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return int(self.trained.sum())

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
            return_offsets_mapping=True,
        )
        for conversation, (text, spans), ids, offsets in zip(
            batch, rendered, tokens["input_ids"], tokens["offset_mapping"], strict=True
        ):
            starts = np.fromiter((begin for begin, _ in offsets), dtype=np.int64, count=len(ids))
            token_spans = [
                (span.role, *np.searchsorted(starts, (span.start, span.end))) for span in spans
            ]
            replies, trained = _trained(token_spans, len(ids), train_on)
            if train_on == "all":  # from the first label on
                label = spans[0].start - len(
                    f"{'User' if spans[0].role == 'user' else agent_name}:"
                )
                trained[np.searchsorted(starts, label) :] = True
            trained[0] = False
            encoded.append(
                Encoded(
                    ids=np.array([*ids, tokenizer.eos_token_id], dtype=np.int32),
                    trained=trained,
                    replies=replies,
                    line=conversation.line,
                    key=hashlib.sha256(text.encode()).hexdigest(),
                    fault=_fault(conversation, train_on),
                )
            )
    return encoded


def _trained(
    spans: Sequence[tuple[str, int, int]], num_ids: int, train_on: str
) -> tuple[tuple[Reply, ...], np.ndarray]:
    """The replies and, of ids plus end mark, which tokens belong to one and to what ends it."""
    trained = np.zeros(num_ids + 1, dtype=bool)
    replies = []
    for i, (role, start, end) in enumerate(spans):
        if role != "agent":
            continue
        over = spans[i + 1][1] if i + 1 < len(spans) else num_ids + 1
        trained[start:over] = True
        replies.append(Reply(int(start), int(end), int(over)))
    return tuple(replies), trained


def _fault(conversation: Conversation, train_on: str) -> str:
    if any(not turn.text for turn in conversation.turns):
        return "a turn is empty"
    return "" if train_on == "all" or conversation.has_reply else "no reply"


# --- the length policy ---


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

    @property
    def num_dropped(self) -> int:
        return sum(map(len, self.dropped.values()))

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


def cut(row: Encoded, block_size: int) -> Encoded:
    """The longest part that fits and ends with a whole agent turn, if any does; else what fits."""
    ends = [reply.over for reply in row.replies if reply.over <= block_size]
    length = ends[-1] if ends else block_size
    replies = tuple(reply for reply in row.replies if reply.over <= length)
    return replace(row, ids=row.ids[:length], trained=row.trained[:length], replies=replies)


# --- the dataset folder ---


def to_dataset(rows: Sequence[Encoded]) -> "Dataset":
    """One row a conversation, not padded.

    Columns: input_ids, labels (int32 lists), length and trained (numbers of tokens), line (in the
    source file), reply_start and reply_end (of the last whole reply; -1 where there is none).
    """
    from datasets import Dataset, Features, Sequence, Value

    ints = Sequence(Value("int32"))
    one = Value("int32")
    features = Features(
        input_ids=ints,
        labels=ints,
        length=one,
        trained=one,
        line=one,
        reply_start=one,
        reply_end=one,
    )
    last = [row.replies[-1] if row.replies else Reply(-1, -1, -1) for row in rows]
    columns = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
        "length": [len(row) for row in rows],
        "trained": [row.num_trained for row in rows],
        "line": [row.line for row in rows],
        "reply_start": [reply.start for reply in last],
        "reply_end": [reply.end for reply in last],
    }
    return Dataset.from_dict(columns, features=features)


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
        why = "eval_share is 0" if eval_share == 0 else "there is only one conversation to split"
        notes.append(f"The eval side is empty ({why}): 02 and 03 will show no eval loss.")
    return train, evaluation, notes


def within(rows: "Dataset", block_size: int) -> "Dataset":
    """The rows of one side that are no longer than the block size."""
    return rows.select([i for i, length in enumerate(rows["length"]) if length <= block_size])


def num_duplicates(rows: Sequence[Encoded]) -> int:
    """How many conversations repeat another one to the letter (they are kept, on one side)."""
    return len(rows) - len({row.key for row in rows})


def save(
    train: Sequence[Encoded], evaluation: Sequence[Encoded], folder: Path, manifest: dict
) -> None:
    """Write the dataset and its manifest beside `folder`, then put it in place by a rename."""
    import datasets

    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    sides = {"train": to_dataset(train), "eval": to_dataset(evaluation)}
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.DatasetDict(sides).save_to_disk(part)
    finally:
        if bars:
            datasets.enable_progress_bars()
    (part / "README.md").write_text(card(manifest), encoding="utf-8")
    runs.write_json(part / runs.MANIFEST, manifest)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old)
    else:
        part.rename(folder)


def make_manifest(
    settings: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    sources: Mapping[str, ConversationFile],
    counts: Mapping[str, Counts],
    train: Sequence[Encoded],
    evaluation: Sequence[Encoded],
) -> dict[str, Any]:
    """What the later notebooks check and inherit."""
    sides = {"train": train, "eval": evaluation}
    return {
        "source": _source(sources["train"]),
        "eval_source": _source(sources["eval"]) if "eval" in sources else None,
        "agent_name": sources["train"].agent_name,
        "model_name_or_path": settings["model_name_or_path"],
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "end_mark_id": tokenizer.eos_token_id,
        "block_size": settings["block_size"],
        "train_on": settings["train_on"],
        "too_long": settings["too_long"],
        "split_seed": settings["seed"],
        "counts": {side: c.as_dict() for side, c in counts.items()},
        "duplicates": num_duplicates([*train, *evaluation]),
        "sides": {
            side: {
                "conversations": len(rows),
                "tokens": sum(map(len, rows)),
                "trained_tokens": sum(row.num_trained for row in rows),
                "longest": max(map(len, rows), default=0),
            }
            for side, rows in sides.items()
        },
        "settings": dict(settings),
        "versions": {
            p: importlib.metadata.version(p) for p in ("transformers", "tokenizers", "datasets")
        },
    }


def _source(source: ConversationFile) -> dict[str, Any]:
    return {"path": paths.short(source.path), "sha256": source.sha256, "format": source.format}


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Of the vocabulary, the merges and the rules: what decides which ids a text gets."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def card(manifest: dict[str, Any]) -> str:
    """The dataset card (Markdown) that lies in the folder as README.md."""
    source = manifest["source"]
    counts = [
        f"{name} file: read {c['read']:,}, kept {c['kept']:,}, cut {len(c['cut_lines']):,}, "
        + "dropped: "
        + ("; ".join(f"{why}: {len(at):,}" for why, at in c["dropped_lines"].items()) or "none")
        for name, c in manifest["counts"].items()
    ]
    sides = [
        f"| {side} | {n['conversations']:,} | {n['tokens']:,} | {n['trained_tokens']:,} "
        f"| {n['longest']} |"
        for side, n in manifest["sides"].items()
    ]
    return "\n".join(
        [
            "# Tokenized conversations",
            "",
            f"Made by neoxkit from `{source['path']}` (SHA-256 `{source['sha256'][:16]}...`) with "
            f"the tokenizer of `{manifest['model_name_or_path']}`. The answering side is "
            f"`{manifest['agent_name']}`; trained on: {manifest['train_on']}. Block size "
            f"{manifest['block_size']} tokens, end mark (`{END_MARK}`) included.",
            "",
            "| side | conversations | tokens | trained tokens | longest |",
            "|---|---|---|---|---|",
            *sides,
            "",
            f"{'. '.join(counts).capitalize()}. {manifest['duplicates']:,} conversations repeat "
            "another one to the letter. Rows are not padded; labels are -100 where nothing is "
            "trained. `datasets.load_from_disk` opens this folder.",
            "",
        ]
    )


def load(folder: Path) -> tuple["DatasetDict", dict[str, Any]]:
    """The dataset and its manifest, refused where the two do not belong together."""
    from datasets import load_from_disk

    manifest = load_manifest(folder)
    dataset = load_from_disk(folder)
    for side, numbers in manifest["sides"].items():
        if len(dataset[side]) != numbers["conversations"]:
            raise UserError(
                "dataset",
                f"{paths.short(folder)}/{side} has {len(dataset[side])} rows, its manifest says "
                f"{numbers['conversations']}",
                "run 01_tokenize again",
            )
    return dataset, manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a tokenized dataset; its text must not have changed since."""
    path = folder / runs.MANIFEST
    if not path.is_file():
        raise UserError(
            "dataset", f"{paths.short(folder)} is no tokenized dataset", "run 01_tokenize"
        )
    manifest = runs.read_json(path)
    for source in filter(None, (manifest["source"], manifest["eval_source"])):
        text = paths.root() / source["path"]
        if text.is_file() and hashlib.sha256(text.read_bytes()).hexdigest() != source["sha256"]:
            raise UserError(
                "dataset",
                f"{source['path']} has changed since it was tokenized",
                "run 01_tokenize again",
            )
    return manifest


def check_block_size(block_size: int, manifest: dict[str, Any]) -> int:
    """The block size to train with: 0 is the dataset's; a smaller one is fine, a larger is not."""
    largest = manifest["block_size"]
    if block_size > largest:
        raise UserError(
            "block_size",
            f"{block_size} is above the dataset's {largest}",
            f"choose at most {largest}, or run 01_tokenize with block_size {block_size}",
        )
    return block_size or largest


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", manifest: dict[str, Any]) -> None:
    """The model must use the tokenizer that the dataset was made with."""
    if tokenizer_sha256(tokenizer) != manifest["tokenizer_sha256"]:
        raise UserError(
            "model_name_or_path",
            f"another tokenizer than the dataset's ({manifest['model_name_or_path']})",
            "run 01_tokenize with this model",
        )
