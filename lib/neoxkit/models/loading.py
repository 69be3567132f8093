"""Load a model and its tokenizer by name or folder, and check that they fit together."""

import fnmatch
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

from neoxkit import machine, paths
from neoxkit.errors import UserError, shorten
from neoxkit.models import configs, hub, lora, tokenizer_class, weights
from neoxkit.models.model_names import (
    cannot_load,
    local_folder,
    pinned,
    portable,
    resolve,
    revision,
    split,
)
from neoxkit.models.refusals import said_by
from neoxkit.settings import TINY

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_TEXT = 'User: Hi, it\'s 3.5 - é, ß, 中 or 🙂?\n\nAgent: Yes:\n  1. a_b = {"c": [~d]}\n\tE!'


def files(name: str) -> Path:
    """Return the folder on this machine with a model's files, once it has been loaded."""
    from transformers.utils import cached_file

    place = resolve(name)
    if Path(place).is_dir():
        return Path(place)
    config = cached_file(place, "config.json", revision=revision(name))
    assert config is not None  # it raises where there is none
    return Path(config).parent


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; check that it gives offsets, gives texts back, and has an end mark.

    From a folder without a tokenizer transformers makes one that encodes every text as nothing.
    """
    try:
        tokenizer = tokenizer_class.load(resolve(name), revision(name))
    except Exception as fault:  # whatever a value in its files leads to
        raise cannot_load(name, "tokenizer", fault) from fault
    if not tokenizer.is_fast:
        what = f"{portable(name)} has no fast tokenizer"
        raise UserError("model_name_or_path", what, "add tokenizer.json")
    if tokenizer.eos_token_id is None:
        what = f"{portable(name)}'s tokenizer has no end mark"
        raise UserError("model_name_or_path", what, "set its eos_token")
    _check_round_trip(name, tokenizer)
    tokenizer.model_max_length = 10**9  # the kit checks the block size itself; no warning
    return tokenizer


def _check_round_trip(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that loses letters, signs, line ends or spaces of a text."""
    wanted = unicodedata.normalize("NFC", _TEXT).strip()
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
        return _with_adapters(load_model(base, dtype, attention), name)
    if not is_deepspeed_zero3_enabled():  # else base_model.check_needs has done it
        check_weights(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where,
            revision=revision(name),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            attn_implementation=attention,
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError) as fault:
        if attention and "attention" in str(fault).lower():
            what = f"{attention} can't be used ({shorten(str(fault))})"
            raise UserError("attn_implementation", what, "choose auto") from fault
        raise cannot_load(name, "model", fault) from fault
    weights.check_finite(portable(name), model, dtype)
    return model


def _with_adapters(model: "PreTrainedModel", name: str) -> "PreTrainedModel":
    """Return a model with the LoRA adapters of a folder, which must fit it."""
    from peft import PeftModel

    folder = Path(resolve(name))
    if not (folder / lora.WEIGHTS).is_file():
        what = f"{portable(name)} has no {lora.WEIGHTS}"
        raise UserError("model_name_or_path", what, "copy the adapters again")
    weights.check_file(folder / lora.WEIGHTS)
    try:
        # Ignored: warnings of peft's own calls, and of missing weights, which are refused below.
        with warnings.catch_warnings(action="ignore"):
            adapted = PeftModel.from_pretrained(model, folder, use_safetensors=True)
    except Exception as fault:  # whatever a value in adapter_config.json leads to
        what = f"the adapters in {portable(name)} don't fit their base ({said_by(fault)})"
        remedy = "copy them again, with their adapter_config.json"
        raise UserError("model_name_or_path", what, remedy) from fault
    lora.check_filled(adapted, folder)
    weights.check_finite(portable(name), adapted)
    return cast("PreTrainedModel", adapted)  # it passes on the model's attributes


def check_base(name: str) -> None:
    """Refuse a model that a training can't start from, by its files alone."""
    if name == TINY:
        return
    folder = local_folder(resolve(name))
    if not folder:
        _check_on_the_hub(pinned(name))
        return
    if (folder / lora.CONFIG).is_file():
        what = f"{paths.short(folder)} holds LoRA adapters, not a whole model"
        remedy = "merge them into their base (peft: merge_and_unload), and give that"
        if folder.parent.parent == paths.root() / "runs":
            run = folder.parent.name
            remedy = f"neoxkit merge {run}, and give runs/{run}/merged"
        raise UserError("model_name_or_path", what, remedy)
    weights.check_files(folder)


def _check_on_the_hub(name: str) -> None:
    """Refuse a model at a commit without safetensors, or whose cached ones are damaged."""
    place, commit = split(name)
    folder = hub.snapshot(place, commit)
    if hub.is_whole(folder):
        for file in weights.files(folder):
            weights.check_file(file, f"{file.name} of {portable(name)}")
        return
    try:
        held = hub.file_hashes(place, commit)
    except Exception as fault:  # the client's network library, and with it its errors, has changed
        raise cannot_load(name, "weights", fault) from fault
    if hub.weight_names(held):
        return
    if pickles := fnmatch.filter(held, weights.PICKLED):
        raise weights.is_pickled(portable(name), min(pickles))
    what = f"{portable(name)} has no {weights.WHOLE} on the hub"
    raise UserError("model_name_or_path", what, "set from_scratch, or use a model with weights")


def check_weights(name: str) -> None:
    """Refuse a model whose weight files are incomplete or don't fit its configuration.

    Only headers are read.
    """
    config = configs.config_of(name)
    if folder := local_folder(name):
        weights.check_files(folder)
    try:
        ties = weights.check_fit(portable(name), resolve(name), revision(name), config)
        if ties:
            weights.check_tied(portable(name), files(name))
    except Exception as fault:  # whatever a value in config.json leads to
        raise cannot_load(name, "model", fault) from fault


NARROWEST = (
    256  # of the width of a model that is worth bf16 on a CPU: its products take a step's time
)


def best_precision(on_gpu: bool) -> str:
    """Return bf16 where the device multiplies it itself, else fp32.

    A training on a CPU that does measures how fast (training/precision.py).
    """
    has_bf16 = machine.gpus_have_bf16() if on_gpu else machine.cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def dtype_of(precision: str) -> str:
    """Return torch's name for the weights of a run in this precision: fp32, bf16 or fp16."""
    return {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")


def random_model(name: str, seed: int) -> "PreTrainedModel":
    """Make a model of that shape with random float32 weights, the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    config = configs.config_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )


def without_weights(name: str) -> "PreTrainedModel":
    """Make a model on the meta device: its shape, without loading any weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = configs.config_of(name)  # outside the meta device: it may make the built-in model
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as fault:  # a model that is not causal, or values that can't be
        raise cannot_load(name, "model", fault) from fault


def for_inference(name: str, dtype: str = "float32") -> "PreTrainedModel":
    """Load a model to answer with: without dropout, on the GPU if there is one."""
    import torch

    model = load_model(name, dtype).eval()
    return model.to("cuda") if torch.cuda.is_available() else model


def check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse more token ids than embedding rows; fewer ids than rows are usual."""
    rows, ids = model.config.vocab_size, len(tokenizer)
    if ids > rows:
        raise UserError(
            "model_name_or_path",
            f"the tokenizer has {ids} ids, the model {rows} embedding rows",
            "use the model's own tokenizer",
        )


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that pads rows. Padding is masked by length, so the end mark will do."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
