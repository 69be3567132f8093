"""How the base of a training is loaded: in which precision, with which attention."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_families import PACKED

from neoxkit import paths
from neoxkit.launch import command
from neoxkit.models.packing import VARLEN
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments, base_model

LONG = [2000] * 9  # conversations' tokens


def parsed(deepspeed: str | None = None, **changes: Any) -> arguments.Parsed:
    settings = TrainSettings(run="loaded", dataset="small", **changes)
    made = arguments.build(command.trainer_arguments(settings) | {"deepspeed": deepspeed}, [])
    made.kit.model_name_or_path = "tiny"
    return made


@pytest.mark.parametrize(
    ("deepspeed", "precision", "expected"),
    [
        ("zero2", "bf16", torch.bfloat16),
        ("zero2", "fp32", torch.float32),
        (None, "bf16", torch.float32),  # autocast needs them
    ],
)
def test_weights_are_read_in_the_trainings_precision(
    home: Path, deepspeed: str | None, precision: str, expected: torch.dtype
) -> None:
    model = base_model.load(parsed(deepspeed, precision=precision), paths.run("loaded"), LONG)
    assert {p.dtype for p in model.parameters()} == {expected}


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("gpt_neox", {}, VARLEN),
        ("gpt_neox", {"layout": "padded"}, None),
        ("gpt_neox", {"row_tokens": 4000}, None),
        ("mistral", {}, None),  # it sees a window, whose masks one long row would make large
    ],
)
def test_the_attention_follows_from_rows_and_family(
    home: Path, family: str, changes: dict, expected: str | None
) -> None:
    assert base_model._kernel(parsed(**changes), PACKED[family], LONG) == expected
