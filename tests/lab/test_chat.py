"""chat.py without a browser: what both models are asked, what is shown, and what is kept."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neoxkit.data import reading
from neoxkit.data.conversation import Conversation, Names, Turn, prompt
from neoxkit.errors import UserError
from neoxkit.evaluation.evaluate import Evaluation
from neoxkit.lab import chat, side
from neoxkit.models import generation, loading
from neoxkit.settings import TINY, EvaluateSettings

TOKENIZER = loading.load_tokenizer(TINY)
SETTINGS = EvaluateSettings(max_new_tokens=6)
JOI = Names("Joi")
PATIENCE_SECONDS = 60.0  # only what hangs takes this long


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return loading.for_inference(TINY, "float32")


def evaluation(base: object, tuned: object, folder: Path, settings: EvaluateSettings) -> Evaluation:
    """Make an evaluation of these two models."""
    made = Evaluation(settings, folder, {}, TOKENIZER, JOI, [], [], 0, "here")
    made.load = lambda which: {"base": base}[which]
    made.tuned_model = tuned
    return made


@pytest.fixture
def box(model: torch.nn.Module, tmp_path: Path) -> chat.Chat:
    return chat.Chat(evaluation(model, model, tmp_path, SETTINGS))


class Paced:
    """A model that says "a b c ..." and makes a token each time it is let."""

    config = SimpleNamespace()
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.let, self.made = threading.Semaphore(0), threading.Semaphore(0)

    def generate(
        self, input_ids: torch.Tensor, streamer: Any, max_new_tokens: int, stopping_criteria: Any,
        **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        streamer.put(input_ids)
        for token in TOKENIZER(" a b c d e f g h")["input_ids"][:max_new_tokens]:
            assert self.let.acquire(timeout=PATIENCE_SECONDS)
            input_ids = torch.cat([input_ids, torch.tensor([[token]])], -1)
            streamer.put(torch.tensor([token]))
            self.made.release()
            if all(bool(ends(input_ids, None).all()) for ends in stopping_criteria):
                break
        return input_ids

    def make(self, tokens: int) -> None:
        """Let it make tokens, and wait until they are shown."""
        for _ in range(tokens):
            self.let.release()
            assert self.made.acquire(timeout=PATIENCE_SECONDS)

    def finish(self) -> None:
        self.let.release(100)


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[chat.Chat, Paced, Paced]:
    """Make a box, and its base and tuned model, whose pace the test sets."""
    monkeypatch.setattr(side, "DRAWN_EVERY_SECONDS", 0.0)
    base, tuned = Paced(), Paced()
    return chat.Chat(evaluation(base, tuned, tmp_path, SETTINGS)), base, tuned


def press_enter(box: chat.Chat) -> None:
    box.question._handle_custom_msg({"event": "submit"}, [])


def texts(box: chat.Chat) -> list[str]:
    return [one.shown.value for one in box.sides]


def says(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    """Let every model answer so: answer(prompt, growing)."""
    monkeypatch.setattr(
        generation, "reply", lambda m, t, prompts, n, **o: [answer(prompts[0], o["growing"])]
    )


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
    asked: list[str] = []

    def answer(question: str, _: object) -> generation.Reply:
        asked.append(question)
        return generation.Reply(f"to {question.split()[-2]}", "end mark", 1)

    says(monkeypatch, answer)
    box.question.value = "  One? "
    press_enter(box)
    box.wait()
    assert box.question.value == ""
    box.question.value = "Two?"
    box.send.click()
    box.wait()
    first = [Turn("user", "One?")]
    second = [*first, Turn("agent", "to One?"), Turn("user", "Two?")]
    expected = [prompt(Conversation(0, tuple(turns)), JOI) for turns in (first, second)]
    assert asked == [expected[0], expected[0], expected[1], expected[1]]
    assert all(one.turns == [*second, Turn("agent", "to Two?")] for one in box.sides)
    for nothing in ("", "   "):
        box.question.value = nothing
        press_enter(box)
        box.wait()
        box.send.click()
        box.wait()
    assert len(asked) == 4
    box.clear.click()
    assert all(one.turns == [] for one in box.sides)


def test_nothing_is_sent_by_leaving_the_field(
    box: chat.Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser sends the text when the field is left, and on Enter the key before the text."""
    asked: list[str] = []

    def answer(question: str, _: object) -> generation.Reply:
        asked.append(question)
        return generation.Reply("Yes.", "end mark", 1)

    says(monkeypatch, answer)
    box.question.value = "half a"
    box.question.set_state({"value": "half a quest"})  # as a message of the browser
    assert asked == [] and box.stop.disabled and not box.send.disabled
    assert box._round is None and box.question.value == "half a quest"
    press_enter(box)
    box.question.set_state({"value": "half a question?"})
    box.wait()
    assert asked == ["User: half a question?\n\nJoi:"] * 2 and box.question.value == ""


def test_both_replies_grow_at_the_same_time(paced: tuple[chat.Chat, Paced, Paced]) -> None:
    box, base, tuned = paced
    box.ask("Hi")
    for grown in ("a ▌", "a b ▌"):
        base.make(1)
        tuned.make(1)
        assert all(f"<b>Joi</b> {grown}" in text for text in texts(box))
    assert box.send.disabled and not box.stop.disabled
    assert box.undo.disabled and box.clear.disabled
    assert all(one.keep.disabled for one in box.sides)
    box.ask("And?")  # while they answer, nothing else is asked
    box.question.value = "And?"
    press_enter(box)
    box.undo.click()
    box.clear.click()
    box.sides[0].keep.click()
    tuned.finish()
    base.finish()
    box.wait()
    assert box.question.value == "And?"
    assert [one.turns for one in box.sides] == [
        [Turn("user", "Hi"), Turn("agent", "a b c d e f")]
    ] * 2
    assert not box.send.disabled and box.stop.disabled and not box.undo.disabled


def test_a_slow_base_keeps_the_tuned_model_from_nothing(
    paced: tuple[chat.Chat, Paced, Paced], monkeypatch: pytest.MonkeyPatch
) -> None:
    box, base, tuned = paced
    begun, loaded = threading.Event(), threading.Event()
    box.sides[0].model = lambda: begun.set() or (loaded.wait(PATIENCE_SECONDS) and base)
    box.ask("Hi")
    tuned.make(6)
    assert begun.wait(PATIENCE_SECONDS)
    assert side.LOADING in texts(box)[0] and "a b c d e f" in texts(box)[1]
    loaded.set()
    base.finish()
    box.wait()
    assert side.LOADING not in texts(box)[0] and "a b c d e f" in texts(box)[0]


def test_stop_ends_both_within_a_token_and_keeps_what_was_said(
    paced: tuple[chat.Chat, Paced, Paced], tmp_path: Path
) -> None:
    box, base, tuned = paced
    box.ask("Hi")
    base.make(3)
    tuned.make(1)
    box.stop.click()
    assert box.stop.disabled
    base.make(1)
    tuned.make(1)
    box.wait()
    assert [one.turns[-1].text for one in box.sides] == ["a b c d", "a b"]
    assert all(text.endswith("<div><i>stopped</i></div>") for text in texts(box))
    box.sides[1].keep.click()
    assert reading.read(tmp_path / "chat.txt").conversations[0].turns == tuple(box.sides[1].turns)
    box.ask("More?")  # and the next one is not stopped
    base.finish()
    tuned.finish()
    box.wait()
    assert [one.turns[-1].text for one in box.sides] == ["a b c d e f"] * 2


def test_stop_while_the_base_is_loaded_takes_the_question_back(
    paced: tuple[chat.Chat, Paced, Paced],
) -> None:
    box, base, tuned = paced
    box.sides[0].model = lambda: box.stop.click() or base
    box.ask("Hi")
    tuned.finish()
    box.wait()
    assert box.sides[0].turns == [] and "stopped before the first token" in texts(box)[0]


def test_undo_takes_back_the_last_question_of_both_and_puts_it_into_the_field(
    paced: tuple[chat.Chat, Paced, Paced],
) -> None:
    box, base, tuned = paced
    assert box.undo.disabled
    base.finish()
    tuned.finish()
    for question in ("One?", "Two?"):
        box.ask(question)
        box.wait()
    box.undo.click()
    assert box.question.value == "Two?"
    assert [one.turns for one in box.sides] == [
        [Turn("user", "One?"), Turn("agent", "a b c d e f")]
    ] * 2
    box.undo.click()
    assert box.question.value == "Two?"  # what is in the field is not overwritten
    assert all(one.turns == [] for one in box.sides) and box.undo.disabled
    box.undo.click()
    box.ask("One?")
    box.wait()
    box.clear.click()
    assert box.undo.disabled


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (RuntimeError("It broke.\nA trace"), "not answered: RuntimeError: It broke."),
        (UserError("model", "is gone", "train it"), "not answered: model: is gone -- train it"),
        (KeyError("<b>"), "not answered: KeyError: &#x27;&lt;b&gt;&#x27;"),
    ],
)
def test_a_failure_is_shown_on_its_side_in_one_line(
    paced: tuple[chat.Chat, Paced, Paced], fault: Exception, shown: str
) -> None:
    box, _, tuned = paced

    def fail() -> None:
        raise fault

    box.sides[0].model = fail
    tuned.finish()
    box.ask("Hi")
    box.wait()
    assert box.sides[0].turns == [] and f"<div><i>{shown}</i></div>" in texts(box)[0]
    assert box.sides[1].turns[-1].text == "a b c d e f" and not box.send.disabled
    box.undo.click()  # a question that one side did not answer is taken back on the other
    assert box.question.value == "Hi" and box.sides[1].turns == []


@pytest.mark.parametrize("fails", [1, 2])
def test_without_memory_for_both_the_base_answers_after_the_tuned_model(
    paced: tuple[chat.Chat, Paced, Paced], fails: int
) -> None:
    box, base, tuned = paced
    tries: list[list[Turn]] = []

    def load() -> Paced:
        tries.append([*box.sides[1].turns])
        if len(tries) <= fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return base

    box.sides[0].model = load
    box.ask("Hi")
    base.finish()
    tuned.finish()
    box.wait()
    assert len(tries) == 2 and tries[1][-1] == Turn("agent", "a b c d e f")
    assert ("a b c d e f" in texts(box)[0]) == (fails == 1)
    assert ("not answered: out of memory" in texts(box)[0]) == (fails == 2)
    box.undo.click()
    assert all(one.turns == [] for one in box.sides)


def test_the_base_is_loaded_once_at_the_first_question(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, lambda *_: generation.Reply("Yes.", "end mark", 1))
    asked, loaded = evaluation(model, model, tmp_path, SETTINGS), []
    asked.load = lambda which: loaded.append(which) or model
    box = chat.Chat(asked)
    assert loaded == []
    for question in ("One?", "Two?"):
        box.ask(question)
        box.wait()
    assert loaded == ["base"]


def test_each_model_has_a_tokenizer_of_its_own(
    box: chat.Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call sets how a tokenizer splits special tokens, for every thread that uses it."""
    used: list[object] = [TOKENIZER]

    def reply(model: object, tokenizer: object, *_: object, **__: object) -> list[Any]:
        used.append(tokenizer)
        return [generation.Reply("Yes.", "end mark", 1)]

    monkeypatch.setattr(generation, "reply", reply)
    for _ in range(2):
        box.ask("Hi")
        box.wait()
    assert len(used) == 5 and len({id(one) for one in used}) == 3


def test_everything_is_escaped(box: chat.Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    said = generation.Reply(hostile, "ran on", 1)
    says(monkeypatch, lambda _, growing: growing(hostile) or said)
    box.ask(hostile)
    box.wait()
    for text in texts(box):
        assert "<script" not in text
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;‹U+202E›") == 2
        assert "cut at the longest reply" in text


def turns(*said: str) -> list[Turn]:
    return [Turn("agent" if i % 2 else "user", text) for i, text in enumerate(said)]


def kept(folder: Path) -> list[tuple[Turn, ...]]:
    found = reading.read(folder / "chat.txt")
    assert found.names.agent == "Joi"
    return [c.turns for c in found.conversations]


def test_a_kept_conversation_can_be_read_again(box: chat.Chat, tmp_path: Path) -> None:
    one = box.sides[1]
    one.keep.click()
    assert "nothing was said" in one.shown.value and not (tmp_path / "chat.txt").exists()
    one.turns = turns("Hi", "Hi, you say.\n\nWell.")
    one.keep.click()
    assert one.note.startswith("kept in ") and kept(tmp_path) == [tuple(one.turns)]
    one.turns.append(Turn("agent", ""))
    one.keep.click()
    assert "a turn is empty" in one.shown.value and len(kept(tmp_path)) == 1


def test_a_conversation_is_kept_once_and_grows(box: chat.Chat, tmp_path: Path) -> None:
    base, tuned = box.sides
    tuned.turns = first = turns("Hi", "Yes?")
    base.turns = other = turns("Hi", "Yes? No.")
    for one in (tuned, base, tuned):
        one.keep.click()
    assert tuned.note.startswith("already kept in ") and kept(tmp_path) == [(*first,), (*other,)]
    tuned.turns = grown = turns("Hi", "Yes?", "What?", "Nothing.")
    tuned.keep.click()
    assert tuned.note.startswith("kept in place of its beginning in ")
    assert kept(tmp_path) == [(*grown,), (*other,)]
    tuned.turns = branch = turns("Hi", "Yes?", "What?", "All.")  # after an Undo
    tuned.keep.click()
    assert tuned.note.startswith("kept in ")
    again = chat.Chat(evaluation(None, None, tmp_path, SETTINGS)).sides[0]  # after a restart
    again.turns = grown
    again.keep.click()
    assert again.note.startswith("already kept in ")
    assert kept(tmp_path) == [(*grown,), (*other,), (*branch,)]


def test_what_a_person_wrote_into_the_file_stays(box: chat.Chat, tmp_path: Path) -> None:
    (tmp_path / "chat.txt").write_text("User: mine\n\nJoi: yes")
    box.sides[0].turns = turns("Hi", "Yes?")
    box.sides[0].keep.click()
    text = (tmp_path / "chat.txt").read_text()
    assert text == "User: mine\n\nJoi: yes\nUser: Hi\n\nJoi: Yes?<|endoftext|>\n"


def replies(box: chat.Chat, question: str) -> list[str]:
    box.ask(question)
    box.wait()
    said = [one.turns[-1].text for one in box.sides]
    box.clear.click()
    return said


def test_temperature_zero_is_greedy_and_above_it_varies(
    box: chat.Chat, model: torch.nn.Module
) -> None:
    assert box.temperature.value == 0
    asked = ["User: Hi\n\nJoi:"]
    (greedy,) = generation.reply(model, TOKENIZER, asked, JOI, max_new_tokens=6)
    assert replies(box, "Hi") == replies(box, "Hi") == [greedy.text] * 2
    box.temperature.value = 1.5
    said = [*replies(box, "Hi"), *replies(box, "Hi")]
    assert len({*said, greedy.text}) > 2
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5}
    for seed, text in enumerate(said):  # those of models that answer one after the other
        (alone,) = generation.reply(model, TOKENIZER, asked, JOI, seed=seed, **options)
        assert text == alone.text


def test_any_parameter_is_a_value_of_its_field(model: torch.nn.Module, tmp_path: Path) -> None:
    settings = EvaluateSettings(max_new_tokens=2000, do_sample=True, temperature=3.5)
    wide = chat.Chat(evaluation(model, model, tmp_path, settings))
    assert (wide.length.value, wide.temperature.value) == (2000, 3.5)


def test_every_control_has_a_name(box: chat.Chat) -> None:
    controls = (
        box.question, box.length, box.temperature, box.send, box.stop, box.undo, box.clear,
        *(one.keep for one in box.sides),
    )  # fmt: skip
    names = [control.description for control in controls]
    assert all(names) and len({*names}) == len(names)
    assert all(control.tabbable is not False for control in controls)
