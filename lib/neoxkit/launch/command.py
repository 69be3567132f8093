"""The command that starts a training: arguments, environment and DeepSpeed's runner."""

import importlib.util
import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import files, machine, paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError, closest, near
from neoxkit.models import model_names, rates
from neoxkit.runs import lock, resuming
from neoxkit.runs.folder import ARGUMENTS, state_of
from neoxkit.settings import TINY, TrainSettings
from neoxkit.training import honoured

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
# What every start by the kit has in common.
_ALWAYS = {"do_train": True, "do_eval": True, "eval_strategy": "steps", "save_strategy": "steps"}
# Arguments of a trial (trials.py), which are not settings either.
_TRIALS = {"trial", "lr_range_from", "until_step"}
# Arguments that are settings by another name, or none: argument -> remedy.
_ELSEWHERE = {
    "output_dir": "set run",
    "deepspeed": "set ds_config",
    "bf16": "set precision to bf16",
    "fp16": "set precision to fp16",
    "activation_checkpointing": "set gradient_checkpointing",
    "hub_model_id": "set it there",
    "use_cpu": "start the kit with CUDA_VISIBLE_DEVICES= (empty), so that it sees no GPU",
}
_NOT_SETTINGS = {*_ALWAYS, *_TRIALS, "dataset_sha256", "base_commit"}


def base_of(settings: TrainSettings, first: str = "") -> str:
    """Return the model that a training starts from, on the hub at a commit (`model_names.pinned`).

    It is the commit that the run was started from, once there is one. `first` is the dataset's
    model, if no manifest names it yet.
    """
    name, revision = settings.model_name_or_path, settings.revision
    if not name:
        data = paths.tokenized(settings.dataset)
        name, of_data = model_names.split(first) if first else tokenized.model_of(data)
        revision = revision or of_data
    asked = model_names.at(name, revision)
    started = None if settings.restart else paths.run(settings.run)
    commit = started and resuming.base_commit(started, _model(settings), settings.revision)
    return (
        model_names.at(model_names.base_name(name), commit) if commit else model_names.pinned(asked)
    )


def _model(settings: TrainSettings) -> str:
    """Return the base's name as a run records it; empty where it is the dataset's."""
    name = settings.model_name_or_path
    return model_names.base_name(name) if name and name != TINY else name


def same_weights(settings: TrainSettings, first: str = "") -> list[str]:
    """Say in a sentence which other revisions here have the base's weights (`first`: `base_of`)."""
    return [] if settings.from_scratch else model_names.same_weights(base_of(settings, first))


def fitting_rate(settings: TrainSettings, first: str = "") -> rates.Fit:
    """Return the learning rate that fits the settings (`first`: `base_of`)."""
    base = base_of(settings, first)
    return rates.of(base, settings.from_scratch, settings.lora_rank > 0)


def complete(settings: TrainSettings, first: str = "") -> TrainSettings:
    """Replace a learning rate of 0 by the number that fits the base (`first`: `base_of`)."""
    if settings.learning_rate:
        return settings
    return settings.replace(learning_rate=fitting_rate(settings, first).rate)


def doubts(settings: TrainSettings | None, first: str = "") -> list[str]:
    """Return warnings to read before a training starts; they don't stop it (`first`: `base_of`)."""
    if settings is None:
        return []
    if state_of(paths.run(settings.run)) == "finished" and not settings.restart:
        return []  # it is only shown
    rate = settings.learning_rate
    said = rates.doubt(rate, fitting_rate(settings, first)) if rate else ""
    return [*([said] if said else []), *same_weights(settings, first)]


def trainer_arguments(settings: TrainSettings, first: str = "") -> dict[str, Any]:
    """Return the content of arguments.json, under the trainer's own names.

    Paths below the kit's root are relative to it, so that a checkout can be moved. A learning rate
    of 0 becomes a number (`complete`), and a revision also a commit (`first`: `base_of`).
    """
    given = complete(settings, first)
    values = {theirs: getattr(given, ours) for ours, theirs in given.trainer_names().items()}
    data = paths.tokenized(settings.dataset)
    values |= _ALWAYS | {
        "output_dir": paths.short(paths.run(settings.run)),
        "dataset": paths.short(data),
        "dataset_sha256": tokenized.sha256(data),
        "base_commit": model_names.split(base_of(settings, first))[1],
    }
    config = paths.ds_config("ds_config", settings.ds_config)
    if config != paths.root() / "ds_configs" / f"{settings.ds_config}.json":
        values["deepspeed"] = paths.short(config)
    values["model_name_or_path"] = _model(settings)
    values["report_to"] = _reporters(settings.report_to)
    return values | _other_arguments(settings, values)


def settings_of(arguments: Mapping[str, Any], ranks: int = 0) -> TrainSettings:
    """Return the settings of 02_train that gave these `trainer_arguments`, with `ranks` ranks."""
    ours = {theirs: name for name, theirs in TrainSettings.trainer_names().items()}
    values = {ours[name]: value for name, value in arguments.items() if name in ours}
    others = arguments.keys() - ours.keys() - _NOT_SETTINGS
    values |= {
        "run": Path(arguments["output_dir"]).name,
        "dataset": Path(arguments["dataset"]).name,
        "report_to": ",".join(arguments["report_to"]),
        "num_ranks": ranks,
        "training_arguments": {name: arguments[name] for name in others},
    }
    return TrainSettings(**values)


def settings_if_any(arguments: Mapping[str, Any], ranks: int = 0) -> TrainSettings | None:
    """Return the same, or None for a shell's flags or a handwritten file that 02 could not have
    written (one that names another schedule, say)."""
    if not isinstance(arguments.get("report_to"), list) or "dataset_sha256" not in arguments:
        return None
    try:
        return settings_of(arguments, ranks)
    except UserError:
        return None


def started_with(settings: TrainSettings) -> TrainSettings | None:
    """Return the settings that the run was started with, if it would go on; else None."""
    folder = paths.run(settings.run)
    goes_on = state_of(folder) != "new" or lock.locked_by(folder)
    if settings.restart or not goes_on or not (folder / ARGUMENTS).is_file():
        return None
    return settings_if_any(files.read_json(folder / ARGUMENTS), settings.num_ranks)


def as_started(arguments: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """Return the settings that differ from the defaults, and the commands for the same start."""
    settings = settings_of(arguments, ranks)
    commands = {
        "repeat": f"neoxkit repeat {settings.run}",
        "run": settings.run_command(),
        "papermill": settings.papermill_command(),
        "shell": shell_command(settings),
    }
    return {"settings": settings.changed(), "commands": commands}


def _reporters(names: str) -> list[str]:
    """Return the reporters of a comma-separated list; each must be installed."""
    found = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in found:
        if importlib.util.find_spec(name) is None:
            remedy = f"pip install {name}"
            if name not in _REPORTERS:
                remedy = near(name, _REPORTERS, remedy)
            raise UserError("report_to", f"{name!r} is not installed", remedy)
    return found or ["none"]


def _other_arguments(settings: TrainSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `training_arguments`; refuse names that are settings, and what is not honoured."""
    where = "training_arguments"
    for name in settings.training_arguments:
        if name in _ELSEWHERE:
            raise UserError(where, f"{name} is a setting of its own", _ELSEWHERE[name])
        if name in _ALWAYS:
            raise UserError(
                where, f"{name} is always {_ALWAYS[name]} in a notebook", "leave it out"
            )
        if name in values and name in honoured.names():
            raise UserError(where, f"{name} is a setting of its own", "set it there")
        if new := honoured.RENAMED.get(name):
            remedy = f"use {new[0]}" if new[0] else "leave it out"
            raise UserError(where, f"transformers 5 no longer has {name}", remedy)
        if name not in honoured.names():
            meant = closest(name, honoured.names())
            if meant in values:
                what, remedy = f"{name} is not one of them", f"did you mean the setting {meant}?"
                raise UserError(where, what, remedy)
    return honoured.taken(settings.training_arguments, where)


def shell_command(settings: TrainSettings) -> str:
    """Return the command line that does the same at a shell, in the kit's root folder: DeepSpeed's,
    or the kit's own where other machines train."""
    if settings.launcher != "local":
        return settings.run_command()
    unneeded = ("dataset_sha256", "base_commit")
    flags: list[str] = []
    for name, value in trainer_arguments(settings).items():
        if value is False or value in ("", None, []) or name in unneeded:
            continue  # a 0 stays: it may differ from the trainer's default
        if value is True:
            flags.append(f"--{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    gpus = f"--num_gpus={settings.num_ranks or machine.num_ranks(settings)}"
    return shlex.join(["deepspeed", gpus, "--module", "neoxkit.train", *flags])


# The environment of a training on a CPU, unless the variables are set already.
CPU_ENVIRONMENT = {
    # Waiting threads spin less: beside another busy process training was 1.6 times as fast, and
    # without one as fast as with the default.
    "GOMP_SPINCOUNT": "3000",
    # glibc keeps the memory of tensors instead of returning it after each step and requesting it
    # again page by page. This needs small DeepSpeed buckets (ds_configs): buckets of 800 MB
    # fragmented the memory, which then grew by GiBs.
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def start_command(ranks: int) -> tuple[list[str], dict[str, str]]:
    """Return the command for `ranks` ranks here, and what it adds to their environment.

    A single CPU rank gets from here what DeepSpeed's runner and launcher would tell it: each of the
    two imports torch and DeepSpeed first, and takes as long to start as the rank itself.
    """
    if ranks > 1 or machine.num_gpus():
        return runner_command(ranks), {}
    port = str(free_port())
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [sys.executable, "-u", "-m", "neoxkit.train"], alone | address


def runner_command(ranks: int) -> list[str]:
    """Return the command of DeepSpeed's runner for `ranks` ranks here, on a free port."""
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", f"--master_port={free_port()}"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = visible.split(",") if visible else [str(i) for i in range(ranks)]
    if not machine.num_gpus():
        runner.append(f"--num_gpus={ranks}")
    elif all(i.strip().isdigit() for i in ids):
        runner.append(f"--include=localhost:{','.join(ids[:ranks])}")
    elif ranks != len(ids):  # UUIDs: DeepSpeed can use all of them, not choose some
        what = f"can't choose {ranks} of CUDA_VISIBLE_DEVICES={visible}"
        raise UserError(
            "num_ranks", what, "set it to 0, and CUDA_VISIBLE_DEVICES to the GPUs you want"
        )
    return [*runner, "--module", "neoxkit.train"]


def environment(ranks: int) -> dict[str, str]:
    """Return the training's environment: this one, the venv on PATH, the cores shared out."""
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env["NEOXKIT_HOME"] = str(paths.root())
    env["TOKENIZERS_PARALLELISM"] = "false"
    if not machine.num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        env["LOCAL_SIZE"] = str(ranks)
        env.setdefault("OMP_NUM_THREADS", str(max(machine.num_cores() // ranks, 1)))
        env = CPU_ENVIRONMENT | env
    return env


def free_port() -> int:
    """Return a port that is free now; the runner's default is the same for every run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
