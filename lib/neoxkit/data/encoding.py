"""Encode conversations as token ids and labels, using character offsets."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from neoxkit import parallel
from neoxkit.data.chunks import Chunk
from neoxkit.data.conversation import Conversation, Names, Span, render
from neoxkit.data.examining import ConversationFile
from neoxkit.data.fences import in_code
from neoxkit.data.table import COLUMNS, FAULTS, Part, Table, from_parts, key_of
from neoxkit.errors import UserError
from neoxkit.parallel import Progress, silent

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000  # conversations per tokenizer call


def encode_file(
    tokenizer: "PreTrainedTokenizerBase",
    file: ConversationFile,
    names: Names,
    train_on: str = "agent",
    progress: Progress = silent,
) -> Table:
    """Tokenize a file's conversations on all cores; nothing is cut or left out here.

    `train_on` "agent": each agent turn and what ends it (the end mark, or the blank line and the
    next label). "all": every turn, but not the preamble. Special tokens typed in a text stay text.
    """
    work = partial(_encode_chunk, tokenizer, file, names, train_on)
    parts = _counted(parallel.each(work, file.chunks), file, progress)
    return from_parts(parts, train_on, file.places)


def _counted(parts: Iterable[Part], file: ConversationFile, progress: Progress) -> Iterable[Part]:
    """Yield the parts; after each, report how many of the file's conversations are done."""
    done = 0
    for part in parts:
        yield part
        done += len(part["length"])
        progress(done, file.facts.conversations)


def _encode_chunk(
    tokenizer: "PreTrainedTokenizerBase",
    file: ConversationFile,
    names: Names,
    train_on: str,
    chunk: Chunk,
) -> Part:
    labelled = file.form.format == "text"
    return _encode(tokenizer, file.read_chunk(chunk), names, train_on, labelled)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    names: Names,
    train_on: str = "agent",
) -> Table:
    """Tokenize conversations in memory, as `encode_file` does."""
    return from_parts([_encode(tokenizer, conversations, names, train_on)], train_on)


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    names: Names,
    train_on: str,
    labelled: bool = True,
) -> Part:
    """Encode a chunk; `labelled`: its turns were separated by labels in the text."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # special tokens typed in a text stay text
    ids, replies, asks = [np.zeros(0, np.int32)], [], _asking_label(names)
    end_mark = tokenizer.eos_token_id
    rows: list[dict[str, int | bytes]] = []
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        rendered = [render(c, names) for c in batch]
        encodings = backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        for conversation, (text, spans), encoding in zip(batch, rendered, encodings, strict=True):
            token = partial(_first_token, encoding)
            learnt = [turn.role == "agent" and turn.trained for turn in conversation.turns]
            found = _replies(spans, learnt, token, len(encoding))
            replies += found
            ids.append(np.array([*encoding.ids, end_mark], np.int32))
            looked_at = spans if labelled and train_on == "agent" else []
            label = names.label(spans[0].role)
            rows.append(
                {
                    "length": len(encoding) + 1,
                    "first": token(spans[0].start - len(label)) if train_on == "all" else 0,
                    "num_replies": len(found),
                    "line": conversation.line,
                    "fault": _fault(conversation, train_on),
                    "key": key_of(ids[-1]),
                    "chars": len(text),
                    "astray": _num_after_label(text, looked_at, asks, token),
                    "shortest": min(len(turn.text) for turn in conversation.turns),
                }
            )
    columns = {name: np.array([row[name] for row in rows], COLUMNS[name]) for name in COLUMNS}
    replies_array = np.array(replies, np.int32).reshape(-1, 3)
    return columns | {"ids": np.concatenate(ids), "replies": replies_array}


def _first_token(encoding: "Encoding", char: int) -> int:
    """Return the first token that begins at or after a character, or the number of tokens.

    A search for the few characters that matter is much faster than listing all offsets.
    """

    def begin(token: int) -> int:
        chars = encoding.token_to_chars(token)
        assert chars  # None only for special tokens, and none were added
        return chars[0]

    return bisect_left(range(len(encoding)), char, key=begin)


def _replies(
    spans: Sequence[Span],
    learnt: Sequence[bool],
    token: Callable[[int], int],
    num_tokens: int,
) -> list[tuple[int, int, int]]:
    """Return the turns to learn in tokens: start, end, over.

    `token` returns the first token at or after a character. A reply is over where the next turn's
    text begins, or after the end mark.
    """
    last = len(spans) - 1
    return [
        (
            token(span.start),
            token(span.end) if i < last else num_tokens,
            token(spans[i + 1].start) if i < last else num_tokens + 1,
        )
        for i, span in enumerate(spans)
        if learnt[i]
    ]


def _asking_label(names: Names) -> re.Pattern[str]:
    """Return a pattern for lines that seem to begin a turn of the asking side.

    They begin with its name, or at the start of a paragraph with a usual one, with any signs,
    numbers or brackets around it. A heading or a name in bold needs no colon.
    """
    usual = "|".join({"user", "human"} - {name.casefold() for name in names}) or "(?!)"
    user, odd = re.escape(names.user), r"(?:[^\w\n]|\d)*(?:[ap]m\W{0,3})?(?:</?\w+>)*"
    label = rf"(?:{odd}{user}|(?<=\n\n){odd}(?:{usual}))"
    bracket = r"(?: ?[(\[][^\n]{0,30}[)\]])?"
    return re.compile(
        rf"\n(?:{label}{bracket}[^\w\n]*[:：∶]|(?:#+ |[*_]+){user}[*_]*[ \t]*(?=\n|\Z))",
        re.IGNORECASE,
    )


def _num_after_label(
    text: str, spans: Sequence[Span], asks: re.Pattern[str], token: Callable[[int], int]
) -> int:
    """Count the tokens of agent turns after a label of the asking side; skip code blocks."""
    count = 0
    for span in spans:
        turn = text[span.start : span.end] if span.role == "agent" else ""
        for found in asks.finditer(turn):
            if not in_code(turn, found.start() + 1):
                count += token(span.end) - token(span.start + found.start() + 1)
                break
    return count


def _fault(conversation: Conversation, train_on: str) -> int:
    """Return 0 if the conversation has no fault, else 1 + an index into FAULTS."""
    if train_on == "all" and not all(turn.trained for turn in conversation.turns):
        what = f'"all" trains every turn, and line {conversation.line} marks one as untrained'
        raise UserError("train_on", what, "set it to agent")
    if any(not turn.text for turn in conversation.turns):
        return 1 + FAULTS.index("a turn is empty")
    return 0 if train_on == "all" or conversation.has_reply else 1 + FAULTS.index("no reply")
