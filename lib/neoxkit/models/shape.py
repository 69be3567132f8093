"""A model's shape: the sizes that decide its memory and its learning rate, without its weights.

That of GPT-NeoX, GPT-Neo and GPT-2 follows from config.json alone, in milliseconds. Any other
family, and any value out of the ordinary, is left to transformers, whose import takes seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neoxkit.files import read_json
from neoxkit.models import configs, loading, lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The names in config.json of: width, layers, heads, inner width, positions.
_NAMES = {
    "gpt_neox": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "max_position_embeddings"),
    "gpt_neo": ("hidden_size", "num_layers", "num_heads", "intermediate_size",
                "max_position_embeddings"),
    "gpt2": ("n_embd", "n_layer", "n_head", "n_inner", "n_positions"),
}  # fmt: skip
_TIED = {"gpt_neox": False, "gpt_neo": True, "gpt2": True}  # output and embedding, by default
# Values that change the count, or that make transformers refuse a model: left to it.
_ORDINARY: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": (None, "gelu", "gelu_new", "gelu_fast", "relu"),
    "activation_function": (None, "gelu", "gelu_new", "gelu_fast", "relu"),
    "attention_bias": (None, True),
    "add_cross_attention": (None, False),
    "tie_word_embeddings": (None, True, False),
    "rope_scaling": (None,),
    "quantization_config": (None,),
}


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes; `lora_sizes` is the sum of in- and outputs of the layers that get adapters,
    0 for a family that gets none."""

    family: str
    width: int
    layers: int
    vocabulary: int
    num_parameters: int
    lora_sizes: int

    @classmethod
    def of_model(cls, model: "PreTrainedModel") -> "ModelShape":
        """Return the shape of a model, which may be on the meta device."""
        config = model.config
        return cls(
            config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size,
            model.num_parameters(), lora.sizes(model),
        )  # fmt: skip


def look_up(name: str) -> ModelShape:
    """Return the shape of a model here or on the hub."""
    return by_files(name) or ModelShape.of_model(loading.without_weights(name))


def by_files(name: str) -> ModelShape | None:
    """Return the same by a config.json on this machine, where that alone is enough."""
    file = configs.config_file(name)
    try:
        return by_config(read_json(file)) if file else None
    except (OSError, ValueError):
        return None


def by_config(config: Any) -> ModelShape | None:
    """Return the shape by the content of a config.json, or None."""
    family = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(family, str) or family not in _NAMES or not _is_ordinary(config):
        return None
    values = {name: config.get(name) for name in _NAMES[family]}
    width, layers, heads, inner, positions = values.values()
    if inner is None and family != "gpt_neox":
        inner = 4 * width if isinstance(width, int) else None
    sizes = (width, layers, heads, inner, positions, vocabulary := config.get("vocab_size"))
    if not all(type(size) is int and size > 0 for size in sizes) or width % heads:
        return None
    tied = config.get("tie_word_embeddings")
    outer = vocabulary * (1 if (_TIED[family] if tied is None else tied) else 2)
    outer += 0 if family == "gpt_neox" else positions
    biases = 6 if family == "gpt_neo" else 9  # its queries, keys and values have none
    in_layer = 4 * width**2 + 2 * width * inner + biases * width + inner
    in_lora = (8 if family == "gpt_neo" else 6) * width + 2 * (width + inner)
    total = outer * width + layers * in_layer + 2 * width
    return ModelShape(family, width, layers, vocabulary, total, layers * in_lora)


def _is_ordinary(config: Mapping[str, Any]) -> bool:
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        return False
    if config["model_type"] == "gpt_neo" and _num_attentions(config) != config.get("num_layers"):
        return False
    return all(
        any(value is one or (isinstance(one, str) and value == one) for one in values)
        for value, values in ((config.get(name), values) for name, values in _ORDINARY.items())
    )


def _num_attentions(config: Mapping[str, Any]) -> int:
    """Return for how many layers GPT-Neo's configuration names a kind of attention; 0 if it can't
    be counted."""
    types = config.get("attention_types")
    try:
        return 24 if types is None else sum(len(names) * times for names, times in types)
    except (TypeError, ValueError):
        return 0
