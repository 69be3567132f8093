"""LoRA: training small adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit import paths
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The linear layers of attention and MLP, by model family.
LAYERS = {
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt_neo": ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}


def layers(model_type: str) -> tuple[str, ...]:
    """Return the names of the layers that get an adapter; refuse an unknown model family."""
    if model_type not in LAYERS:
        what = f"{model_type} is not one of {', '.join(LAYERS)}"
        raise UserError("lora_rank", what, "set it to 0, which trains all weights")
    return LAYERS[model_type]


def add(
    model: "PreTrainedModel", rank: int, base: str, checkpointing: bool, commit: str = ""
) -> Any:
    """Add adapters of this rank, which alone are trained, scaled by two (alpha / rank).

    `base` is the name by which a reader of the adapters finds the model they belong to, `commit`
    its revision on the hub.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(layers(model.config.model_type)),
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    if checkpointing:  # otherwise no gradient gets past the frozen embeddings
        model.enable_input_require_grads()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # from peft's own calls
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.peft_config["default"].revision = commit or None
    return adapted


def sizes(model: "PreTrainedModel") -> int:
    """Sum up in- and outputs of the layers that get an adapter: the weights of rank 1; the model
    may be on the meta device."""
    names = LAYERS.get(model.config.model_type, ())
    chosen = [m for name, m in model.named_modules() if name.rpartition(".")[2] in names]
    return sum(sum(module.weight.shape) for module in chosen)


def check_filled(adapted: Any, folder: Path) -> None:
    """Refuse adapters that a folder's file does not hold; peft alone would take random ones."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        held = {*file.keys()}
    wanted = {*get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    if missing := sorted(wanted - held):
        what = f"{folder.name} lacks {missing[0]} (and {len(missing) - 1:,} more)"
        raise UserError("model_name_or_path", what, "copy the adapters again")


def base_of(folder: Path) -> str:
    """Return the name of the model that a folder's adapters belong to, at its revision
    (`name@revision`) if they name one; empty without adapters."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        base, revision = "", None
    if not isinstance(base, str) or not base or Path(base).absolute() == folder.absolute():
        what = f"{CONFIG} of {paths.short(folder)} names no base"
        raise UserError("model_name_or_path", what, "set base_model_name_or_path there")
    return f"{base}@{revision}" if revision else base
