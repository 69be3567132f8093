"""The trainer's arguments: flags or one JSON file, renamed flags, refusals."""

import json
import shlex
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.launch import command
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments

BASIC = ["--output_dir", "out", "--do_train", "--dataset", "data"]


def test_flags_and_json_give_the_same_arguments(tmp_path: Path) -> None:
    values = {
        "output_dir": "out",
        "do_train": True,
        "dataset": "data",
        "learning_rate": 3e-4,
        "num_train_epochs": 1.5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": 5,
        "layout": "padded",
        "deepspeed": "zero3",
        "gradient_checkpointing": True,
        "report_to": "none",
    }
    flags = []
    for name, value in values.items():
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps(values))
    one, other = arguments.parse(flags), arguments.parse(["--local_rank=0", str(file)])
    assert one.kit == other.kit
    first, second = one.training.to_dict(), other.training.to_dict()
    assert {k: (v, second[k]) for k, v in first.items() if v != second[k]} == {}
    assert first["learning_rate"] == 3e-4 and first["activation_checkpointing"] is True
    assert first["deepspeed"]["zero_optimization"]["stage"] == 3


def test_the_trainer_takes_each_setting_that_it_gets() -> None:
    """A setting's default and choices are declared once, in 02's settings."""
    theirs = TrainSettings.trainer_names()
    assert {*theirs.values()} <= {*arguments.known_names()}
    own = {f.name for f in fields(arguments.KitArguments)} & {*theirs} - {"dataset"}
    kit, settings = arguments.KitArguments(), TrainSettings()
    assert {n: getattr(kit, n) for n in own} == {n: getattr(settings, n) for n in own}
    assert len(own) == 16


NOUGHT = {"max_grad_norm": 0, "num_replies": 0, "warmup_steps": 0}


@pytest.mark.parametrize(
    "changes", [{}, NOUGHT, {"from_scratch": True, "training_arguments": {"adam_beta1": 0.8}}]
)
def test_the_printed_deepspeed_line_has_the_same_arguments(
    home: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Compare with the file that 02 starts the training with; a 0 that is set is not a default."""
    settings = TrainSettings(run="line", dataset="small", **changes)
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps(command.trainer_arguments(settings)))
    words = shlex.split(command.shell_command(settings))
    assert (words[0], words[2:4]) == ("deepspeed", ["--module", "neoxkit.train"])
    one, other = arguments.parse(words[4:]), arguments.parse([str(file)])
    assert one.training.to_dict() == other.training.to_dict()
    assert replace(one.kit, dataset_sha256="") == replace(other.kit, dataset_sha256="")


@pytest.mark.parametrize("launcher", ["slurm", "hostfile"])
def test_a_training_on_other_machines_is_the_kits_to_start(home: Path, launcher: str) -> None:
    settings = TrainSettings(run="line", dataset="small", launcher=launcher, num_nodes=2)
    words = shlex.split(command.shell_command(settings))
    assert words[:2] == ["neoxkit", "run"]
    assert {("launcher", launcher), ("num_nodes", "2")} <= {*pairwise(words)}


@pytest.mark.parametrize(
    ("old", "name", "value", "notice"),
    [
        ("--evaluation_strategy=steps", "eval_strategy", "steps", "--eval_strategy"),
        ("--evaluation_strategy steps", "eval_strategy", "steps", "--eval_strategy"),
        ("--warmup_ratio 0.1", "warmup_steps", 0.1, "--warmup_steps"),
        ("--no_cuda", "use_cpu", True, "--use_cpu"),
        ("--group_by_length", "train_sampling_strategy", "group_by_length", "--train_sampling"),
        ("--group_by_length False", "train_sampling_strategy", "random", "--train_sampling"),
        ("--overwrite_output_dir", "output_dir", "out", "no longer has"),
        ("--save_safetensors True", "output_dir", "out", "no longer has"),
    ],
)
def test_each_renamed_flag_works_with_one_notice(
    old: str, name: str, value: object, notice: str
) -> None:
    parsed = arguments.parse([*BASIC, *old.split()])
    assert getattr(parsed.training, name) == value
    assert len(parsed.notices) == 1 and notice in parsed.notices[0]
    assert old.split("=")[0].split()[0] in parsed.notices[0]


def test_renamed_arguments_of_a_file_work_with_one_notice_each(tmp_path: Path) -> None:
    old = {"evaluation_strategy": "steps", "group_by_length": True, "warmup_ratio": 0.1}
    values = {"output_dir": "out", "do_train": True, **old, "overwrite_output_dir": True}
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps(values))
    parsed = arguments.parse([str(file)])
    training = parsed.training
    assert (training.eval_strategy, training.warmup_steps) == ("steps", 0.1)
    assert training.train_sampling_strategy == "group_by_length"
    assert [notice.split()[0] for notice in parsed.notices[:3]] == [*old]
    assert parsed.notices[3:] == ["transformers 5 no longer has overwrite_output_dir"]
    file.write_text(json.dumps(values | {"group_by_length": False}))
    assert arguments.parse([str(file)]).training.train_sampling_strategy == "random"


def test_the_users_command_works_unchanged() -> None:
    """Give all its flags except fp16, which a machine without a GPU refuses."""
    line = """--dataset data/tokenized/sample --deepspeed ds_configs/zero2.json
        --model_name_or_path pythia-1.4b-deduped --do_train --do_eval --block_size 280
        --overwrite_cache --evaluation_strategy=steps --output_dir custom --num_train_epochs 1
        --eval_steps 200 --gradient_accumulation_steps 1 --per_device_train_batch_size 64
        --use_fast_tokenizer True --learning_rate 5e-06 --warmup_steps 5"""
    parsed = arguments.parse(["--local_rank=0", *line.split()])
    kit, training = parsed.kit, parsed.training
    assert (kit.block_size, kit.overwrite_cache, kit.use_fast_tokenizer) == (280, True, True)
    assert (training.eval_steps, training.per_device_train_batch_size) == (200, 64)
    assert (training.learning_rate, training.warmup_steps) == (5e-6, 5)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--see", "3"], "--see: is not an argument of the trainer -- did you mean --seed?"),
        (
            ["--lerning_rate", "1"],
            "--lerning_rate: is not an argument of the trainer -- did you mean",
        ),
        (
            ["--learning_rate", "fast"],
            "command line: argument --learning_rate/--learning-rate: invalid",
        ),
        (["--layout", "loose"], "command line: argument --layout: invalid choice: 'loose'"),
        (["--deepspeed", "nowhere.json"], "deepspeed: 'nowhere.json' does not exist in"),
        (["--eval_strategy", "sometimes"], "command line: argument --eval_strategy"),
        (["--lora_rank", "-1"], "lora_rank: must be at least 0, got -1 -- choose 0 or more"),
        (["--num_train_epochs", "0"], "num_train_epochs: must be above 0, got 0 -- choose more"),
    ],
)
def test_mistakes_are_refused_in_one_line(flags: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        arguments.parse([*BASIC, *flags])
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["--output_dir", "--do_train"])
def test_a_missing_argument_is_named(missing: str) -> None:
    at = BASIC.index(missing)
    rest = BASIC[:at] + BASIC[at + (2 if missing == "--output_dir" else 1) :]
    with pytest.raises(UserError, match=rf"^{missing[2:]}: is missing -- add {missing}"):
        arguments.parse(rest)


def test_precision_is_fp32_on_a_cpu_and_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)
    assert arguments.parse(BASIC).kit.precision == "fp32"
    slow = arguments.parse([*BASIC, "--precision", "bf16"])
    assert slow.training.bf16 and "slower than fp32" in slow.notices[0]
    for flags in (["--fp16"], ["--precision", "fp16"]):
        with pytest.raises(UserError, match=r"^fp16: needs a GPU"):
            arguments.parse([*BASIC, *flags])


@pytest.mark.parametrize(("good", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_is_bf16_on_a_gpu_that_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, good: bool, expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: good)
    kit, training, notices = arguments.KitArguments(), {}, []
    arguments._set_precision(kit, training, notices)
    assert (kit.precision, training["bf16"], notices) == (expected, expected == "bf16", [])


@pytest.mark.parametrize(
    "name", ("label_smoothing_factor", "save_only_model", "enable_jit_checkpoint")
)
def test_arguments_that_would_be_ignored_are_refused(name: str) -> None:
    value = {"label_smoothing_factor": ["0.1"]}.get(name, [])
    with pytest.raises(UserError, match=f"^{name}: "):
        arguments.parse([*BASIC, f"--{name}", *value])


def test_zero3_always_gathers_the_weights_it_saves(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text('{"zero_optimization": {"stage": 3}}')
    parsed = arguments.parse([*BASIC, "--deepspeed", str(config)])
    assert parsed.training.deepspeed["zero_optimization"][
        "stage3_gather_16bit_weights_on_model_save"
    ]
    assert any("stage3_gather" in notice for notice in parsed.notices)


def test_dashes_may_be_written_for_underscores() -> None:
    parsed = arguments.parse([*BASIC, "--learning-rate", "5e-5", "--evaluation-strategy=steps"])
    assert (parsed.training.learning_rate, parsed.training.eval_strategy) == (5e-5, "steps")


def test_a_broken_config_names_its_line(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text('{\n  "bf16": {,}\n}')
    with pytest.raises(UserError, match=r"mine\.json:2: is not JSON"):
        arguments.parse([*BASIC, "--deepspeed", str(config)])


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", True), ("fp16", True), ("fp32", None)]
)
def test_tf32_is_used_if_the_precision_is_coarser(
    monkeypatch: pytest.MonkeyPatch, precision: str, expected: bool | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(arguments, "is_torch_tf32_available", lambda: True)
    training: dict = {}
    arguments._set_precision(arguments.KitArguments(precision=precision), training, [])
    assert training.get("tf32") is expected
