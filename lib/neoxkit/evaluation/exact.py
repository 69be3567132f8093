"""Which replies are exactly the reference, and how replies ended."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neoxkit.data.questions import Question, normal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neoxkit.models.generation import Reply

SHORT_WORDS = 20  # replies are checked for an exact match with references up to this long


def scoreboard(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    base: Sequence["Reply"],
    tuned: Sequence["Reply"],
) -> list[dict[str, Any]]:
    """Count exact answers by set and kind, each set's total last; only short references count.

    `gained`: questions that the tuned model alone answers exactly; `lost`: those that the base
    alone does.
    """
    sets: dict[str, dict[str, dict[str, Any]]] = {}
    for question, one, other in zip(questions, base, tuned, strict=True):
        before, after = (is_exact(tokenizer, question, reply) for reply in (one, other))
        if before is None or after is None:
            continue
        for kind in (question.kind, "total"):
            empty = dict.fromkeys(("questions", "base", "tuned", "gained", "lost"), 0)
            row = sets.setdefault(question.set, {}).setdefault(
                kind, {"set": question.set, "kind": kind, **empty}
            )
            row["questions"] += 1
            row["base"] += before
            row["tuned"] += after
            row["gained"] += after and not before
            row["lost"] += before and not after
    return [
        row
        for kinds in sets.values()
        for row in sorted(kinds.values(), key=lambda row: row["kind"] == "total")
    ]


def is_exact(
    tokenizer: "PreTrainedTokenizerBase", question: Question, reply: "Reply"
) -> bool | None:
    """Return whether a reply equals its reference; None unless there is one that is short.

    Both are compared as the tokenizer normalises them: no reply could be equal otherwise.
    """
    reference = question.reference
    if reference is None or len(reference.split()) > SHORT_WORDS:
        return None
    return normal(tokenizer, reply.text) == normal(tokenizer, reference)


def endings(replies: Sequence["Reply"]) -> dict[str, int]:
    """Count how the replies ended: by themselves, or cut."""
    from neoxkit.models.generation import ENDINGS

    return {ending: sum(one.ended == ending for one in replies) for ending in ENDINGS}
