"""The trainer's arguments: flags or one JSON file, checked, with transformers' renamed flags."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import is_torch_tf32_available

from neoxkit import machine, paths
from neoxkit.errors import UserError, near
from neoxkit.fields import check
from neoxkit.models import loading, model_names
from neoxkit.runs import resuming
from neoxkit.settings import TrainSettings
from neoxkit.training import contradictions, ds_file, honoured


def _same(name: str) -> Any:
    """Make a field like that setting of 02_train: its default, help text and choices."""
    setting = TrainSettings.__dataclass_fields__[name]
    metadata = {k: setting.metadata[k] for k in ("help", "choices") if setting.metadata[k]}
    factory = setting.default_factory
    given = {"default": setting.default} if factory is MISSING else {"default_factory": factory}
    return field(**given, metadata=metadata)


@dataclass
class KitArguments:
    """The trainer's arguments besides transformers' TrainingArguments."""

    model_name_or_path: str = _same("model_name_or_path")
    revision: str = _same("revision")
    base_commit: str = field(
        default="", metadata={"help": "the commit that it means; empty: as it is now"}
    )
    from_scratch: bool = _same("from_scratch")
    lora_rank: int = _same("lora_rank")
    dataset: str = field(default="", metadata={"help": "the folder that 01_tokenize wrote"})
    dataset_sha256: str = field(default="", metadata={"help": "its manifest's SHA-256; checked"})
    block_size: int = _same("block_size")
    layout: str = _same("layout")
    row_tokens: int = _same("row_tokens")
    attn_implementation: str = _same("attn_implementation")
    precision: str = _same("precision")
    lr_range_from: float = field(
        default=0.0,
        metadata={"help": "range test: the rate rises from here to learning_rate; 0: none"},
    )
    trial: bool = field(default=False, metadata={"help": "write neither a checkpoint nor a model"})
    until_step: int = field(default=0, metadata={"help": "stop after this step; 0: don't"})
    num_replies: int = _same("num_replies")
    snapshots: bool = _same("snapshots")
    early_stopping_patience: int = _same("early_stopping_patience")
    early_stopping_threshold: float = _same("early_stopping_threshold")
    verify_steps: int = _same("verify_steps")
    # transformers' argument, which it does not get: it would refuse save_steps that are not a
    # multiple of eval_steps, and the kit saves each best.
    load_best_model_at_end: bool = field(default=False, init=False)
    allow_change: list[str] = _same("allow_change")
    use_fast_tokenizer: bool = field(
        default=True, metadata={"help": "accepted for the examples' sake; always fast"}
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "accepted for the examples' sake; nothing is cached"}
    )

    @property
    def base(self) -> str:
        """The base's name, at its commit."""
        return model_names.at(self.model_name_or_path, self.base_commit)


@dataclass
class Parsed:
    """The arguments of both classes, and notices to show once."""

    kit: KitArguments
    training: TrainingArguments
    notices: list[str]
    given: dict[str, Any] = field(default_factory=dict)  # in a file, or by flags and defaults
    values: dict[str, Any] = field(default_factory=dict)  # what `training` was made of
    fitting_rate: float | None = None  # the rate that fits the base, once known


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("command line", message[:150], "see python -m neoxkit.train --help")


def parse(argv: Sequence[str]) -> Parsed:
    """Read flags, or the JSON file that a notebook wrote; both give the same arguments."""
    notices: list[str] = []
    # The launcher adds this one; the environment's LOCAL_RANK says the same.
    argv = [a for a in argv if not a.startswith("--local_rank")]
    if len(argv) == 1 and argv[0].endswith(".json"):
        given = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        parsed = build(_rename(given, notices), notices)
    else:
        given = _from_flags(argv, notices)
        parsed = build(given, notices)
    parsed.given = dict(given)
    return parsed


def _from_flags(argv: Sequence[str], notices: list[str]) -> dict[str, Any]:
    # allow_abbrev: otherwise `--see 3` would set the seed. transformers' hint asks for a NewType.
    classes: Any = (KitArguments, TrainingArguments)
    parser = _Parser(classes, allow_abbrev=False)
    parser.set_defaults(logging_steps=10, eval_on_start=None)  # None: as `_evaluates_first` says
    argv = [
        re.sub(r"^--[^=]+", lambda m: m[0].replace("-", "_").replace("__", "--", 1), a)
        for a in argv
    ]
    values, unknown = parser.parse_known_args(_rename_flags(argv, notices))
    if unknown:
        flags = [a for a in unknown if a.startswith("-")] or unknown
        raise _unknown(flags[0].split("=")[0].lstrip("-"), "--")
    return {name: value for name, value in vars(values).items()
            if name != "eval_on_start" or value is not None}  # fmt: skip


def _rename_flags(argv: Sequence[str], notices: list[str]) -> list[str]:
    """Give renamed flags their new names, at the end of the line."""
    old = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in honoured.RENAMED:
        old.add_argument(f"--{name}", nargs="?", const="True", default=argparse.SUPPRESS)
    given, rest = old.parse_known_args(argv)
    renamed = _rename(vars(given), notices, "--")
    return [*rest, *(f"--{name}={value}" for name, value in renamed.items())]


def _rename(values: Mapping[str, Any], notices: list[str], dashes: str = "") -> dict[str, Any]:
    """Give renamed arguments their new names, with a notice of each."""
    renamed: dict[str, Any] = {}
    for name, given in values.items():
        new, fixed = honoured.RENAMED.get(name, (name, None))
        if new is None:
            notices.append(f"transformers 5 no longer has {dashes}{name}")
        elif new != name and name != "gradient_checkpointing":  # the notebooks use the old name
            notices.append(f"{dashes}{name} is {dashes}{new} in transformers 5")
        if new and not (fixed and given in (False, None, "False", "false")):
            renamed[new] = fixed or given
    return renamed


def known_names() -> list[str]:
    """Return every argument name that `parse` takes."""
    return [f.name for f in (*fields(KitArguments), *fields(TrainingArguments)) if f.init]


def _unknown(name: str, dashes: str = "") -> UserError:
    remedy = near(name, known_names(), "see python -m neoxkit.train --help", dashes)
    return UserError(f"{dashes}{name}", "is not an argument of the trainer", remedy)


def build(values: dict[str, Any], notices: list[str]) -> Parsed:
    """Make checked arguments of values; raise UserError for what can't work."""
    names = {f.name for f in fields(KitArguments) if f.init}
    for name in values:
        if name not in known_names():
            raise _unknown(name)
    _check_rules(values)
    kit = KitArguments(**{k: v for k, v in values.items() if k in names})
    training = {k: v for k, v in values.items() if k not in names}
    defaults = _defaults()
    said = {name: value for name, value in training.items() if value != defaults.get(name)}
    training |= honoured.taken(said) | honoured.FIXED
    notices += honoured.notices(said)
    kept = ("trial", "layout", "row_tokens", "attn_implementation", "verify_steps",
            *contradictions.EARLY)  # fmt: skip
    ours = {name: getattr(kit, name) for name in kept}
    contradictions.check_together(defaults | training | ours, machine.num_gpus() > 0)
    if kit.trial:
        training |= {"save_strategy": "no", "load_best_model_at_end": False}
        kit.early_stopping_patience = 0
    kit.load_best_model_at_end = bool(training.pop("load_best_model_at_end", False))
    if kit.load_best_model_at_end or kit.early_stopping_patience:
        training["metric_for_best_model"] = training.get("metric_for_best_model") or "eval_loss"
    training.setdefault("eval_on_start", _evaluates_first(training) and not kit.trial)
    if not training.get("output_dir"):
        raise UserError("output_dir", "is missing", "add --output_dir runs/NAME")
    if not training.get("do_train"):
        raise UserError("do_train", "is missing", "add --do_train (03_evaluate only evaluates)")
    file = training.get("deepspeed")
    training["deepspeed"] = config = _deepspeed(file, notices)
    if kit.precision == "auto":
        kit.precision = resuming.precision(Path(training["output_dir"])) or "auto"
    _set_precision(kit, training, notices)
    if not torch.cuda.is_available():
        training["use_cpu"] = True  # otherwise accelerate takes every rank for the only one
        training["dataloader_pin_memory"] = False
    args = _made(training)
    _check_processes(args)
    parsed = Parsed(kit, args, notices, values=training)
    if config:
        named = paths.short(paths.ds_config("deepspeed", str(file)))
        ds_file.check_values(config, together(parsed), args.world_size, named)
    return parsed


def _made(values: Mapping[str, Any]) -> TrainingArguments:
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError) as fault:
        message = " ".join(str(fault).split())[:120]
        raise UserError("arguments", message, "correct the named argument") from fault


def settle_precision(parsed: Parsed, precision: str) -> None:
    """Say what a precision of auto means on this CPU: make the training arguments anew with it."""
    parsed.kit.precision = precision
    _use_precision(precision, parsed.values, on_gpu=False)
    parsed.training = _made(parsed.values)


def _evaluates_first(values: Mapping[str, Any]) -> bool:
    """Return whether a run begins with an evaluation of its base, unless the caller says: where
    there are evaluations and none of them is delayed."""
    strategy = contradictions.plain(values.get("eval_strategy", "no"))
    return strategy != "no" and not values.get("eval_delay")


def _check_processes(args: TrainingArguments) -> None:
    """Refuse one process with several GPUs, of which transformers would make DataParallel."""
    if args.n_gpu > 1:
        what = f"one process would share {args.n_gpu} GPUs"
        remedy = "start it with deepspeed --module neoxkit.train, or with CUDA_VISIBLE_DEVICES=0"
        raise UserError("command line", what, remedy)


def together(parsed: Parsed) -> dict[str, Any]:
    """Return all arguments in one mapping, as the checks of `honoured` and `ds_file` take them."""
    return vars(parsed.training) | vars(parsed.kit)


def _check_rules(values: Mapping[str, Any]) -> None:
    """Hold a number to the bounds of the setting that it is, as in a notebook.

    Choices are held by the parser, and transformers has more of them (schedules) than a notebook.
    """
    rules = TrainSettings.__dataclass_fields__
    for ours, theirs in TrainSettings.trainer_names().items():
        value = values.get(theirs)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check(theirs, value, rules[ours].metadata)


def _deepspeed(value: str | None, notices: list[str]) -> dict[str, Any] | None:
    """Read the configuration; ZeRO-3 always gathers the weights it saves."""
    if not value:
        return None
    config = ds_file.read("deepspeed", value)
    notices += ds_file.notices(config)
    zero = ds_file.complete(config)["zero_optimization"]
    gather = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and not zero.get(gather):
        zero[gather] = True
        notices.append(f"{gather} is set to true: otherwise no model would be saved")
    return config


def _defaults() -> dict[str, Any]:
    """Return transformers' default of each argument."""
    return {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields(TrainingArguments)
    }


def _set_precision(kit: KitArguments, training: dict[str, Any], notices: list[str]) -> None:
    """Set auto to bf16 where the device is fast at it, else fp32; keep or refuse a choice.

    On a CPU that multiplies bf16 itself auto is left, as fp32: precision.settle measures it.
    """
    for name in ("bf16", "fp16"):
        if training.get(name):
            kit.precision = name
    on_gpu = torch.cuda.is_available() and not training.get("use_cpu")
    if kit.precision == "auto" and (on_gpu or not machine.cpu_has_bf16()):
        kit.precision = loading.best_precision(on_gpu)
    if kit.precision == "fp16" and not on_gpu:
        raise UserError(
            "fp16", "needs a GPU and there is none", "leave it out, or use precision fp32"
        )
    if kit.precision == "bf16" and not on_gpu and not machine.cpu_has_bf16():
        notices.append("bf16 is several times slower than fp32 on a CPU without AMX")
    _use_precision(kit.precision, training, on_gpu)


def _use_precision(precision: str, training: dict[str, Any], on_gpu: bool) -> None:
    """Set the trainer's arguments for a precision; on a CPU gradients are added up in fp32."""
    training["bf16"], training["fp16"] = precision == "bf16", precision == "fp16"
    if precision in ("bf16", "fp16") and on_gpu and is_torch_tf32_available():
        training.setdefault("tf32", True)  # still finer than the half precision of the rest
    config = training.get("deepspeed")
    if config and precision == "bf16" and not on_gpu:
        training["deepspeed"] = ds_file.summing_in_fp32(config)


def zero_stage(args: TrainingArguments) -> int | None:
    """Return DeepSpeed's ZeRO stage; None without DeepSpeed."""
    if not args.deepspeed:
        return None
    return args.hf_deepspeed_config.get_value("zero_optimization.stage", 0)
