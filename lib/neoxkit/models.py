"""Load a model and its tokenizer by name or folder; make the built-in model `tiny`."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit import conversations, paths
from neoxkit.errors import UserError
from neoxkit.tokens import NOT_TRAINED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"
_SHORT_NAMES = ("pythia-", "gpt-neo-", "gpt-neox-")


def resolve(name: str) -> str:
    """A folder or hub name that `from_pretrained` opens.

    >>> resolve("pythia-70m-deduped")
    'EleutherAI/pythia-70m-deduped'
    """
    if name == TINY:
        return str(tiny_folder())
    if folder := local_folder(name):
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        paths.find("model_name_or_path", name)  # refuses it
    if "/" not in name and name.startswith(_SHORT_NAMES):
        return f"EleutherAI/{name}"
    if "/" not in name:
        raise UserError(
            "model_name_or_path", f"{name!r} is no folder here", "use tiny, a folder, or owner/name"
        )
    return name


def local_folder(name: str) -> Path | None:
    """The model folder that a name means on this machine, if it does."""
    path = Path(name).expanduser()
    return next((p.resolve() for p in (path, paths.root() / path) if p.is_dir()), None)


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, checked: it must give offsets and have an end mark."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError) as fault:
        raise _cannot_load(name, "tokenizer", fault) from fault
    if not tokenizer.is_fast:
        raise UserError("model_name_or_path", f"{name} has no fast tokenizer", "add tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model_name_or_path", f"{name}'s tokenizer has no end mark", "set its eos_token"
        )
    tokenizer.model_max_length = 10**9  # the block size is ours to check, without a warning
    return tokenizer


def load_model(
    name: str,
    *,
    from_scratch: bool = False,
    seed: int = 0,
    dtype: "torch.dtype | str" = "float32",
) -> "PreTrainedModel":
    """The causal language model by that name; `from_scratch`: its shape with new weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    where = resolve(name)
    try:
        if from_scratch:
            config = AutoConfig.from_pretrained(where)
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, dtype=_dtype(dtype))
        return AutoModelForCausalLM.from_pretrained(
            where, dtype=_dtype(dtype), use_safetensors=True
        )
    except (OSError, ValueError) as fault:
        raise _cannot_load(name, "model", fault) from fault


def for_inference(name: str, **options: Any) -> "PreTrainedModel":
    """`load_model`, ready to answer: no dropout, on the GPU where there is one."""
    import torch

    model = load_model(name, **options).eval()
    return model.to("cuda") if torch.cuda.is_available() else model


def _dtype(dtype: "torch.dtype | str") -> "torch.dtype":
    import torch

    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _cannot_load(name: str, what: str, fault: Exception) -> UserError:
    folder = local_folder(name)
    if folder and what == "model" and not any(folder.glob("*.safetensors*")):
        return no_weights(folder)
    first = str(fault).strip().split("\n")[0][:100]
    return UserError(
        "model_name_or_path",
        f"the {what} {name!r} can't be loaded ({first})",
        "check the name and the network, or give a folder",
    )


def no_weights(folder: Path) -> UserError:
    """The refusal of a model folder that has a shape and no weights."""
    return UserError(
        "model_name_or_path",
        f"{paths.short(folder)} holds no model.safetensors",
        "set from_scratch to begin with random weights, or add the weights",
    )


def check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Every id needs an embedding row; more rows than ids are usual and are left alone."""
    rows, ids = model.config.vocab_size, len(tokenizer)
    if ids > rows:
        raise UserError(
            "model_name_or_path",
            f"the tokenizer has {ids} ids, the model {rows} embedding rows",
            "use the model's own tokenizer",
        )


def check_positions(model: "PreTrainedModel", block_size: int) -> None:
    """The model must know as many positions as the block size has tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and block_size > positions:
        raise UserError(
            "block_size", f"{block_size} is above the model's {positions} positions", "lower it"
        )


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """What fills a row's end; it is masked by length, never by id, so the end mark may serve."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


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


def token_losses(
    model: "torch.nn.Module", lm: "PreTrainedModel", batch: Mapping[str, "torch.Tensor"]
) -> "torch.Tensor":
    """The loss of each trained token of a batch, in row order: shape (trained tokens,), fp32, nats.

    `model` is what is called (a DeepSpeed engine, say), `lm` the model inside it. Logits are
    computed at trained tokens only: a hook hands the output layer just the hidden states that
    predict one. `batch`: input_ids, labels, and either attention_mask or position_ids.
    """
    import torch

    labels = batch["labels"]
    targets = labels[:, 1:]
    keep = torch.nn.functional.pad(targets != NOT_TRAINED, (0, 1))  # hidden state t predicts t + 1
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hook = lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][keep],))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return torch.nn.functional.cross_entropy(
        logits.float(), targets[targets != NOT_TRAINED], reduction="none"
    )


# --- the built-in model ---

TINY_VOCABULARY = 1024
TINY_SEED = 0


def tiny_folder() -> Path:
    """data/models/tiny, made on first use: the same bytes every time."""
    folder = paths.root() / "data" / "models" / TINY
    if not (folder / "config.json").is_file():
        part = folder.with_name(f".tiny.{os.getpid()}.part")
        part.mkdir(parents=True, exist_ok=True)
        make_tiny(part)
        try:
            part.rename(folder)
        except OSError:  # another process was first; its bytes are the same
            shutil.rmtree(part)
    return folder


def make_tiny(folder: Path) -> None:
    """Write a GPT-NeoX of a million random weights and a tokenizer trained on the sample."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils.logging import disable_progress_bar

    tokenizer = _train_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000,
            "partial_rotary_factor": 0.25,
        },
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        GPTNeoXForCausalLM(config).save_pretrained(folder)


def _train_tiny_tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE like GPT-NeoX's: NFC, end mark 0, padding 1."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    sample = (paths.root() / "data" / "sample.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=[conversations.END_MARK, "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.split(conversations.END_MARK), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=conversations.END_MARK,
        eos_token=conversations.END_MARK,
        unk_token=conversations.END_MARK,
        pad_token="<|padding|>",
    )


def card(
    facts: Mapping[str, Any], manifest: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """The model card: base, data, settings, scores (Markdown with the hub's front matter)."""
    base = facts["base"]
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [neoxkit]"]
    if base != TINY and local_folder(base) is None:
        front.append(f"base_model: {resolve(base)}")
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
            + (" (its shape, from random weights)." if facts["from_scratch"] else "."),
            "",
            f"**Data.** `{manifest['source']['path']}` (SHA-256 `{manifest['source']['sha256']}`): "
            f"{rows['conversations']:,} conversations of at most {facts['block_size']} tokens; "
            f"trained on: {manifest['train_on']}.",
            "",
            f"**Prompt.** `User: ...`, a blank line, `{facts['agent_name']}:` - the chat template "
            "writes it. A reply ends with the end mark or with a blank line and `User:`.",
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
