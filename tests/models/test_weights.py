"""A model as it comes: right, or refused in one line with the true cause."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from odd_models import FINE, REFUSED, change, pickled, pointer, prefixed
from safetensors.torch import load_file, save_file

from neoxkit.cli import main
from neoxkit.errors import UserError
from neoxkit.models import convert, loading, lora
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
    "kind",
    ["torch.compile", "data parallel", "wrapped", "both", "half", "inside another module",
     "a pickle",
     "checkpoint"],
)  # fmt: skip
def test_what_is_converted_is_the_same_model(folder: Path, kind: str) -> None:
    """Follow the remedy exactly: the command of the refusal gives a model that loads."""
    before = loading.load_model(str(folder)).state_dict()
    if kind == "checkpoint":
        pickled(folder)
        held = torch.load(folder / "pytorch_model.bin", weights_only=True)
        whole = {"step": 3, "model": held, "optimizer": {"state": {0: torch.ones(2)}}}
        torch.save(whole, folder / "pytorch_model.bin")
    elif kind == "half":
        odd = {k: f"module.{k}" for i, k in enumerate(before) if i % 2}
        change(folder, lambda tensors: {odd.get(k, k): v for k, v in tensors.items()})
    elif kind == "both":
        prefixed("module._orig_mod.")(folder)
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


def test_a_copy_is_named_after_its_run(home: Path, folder: Path) -> None:
    """Two runs have a folder model each, and neither copy takes the other's place."""
    for run in ("one", "two"):
        model = home / "runs" / run / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(folder, model)
        assert convert.convert(f"runs/{run}/model").name == f"{run}-model-converted"
    with pytest.raises(UserError, match=r"two-model-converted exists -- delete or rename it first"):
        convert.convert("runs/two/model")
    for copy in (home / "data" / "models").glob("*-model-converted"):
        shutil.rmtree(copy)


def test_code_in_a_pickle_does_not_run_when_it_is_converted(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple:
            return canary.touch, ()

    pickled(folder)
    torch.save({"gpt_neox.embed_in.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors"):
        convert.convert(str(folder))
    assert not canary.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert canary.exists()  # it would have


def test_a_refusal_is_all_that_is_printed(folder: Path) -> None:
    """transformers would print its report of the weights, a table of many lines."""
    REFUSED["a layer is missing"][0](folder)
    program = f"from neoxkit.models import loading; loading.check_weights({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == ""
    before, _, said = done.stderr.partition("Traceback (most recent call last):")
    assert before == "" and "holds 3 -- use the config.json of these weights" in said


def spoil(file: Path, new: Callable[[dict], dict]) -> None:
    save_file(new(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (lambda t: dict(list(t.items())[:1]), "lacks "),
        (lambda t: {f"x.{k}": v for k, v in t.items()}, "lacks "),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "NaN or infinite"),
        (None, "is cut short or damaged"),
    ],
)
def test_adapters_that_are_not_whole_are_refused(
    folder: Path, new: Callable[[dict], dict] | None, said: str
) -> None:
    adapted = lora.add(loading.load_model("tiny"), 2, "tiny", False)
    place = folder.with_name("brought-adapters")
    adapted.save_pretrained(place)
    loading.load_model(str(place))
    file = place / "adapter_model.safetensors"
    if new:
        spoil(file, new)
    else:
        file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=said):
        loading.load_model(str(place))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("[]", "adapter_config.json of {} names no base -- set base_model_name_or_path there"),
        ({"base_model_name_or_path": None}, "adapter_config.json of {} names no base -- set"),
        ({"base_model_name_or_path": "{}"}, "adapter_config.json of {} names no base -- set"),
        ({"r": 4}, "the adapters in {} don't fit their base (size mismatch for "),
        ({"target_modules": ["x"]}, "the adapters in {} don't fit their base (Target modules"),
        ({"peft_type": "NOPE"}, "the adapters in {} don't fit their base ('NOPE')"),
        ("no weights", "{} has no adapter_model.safetensors -- copy the adapters again"),
    ],
)
def test_adapters_that_name_no_base_or_do_not_fit_it_are_one_line(
    folder: Path, values: dict | str, said: str
) -> None:
    place = folder.with_name("brought-adapters")
    lora.add(loading.load_model("tiny"), 2, "tiny", False).save_pretrained(place)
    config = place / "adapter_config.json"
    if values == "no weights":
        (place / "adapter_model.safetensors").unlink()
    elif isinstance(values, str):
        config.write_text(values)
    else:
        given = {k: str(place) if v == "{}" else v for k, v in values.items()}
        config.write_text(json.dumps(json.loads(config.read_text()) | given))
    with pytest.raises(UserError) as refused:
        loading.load_model(str(place))
    wanted = "model_name_or_path: " + said.replace("{}", "data/models/brought-adapters")
    assert str(refused.value).startswith(wanted) and "\n" not in str(refused.value)


def test_adapters_of_a_run_are_merged_by_the_kit_and_others_by_peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"-- merge them into their base \(peft: merge_and_unload\)"
    ):
        loading.check_base(str(folder))
    model = folder.parents[2] / "runs" / "one" / "model"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(folder, model)
    with pytest.raises(UserError, match=r"-- neoxkit merge one, and give runs/one/merged$"):
        loading.check_base("runs/one/model")


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda f: pointer(f, "pytorch_model.bin"), "is a Git LFS pointer -- run git lfs pull"),
        (
            lambda f: (f / "pytorch_model.bin").write_text("<html>"),
            "cut short or damaged (6 bytes)",
        ),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "cut short or damaged (0 bytes)"),
        (
            lambda f: (f / "pytorch_model.bin").write_bytes(
                (f / "pytorch_model.bin").read_bytes()[:5000]
            ),
            "cut short or damaged (5,000 bytes) -- copy or download it again",
        ),
        (
            lambda f: (f / "pytorch_model.bin").unlink(),
            "has no model.safetensors and no pytorch_mo",
        ),
    ],
)
def test_what_holds_no_weights_is_not_taken_for_code(
    folder: Path, spoiled: Callable[[Path], None], said: str
) -> None:
    pickled(folder)
    spoiled(folder)
    with pytest.raises(UserError) as refused:
        convert.convert(str(folder))
    assert said in str(refused.value) and not folder.with_name("brought-converted").exists()
