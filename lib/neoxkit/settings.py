"""The settings of each notebook, one class a notebook: names, defaults, help and rules.

The notebooks' `parameters` cells and these classes name the same settings with the same defaults
and the same help; a test holds them together.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from neoxkit import paths
from neoxkit.errors import UserError, near
from neoxkit.fields import Settings, setting

END_MARK = "<|endoftext|>"

TINY = "tiny"

# A run that goes on takes these from its checkpoint.
_FROM_THE_START = (
    "run", "model_name_or_path", "from_scratch", "lora_rank", "weight_decay", "precision",
)  # fmt: skip
# Settings that the trainer knows by another name.
TRAINER_NAMES = {"run": "output_dir", "ds_config": "deepspeed"}
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class TokenizeSettings(Settings):
    """Settings of 01_tokenize."""

    notebook: ClassVar[str] = "01_tokenize"

    train_file: str = setting("data/sample.txt", "conversations: text, or JSON Lines (.jsonl)")
    eval_file: str = setting("", "conversations to evaluate on; empty: a share of train_file")
    eval_share: float = setting(
        0.05, "share of the conversations held out, 0 to 0.5", least=0, most=0.5
    )
    dataset: str = setting(
        "", "name of the folder written: data/tokenized/<dataset>; empty: the file's name"
    )
    overwrite: bool = setting(False, "replace a dataset that runs were trained on")
    model_name_or_path: str = setting(
        "tiny", "whose tokenizer: tiny (built in), a hub name, or a folder"
    )
    agent_name: str = setting("", "the answering side; empty: found in the file")
    user_name: str = setting("", "the asking side; empty: found in the file (User, Human, ...)")
    end_mark: str = setting(
        END_MARK, "ends a conversation of a text; none: each question begins one"
    )
    bad_rows: str = setting(
        "error", "conversations that can't be read: error, or skip", choices=("error", "skip")
    )
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
        object.__setattr__(self, "dataset", self.dataset or _name_of(self.train_file))
        paths.check_name("dataset", self.dataset)
        if not self.end_mark.strip():
            what = "is empty"
            raise UserError("end_mark", what, "name the mark, or none: each question begins one")


def _name_of(file: str) -> str:
    """The name of the dataset that a file gives.

    >>> _name_of("data/sample.txt"), _name_of("my talks (new).train.jsonl")
    ('sample', 'my-talks-new-.train')
    """
    name = re.sub(r"[^\w.+=-]+", "-", Path(file).stem).strip("-.+=")[:100]
    if not name:
        raise UserError("dataset", f"{Path(file).name!r} gives no name", "name the dataset")
    return name


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
        0.0, "peak; 0: by the base (tiny 2e-3, Pythia-410m 3e-5, ...)", least=0
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
