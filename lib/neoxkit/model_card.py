"""What a model folder says of itself: its card, its chat template, and how it is asked."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import models, paths
from neoxkit.data.conversation import Names
from neoxkit.runs import card as run_card
from neoxkit.settings import TINY

QUESTION = "Hello!"


def usage(model: str, names: Names) -> str:
    """A program of plain transformers, 4 and 5, that asks a model QUESTION and prints its answer.

    The end mark ends a reply by itself; where the model hands the turn back instead, with a blank
    line and the next label, a pipeline has to be told.
    """
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'ask = pipeline("text-generation", model={model!r})',
            f'chat = [{{"role": "user", "content": {json.dumps(QUESTION)}}}]',
            f"end = {json.dumps(names.stop_text)}",
            "said = ask(chat, max_new_tokens=64, stop_strings=end, tokenizer=ask.tokenizer)",
            'print(said[0]["generated_text"][-1]["content"].removesuffix(end).strip())',
        ]
    )


def chat_template(names: Names) -> str:
    """The kit's text format as a chat template, so that `apply_chat_template` gives the prompt that
    was trained: turns with a blank line between, and the agent's label without a blank after it."""
    agent, user = json.dumps(names.label("agent")), json.dumps(names.label("user"))
    return (
        "{%- for message in messages -%}"
        "{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}"
        "{%- if message['role'] == 'system' -%}{{ message['content'] | trim }}"
        "{%- elif message['role'] == 'user' -%}"
        "{{ " + user + " + ' ' + message['content'] | trim }}"
        "{%- else -%}{{ " + agent + " + ' ' + message['content'] | trim }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '\\n\\n' + " + agent + " }}"
        "{%- elif messages and messages[-1]['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    )


SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "max_grad_norm",
    "seed",
)  # fmt: skip


def card(
    facts: Mapping[str, Any], manifest: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """The model card: base, data, settings, scores (Markdown with the hub's front matter).

    Files and folders of this machine are named without the folders above them.
    """
    base, source, names = facts["base"], manifest["source"], Names.of(facts)
    library = "peft" if facts["lora_rank"] else "transformers"
    front = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [neoxkit]"]
    if base != TINY and paths.local_folder(base) is None:
        front.append(f"base_model: {models.resolve(base)}")
    else:
        base = Path(base).name
    text = Path(source["path"]).name
    made = "its shape, from random weights" if facts["from_scratch"] else ""
    made = f"LoRA adapters of rank {facts['lora_rank']}" if facts["lora_rank"] else made
    place = "what neoxkit merge writes" if facts["lora_rank"] else "this repository, or its folder"
    loss = facts["eval_loss"]
    scores = "none: the eval side was empty"
    if loss is not None:
        scores = f"loss {loss:.4f} per trained token (perplexity {math.exp(min(loss, 700)):.3f})"
    versions = ", ".join(f"{name} {of}" for name, of in run_card.versions().items())
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {base}, fine-tuned on {text}",
            "",
            f"Made with neoxkit and DeepSpeed. Base: `{base}`{f' ({made})' if made else ''}.",
            "",
            *(part for line in facts["warnings"] for part in (f"**Warning.** {line}", "")),
            f"**Data.** `{text}` (SHA-256 `{source['sha256']}`): "
            f"{manifest['sides']['train']['conversations']:,} conversations of at most "
            f"{facts['block_size']} tokens; trained on: {manifest['train_on']}.",
            "",
            f"**Prompt.** `{names.user}: ...`, a blank line, `{names.agent}:` - the chat template "
            f"writes it. A reply ends with the end mark or with a blank line and `{names.user}:`. "
            f"(PLACE: {place}.)",
            "",
            "```python",
            usage("PLACE", names),
            "```",
            "",
            f"**Scores on the eval side.** {scores}.",
            "",
            f"**Training.** {facts['step']:,} steps, {facts['trained_tokens']:,} trained tokens, "
            f"{facts['train_seconds']:,} seconds of steps, {facts['precision']}. With {versions}.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | {arguments[name]} |" for name in SETTINGS),
            "",
        ]
    )
