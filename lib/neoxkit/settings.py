"""The settings of each notebook, one class per notebook: names, defaults, help and rules.

The notebooks' `parameters` cells and these classes name the same settings with the same defaults
and the same help texts; a test compares them.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from neoxkit import paths
from neoxkit.errors import UserError, near
from neoxkit.fields import UNSET, Settings, setting

END_MARK = "<|endoftext|>"

TINY = "tiny"

MOST_SHARE = 0.5  # of the conversations that may be held out, by all shares together

MOST_EVAL_FILES = 6  # each has a curve, and more can't be told apart

COLUMN_ROLES = ("user", "agent", "system", "messages", "text")
_PAIRS = ({"user", "agent"}, {"user", "agent", "system"})  # the roles of columns with single turns
ATTENTIONS = ("auto", "sdpa", "eager", "varlen", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class TokenizeSettings(Settings):
    """Settings of 01_tokenize."""

    notebook: ClassVar[str] = "01_tokenize"

    # The data
    train_file: str = setting(
        "data/sample.txt", "conversations: a file, a folder, or owner/name on the hub"
    )
    dataset: str = setting(
        "", "output folder data/tokenized/<dataset>; empty: named after the file"
    )
    model_name_or_path: str = setting(
        "tiny", "the tokenizer's model: tiny (built in), a hub name, or a folder"
    )
    block_size: int = setting(280, "longest conversation in tokens, end mark included", least=8)
    train_on: str = setting(
        "agent", "agent: the agent's turns; all: every turn", choices=("agent", "all")
    )

    # Rarely changed: how it is read
    agent_name: str = setting("", "the answering side; empty: found in the file")
    user_name: str = setting("", "the asking side; empty: found in the file (User, Human, ...)")
    end_mark: str = setting(
        END_MARK, "ends a conversation in a text; none: each question begins one"
    )
    columns: dict = setting({}, "columns of rows with names of their own: {user: ask, agent: say}")
    bad_rows: str = setting(
        "error", "conversations that can't be read: error, or skip", choices=("error", "skip")
    )
    too_long: str = setting(
        "drop",
        "longer ones: drop, cut (at a turn's end), split (documents) or error",
        choices=("drop", "cut", "split", "error"),
    )

    # Rarely changed: the held-out set
    eval_file: str | list | dict = setting(
        "", "conversations to evaluate on, or {name: file, ...}; empty: a share of train_file"
    )
    eval_share: float = setting(
        0.05, "share of the conversations held out, 0 to 0.5", least=0, most=MOST_SHARE
    )
    test_share: float = setting(
        0.0, "another share, for 03 with side test alone; 0: none", least=0, most=MOST_SHARE
    )
    seed: int = setting(0, "seed of the split", least=0)
    near_duplicates: str = setting(
        "tell",
        "train ones nearly the same as held-out ones: tell, drop, ignore",
        choices=("tell", "drop", "ignore"),
    )

    # Rarely changed: the tokenizer and the folder
    revision: str = setting("", "its branch, tag or commit on the hub; empty: main")
    overwrite: bool = setting(False, "replace a dataset that runs were trained on")

    def check(self) -> None:
        object.__setattr__(self, "dataset", self.dataset or _name_of(self.train_file))
        paths.check_name("dataset", self.dataset)
        for role, column in self.columns.items():
            if role not in COLUMN_ROLES:
                remedy = "write {user: ask, agent: say}"
                raise UserError("columns", f"got {role}: {column!r}", remedy)
            if not isinstance(column, str):
                remedy = f'write the column\'s name in double quotes: {{{role}: "..."}}'
                raise UserError("columns", f"got {role}: {column!r}", remedy)
        if self.columns.get("text"):
            self._check_documents()
        elif {*self.columns} not in (set(), {"messages"}, *_PAIRS):
            remedy = "name columns for user and agent, or one for messages"
            raise UserError("columns", f"got {self.columns}", remedy)
        if len({*self.columns.values()}) < len(self.columns):
            raise UserError("columns", f"got {self.columns}", "name each column once")
        self._check_eval_files()
        taken = round(self.test_share + (0 if self.eval_file else self.eval_share), 9)
        if taken > MOST_SHARE:
            what = f"and eval_share take {taken:g} together, more than {MOST_SHARE:g}"
            raise UserError("test_share", what, "lower one of them")
        if not self.end_mark.strip():
            what = "is empty"
            raise UserError(
                "end_mark", what, "set the mark, or none: each question begins a conversation"
            )

    @property
    def eval_files(self) -> dict[str, str]:
        """The files of the held-out set by name; those of a list are named after themselves."""
        if isinstance(self.eval_file, dict):
            return self.eval_file
        listed = self.eval_file if isinstance(self.eval_file, list) else [self.eval_file]
        return {_stem(file): file for file in listed if file}

    def _check_eval_files(self) -> None:
        """Refuse a list or mapping of something other than files, or of too many."""
        if isinstance(self.eval_file, str):
            return
        given, remedy = self.eval_file, "write {chat: chat.txt, code: code.txt}"
        files = [*given.values()] if isinstance(given, dict) else given
        texts = (*files, *(given if isinstance(given, dict) else ()))
        if not files or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError("eval_file", f"got {given!r}", remedy)
        if len(self.eval_files) < len(files):
            raise UserError("eval_file", "two of the files have one name", remedy)
        if len(files) > MOST_EVAL_FILES:
            what = f"names {len(files)} files, at most {MOST_EVAL_FILES} have curves of their own"
            raise UserError("eval_file", what, "put some of them together in a folder")
        for name in self.eval_files:
            paths.check_name("eval_file", name)

    def _check_documents(self) -> None:
        """Refuse columns of documents beside those of turns, or to train on their turns."""
        if len(self.columns) > 1:
            raise UserError("columns", f"got {self.columns}", "name text alone, or other roles")
        if self.train_on != "all":
            what = "names the text of documents, which have no turns"
            raise UserError("columns", what, "set train_on to all")


def _stem(file: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", paths.stem(Path(file).name)).strip("-.+=")[:100]


def _name_of(file: str) -> str:
    """Derive a dataset's name from its file.

    >>> _name_of("data/sample.txt"), _name_of("my talks (new).train.jsonl")
    ('sample', 'my-talks-new-.train')
    """
    name = _stem(file)
    if not file.strip():
        raise UserError("train_file", "is empty", "name a file, a folder or a data set of the hub")
    if not name:
        raise UserError("dataset", f"{Path(file).name!r} gives no name", "set a dataset name")
    return name


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Settings of 02_train; those that transformers also has mean the same there."""

    notebook: ClassVar[str] = "02_train"

    # The run
    run: str = setting(
        "demo", "name of the output folder: runs/<run>", resume="never", trainer="output_dir"
    )
    dataset: str = setting(
        "sample", "dataset from 01_tokenize: data/tokenized/<dataset>", resume="named", memory=True
    )
    model_name_or_path: str = setting(
        "", "base model; empty: the one set in 01_tokenize", resume="never", memory=True
    )
    learning_rate: float = setting(
        0.0,
        "peak; 0: by the base model (tiny 2e-3, Pythia-410m 3e-5, ...)",
        least=0,
        resume="named",
        card=True,
    )
    block_size: int = setting(
        0,
        "0: the dataset's; smaller: leave longer conversations out",
        least=0,
        resume="named",
        memory=True,
    )
    num_train_epochs: float = setting(
        4.0, "passes over the dataset", above=0, resume="named", card=True
    )
    per_device_train_batch_size: int = setting(
        16,
        "conversations per rank and micro-batch",
        least=1,
        resume="named",
        memory=True,
        card=True,
    )

    # Rarely changed: trials before the run
    probe_steps: int = setting(
        0,
        "trial steps first, to estimate time and memory; 0: none",
        least=0,
        resume="free",
        trainer=None,
        trial=0,
    )
    range_test_steps: int = setting(
        0,
        "steps of a learning-rate range test first; 0: none",
        least=0,
        resume="free",
        trainer=None,
        trial=0,
    )

    # Rarely changed: the model
    revision: str = setting(
        "",
        "branch (step3000), tag or commit on the hub; empty: main; 01's with its model",
        resume="never",
    )
    from_scratch: bool = setting(
        False, "start with random weights in the model's shape", resume="never"
    )
    lora_rank: int = setting(
        0, "train LoRA adapters of this rank; 0: all weights", least=0, resume="never", memory=True
    )
    precision: str = setting(
        "auto",
        "auto: bf16 if the device is good at it",
        choices=("auto", "fp32", "bf16", "fp16"),
        resume="never",
        memory=True,
    )

    # Rarely changed: batches, memory and speed
    gradient_accumulation_steps: int = setting(
        1, "micro-batches per optimizer step", least=1, resume="named", card=True
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations: less memory, slower", resume="named", memory=True
    )
    per_device_eval_batch_size: int = setting(32, "the same for evaluation", least=1, resume="free")
    layout: str = setting(
        "packed",
        "packed: little padding, equally exact; padded: to block_size",
        choices=("packed", "padded"),
        resume="named",
        memory=True,
    )
    row_tokens: int = setting(
        0,
        "approximate length of a packed row, up to twice; 0: by the device",
        least=0,
        resume="named",
    )
    ds_config: str = setting(
        "zero2",
        "zero2, zero2_offload, zero3, zero3_offload, or a file of your own",
        resume="named",
        trainer="deepspeed",
        memory=True,
    )
    num_ranks: int = setting(
        0,
        "GPUs, or CPU processes; 0: every GPU, or one CPU process",
        least=0,
        resume="named",
        trainer=None,
        memory=True,
    )
    attn_implementation: str = setting(
        "auto",
        "auto: by machine and lengths; or varlen, sdpa, eager, ...",
        choices=ATTENTIONS,
        resume="named",
    )
    torch_compile: bool = setting(
        False, "compile the model: a slower start, faster steps on a GPU", resume="named"
    )

    # Rarely changed: where it runs
    launcher: str = setting(
        "local",
        "local: this machine; slurm: a job on its nodes; hostfile: hosts by ssh",
        choices=("local", "slurm", "hostfile"),
        resume="free",
        trainer=None,
        memory=True,
    )
    num_nodes: int = setting(
        1,
        "nodes of a SLURM job, each with num_ranks ranks",
        least=1,
        resume="free",
        trainer=None,
        memory=True,
    )
    slurm: dict = setting(
        {},
        "the job's options by sbatch's long names: {partition: gpu, time: '8:00:00'}",
        resume="free",
        trainer=None,
        memory=True,
    )
    hostfile: str = setting(
        "hostfile",
        "the file with its hosts and their slots, as DeepSpeed reads it",
        resume="free",
        trainer=None,
        memory=True,
    )

    # Rarely changed: the schedule
    max_steps: int = setting(
        -1,
        "stop after this many optimizer steps; -1: by epochs",
        least=-1,
        resume="named",
        card=True,
    )
    warmup_steps: float = setting(
        0.05, "steps; below 1: a share of all steps", least=0, resume="named", card=True
    )
    lr_scheduler_type: str = setting(
        "cosine",
        "decay after the warm-up",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
        resume="named",
        card=True,
    )
    weight_decay: float = setting(0.0, "weight decay of AdamW", least=0, resume="never", card=True)
    max_grad_norm: float = setting(
        1.0, "clip the gradient's norm; 0: never", least=0, resume="named", card=True
    )
    seed: int = setting(
        42,
        "seed of data order and dropout",
        least=0,
        most=2**32 - 1,  # numpy's largest
        resume="named",
        card=True,
    )

    # Rarely changed: evaluating, saving and logging
    eval_steps: float = setting(
        0.1, "evaluate every N steps; below 1: a share", above=0, resume="named"
    )
    save_steps: float = setting(
        0.25, "checkpoint every N steps; below 1: a share", above=0, resume="named"
    )
    save_total_limit: int = setting(2, "checkpoints to keep", least=1, resume="free")
    snapshots: bool = setting(
        False, "keep the weights of steps 0, 1, 2, 4, 8, ..., too", resume="free", trial=False
    )
    load_best_model_at_end: bool = setting(
        False,
        "save, keep and export the step of the lowest eval loss",
        resume="named",
        trial=False,
    )
    early_stopping_patience: int = setting(
        0,
        "stop after this many evaluations without a lower loss; 0: never",
        least=0,
        resume="named",
        trial=0,
    )
    early_stopping_threshold: float = setting(
        0.0,
        "how much lower it has to be, in nats per token",
        least=0,
        resume="named",
        trial=0.0,
    )
    verify_steps: int = setting(
        0,
        "take every Nth step twice and stop if a bit differs; 0: never",
        least=0,
        resume="free",
        memory=True,
        trial=0,
    )
    logging_steps: float = setting(
        5, "log every N steps; below 1: a share", above=0, resume="free", trial=1
    )
    num_replies: int = setting(
        3,
        "questions answered at every evaluation, to watch it learn; 0: none",
        least=0,
        resume="free",
        trial=0,
    )
    report_to: str = setting("none", "none, tensorboard, wandb, mlflow, ...", resume="free")

    # Rarely changed: resuming, sharing, and all else
    restart: bool = setting(
        False,
        "start over and keep the old run beside the new one",
        resume="free",
        trainer=None,
        trial=False,
    )
    allow_change: list = setting(
        [], "settings that may differ from the run's first start", resume="free", trial=[]
    )
    hub_model_id: str = setting(
        "",
        "owner/name on the hub to push the model to; empty: don't push",
        resume="free",
        trainer=None,
        trial="",
    )
    training_arguments: dict = setting(
        {}, "any other TrainingArguments field, by name", resume="named", trainer=None
    )

    @classmethod
    def trainer_names(cls) -> dict[str, str]:
        """Return the settings that the trainer gets, each with the trainer's name for it."""
        names = {f.name: f.metadata["trainer"] for f in fields(cls)}
        return {name: other or name for name, other in names.items() if other is not None}

    @classmethod
    def of_trials(cls) -> dict[str, Any]:
        """Return the settings that are the same in every trial, with their values."""
        values = {f.name: f.metadata["trial"] for f in fields(cls)}
        return {name: value for name, value in values.items() if value is not UNSET}

    def check(self) -> None:
        paths.check_name("run", self.run)
        paths.check_name("dataset", self.dataset)
        if self.block_size and self.block_size < 8:
            raise UserError("block_size", f"must be at least 8, got {self.block_size}", "or 0")
        for name in self.allow_change:
            if name in self.with_role("resume", "never"):
                raise UserError(
                    "allow_change", f"{name} can't change within a run", "start a new run"
                )
            if name not in self.__dataclass_fields__:
                remedy = near(str(name), self.__dataclass_fields__, "name settings of 02_train")
                raise UserError("allow_change", f"{name!r} is not a setting", remedy)
        if self.learning_rate > 1:
            what = f"must be at most 1, got {self.learning_rate:g}"
            raise UserError("learning_rate", what, "1e-5 to 2e-3 is usual")
        if self.hub_model_id and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_model_id):
            raise UserError("hub_model_id", f"got {self.hub_model_id!r}", "write owner/name")
        if self.lora_rank and self.hub_model_id:
            what = "is for whole models, and lora_rank trains adapters"
            raise UserError(
                "hub_model_id", what, "run neoxkit merge afterwards, and push runs/RUN/merged"
            )
        if self.lora_rank and self.from_scratch:
            what = "adapts pretrained weights, and from_scratch has none"
            raise UserError("lora_rank", what, "set only one of them")
        if self.max_steps == 0:
            raise UserError("max_steps", "is 0: no step", "choose 1 or more, or -1: by epochs")


def _check_texts(name: str, values: list, example: str) -> None:
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(name, f"got {value!r}", f"write {example}")


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """Settings of 03_evaluate."""

    notebook: ClassVar[str] = "03_evaluate"

    # The run and its questions
    run: str = setting("demo", "run from 02_train: runs/<run>")
    my_questions: list = setting([], "your own questions, each answered by both models")
    num_questions: int = setting(300, "ask at most this many", least=1)
    max_new_tokens: int = setting(64, "longest reply in tokens", least=1)

    # Rarely changed: the replies
    questions_file: str = setting(
        "", "empty: <train_file>_questions.jsonl, else held-out conversations"
    )
    do_sample: bool = setting(False, "False: greedy; True: sampled with temperature")
    temperature: float = setting(0.7, "temperature of sampling", above=0)
    seed: int = setting(0, "seed of sampling", least=0)

    # Rarely changed: the losses
    side: str = setting(
        "eval",
        "eval; or test, which 01 took with test_share: each look is counted",
        choices=("eval", "test"),
    )
    batch_size: int = setting(32, "conversations scored or answered at once", least=1)
    score_checkpoints: bool = setting(True, "score kept checkpoints and snapshots, too")
    plain_text_file: str = setting("", "a text of another kind, to measure forgetting")

    # Rarely changed: standard tasks
    tasks: list = setting([], "tasks of lm_eval (pip install lm_eval) by name, or .yaml files")
    tasks_limit: int = setting(0, "at most this many examples per task; 0: all", least=0)

    def check(self) -> None:
        paths.check_name("run", self.run)
        _check_texts("my_questions", self.my_questions, '["one?", "two?"]')
        _check_texts("tasks", self.tasks, '["piqa", "my_task.yaml"]')


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Settings of 04_compare."""

    notebook: ClassVar[str] = "04_compare"

    # The runs
    runs: list = setting(
        [], 'names, patterns ("lr.*") or folders; empty: all on the dataset of the newest'
    )
    name: str = setting("comparison", "name of the output folder: runs/<name>")

    # Rarely changed
    score_again: bool = setting(False, "score all models on the conversations that all evaluate")

    def check(self) -> None:
        paths.check_name("name", self.name)
        _check_texts("runs", self.runs, '["one", "lr.*"]')


STAGES: tuple[type[Settings], ...] = (TokenizeSettings, TrainSettings, EvaluateSettings)
# 04 is run separately: it compares several runs.
NOTEBOOKS: tuple[type[Settings], ...] = (*STAGES, CompareSettings)
