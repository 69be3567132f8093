"""A dial appears without the libraries that a training needs, and a long cell says so at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from neoxkit.lab import view

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SLOW = ("torch", "datasets", "pandas", "scipy")  # seconds each, or most of one


def cells(notebook: str) -> list[str]:
    made = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in made if cell["cell_type"] == "code"]


def up_to(notebook: str, dial: str, **parameters: str) -> str:
    """Return the program of a notebook's cells, up to the one with that piece of code."""
    code = cells(notebook)
    (last,) = [i for i, cell in enumerate(code) if dial in cell]
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    return "\n".join([code[0], given, *code[1 : last + 1]])


@pytest.mark.parametrize(
    ("notebook", "dial", "parameters"),
    [
        ("01_tokenize", "controls.block_size(", {"train_file": "data/small.txt"}),
        ("02_train", "controls.training(", {"dataset": "small", "run": "unstarted"}),
    ],
)
def test_torch_is_not_imported_for_a_dial(
    notebook: str, dial: str, parameters: dict, home: Path
) -> None:
    asked = f"import sys; print('slow:', *sorted({{*{SLOW}}} & sys.modules.keys()))"
    program = f"{up_to(notebook, dial, **parameters)}\n{asked}"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, "IPYTHONDIR": str(home)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "slow:", done.stdout[-2000:]


def test_the_imports_of_03_leave_torch_to_the_first_model() -> None:
    program = f"{cells('03_evaluate')[1]}\nimport sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_long_cell_says_what_it_does_before_it_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda made: shown.append(made.text))
    monkeypatch.setattr(view, "display", lambda made, **_: shown.append(made.text) or handle)
    with view.doing("reading"):
        assert shown == ["reading ..."]
    assert len(shown) == 2 and re.fullmatch(r"reading: \d+\.\d s", shown[1])
    with pytest.raises(ValueError, match="as it was"), view.doing("reading"):
        raise ValueError("as it was")
    assert shown[2:] == ["reading ..."]  # it did not end
