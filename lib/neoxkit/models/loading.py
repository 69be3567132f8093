"""Load a model and its tokenizer by name or folder, and check that they fit together."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neoxkit import paths
from neoxkit.errors import UserError, shorten
from neoxkit.files import read_json
from neoxkit.models import lora, weights
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TINY

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_SHORT_NAMES = ("pythia-", "gpt-neo-", "gpt-neox-")
_TEXT = 'User: Hi, it\'s 3.5 - é, ß, 中 or 🙂?\n\nAgent: Yes:\n  1. a_b = {"c": [~d]}\n\tE!'


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
    """Load a model's tokenizer; check that it gives offsets, gives texts back, and has an end mark.

    From a folder without a tokenizer transformers makes one that encodes every text as nothing.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except Exception as fault:  # whatever a value in its files leads to
        raise cannot_load(name, "tokenizer", fault) from fault
    if not tokenizer.is_fast:
        raise UserError("model_name_or_path", f"{name} has no fast tokenizer", "add tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model_name_or_path", f"{name}'s tokenizer has no end mark", "set its eos_token"
        )
    _check_round_trip(name, tokenizer)
    tokenizer.model_max_length = 10**9  # the kit checks the block size itself; no warning
    return tokenizer


def _check_round_trip(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that loses letters, signs, line ends or spaces of a text."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    wanted = (normalizer.normalize_str(_TEXT) if normalizer else _TEXT).replace("▁", " ").strip()
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    got = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()
    if not ids:
        what = f"{portable(name)} has no tokenizer in its folder (tokenizer.json)"
        raise UserError("model_name_or_path", what, "copy the tokenizer files of its base there")
    if got not in (wanted, _TEXT.strip()):
        at = next(
            (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), len(got)
        )
        both = f"{wanted[at : at + 8]!r} back as {got[at : at + 8]!r}"
        what = f"the tokenizer of {portable(name)} gives {both}"
        raise UserError("model_name_or_path", what, "use a model with a byte-level tokenizer")


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
    model they belong to, with them.

    Refuse weights that don't fill the model, and any that is not a number.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it leaves a stale bar in every executed notebook
    where = resolve(name)
    if base := lora.base_of(Path(where)):
        from peft import PeftModel

        model = load_model(base, dtype, attention)
        weights.check_file(Path(where) / "adapter_model.safetensors")
        # Ignored: warnings of peft's own calls.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            adapted = PeftModel.from_pretrained(model, where, use_safetensors=True)
        lora.check_filled(adapted, Path(where))
        _check_finite(name, adapted)
        return cast("PreTrainedModel", adapted)  # it passes on the model's attributes
    if not is_deepspeed_zero3_enabled():  # else base_model.check_needs has done it
        check_weights(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            attn_implementation=attention,
        )
    except (OSError, ValueError, ImportError) as fault:
        if attention and "attention" in str(fault).lower():
            what = f"{attention} can't be used ({shorten(str(fault))})"
            raise UserError("attn_implementation", what, "choose auto") from fault
        raise cannot_load(name, "model", fault) from fault
    _check_finite(name, model)
    return model


def check_base(name: str) -> None:
    """Refuse a folder that a training can't start from, by its files alone."""
    folder = None if name == TINY else local_folder(resolve(name))
    if not folder:
        return
    if (folder / lora.CONFIG).is_file():
        run = f" {folder.parent.name}" if folder.name == "model" else ""
        what = f"{paths.short(folder)} holds LoRA adapters, not a whole model"
        raise UserError("model_name_or_path", what, f"neoxkit merge{run}, and give runs/RUN/merged")
    weights.check_files(folder)


def check_weights(name: str) -> None:
    """Refuse a model whose weight files are incomplete or don't fit its configuration.

    Only headers are read: transformers loads the model onto the meta device and says what it found.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as said
    from transformers.utils.logging import disable_progress_bar

    where, config = resolve(name), _config(name)
    if folder := local_folder(name):
        weights.check_files(folder)
    if quantized := getattr(config, "quantization_config", None):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else None
        what = f"{portable(name)} is quantized ({kind or 'of a kind unknown'}): it can't be trained"
        raise UserError("model_name_or_path", what, "start from the model it was made of")
    disable_progress_bar()
    loudness = said.get_verbosity()
    said.set_verbosity_error()  # it prints the report; the refusal has it in a line
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, config=config, device_map="meta", use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as fault:  # whatever a value in config.json leads to
        raise cannot_load(name, "model", fault) from fault
    finally:
        said.set_verbosity(loudness)
    model, report = loaded
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    weights.check_report(portable(name), report, model.state_dict().keys(), num_layers)


def _check_finite(name: str, model: "torch.nn.Module") -> None:
    """Refuse NaN and infinite weights: every loss would be NaN."""
    import torch

    for key, parameter in model.named_parameters():
        own = getattr(parameter, "ds_tensor", parameter)  # under ZeRO 3 this rank's part
        if not torch.isfinite(own).all():
            what = f"{portable(name)} holds NaN or infinite weights ({key})"
            raise UserError("model_name_or_path", what, "use an earlier checkpoint or a fresh copy")


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
    except Exception as fault:  # a model that is not causal, or values that can't be
        raise cannot_load(name, "model", fault) from fault


def _config(name: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(name))
    except Exception as fault:  # whatever a value in config.json leads to
        raise cannot_load(name, "model", fault) from fault


def for_inference(name: str, dtype: str = "float32") -> "PreTrainedModel":
    """Load a model to answer with: without dropout, on the GPU if there is one."""
    import torch

    model = load_model(name, dtype).eval()
    return model.to("cuda") if torch.cuda.is_available() else model


def cannot_load(name: str, what: str, fault: Exception) -> UserError:
    """Explain why a model or tokenizer can't be loaded; never guess a cause."""
    if isinstance(fault, UserError):
        return fault
    if folder := local_folder(name):
        return _cannot_open(folder, what, fault)
    if what == "model" and any("safetensors" in str(cause) for cause in _chain(fault)):
        said = f"{name} has no safetensors on the hub"
        return UserError("model_name_or_path", said, f"neoxkit convert {name}")
    kinds = {type(cause).__name__ for cause in _chain(fault)}
    for kind, said, remedy in _HUB_FAULTS:
        if kind in kinds:
            return UserError("model_name_or_path", f"{name} {said}", remedy)
    said = f"the {what} {name!r} can't be loaded ({shorten(str(fault), 90)})"
    return UserError("model_name_or_path", said, "use another model")


# Errors of huggingface_hub: the kind, what it means for a name, and what to do.
_HUB_FAULTS = (
    ("GatedRepoError", "is gated on the hub", "accept its terms there, and hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or is private", "check the name"),
    ("RevisionNotFoundError", "has no such revision on the hub", "see its branches there"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub can't be reached",
     "connect to the network, or give a folder"),
    ("OfflineModeIsEnabled", "is not in the cache, and HF_HUB_OFFLINE is set",
     "unset it, or give a folder"),
)  # fmt: skip


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    while fault:
        yield fault
        fault = fault.__cause__ or fault.__context__


def _cannot_open(folder: Path, what: str, fault: Exception) -> UserError:
    from transformers import CONFIG_MAPPING, __version__

    place = paths.short(folder)
    try:
        config = read_json(folder / "config.json")
        family = config.get("model_type") if isinstance(config, dict) else None
    except FileNotFoundError:
        said, remedy = f"{place} has no config.json", "give the folder of a saved model"
    except ValueError:
        said, remedy = f"{place}/config.json is not JSON", "copy it again"
    else:
        said, remedy = (
            f"{place}/config.json names no model_type",
            "copy the config.json of the base",
        )
        if isinstance(family, str) and family in CONFIG_MAPPING:
            said = f"the {what} in {place} can't be loaded ({shorten(str(fault), 90)})"
            remedy = "correct what is named in brackets, or copy the folder again"
        elif family:
            said = f"{place} is a {family}, which transformers {__version__} doesn't know"
            remedy = "use GPT-NeoX, GPT-Neo or another family that it knows"
    return UserError("model_name_or_path", said, remedy)


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
