"""paths.py: a file is found by the same name from JupyterLab, papermill and a shell."""

import sys
from pathlib import Path

import pytest

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.models import model_names
from neoxkit.settings import CompareSettings


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a root with a file and a model folder in each possible place."""
    root = tmp_path / "kit"
    for place in ("notebooks", "ds_configs", "data"):
        (root / place / f"model-in-{place}").mkdir(parents=True)
        (root / place / f"file-in-{place}.txt").write_text(place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(root))
    return root


@pytest.mark.parametrize("called_from", ["kit", "kit/notebooks", "elsewhere"])
def test_an_uploaded_file_is_found_from_anywhere(
    root: Path, called_from: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent / called_from)
    uploaded = root / "notebooks" / "file-in-notebooks.txt"
    assert paths.find("train_file", "file-in-notebooks.txt") == uploaded
    assert paths.find("train_file", "notebooks/file-in-notebooks.txt") == uploaded
    assert paths.find("train_file", str(uploaded)) == uploaded
    assert paths.find("train_file", "data/file-in-data.txt").read_text() == "data"
    assert model_names.portable("model-in-notebooks") == "notebooks/model-in-notebooks"
    assert model_names.local_folder("data/model-in-data") == root / "data" / "model-in-data"
    assert model_names.resolve("model-in-notebooks") == str(
        root / "notebooks" / "model-in-notebooks"
    )


def test_the_working_directory_comes_first_then_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (root.parent / "elsewhere", root, root / "notebooks")
    for place in places:
        (place / "same.txt").write_text("")
    monkeypatch.chdir(places[0])
    for place in places:
        assert paths.find("train_file", "same.txt").parent == place
        (place / "same.txt").unlink()


def test_a_refusal_names_every_place_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError) as refused:
        paths.find("train_file", "no.txt")
    looked = f"{root} or {root / 'notebooks'}"
    assert str(refused.value).startswith(f"train_file: 'no.txt' does not exist in {looked}"[:130])
    assert model_names.local_folder("no") is None and model_names.local_folder("") is None


def test_a_notebook_notes_that_its_python_is_not_the_kits(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kit without a .venv is installed elsewhere, and that is meant."""
    parameters = {"runs": [], "name": "comparison", "score_again": False}

    def noted() -> str:
        CompareSettings.from_parameters(parameters)
        return capsys.readouterr().out

    assert noted() == ""
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()
    assert noted() == (
        f"note: this is {sys.executable}, not the Python of {root}/.venv: see neoxkit doctor\n"
    )
    monkeypatch.setattr(sys, "prefix", str(root / ".venv"))
    assert noted() == ""
