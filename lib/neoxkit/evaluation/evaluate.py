"""Examine base and tuned model on the same questions and conversations."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit import files, paths
from neoxkit.data.conversation import Names
from neoxkit.data.questions import Question, own_questions
from neoxkit.evaluation import compare_models
from neoxkit.evaluation.scoring import Score, plain_rows, score
from neoxkit.evaluation.tasks import task_results
from neoxkit.models import loading
from neoxkit.models.generation import ENDINGS, Reply, reply
from neoxkit.parallel import Progress, silent
from neoxkit.runs import checkpoints
from neoxkit.settings import EvaluateSettings

SHORT_WORDS = 20  # a reply is compared to the letter with references up to this long


def load_side(facts: Mapping[str, Any], folder: Path, which: str) -> PreTrainedModel:
    """Load the base or the tuned model of a finished run, in its precision, on the GPU if any."""
    if which == "tuned":
        name = str(folder / "model")
    else:
        name = str(folder / "base") if facts["from_scratch"] else facts["base"]
    return loading.for_inference(name, _dtype(facts))


def _dtype(facts: Mapping[str, Any]) -> str:
    """Return the run's precision on a GPU; float32 on a CPU."""
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(facts["precision"], "float32")
    return dtype if torch.cuda.is_available() else "float32"


def scoreboard(
    questions: Sequence[Question], base: Sequence[Reply], tuned: Sequence[Reply]
) -> list[dict[str, Any]]:
    """Count exact answers by set and kind, each set's total last; only short references count."""
    keys: dict[tuple[str, str], dict[str, Any]] = {}
    for question, one, other in zip(questions, base, tuned, strict=True):
        if not has_short_reference(question):
            continue
        for kind in (question.kind, "total"):
            row = keys.setdefault(
                (question.set, kind),
                {"set": question.set, "kind": kind, "questions": 0, "base": 0, "tuned": 0},
            )
            row["questions"] += 1
            row["base"] += one.text == question.reference
            row["tuned"] += other.text == question.reference
    sets = dict.fromkeys(name for name, _ in keys)
    return [
        row
        for name in sets
        for row in sorted(
            (row for key, row in keys.items() if key[0] == name), key=lambda r: r["kind"] == "total"
        )
    ]


def has_short_reference(question: Question) -> bool:
    """Return whether a reply can be expected to equal the reference to the letter."""
    return question.reference is not None and len(question.reference.split()) <= SHORT_WORDS


def endings(replies: Sequence[Reply]) -> dict[str, int]:
    """Count how the replies ended: by themselves, or cut."""
    counts = dict.fromkeys(ENDINGS, 0)
    for answer in replies:
        counts[answer.ended] += 1
    return counts


@dataclass(frozen=True)
class Examination:
    """One model's score on the held-out set (None if that is empty), its replies, its score on the
    plain text (None if there is none), and its task results (see tasks.results)."""

    score: Score | None
    replies: list[Reply]
    plain: Score | None = None
    tasks: Sequence[Mapping[str, Any]] = field(default_factory=list)


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Names,
    rows: Dataset,
    questions: Sequence[Question],
    settings: EvaluateSettings,
    show: Callable[[str], Progress] = lambda label: silent,
    name: str = "",
    tasks: Mapping[str, Any] | None = None,
) -> Examination:
    """Score a model on the held-out set, let it answer, and run the tasks (from tasks.load_tasks).

    `show` makes a progress line for a label, which begins with the model's `name`.
    """
    options = {"batch_size": settings.batch_size, "pad_id": loading.pad_id(tokenizer)}

    def named(label: str) -> Progress:
        return show(f"{name} {label}".strip())

    def scored(what: Dataset, size: int, label: str) -> Score | None:
        found = score(model, what, **options, progress=named(label))
        return found and replace(
            found, bits_per_byte=compare_models.bits_per_byte(found.losses, size)
        )

    plain = None
    if file := settings.plain_text_file:
        text, size = plain_rows(paths.find("plain_text_file", file), model, tokenizer)
        plain = scored(text, size, "scores pieces of the plain text")
    prompts = [question.prompt for question in questions]
    return Examination(
        scored(rows, compare_models.num_bytes(rows, tokenizer), "scores conversations"),
        _reply(model, tokenizer, names, prompts, settings, named("answers questions")),
        plain,
        task_results(model, tokenizer, tasks or {}, settings, named),
    )


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    names: Names,
    settings: EvaluateSettings,
) -> Reply:
    """Answer one question that the user wrote."""
    prompt = own_questions([question], names)[0].prompt
    return _reply(model, tokenizer, names, [prompt], settings, silent)[0]


def _reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Names,
    prompts: Sequence[str],
    settings: EvaluateSettings,
    progress: Progress,
) -> list[Reply]:
    given = ("max_new_tokens", "do_sample", "temperature", "batch_size", "seed")
    options = {name: getattr(settings, name) for name in given}
    return reply(model, tokenizer, prompts, names, **options, progress=progress)


def losses_by_step(
    facts: Mapping[str, Any],
    folder: Path,
    rows: Dataset,
    base: Examination,
    tuned: Examination,
    settings: EvaluateSettings,
    tokenizer: PreTrainedTokenizerBase,
    show: Callable[[str], Progress] = lambda label: silent,
) -> dict[int, float]:
    """Return the held-out loss at step 0 (the base), at every kept checkpoint, and at the end."""
    if not base.score or not tuned.score:
        return {}
    losses = {0: base.score.loss}
    options = {"batch_size": settings.batch_size, "pad_id": loading.pad_id(tokenizer)}
    for checkpoint in checkpoints.whole(folder) if settings.score_checkpoints else ():
        if (step := checkpoints.step_of(checkpoint)) < facts["step"]:
            model = loading.for_inference(str(checkpoint), _dtype(facts))
            progress = show(f"{checkpoint.name} scores conversations")
            found = score(model, rows, **options, progress=progress)
            assert found  # the base has a score, so there are rows
            losses[step] = found.loss
    return losses | {facts["step"]: tuned.score.loss}


def look(rows: Dataset, base: Examination, tuned: Examination) -> compare_models.Depth | None:
    """Compare both models on the held-out set; None if it is empty."""
    if not base.score or not tuned.score:
        return None
    one, other = base.score.losses, tuned.score.losses
    plain = None
    if base.plain and tuned.plain:
        plain = compare_models.difference(base.plain.losses, tuned.plain.losses)
    return compare_models.Depth(
        one,
        other,
        compare_models.difference(one, other),
        compare_models.worst(one, other),
        compare_models.by_turn(rows, one, other),
        compare_models.by_length(rows, one, other),
        plain,
    )


def save(
    folder: Path,
    settings: Mapping[str, Any],
    source: str,
    questions: Sequence[Question],
    base: Examination,
    tuned: Examination,
    deep: compare_models.Depth | None = None,
    by_step: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Write evaluation.json and replies.jsonl into the run folder; return the former."""
    both = {"base": base, "tuned": tuned}
    evaluation = {
        "eval_loss": {name: e.score.facts() if e.score else None for name, e in both.items()},
        "plain_text": {name: e.plain.facts() if e.plain else None for name, e in both.items()},
        "depth": deep and deep.facts(),
        "losses_by_step": {str(step): loss for step, loss in (by_step or {}).items()},
        "questions": source,
        "exact": scoreboard(questions, base.replies, tuned.replies),
        "endings": {name: endings(e.replies) for name, e in both.items()},
        "tasks": {name: e.tasks for name, e in both.items()},
        "settings": dict(settings),
    }
    lines = [
        {**asdict(question), "base": asdict(one), "tuned": asdict(other)}
        for question, one, other in zip(questions, base.replies, tuned.replies, strict=True)
    ]
    part = folder / ".replies.jsonl.part"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    part.write_text(text, encoding="utf-8")
    part.replace(folder / "replies.jsonl")
    files.write_json(folder / "evaluation.json", evaluation)
    return evaluation
