"""A model's config.json, read without transformers before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from neoxkit.errors import MOST_CHARACTERS, UserError
from neoxkit.launch import checks
from neoxkit.models import tiny
from neoxkit.settings import TrainSettings


@pytest.fixture
def model(home: Path) -> Path:
    """Make a copy of the built-in model whose config.json a test may change."""
    folder = home / "data" / "models" / "configured"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny.tiny_folder(), folder)
    return folder


def refusal(folder: Path, **changes: object) -> str:
    settings = TrainSettings(
        run="configured", dataset="small", model_name_or_path=str(folder), **changes
    )
    with pytest.raises(UserError) as refused:
        checks.check(settings)
    said = str(refused.value)
    assert "\n" not in said and len(f"error: {said}") <= MOST_CHARACTERS
    return said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "config.json is not JSON -- copy it again"),
        ("[]", "config.json names no model_type -- copy the config.json of the base"),
        (
            '{"model_type": 5}',
            "config.json names no model_type -- copy the config.json of the base",
        ),
        (
            '{"model_type": "gpt_neox", "max_position_embeddings": "x"}',
            "configured can't be loaded (TypeError: Field 'max_position_embeddings' expected",
        ),
    ],
)
def test_a_damaged_one_is_refused_before_anything_starts(
    model: Path, content: str, said: str
) -> None:
    (model / "config.json").write_text(content, "utf-8")
    assert said in refusal(model)


def test_a_family_without_attention_by_conversation_is_refused_there_too(model: Path) -> None:
    config = json.loads((model / "config.json").read_text("utf-8")) | {"model_type": "bloom"}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    assert refusal(model, attn_implementation="varlen") == (
        "attn_implementation: varlen is not known to be exact for bloom -- choose auto"
    )


def test_a_mixture_of_experts_is_not_verified_before_anything_starts(model: Path) -> None:
    config = json.loads((model / "config.json").read_text("utf-8")) | {"num_local_experts": 8}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    said = "verify_steps: a mixture of experts adds numbers up in another order each time"
    assert refusal(model, verify_steps=50).startswith(said)
