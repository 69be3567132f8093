"""Talk to the base and the tuned model, side by side, in a notebook."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from neoxkit import paths
from neoxkit.data.conversation import Conversation, Names, Turn, prompt, render
from neoxkit.lab import frontend, view
from neoxkit.settings import END_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoxkit.evaluation.evaluate import Evaluation
    from neoxkit.models.generation import Reply

KEPT = "chat.txt"  # kept conversations, in the run's folder
_TURN = "white-space:pre-wrap;margin:4px 0;padding:4px 8px;border-radius:6px"
_COLOURS = {"user": "background:rgba(128,128,128,0.18)", "agent": "background:rgba(0,114,178,0.22)"}
_ENDINGS = {
    "ran on": "cut at the longest reply",
    "too long": "no room left: choose a shorter reply, or start a new conversation",
}

Model = Callable[[], Any]  # loads the model at the first question


class Side:
    """One model's conversation, drawn as it grows."""

    def __init__(self, name: str, model: Model, file: Path, names: Names) -> None:
        self.name, self.model, self.names = name, model, names
        self.turns: list[Turn] = []
        self.note, self._file = "", file
        self.shown = widgets.HTML()
        self.keep = widgets.Button(
            description="Keep", tooltip=f"Add this conversation to {paths.short(file)}"
        )
        self.keep.on_click(lambda _: self.keep_it())
        self.box = widgets.VBox([self.shown, self.keep], layout={"width": "50%"})
        self.draw()

    def draw(self, growing: str | None = None) -> None:
        """Show the turns, and a reply that is still growing."""
        turns = self.turns + ([Turn("agent", f"{growing} ▌")] if growing is not None else [])
        body = "".join(
            f'<div style="{_TURN};{_COLOURS[turn.role]}">'
            f"<b>{view.escape(getattr(self.names, turn.role))}</b> {view.escape(turn.text)}</div>"
            for turn in turns
        )
        note = f"<div><i>{view.escape(self.note)}</i></div>" if self.note else ""
        self.shown.value = f"<b>{view.escape(self.name)}</b>{body}{note}"

    def ask(self, question: str, answer: "Callable[..., Reply]") -> None:
        """Add the question and the model's reply, which `answer` makes."""
        self.turns.append(Turn("user", question))
        self.note = ""
        self.draw("")
        asked = prompt(Conversation(0, tuple(self.turns)), self.names)
        said = answer(self.model(), asked, self.draw)
        self.turns.append(Turn("agent", said.text))
        self.note = _ENDINGS.get(said.ended, "" if said.text else "the reply is empty")
        self.draw()

    def clear(self) -> None:
        self.turns, self.note = [], ""
        self.draw()

    def keep_it(self) -> None:
        """Append the conversation to the file, in the format that 01_tokenize reads."""
        if not self.turns or not all(turn.text for turn in self.turns):
            self.note = "not kept: a turn is empty" if self.turns else "not kept: nothing was said"
        else:
            text, _ = render(Conversation(0, tuple(self.turns)), self.names)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{text}{END_MARK}\n")
            self.note = f"kept in {paths.short(self._file)}"
        self.draw()


class Chat:
    """A box that puts a question to both models (the base is loaded at the first one), with sliders
    for the length and the temperature of their replies."""

    def __init__(self, evaluation: "Evaluation") -> None:
        settings, names = evaluation.settings, evaluation.names
        self._tokenizer, self._seed, self._names = evaluation.tokenizer, settings.seed, names
        models: dict[str, Model] = {
            "base": cache(lambda: evaluation.load("base")),
            "tuned": lambda: evaluation.tuned_model,
        }
        file = evaluation.folder / KEPT
        self.sides = [Side(name, model, file, names) for name, model in models.items()]
        wide = {"style": {"description_width": "7em"}, "layout": {"width": "22em"}}
        temperature = settings.temperature if settings.do_sample else 0.0
        self.temperature = widgets.FloatSlider(
            value=temperature, min=0, max=max(2.0, temperature), step=0.1,
            description="temperature", tooltip="0: always the most likely token", **wide,
        )  # fmt: skip
        longest = settings.max_new_tokens
        self.length = widgets.IntSlider(
            value=longest, min=1, max=max(256, longest), description="longest reply", **wide
        )
        self.question = widgets.Text(
            placeholder="Ask both models, then press Enter", continuous_update=False,
            layout={"width": "98%"},
        )  # fmt: skip
        self.question.observe(lambda change: self.ask(change["new"]), "value")
        new = widgets.Button(description="Clear", tooltip="Start a new conversation")
        new.on_click(self._clear)
        self.box = widgets.VBox(
            [
                widgets.HBox(
                    [self.length, self.temperature, new], layout={"flex_flow": "row wrap"}
                ),
                widgets.HBox([side.box for side in self.sides]),
                self.question,
            ]
        )

    def show(self) -> "Chat":
        """Display the box; return itself."""
        frontend.show(self.box, "(chat box, with a kernel)")
        return self

    def ask(self, question: str) -> None:
        """Ask the models one after another; replies appear as they are generated."""
        if not question.strip():
            return
        self.question.value = ""
        for side in self.sides:
            side.ask(question.strip(), self._answer)

    def _clear(self, _: Any) -> None:
        for side in self.sides:
            side.clear()

    def _answer(self, model: "PreTrainedModel", asked: str, show: Callable[[str], None]) -> "Reply":
        from neoxkit.models import generation

        sampled = self.temperature.value > 0
        (said,) = generation.reply(
            model,
            self._tokenizer,
            [asked],
            self._names,
            max_new_tokens=self.length.value,
            do_sample=sampled,
            temperature=self.temperature.value if sampled else 1.0,
            seed=self._seed,
            growing=show,
        )
        self._seed += sampled  # the same question sampled again gets another answer
        return said
