"""Estimates for the next run from the last one's measurements."""

import os
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.launch import measured
from neoxkit.runs import card as run_card
from neoxkit.runs.events import METRICS, append_event


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs", "runs", "models/own"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    return tmp_path


def write(home: Path, run: str, model: str, age: int, speeds: list[float], ranks: int = 1) -> None:
    folder = home / "runs" / run
    folder.mkdir()
    append_event(folder, "start", step=0, model=model, num_ranks=ranks, micro_batch=16,
                      conversations_a_step=32 * ranks, device="cpu")  # fmt: skip
    for step, speed in enumerate(speeds, start=1):
        append_event(folder, "train", step=2 * step, tokens_per_second=speed, memory_gib=1.5,
                          tokens=3000, trained_tokens=1600, padding_share=0.25)  # fmt: skip
    os.utime(folder / METRICS, (1e9 - age, 1e9 - age))


def test_the_last_run_of_the_same_model_is_used(home: Path) -> None:
    assert measured.last_run("tiny") is None
    write(home, "old", "tiny", 9, [100.0, 300.0, 900.0])
    write(home, "other", "EleutherAI/pythia-70m", 1, [5.0])
    write(home, "just-begun", "tiny", 0, [])
    found = measured.last_run("tiny")
    old = home / "runs" / "old"
    assert found == measured.Measured(old, 1, False, 300.0, 1.5, 1000.0, 400.0)
    assert measured.last_run("pythia-70m").run == "other"  # the short name of the same model
    write(home, "two", "tiny", 2, [500.0], ranks=2)
    assert measured.last_run("tiny").run == "two"
    assert measured.last_run("tiny", 1).run == "old"


def test_a_model_folder_is_recognised_by_its_path_below_the_root(home: Path) -> None:
    write(home, "mine", "models/own", 1, [5.0])
    assert measured.last_run(str(home / "models" / "own")).run == "mine"


def test_a_run_copied_from_another_machine_is_ignored(home: Path) -> None:
    write(home, "copied", "tiny", 1, [100.0])
    card = {"starts": [{"machine": run_card.machine()}]}
    files.write_json(home / "runs" / "copied" / run_card.CARD, card)
    assert measured.last_run("tiny").run == "copied"
    card["starts"][-1]["machine"]["cpu"] = "Z80"
    files.write_json(home / "runs" / "copied" / run_card.CARD, card)
    assert measured.last_run("tiny") is None


@pytest.mark.parametrize(
    ("tokens", "said"), [(1000, "about 10 s"), (60_000, "about 10 min"), (1e6, "about 2.8 h")]
)
def test_time_in_words(tokens: float, said: str) -> None:
    last = measured.Measured(Path("x"), 1, False, 100.0, 1.5, 1.0, 1.0)
    assert last.time(tokens) == f"{said}, of steps, at 100 useful tokens/s as in run x"
