"""A DeepSpeed file: keys that DeepSpeed does not know, and values that contradict the settings."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from deepspeed.runtime import config as theirs
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)

from neoxkit.errors import MOST_CHARACTERS, UserError
from neoxkit.launch import checks, forecast, nodes
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments, ds_file

SMALL = TrainSettings(run="ds-file", dataset="small", max_steps=8, per_device_train_batch_size=8)
ZERO = {"zero_optimization": {"stage": 2}}
CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))


class Asked(dict):
    """A configuration that notes which keys are asked for."""

    asked: set[str]

    def get(self, key: str, *default: Any) -> Any:
        self.asked.add(key)
        return super().get(key, *default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> "Asked":
        return self


def test_the_keys_are_those_that_deepspeed_asks_for() -> None:
    config = Asked(train_batch_size=8, train_micro_batch_size_per_gpu=8, **copy.deepcopy(ZERO))
    config.asked = set()
    theirs.DeepSpeedConfig(config)
    known = {*ds_file.READ, *ds_file.REFUSED, *ds_file.NOTED}
    assert config.asked - {*theirs._REMOVED_TOP_LEVEL_CONFIG_KEYS} == known
    assert len(known) == sum(map(len, (ds_file.READ, ds_file.REFUSED, ds_file.NOTED)))


@pytest.mark.parametrize(
    ("block", "model"),
    [
        ("bf16", DeepSpeedBF16Config),
        ("fp16", DeepSpeedFP16Config),
        ("zero_optimization", DeepSpeedZeroConfig),
        ("zero_optimization.offload_param", DeepSpeedZeroOffloadParamConfig),
        ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
    ],
)
def test_the_keys_of_blocks_are_those_of_deepspeed(block: str, model: Any) -> None:
    names = {field.alias or name: field for name, field in model.model_fields.items()}
    old = {n for n, f in names.items() if (f.json_schema_extra or {}).get("deprecated")}
    assert {*names} - old == {*ds_file.BLOCKS[block]}
    if block == "zero_optimization":
        assert old == {*ds_file.RENAMED}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_kits_own_files_pass(path: Path) -> None:
    config = ds_file.read("ds_config", path.stem)
    assert ds_file.notices(config) == []
    assert ds_file.complete(copy.deepcopy(config)) == config


def refusal(home: Path, config: Any, **changes: Any) -> str:
    """Return the refusal, which 02 and a shell have in common, without the file's name."""
    path = home / "mine.json"
    path.write_text(json.dumps(config), "utf-8")
    settings = SMALL.replace(ds_config="mine.json", **changes)
    with pytest.raises(UserError) as refused:
        checks.check(settings)
    said = str(refused.value)
    assert "\n" not in said and len(f"error: {said}") <= MOST_CHARACTERS and " ..." not in said
    assert said.startswith("mine.json: ")
    if settings.precision != "auto":  # of which a rank knows what it becomes
        values = {"per_device_train_batch_size": 8, "precision": settings.precision}
        given = {"output_dir": "out", "do_train": True, "deepspeed": "mine.json", **values}
        with pytest.raises(UserError) as again:
            arguments.build(given, [])
        assert str(again.value) == said
    return said.removeprefix("mine.json: ")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "is not a mapping of settings -- write {...}, as in ds_configs/"),
        ({"train_batchsize": 8}, "train_batchsize is not a key of DeepSpeed -- did you mean train"),
        ({"zero": {}}, "zero is not a key of DeepSpeed -- delete it: DeepSpeed would ignore it"),
        ({"amp": {"enabled": True}}, "amp is not a key of DeepSpeed -- delete it: DeepSpeed would"),
        ({"zero_optimization": True}, "zero_optimization must be a mapping, got True -- write {"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_fp16_weights_on_model_save": True}},
            "zero_optimization.stage3_gather_fp16_weights_on_model_save is an old name -- "
            "use stage3_gather_16bit_weights_on_model_save",
        ),
        (
            {"zero_optimization": {"cpu_offload": True}},
            "zero_optimization.cpu_offload is an old name -- use offload_optimizer",
        ),
        (
            {"zero_optimization": {"overlapcomm": True}},
            "zero_optimization.overlapcomm is not a key of DeepSpeed -- did you mean overlap_comm?",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4 -- choose 0, 1, 2 or"),
        (
            {"zero_optimization": {"stage": "2"}},
            "zero_optimization.stage must be a whole number, got '2' -- correct it",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pinned": True}}},
            "zero_optimization.offload_optimizer.pinned is not a key of DeepSpeed -- delete it",
        ),
        (
            {"zero_optimization": {"sub_group_size": "auto"}},
            'zero_optimization.sub_group_size is "auto", which nothing fills in -- write a value',
        ),
        ({"log_level": "auto"}, 'log_level is "auto", which nothing fills in -- write a value'),
        (
            {"wall_clock_breakdown": "yes"},
            "wall_clock_breakdown must be true or false, got 'yes' -- correct it",
        ),
        ({"flops_profiler": True}, "flops_profiler must be a mapping, got True -- write {...}"),
        ({"bf16": None}, "bf16 must be a mapping, got None -- write {...}"),
        ({"gradient_clipping": "1"}, "gradient_clipping must be a number, got '1' -- correct it"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            'zero_optimization.offload_optimizer.device is "gpu" -- choose none, cpu or nvme',
        ),
        (
            {"train_batch_size": 16},
            "train_batch_size is 16, but batch size x accumulation x 1 rank(s) is 8 -- write ",
        ),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu is 4, but per_device_train_batch_size is 8 -- "
            'write "auto" there: then the settings count',
        ),
        (
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps is 2, but gradient_accumulation_steps is 1 -- ",
        ),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but max_grad_norm is 1 -- "),
        (
            {"bf16": {"enabled": True}},
            "bf16.enabled is true, but precision is fp32 -- "
            'write "auto" there, or set precision to bf16',
        ),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but precision is fp32 -- "),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_starts(home: Path, config: Any, said: str) -> None:
    assert refusal(home, config, precision="fp32").startswith(said)


@pytest.mark.parametrize("key", ds_file.REFUSED)
def test_what_would_win_over_the_settings_is_refused(home: Path, key: str) -> None:
    why, remedy = ds_file.REFUSED[key]
    assert refusal(home, {**ZERO, key: {}}, precision="fp32") == f"{key} {why} -- {remedy}"


@pytest.mark.parametrize(
    ("name", "enabled", "precision", "remedy"),
    [
        ("bf16", True, "auto", "bf16"),
        ("bf16", False, "auto", "fp32"),
        ("fp16", True, "auto", "fp16"),
        ("bf16", False, "bf16", "fp32"),
    ],
)
def test_a_precision_in_the_file_is_the_settings_too(
    home: Path, name: str, enabled: bool, precision: str, remedy: str
) -> None:
    config = ZERO | {name: {"enabled": enabled}}
    said = refusal(home, config, precision=precision)
    assert said.endswith(f'write "auto" there, or set precision to {remedy}')


def test_a_key_that_is_there_twice_is_refused(home: Path) -> None:
    (home / "mine.json").write_text('{"gradient_clipping": 1, "gradient_clipping": 2}', "utf-8")
    with pytest.raises(UserError, match=r"^mine\.json: gradient_clipping is there twice -- delete"):
        checks.check(SMALL.replace(ds_config="mine.json"))


def test_the_dials_refuse_such_a_file_too(home: Path) -> None:
    """They estimate the memory before a start is checked."""
    (home / "mine.json").write_text('{"zero_optimization": true}', "utf-8")
    with pytest.raises(UserError, match=r"^mine\.json: zero_optimization must be a mapping"):
        forecast.job_of(SMALL.replace(ds_config="mine.json"), "tiny", nodes.of(SMALL))


def taken(home: Path, config: dict[str, Any], **changes: Any) -> arguments.Parsed:
    """Check a file as 02 does, and build the arguments as a rank does."""
    (home / "mine.json").write_text(json.dumps(config), "utf-8")
    settings = SMALL.replace(ds_config="mine.json", **changes)
    return arguments.build(dict(checks.check(settings).arguments), [])


def test_values_that_agree_and_notes_pass(home: Path) -> None:
    config = {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1,
        "bf16": {"enabled": True}, "fp16": {"enabled": False}, "steps_per_print": 100,
        "log_level": None, "wall_clock_breakdown": False,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 2e7, "offload_param": None},
    }  # fmt: skip
    parsed = taken(home, config, precision="bf16")
    said = "deepspeed: steps_per_print has no effect: metrics.jsonl has every step"
    assert parsed.notices[0] == said
    assert not parsed.training.hf_deepspeed_config.mismatches


def test_what_a_file_leaves_out_comes_from_the_settings(home: Path) -> None:
    parsed = taken(home, {}, gradient_accumulation_steps=4, max_grad_norm=0.5)
    config = parsed.training.hf_deepspeed_config.config
    assert config["train_batch_size"] == 32 and config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5 and config["zero_optimization"] == {"stage": 0}
