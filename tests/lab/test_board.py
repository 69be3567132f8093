"""board.py, listing.py and runs/following.py, on run files written by hand."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Outputs
from test_comparison import make

from neoxkit import files
from neoxkit.lab import board, frontend, listing
from neoxkit.runs import events, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import FINISHED
from neoxkit.runs.following import Follower

TRAIN = {
    "tokens": 200, "memory_gib": 0.5, "trained_tokens": 100, "seconds": 2.0, "padding_share": 0.0,
    "tflop": 1.0, "tokens_per_second": 640.0,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    return tmp_path


def live(home: Path, name: str, steps: int = 2) -> Any:
    """Make a run that is training: return what holds its lock."""
    folder = make(home, name, 100, [3.0] * steps)
    (folder / FINISHED).unlink()
    append_event(folder, "start", step=20, resumed_step=20, planned_steps=100,
                 matmul_peak_tflops=1.0)  # fmt: skip
    append_event(folder, "train", step=30, loss=2.0, **TRAIN)
    return lock.hold(folder)


def names(follower: Follower) -> list[str]:
    return [one.standing.run for one in follower.look()[0]]


def test_those_in_training_come_first_then_the_newest(home: Path) -> None:
    make(home, "old", 100, [3.0])
    held = live(home, "going")
    make(home, "new", 100, [3.0])
    (home / "runs" / "never-started").mkdir()
    follower = Follower()
    assert names(follower) == ["going", "new", "old"]
    held.close()
    append_event(home / "runs" / "old", "stop", step=10)
    assert names(follower) == ["old", "new", "going"]


def test_a_look_reads_only_what_is_new(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ended run is not opened again; of one in training only the new lines are parsed."""
    make(home, "ended", 100, [3.0])
    held = live(home, "going")
    follower = Follower()
    follower.look()
    parsed: list[str] = []
    original = events._parsed

    def counted(lines: bytes) -> Any:
        found = list(original(lines))
        parsed.extend(event["event"] for event in found)
        return iter(found)

    monkeypatch.setattr(events, "_parsed", counted)
    follower.look()
    assert parsed == []
    append_event(home / "runs" / "going", "train", step=40, loss=1.5, **TRAIN)
    (going, _), _ = follower.look()
    assert parsed == ["train"]
    assert (going.standing.step, going.standing.train_loss, going.losses[-1]) == (40, 1.5, 1.5)
    held.close()


def test_only_runs_in_training_keep_their_events(home: Path) -> None:
    make(home, "ended", 100, [3.0])
    held = live(home, "going")
    follower = Follower()
    follower.look()
    kept = {folder.name: len(one.history.events) for folder, one in follower._known.items()}
    assert kept == {"ended": 0, "going": 7}
    held.close()
    follower.look()
    assert all(not one.history.events for one in follower._known.values())


def test_what_an_ended_run_became_is_seen(home: Path) -> None:
    """It was restarted (another file), or deleted, or is finished after all."""
    folder = make(home, "mine", 100, [3.0, 2.0])
    (folder / FINISHED).unlink()
    follower = Follower()
    assert follower.look()[0][0].standing.state == "killed"
    files.write_json(folder / FINISHED, {})
    assert follower.look()[0][0].standing.state == "finished"
    folder.rename(folder.with_name("mine.old-1"))
    held = live(home, "mine")
    assert names(follower) == ["mine", "mine.old-1"]
    held.close()
    for path in folder.glob("*"):
        path.unlink()
    for path in folder.glob(".*"):
        path.unlink()
    folder.rmdir()
    assert names(follower) == ["mine.old-1"]


def test_a_run_in_training_that_is_restarted_is_read_anew(home: Path) -> None:
    held = live(home, "mine")
    follower = Follower()
    follower.look()
    held.close()
    (home / "runs" / "mine").rename(home / "runs" / "mine.old-1")
    held = live(home, "mine", steps=1)
    found = follower.look()[0][0]
    assert (found.standing.run, found.losses) == ("mine", (3.5, 2.0))
    held.close()


def test_what_is_not_read_in_time_is_counted_and_read_later(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        make(home, f"{i}", 100, [3.0])
    follower = Follower()
    assert [follower.look(-1.0)[1] for _ in range(4)] == [2, 1, 0, 0]
    assert len(follower.look()[0]) == 3


def test_a_row_has_state_step_losses_rate_and_the_time_left(home: Path) -> None:
    """Ten steps took 2 s, 70 are left."""
    held = live(home, "going")
    make(home, "ended", 100, [3.0, 2.0, 2.05])
    table, folded = listing.tables(Follower().look()[0])
    held.close()
    going, ended = table.text.splitlines()[1:3]
    assert going.split("  ")[0] == "going, training · 30 of 100"
    assert "3.5000 to 2.0000" in going and "640, 14 s left" in going
    assert ended.split("  ")[0] == "ended, finished · 30 of 30"
    assert "2.0500, best 2.0000" in ended and "100 " in ended and "left" not in ended
    assert folded.html == ""


def test_the_curve_has_the_texts_colour_and_says_its_ends() -> None:
    shown = listing.sparkline((5.25, 3.0, 2.125))
    assert shown.text == "5.2500 to 2.1250"
    assert 'aria-label="train loss, 5.2500 to 2.1250"' in shown.html
    assert "<title>train loss, 5.2500 to 2.1250</title>" in shown.html
    assert 'stroke="currentColor"' in shown.html and "#" not in shown.html
    assert listing.sparkline((2.0, 2.0)).html and listing.sparkline(()).html == ""


def test_trials_and_older_runs_are_folded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "ENDED", 1)
    make(home, "older", 100, [3.0])
    make(home, "newer", 100, [3.0])
    make(home, "newer.probe", 100, [3.0], trial=True)
    append_event(home / "runs" / "older", "error", kind="", where="", what="it broke", remedy="")
    append_event(home / "runs" / "newer", "eval", step=10, loss=3.0)
    table, folded = listing.tables(Follower().look()[0])
    assert "older, finished, see below" in folded.text
    assert "newer" in table.text and "older" not in table.text and "probe" not in table.text
    older, trials, says = folded.html.split("<details>")[1:]
    assert older.startswith("<summary>older runs") and ">older<" in older
    assert trials.startswith("<summary>trials") and "finished&nbsp;(a&nbsp;trial)" in trials
    assert says.startswith("<summary>what ended runs said") and "older: it broke" in says


def test_names_are_escaped(home: Path) -> None:
    make(home, "<b>bold", 100, [3.0])
    table, _ = listing.tables(Follower().look()[0])
    assert "<b>" not in table.html and "&lt;b&gt;bold" in table.html


@pytest.fixture
def page(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outputs]:
    """Collect the outputs: time stamp, table, folded, the choice, curves; assume a kernel."""
    outputs = Outputs()
    for module in (board, frontend):
        monkeypatch.setattr(module, "display", outputs)
    monkeypatch.setattr(board, "get_ipython", lambda: type("Shell", (), {"kernel": 1}))
    monkeypatch.setattr(board, "_open", [])
    monkeypatch.setattr(board, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(board, "DRAWING_SHARE", 1e9)
    monkeypatch.setattr(board.comparison, "overlay", lambda runs: [run.name for run in runs])
    monkeypatch.setattr(frontend, "num_tabs", lambda: 1)
    monkeypatch.setattr(frontend, "unattended", lambda: False)
    yield outputs
    for one in board._open[:]:
        one.end("the test is over")


def test_the_board_refreshes_itself_and_draws_those_in_training(home: Path, page: Outputs) -> None:
    make(home, "ended", 100, [3.0])
    held = live(home, "going")
    board.board()
    assert "30 of 100" in page[1].text and page[-1] == ["going"]
    append_event(home / "runs" / "going", "train", step=40, loss=1.5, **TRAIN)
    for _ in range(6000):
        if "40 of 100" in page[1].text:
            break
        threading.Event().wait(0.01)
    assert "40 of 100" in page[1].text and "refreshed every" in page[0].text
    held.close()


def test_the_choice_draws_other_curves_and_stays(home: Path, page: Outputs) -> None:
    held = live(home, "going")
    make(home, "ended", 100, [3.0])
    opened = board.Board()
    opened.refresh()
    assert [*opened.boxes] == ["going", "ended"]
    assert [box.description for box in opened.choice.children] == ["going", "ended"]
    opened.boxes["ended"].value = True
    assert page[-1] == ["ended", "going"]
    opened.boxes["ended"].value = opened.boxes["going"].value = False
    assert "Choose runs" in page[-1].text
    opened.boxes["ended"].value = True
    make(home, "newest", 100, [3.0])
    opened.refresh()
    assert [name for name, box in opened.boxes.items() if box.value] == ["ended"]
    assert [*opened.boxes] == ["going", "newest", "ended"] and page[-1] == ["ended"]
    held.close()


def test_without_a_run_in_training_the_newest_is_drawn_and_the_last_live_one_stays(
    home: Path, page: Outputs
) -> None:
    make(home, "ended", 100, [3.0])
    opened = board.Board()
    opened.refresh()
    assert page[-1] == ["ended"]
    held = live(home, "going")
    opened.refresh()
    assert page[-1] == ["going"]
    held.close()
    opened.refresh()
    assert page[-1] == ["going"]


def test_what_a_reader_opened_is_not_closed_by_a_refresh(home: Path, page: Outputs) -> None:
    make(home, "one.probe", 100, [3.0], trial=True)
    held = live(home, "going")
    opened = board.Board()
    opened.refresh()
    before = page[2]
    append_event(home / "runs" / "going", "train", step=40, loss=1.5, **TRAIN)
    opened.refresh()
    assert page[2] is before and "40 of 100" in page[1].text
    held.close()


@pytest.mark.parametrize(("tabs", "patience"), [(0, 1e9), (1, 0.0)])
def test_it_ends_if_nobody_looks_or_nothing_trains(
    tabs: int, patience: float, home: Path, page: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(home, "ended", 100, [3.0])
    monkeypatch.setattr(frontend, "num_tabs", lambda: tabs)
    monkeypatch.setattr(board, "PATIENCE_SECONDS", patience)
    board.board()
    (opened,) = board._open or [None]
    assert opened is None or opened.over.wait(60)
    assert board._open == [] and "no longer refreshed" in page[0].text


def test_a_second_board_ends_the_first(home: Path, page: Outputs) -> None:
    board.board()
    (first,) = board._open
    board.board()
    (second,) = board._open
    assert first.over.is_set() and not second.over.is_set()
    assert "no longer refreshed: a board was opened again" in page[0].text


def test_a_fault_is_shown_and_refresh_goes_on(
    home: Path, page: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(home, "mine", 100, [3.0])
    board.board()
    (opened,) = board._open
    with monkeypatch.context() as broken:
        broken.setattr(listing, "tables", lambda seen: 1 / 0)
        assert opened.over.wait(60)
    assert "ZeroDivisionError" in page[0].text and "listing.tables" in page[0].html
    opened.follow()
    assert not opened.over.is_set() and "refreshed every" in page[0].text
    assert folder.name in page[1].text


def test_where_nobody_looks_it_is_one_table(
    home: Path, page: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(home, "mine", 100, [3.0])
    monkeypatch.setattr(frontend, "unattended", lambda: True)
    before = threading.active_count()
    board.board()
    assert len(page) == 1 and "mine" in page[0].text and threading.active_count() == before
