"""What a model's weight files hold, compared with what its configuration asks for."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

WHERE = "model_name_or_path"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model*.bin"
FLOATS = {"F64", "F32", "F16", "BF16"}
# Buffers that old versions saved, and which a model computes itself.
HARMLESS = re.compile(r"(^|\.)(attention|attn)\.(bias|masked_bias|rotary_emb\.inv_freq)$")
# The output layer and the embedding, as families name them.
TIED = (
    "embed_out.weight", "lm_head.weight",
    "embed_in.weight", "wte.weight", "embed_tokens.weight", "word_embeddings.weight",
)  # fmt: skip
# The prefix that a wrapper leaves on every name -> the wrapper.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "PEFT",
    "model.": "a class that held the model",
}


def check_files(folder: Path) -> None:
    """Refuse a model folder whose weights are missing, pickled, cut short, or Git LFS pointers.

    It takes milliseconds, whatever the size of the model.
    """
    for file in files(folder):
        check_file(file)


def files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a folder's weights; refuse a folder without them."""
    place = paths.short(folder)
    if (folder / WHOLE).is_file():  # which transformers takes first, too
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        names = _listed(folder / INDEX)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            what = f"{place} lacks {missing[0]}{more}, listed in {INDEX}"
            raise UserError(WHERE, what, "download the missing files")
        return [folder / name for name in names]
    if pickled := sorted(folder.glob(PICKLED)):
        raise is_pickled(place, pickled[0].name)
    remedy = "set from_scratch to start from random weights, or add the weights"
    raise UserError(WHERE, f"{place} has no {WHOLE}", remedy)


def is_pickled(place: str, file: str) -> UserError:
    """Return the refusal of weights in a pickle, in a folder or on the hub."""
    what = f"{place} has its weights in {file}, which could run code when it is read"
    return UserError(WHERE, what, f"neoxkit convert {place}")


def _listed(index: Path) -> list[str]:
    """Return the files that an index names."""
    try:
        held = read_json(index)
        names = sorted({*map(str, held["weight_map"].values())})
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names or "metadata" not in held:
        lacks = 'has no "metadata", which transformers needs' if names else "lists no files"
        raise UserError(WHERE, f"{paths.short(index)} {lacks}", "download it again")
    return names


def check_file(file: Path, place: str = "") -> None:
    """Refuse a safetensors file that is cut short, damaged, or a Git LFS pointer; `place` is what
    the refusal calls it, if not by its path."""
    from safetensors import SafetensorError, safe_open

    place = place or paths.short(file)
    with file.open("rb") as opened:
        is_pointer = opened.read(30).startswith(b"version https://git-lfs")
    if is_pointer:
        raise UserError(WHERE, f"{place} is a Git LFS pointer, not the weights", "run git lfs pull")
    try:
        with safe_open(file, "pt") as opened:
            _check_kinds(place, opened)
    except SafetensorError:
        what = f"{place} is cut short or damaged ({file.stat().st_size:,} bytes)"
        raise UserError(WHERE, what, "copy or download it again") from None


def _check_kinds(place: str, opened: Any) -> None:
    """Refuse weights in whole numbers or in 8 bits, which loading would round to others."""
    for key in opened.keys():  # noqa: SIM118
        kind = opened.get_slice(key).get_dtype()
        if kind not in FLOATS and key.endswith(("weight", "bias")) and not HARMLESS.search(key):
            what = f"{place} holds {key} as {kind}: it is quantized, and can't be trained"
            raise UserError(WHERE, what, "start from the model it was made of")


def check_fit(name: str, where: str, revision: str, config: "PretrainedConfig") -> bool:
    """Refuse weights, in a folder or at a revision on the hub, that don't fit a configuration;
    return whether that ties some of them.

    transformers loads them onto the meta device, which reads headers alone, and reports.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if quantized := getattr(config, "quantization_config", None):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else None
        what = f"{name} is quantized ({kind or 'of a kind unknown'}): it can't be trained"
        raise UserError(WHERE, what, "start from the model it was made of")
    logging.disable_progress_bar()
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()  # it prints the report; the refusal has it in a line
    try:
        model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
            where, revision=revision, config=config, device_map="meta", use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(loudness)
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    check_report(name, report, {*model.state_dict()}, num_layers)
    return bool(model.all_tied_weights_keys)


def check_finite(name: str, model: "torch.nn.Module", dtype: str = "float32") -> None:
    """Refuse weights that are NaN or infinite, once read in `dtype`: every loss would be NaN."""
    import torch

    for key, parameter in model.named_parameters():
        own = getattr(parameter, "ds_tensor", parameter)  # under ZeRO 3 this rank's part
        if not torch.isfinite(own).all():
            what = f"{name} holds NaN or infinite weights ({key})"
            remedy = "use an earlier checkpoint or a fresh copy"
            if dtype == "float16":
                what, remedy = f"{what} in fp16", f"set precision to bf16 or fp32, or {remedy}"
            raise UserError(WHERE, what, remedy)


def check_tied(name: str, folder: Path) -> None:
    """Refuse an output layer that is not the embedding, in a folder whose configuration ties them:
    transformers 5 would compute with both, version 4 and ZeRO 3 with one. Read them only if the
    files hold both."""
    from safetensors import safe_open

    held: list[tuple[Path, str]] = []
    for file in files(folder):
        with safe_open(file, "pt") as opened:
            held += [(file, key) for key in opened.keys() if key.endswith(TIED)]  # noqa: SIM118

    def read(file: Path, key: str) -> "torch.Tensor":
        with safe_open(file, "pt") as opened:
            return cast("torch.Tensor", opened.get_tensor(key))

    if len(held) == 2 and not read(*held[0]).equal(read(*held[1])):
        what = f"{name} holds an output layer of its own, and its config.json ties it to the input"
        raise UserError(WHERE, what, "set tie_word_embeddings to false there")


def check_report(
    name: str, report: Mapping[str, Collection[Any]], expected: set[str], num_layers: int
) -> None:
    """Refuse weights that do not fill the model, or that it has no place for.

    `report`: from_pretrained's `output_loading_info`; `expected`: the names of the model's weights;
    `num_layers`: the configuration's. transformers alone would train random weights in place of the
    missing ones.
    """
    missing = sorted(report["missing_keys"])
    extra = sorted(key for key in report["unexpected_keys"] if not HARMLESS.search(key))
    sizes = sorted(report["mismatched_keys"])
    if sizes:
        key, held, wanted = sizes[0]
        what = f"{name} holds {key} as {_shape(held)}, by config.json it is {_shape(wanted)}"
        raise UserError(WHERE, what + _more(sizes), "use the config.json of these weights")
    if missing or extra:
        raise UserError(WHERE, *_cause(name, missing, extra, expected, num_layers))


def _cause(
    name: str, missing: list[str], extra: list[str], expected: set[str], num_layers: int
) -> tuple[str, str]:
    """Return what is wrong, with the likely cause, and the remedy."""
    inside = [key for key in extra if not expected.isdisjoint(unwrapped(key)[1:])]
    if missing and len(inside) > len(extra) / 2:
        known = (one for one in WRAPPERS.items() if inside[0].startswith(one[0]))
        prefix, wrapper = next(known, (inside[0].partition(".")[0] + ".", "another module"))
        what = f"{name} was saved from inside {wrapper}: names begin with {prefix}"
        return what, f"neoxkit convert {name}"
    layers = _layers(missing) if missing else _layers(extra)
    of_layers = {key for key in expected if _layer(key) in layers}
    says = f"config.json says {num_layers} layers, {name} holds"
    if layers and not extra and of_layers == {*missing}:
        return f"{says} {num_layers - len(layers)}", "use the config.json of these weights"
    if layers and not missing and min(layers) == num_layers:
        return f"{says} {max(layers) + 1}", "use the config.json of these weights"
    if missing and all("head" in key or "embed_out" in key for key in missing):
        return f"{name} was saved without its output layer, {missing[0]}", "save a ...ForCausalLM"
    said = [f"lacks {missing[0]}{_more(missing)}"] if missing else []
    said += [f"has no place for {extra[0]}{_more(extra)}"] if extra else []
    return f"{name} {' and '.join(said)}", "use weights and a config.json that belong together"


def unwrapped(key: str) -> list[str]:
    """Return a weight's name, and what is left of it as one part of a prefix after another goes.

    >>> unwrapped("module._orig_mod.embed_out.weight")[1:-1]
    ['_orig_mod.embed_out.weight', 'embed_out.weight']
    """
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _layer(key: str) -> int | None:
    found = re.search(r"\.(\d+)\.", key)
    return int(found[1]) if found else None


def _layers(keys: Collection[str]) -> set[int]:
    """Return the layers that all of these weights belong to; empty if one belongs to none."""
    layers = {_layer(key) for key in keys}
    return set() if None in layers else {layer for layer in layers if layer is not None}


def _more(keys: Collection[Any]) -> str:
    return f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""


def _shape(shape: Collection[int]) -> str:
    return " x ".join(map(str, shape))
