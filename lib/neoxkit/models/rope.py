"""Rotary settings under the names of transformers 4, which reads another config.json than 5."""

from collections.abc import Mapping
from typing import Any

from neoxkit.errors import UserError

# longrope is not among these: transformers 4 derives its attention factor from other numbers.
TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
UNSCALED = ("nemotron", "olmo", "olmo2", "modernbert-decoder")  # families that only have default
# Names of the base and of the rotated share of a head, where they are not the usual ones.
NAMES = dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), ("rotary_emb_base", "rotary_pct"))
# Families whose layers differ: names of the base in layers of full and of sliding attention.
BY_LAYER = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
    "olmo3": ("rope_theta", "rope_theta"),
}

Rope = Mapping[str, Any]


def older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of a config.json under the names of transformers 4.

    Refuse settings that have none: transformers 4 would compute something else and say nothing.
    A family that it does not know needs no names: it says so itself.
    """
    rope, family = config.get("rope_parameters") or {}, config["model_type"]
    if not any(isinstance(of_layer, dict) for of_layer in rope.values()):
        return _flat(family, rope) if rope else {}
    if family not in BY_LAYER:
        return {}
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    of_full, of_sliding = BY_LAYER[family]
    if sliding["rope_type"] != "default" or {"partial_rotary_factor"} & {*full, *sliding}:
        raise _refusal(family, "in its sliding layers")
    older = _flat(family, full, of_full) | {of_sliding: sliding["rope_theta"]}
    if older[of_full] != full["rope_theta"]:
        raise _refusal(family, "with two rope_theta")
    return older


def _flat(family: str, rope: Rope, theta: str = "") -> dict[str, Any]:
    """Return the older names of settings that are the same in every layer."""
    usual = ("rope_theta", "partial_rotary_factor")
    kind, names = rope["rope_type"], NAMES.get(family, usual)
    if kind not in TYPES or (kind != "default" and family in UNSCALED):
        raise _refusal(family, f"of rope_type {kind}")
    scaling = {name: value for name, value in rope.items() if name not in usual}
    older = {
        theta or names[0]: rope["rope_theta"],
        "rope_scaling": None if kind == "default" else scaling,
    }
    if "partial_rotary_factor" in rope:
        older[names[1]] = rope["partial_rotary_factor"]
    return older


def _refusal(family: str, which: str) -> UserError:
    what = f"transformers 4 has no names for the rotary settings of a {family} {which}"
    return UserError("model_name_or_path", what, "start from a model of another family")
