"""Replies are the kit's own: what a base's generation_config.json says changes none of them."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
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
    box.ask("Hi.")
    box.wait()
    assert box.sides[1].turns[-1].text == expected[0].text


def test_the_kits_own_settings_are_these_and_no_others(tmp_path: Path) -> None:
    generation.plain(TOKENIZER).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    del said["transformers_version"]
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    assert said == {"do_sample": False, **ids}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.8])
def test_sampled_replies_are_those_that_transformers_draws(temperature: float) -> None:
    model, options = loading.load_model("tiny"), {"max_new_tokens": 12, "temperature": temperature}
    before = torch.get_rng_state()
    found = generation.reply(model, TOKENIZER, PROMPTS, Names(), do_sample=True, seed=5, **options)
    assert torch.equal(torch.get_rng_state(), before)
    order = sorted(range(len(PROMPTS)), key=lambda i: len(TOKENIZER(PROMPTS[i])["input_ids"]))
    rows = [TOKENIZER(PROMPTS[i])["input_ids"] for i in order]
    ids, mask = generation._pad_left(rows, loading.pad_id(TOKENIZER))
    torch.manual_seed(5)
    drawn = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, **options)
    for i, row in zip(order, drawn[:, ids.shape[1] :].tolist(), strict=True):
        assert found[i] == generation._ended(TOKENIZER, Names(), row)
    torch.set_rng_state(before)


def test_threads_draw_what_they_draw_one_after_the_other() -> None:
    models = [(loading.load_model("tiny"), loading.load_tokenizer("tiny")) for _ in range(2)]
    met = threading.Barrier(2)

    def said(model: tuple[Any, Any], seed: int, growing: object = None) -> Reply:
        (one,) = generation.reply(
            *model, PROMPTS[:1], Names(),
            max_new_tokens=12, do_sample=True, temperature=1.5, seed=seed, growing=growing,
        )  # fmt: skip
        return one

    alone = [said(model, seed) for seed, model in enumerate(models)]
    with ThreadPoolExecutor(2) as pool:  # token by token, in step
        both = pool.map(said, models, range(2), [lambda _: met.wait(60)] * 2)
        assert [*both] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_stopped_reply_is_the_beginning_of_the_whole_one(
    tokens: int, expected: list[Reply]
) -> None:
    grown: list[str] = []
    (said,) = generation.reply(
        loading.load_model("tiny"), TOKENIZER, PROMPTS[:1], Names(),
        max_new_tokens=12, growing=grown.append, stop=lambda: len(grown) >= tokens,
    )  # fmt: skip
    assert said.ended == generation.STOPPED
    assert len(grown) == tokens + 1 and grown[-1] == said.text  # the token that was being made
    assert said.text and expected[0].text.startswith(said.text) and said.text != expected[0].text
