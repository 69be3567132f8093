"""The model folder that a run leaves."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, BambaConfig, BloomConfig, GPTNeoXConfig

from neoxkit.data.conversation import Names
from neoxkit.errors import UserError
from neoxkit.models import configs, loading, sharing
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TrainSettings
from neoxkit.training import export


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
        "revision": "", "base_commit": "",
        "block_size": 280, "agent_name": "Joi", "user_name": "User", "step": 3, "model_step": 3,
        "trained_tokens": 9,
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
    assert "Base: `EleutherAI/pythia-70m`.\n" in card
    facts |= {"revision": "step3000", "base_commit": "0123abcd"}
    card = sharing.card(facts, manifest, dict.fromkeys(TrainSettings.with_role("card"), 1))
    assert "`EleutherAI/pythia-70m`, revision `step3000`, commit `0123abcd`.\n" in card
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


def test_the_cards_program_stops_at_any_name(capsys: pytest.CaptureFixture) -> None:
    program = sharing.usage("here", Names("Joi", "Ü 😀")).splitlines()
    exec(f"{program[4]}\nprint(end)")
    assert program[4].startswith("end = ") and capsys.readouterr().out == "\n\nÜ 😀:\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the built-in model."""
    return Path(shutil.copytree(tiny_folder(), tmp_path / "base"))


def configure(base: Path, **values: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))


def rehearse(base: Path) -> None:
    export.rehearse(str(base), loading.load_tokenizer(str(base)), Names())


def test_what_the_export_writes_is_tried_and_leaves_nothing(base: Path) -> None:
    tokenizer, before = loading.load_tokenizer(str(base)), sorted(base.iterdir())
    length, template = tokenizer.model_max_length, tokenizer.chat_template
    export.rehearse(str(base), tokenizer, Names())
    assert (tokenizer.model_max_length, tokenizer.chat_template) == (length, template)
    assert sorted(base.iterdir()) == before


def test_a_family_without_a_limit_of_positions_is_exported(base: Path, tmp_path: Path) -> None:
    BloomConfig(vocab_size=1024, hidden_size=32, n_layer=2, n_head=2).save_pretrained(base)
    rehearse(base)
    config = configs.config_of(str(base))
    assert configs.positions(config) is None
    for limit, length in ((None, int(1e30)), (77, 77)):
        config.max_position_embeddings = limit
        sharing.write_tokenizer(loading.load_tokenizer(str(base)), config, tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == length


def test_a_base_whose_rotary_settings_can_not_be_written_is_refused(base: Path) -> None:
    scaled = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4}
    scaled |= {"long_factor": [2.0] * 4, "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    configure(base, rope_parameters=scaled)
    with pytest.raises(UserError, match="no names for the rotary settings of a gpt_neox of rope_"):
        rehearse(base)


def test_a_base_whose_rotary_settings_are_read_otherwise_is_refused(base: Path) -> None:
    """Bamba takes its own share of rotated dimensions when there are older names beside."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    BambaConfig(rope_parameters=rope).save_pretrained(base)
    with pytest.raises(
        UserError, match="the rotary settings of a bamba are read otherwise than written"
    ):
        rehearse(base)


def test_a_tokenizer_that_is_read_otherwise_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["normalizer"] = {"type": "Lowercase"}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    monkeypatch.setattr(sharing, "for_older_readers", lower)
    with pytest.raises(UserError, match="the tokenizer of this base is read otherwise than wri"):
        rehearse(base)


def test_whatever_else_can_not_be_written_is_refused_in_a_line(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AttributeError("no such thing\nat all")

    monkeypatch.setattr(sharing, "write_tokenizer", fail)
    with pytest.raises(UserError) as refused:
        rehearse(base)
    assert str(refused.value) == (
        "model_name_or_path: a model/ of this base can't be written (no such thing) -- start from "
        "another model"
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_training_that_ended_early_is_not_finished(tmp_path: Path, first: bool) -> None:
    state = SimpleNamespace(global_step=3, max_steps=8, is_world_process_zero=first)
    with pytest.raises(RuntimeError, match="the training ended at step 3 of 8"):
        export.finish(
            SimpleNamespace(state=state, stopped_early=lambda: 0), None, None, {}, tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_gets_the_tokenizers_ids(base: Path) -> None:
    """Without padding in the tokenizer there is none: its embedding would not be trained."""
    configure(base, eos_token_id=7, bos_token_id=8, pad_token_id=9)
    model, tokenizer = loading.load_model(str(base)), loading.load_tokenizer(str(base))
    sharing.make_own(model, tokenizer)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 1)
    tokenizer.pad_token = None
    sharing.make_own(model, tokenizer)
    assert config.pad_token_id is None and model.generation_config.pad_token_id == 0
