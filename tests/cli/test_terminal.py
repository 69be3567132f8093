"""terminal.py: the output of `neoxkit run` before, during and after 02's training."""

import io
import itertools
import re
import time
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.cli import screen, terminal
from neoxkit.runs import checkpoints, heartbeat, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import FINISHED

START = {
    "resumed_step": 0, "planned_steps": 8, "learning_rate": 2e-3, "conversations_a_step": 16,
    "block_size": 280,
}  # fmt: skip
TRAIN = {
    "epoch": 1.0, "loss": 2.5, "tokens_per_second": 900.0, "padding_share": 0.01, "mfu": 0.4,
    "memory_gib": 0.6, "memory_gib_by_rank": [0.6], "seconds": 1.0,
}  # fmt: skip


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def follow(folder: Path, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(terminal, "REWRITE_SECONDS", 0.01)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    append_event(folder, "train", step=99, **TRAIN)  # from an earlier start
    with terminal.following(folder, out):
        append_event(folder, "start", **START)
        append_event(folder, "train", step=4, **TRAIN)
        deadline = time.monotonic() + 20  # the first one imports matplotlib
        while "step 4" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    return out.getvalue()


def test_into_a_file_each_state_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = follow(tmp_path, io.StringIO(), monkeypatch).splitlines()
    assert re.fullmatch(
        r" {6}step 4 of 8 · loss 2\.5000 · \d+ s left · rate 0\.002 · batch 16 · block 280 · "
        r"epoch 1\.00 · 900 useful tokens/s · padding 1% · MFU 40% · 0\.6 GiB per rank",
        lines[-1],
    )
    assert len(set(lines)) == len(lines) and not any("step 99" in line for line in lines)


def test_a_start_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.01)
    out = io.StringIO()
    with lock.take(tmp_path / lock.LOCK), terminal.following(tmp_path, out):
        heartbeat.Signs(tmp_path, 0).begin(heartbeat.COMPILING, "cpu_adam")
        deadline = time.monotonic() + 20
        while "cpu_adam" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert re.search(r"^ {6}Compiling cpu_adam \.\.\. \d s$", out.getvalue(), re.M)


def test_on_a_terminal_one_line_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = follow(tmp_path, Screen(), monkeypatch)
    assert said.count("\n") == 1 and said.endswith("\n")
    assert said.split("\r\x1b[K")[-1].startswith("      step 4 of 8 · ")
    shown = [line.rstrip() for line in said.split("\r\x1b[K")]
    assert all(len(line) < 80 for line in shown)
    assert shown[-1].endswith(" · rate 0.002 · batch 16")  # only whole parts


@pytest.mark.parametrize("columns", [80, 60, 50])
def test_the_time_left_is_never_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = follow(tmp_path, Screen(), monkeypatch).split("\r\x1b[K")
    shown = [line for line in said if "step 4" in line and "ended" not in line]
    assert shown and all(re.search(r"step 4 of 8 · .*\d+ s left", line) for line in shown)
    assert all(screen.width(line.rstrip("\n")) < columns for line in said)


def test_the_time_before_a_training_is_counted_and_leaves_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "REWRITE_SECONDS", 0.01)
    monkeypatch.setenv("TERM", "xterm")
    out = Screen()
    with terminal.following(tmp_path, out):
        deadline = time.monotonic() + 20
        while not out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    said = out.getvalue()
    assert re.search(r"In its notebook \.\.\. \d s", said)
    assert said.endswith("\r\x1b[K") and "\n" not in said


def test_whatever_comes_before_the_time_left_goes_first() -> None:
    """A status line with more parts, in another order, still ends with what matters."""
    line = "step 400 of 1,000 · loss 2.5000 · eval 2.4000, best 2.3 · 9 min so far · 14 min left"
    assert terminal.fitting(line, 53).startswith("step 400 of 1,000 · loss 2.5000 · 14 min left")
    assert terminal.fitting(line, 31) == "step 400 of 1,000 · 14 min left"
    assert terminal.fitting(line, 200) == line
    assert terminal.fitting("step 9 of 9 · loss 2.5 · finished", 22) == "step 9 of 9 · finished"


@pytest.mark.parametrize("out", [io.StringIO(), Screen()])
@pytest.mark.parametrize("seconds", [0.01, 60.0])  # the second is longer than the training
def test_what_a_training_notes_at_its_start_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: io.StringIO, seconds: float
) -> None:
    monkeypatch.setattr(terminal, "REWRITE_SECONDS", seconds)
    monkeypatch.setattr(terminal, "LINE_SECONDS", seconds)
    monkeypatch.setenv("NO_COLOR", "1")
    before = out.getvalue()
    with terminal.following(tmp_path, out):
        append_event(tmp_path, "start", **START | {"notices": ["rows are padded", "tf32 is on"]})
        append_event(tmp_path, "train", step=1, **TRAIN)
        deadline = time.monotonic() + 20
        while seconds < 1 and "step 1" not in out.getvalue()[len(before) :]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    said = out.getvalue()[len(before) :]
    assert said.count("note: rows are padded") == said.count("note: tf32 is on") == 1
    assert seconds > 1 or said.index("note: tf32 is on") < said.index("step 1")


@pytest.mark.parametrize("out", [io.StringIO(), Screen()])
def test_a_warning_is_shown_once_above_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: io.StringIO
) -> None:
    monkeypatch.setattr(terminal, "REWRITE_SECONDS", 0.01)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.01)
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with terminal.following(tmp_path, out):
        append_event(tmp_path, "start", **START | {"planned_steps": 8, "vocabulary": 1024})
        for step in range(1, 8):
            append_event(tmp_path, "train", step=step, **{**TRAIN, "loss": 60.0 + step})
            deadline = time.monotonic() + 20
            while f"step {step} of" not in out.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
    lines = [line.rpartition("\r\x1b[K")[2] for line in out.getvalue().rstrip().split("\n")]
    assert max(map(len, lines)) <= 80 or not out.isatty()
    (at,) = [i for i, line in enumerate(lines) if "warning" in line]
    more = itertools.takewhile(lambda line: not line.startswith("      step"), lines[at + 1 :])
    warning = lines[at] + "".join(line[5:] for line in more)  # it is broken on a terminal
    assert warning == (
        "      warning: the train loss was 62 at step 2, where a uniform guess among 1,024 tokens "
        "has 6.931 -- lower learning_rate"
    )
    assert lines[-1].startswith("      step 7 of 8 · ")


def test_a_run_says_how_it_begins(tmp_path: Path) -> None:
    assert terminal.outset(tmp_path) == ""
    append_event(tmp_path, "train", step=3)
    assert terminal.outset(tmp_path) == "starting over: no checkpoint was saved"
    (tmp_path / "checkpoint-8").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-8")
    assert terminal.outset(tmp_path) == "resuming from step 8"
    files.write_json(tmp_path / FINISHED, {})
    assert terminal.outset(tmp_path) == "already trained: shown as it is"


def test_counts_name_their_reasons_and_files() -> None:
    side = {"read": 2000, "dropped_lines": {"no reply": [7, 9]}, "cut_lines": [3]}
    sides = {"train": {"conversations": 9}, "eval": {"conversations": 0}}
    source = {"path": "talks.txt", "unit": "line", "begins": {}}
    manifest = {"counts": {"train": side}, "sides": sides, "source": source}
    assert terminal.tokenized_note(manifest) == (
        "2,000 read, 2 dropped (no reply: lines 7, 9), 1 cut (line 3); 9 train, 0 eval"
    )
    two = {"counts": {"train": side, "eval": {**side, "cut_lines": []}}}
    assert terminal.counted(two) == (
        "train: 2,000 read, 2 dropped, 1 cut; eval: 2,000 read, 2 dropped"
    )
