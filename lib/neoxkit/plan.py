"""What a training will be: ranks, steps, arguments, and the checks before its start."""

import importlib.util
import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from neoxkit import files, machine, paths
from neoxkit.data import reading, tokenized
from neoxkit.errors import UserError, near
from neoxkit.models import loading, rates
from neoxkit.runs import resuming
from neoxkit.runs.folder import ARGUMENTS, state_of
from neoxkit.settings import TINY, TRAINER_NAMES, TokenizeSettings, TrainSettings

_REPORTERS = (
    "tensorboard",
    "wandb",
    "mlflow",
    "comet_ml",
    "clearml",
    "neptune",
    "trackio",
    "swanlab",
)
# Settings that are not the trainer's own.
_NOT_THE_TRAINERS = (
    "num_ranks",
    "restart",
    "training_arguments",
    "hub_model_id",
    "probe_steps",
    "range_test_steps",
)
# What the trainer is told beside the settings.
_BESIDE = (
    "output_dir", "dataset_sha256", "do_train", "do_eval", "eval_strategy", "save_strategy",
    "use_cpu",
)  # fmt: skip


def fitting_rate(settings: TrainSettings, base: str = "") -> rates.Fit:
    """The learning rate that fits what the settings train; `base`: the dataset's model, where
    there is no manifest yet to name it."""
    name = settings.model_name_or_path or base
    if not name:
        name = tokenized.load_manifest(paths.tokenized(settings.dataset))["model_name_or_path"]
    return rates.of(name, settings.from_scratch, settings.lora_rank > 0)


def complete(settings: TrainSettings, base: str = "") -> TrainSettings:
    """The settings with the number that a learning rate of 0 means for this base."""
    if settings.learning_rate:
        return settings
    return settings.replace(learning_rate=fitting_rate(settings, base).rate)


def doubts(settings: TrainSettings | None, base: str = "") -> list[str]:
    """What a person should read before a training starts; it is started all the same."""
    if settings is None or not settings.learning_rate:
        return []
    if state_of(paths.run(settings.run)) == "finished" and not settings.restart:
        return []  # it is shown as it is
    said = rates.doubt(settings.learning_rate, fitting_rate(settings, base))
    return [said] if said else []


def trainer_arguments(settings: TrainSettings, base: str = "") -> dict[str, Any]:
    """What goes into arguments.json: the trainer's own names and nothing else.

    Paths below the kit's root are relative to it, so that a checkout can be moved. A learning rate
    of 0 becomes a number (`complete`).
    """
    values = {
        TRAINER_NAMES.get(k, k): v
        for k, v in complete(settings, base).as_dict().items()
        if k not in _NOT_THE_TRAINERS
    }
    data = paths.tokenized(settings.dataset)
    values |= {
        "output_dir": paths.short(paths.run(settings.run)),
        "dataset": paths.short(data),
        "dataset_sha256": tokenized.sha256(data),
        "do_train": True,
        "do_eval": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "use_cpu": machine.num_gpus() == 0,
    }
    config = paths.ds_config("ds_config", settings.ds_config)
    if config != paths.root() / "ds_configs" / f"{settings.ds_config}.json":
        values["deepspeed"] = paths.short(config)
    if settings.model_name_or_path != TINY and settings.model_name_or_path:
        values["model_name_or_path"] = loading.base_name(settings.model_name_or_path)
    values["report_to"] = _reporters(settings.report_to)
    return values | _other_arguments(settings, values)


def settings_of(arguments: Mapping[str, Any], ranks: int = 0) -> TrainSettings:
    """The settings of 02_train that gave such `trainer_arguments`, with so many ranks asked for."""
    ours = {TRAINER_NAMES.get(f.name, f.name): f.name for f in fields(TrainSettings)}
    values = {ours[name]: value for name, value in arguments.items() if name in ours}
    others = arguments.keys() - ours.keys() - {*_BESIDE}
    values |= {
        "run": Path(arguments["output_dir"]).name,
        "dataset": Path(arguments["dataset"]).name,
        "report_to": ",".join(arguments["report_to"]),
        "num_ranks": ranks,
        "training_arguments": {name: arguments[name] for name in others},
    }
    return TrainSettings(**values)


def settings_if_any(arguments: Mapping[str, Any], ranks: int = 0) -> TrainSettings | None:
    """The same; None for a shell's flags, or a file of a person's own that 02 could not have
    written: it may name another schedule, say."""
    if not isinstance(arguments.get("report_to"), list) or "dataset_sha256" not in arguments:
        return None
    try:
        return settings_of(arguments, ranks)
    except UserError:
        return None


def as_started(arguments: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """Return the settings that differ from the defaults, and the command lines that start the same.

    Neither for a shell's flags, or a file of a person's own.
    """
    settings = settings_if_any(arguments, ranks)
    if settings is None:
        return {"settings": {}, "commands": {}}
    commands = {
        "repeat": f"neoxkit repeat {settings.run}",
        "run": settings.run_command(),
        "papermill": settings.papermill_command(),
        "shell": deepspeed_command(settings),
    }
    return {"settings": settings.changed(), "commands": commands}


def _reporters(names: str) -> list[str]:
    """The reporters of a comma-separated list; each must be installed."""
    found = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in found:
        if importlib.util.find_spec(name) is None:
            remedy = f"pip install {name}"
            if name not in _REPORTERS:
                remedy = near(name, _REPORTERS, remedy)
            raise UserError("report_to", f"{name!r} is not installed", remedy)
    return found or ["none"]


def _other_arguments(settings: TrainSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """`training_arguments`, each one known to transformers and no setting of its own."""
    if not settings.training_arguments:
        return {}
    from neoxkit.training.arguments import RENAMED, known_names

    for name in settings.training_arguments:
        if name in values:
            raise UserError("training_arguments", f"{name} is a setting of its own", "set it there")
        if new := RENAMED.get(name):
            remedy = f"it is {new[0]}" if new[0] else "leave it out"
            raise UserError("training_arguments", f"{name} is gone in transformers 5", remedy)
        if name not in known_names():
            remedy = near(name, known_names(), "see transformers' TrainingArguments")
            raise UserError("training_arguments", f"{name} is not one of them", remedy)
    return dict(settings.training_arguments)


def deepspeed_command(settings: TrainSettings) -> str:
    """The line that does the same from a shell, in the kit's root folder."""
    unneeded = ("dataset_sha256", "use_cpu")
    flags: list[str] = []
    for name, value in trainer_arguments(settings).items():
        if value is False or value in ("", None, []) or name in unneeded:
            continue  # but a 0 may differ from the trainer's own default
        if value is True:
            flags.append(f"--{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return shlex.join(
        [
            "deepspeed",
            f"--num_gpus={machine.num_ranks(settings)}",
            "--module",
            "neoxkit.train",
            *flags,
        ]
    )


def check_files(settings: TokenizeSettings, questions_file: str = "") -> None:
    """The files that 01_tokenize reads must be right, and the questions that 02 and 03 ask; its
    model must be a folder or a hub's name."""
    if settings.model_name_or_path != TINY:
        loading.resolve(settings.model_name_or_path)
    source = reading.read_sides(settings)["train"]
    questions = reading.questions_beside(source.path)
    if questions_file:
        questions = paths.find("questions_file", questions_file)
    if questions.is_file():
        reading.read(questions, *source.names)


def check(settings: TrainSettings, dialled: Collection[str] = ()) -> dict[str, Any]:
    """Everything that can be checked without loading a model; returns the trainer's arguments.

    Refuses a run folder whose earlier start had other settings, other data or other ranks;
    `dialled` names the settings that dials have changed.
    """
    data = paths.tokenized(settings.dataset)
    manifest = tokenized.load_manifest(data)
    tokenized.check_block_size(settings.block_size, manifest)
    base = settings.model_name_or_path or manifest["model_name_or_path"]
    arguments = _check_start(settings, base, dialled)
    if _goes_on(settings) and "dataset" not in settings.allow_change:
        resuming.refuse_other_data(paths.run(settings.run), manifest, arguments["dataset_sha256"])
    return arguments


def check_before_tokenizing(first: TokenizeSettings, settings: TrainSettings) -> None:
    """What `check` will refuse, as far as it is known before 01_tokenize replaces the dataset."""
    _check_start(settings, settings.model_name_or_path or first.model_name_or_path)
    if _goes_on(settings) and "dataset" not in settings.allow_change:
        resuming.refuse_other_data(paths.run(settings.run), resuming.planned_data(first))


def _goes_on(settings: TrainSettings) -> bool:
    """Whether this start would go on with (or show) an earlier one."""
    folder = paths.run(settings.run)
    started = (folder / ARGUMENTS).exists() and state_of(folder) != "new"
    return started and not settings.restart


def _check_start(
    settings: TrainSettings, base: str, dialled: Collection[str] = ()
) -> dict[str, Any]:
    """The checks that need no dataset; returns the trainer's arguments."""
    _check_model(settings, base)
    arguments = trainer_arguments(settings, base)
    if settings.precision == "fp16" and not machine.num_gpus():
        raise UserError("precision", "fp16 needs a GPU and there is none", "use auto or fp32")
    ranks = machine.num_ranks(settings)
    if _goes_on(settings):
        folder = paths.run(settings.run)
        began = files.read_json(folder / ARGUMENTS)
        dials = {*resuming.dialled(folder), *dialled}
        resuming.refuse_changes(began, arguments, settings.allow_change, dials)
        config = files.read_json(paths.ds_config("ds_config", settings.ds_config))
        stage = config.get("zero_optimization", {}).get("stage", 0)
        resuming.refuse_other_ranks(folder, ranks, stage, settings.allow_change)
    return arguments


def _check_model(settings: TrainSettings, base: str) -> None:
    folder = None if base == TINY else loading.local_folder(loading.resolve(base))
    if folder and not settings.from_scratch and not any(folder.glob("*.safetensors*")):
        raise loading.no_weights(folder)
