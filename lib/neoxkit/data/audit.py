"""Find suspicious tokenized conversations, and audit the labels before they are saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neoxkit.data.conversation import Names
from neoxkit.data.examining import ConversationFile
from neoxkit.data.selection import Counts
from neoxkit.data.table import Table
from neoxkit.data.text_format import NO_MARK
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_EXTREME = 10  # conversations listed as the longest, or as those with most tokens per character
SHORT_TURN = 2  # a turn of fewer characters is nearly empty
SMALL_SHARE = 0.1  # trained share of a conversation's tokens: below it, little is learnt
LEAST_TRAINED = 0.01  # trained share of all tokens: below it, a dataset teaches almost nothing

Sides = Mapping[str, Table]


@dataclass(frozen=True)
class Finding:
    """A kind of conversation worth a look: what it is, and the rows on each side."""

    what: str
    rows: Sides


def findings(sides: Sides) -> list[Finding]:
    """List what to look at before training, each with the conversations concerned."""
    asked = {side: first_questions(rows) for side, rows in sides.items()}
    other = "the other side" if len(sides) < 3 else "another side"
    rules = {
        "repeats another one exactly": lambda side, rows: repeats(rows),
        f"asks what {other} asks first": lambda side, rows: np.isin(
            asked[side], _of_others(asked, side)
        ),
        f"a turn of fewer than {SHORT_TURN} characters": lambda side, rows: (
            rows.column("shortest") < SHORT_TURN
        ),
        f"less than {SMALL_SHARE:.0%} of it trained": lambda side, rows: (
            rows.trained < SMALL_SHARE * rows.length
        ),
        f"the {NUM_EXTREME} longest": lambda side, rows: largest(rows.length),
        f"the {NUM_EXTREME} with most tokens per character": lambda side, rows: largest(
            rows.column("length") / np.maximum(rows.column("chars"), 1)
        ),
    }
    return [
        Finding(what, {side: rows.select(rule(side, rows)) for side, rows in sides.items()})
        for what, rule in rules.items()
    ]


def _of_others(asked: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    """Return what all other sides ask."""
    others = (of for name, of in asked.items() if name != side)
    return np.concatenate([np.zeros(0, np.uint64), *others])


def repeats(rows: Table) -> np.ndarray:
    """Mark the rows whose ids equal those of an earlier row: bool."""
    keys = rows.keys()
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def largest(values: np.ndarray) -> np.ndarray:
    """Return the indices of the largest values, largest first."""
    return np.argsort(-values, kind="stable")[:NUM_EXTREME]


def first_questions(rows: Table) -> np.ndarray:
    """Hash the tokens before each row's first reply: uint64, equal for equal ids.

    The hash is a sum of ids times fixed random numbers, one per place (multilinear hashing).
    """
    of, replies = rows.replies()
    asked = rows.length.copy()
    first = np.unique(of, return_index=True)
    asked[first[0]] = replies[first[1], 0]
    places = np.random.default_rng(0).integers(
        1, 2**63, int(asked.max(initial=0)) + 1, dtype=np.uint64
    )
    hashes = [np.zeros(0, np.uint64)]
    for part in rows.cut(asked).chunks():
        lengths = part.length.astype(np.int64)
        begins = np.cumsum(lengths) - lengths
        place = np.arange(lengths.sum()) - np.repeat(begins, lengths)
        products = (part.ids().astype(np.uint64) + np.uint64(1)) * places[place]
        sums = np.add.reduceat(np.append(products, np.uint64(0)), begins)
        hashes.append(np.where(lengths > 0, sums, np.uint64(0)))
    return np.concatenate(hashes)


def turn_lengths(rows: Table) -> dict[str, np.ndarray]:
    """Return the number of tokens of each turn, by role.

    A reply includes what ends it; a user turn is everything between two replies.
    """
    of, replies = rows.replies()
    before = np.zeros(len(replies), np.int64)
    same = of[1:] == of[:-1]
    before[1:][same] = replies[:-1, 2][same]
    asked = replies[:, 0] - before
    return {"user": asked[asked > 0], "agent": replies[:, 2] - replies[:, 0]}


@dataclass(frozen=True)
class Check:
    """A line of the audit: what was checked and found, and what to change if it failed."""

    what: str
    found: str
    passed: bool
    parameter: str = ""
    remedy: str = ""


def audit(
    sides: Sides,
    counts: Mapping[str, Counts],
    tokenizer: "PreTrainedTokenizerBase",
    sources: Mapping[str, ConversationFile],
    near_dropped: int = 0,
) -> list[Check]:
    """Check on the rows that will be saved that their labels teach the right tokens.

    `near_dropped`: the train rows that were left out as near-duplicates.
    """
    names = sources["train"].names
    return [
        _some_is_trained(sides),
        _no_question_is_trained(sides, names),
        _every_end_is_trained(sides, tokenizer, names),
        _every_conversation_ends(sources),
        _nothing_is_lost_unseen(sides, counts, near_dropped),
    ]


def require(checks: list[Check]) -> None:
    """Raise UserError if a check failed, naming the parameter to change."""
    for check in checks:
        if not check.passed:
            raise UserError(check.parameter, f"{check.what}: {check.found}", check.remedy)


def _some_is_trained(sides: Sides) -> Check:
    trained = sum(int(rows.trained.sum()) for rows in sides.values())
    tokens = sum(int(rows.length.sum()) for rows in sides.values())
    share = trained / max(tokens, 1)
    return Check(
        "trained tokens",
        f"{trained:,} of {tokens:,} ({share:.1%})",
        share >= LEAST_TRAINED,
        "agent_name",
        "name the side that answers, or set train_on to all",
    )


def _no_question_is_trained(sides: Sides, names: Names) -> Check:
    """Check that no agent turn contains what looks like a turn of the asking side."""
    trained = sum(int(rows.trained.sum()) for rows in sides.values())
    astray = {side: np.minimum(rows.column("astray"), rows.trained) for side, rows in sides.items()}
    count = sum(int(tokens.sum()) for tokens in astray.values())
    lines = {side: sides[side].column("line")[tokens > 0] for side, tokens in astray.items()}
    listed = [sides[side].places.listed(at.tolist()) for side, at in lines.items() if len(at)]
    where = f" ({'; '.join(listed)})" if listed else ""
    return Check(
        "trained tokens after a label of the asking side",
        f"{count:,} of {trained:,}{where}",
        count == 0,
        "train_file",
        f"write that label as {names.user}:, or put it into a code block",
    )


def _every_conversation_ends(sources: Mapping[str, ConversationFile]) -> Check:
    """Check that each conversation of a file ends with a mark; the last one may lack it."""
    files = [s for s in sources.values() if s.form.format != "rows"]
    marked = [s for s in files if s.form.end_mark != NO_MARK]
    conversations = sum(s.facts.conversations for s in sources.values())
    questions = sum(s.facts.questions for s in sources.values())
    each = f"{conversations:,}, with {questions / max(conversations, 1):.1f} questions on average"
    if sources["train"].form.holds_documents:
        each = f"{conversations:,} documents"
    if marked:
        each += f"; {sum(s.facts.marks for s in marked):,} end with a mark"
    return Check(
        "conversations",
        each,
        all(s.facts.conversations <= s.facts.marks + 1 for s in marked),
        "end_mark",
        "name what ends a conversation in the file",
    )


def _every_end_is_trained(
    sides: Sides, tokenizer: "PreTrainedTokenizerBase", names: Names
) -> Check:
    """Check that each agent turn's end is trained: the end mark, or the end of the next label."""
    next_label = tokenizer(names.stop_text, add_special_tokens=False)["input_ids"]
    marks = [tokenizer.eos_token_id, next_label[-1]]
    ends, untrained = 0, 0
    for rows in sides.values():
        for part in rows.chunks():
            ids = part.ids()
            trained = part.labels(ids) == ids
            of, replies = part.replies()
            begins = np.cumsum(part.length, dtype=np.int64) - part.length
            last = begins[of] + replies[:, 2] - 1
            good = trained[last] & np.isin(ids[last], marks)
            ends += len(good)
            untrained += int((~good).sum())
    return Check(
        "agent turns whose end is trained",
        f"{ends - untrained:,} of {ends:,}",
        untrained == 0,
        "train_on",
        "set it to agent or all",
    )


def _nothing_is_lost_unseen(sides: Sides, counts: Mapping[str, Counts], near: int) -> Check:
    """Check that every conversation is counted, including those that eval_file repeats, and the
    near-duplicates that were left out."""
    read = sum(c.read for c in counts.values())
    named = sum(len(lines) for c in counts.values() for lines in c.dropped.values())
    kept = sum(map(len, sides.values()))
    of_train_file = len(sides["train"]) + len(sides.get("test", ())) + near
    on_both = counts["train"].kept - of_train_file if "eval" in counts else 0
    cut = sum(len(c.cut) for c in counts.values())
    more_parts = sum(c.more_parts for c in counts.values())
    shortened = sum(
        int(((r.length < r.column("length")) & ~r.is_part).sum()) for r in sides.values()
    )
    both = f" + {on_both:,} on both sides" if on_both else ""
    both += f" + {near:,} near-duplicates" if near else ""
    both += f" - {more_parts:,} more parts" if more_parts else ""
    return Check(
        "conversations read = kept + dropped by name",
        f"{read:,} = {kept:,} + {named:,}{both}; cut: {shortened:,}",
        read == kept + named + on_both + near - more_parts
        and cut - on_both - near <= shortened <= cut,
        "too_long",
        "set it to drop",
    )
