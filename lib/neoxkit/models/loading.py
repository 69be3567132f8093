"""Load a model and its tokenizer by name or folder, and check that they fit together."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

from neoxkit import paths
from neoxkit.errors import UserError, shorten
from neoxkit.models import lora
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TINY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_SHORT_NAMES = ("pythia-", "gpt-neo-", "gpt-neox-")


def resolve(name: str) -> str:
    """Return the folder or hub name that `from_pretrained` opens.

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
        return _on_the_hub(f"EleutherAI/{name}")
    if "/" not in name:
        raise UserError(
            "model_name_or_path",
            f"{name!r} is not a folder here",
            "use tiny, a folder, or owner/name",
        )
    return _on_the_hub(name)


def _on_the_hub(name: str) -> str:
    """Return a hub name unchanged; silence the hub's client, as our own error says it in a line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return name


def files(name: str) -> Path:
    """Return the folder on this machine with a model's files, once it has been loaded."""
    from transformers.utils import cached_file

    place = resolve(name)
    if Path(place).is_dir():
        return Path(place)
    config = cached_file(place, "config.json")
    assert config is not None  # it raises where there is none
    return Path(config).parent


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer, and check that it gives offsets and has an end mark."""
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
    tokenizer.model_max_length = 10**9  # the kit checks the block size itself; no warning
    return tokenizer


def attention(name: str, wanted: str, half: bool) -> str | None:
    """Choose the attention kernel to load a model with; None leaves the choice to transformers.

    "auto": flash attention where it is installed and exact (GPT-NeoX in half precision on a GPU),
    else transformers' choice: sdpa where the family has it, eager where not. flex_attention is
    never chosen: it compiles at every start and gains little at the lengths of conversations.
    """
    if wanted != "auto":
        return wanted
    import torch
    from transformers.utils import is_flash_attn_2_available

    if half and torch.cuda.is_available() and is_flash_attn_2_available():
        return "flash_attention_2" if _config(name).model_type == "gpt_neox" else None
    return None


def load_model(
    name: str, dtype: str = "float32", attention: str | None = None
) -> "PreTrainedModel":
    """Load a causal language model from safetensors alone; a folder of LoRA adapters gives the
    model they belong to, with them."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it leaves a stale bar in every executed notebook
    where = resolve(name)
    if base := lora.base_of(Path(where)):
        from peft import PeftModel

        model = load_model(base, dtype, attention)
        # Ignored: warnings of peft's own calls.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            adapted = PeftModel.from_pretrained(model, where, use_safetensors=True)
        return cast("PreTrainedModel", adapted)  # it passes on the model's attributes
    try:
        return AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            attn_implementation=attention,
        )
    except (OSError, ValueError, ImportError) as fault:
        if attention and "attention" in str(fault).lower():
            what = f"{attention} can't be used ({shorten(str(fault))})"
            raise UserError("attn_implementation", what, "choose auto") from fault
        raise _cannot_load(name, "model", fault) from fault


def best_precision(on_gpu: bool) -> str:
    """Return bf16 where the device is fast at it, else fp32."""
    import torch

    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(False) else "fp32"


def random_model(name: str, seed: int) -> "PreTrainedModel":
    """Make a model of that shape with random float32 weights, the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def without_weights(name: str) -> "PreTrainedModel":
    """Make a model on the meta device: its shape, without loading any weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(name)  # outside the meta device: it may make the built-in model
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError) as fault:  # a model that is not causal, for one
        raise _cannot_load(name, "model", fault) from fault


def _config(name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError) as fault:
        raise _cannot_load(name, "model", fault) from fault


def for_inference(name: str, dtype: str = "float32") -> "PreTrainedModel":
    """Load a model to answer with: without dropout, on the GPU if there is one."""
    import torch

    model = load_model(name, dtype).eval()
    return model.to("cuda") if torch.cuda.is_available() else model


def _cannot_load(name: str, what: str, fault: Exception) -> UserError:
    folder = local_folder(name)
    if folder and what == "model" and not any(folder.glob("*.safetensors*")):
        return no_weights(folder)
    return UserError(
        "model_name_or_path",
        f"the {what} {name!r} can't be loaded ({shorten(str(fault), 70)})",
        "check the name and the network, or give a folder",
    )


def no_weights(folder: Path) -> UserError:
    """Return the error for a model folder that has a config but no weights."""
    return UserError(
        "model_name_or_path",
        f"{paths.short(folder)} has no model.safetensors",
        "set from_scratch to start from random weights, or add the weights",
    )


def check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse more token ids than embedding rows; fewer ids than rows are usual."""
    rows, ids = model.config.vocab_size, len(tokenizer)
    if ids > rows:
        raise UserError(
            "model_name_or_path",
            f"the tokenizer has {ids} ids, the model {rows} embedding rows",
            "use the model's own tokenizer",
        )


def check_positions(model: "PreTrainedModel", block_size: int) -> None:
    """Refuse a block size above the number of positions that the model knows."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and block_size > positions:
        raise UserError(
            "block_size", f"{block_size} is above the model's {positions} positions", "lower it"
        )


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that pads rows. Padding is masked by length, so the end mark will do."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def base_name(name: str) -> str:
    """Return a model's name as a run records it."""
    place = portable(name)
    return place if place == TINY or local_folder(place) else resolve(name)


def local_folder(name: str) -> Path | None:
    """Return the folder on this machine that a model's name means, or None."""
    return next((path.resolve() for path in paths.candidates(name) if name and path.is_dir()), None)


def portable(name: str) -> str:
    """Return a model's name in portable form: a folder below the root becomes relative to it."""
    folder = None if name == TINY else local_folder(name)
    return paths.short(folder) if folder else name
