"""One model's side of a chat: its conversation, drawn as it grows, and kept on demand."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from neoxkit import files, paths
from neoxkit.data.conversation import Conversation, Names, Turn, prompt, render
from neoxkit.errors import UserError, shorten
from neoxkit.lab import view
from neoxkit.models import memory
from neoxkit.settings import END_MARK

if TYPE_CHECKING:
    from neoxkit.models.generation import Reply

DRAWN_EVERY_SECONDS = 0.05  # while a reply grows; a small model makes 1,000 tokens a second
LOADING = "loading the model ..."
_TURN = "white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;padding:4px 8px;border-radius:6px"
_COLOURS = {"user": "background:rgba(128,128,128,0.18)", "agent": "background:rgba(0,114,178,0.22)"}
_ENDINGS = {
    "ran on": "cut at the longest reply",
    "too long": "no room left: choose a shorter reply, or start a new conversation",
    "stopped": "stopped",
}

Model = Callable[[], Any]  # loads the model at the first question
Answer = Callable[[Any, str, Callable[[str], None]], "Reply"]  # of a model, to a prompt, growing


class Side:
    """One model's conversation, drawn as it grows."""

    def __init__(self, name: str, model: Model, file: Path, names: Names) -> None:
        self.name, self.model, self.names = name, model, names
        self.turns: list[Turn] = []
        self.note, self._file = "", file
        self._before: list[list[Turn]] = []  # the turns before each question, for `undo`
        self._is_loaded, self._next_drawing = False, 0.0
        self.shown = widgets.HTML()
        self.keep = widgets.Button(
            description=f"Keep {name}", tooltip=f"Add this conversation to {paths.short(file)}"
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

    def ask(self, question: str, answer: Answer) -> bool:
        """Add the question and the model's reply, which `answer` makes; return False if the memory
        did not suffice, as it may when the other model does nothing.

        A question that is not answered is taken back, with the reason in the note.
        """
        self._before.append([*self.turns])
        self.turns.append(Turn("user", question))
        try:
            said = self._answered(answer)
        except Exception as fault:  # in a thread, nobody else would show it
            self._take_back(f"not answered: {_reason(fault)}")
            return not memory.ran_out(fault)
        if said.ended == "stopped" and not said.text:
            self._take_back("stopped before the first token")
            return True
        self.turns.append(Turn("agent", said.text))
        self.note = _ENDINGS.get(said.ended, "" if said.text else "the reply is empty")
        self.draw()
        return True

    def _answered(self, answer: Answer) -> "Reply":
        self.note = "" if self._is_loaded else LOADING
        self.draw("")
        model = self.model()
        self._is_loaded, self.note = True, ""
        return answer(model, prompt(Conversation(0, tuple(self.turns)), self.names), self._grow)

    def _grow(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next_drawing:
            self._next_drawing = now + DRAWN_EVERY_SECONDS
            self.draw(text)

    def _take_back(self, note: str) -> None:
        self.turns, self.note = [*self._before[-1]], note
        self.draw()

    def undo(self) -> None:
        """Go back to the turns before the last question."""
        self.turns, self.note = self._before.pop(), ""
        self.draw()

    def clear(self) -> None:
        """Begin a new conversation."""
        self.turns, self._before, self.note = [], [], ""
        self.draw()

    def keep_it(self) -> None:
        """Write the conversation into the file, in the format that 01_tokenize reads."""
        if self.keep.disabled:  # a click that was on its way when a question was asked
            return
        if not self.turns or not all(turn.text for turn in self.turns):
            self.note = "not kept: a turn is empty" if self.turns else "not kept: nothing was said"
        else:
            text, _ = render(Conversation(0, tuple(self.turns)), self.names)
            before = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
            after, done = with_kept(before, text)
            if after != before:
                files.write_text(self._file, after)
            self.note = f"{done} in {paths.short(self._file)}"
        self.draw()


def with_kept(kept: str, conversation: str) -> tuple[str, str]:
    """Return a file's text with a conversation, and what was done: a conversation that is there is
    not added again, and one that has grown takes the place of its beginning.

    >>> with_kept("User: a\\n\\nAgent: b<|endoftext|>\\n", "User: c\\n\\nAgent: d")[1]
    'kept'
    """
    end = f"{END_MARK}\n"
    pieces = kept.split(end)
    if conversation in pieces:
        return kept, "already kept"
    for i, piece in enumerate(pieces[:-1]):
        if piece and conversation.startswith(f"{piece}\n\n"):
            pieces[i] = conversation
            return end.join(pieces), "kept in place of its beginning"
    gap = "\n" if kept and not kept.endswith("\n") else ""  # after a person's own last line
    return f"{kept}{gap}{conversation}{end}", "kept"


def _reason(fault: Exception) -> str:
    """Return a failure in one line."""
    if memory.ran_out(fault):
        return "out of memory with both models loaded; choose a shorter reply, or press Clear"
    if isinstance(fault, UserError):
        return " ".join(str(fault).split("\n"))
    return f"{type(fault).__name__}: {shorten(str(fault))}"
