"""folder.py: half-written lines, resumed attempts, incomplete checkpoints."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from neoxkit import files
from neoxkit.errors import UserError
from neoxkit.runs.events import METRICS, EventReader, History, append_event, read_events
from neoxkit.runs.folder import FINISHED, finished_facts, set_aside, state_of


def write(folder: Path, text: str | bytes) -> None:
    with (folder / METRICS).open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_events_have_a_name_a_time_and_the_values(tmp_path: Path) -> None:
    append_event(tmp_path, "train", step=5, loss=2.5, note="ä\n")
    (event,) = read_events(tmp_path)
    assert list(event) == ["event", "time", "step", "loss", "note"]
    assert (event["event"], event["step"], event["note"]) == ("train", 5, "ä\n")
    assert (tmp_path / METRICS).read_text().count("\n") == 1


def test_reader_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert reader.poll() == []  # no file yet
    write(tmp_path, '{"event": "a"}\n{"event": ')
    assert names(reader.poll()) == ["a"]
    assert reader.poll() == []
    write(tmp_path, '"b"}\n')
    assert names(reader.poll()) == ["b"]
    append_event(tmp_path, "c")
    append_event(tmp_path, "d")
    assert names(reader.poll()) == ["c", "d"]
    assert names(read_events(tmp_path)) == ["a", "b", "c", "d"]


def test_reader_starts_at_an_offset(tmp_path: Path) -> None:
    append_event(tmp_path, "old")
    since = (tmp_path / METRICS).stat().st_size
    append_event(tmp_path, "new")
    assert names(EventReader(tmp_path, since).poll()) == ["new"]


@pytest.mark.parametrize("junk", [b"\n", b"not json\n", b"\0\0\0\0\0\0\n", b'{"event": "\xff"}\n'])
def test_a_damaged_line_is_skipped(tmp_path: Path, junk: bytes) -> None:
    append_event(tmp_path, "a")
    write(tmp_path, junk)
    append_event(tmp_path, "b")
    assert names(read_events(tmp_path)) == ["a", "b"]


def test_the_event_after_a_line_cut_by_a_kill_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path, '{"event": "train", "st')
    append_event(tmp_path, "start", resumed_step=4)
    assert names(read_events(tmp_path)) == ["start"]


def attempt(start: int, *steps: int, end: str = "") -> list[dict[str, Any]]:
    events = [{"event": "start", "step": start, "resumed_step": start}]
    events += [{"event": "train", "step": step, "from": start} for step in steps]
    return events + ([{"event": end, "step": steps[-1]}] if end else [])


def test_history_of_one_attempt_is_everything() -> None:
    events = attempt(0, 1, 2, 3, end="done")
    history = History(events)
    assert history.events == events and (history.start, history.last) == (events[0], events[-1])
    assert history.train == history.of("train") == events[1:4] and history.evals == []
    none = History()
    assert (none.events, none.train, none.of("done"), none.start, none.last) == ([], [], [], {}, {})


def test_history_drops_what_an_interrupted_attempt_did_after_its_checkpoint() -> None:
    events = attempt(0, 1, 2, 3, 4, 5)  # killed; its newest checkpoint is from step 3
    events += attempt(3, 4, 5, end="stop") + attempt(5, 6, end="done")
    history = History(events)
    kept, train = history.events, [(e["step"], e["from"]) for e in history.train]
    assert train == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 5)]
    assert names(kept).count("start") == 3 and history.start["step"] == 5
    assert "stop" not in names(kept) and names(kept)[-1] == "done"


def test_a_history_can_be_extended_with_later_events() -> None:
    """Whoever watches a run keeps the history, not every event."""
    events = attempt(0, 1, 2, 3, end="stop") + attempt(2, 3) + attempt(0, 1, 2) + attempt(1, 2)
    for at in range(len(events)):
        continued = History([*History(events[:at]).events, *events[at:]])
        assert continued.events == History(events).events


def test_history_of_a_start_from_step_0_forgets_the_earlier_steps() -> None:
    kept = History(attempt(0, 1, 2) + attempt(0, 1)).events
    assert [(e["event"], e["step"]) for e in kept] == [("start", 0), ("start", 0), ("train", 1)]


def test_state_and_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^run: .*nowhere does not exist -- run 02_train first$"):
        finished_facts(tmp_path / "nowhere")
    assert state_of(tmp_path) == "new"
    with pytest.raises(UserError, match=r"^run: .* is not finished -- run 02_train again$"):
        finished_facts(tmp_path)
    append_event(tmp_path, "start", step=0)
    append_event(tmp_path, "error", kind="failure", where="", what="it broke", remedy="")
    assert state_of(tmp_path) == "new"  # nothing would be lost
    append_event(tmp_path, "train", step=2)
    assert state_of(tmp_path) == "started"
    with pytest.raises(UserError, match="is not finished"):
        finished_facts(tmp_path)
    files.write_json(tmp_path / FINISHED, {"step": 9})
    assert state_of(tmp_path) == "finished"
    assert finished_facts(tmp_path) == {"step": 9}


def test_write_json_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    files.write_json(path, {"old": "ä"})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})

    def disk_full(self: Path, text: str, **_: Any) -> None:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"new": 1})
    assert files.read_json(path) == {"old": "ä"}


def test_write_json_renames_a_complete_file_into_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of the rename the old file is in place, and the complete new one beside it."""
    path, seen = tmp_path / "facts.json", []
    files.write_json(path, {"n": 1})
    rename = Path.replace

    def looked_at(self: Path, target: Path) -> Path:
        seen.append((json.loads(path.read_text()), json.loads(self.read_text())))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", looked_at)
    files.write_json(path, {"n": 2})
    assert seen == [({"n": 1}, {"n": 2})]
    assert os.listdir(tmp_path) == ["facts.json"] and files.read_json(path) == {"n": 2}  # noqa: PTH208


def test_set_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for expected in ("demo.old-1", "demo.old-2", "demo.old-3"):
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "who").write_text(expected)
        aside = set_aside(tmp_path / "demo")
        assert aside == tmp_path / expected and (aside / "who").read_text() == expected
        assert not (tmp_path / "demo").exists()
    (tmp_path / "demo.old-2" / "who").unlink()
    (tmp_path / "demo.old-2").rmdir()
    (tmp_path / "demo").mkdir()
    assert set_aside(tmp_path / "demo").name == "demo.old-2"


def test_totals() -> None:
    one = {"tokens": 80, "trained_tokens": 30, "padding_share": 0.2, "seconds": 2.0, "tflop": 6.0}
    two = {"tokens": 50, "trained_tokens": 20, "padding_share": 0.5, "seconds": 0.5, "tflop": 1.0}
    events = [
        {"event": "start", "matmul_peak_tflops": 6.0},
        {"event": "train", "loss": 3.0, "memory_gib": 1.5, **one},
        {"event": "eval", "loss": 2.5},
        {"event": "start", "matmul_peak_tflops": 4.0},
        {"event": "verified", "step": 0},
        {"event": "train", "loss": 2.0, "memory_gib": 1.2, **two},
        {"event": "eval", "loss": 1.5},
    ]
    assert History(events).totals() == {
        "train_seconds": 2.5,
        "tokens": 130,
        "trained_tokens": 50,
        "tokens_per_second": 52.0,
        "padding_share": 0.35,  # 130 of 100 + 100 places
        "mfu": 0.5,  # 1 s and 0.25 s of work at each start's peak in 2.5 s
        "verified_steps": 1,
        "memory_gib": 1.5,
        "train_loss": 2.0,
        "eval_loss": 1.5,
    }


def test_the_evaluation_of_the_base_is_no_final_loss() -> None:
    assert History([{"event": "eval", "step": 0, "loss": 2.5}]).totals()["eval_loss"] is None


def test_a_run_that_starts_over_has_one_evaluation_of_its_base() -> None:
    """It was ended before its first checkpoint; a resumed one keeps the evaluation."""
    begin = {"event": "start", "step": 0, "resumed_step": 0, "matmul_peak_tflops": 1.0}
    first = [begin, *({"event": kind, "step": 0} for kind in ("replies", "eval"))]
    again = History([*first, *first])
    assert len(again.evals) == len(again.of("replies")) == 1
    resumed = History([*first, begin | {"step": 4, "resumed_step": 4}])
    assert len(resumed.evals) == len(resumed.of("replies")) == 1


def test_totals_of_nothing_are_zero_or_unknown() -> None:
    assert History().totals() == {
        "train_seconds": 0,
        "tokens": 0,
        "trained_tokens": 0,
        "tokens_per_second": None,
        "padding_share": None,
        "mfu": None,
        "verified_steps": 0,
        "memory_gib": None,
        "train_loss": None,
        "eval_loss": None,
    }


def test_numbers_that_are_not_finite_are_null_at_any_depth(tmp_path: Path) -> None:
    append_event(tmp_path, "eval", loss=math.nan, parts={"a": math.inf, "b": 1.5})
    line = (tmp_path / METRICS).read_text()
    assert '"loss": null, "parts": {"a": null, "b": 1.5}' in line
