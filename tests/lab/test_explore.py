"""The chart of a run's losses that JupyterLab's own Vega draws."""

import json
from pathlib import Path

import pytest

from neoxkit.lab import explore
from neoxkit.runs.events import append_event


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    for name in ("notebooks", "ds_configs", "runs/some"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "runs" / "some"


def test_all_losses_are_there_and_one_that_is_not_finite_is_left_out(folder: Path) -> None:
    for step, loss in ((1, 3.0), (2, float("nan")), (3, 2.0)):
        append_event(folder, "train", step=step, loss=loss)
    append_event(folder, "eval", step=3, loss=2.5)
    chart = explore.losses("some")
    assert chart.spec["data"]["values"] == [
        {"curve": "train loss", "step": 1, "loss": 3.0},
        {"curve": "train loss", "step": 3, "loss": 2.0},
        {"curve": "eval loss", "step": 3, "loss": 2.5},
    ]


def test_each_part_of_the_held_out_set_has_a_curve_of_its_own(folder: Path) -> None:
    append_event(folder, "train", step=1, loss=3.0)
    for step in (1, 2):
        parts = {"chat": 2.0 + step, "code": float("nan") if step == 2 else 4.0}
        append_event(folder, "eval", step=step, loss=2.5, parts=parts)
    spec = explore.losses("some").spec
    assert spec["data"]["values"][3:] == [
        {"curve": "eval loss of chat", "step": 1, "loss": 3.0},
        {"curve": "eval loss of chat", "step": 2, "loss": 4.0},
        {"curve": "eval loss of code", "step": 1, "loss": 4.0},
    ]
    domain = spec["encoding"]["color"]["scale"]["domain"]
    assert domain == ["train loss", "eval loss", "eval loss of chat", "eval loss of code"]


def test_a_long_run_is_thinned(folder: Path) -> None:
    lines = (f'{{"event": "train", "step": {s}, "loss": 1.0}}\n' for s in range(2501))
    (folder / "metrics.jsonl").write_text("".join(lines))
    steps = [p["step"] for p in explore.losses("some").spec["data"]["values"]]
    assert steps == [*range(0, 2501, 3), 2500]


def test_the_bundle_holds_a_chart_without_addresses_to_fetch_and_a_sentence(folder: Path) -> None:
    data, metadata = explore.losses("some")._repr_mimebundle_()
    assert set(data) == {explore.VEGA, "text/plain"}
    assert data["text/plain"].startswith("(losses of some by step")
    assert json.dumps(data[explore.VEGA]).count("http") == 1  # the name of its schema
    assert metadata[explore.VEGA]["embed_options"]["actions"] is False
