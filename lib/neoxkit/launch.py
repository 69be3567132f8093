"""The DeepSpeed command, the guard around its process tree, and whether it came to a good end."""

import fcntl
import math
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import models, paths, runs, tokenized
from neoxkit.errors import TrainingError, UserError
from neoxkit.guard import GRACE_SECONDS
from neoxkit.settings import TrainSettings
from neoxkit.tiny import TINY

LOCK = ".lock"

# Settings that the trainer knows by another name, and those that are not its own.
_TRAINER_NAMES = {"run": "output_dir", "ds_config": "deepspeed"}
_NOT_THE_TRAINERS = ("num_ranks", "restart", "training_arguments")
# A resumed run may differ from its first start in these.
_MAY_CHANGE = {"logging_steps", "report_to", "per_device_eval_batch_size", "save_total_limit"}


@dataclass
class Training:
    """A training that was started (or was found finished: `process` is None)."""

    folder: Path
    process: subprocess.Popen | None
    since: int  # where metrics.jsonl ended before the start, in bytes

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return 0 if self.process is None else self.process.poll()

    def stop(self) -> None:
        """End the whole tree; returns when it is gone."""
        if self.process and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(timeout=2 * GRACE_SECONDS + 5)

    def check(self) -> dict[str, Any]:
        """What FINISHED.json says; raises unless the run really finished."""
        code = self.poll()
        events = runs.EventReader(self.folder, self.since).poll()
        messages = [e["message"] for e in events if e["event"] == "error"]
        log = paths.short(self.folder / runs.LOG)
        if code == 2 and messages:
            raise UserError(*_in_parts(messages[-1]))
        if code == 0 and (self.folder / runs.FINISHED).is_file():
            facts = runs.read_json(self.folder / runs.FINISHED)
            if facts["step"] == facts["planned_steps"]:
                return facts
        reason = messages[-1] if messages else f"exit code {code}, no result was written"
        raise TrainingError(f"training failed ({reason}) -- see the end of {log}")


def _in_parts(sentence: str) -> tuple[str, str, str]:
    where, _, rest = sentence.partition(": ")
    what, _, remedy = rest.rpartition(" -- ")
    return where, what, remedy


def num_gpus() -> int:
    """GPUs that torch can use; asks the driver and does not open a context."""
    import torch

    return torch.cuda.device_count()


def num_ranks(settings: TrainSettings) -> int:
    """How many ranks a setting means here: all GPUs, or one CPU process."""
    gpus = num_gpus()
    if gpus and settings.num_ranks > gpus:
        raise UserError("num_ranks", f"got {settings.num_ranks}, there are {gpus} GPUs", "lower it")
    return settings.num_ranks or gpus or 1


def num_steps(settings: TrainSettings, num_rows: int, ranks: int) -> int:
    """Optimizer steps of a whole run, counted as the Trainer counts them."""
    if settings.max_steps > 0:
        return settings.max_steps
    a_rank = math.ceil(num_rows / ranks)
    batches = math.ceil(a_rank / settings.per_device_train_batch_size)
    an_epoch = max(math.ceil(batches / settings.gradient_accumulation_steps), 1)
    return math.ceil(settings.num_train_epochs * an_epoch)


def trainer_arguments(settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """What goes into arguments.json: the trainer's own names and nothing else."""
    values = {
        _TRAINER_NAMES.get(k, k): v
        for k, v in settings.as_dict().items()
        if k not in _NOT_THE_TRAINERS
    }
    values.update(
        output_dir=str(folder),
        dataset=str(paths.tokenized(settings.dataset)),
        do_train=True,
        do_eval=True,
        eval_strategy="steps",
        save_strategy="steps",
    )
    own = {"output_dir", "dataset", "do_train", "deepspeed", "model_name_or_path"}
    for name, value in settings.training_arguments.items():
        if name in own or name in settings.as_dict():
            raise UserError("training_arguments", f"{name} is a setting of its own", "set it there")
        values[name] = value
    if settings.training_arguments:
        _check_names(settings.training_arguments)
    return values


def _check_names(values: Mapping[str, Any]) -> None:
    import difflib

    from neoxkit.arguments import known_names

    for name in values:
        if name not in known_names():
            near = difflib.get_close_matches(name, known_names(), n=1)
            remedy = f"did you mean {near[0]}?" if near else "see transformers' TrainingArguments"
            raise UserError("training_arguments", f"{name} is not one of them", remedy)


def deepspeed_command(settings: TrainSettings) -> str:
    """The line that does the same from a shell, in the kit's root folder."""
    plain = TrainSettings()
    values = trainer_arguments(settings, paths.run(settings.run))
    values["output_dir"] = paths.short(Path(values["output_dir"]))
    values["dataset"] = paths.short(Path(values["dataset"]))
    defaults = {"from_scratch": False, "gradient_checkpointing": False}
    flags = []
    for name, value in values.items():
        if (
            value == ""
            or value == defaults.get(name, object())
            or value == getattr(plain, name, "?") == 0
        ):
            continue
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(
        ["deepspeed", f"--num_gpus={num_ranks(settings)}", "--module", "neoxkit.train", *flags]
    )


def prepare(settings: TrainSettings) -> Path:
    """Check everything that can be checked without loading a model; returns the run folder.

    Takes care of `restart`, and refuses a run folder that another training uses, or whose earlier
    start had other settings.
    """
    folder = paths.run(settings.run)
    manifest = tokenized.load_manifest(paths.tokenized(settings.dataset))
    tokenized.check_block_size(settings.block_size, manifest)
    _check_model(settings, manifest)
    _check_ds_config(settings.ds_config)
    num_ranks(settings)
    arguments = trainer_arguments(settings, folder)
    if pid := locked_by(folder):
        raise UserError(
            "run", f"{settings.run} is training now (process {pid})", "wait, or stop it"
        )
    if settings.restart and folder.exists() and any(folder.iterdir()):
        runs.set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / runs.ARGUMENTS
    if old.exists() and runs.state(folder) != "new":
        _refuse_changes(runs.read_json(old), arguments)
    if runs.state(folder) != "finished":
        runs.write_json(old, arguments)
    return folder


def _check_model(settings: TrainSettings, manifest: Mapping[str, Any]) -> None:
    name = settings.model_name_or_path or manifest["model_name_or_path"]
    folder = None if name == TINY else models.local_folder(models.resolve(name))
    if folder and not settings.from_scratch and not any(folder.glob("*.safetensors*")):
        raise models.no_weights(folder)


def _check_ds_config(name: str) -> None:
    if (paths.root() / "ds_configs" / f"{name}.json").is_file():
        return
    if "/" not in name and not name.endswith(".json"):
        known = ", ".join(sorted(p.stem for p in (paths.root() / "ds_configs").glob("*.json")))
        raise UserError(
            "ds_config", f"{name!r} is not in ds_configs/", f"choose {known}, or a path"
        )
    path = paths.find("ds_config", name)
    try:
        runs.read_json(path)
    except ValueError as fault:
        where = f"{paths.short(path)}:{getattr(fault, 'lineno', 1)}"
        raise UserError(where, "is not JSON", str(fault)[:80]) from None


def _refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
        f"{name} {old.get(name)} -> {new.get(name)}"
        for name in sorted({*old, *new} - _MAY_CHANGE)
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise UserError(
            "run",
            f"was started with other settings ({'; '.join(changed)})",
            "restore them, choose another run name, or set restart",
        )


def locked_by(folder: Path) -> int | None:
    """The process that trains in a folder right now, if any: the lock dies with its holder."""
    path = folder / LOCK
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return int(path.read_text().strip() or 0) or -1
    return None


def start(settings: TrainSettings) -> Training:
    """Start DeepSpeed on this machine's GPUs (or CPU ranks) as a guarded child process tree."""
    folder = prepare(settings)
    metrics = folder / runs.METRICS
    since = metrics.stat().st_size if metrics.exists() else 0
    if runs.state(folder) == "finished":
        return Training(folder, None, since)
    ranks = num_ranks(settings)
    command = [
        sys.executable,
        "-m",
        "neoxkit.guard",
        "--log",
        str(folder / runs.LOG),
        "--lock",
        str(folder / LOCK),
        "--",
        *runner_command(ranks),
        str(folder / runs.ARGUMENTS),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=paths.root(),
        env=environment(ranks),
    )
    return Training(folder, process, since)


def runner_command(ranks: int) -> list[str]:
    """DeepSpeed's runner for so many ranks of this machine, on a port of its own."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", f"--master_port={free_port()}"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = visible.split(",") if visible else [str(i) for i in range(ranks)]
    if num_gpus() and all(i.strip().isdigit() for i in ids):
        command.append(f"--include=localhost:{','.join(ids[:ranks])}")
    elif not num_gpus():
        command.append(f"--num_gpus={ranks}")
    return [*command, "--module", "neoxkit.train"]


def environment(ranks: int) -> dict[str, str]:
    """The environment of the training: this one, with the venv on PATH and the cores shared out."""
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env["NEOXKIT_HOME"] = str(paths.root())
    env["TOKENIZERS_PARALLELISM"] = "false"
    if not num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        env["LOCAL_SIZE"] = str(ranks)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        env.setdefault("OMP_NUM_THREADS", str(max((cores or 1) // ranks, 1)))
        # Threads that wait spin less: beside another busy process training was 1.6 times as fast,
        # alone as fast as with the default.
        env.setdefault("GOMP_SPINCOUNT", "3000")
    return env


def free_port() -> int:
    """A port that nothing listens on now; the runner's own default is the same for every run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
