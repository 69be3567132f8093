"""dashboard.py without a browser: what the cell shows, what an interrupt and a closed tab do."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Outputs

from neoxkit import files
from neoxkit.errors import Stopped, TrainingError, UserError
from neoxkit.lab import dashboard, frontend
from neoxkit.lab.view import ALERT_COLOUR, NOTHING
from neoxkit.launch import process
from neoxkit.runs import checkpoints, heartbeat, lock
from neoxkit.runs.events import History, append_event
from neoxkit.runs.folder import FINISHED

START = {
    "step": 0, "resumed_step": 0, "planned_steps": 40, "matmul_peak_tflops": 0.1, "notices": [],
    "learning_rate": 3e-05, "conversations_a_step": 16, "block_size": 280,
}  # fmt: skip
TRAIN = {
    "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3, "tokens": 100, "trained_tokens": 50,
    "padding_share": 0.1, "memory_gib": 1.5, "memory_gib_by_rank": [1.25, 1.5], "seconds": 1.0,
    "tokens_per_second": 100.0, "tflop": 0.01, "mfu": 0.5,
}  # fmt: skip


STAMP = r" · at \d\d:\d\d:\d\d on \d{4}-\d\d-\d\d"


class Process:
    """A guard that ends when `script` (one callable per poll) has run out."""

    def __init__(self, *script: Any, code: int = 0) -> None:
        self.script, self.code = list(script), code
        self.closed = False

    def poll(self) -> int | None:
        if self.closed:
            return 75
        if self.script:
            self.script.pop(0)()
            return None
        return self.code

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGQUIT
        self.closed = True

    def wait(self, timeout: float) -> None:
        assert self.closed


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Outputs:
    outputs = Outputs()
    monkeypatch.setattr(dashboard, "display", outputs)
    monkeypatch.setattr(dashboard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(dashboard, "REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(dashboard, "DRAWING_SHARE", 1e9)
    monkeypatch.setattr(frontend, "num_tabs", lambda: None)
    return outputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs", "runs/mine"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setattr(process, "_started", {})
    return tmp_path / "runs" / "mine"


def nothing() -> None:
    pass


def interrupt() -> None:
    raise KeyboardInterrupt


def begin(folder: Path, *steps: int) -> None:
    append_event(folder, "start", **START)
    for step in steps:
        append_event(folder, "train", step=step, **TRAIN)


def finish(folder: Path) -> None:
    append_event(folder, "done", step=40)
    files.write_json(folder / FINISHED, {"step": 40, "planned_steps": 40})


def test_a_training_is_followed_to_its_end(folder: Path, outputs: Outputs) -> None:
    guard = Process(lambda: begin(folder, 5), nothing, lambda: finish(folder))
    assert dashboard.watch(process.Training(folder, guard, 0))["step"] == 40
    line, picture, replies, log = outputs
    assert "finished" in line.text and "1.2 to 1.5 GiB per rank" in line.text
    assert len(picture.axes[0].get_lines()[0].get_xdata()) == 1
    assert replies == log == NOTHING


def test_the_status_line_says_what_happens_before_the_first_step(
    folder: Path, outputs: Outputs
) -> None:
    """Also when a run is resumed, whose curve is there already."""
    begin(folder, 5)
    signs, said = heartbeat.Signs(folder, 0), []

    def look() -> None:
        said.append(outputs[0].text)

    guard = Process(
        lambda: signs.begin(heartbeat.LOADING),
        look,
        lambda: (begin(folder), signs.begin(heartbeat.FIRST_STEP)),
        look,
        lambda: signs.stepped(1.0),
        look,
        lambda: (signs.begin(heartbeat.PREPARING), finish(folder)),  # it ended: no stage any more
    )
    dashboard.watch(process.Training(folder, guard, 0))
    assert re.fullmatch(rf"Loading the model \.\.\. \d+ s · \d+ s so far{STAMP}", said[0])
    assert re.match(r"step 0 of 40 · taking the first step, \d+ s · rate", said[1])
    assert said[2].startswith("step 0 of 40 · rate")
    assert outputs[0].text.startswith("step 0 of 40 · rate")


def test_the_status_line_says_so_when_no_rank_has_given_a_sign() -> None:
    assert dashboard.status(History(), 7.0).text == "Importing libraries ... 7 s"
    assert dashboard.status(History(), 7.0, 1).text == "Ended before the first step ... 7 s"


def test_the_status_line_says_losses_times_and_when_it_was_so(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_event(folder, "start", **START)
    for step, loss in ((0, 5.0), (10, 2.0), (20, 2.01)):
        append_event(folder, "eval", step=step, loss=loss)
    append_event(folder, "train", step=20, **TRAIN)
    begun = History.of_run(folder).start["time"]
    monkeypatch.setattr(dashboard.time, "time", lambda: begun + 300)
    said: list[str] = []
    guard = Process(nothing, lambda: said.append(outputs[0].text), lambda: finish(folder))
    dashboard.watch(process.Training(folder, guard, 0))
    expected = "eval loss 2.0100 (best 2.0000 at step 10) · 1 s left · rate"
    assert said[0].startswith(f"step 20 of 40 · loss 2.0000 · {expected}")
    assert re.search(f" · 5 min so far{STAMP}$", said[0])
    last = History.of_run(folder).last["time"]
    stamp = time.strftime("at %H:%M:%S on %Y-%m-%d", time.localtime(last))
    assert "finished · rate" in outputs[0].text
    assert outputs[0].text.endswith(f"5 min in all · {stamp}")


def test_the_text_has_a_pace_of_its_own(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture waits 20 times as long as it took; the text is new every second meanwhile."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 1.0

    monkeypatch.setattr(dashboard.time, "sleep", sleep)
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(dashboard, "REDRAW_SECONDS", 1.0)
    monkeypatch.setattr(dashboard, "DRAWING_SHARE", 0.05)
    monkeypatch.setattr(dashboard.time, "thread_time", lambda: clock[0])
    drawn, texts = [], []
    set_history = dashboard.Curve.set_history

    def slowly(curve: Any, history: History) -> None:
        drawn.append(len(history.train))
        set_history(curve, history)
        clock[0] += 0.5

    monkeypatch.setattr(dashboard.Curve, "set_history", slowly)
    begin(folder, 1)
    steps = iter(range(2, 40))

    def train() -> None:
        append_event(folder, "train", step=next(steps), **TRAIN)
        texts.append(outputs[0].text.split(" · ")[0])

    guard = Process(*[train] * 30, lambda: finish(folder))
    dashboard.watch(process.Training(folder, guard, 0))
    assert len(set(texts)) == 30  # one a second
    assert drawn[:2] == [2, 3] and len(drawn) == 5  # the first one counts nothing; then each 10 s


def test_the_picture_is_one_figure_and_its_scale_can_be_chosen(
    folder: Path, outputs: Outputs
) -> None:
    seen = []
    guard = Process(
        lambda: begin(folder, 5),
        lambda: seen.append(outputs[1]),
        lambda: append_event(folder, "train", step=10, **TRAIN),
        lambda: seen.append(outputs[1]),
        lambda: finish(folder),
    )
    dashboard.watch(process.Training(folder, guard, 0), scale="log")
    assert seen[0] is seen[1] is outputs[1]
    assert outputs[1].loss.get_yscale() == "log"
    with pytest.raises(UserError, match="scale: got 'cubic' -- choose one of auto, linear, log"):
        dashboard.watch("mine", scale="cubic")


def test_warnings_of_a_broken_run_are_shown_below_the_status_line(
    folder: Path, outputs: Outputs
) -> None:
    """Warnings are shown during the training and after it."""
    append_event(folder, "start", **START, vocabulary=1024)
    seen = []

    def log(step: int, loss: float) -> None:
        append_event(folder, "train", step=step, **{**TRAIN, "loss": loss})

    guard = Process(
        lambda: log(5, 6.9),
        lambda: [log(step, 80.0) for step in (10, 15, 20)],
        lambda: seen.append(outputs[0]),
        lambda: (log(40, 80.0), finish(folder)),
    )
    dashboard.watch(process.Training(folder, guard, 0))
    for view, step in ((seen[0], 20), (outputs[0], 40)):
        first, second = view.text.split("\n\n")
        assert first.startswith(f"step {step} of 40 · ")
        assert second.startswith("warning: the train loss was 80 at step ")
        assert second.split("warning: ")[1].split(" -- ")[0] in view.html
        assert ALERT_COLOUR in view.html


def test_the_first_interrupt_asks_and_the_second_ends(folder: Path, outputs: Outputs) -> None:
    begin(folder, 5)
    said = []
    guard = Process(
        interrupt,
        lambda: said.append(lock.asked_to_stop(folder)),
        lambda: said.append(outputs[0].text),
        interrupt,
        nothing,  # while it is being ended
    )
    with pytest.raises(Stopped, match="mine: stopped before the first checkpoint -- run it again"):
        dashboard.watch(process.Training(folder, guard, 0))
    assert said[0] is True and guard.closed


def test_a_training_that_saves_on_request_is_said_to_be_resumable(
    folder: Path, outputs: Outputs
) -> None:
    def stop() -> None:
        (folder / "checkpoint-7").mkdir()
        checkpoints.seal(folder / "checkpoint-7", step=7)
        append_event(folder, "stop", step=7)

    guard = Process(lambda: begin(folder, 5), interrupt, stop, code=75)
    with pytest.raises(Stopped, match="mine: stopped, step 7 is saved -- run it again to resume"):
        dashboard.watch(process.Training(folder, guard, 0))
    assert not guard.closed
    assert "stopped" in outputs[0].text


def test_an_interrupt_before_the_first_step_ends_it_at_once(folder: Path, outputs: Outputs) -> None:
    guard = Process(interrupt, nothing)
    with pytest.raises(Stopped, match="before the first checkpoint"):
        dashboard.watch(process.Training(folder, guard, 0))
    assert guard.closed and not lock.asked_to_stop(folder)


@pytest.mark.parametrize("code", [75, -signal.SIGQUIT])  # its exit code; too early for signals
def test_a_terminated_guard_counts_as_a_stop(folder: Path, code: int) -> None:
    with pytest.raises(Stopped, match="before the first checkpoint"):
        process.Training(folder, Process(code=code), 0).check()


def test_a_closed_browser_ends_the_cell_and_not_the_training(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tabs = [1, 0]
    monkeypatch.setattr(frontend, "num_tabs", lambda: tabs.pop(0))
    guard = Process(lambda: begin(folder, 5), *[nothing] * 9)
    with pytest.raises(Stopped, match="the browser was closed; the training continues"):
        dashboard.watch(process.Training(folder, guard, 0))
    assert not guard.closed and not lock.asked_to_stop(folder)


def test_any_other_fault_ends_the_training(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Process(nothing, nothing)
    monkeypatch.setattr(frontend, "num_tabs", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dashboard.watch(process.Training(folder, guard, 0))
    assert guard.closed


def test_watching_by_name_leaves_the_training_alone(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, 5, 10)
    held = [lock.hold(folder)]

    def end_after_two_looks(seconds: float, looks: list[int] = []) -> None:  # noqa: B006
        looks.append(1)
        if len(looks) == 2:
            finish(folder)
            held.pop().close()

    monkeypatch.setattr(dashboard.time, "sleep", end_after_two_looks)
    assert dashboard.watch("mine")["step"] == 40
    assert len(outputs[1].axes[0].get_lines()[0].get_xdata()) == 2  # the whole curve


def test_interrupting_a_mere_watcher_stops_nothing(
    folder: Path, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(folder, 5)
    held = lock.hold(folder)
    times = iter(range(5))
    monkeypatch.setattr(dashboard.time, "sleep", lambda seconds: next(times) < 9 and interrupt())
    with pytest.raises(Stopped, match=r"mine: it keeps training without this cell .* stop mine"):
        dashboard.watch("mine")
    assert not lock.asked_to_stop(folder)
    assert "left" in outputs[0].text  # drawn as it is: running
    held.close()


@pytest.mark.parametrize(
    ("event", "error"), [("error", TrainingError), ("stop", Stopped), ("train", TrainingError)]
)
def test_a_run_that_ended_without_success_says_so(
    folder: Path, outputs: Outputs, event: str, error: type
) -> None:
    begin(folder, 5)
    append_event(
        folder, event, step=6, kind="failure", where="", what="no memory left", remedy="", **TRAIN
    )
    with pytest.raises(error, match={"error": "no memory left"}.get(event)):
        dashboard.watch("mine")


def test_an_unknown_run_is_refused(folder: Path, outputs: Outputs) -> None:
    with pytest.raises(UserError, match="runs/mine was not started"):
        dashboard.watch("mine")


def test_replies_show_the_first_evaluation_and_the_newest(folder: Path) -> None:
    events = [
        {"event": "replies", "step": step, "replies": [{"asked": "a<b>?", "reply": f"r{step}"}]}
        for step in range(10)
    ]
    assert dashboard.replies(History()) == NOTHING
    view = dashboard.replies(History(events))
    assert [line.split()[0] for line in view.text.splitlines()] == [
        "step", "0", "(4", "5", "6", "7", "8", "9",
    ]  # fmt: skip
    assert "a&lt;b&gt;?" in view.html and "<b>" not in view.html
    assert len(dashboard.replies(History(events[:6])).text.splitlines()) == 7


def test_the_end_of_the_log_is_folded_escaped_and_without_metrics(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    assert dashboard.log_end(path) == NOTHING
    path.write_text(
        "{'loss': 1}\n" + "x" * 30_000 + "\n10%|\r100%|<script>\n{'loss': 2}\n\x1b[1mend"
    )
    view = dashboard.log_end(path)
    assert view.html.startswith("<details><summary>")
    assert "100%|&lt;script&gt;" in view.html and "␛[1mend" in view.html
    assert "10%|\r" not in view.html and "loss" not in view.html
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    assert "line 85\n" in dashboard.log_end(path).html
    assert "line 84\n" not in dashboard.log_end(path).html


def test_the_parts_of_the_held_out_set_are_listed_with_their_lowest_losses() -> None:
    evals = [
        {"event": "eval", "step": step, "loss": 2.0, "parts": {"chat": chat, "code": code}}
        for step, chat, code in ((0, 3.0, 2.0), (10, 1.0, 2.5), (20, 1.5, None))
    ]
    lines = dashboard.parts(History(evals)).text.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["chat", "1.5000", "1.0000", "at", "step", "10"],
        ["code", "not", "finite", "2.0000", "at", "step", "0"],
    ]
    assert dashboard.parts(History([{"event": "eval", "step": 0, "loss": 2.0}])) == NOTHING


def test_what_the_held_out_set_can_show_is_that_of_the_newest_evaluation_that_says_it() -> None:
    """A resumed run measures it no more: its base's losses are gone."""
    evals = [{"event": "eval", "step": step, "loss": 2.0} for step in (0, 10, 20, 30)]
    assert dashboard.can_show(History(evals[:1])) == NOTHING
    evals[1]["detectable"], evals[2]["detectable"] = 0.02, 0.01234
    said = dashboard.can_show(History(evals)).text
    assert said.startswith("This held-out set can show a difference to the base of 0.012 nats")
    assert "(80%)" in said and said.endswith("at step 20.")
