"""chat.py without a browser: what both models are asked, what is shown, and what is kept."""

from pathlib import Path

import pytest
import torch

from neoxkit.data import reading
from neoxkit.data.conversation import Conversation, Names, Turn, prompt
from neoxkit.evaluation.evaluate import Evaluation
from neoxkit.lab import chat
from neoxkit.models import generation, loading
from neoxkit.settings import TINY, EvaluateSettings

TOKENIZER = loading.load_tokenizer(TINY)
SETTINGS = EvaluateSettings(max_new_tokens=6)
JOI = Names("Joi")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return loading.for_inference(TINY, "float32")


def evaluation(model: torch.nn.Module, folder: Path, settings: EvaluateSettings) -> Evaluation:
    """Make an evaluation whose models are both this one."""
    made = Evaluation(settings, folder, {}, TOKENIZER, JOI, [], [], 0, "here")
    made.load = lambda which: {"base": model}[which]
    made.tuned_model = model
    return made


@pytest.fixture
def box(model: torch.nn.Module, tmp_path: Path) -> chat.Chat:
    return chat.Chat(evaluation(model, tmp_path, SETTINGS))


def test_a_growing_reply_ends_as_the_reply_itself(model: torch.nn.Module) -> None:
    for seed in range(3):
        options = {"max_new_tokens": 12, "do_sample": True, "seed": seed}
        grown: list[str] = []
        asked = ["User: Hi\n\nJoi:"]
        (said,) = generation.reply(model, TOKENIZER, asked, JOI, **options, growing=grown.append)
        assert [said] == generation.reply(model, TOKENIZER, asked, JOI, **options)
        assert grown[-1] == said.text and len(grown) > 1


def test_both_models_are_asked_with_all_turns_so_far(
    box: chat.Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(
        model: object, tokenizer: object, prompts: list[str], names: object, **_: object
    ) -> list:
        asked.append(prompts[0])
        return [generation.Reply(f"r{len(asked)}", "end mark", 1)]

    monkeypatch.setattr(generation, "reply", answer)
    box.question.value = "  One? "
    assert box.question.value == ""
    box.question.value = "Two?"
    first = [Turn("user", "One?")]
    for at, side in enumerate(box.sides):
        said = [*first, Turn("agent", f"r{at + 1}"), Turn("user", "Two?")]
        assert asked[at] == prompt(Conversation(0, tuple(first)), JOI)
        assert asked[at + 2] == prompt(Conversation(0, tuple(said)), JOI)
        assert side.turns == [*said, Turn("agent", f"r{at + 3}")]
    box.question.value = "   "
    assert len(asked) == 4
    box.box.children[0].children[2].click()  # a new conversation
    assert all(side.turns == [] for side in box.sides)


def test_the_base_is_loaded_once_at_the_first_question(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [generation.Reply("Yes.", "end mark", 1)]
    monkeypatch.setattr(generation, "reply", lambda *_, **__: said)
    asked, loaded = evaluation(model, tmp_path, SETTINGS), []
    asked.load = lambda which: loaded.append(which) or model
    box = chat.Chat(asked)
    assert loaded == []
    for question in ("One?", "Two?"):
        box.ask(question)
    assert loaded == ["base"]


def test_everything_is_escaped(box: chat.Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    said = generation.Reply(hostile, "ran on", 1)
    monkeypatch.setattr(generation, "reply", lambda *_, growing, **__: growing(hostile) or [said])
    box.question.value = hostile
    for side in box.sides:
        assert "<script" not in side.shown.value
        assert side.shown.value.count("&lt;script&gt;alert(1)&lt;/script&gt;‹U+202E›") == 2
        assert "cut at the longest reply" in side.shown.value


def test_a_kept_conversation_can_be_read_again(box: chat.Chat, tmp_path: Path) -> None:
    side = box.sides[1]
    side.keep_it()
    assert "nothing was said" in side.shown.value and not (tmp_path / "chat.txt").exists()
    for name in ("Hi", "What?"):
        side.turns += [Turn("user", name), Turn("agent", f"{name}, you say.\n\nWell.")]
    side.keep_it()
    side.keep_it()
    found = reading.read(tmp_path / "chat.txt")
    assert found.names.agent == "Joi"
    assert [c.turns for c in found.conversations] == [tuple(side.turns)] * 2
    side.turns.append(Turn("agent", ""))
    side.keep_it()
    assert "a turn is empty" in side.shown.value
    assert len(reading.read(tmp_path / "chat.txt").conversations) == 2


def test_temperature_zero_is_greedy_and_above_it_varies(box: chat.Chat) -> None:
    assert box.temperature.value == 0
    side = box.sides[0]
    for _ in range(2):
        side.ask("Hi", box._answer)
        side.turns = side.turns[-1:]
    assert side.turns == side.turns[:1]
    greedy = {
        generation.reply(side.model(), TOKENIZER, ["User: Hi\n\nJoi:"], JOI, max_new_tokens=6)[0]
    }
    box.temperature.value = 1.5
    asked = "User: Hi\n\nJoi:"
    assert len({box._answer(side.model(), asked, lambda _: None) for _ in range(4)} | greedy) > 2


def test_a_parameter_outside_the_sliders_range_widens_it(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    settings = EvaluateSettings(max_new_tokens=2000, do_sample=True, temperature=3.5)
    wide = chat.Chat(evaluation(model, tmp_path, settings))
    assert (wide.length.value, wide.temperature.value) == (2000, 3.5)
