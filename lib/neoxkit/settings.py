"""One validated settings class a notebook: its table, its JSON, its command line.

The notebooks' `parameters` cells and these classes name the same settings with the same defaults
and the same help; a test holds them together.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import yaml

from neoxkit import paths
from neoxkit.errors import UserError, near

# A run that goes on takes these from its checkpoint.
_FROM_THE_START = (
    "run", "model_name_or_path", "from_scratch", "lora_rank", "weight_decay", "precision",
)  # fmt: skip
# Settings that the trainer knows by another name.
TRAINER_NAMES = {"run": "output_dir", "ds_config": "deepspeed"}
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its help text and its rule: choices, or bounds (above: exclusive)."""
    rule = {"help": help, "choices": choices, "least": least, "most": most, "above": above}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=rule)
    return field(default=default, metadata=rule)


@dataclass(frozen=True)
class Settings:
    """What the three settings classes share: conversion, checks, and ways to show themselves."""

    notebook: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = convert(f.name, f.type, getattr(self, f.name), f.default)
            _check(f.name, value, f.metadata)
            object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """Rules that look at more than one setting."""

    @classmethod
    def from_parameters(cls, names: Mapping[str, Any]) -> Self:
        """Pick this class's settings out of a notebook's names (`globals()`) and check them."""
        missing = [f.name for f in fields(cls) if f.name not in names]
        if missing:
            raise UserError(missing[0], "has no value", "run the parameters cell first")
        return cls(**{f.name: names[f.name] for f in fields(cls)})

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the parameters cell."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        plain = type(self)()
        return {k: v for k, v in self.as_dict().items() if v != getattr(plain, k)}

    def papermill_command(self) -> str:
        """The line that repeats this notebook with these settings, unattended.

        The executed copy goes where `neoxkit run` puts it: 01 has no run and goes by its dataset,
        04 by its name.
        """
        values = self.as_dict()
        folder = f"runs/{next(values[k] for k in ('run', 'dataset', 'name') if k in values)}"
        parts = ["papermill", f"notebooks/{self.notebook}.ipynb", f"{folder}/{self.notebook}.ipynb"]
        plain = {k: v for k, v in self.changed().items() if not isinstance(v, dict | list)}
        for name, value in plain.items():
            raw = isinstance(value, str)  # -r keeps text that reads like a number as text
            parts += ["-r" if raw else "-p", name, str(value)]
        nested = {k: v for k, v in self.changed().items() if isinstance(v, dict | list)}
        if nested:
            parts += ["-y", as_yaml(nested)]
        return f"mkdir -p {folder} && {shlex.join(parts)}"


def as_yaml(value: Any) -> str:
    """A value as YAML on one line, which reads back as the same value."""
    options = {"default_flow_style": True, "allow_unicode": True, "sort_keys": False}
    return yaml.safe_dump(value, width=10**9, **options).strip()


def example(name: str, kind: Any, default: Any) -> str:
    """How a value of a setting is written; `default` is a right value of the numbers.

    >>> example("restart", bool, None), example("block_size", int, 280)
    ('write true or false', 'write for example 280')
    """
    nested = {list: '["Hi"]', dict: "{adam_beta1: 0.9}"}.get(kind)
    if nested:
        return f"write {nested}; at a shell: -p {name} '{nested}'"
    return "write true or false" if kind is bool else f"write for example {default}"


def convert(name: str, kind: Any, value: Any, default: Any = 1) -> Any:
    """A value as its setting's type; papermill and YAML hand over text and numbers of other types.

    >>> convert("learning_rate", float, "2e-5"), convert("restart", bool, "true")
    (2e-05, True)
    """
    try:
        if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind is int and isinstance(value, str):
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        if kind is int and isinstance(value, float) and value == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if kind is list and isinstance(value, tuple):
        return list(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if kind is str and isinstance(value, int | float):
        raise UserError(
            name,
            f"got the number {value!r} for a text",
            f"quote it in YAML; with papermill: -r {name} TEXT",
        )
    nouns = {int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
    noun = nouns.get(kind, "a mapping" if kind is dict else "text")
    raise UserError(name, f"must be {noun}, got {value!r}", example(name, kind, default))


def _check(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    if rule["choices"] and value not in rule["choices"]:
        raise UserError(name, f"got {value!r}", f"choose one of {', '.join(rule['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        what = "is not a number (nan)" if math.isnan(value) else "must be finite"
        raise UserError(name, what, "give a number")
    least, most, above = rule["least"], rule["most"], rule["above"]
    if least is not None and value < least:
        raise UserError(name, f"must be at least {least}, got {value:g}", f"choose {least} or more")
    if above is not None and value <= above:
        raise UserError(name, f"must be above {above}, got {value:g}", f"choose more than {above}")
    if most is not None and value > most:
        raise UserError(name, f"must be at most {most}, got {value:g}", f"choose {most} or less")


@dataclass(frozen=True)
class TokenizeSettings(Settings):
    """Settings of 01_tokenize."""

    notebook: ClassVar[str] = "01_tokenize"

    train_file: str = setting("data/sample.txt", "conversations: text, or JSON Lines (.jsonl)")
    eval_file: str = setting("", "conversations to evaluate on; empty: a share of train_file")
    eval_share: float = setting(
        0.05, "share of the conversations held out, 0 to 0.5", least=0, most=0.5
    )
    dataset: str = setting("sample", "name of the folder written: data/tokenized/<dataset>")
    model_name_or_path: str = setting(
        "tiny", "whose tokenizer: tiny (built in), a hub name, or a folder"
    )
    agent_name: str = setting("", "the answering side; empty: found in the file")
    train_on: str = setting(
        "agent", "agent: the agent's turns; all: every turn", choices=("agent", "all")
    )
    block_size: int = setting(280, "longest conversation in tokens, end mark included", least=8)
    too_long: str = setting(
        "drop",
        "longer ones: drop, cut (at a turn's end) or error",
        choices=("drop", "cut", "error"),
    )
    seed: int = setting(0, "seed of the split", least=0)

    def check(self) -> None:
        paths.check_name("dataset", self.dataset)


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Settings of 02_train; names that transformers has mean what they mean there."""

    notebook: ClassVar[str] = "02_train"

    run: str = setting("demo", "name of the folder written: runs/<run>")
    dataset: str = setting("sample", "what 01_tokenize wrote: data/tokenized/<dataset>")
    model_name_or_path: str = setting("", "the base; empty: the model 01_tokenize named")
    from_scratch: bool = setting(False, "begin with random weights of the model's shape")
    lora_rank: int = setting(0, "train LoRA adapters of this rank; 0: all weights", least=0)
    block_size: int = setting(
        0, "0: the dataset's; smaller: leave longer conversations out", least=0
    )
    layout: str = setting(
        "packed",
        "packed: little padding, as exact; padded: to block_size",
        choices=("packed", "padded"),
    )
    row_tokens: int = setting(
        0, "about how long a packed row is, or twice; 0: by the device", least=0
    )
    attn_implementation: str = setting(
        "auto",
        "auto: flash attention where it is installed, else sdpa",
        choices=ATTENTIONS,
    )
    torch_compile: bool = setting(False, "compile the model: a slower start, faster steps on a GPU")
    ds_config: str = setting(
        "zero2", "zero2, zero2_offload, zero3, zero3_offload, or a file of your own"
    )
    num_ranks: int = setting(0, "GPUs, or CPU processes; 0: every GPU, or one CPU process", least=0)
    precision: str = setting(
        "auto",
        "auto: bf16 where the device is good at it",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    per_device_train_batch_size: int = setting(16, "conversations a rank and micro-batch", least=1)
    per_device_eval_batch_size: int = setting(32, "the same for evaluation", least=1)
    gradient_accumulation_steps: int = setting(1, "micro-batches an optimizer step", least=1)
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, slower")
    num_train_epochs: float = setting(4.0, "times over the dataset", above=0)
    max_steps: int = setting(-1, "stop after so many optimizer steps; -1: by epochs", least=-1)
    learning_rate: float = setting(
        2e-3, "peak; 2e-3 fits tiny from scratch, 1e-5 to 5e-5 a pretrained model", above=0
    )
    warmup_steps: float = setting(0.05, "steps; below 1: a share of all steps", least=0)
    lr_scheduler_type: str = setting(
        "cosine",
        "decay after the warm-up",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
    )
    probe_steps: int = setting(
        0, "steps tried first, by which time and memory are estimated; 0: none", least=0
    )
    range_test_steps: int = setting(
        0, "steps of a learning-rate range test first; 0: none", least=0
    )
    weight_decay: float = setting(0.0, "of AdamW", least=0)
    max_grad_norm: float = setting(1.0, "clip the gradient's norm; 0: never", least=0)
    eval_steps: float = setting(0.1, "evaluate every so many steps; below 1: a share", above=0)
    save_steps: float = setting(0.25, "checkpoint every so many steps; below 1: a share", above=0)
    save_total_limit: int = setting(2, "checkpoints kept", least=1)
    logging_steps: float = setting(5, "log every so many steps; below 1: a share", above=0)
    seed: int = setting(42, "seed of data order and dropout", least=0)
    num_replies: int = setting(
        3, "questions answered at every evaluation, to see it learn; 0: none", least=0
    )
    report_to: str = setting("none", "none, tensorboard, wandb, mlflow, ...")
    hub_model_id: str = setting("", "owner/name on the hub to push it to; empty: it stays here")
    restart: bool = setting(False, "begin anew and keep the old run beside it")
    allow_change: list = setting([], "settings that may differ from those the run began with")
    training_arguments: dict = setting({}, "any other TrainingArguments field, by name")

    def check(self) -> None:
        paths.check_name("run", self.run)
        paths.check_name("dataset", self.dataset)
        if self.block_size and self.block_size < 8:
            raise UserError("block_size", f"must be at least 8, got {self.block_size}", "or 0")
        for name in self.allow_change:
            if name in _FROM_THE_START:
                raise UserError("allow_change", f"{name} can't change in a run", "begin a new run")
            if name not in self.__dataclass_fields__:
                remedy = near(str(name), self.__dataclass_fields__, "name settings of 02_train")
                raise UserError("allow_change", f"{name!r} is no setting", remedy)
        if self.learning_rate > 1:
            what = f"must be at most 1, got {self.learning_rate:g}"
            raise UserError("learning_rate", what, "1e-5 to 2e-3 is usual")
        if self.hub_model_id and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_model_id):
            raise UserError("hub_model_id", f"got {self.hub_model_id!r}", "write owner/name")
        if self.lora_rank and self.hub_model_id:
            what = "is for whole models, and lora_rank trains adapters"
            raise UserError(
                "hub_model_id", what, "neoxkit merge afterwards, and push runs/RUN/merged"
            )
        if self.lora_rank and self.from_scratch:
            what = "adapts pretrained weights, and from_scratch has none"
            raise UserError("lora_rank", what, "set one of them")
        if self.max_steps == 0:
            raise UserError("max_steps", "is 0: no step", "choose 1 or more, or -1: by epochs")


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """Settings of 03_evaluate."""

    notebook: ClassVar[str] = "03_evaluate"

    run: str = setting("demo", "what 02_train wrote: runs/<run>")
    questions_file: str = setting("", "empty: <train_file>_questions.jsonl, else the eval side")
    num_questions: int = setting(300, "at most so many of them", least=1)
    my_questions: list = setting([], "questions of your own, each answered by both models")
    max_new_tokens: int = setting(64, "longest reply in tokens", least=1)
    do_sample: bool = setting(False, "False: greedy; True: sampled with temperature")
    temperature: float = setting(0.7, "of sampling", above=0)
    batch_size: int = setting(32, "conversations scored or answered at once", least=1)
    plain_text_file: str = setting("", "a text of another kind: what was forgotten of it")
    tasks: list = setting([], "tasks of lm_eval (pip install lm_eval) by name, or .yaml files")
    tasks_limit: int = setting(0, "at most so many examples of each task; 0: all", least=0)
    score_checkpoints: bool = setting(True, "score the checkpoints that were kept, too")
    seed: int = setting(0, "seed of sampling", least=0)

    def check(self) -> None:
        paths.check_name("run", self.run)
        for question in self.my_questions:
            if not isinstance(question, str) or not question.strip():
                raise UserError("my_questions", f"got {question!r}", 'write ["one?", "two?"]')
        for task in self.tasks:
            if not isinstance(task, str) or not task.strip():
                raise UserError("tasks", f"got {task!r}", 'write ["piqa", "my_task.yaml"]')


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Settings of 04_compare."""

    notebook: ClassVar[str] = "04_compare"

    runs: list = setting([], 'runs by name, pattern ("lr.*") or folder; empty: every run here')
    name: str = setting("comparison", "name of the folder written: runs/<name>")
    score_again: bool = setting(False, "score all models on the conversations that all evaluate")

    def check(self) -> None:
        paths.check_name("name", self.name)
        for run in self.runs:
            if not isinstance(run, str) or not run.strip():
                raise UserError("runs", f"got {run!r}", 'write ["one", "lr.*"]')


STAGES: tuple[type[Settings], ...] = (TokenizeSettings, TrainSettings, EvaluateSettings)
NOTEBOOKS = (*STAGES, CompareSettings)  # 04 is run by itself: it is about several runs
