"""What a training will be: ranks, steps, arguments, and the checks before its start."""

import importlib.util
import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from neoxkit import machine, paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError, near
from neoxkit.models import loading, rates
from neoxkit.runs.folder import state_of
from neoxkit.settings import TINY, TRAINER_NAMES, TrainSettings

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


# What a training on a CPU is started with, unless the environment says otherwise.
CPU_ENVIRONMENT = {
    # Threads that wait spin less: beside another busy process training was 1.6 times as fast, alone
    # as fast as with the default.
    "GOMP_SPINCOUNT": "3000",
    # glibc keeps the memory of tensors, instead of handing it back after each step and asking for
    # it again page by page. DeepSpeed's buckets must be small for it (ds_configs): kept ones of
    # 800 MB broke the memory up so that it grew by GiBs.
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def runner_command(ranks: int) -> list[str]:
    """DeepSpeed's runner for so many ranks of this machine, on a port of its own."""
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", f"--master_port={free_port()}"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = visible.split(",") if visible else [str(i) for i in range(ranks)]
    if not machine.num_gpus():
        runner.append(f"--num_gpus={ranks}")
    elif all(i.strip().isdigit() for i in ids):
        runner.append(f"--include=localhost:{','.join(ids[:ranks])}")
    elif ranks != len(ids):  # UUIDs: DeepSpeed can take all of them, not choose among them
        what = f"can't choose {ranks} of CUDA_VISIBLE_DEVICES={visible}"
        raise UserError("num_ranks", what, "set it to 0, and CUDA_VISIBLE_DEVICES to the GPUs")
    return [*runner, "--module", "neoxkit.train"]


def environment(ranks: int) -> dict[str, str]:
    """The environment of the training: this one, with the venv on PATH and the cores shared out."""
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
    """A port that nothing listens on now; the runner's own default is the same for every run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
