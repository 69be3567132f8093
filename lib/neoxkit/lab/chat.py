"""Talk to the base and the tuned model, side by side, in a notebook."""

import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from neoxkit.lab import frontend
from neoxkit.lab.side import Model, Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neoxkit.evaluation.evaluate import Evaluation
    from neoxkit.models.generation import Reply

KEPT = "chat.txt"  # kept conversations, in the run's folder
# On Enter the browser sends the key first and what was typed after it, in the same instant; nothing
# follows if that was sent before (on leaving the field).
TYPED_SECONDS = 0.3
MOST_TOKENS = 100_000  # a reply longer than the model's positions is refused when it is asked for


class Chat:
    """A box that puts a question to both models at the same time (the base is loaded at the first
    one), with fields for the length and the temperature of their replies.

    The models answer in threads of their own, so that the buttons work meanwhile.
    """

    def __init__(self, evaluation: "Evaluation") -> None:
        settings, names = evaluation.settings, evaluation.names
        self._seed, self._names = settings.seed, names
        models: dict[str, Model] = {
            "base": cache(lambda: evaluation.load("base")),
            "tuned": lambda: evaluation.tuned_model,
        }
        file = evaluation.folder / KEPT
        self.sides = [Side(name, model, file, names) for name, model in models.items()]
        # One each: a call of a tokenizer may set how it splits special tokens, for all threads.
        self._tokenizers = [cache(partial(deepcopy, evaluation.tokenizer)) for _ in self.sides]
        self._asked: list[str] = []
        self._lock, self._typed, self._stopped = (
            threading.Lock(), threading.Event(), threading.Event()
        )  # fmt: skip
        self._round: threading.Thread | None = None  # while the models answer
        self._make_fields(settings.max_new_tokens, settings.temperature * settings.do_sample)
        self._make_buttons()
        self._enable()
        row = {"flex_flow": "row wrap"}
        self.box = widgets.VBox(
            [
                widgets.HBox([self.length, self.temperature], layout=row),
                widgets.HBox([side.box for side in self.sides]),
                widgets.HBox(
                    [self.question, self.send, self.stop, self.undo, self.clear], layout=row
                ),
            ]
        )

    def _make_fields(self, longest: int, temperature: float) -> None:
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "18em"}}
        self.length = widgets.BoundedIntText(
            value=longest, min=1, max=MOST_TOKENS, description="longest reply (tokens)", **wide
        )
        self.temperature = widgets.BoundedFloatText(
            value=temperature, min=0, max=100, step=0.1, description="temperature (0: greedy)",
            **wide,
        )  # fmt: skip
        self.question = widgets.Text(
            placeholder="Ask both models", description="question", continuous_update=False,
            style={"description_width": "initial"}, layout={"flex": "1 1 20em"},
        )  # fmt: skip
        self.question.observe(lambda _: self._typed.set(), "value")
        self.question.on_msg(self._on_key)

    def _make_buttons(self) -> None:
        def button(name: str, tooltip: str, act: Callable[[], object]) -> widgets.Button:
            made = widgets.Button(description=name, tooltip=tooltip, layout={"width": "5em"})
            made.on_click(lambda _: act())
            return made

        self.send = button("Send", "Ask both models (Enter)", self._send)
        self.stop = button("Stop", "End both replies here", self._stop)
        self.undo = button("Undo", "Take back the last question", self._undo)
        self.clear = button("Clear", "Start a new conversation", self._clear)

    def show(self) -> "Chat":
        """Display the box; return itself."""
        frontend.show(self.box, "(chat box, with a kernel)")
        return self

    def ask(self, question: str) -> None:
        """Let both models answer; return at once. While they answer, nothing else is asked."""
        self._begin(lambda: question)

    def wait(self) -> None:
        """Wait until both models have answered."""
        if answering := self._round:
            answering.join()

    def _on_key(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("event") == "submit":  # Enter
            self._typed.clear()
            self._begin(self._once_typed)

    def _once_typed(self) -> str:
        self._typed.wait(TYPED_SECONDS)
        return self.question.value

    def _send(self) -> None:
        self._begin(lambda: self.question.value)
        self.question.focus()

    def _begin(self, question: Callable[[], str]) -> None:
        """Begin a round, unless one is going on: buttons may be handled in several threads."""
        with self._lock:
            if self._round:
                return
            self._round = threading.Thread(target=self._answer_all, args=(question,), daemon=True)
        self._stopped.clear()
        self._enable()
        self._round.start()

    def _answer_all(self, question: Callable[[], str]) -> None:
        try:
            if text := question().strip():
                self.question.value = ""
                self._asked.append(text)
                self._put(text)
        finally:
            self._round = None
            self._enable()

    def _put(self, question: str) -> None:
        """Put a question to both models at the same time; those for which the memory did not
        suffice answer after the other."""
        sampled = self.temperature.value > 0
        options = {
            "max_new_tokens": self.length.value,
            "do_sample": sampled,
            "temperature": self.temperature.value if sampled else 1.0,
        }
        answers = [
            partial(self._answer, tokenizer, seed=self._seed + i, **options)
            for i, tokenizer in enumerate(self._tokenizers)
        ]
        asks = [
            partial(side.ask, question, answer)
            for side, answer in zip(self.sides, answers, strict=True)
        ]
        self._seed += sampled * len(asks)  # the same question sampled again gets another answer
        done = _at_once(asks)
        for i in reversed(range(len(asks))):  # tuned first
            if not done[i]:
                self.sides[i].undo()
                asks[i]()

    def _answer(
        self,
        tokenizer: "Callable[[], PreTrainedTokenizerBase]",
        model: "PreTrainedModel",
        asked: str,
        show: Callable[[str], None],
        **options: Any,
    ) -> "Reply":
        from neoxkit.models import generation

        if self._stopped.is_set():  # while the model was loaded
            return generation.Reply("", generation.STOPPED, 0)
        (said,) = generation.reply(
            model, tokenizer(), [asked], self._names,
            growing=show, stop=self._stopped.is_set, **options,
        )  # fmt: skip
        return said

    def _stop(self) -> None:
        self._stopped.set()
        self.stop.disabled = True
        self.question.focus()

    def _undo(self) -> None:
        """Take back the last question on both sides; it is in the field again if that is empty."""
        if self.undo.disabled:  # a second click, on its way when the first was handled
            return
        last = self._asked.pop()
        self.question.value = self.question.value or last
        for side in self.sides:
            side.undo()
        self._enable()
        self.question.focus()

    def _clear(self) -> None:
        if self.clear.disabled:
            return
        self._asked.clear()
        for side in self.sides:
            side.clear()
        self._enable()
        self.question.focus()

    def _enable(self) -> None:
        """Enable the buttons that mean something now."""
        with self._lock:
            answering = self._round is not None
            self.stop.disabled = not answering
            self.undo.disabled = self.clear.disabled = answering or not self._asked
            for button in (self.send, *(side.keep for side in self.sides)):
                button.disabled = answering


def _at_once(calls: Sequence[Callable[[], bool]]) -> list[bool]:
    """Make calls in threads of their own, which end with the kernel; return their results."""
    results = [True] * len(calls)

    def call(number: int) -> None:
        results[number] = calls[number]()

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
