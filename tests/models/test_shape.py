"""A model's shape by its config.json alone, beside the one that transformers builds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import CONFIGS

from neoxkit.errors import UserError
from neoxkit.models import loading, shape

PYTHIA = {  # of pythia-70m, as it is on the hub
    "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048, "model_type": "gpt_neox",
    "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "vocab_size": 50304,
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}


def folder(place: Path, config: dict) -> str:
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


def by_transformers(name: str) -> shape.ModelShape:
    return shape.ModelShape.of_model(loading.without_weights(name))


@pytest.mark.parametrize("change", [{}, TIED, UNTIED], ids=["plain", "tied", "untied"])
@pytest.mark.parametrize("family", [*CONFIGS, "pythia"])
def test_the_shape_is_the_one_that_transformers_builds(
    family: str, change: dict, tmp_path: Path
) -> None:
    config = PYTHIA if family == "pythia" else CONFIGS[family].to_dict()
    name = folder(tmp_path, config | change)
    found = shape.by_files(name)
    assert found and found == by_transformers(name) and found.lora_sizes


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"}, {"model_type": ["gpt_neox"]}, {"hidden_size": None},
        {"hidden_size": "512"}, {"hidden_size": True}, {"num_hidden_layers": -1},
        {"num_attention_heads": 7}, {"hidden_act": "none"}, {"attention_bias": False},
        {"rope_scaling": {"type": "yarn"}}, {"rope_parameters": {"rope_type": "linear"}},
        {"rope_parameters": [1]}, {"quantization_config": {}}, {"tie_word_embeddings": 1},
    ],
    ids=str,
)  # fmt: skip
def test_anything_out_of_the_ordinary_is_left_to_transformers(change: dict) -> None:
    assert shape.by_config(PYTHIA) and shape.by_config(PYTHIA | change) is None


def test_attention_types_that_are_not_one_for_each_layer_are_left_to_transformers() -> None:
    neo = CONFIGS["gpt_neo"].to_dict()
    assert shape.by_config(neo)
    for wrong in ([[["global"], 1]], [], [["global"]], "global", 2, None):
        assert shape.by_config(neo | {"attention_types": wrong}) is None


def test_a_configuration_that_no_model_can_have_is_refused_as_before(tmp_path: Path) -> None:
    name = folder(tmp_path, PYTHIA | {"num_attention_heads": 7})
    with pytest.raises(UserError, match="can't be loaded"):
        shape.look_up(name)


def test_neither_torch_nor_transformers_is_imported_for_it(tmp_path: Path) -> None:
    name = folder(tmp_path, PYTHIA)
    code = "import sys; from neoxkit.models import shape; print(shape.look_up(sys.argv[1])); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert (done.returncode, "num_parameters=70426624" in done.stdout) == (0, True), done.stderr
