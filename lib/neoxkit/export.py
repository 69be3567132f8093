"""The model folder a run leaves: weights, tokenizer, chat template, card; then FINISHED.json."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from neoxkit import models, paths, run_card, runs
from neoxkit.arguments import KitArguments
from neoxkit.tiny import TINY


def chat_template(agent_name: str) -> str:
    """The kit's text format as a chat template, so that `apply_chat_template` gives the prompt that
    was trained: turns with a blank line between, and the agent's label without a blank after it."""
    agent = json.dumps(f"{agent_name}:")
    return (
        "{%- for message in messages -%}"
        "{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}"
        "{%- if message['role'] == 'system' -%}{{ message['content'] | trim }}"
        "{%- elif message['role'] == 'user' -%}{{ 'User: ' + message['content'] | trim }}"
        "{%- else -%}{{ " + agent + " + ' ' + message['content'] | trim }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '\\n\\n' + " + agent + " }}"
        "{%- elif messages and messages[-1]['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    )


def card(
    facts: Mapping[str, Any], manifest: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """The model card: base, data, settings, scores (Markdown with the hub's front matter)."""
    base = facts["base"]
    library = "peft" if facts["lora_rank"] else "transformers"
    front = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [neoxkit]"]
    if base != TINY and paths.local_folder(base) is None:
        front.append(f"base_model: {models.resolve(base)}")
    names = [
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
    ]
    settings = "\n".join(f"| {name} | {arguments[name]} |" for name in names)
    rows = manifest["sides"]["train"]
    eval_loss = facts["eval_loss"]
    scores = "none: the eval side was empty"
    if eval_loss is not None:
        scores = f"loss {eval_loss:.4f} per trained token (perplexity {math.exp(eval_loss):.3f})"
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {base}, fine-tuned on {Path(manifest['source']['path']).name}",
            "",
            f"Made with neoxkit and DeepSpeed. Base: `{base}`"
            + (" (its shape, from random weights)." if facts["from_scratch"] else ".")
            + (f" LoRA adapters of rank {facts['lora_rank']}." if facts["lora_rank"] else ""),
            "",
            f"**Data.** `{manifest['source']['path']}` (SHA-256 `{manifest['source']['sha256']}`): "
            f"{rows['conversations']:,} conversations of at most {facts['block_size']} tokens; "
            f"trained on: {manifest['train_on']}.",
            "",
            f"**Prompt.** `User: ...`, a blank line, `{facts['agent_name']}:` - the chat template "
            "writes it. A reply ends with the end mark or with a blank line and `User:`.",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'chat = [{"role": "user", "content": "Hello!"}]',
            'ask = pipeline("text-generation", model="PLACE")  # this repository, or its folder',
            'print(ask(chat)[0]["generated_text"][-1]["content"])',
            "```",
            "",
            f"**Scores on the eval side.** {scores}.",
            "",
            f"**Training.** {facts['step']:,} steps, {facts['trained_tokens']:,} trained tokens, "
            f"{facts['train_seconds']:,} seconds, {facts['precision']}.",
            "",
            "| setting | value |",
            "|---|---|",
            settings,
            "",
        ]
    )


def for_older_readers(folder: Path) -> None:
    """Add to a saved model the names that transformers 4 and llama.cpp's converter look for.

    Version 5 has the rotary settings of GPT-NeoX elsewhere, and a class of its own for tokenizers
    that are described by their files alone; it reads the older names as well.
    """
    place = folder / "config.json"
    if place.is_file():  # adapters have none
        config = runs.read_json(place)
        rope = config.get("rope_parameters", {})
        if "partial_rotary_factor" in rope:
            config["rotary_pct"] = rope["partial_rotary_factor"]
            config["rotary_emb_base"] = rope["rope_theta"]
            runs.write_json(place, config)
    place = folder / "tokenizer_config.json"
    config = runs.read_json(place)
    if config.get("tokenizer_class") == "TokenizersBackend":
        runs.write_json(place, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def finish(
    trainer: Trainer,
    tokenizer: Any,
    kit: KitArguments,
    manifest: dict[str, Any],
    folder: Path,
) -> None:
    """Write model/ (then FINISHED.json, then the done event); every rank takes part in the save.

    A trial leaves no model.
    """
    state = trainer.state
    part = folder / ".model.part"
    if not kit.trial:
        trainer.model.config.use_cache = True
        trainer.save_model(str(part))
    if not state.is_world_process_zero:
        return
    weights = {file.name: runs.sha256(file) for file in sorted(part.glob("*.safetensors"))}
    facts = {
        "step": state.global_step,
        "planned_steps": state.max_steps,
        "base": kit.model_name_or_path,
        "from_scratch": kit.from_scratch,
        "lora_rank": kit.lora_rank,
        "seed": trainer.args.seed,
        "dataset": kit.dataset,
        "dataset_sha256": kit.dataset_sha256,
        "agent_name": manifest["agent_name"],
        "block_size": kit.block_size,
        "precision": kit.precision,
        **runs.totals(runs.history(runs.read_events(folder))),
        "model_sha256": weights,
    }
    if not kit.trial:
        assert weights, "the weights were not gathered"
        tokenizer.chat_template = chat_template(manifest["agent_name"])
        tokenizer.model_max_length = trainer.model.config.max_position_embeddings
        tokenizer.save_pretrained(part)
        for_older_readers(part)
        # A pickle: nobody needs it to use the model.
        (part / "training_args.bin").unlink(missing_ok=True)
        (part / "README.md").write_text(card(facts, manifest, trainer.args.to_dict()), "utf-8")
        runs.flush_all(part)
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    run_card.finish(folder, facts)
    runs.write_json(folder / runs.FINISHED, facts)
    runs.append_event(folder, "done", **facts)
