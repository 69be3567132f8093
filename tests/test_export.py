"""The model folder a run leaves."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GPTNeoXConfig

from neoxkit import export
from neoxkit.tiny import tiny_folder


def test_a_model_can_be_read_by_older_tools_and_is_the_same_to_newer_ones(tmp_path: Path) -> None:
    """Rotary settings that are not the defaults, which a reader that misses them would take."""
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    GPTNeoXConfig(hidden_size=8, num_attention_heads=1, rope_parameters=rope).save_pretrained(
        tmp_path
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.save_pretrained(tmp_path)
    export.for_older_readers(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 5000.0)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named == "PreTrainedTokenizerFast"
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope
    text = "User: Hi!\n\nAgent: 1, 2.<|endoftext|>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("name", ["GPTNeoXTokenizer", "GPT2Tokenizer"])
def test_what_older_tools_can_read_already_is_left_alone(tmp_path: Path, name: str) -> None:
    """And adapters, which have no configuration of a model."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    before = [(p.name, p.read_bytes()) for p in tmp_path.iterdir()]
    export.for_older_readers(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == before
