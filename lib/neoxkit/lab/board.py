"""All runs on one page: a table that keeps itself up to date, and the curves of chosen runs."""

import contextvars
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import display

from neoxkit.errors import UserError
from neoxkit.evaluation import compare_runs
from neoxkit.evaluation.compare_runs import Run
from neoxkit.lab import comparison, frontend, listing, view
from neoxkit.lab.view import View
from neoxkit.machine import duration
from neoxkit.runs.following import Follower, Seen

REFRESH_SECONDS = 2.0
READING_SECONDS = 0.3  # of runs that were never read; then the table is shown without the others
PATIENCE_SECONDS = 120.0  # without a run in training: a sweep pauses between two
DRAWING_SHARE = 0.05  # of one core at most: on a CPU, drawing slows training

_open: list["Board"] = []  # the one that is kept up to date, if any


def board() -> None:
    """Show every run below runs/, those in training first, and the curves of those that are chosen.

    The page refreshes itself, also while another cell runs, until no run has been in training for
    2 minutes, the browser is closed, or a board is opened again. Where nobody looks (papermill),
    the table is shown once.
    """
    if frontend.unattended() or not hasattr(get_ipython(), "kernel"):
        table, folded = listing.tables(Follower().look()[0])
        display(_stamp(time.time()) + table + folded)
    else:
        Board().follow()


def _stamp(looked: float, how: str = "") -> View:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(looked))
    return view.sentence(f"All runs as of {at}{how}.")


class Board:
    """The outputs of a board: time stamp, table, what is folded, the choice of curves, curves."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.looked, self.over = 0.0, threading.Event()
        self.over.set()
        self._follower, self._lock = Follower(), threading.RLock()
        self._quiet = self._is_chosen = False
        self._were_live: set[str] = set()
        self._loaded: dict[Seen, Run] = {}
        self._drawn: list[Seen] | None = None
        self._next_drawing, self._folded = 0.0, view.NOTHING
        self.boxes: dict[str, widgets.Checkbox] = {}  # a list's keys are those of the notebook
        self.choice = widgets.VBox(layout={"max_height": "11em", "overflow": "auto"})
        again = widgets.Button(description="Refresh", tooltip="Look again, and keep looking")
        again.on_click(self._guarded(lambda _: self.follow()))
        self._line, self._table, self._fold = (
            display(view.NOTHING, display_id=True) for _ in range(3)
        )
        box = widgets.VBox([widgets.Label("Curves of"), self.choice, again])
        frontend.show(box, "(a choice of curves, with a kernel)")
        self._curves = display(view.NOTHING, display_id=True)

    def follow(self) -> None:
        """Refresh now, and then in a thread, which ends with the kernel at the latest."""
        for other in [one for one in _open if one is not self]:
            other.end("a board was opened again")
        _open[:] = [self]
        left = self.refresh()
        if self.over.is_set():
            self.over = threading.Event()
            run = contextvars.copy_context().run  # what the thread shows belongs to this cell
            watch = self._guarded(self._watch)
            threading.Thread(target=run, args=(watch, self.over, left), daemon=True).start()

    def end(self, why: str, more: View = view.NOTHING) -> None:
        """Stop refreshing, and say why."""
        with self._lock:
            self.over.set()
            _open[:] = [one for one in _open if one is not self]
            self._line.update(_stamp(self.looked, f", no longer refreshed: {why}") + more)

    def refresh(self) -> int:
        """Look at all runs, and show what changed; return how many were not read yet."""
        with self._lock:
            self.seen, left = self._follower.look(READING_SECONDS)
            self.looked = time.time()
            how = f", {left:,} more to read" if left else ""
            self._line.update(
                _stamp(self.looked, f", refreshed every {REFRESH_SECONDS:.0f} s{how}")
            )
            table, folded = listing.tables(self.seen)
            self._table.update(table)
            if folded != self._folded:  # an update closes what a reader has opened
                self._folded = folded
                self._fold.update(folded)
            self._offer()
            if time.monotonic() >= self._next_drawing:
                self._draw()
        return left

    def _watch(self, over: threading.Event, left: int) -> None:
        live = time.monotonic()
        while not over.wait(0.05 if left else REFRESH_SECONDS):
            if not left and frontend.num_tabs() == 0:
                self.end("the browser was closed")
                return
            with self._lock:
                if over.is_set():
                    return
                left = self.refresh()
            if left or any(one.is_live for one in self.seen):
                live = time.monotonic()
            elif time.monotonic() - live > PATIENCE_SECONDS:
                self.end(f"no run has been in training for {duration(PATIENCE_SECONDS)}")

    def _guarded(self, act: Callable[..., None]) -> Callable[..., None]:
        """Show what goes wrong in a thread or a widget, where it would be lost."""

        def guarded(*values: Any) -> None:
            try:
                act(*values)
            except Exception as fault:
                known = isinstance(fault, UserError)
                told = "" if known else traceback.format_exc()
                what = str(fault) if known else f"{type(fault).__name__}: {fault}"
                self.end("it failed", view.alert([what]) + view.folded("where", told))

        return guarded

    def _offer(self) -> None:
        """Offer all runs with a curve, trials last. Until someone chooses, those are chosen that
        were seen in training; if none was, the newest."""
        runs = sorted((one for one in self.seen if one.losses), key=lambda o: o.standing.is_trial)
        self.boxes = {o.standing.run: self.boxes.get(o.standing.run) or self._box(o) for o in runs}
        if not self._is_chosen:
            names = [o.standing.run for o in runs if not o.standing.is_trial]
            self._were_live |= {o.standing.run for o in runs if o.is_live} & {*names}
            chosen = self._were_live & {*names} or names[:1]
            self._quiet = True
            for name, box in self.boxes.items():
                box.value = name in chosen
            self._quiet = False
        if self.choice.children != (children := tuple(self.boxes.values())):
            self.choice.children = children

    def _box(self, one: Seen) -> widgets.Checkbox:
        label = f"{one.standing.run} (a trial)" if one.standing.is_trial else one.standing.run
        layout = {"width": "auto", "flex": "0 0 auto"}
        box = widgets.Checkbox(False, description=view.visible(label), indent=False, layout=layout)
        box.observe(self._guarded(self._choose), "value")
        return box

    def _choose(self, _: Any) -> None:
        if not self._quiet:
            self._is_chosen = True
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        """Draw the chosen runs, each in the same colour as long as the choice is the same."""
        picked = {name for name, box in self.boxes.items() if box.value}
        chosen = [one for one in self.seen if one.standing.run in picked]
        chosen.sort(key=lambda one: one.standing.run)
        if chosen == self._drawn:
            return
        began = time.monotonic()
        self._drawn, self._loaded = chosen, self._load(chosen)
        none = view.sentence("Choose runs above to see their curves.")
        self._curves.update(comparison.overlay([*self._loaded.values()]) if chosen else none)
        took = time.monotonic() - began
        self._next_drawing = began + took + took / DRAWING_SHARE

    def _load(self, chosen: Sequence[Seen]) -> dict[Seen, Run]:
        """Load the runs, of which only those that changed are read again."""
        return {one: self._loaded.get(one) or compare_runs.load_run(one.folder) for one in chosen}
