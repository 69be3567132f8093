"""progress.py: what a sweep shows of its runs, on a terminal and in a log."""

import io
import os
import re
import time
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.cli import progress, screen, sweep, variants
from neoxkit.cli.progress import SweepRow
from neoxkit.errors import UserError
from neoxkit.runs import heartbeat, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import FINISHED

NAMES = [f"night.learning_rate={r}.per_device_train_batch_size=8" for r in (1, 2, 3, 4)]
ROWS = [
    SweepRow(NAMES[0], "finished", "step 1,000 of 1,000", "2.1000", "2.2000"),
    SweepRow(NAMES[1], "training", "step 400 of 1,000", "2.5000", "2.6000", 840.0),
    SweepRow(NAMES[2], "training", "loading the model, 12 s"),
    SweepRow(NAMES[3], "waiting"),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(out: Terminal) -> list[str]:
    """Return the lines that stand there now, as a terminal does."""
    lines: list[str] = []
    for part in re.split(r"(?=\x1b\[\d+F)", out.getvalue()):
        if up := re.match(r"\x1b\[(\d+)F", part):
            del lines[-int(up[1]) :]
        plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", part)
        lines += plain.split("\n")[:-1]
    return lines


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


@pytest.mark.parametrize("columns", [120, 80, 60])
def test_count_time_left_and_what_each_run_does_fit(
    out: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = progress.LiveTable(out)
    table.show(ROWS, 840.0)
    table.show(ROWS, 840.0)
    lines = shown(out)
    assert lines[0] == "1 of 4 finished, 2 running, about 14 min left"
    assert max(map(screen.width, lines)) <= columns
    assert "step 400 of 1,000" in lines[3] and ("2.5000" in lines[3] or columns == 60)
    assert "loading the model, 12 s" in lines[4]
    assert len({line.split()[0] for line in lines[2:6]}) == 4  # the names still differ


def test_a_table_higher_than_the_terminal_shows_those_that_run(
    out: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "6")
    progress.LiveTable(out).show(ROWS, None)
    lines = shown(out)
    assert len(lines) < 6 and lines[0] == "1 of 4 finished, 2 running; those that run:"
    assert [line.split()[1] for line in lines[2:4]] == ["training", "training"]


def test_a_table_that_is_cleared_leaves_nothing(out: Terminal) -> None:
    table = progress.LiveTable(out)
    table.show(ROWS)
    table.clear()
    assert shown(out) == []


def test_a_log_has_a_line_when_a_state_changes() -> None:
    out = io.StringIO()
    table = progress.LiveTable(out)
    table.show(ROWS, 840.0)
    table.show(ROWS, 830.0)
    table.show([*ROWS[:3], SweepRow(NAMES[3], "starting", "its notebook, 1 s")], 820.0)
    assert out.getvalue().splitlines() == [
        "1 of 4 finished, 2 running, about 14 min left",
        f"{NAMES[0]}  finished  step 1,000 of 1,000  train 2.1000  eval 2.2000",
        f"{NAMES[1]}  training  step 400 of 1,000  train 2.5000  eval 2.6000  14 min left",
        f"{NAMES[2]}  training  loading the model, 12 s",
        f"{NAMES[3]}  waiting",
        "1 of 4 finished, 3 running, about 14 min left",
        f"{NAMES[3]}  starting  its notebook, 1 s",
    ]


@pytest.mark.parametrize(
    ("took", "going", "waiting", "at_once", "left"),
    [
        ([], [], 4, 1, None),  # nothing is known yet
        ([], [(5.0, None)], 3, 1, None),
        ([], [(10.0, 30.0)], 3, 1, 150.0),  # the rate of the one that trains
        ([], [(10.0, 30.0), (10.0, 50.0)], 2, 2, 90.0),
        ([60.0, 80.0], [], 3, 1, 210.0),
        ([60.0], [(90.0, None)], 0, 1, 0.0),  # longer than the others took
        ([60.0], [(10.0, 100.0), (10.0, 10.0)], 0, 2, 100.0),  # the last one to end
    ],
)
def test_the_time_left(
    took: list[float], going: list[tuple[float, float | None]], waiting: int, at_once: int,
    left: float | None,
) -> None:  # fmt: skip
    assert progress.seconds_left(took, going, waiting, at_once) == left


def test_a_run_says_what_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "g.seed=1"
    folder.mkdir()
    assert progress.going(folder, 5.0) == SweepRow("g.seed=1", "starting", "its notebook, 5 s")
    with lock.hold(folder):
        assert progress.going(folder, 5.0)[1:3] == ("training", "importing libraries, 0 s")
        heartbeat.Signs(folder, 0).begin(heartbeat.LOADING)
        assert progress.going(folder, 5.0)[1:3] == ("training", "loading the model, 0 s")
        append_event(folder, "start", planned_steps=100, resumed_step=0)
        heartbeat.Signs(folder, 0).begin(heartbeat.FIRST_STEP)
        assert progress.going(folder, 5.0)[1:3] == ("training", "taking the first step, 0 s")
        heartbeat.Signs(folder, 0).stepped(1.0)
        append_event(folder, "train", step=40, loss=2.5, seconds=20.0)
        append_event(folder, "eval", step=40, loss=2.25)
        wanted = SweepRow("g.seed=1", "training", "step 40 of 100", "2.5000", "2.2500", 30.0)
        assert progress.going(folder, 5.0) == wanted
    files.write_json(folder / FINISHED, {})
    assert progress.going(folder, 5.0).state == "finishing"
    notebook = folder / "03_evaluate.ipynb"
    notebook.touch()
    os.utime(notebook, (time.time() + 9, time.time() + 9))
    assert progress.going(folder, 5.0).state == "evaluating"


def test_the_table_of_a_sweep_is_there_before_anything_is_checked(
    out: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone again when a check refuses the sweep."""
    for name in ("notebooks", "ds_configs", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setattr(progress.sys, "stdout", out)
    made = variants.variants({"run": "g"}, {"seed": [1, 2]})

    def refuse(*_: object) -> None:
        assert shown(out)[0] == "0 of 2 finished" and "g.seed=2  waiting" in shown(out)
        raise UserError("--at-once", "got 9", "lower it")

    monkeypatch.setattr(sweep, "environments", refuse)
    with pytest.raises(UserError, match="got 9"):
        sweep.run("g", made, ["02_train"], 9)
    assert shown(out) == []


@pytest.mark.parametrize("columns", [80, 60])
def test_the_results_of_a_sweep_fit_and_a_file_gets_them_all(
    out: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    figures = {
        "state": "finished", "equal_loss": 2.25, "trained_tokens": 12000,
        "tokens_per_second": 900.0, "memory_gib": 0.6, "train_seconds": 75.0,
    }  # fmt: skip
    scores = [{"run": name, "eval_loss": 2.125, **figures} for name in NAMES[:3]]
    scores.append({"run": NAMES[3], "eval_loss": None, **figures})
    lines = progress.scoreboard(scores, 11000.0, out)
    assert max(map(screen.width, lines)) <= columns
    assert all("2.1250" in line for line in lines[1:4]) and "2.1250" not in lines[4]
    assert "more columns in a wider terminal: eval loss at 11,000" in " ".join(lines)
    header, first, *_ = progress.scoreboard(scores, 11000.0, io.StringIO())
    assert re.split("  +", first) == [
        NAMES[0], "finished", "2.1250", "2.2500", "8.373", "12,000", "900", "0.60", "75",
    ]  # fmt: skip
    assert len(re.split("  +", header)) == 9
