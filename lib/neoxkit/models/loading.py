"""Load a model and its tokenizer by name or folder, and check that they fit together."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit import paths
from neoxkit.errors import UserError, shorten
from neoxkit.models import lora
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TINY

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
        return _on_the_hub(f"EleutherAI/{name}")
    if "/" not in name:
        raise UserError(
            "model_name_or_path", f"{name!r} is no folder here", "use tiny, a folder, or owner/name"
        )
    return _on_the_hub(name)


def _on_the_hub(name: str) -> str:
    """A hub's name. Each try of its client to reach the network is no news: one line follows."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return name


def files(name: str) -> Path:
    """The folder on this machine where a model's files lie, after it was loaded."""
    from transformers.utils import cached_file

    place = resolve(name)
    return Path(place) if Path(place).is_dir() else Path(cached_file(place, "config.json")).parent


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


def attention(name: str, wanted: str, half: bool) -> str | None:
    """The attention kernel to load a model with; None leaves the choice to transformers.

    "auto": flash attention where it is installed and exact (GPT-NeoX in half precision on a GPU),
    else what transformers takes: sdpa where the family has it, eager where not. flex_attention is
    never chosen: it compiles at every start, for little at the lengths of conversations.
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
    """The causal language model by that name, from safetensors alone; with its LoRA adapters where
    the name is that of a folder of them."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a stale bar in every executed notebook
    where = resolve(name)
    if base := lora.base_of(Path(where)):
        from peft import PeftModel

        model = load_model(base, dtype, attention)
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # of peft's own calls
            return PeftModel.from_pretrained(model, where, use_safetensors=True)
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
    """bf16 where the device multiplies it fast, else fp32."""
    import torch

    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(False) else "fp32"


def random_model(name: str, seed: int) -> "PreTrainedModel":
    """A model of that name's shape with new weights (float32): the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def without_weights(name: str) -> "PreTrainedModel":
    """The model by that name on the meta device: its shape, and nothing was loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(name)  # may make the built-in model, with its weights
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError) as fault:  # of another kind than causal, for one
        raise _cannot_load(name, "model", fault) from fault


def _config(name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError) as fault:
        raise _cannot_load(name, "model", fault) from fault


def for_inference(name: str, dtype: str = "float32") -> "PreTrainedModel":
    """`load_model`, ready to answer: no dropout, on the GPU where there is one."""
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


def base_name(name: str) -> str:
    """A model's name as a run writes it down."""
    place = portable(name)
    return place if place == TINY or local_folder(place) else resolve(name)


def local_folder(name: str) -> Path | None:
    """The folder on this machine that the name of a model means, if it does."""
    return next((path.resolve() for path in paths.candidates(name) if name and path.is_dir()), None)


def portable(name: str) -> str:
    """A model's name as it can be written down: a folder below the root is relative to it."""
    folder = None if name == TINY else local_folder(name)
    return paths.short(folder) if folder else name
