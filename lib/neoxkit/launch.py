"""The DeepSpeed command, the guard around its process tree, and whether it came to a good end."""

import fcntl
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import paths, plan, runs, tokenized
from neoxkit.errors import TrainingError, UserError
from neoxkit.guard import GRACE_SECONDS, STOPPED
from neoxkit.settings import TrainSettings
from neoxkit.workers import num_cores

LOCK = ".lock"
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


@dataclass
class Training:
    """A training that was started (or was found finished: `process` is None)."""

    folder: Path
    process: subprocess.Popen | None
    since: int  # where metrics.jsonl ended before the start, in bytes
    stopped: bool = False

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return 0 if self.process is None else self.process.poll()

    def stop(self) -> None:
        """End the whole tree; returns when it is gone."""
        self.stopped = True
        if self.process and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(timeout=2 * GRACE_SECONDS + 5)

    def check(self) -> dict[str, Any]:
        """What FINISHED.json says; raises unless the run really finished."""
        code = self.poll()
        events = runs.EventReader(self.folder, self.since).poll()
        messages = [e["message"] for e in events if e["event"] == "error"]
        log = paths.short(self.folder / runs.LOG)
        if code == STOPPED and not self.stopped:
            raise UserError(
                "run", "another process trains in this folder", "wait, or rename the run"
            )
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


def refuse_locked(folder: Path) -> None:
    """Refuse a folder in which a training runs right now."""
    if pid := locked_by(folder):
        raise UserError("run", f"{folder.name} is training now (process {pid})", "wait, or stop it")


def check_evaluable(folder: Path) -> None:
    """Refuse what 03_evaluate can't compare: a run that is not finished, or other data."""
    facts = runs.finished(folder)
    place = paths.find("dataset", facts["dataset"], file=False)
    tokenized.check_sha256(place, facts["dataset_sha256"])


def start(settings: TrainSettings) -> Training:
    """Start DeepSpeed on this machine's GPUs (or CPU ranks) as a guarded child process tree.

    A finished run is not started again: the Training that comes back has ended well already.
    """
    folder = paths.run(settings.run)
    arguments = plan.check(settings)
    refuse_locked(folder)
    if settings.restart and runs.state(folder) != "new":
        runs.set_aside(folder)
    metrics = folder / runs.METRICS
    since = metrics.stat().st_size if metrics.exists() else 0
    if runs.state(folder) == "finished":
        return Training(folder, None, since)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / runs.ARGUMENTS, arguments)
    ranks = plan.num_ranks(settings)
    guard = [sys.executable, "-m", "neoxkit.guard"]
    guard += ["--log", str(folder / runs.LOG), "--lock", str(folder / LOCK), "--"]
    process = subprocess.Popen(
        [*guard, *runner_command(ranks), str(folder / runs.ARGUMENTS)],
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
    if not plan.num_gpus():
        command.append(f"--num_gpus={ranks}")
    elif all(i.strip().isdigit() for i in ids):
        command.append(f"--include=localhost:{','.join(ids[:ranks])}")
    elif ranks != len(ids):  # UUIDs: DeepSpeed can take all of them, not choose among them
        what = f"can't choose {ranks} of CUDA_VISIBLE_DEVICES={visible}"
        raise UserError("num_ranks", what, "set it to 0, and CUDA_VISIBLE_DEVICES to the GPUs")
    return [*command, "--module", "neoxkit.train"]


def environment(ranks: int) -> dict[str, str]:
    """The environment of the training: this one, with the venv on PATH and the cores shared out."""
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    env["NEOXKIT_HOME"] = str(paths.root())
    env["TOKENIZERS_PARALLELISM"] = "false"
    if not plan.num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        env["LOCAL_SIZE"] = str(ranks)
        env.setdefault("OMP_NUM_THREADS", str(max(num_cores() // ranks, 1)))
        env = CPU_ENVIRONMENT | env
    return env


def free_port() -> int:
    """A port that nothing listens on now; the runner's own default is the same for every run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
