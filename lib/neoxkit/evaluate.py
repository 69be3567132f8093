"""Base beside tuned: loss and perplexity per trained token, and exact replies."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit import models, runs
from neoxkit.batches import padded
from neoxkit.losses import token_losses
from neoxkit.replies import ENDINGS, Question, Reply, own_questions, reply
from neoxkit.settings import EvaluateSettings
from neoxkit.workers import Progress, silent


@dataclass(frozen=True)
class Score:
    """Mean loss in nats per trained token, its exponential, and how many tokens it rests on."""

    loss: float
    perplexity: float
    trained_tokens: int
    conversations: int


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rows: Dataset,
    *,
    batch_size: int,
    pad_id: int,
    progress: Progress = silent,
) -> Score | None:
    """Score a model on tokenized rows, weighted by token; None when there are no rows."""
    order = sorted(range(len(rows)), key=rows["length"][:].__getitem__)
    if not order:
        return None
    total, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        batch_rows = [rows[i] for i in order[start : start + batch_size]]
        batch = padded(batch_rows, max(row["length"] for row in batch_rows), pad_id)
        losses = token_losses(
            model, model, {k: v.to(model.device) for k, v in batch.items()}
        ).double()
        total += losses.sum().item()
        count += losses.numel()
        progress(min(start + batch_size, len(order)), len(order))
    return Score(total / count, math.exp(min(total / count, 700)), count, len(order))


def load(facts: Mapping[str, Any], folder: Path, which: str) -> PreTrainedModel:
    """The base or the tuned model of a finished run, in the run's precision, on the GPU if any."""
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(facts["precision"], "float32")
    own = {"tuned": "model", "base": "base"}[which]
    name = str(folder / own) if (folder / own).is_dir() else facts["base"]
    return models.for_inference(name, dtype if torch.cuda.is_available() else "float32")


def scoreboard(
    questions: Sequence[Question], base: Sequence[Reply], tuned: Sequence[Reply]
) -> list[dict[str, Any]]:
    """Exact answers by set and kind, each set's total last; those without reference don't count."""
    keys: dict[tuple[str, str], dict[str, Any]] = {}
    for question, one, other in zip(questions, base, tuned, strict=True):
        if question.reference is None:
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


def endings(replies: Sequence[Reply]) -> dict[str, int]:
    """How many replies ended by themselves, and how many ran on."""
    counts = dict.fromkeys(ENDINGS, 0)
    for answer in replies:
        counts[answer.ended] += 1
    return counts


@dataclass(frozen=True)
class Examination:
    """One model's score on the eval side (None when that is empty) and its replies."""

    score: Score | None
    replies: list[Reply]


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    questions: Sequence[Question],
    settings: EvaluateSettings,
    show: Callable[[str], Progress] = lambda label: silent,
) -> Examination:
    """Score a model on the eval side and let it answer; `show` makes a progress line of a label."""
    scored = score(
        model,
        rows,
        batch_size=settings.batch_size,
        pad_id=models.pad_id(tokenizer),
        progress=show("conversations scored"),
    )
    prompts = [question.prompt for question in questions]
    return Examination(
        scored, _reply(model, tokenizer, prompts, settings, show("questions answered"))
    )


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    agent_name: str,
    settings: EvaluateSettings,
) -> Reply:
    """Answer one question of a person's own."""
    prompt = own_questions([question], agent_name)[0].prompt
    return _reply(model, tokenizer, [prompt], settings, silent)[0]


def _reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: EvaluateSettings,
    progress: Progress,
) -> list[Reply]:
    names = ("max_new_tokens", "do_sample", "temperature", "batch_size", "seed")
    options = {name: getattr(settings, name) for name in names}
    return reply(model, tokenizer, prompts, **options, progress=progress)


def save(
    folder: Path,
    settings: Mapping[str, Any],
    source: str,
    questions: Sequence[Question],
    base: Examination,
    tuned: Examination,
) -> dict[str, Any]:
    """Write evaluation.json and replies.jsonl into the run folder; returns the former."""
    both = {"base": base, "tuned": tuned}
    evaluation = {
        "eval_loss": {name: asdict(e.score) if e.score else None for name, e in both.items()},
        "questions": source,
        "exact": scoreboard(questions, base.replies, tuned.replies),
        "endings": {name: endings(e.replies) for name, e in both.items()},
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
    runs.write_json(folder / "evaluation.json", evaluation)
    return evaluation
