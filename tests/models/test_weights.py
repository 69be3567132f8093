"""A model as it comes: right, or refused in one line with the true cause."""

import shutil
from pathlib import Path

import pytest
import torch
from odd_models import FINE, REFUSED, pickled

from neoxkit.cli import main
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.models.tiny import tiny_folder


@pytest.fixture
def folder(home: Path) -> Path:
    """A copy of the built-in model."""
    folder = home / "data" / "models" / "brought"
    for earlier in folder.parent.glob("brought*"):
        shutil.rmtree(earlier)
    shutil.copytree(tiny_folder(), folder)
    return folder


def load(folder: Path) -> None:
    """Load it as a training does."""
    loading.check_base(str(folder))
    loading.load_tokenizer(str(folder))
    loading.load_model(str(folder))


@pytest.mark.parametrize("kind", FINE)
def test_a_model_that_is_whole_is_loaded(folder: Path, kind: str) -> None:
    FINE[kind](folder)
    load(folder)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_is_not_is_refused_with_the_true_cause(folder: Path, kind: str) -> None:
    make, what, remedy = REFUSED[kind]
    make(folder)
    with pytest.raises(UserError) as refused:
        load(folder)
    said = str(refused.value)
    assert said.startswith("model_name_or_path: ") and "\n" not in said
    assert what in said.partition(" -- ")[0] and remedy in said.partition(" -- ")[2], said


@pytest.mark.parametrize(
    "kind", ["torch.compile", "data parallel", "wrapped", "a pickle", "nested"]
)
def test_what_is_converted_is_the_same_model(folder: Path, kind: str) -> None:
    """Follow the remedy exactly: the command of the refusal gives a model that loads."""
    before = loading.load_model(str(folder)).state_dict()
    if kind == "nested":
        pickled(folder)
        held = torch.load(folder / "pytorch_model.bin", weights_only=True)
        torch.save({"step": 3, "state_dict": held}, folder / "pytorch_model.bin")
    else:
        REFUSED[kind][0](folder)
    with pytest.raises(UserError) as refused:
        load(folder)
    remedy = str(refused.value).partition(" -- ")[2].split()
    assert remedy[:2] == ["neoxkit", "convert"]
    assert main.main(remedy[1:]) == 0
    after = folder.with_name("brought-converted")
    load(after)
    tensors = loading.load_model(str(after)).state_dict()
    assert tensors.keys() == before.keys()
    assert all(tensors[key].equal(before[key]) for key in before)


def test_a_pickle_that_holds_more_than_tensors_is_not_converted(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    pickled(folder)
    torch.save({"gpt_neox.embed_in.weight": Path("x")}, folder / "pytorch_model.bin")
    assert main.main(["convert", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "can't be converted (it holds more than tensors" in said and said.count("\n") == 1
    assert said.endswith(" -- ask whoever made it for safetensors\n")
    assert not folder.with_name("brought-converted").exists()
