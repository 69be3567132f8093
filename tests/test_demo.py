"""The demo exactly as `make demo` runs it, and what its model must then answer."""

import json
from pathlib import Path

import pytest
from conftest import command, make_home

pytestmark = pytest.mark.demo


def test_the_demo_answers_nine_of_ten_held_out_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path)
    monkeypatch.setenv("NEOXKIT_HOME", str(home))
    done = command("neoxkit.cli", "run")
    assert done.returncode == 0, done.stderr
    rows = json.loads((home / "runs" / "demo" / "evaluation.json").read_text())["exact"]
    totals = {row["set"]: row for row in rows if row["kind"] == "total"}
    held_out, harder = totals["held out"], totals["harder"]
    print(f"held out {held_out['tuned']} of 200, harder {harder['tuned']} of {harder['questions']}")
    assert (held_out["questions"], harder["questions"]) == (200, 40)
    assert held_out["base"] == harder["base"] == 0
    assert held_out["tuned"] >= 180
