"""Replies are the kit's own: what a base's generation_config.json says changes none of them."""

import json
import shutil
from pathlib import Path

import pytest
from odd_models import GENERATION, generates
from transformers import PreTrainedTokenizerBase

from neoxkit.data.conversation import Names
from neoxkit.evaluation.evaluate import Evaluation
from neoxkit.lab.chat import Chat
from neoxkit.models import generation, loading, lora
from neoxkit.models.generation import Reply
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import EvaluateSettings

PROMPTS = ["User: Hi.\n\nAgent:", "User: What is 3 plus 4?\n\nAgent:"]
TOKENIZER = loading.load_tokenizer("tiny")


def replies(model: object, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> list[Reply]:
    return generation.reply(model, tokenizer, PROMPTS, Names(), max_new_tokens=12)


@pytest.fixture(scope="module")
def expected() -> list[Reply]:
    found = replies(loading.load_model("tiny"))
    assert all(reply.ended == "ran on" and reply.text for reply in found)
    return found


@pytest.fixture
def odd(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the built-in model whose folder asks for other replies."""
    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder(), folder)
    generates(**GENERATION[request.param])(folder)
    return folder


@pytest.mark.parametrize("odd", GENERATION, indirect=True)
def test_greedy_is_greedy_whatever_the_base_says(odd: Path, expected: list[Reply]) -> None:
    assert replies(loading.load_model(str(odd))) == expected


@pytest.mark.parametrize("odd", ["suppressed tokens"], indirect=True)
def test_adapters_on_such_a_base_and_the_chat_box_reply_the_same(
    odd: Path, tmp_path: Path, expected: list[Reply]
) -> None:
    adapted = lora.add(loading.load_model(str(odd)), 2, str(odd), checkpointing=False)
    assert replies(adapted) == expected
    settings = EvaluateSettings(max_new_tokens=12)
    pair = Evaluation(settings, tmp_path, {}, TOKENIZER, Names(), [], [], 0, "here")
    pair.tuned_model = loading.load_model(str(odd))
    assert pair.ask("Hi.") == expected[0]
    box = Chat(pair)
    assert box._answer(pair.tuned_model, PROMPTS[0], lambda _: None) == expected[0]


def test_the_kits_own_settings_are_these_and_no_others(tmp_path: Path) -> None:
    generation.plain(TOKENIZER).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    del said["transformers_version"]
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    assert said == {"do_sample": False, **ids}
