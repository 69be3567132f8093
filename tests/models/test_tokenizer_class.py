"""The tokenizer's class without AutoTokenizer, beside the one that AutoTokenizer takes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import CONFIGS
from transformers import AutoTokenizer

from neoxkit import files, paths
from neoxkit.models import tokenizer_class
from neoxkit.models.tiny import tiny_folder

NAMED = (*tokenizer_class.CLASSES, *(f"{name}Fast" for name in tokenizer_class.CLASSES))


def folder(place: Path, family: str, named: str | None) -> Path:
    """Make a folder with tiny's tokenizer, as a model of that family that names that class."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / file, place)
    own = files.read_json(place / "tokenizer_config.json") | {"tokenizer_class": named}
    files.write_json(place / "tokenizer_config.json", own)
    files.write_json(place / "config.json", CONFIGS[family].to_dict())
    return place


def saved(tokenizer, place: Path) -> dict[str, bytes]:
    tokenizer.save_pretrained(place)
    return {file.name: file.read_bytes() for file in place.iterdir()}


@pytest.mark.parametrize("named", [*NAMED, None])
@pytest.mark.parametrize("family", tokenizer_class.FAMILIES)
def test_the_tokenizer_is_autotokenizers(family: str, named: str | None, tmp_path: Path) -> None:
    (place := tmp_path / "model").mkdir()
    folder(place, family, named)
    mine = tokenizer_class.load(str(place), "main")
    other = AutoTokenizer.from_pretrained(place)
    assert type(mine) is type(other) and (tokenizer_class.name_of(place) is None) == (not named)
    assert mine.init_kwargs == other.init_kwargs
    assert mine.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert saved(mine, tmp_path / "a") == saved(other, tmp_path / "b")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"model_type": "llama"}),
        ("config.json", {"model_type": ["gpt_neox"]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": ["GPT2Tokenizer"]}),
        ("tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"}),
    ],
    ids=str,
)
def test_anything_else_is_left_to_autotokenizer(file: str, change: dict, tmp_path: Path) -> None:
    place = folder(tmp_path, "gpt_neox", "TokenizersBackend")
    assert tokenizer_class.name_of(place) == "TokenizersBackend"
    files.write_json(place / file, files.read_json(place / file) | change)
    assert tokenizer_class.name_of(place) is None
    (place / file).write_text("[]")
    assert tokenizer_class.name_of(place) is None
    (place / file).unlink()
    assert tokenizer_class.name_of(place) is None


def test_torch_is_not_imported_to_encode_a_text(home: Path) -> None:
    tiny_folder()
    code = "import sys; from neoxkit.models import loading; "
    code += "loading.load_tokenizer('tiny')('Hello'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, (done.stderr, paths.root())
