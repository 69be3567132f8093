"""Rotary settings: transformers 4 finds its names for them, and 5 reads the same as before."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import ROTARY, THETA
from transformers import AutoConfig

from neoxkit.errors import UserError
from neoxkit.models.rope import older_rope


@pytest.mark.parametrize("family", ROTARY)
def test_transformers_5_reads_the_same_with_the_older_names(tmp_path: Path, family: str) -> None:
    for scaled in (False, True):
        config = ROTARY[family](scaled)
        config.save_pretrained(tmp_path)
        place = tmp_path / "config.json"
        saved = json.loads(place.read_text())
        place.write_text(json.dumps(saved | older_rope(saved)))
        again = AutoConfig.from_pretrained(tmp_path)
        assert getattr(again, "rope_parameters", None) == getattr(config, "rope_parameters", None)


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "rope", "older"),
    [
        ("llama", {"rope_type": "default"}, {"rope_theta": THETA, "rope_scaling": None}),
        ("qwen2", LINEAR, {"rope_theta": THETA, "rope_scaling": LINEAR}),
        (
            "gpt_neox",
            LINEAR | {"partial_rotary_factor": 0.5},
            {"rotary_emb_base": THETA, "rotary_pct": 0.5, "rope_scaling": LINEAR},
        ),
        (
            "phi",
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_theta": THETA, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
    ],
)
def test_each_setting_has_its_older_name(family: str, rope: dict, older: dict) -> None:
    rope = rope | {"rope_theta": THETA}
    assert older_rope({"model_type": family, "rope_parameters": rope}) == older


def test_layers_that_differ_have_two_bases() -> None:
    full = LINEAR | {"rope_theta": THETA}
    sliding = {"rope_type": "default", "rope_theta": 100.0}
    rope = {"full_attention": full, "sliding_attention": sliding}
    gemma = {"model_type": "gemma3_text", "rope_parameters": rope}
    assert older_rope(gemma) == {
        "rope_theta": THETA, "rope_local_base_freq": 100.0, "rope_scaling": LINEAR,
    }  # fmt: skip
    unknown = {"model_type": "gemma4_text", "rope_parameters": rope}
    assert older_rope(unknown) == {}  # transformers 4 says itself that it doesn't know it


def test_a_family_without_rotary_settings_needs_no_names() -> None:
    for config in ({"model_type": "gpt2"}, {"model_type": "bert", "rope_parameters": None}):
        assert older_rope(config) == {}


def by_layer(full: dict, sliding: dict) -> dict[str, Any]:
    of_all = {"rope_type": "default", "rope_theta": THETA}
    return {"full_attention": of_all | full, "sliding_attention": of_all | sliding}


@pytest.mark.parametrize(
    ("family", "rope", "which"),
    [
        ("llama", {"rope_type": "longrope", "rope_theta": THETA}, "llama of rope_type longrope"),
        ("nemotron", LINEAR | {"rope_theta": THETA}, "nemotron of rope_type linear"),
        ("olmo3", by_layer({}, {"rope_theta": 1.0}), "olmo3 with two rope_theta"),
        ("gemma3_text", by_layer({}, LINEAR), "gemma3_text in its sliding layers"),
    ],
)
def test_settings_that_transformers_4_can_not_have_are_refused_by_name(
    family: str, rope: dict, which: str
) -> None:
    with pytest.raises(UserError) as refused:
        older_rope({"model_type": family, "rope_parameters": rope})
    said = "model_name_or_path: transformers 4 has no names for the rotary settings of a "
    assert str(refused.value).startswith(f"{said}{which} -- start from")
