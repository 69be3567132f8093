"""notebook.py: the contents of a notebook on disk, whatever JupyterLab saved into it."""

import json
import subprocess
import sys

import pytest

from neoxkit import notebook
from neoxkit.notebook import Expression


def cell(source: str | list[str], *tags: str, kind: str = "code", **more: object) -> dict:
    return {"cell_type": kind, "source": source, "metadata": {"tags": [*tags]}, **more}


def held(source: str | list[str]) -> dict:
    """Return the parameters of a notebook with this parameters cell."""
    cells = [cell("seed = 1"), cell(source, "parameters"), cell("seed = 2", "injected-parameters")]
    return notebook.parameters({"cells": cells})


def test_parameters_are_the_literals_of_their_cell() -> None:
    assert held('run: str = "a"  # b\nrate: float = 5e-05\nn: int = -1\nflag = True\nno: int') == {
        "run": "a",
        "rate": 5e-05,
        "n": -1,
        "flag": True,
    }
    assert held(["asked: list = [\n", '  "a?",\n', "]\n", "more: dict = {'b': 0.9}"]) == {
        "asked": ["a?"],
        "more": {"b": 0.9},
    }
    assert held("seed = 3\nseed = 4") == {"seed": 4}
    assert notebook.parameters({}) == notebook.parameters({"cells": []}) == held("") == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("rate = 2 * 1e-4", "2 * 0.0001"),
        ("rate: float = base / 2", "base / 2"),
        ("rate = 1e-4\nrate *= 2", "rate *= 2"),
        ("rate, n = 1e-4, 2", "rate, n = (0.0001, 2)"),
        ("rate = 1e-4\nif big:\n    rate = 1e-5", "if big:\n    rate = 1e-05"),
        ("rate = 1e-4\ndel rate", "del rate"),
    ],
)
def test_a_value_that_is_not_a_literal_is_unknown(source: str, found: str) -> None:
    assert held(source)["rate"] == Expression(found)
    assert held(source)["rate"] not in (found, 1e-4)


def test_a_cell_that_is_not_python_holds_nothing() -> None:
    assert held("rate = ") == {}


CELLS = [cell("seed = 1", "parameters"), cell("a = 1"), cell("Prose", kind="markdown")]


@pytest.mark.parametrize(
    "saved",
    [
        [cell("seed = 2\nmine = 3", "parameters"), *CELLS[1:]],
        [CELLS[0], cell(["a =", " 1"], outputs=[{"text": "1"}], execution_count=7)],
        [*CELLS[:2], cell("Other prose", kind="markdown"), cell(""), cell("\n")],
        [CELLS[0], cell("seed = 2", "injected-parameters"), CELLS[1]],
    ],
    ids=["parameters", "outputs", "prose and empty cells", "injected parameters"],
)
def test_what_jupyter_saves_besides_code_is_not_a_change(saved: list[dict]) -> None:
    assert notebook.code({"cells": saved}) == notebook.code({"cells": CELLS}) == ["a = 1"]


@pytest.mark.parametrize(
    "saved",
    [
        [CELLS[0], cell("a = 2")],
        [*CELLS, cell("a = 1")],
        [CELLS[0]],
        [CELLS[0], cell("a = 1", kind="raw")],
    ],
    ids=["another line", "a further cell", "a missing cell", "a cell switched off"],
)
def test_a_changed_cell_is_a_change(saved: list[dict]) -> None:
    assert notebook.code({"cells": saved}) != ["a = 1"]


def test_a_damaged_notebook_has_no_cells() -> None:
    assert notebook.parsed("<<<<<<< HEAD\n{}") == notebook.parsed("[]") == {}
    assert notebook.parsed(json.dumps({"cells": CELLS})) == {"cells": CELLS}


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, neoxkit.notebook; sys.exit(bool({'papermill', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
