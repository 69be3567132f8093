"""The model folder that a run leaves."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GPTNeoXConfig

from neoxkit.data.conversation import Names
from neoxkit.models import sharing
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TrainSettings


def test_a_model_can_be_read_by_older_tools_and_is_the_same_to_newer_ones(tmp_path: Path) -> None:
    """Use rotary settings that differ from the defaults, which a reader would fall back to."""
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    GPTNeoXConfig(hidden_size=8, num_attention_heads=1, rope_parameters=rope).save_pretrained(
        tmp_path
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.save_pretrained(tmp_path)
    sharing.for_older_readers(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 5000.0)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named == "PreTrainedTokenizerFast"
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope
    text = "User: Hi!\n\nAgent: 1, 2.<|endoftext|>"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("name", ["GPTNeoXTokenizer", "GPT2Tokenizer"])
def test_files_that_older_tools_can_read_are_left_alone(tmp_path: Path, name: str) -> None:
    """Adapters are left alone too: they have no model configuration."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    before = [(p.name, p.read_bytes()) for p in tmp_path.iterdir()]
    sharing.for_older_readers(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == before


def test_a_card_does_not_name_this_machines_folders(tmp_path: Path) -> None:
    """The base and the text may be anywhere; a pushed card names neither place."""
    base = tmp_path / "secret" / "base"
    base.mkdir(parents=True)
    facts = {
        "base": str(base), "lora_rank": 0, "from_scratch": False, "eval_loss": 1000.0,
        "block_size": 280, "agent_name": "Joi", "user_name": "User", "step": 3, "trained_tokens": 9,
        "train_seconds": 1.5, "precision": "fp32", "warnings": [],
    }  # fmt: skip
    source = {"path": str(tmp_path / "secret" / "mine.txt"), "sha256": "abc"}
    manifest = {"source": source, "sides": {"train": {"conversations": 7}}, "train_on": "agent"}
    card = sharing.card(facts, manifest, dict.fromkeys(TrainSettings.with_role("card"), 1))
    assert card.startswith("---\nlibrary_name: transformers\n") and "base_model" not in card
    assert "# base, fine-tuned on mine.txt" in card and "`Joi:`" in card
    assert "secret" not in card and "transformers 5." in card
    facts["base"] = "EleutherAI/pythia-70m"
    card = sharing.card(facts, manifest, dict.fromkeys(TrainSettings.with_role("card"), 1))
    assert "base_model: EleutherAI/pythia-70m" in card and "Warning" not in card
    facts["warnings"] = ["the train loss rose"]
    card = sharing.card(facts, manifest, dict.fromkeys(TrainSettings.with_role("card"), 1))
    assert "\n\n**Warning.** the train loss rose\n\n**Data.**" in card


def test_the_cards_program_prints_one_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def pipeline(task: str, model: str) -> Any:
        def ask(chat: list, stop_strings: str, tokenizer: str, **_: Any) -> list[dict]:
            assert (chat[0]["role"], stop_strings, tokenizer) == ("user", "\n\nUser:", "its own")
            said = {"role": "assistant", "content": " Hello.\n\nUser:"}
            return [{"generated_text": [*chat, said]}]

        ask.tokenizer = "its own"
        assert (task, model) == ("text-generation", 'a "folder" 😀')
        return ask

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(pipeline=pipeline))
    exec(sharing.usage('a "folder" 😀', Names()), {})
    assert capsys.readouterr().out == "Hello.\n"
