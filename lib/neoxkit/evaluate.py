"""Loss and perplexity per trained token, and replies to questions, base beside tuned."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit import conversations, models, paths, runs
from neoxkit.batches import Collator
from neoxkit.conversations import STOP_TEXT, Conversation
from neoxkit.errors import UserError
from neoxkit.settings import EvaluateSettings

Progress = Callable[[int, int], None]  # (done, of)


def _silent(done: int, of: int) -> None:
    pass


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
    progress: Progress = _silent,
) -> Score | None:
    """Score a model on tokenized rows, weighted by token; None when there are no rows."""
    order = sorted(range(len(rows)), key=rows["length"][:].__getitem__)
    if not order:
        return None
    total, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        batch_rows = [rows[i] for i in order[start : start + batch_size]]
        batch = Collator("padded", max(r["length"] for r in batch_rows), pad_id)(batch_rows)
        batch.pop("num_tokens")
        losses = models.token_losses(
            model, model, {k: v.to(model.device) for k, v in batch.items()}
        ).double()
        total += losses.sum().item()
        count += losses.numel()
        progress(min(start + batch_size, len(order)), len(order))
    return Score(total / count, math.exp(min(total / count, 700)), count, len(order))


def load(facts: Mapping[str, Any], folder: Path, which: str) -> PreTrainedModel:
    """The base or the tuned model of a finished run, in the run's precision, on the GPU if any."""
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(facts["precision"], "float32")
    if not torch.cuda.is_available():
        dtype = "float32"
    if which == "tuned":
        return models.for_inference(str(folder / "model"), dtype=dtype)
    return models.for_inference(
        facts["base"], dtype=dtype, from_scratch=facts["from_scratch"], seed=facts["seed"]
    )


# --- questions and replies ---


@dataclass(frozen=True)
class Question:
    """A prompt that ends at the agent's label; `reference` is None where nobody wrote one."""

    prompt: str
    reference: str | None
    kind: str = ""
    set: str = ""


@dataclass(frozen=True)
class Reply:
    """What a model said, how it ended ("end mark", "next turn", "ran on"), and its length."""

    text: str
    ended: str
    num_tokens: int


def own_questions(texts: Iterable[str], agent_name: str) -> list[Question]:
    """A person's own single questions, without references."""
    return [
        Question(
            conversations.prompt(
                Conversation(0, (conversations.Turn("user", text.strip()),)), agent_name
            ),
            None,
            "my questions",
            "my questions",
        )
        for text in texts
    ]


def questions_for(
    manifest: Mapping[str, Any],
    eval_rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    file: str = "",
) -> tuple[list[Question], str]:
    """The held-out questions and where they come from.

    `file` wins; then <train_file>_questions.jsonl beside the training text; then the last reply of
    each conversation of the eval side.
    """
    train_file = paths.root() / manifest["source"]["path"]
    beside = train_file.with_name(f"{train_file.stem}_questions.jsonl")
    if file or beside.is_file():
        path = paths.find("questions_file", file) if file else beside
        return read_questions(path, manifest["agent_name"]), paths.short(path)
    found = [
        Question(
            _decode(tokenizer, row["input_ids"][: row["reply_start"]]),
            _decode(tokenizer, row["input_ids"][row["reply_start"] : row["reply_end"]]).strip(),
            "last reply",
            "eval side",
        )
        for row in eval_rows
        if row["reply_start"] >= 0
    ]
    return found, "the eval side"


def read_questions(path: Path, agent_name: str) -> list[Question]:
    """Questions in either conversation format: the last agent turn is the reference.

    JSON Lines may name a "kind" and a "set" of each question; tables go by them.
    """
    source = conversations.read(path, "" if path.suffix == ".jsonl" else agent_name)
    found = []
    for c in source.conversations:
        asked, last = c, None
        if c.turns[-1].role == "agent":
            last = c.turns[-1].text
            asked = Conversation(c.line, c.turns[:-1], c.preamble)
        if not asked.turns:
            raise UserError(f"{paths.short(path)}:{c.line}", "has no question", "add a user turn")
        found.append(
            Question(
                conversations.prompt(asked, agent_name),
                last,
                c.extra.get("kind", "all"),
                c.extra.get("set", "held out"),
            )
        )
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@torch.no_grad()
def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    do_sample: bool = False,
    temperature: float = 0.7,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = _silent,
) -> list[Reply]:
    """Answer prompts in batches of about equal length, in their own order.

    A reply ends at the end mark or where the model begins the next `User:` turn; one that reaches
    `max_new_tokens` ran on.
    """
    encoded = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    too_long = [i for i, ids in enumerate(encoded) if len(ids) + max_new_tokens > positions]
    if too_long:
        raise UserError(
            "max_new_tokens",
            f"{len(too_long)} prompts and {max_new_tokens} new tokens exceed {positions} positions",
            "lower it, or leave the longest questions out",
        )
    options: dict[str, Any] = {"do_sample": do_sample}
    if do_sample:
        options["temperature"] = temperature
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    replies: list[Reply | None] = [None] * len(encoded)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            ids, mask = _pad_left([encoded[i] for i in at], models.pad_id(tokenizer))
            new = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=models.pad_id(tokenizer),
                stop_strings=[STOP_TEXT],
                tokenizer=tokenizer,
                **options,
            )[:, ids.shape[1] :]
            for i, tokens in zip(at, new.tolist(), strict=True):
                replies[i] = _ended(tokenizer, tokens)
            progress(min(start + batch_size, len(order)), len(order))
    return replies


def _pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Reply:
    """Cut a generated row where the reply ends, and say how it ended."""
    mark = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
    text = _decode(tokenizer, ids[:mark])
    if STOP_TEXT in text:
        text, ended = text.split(STOP_TEXT)[0], "next turn"
    else:
        ended = "ran on" if mark is None else "end mark"
    num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
    return Reply(text.strip(), ended, num_tokens)


# --- the comparison ---


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
    counts = {"end mark": 0, "next turn": 0, "ran on": 0}
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
    show: Callable[[str], Progress] = lambda label: _silent,
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
    return _reply(model, tokenizer, [prompt], settings, _silent)[0]


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
