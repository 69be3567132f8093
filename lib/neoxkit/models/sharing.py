"""Sharing a finished model: proof that it answers on its own, and the push to the hub."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit import files, hub_faults, machine, paths
from neoxkit.data.conversation import Names
from neoxkit.errors import UserError, shorten
from neoxkit.models import configs, loading, lora, model_names
from neoxkit.models.rope import older_rope
from neoxkit.runs import card as run_card
from neoxkit.runs.folder import early, exported_step, finished_facts
from neoxkit.settings import TINY, TrainSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "Hello!"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def whole_model(folder: Path) -> Path:
    """Return the folder of a run's whole model, which is merged/ after training with LoRA."""
    if not lora.base_of(folder / "model"):
        return folder / "model"
    if (folder / "merged").is_dir():
        return folder / "merged"
    raise UserError("model", "holds only adapters", f"neoxkit merge {folder.name}")


def answer(model: Path, names: Names) -> str:
    """Ask a model folder QUESTION as its card says, and return the answer; refuse one that fails.

    transformers' pipeline asks, in a fresh process without the kit and without a network.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", usage(str(model), names)],
        capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE},
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        what = f"does not answer through a plain pipeline ({shorten(why)})"
        raise UserError(paths.short(model), what, "train it again, or report this")
    return done.stdout.strip()


def share(run: str, hub_model_id: str = "") -> list[str]:
    """Show that a run's model answers on its own; push it to the hub if a repository is named.

    Nothing leaves this machine without that name. A missing repository is created, private until
    its owner opens it.
    """
    folder = paths.run(run)
    names = Names.of(finished_facts(folder))
    if not hub_model_id and lora.base_of(folder / "model"):
        said = f"only adapters: neoxkit merge {run} makes a model that answers on its own"
        return [said]
    model = whole_model(folder)
    asked = f"asked {QUESTION!r} by a plain pipeline"
    lines = [f"{asked}, {paths.short(model)} says: {answer(model, names)!r}"]
    lines.append(
        f"pushed to {push(model, hub_model_id)}"
        if hub_model_id
        else "not pushed anywhere: hub_model_id is empty"
    )
    return lines


def push(model: Path, hub_model_id: str) -> str:
    """Upload a model folder to a private repository on the hub; return its address."""
    from huggingface_hub import HfApi

    hub_faults.free_client()
    hub = HfApi()
    try:
        hub.create_repo(hub_model_id, private=True, exist_ok=True)
        hub.upload_folder(folder_path=model, repo_id=hub_model_id)
    except Exception as fault:  # the client's network library, and with it its errors, has changed
        what = f"{hub_model_id} can't be pushed to ({shorten(str(fault), 70)})"
        raise UserError("hub_model_id", what, "hf auth login, and check the name") from fault
    return f"{hub.endpoint}/{hub_model_id}"


def merge(run: str) -> Path:
    """Write runs/RUN/merged, which plain from_pretrained opens; return its path.

    It is computed in float32 and saved in the run's precision, as model/ is without LoRA.
    """
    import torch

    folder = paths.run(run)
    facts = finished_facts(folder)
    if not machine.num_gpus():  # otherwise DeepSpeed reports that it looked for one
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    adapters = folder / "model"
    if not lora.base_of(adapters):
        raise UserError(
            "RUN", f"{run} was not trained with lora_rank", "its model/ is already whole"
        )
    adapted: Any = loading.load_model(str(adapters))  # peft's, with its methods
    model = adapted.merge_and_unload().to(getattr(torch, loading.dtype_of(facts["precision"])))
    tokenizer = loading.load_tokenizer(str(adapters))
    make_own(model, tokenizer)
    card = (adapters / "README.md").read_text("utf-8")
    with files.whole_folder(folder / "merged") as part:
        model.save_pretrained(part)
        write_tokenizer(tokenizer, model.config, part)
        for_older_readers(part)
        (part / "README.md").write_text(card.replace("name: peft", "name: transformers"), "utf-8")
    return folder / "merged"


def usage(model: str, names: Names) -> str:
    """Return a program in plain transformers, 4 or 5, that asks a model QUESTION and prints the
    answer.

    A pipeline stops at the end mark; it must be told to stop at a blank line and the next label,
    with which the model may hand over the turn instead.
    """
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'ask = pipeline("text-generation", model={model!r})',
            f'chat = [{{"role": "user", "content": {json.dumps(QUESTION)}}}]',
            f"end = {_quoted(names.stop_text)}",
            'how = {"max_new_tokens": 64, "do_sample": False, "stop_strings": end}',
            "said = ask(chat, tokenizer=ask.tokenizer, **how)",
            'print(said[0]["generated_text"][-1]["content"].removesuffix(end).strip())',
        ]
    )


def chat_template(names: Names) -> str:
    """Return the kit's text format as a chat template, so that `apply_chat_template` gives the
    trained prompt: blank lines between turns, and the agent's label without a space after it."""
    agent, user = _quoted(names.label("agent")), _quoted(names.label("user"))
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


def _quoted(text: str) -> str:
    """Return a text as a literal for Python and Jinja, which know no surrogate pairs of JSON."""
    return json.dumps(text, ensure_ascii=False)


def card(
    facts: Mapping[str, Any], manifest: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """Return the model card: base, data, settings, scores (Markdown with the hub's front matter).

    Files and folders of this machine are named without the folders above them.
    """
    base, source, names = facts["base"], manifest["source"], Names.of(facts)
    library = "peft" if facts["lora_rank"] else "transformers"
    front = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [neoxkit]"]
    if base != TINY and model_names.local_folder(base) is None:
        front.append(f"base_model: {model_names.resolve(base)}")
    else:
        base = Path(base).name
    at = f", revision `{facts['revision'] or 'main'}`, commit `{facts['base_commit']}`"
    at = at if facts["base_commit"] else ""
    text = Path(source["path"]).name
    made = "its shape, from random weights" if facts["from_scratch"] else ""
    made = f"LoRA adapters of rank {facts['lora_rank']}" if facts["lora_rank"] else made
    place = (
        "the folder that neoxkit merge writes"
        if facts["lora_rank"]
        else "this repository, or its folder"
    )
    loss = facts["eval_loss"]
    scores = "none: the held-out set was empty"
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
            f"Made with neoxkit and DeepSpeed. Base: `{base}`{at}{f' ({made})' if made else ''}.",
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
            f"**Scores on the held-out set.** {scores}.",
            "",
            f"**Training.** {_steps(facts)}, {facts['trained_tokens']:,} trained tokens, "
            f"{facts['train_seconds']:,} seconds of steps, {facts['precision']}. With {versions}.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | {arguments[name]} |" for name in TrainSettings.with_role("card")),
            "",
        ]
    )


def _steps(facts: Mapping[str, Any]) -> str:
    """Say how many steps were taken, and which of them the model is of."""
    said = early(facts) or f"{facts['step']:,} steps"
    best = exported_step(facts)
    return said if best == facts["step"] else f"{said}, the weights of step {best:,} (the best)"


def make_own(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a model the tokenizer's end mark and padding and the kit's own generation settings.

    Those of its base may sample, forbid tokens or stop elsewhere.
    """
    from neoxkit.models import generation

    own_ids(model.config, tokenizer)
    model.generation_config = generation.plain(tokenizer)


def own_ids(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Set a configuration's special ids to the tokenizer's.

    A tokenizer without padding gives none: some families don't train the embedding of that id.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))


def write_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", folder: Path
) -> None:
    """Write a tokenizer that knows how many positions its model has, if it has a limit."""
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    tokenizer.model_max_length = configs.positions(config) or VERY_LARGE_INTEGER
    tokenizer.save_pretrained(folder)


def for_older_readers(folder: Path) -> None:
    """Add the names to a saved model that transformers 4 and llama.cpp's converter look for.

    Version 5 keeps rotary settings elsewhere and has a new class for tokenizers that their files
    alone describe; it reads the older names too. Refuse rotary settings that have no older names:
    version 4 would compute something else and say nothing.
    """
    place = folder / "config.json"
    if place.is_file():  # adapters have none
        config = files.read_json(place)
        files.write_json(place, config | older_rope(config))
    place = folder / "tokenizer_config.json"
    config = files.read_json(place)
    if config.get("tokenizer_class") == "TokenizersBackend":
        files.write_json(place, config | {"tokenizer_class": "PreTrainedTokenizerFast"})
