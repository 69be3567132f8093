"""Encode conversations as token ids and labels, using character offsets."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from neoxkit import parallel
from neoxkit.data.chunks import Chunk
from neoxkit.data.conversation import Conversation, Names, Span, render
from neoxkit.data.fences import in_code
from neoxkit.data.reading import ConversationFile
from neoxkit.data.table import FAULTS, EncodedPart, Store, Table, key_of
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
    return _table(_counted(parallel.each(work, file.chunks), file, progress), train_on)


def _counted(
    parts: Iterable[EncodedPart], file: ConversationFile, progress: Progress
) -> Iterable[EncodedPart]:
    done = 0
    for part in parts:
        yield part
        done += len(part.length)
        progress(done, file.facts.conversations)


def _encode_chunk(
    tokenizer: "PreTrainedTokenizerBase",
    file: ConversationFile,
    names: Names,
    train_on: str,
    chunk: Chunk,
) -> EncodedPart:
    labelled = file.form.format == "text"
    return _encode(tokenizer, file.read_chunk(chunk), names, train_on, labelled)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    names: Names,
    train_on: str = "agent",
) -> Table:
    """Tokenize conversations in memory, as `encode_file` does."""
    return _table([_encode(tokenizer, conversations, names, train_on)], train_on)


def _table(parts: Iterable[EncodedPart], train_on: str) -> Table:
    store = Store(parts, train_on)
    return Table(store, np.arange(len(store.length)), store.length)


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    names: Names,
    train_on: str,
    labelled: bool = True,
) -> EncodedPart:
    """Encode a chunk; `labelled`: its turns were separated by labels in the text."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # special tokens typed in a text stay text
    ids, lengths, firsts, replies, num_replies, chars, astray = [], [], [], [], [], [], []
    asks = _asking_label(names)
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        rendered = [render(c, names) for c in batch]
        encodings = backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        end = [tokenizer.eos_token_id]
        flat = chain.from_iterable(chain(encoding.ids, end) for encoding in encodings)
        chars += [len(text) for text, _ in rendered]
        lengths += [len(encoding) + 1 for encoding in encodings]
        ids.append(np.fromiter(flat, np.int32, sum(lengths[start:])))
        for conversation, (text, spans), encoding in zip(batch, rendered, encodings, strict=True):
            token = partial(_first_token, encoding, len(text))
            learnt = [turn.role == "agent" and turn.trained for turn in conversation.turns]
            found = _replies(spans, learnt, token, len(encoding))
            looked_at = spans if labelled and train_on == "agent" else []
            astray.append(_behind_labels(text, looked_at, asks, token))
            replies += found
            num_replies.append(len(found))
            label = names.label(spans[0].role)
            firsts.append(token(spans[0].start - len(label)) if train_on == "all" else 0)
    flat_ids = np.concatenate([np.zeros(0, np.int32), *ids])
    ends = np.cumsum(lengths)
    keys = [key_of(flat_ids[end - n : end]) for end, n in zip(ends, lengths, strict=True)]
    return EncodedPart(
        ids=flat_ids,
        replies=np.array(replies, np.int32).reshape(-1, 3),
        length=np.array(lengths, np.int32),
        first=np.array(firsts, np.int32),
        num_replies=np.array(num_replies, np.int32),
        line=np.array([c.line for c in conversations], np.int32),
        fault=np.array([_fault(c, train_on) for c in conversations], np.uint8),
        key=np.array(keys, "S16"),
        chars=np.array(chars, np.int32),
        astray=np.array(astray, np.int32),
        shortest=np.array(
            [min((len(t.text) for t in c.turns), default=0) for c in conversations], np.int32
        ),
    )


def _first_token(encoding: "Encoding", num_chars: int, char: int) -> int:
    """Return the first token that begins at or after a character, or the number of tokens.

    Looking up the few characters that matter is much faster than listing all offsets.
    """
    for at in range(char, num_chars):
        token = encoding.char_to_token(at)
        if token is not None:  # None: white space that some tokenizers assign to no token
            break
    else:
        token = len(encoding)
    while token < len(encoding) and _begin(encoding, token) < char:
        token += 1
    while token > 0 and _begin(encoding, token - 1) >= char:
        token -= 1
    return token


def _begin(encoding: "Encoding", token: int) -> int:
    chars = encoding.token_to_chars(token)
    assert chars  # None only for special tokens, and none were added
    return chars[0]


def _replies(
    spans: Sequence[Span],
    learnt: Sequence[bool],
    token: Callable[[int], int],
    num_tokens: int,
) -> list[tuple[int, int, int]]:
    """Return the turns to learn in tokens: start, end, over.

    `token` gives the first token from a character on.

    A reply is over where the next turn's text begins, or after the end mark.
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
    """Return a pattern for lines that seem to begin a turn of the asking side: its name, with any
    signs, numbers or brackets around it, or a common name at the start of a paragraph; a heading
    or bold needs no colon."""
    usual = "|".join({"user", "human"} - {name.casefold() for name in names}) or "(?!)"
    user, odd = re.escape(names.user), r"(?:[^\w\n]|\d)*(?:[ap]m\W{0,3})?(?:</?\w+>)*"
    label = rf"(?:{odd}{user}|(?<=\n\n){odd}(?:{usual}))"
    bracket = r"(?: ?[(\[][^\n]{0,30}[)\]])?"
    return re.compile(
        rf"\n(?:{label}{bracket}[^\w\n]*[:：∶]|(?:#+ |[*_]+){user}[*_]*[ \t]*(?=\n|\Z))",
        re.IGNORECASE,
    )


def _behind_labels(
    text: str, spans: Sequence[Span], asks: re.Pattern[str], token: Callable[[int], int]
) -> int:
    """Count the tokens of agent turns after a label of the asking side, except in code chunks."""
    count = 0
    for span in spans:
        turn = text[span.start : span.end] if span.role == "agent" else ""
        for found in asks.finditer(turn):
            if not in_code(turn, found.start() + 1):
                count += token(span.end) - token(span.start + found.start() + 1)
                break
    return count


def _fault(conversation: Conversation, train_on: str) -> int:
    """Return 0, or 1 + an index into FAULTS."""
    if train_on == "all" and not all(turn.trained for turn in conversation.turns):
        what = f'"all" trains every turn, and line {conversation.line} marks one as untrained'
        raise UserError("train_on", what, "set it to agent")
    if any(not turn.text for turn in conversation.turns):
        return 1 + FAULTS.index("a turn is empty")
    return 0 if train_on == "all" or conversation.has_reply else 1 + FAULTS.index("no reply")
