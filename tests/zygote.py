"""Trainings that start at once, and end where a test wants.

A process that has imported everything forks the ranks of a training, so that a series of hundreds
of kills takes minutes. The ranks run `neoxkit.train.main`, as under DeepSpeed's launcher.

    python tests/zygote.py    reads a job a line from standard input, answers with pids, then codes
"""

import builtins
import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.launch import command
from neoxkit.runs import card as run_card
from neoxkit.runs.folder import ARGUMENTS, LOG, state_of
from neoxkit.settings import TrainSettings


@dataclass
class Sabotage:
    """A fault in one rank: it is killed at a write below a folder, or a step is spoiled.

    `where` is a part of the path ("/checkpoint-4/"); `at` numbers the writes there from 0; `how`:
    "before" the file is opened, "inside" (half of it is written), "full" (the disk is), or "fenced"
    (a later attempt of its job takes the run over).
    Without `at` the writes are only listed, in `listed`.

    Without `where`, `at` numbers the micro-batches from 0, and `how` is what is wrong with one:
    "nan" or "inf" (its loss), "gradient" (is NaN), "masked" (all of it), "memory" (runs out),
    "waits" (until there is a file `listed`.go; that it does is said by `listed`.RANK), or "flip":
    one bit of a `flipped` that `seed` chooses ("weight", "copy", of it that the optimizer has,
    "activation", "backward", the gradient of one, or "gradient", that of a weight).

    `seal` is a part of the path of a checkpoint; `listed` then has the files that this rank hashes
    there, and `how` is "altered" (the file `where` is, just before the manifest is written), "full"
    (the disk is, at its first file) or "broken" (the hashing is).

    Rank -1 is each of them.

    `without` takes one of the kit's own safeguards away, to see that a series notices.
    """

    rank: int = 0
    where: str = ""
    at: int = -1
    how: str = "before"
    listed: str = ""
    without: str = ""
    seal: str = ""
    flipped: str = ""
    seed: int = 0


@dataclass
class Job:
    """A training on `ranks` ranks from an arguments.json, with additions to the environment."""

    arguments: str
    log: str
    ranks: int = 1
    sabotage: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    bf16_gain: float = 0.0  # what the ranks measure of this CPU; 0: it has no bf16
    seconds: float = 300.0  # only what hangs takes this long
    grace: float = 0.0  # seconds that the other ranks have to end by themselves when one has failed


def job(settings: TrainSettings, sabotage: Sabotage | None = None, **trial: Any) -> Job:
    """Write the run's folder and arguments; return the job that the guard would start."""
    folder = paths.run(settings.run)
    folder.mkdir(parents=True, exist_ok=True)
    arguments, ranks = command.trainer_arguments(settings) | trial, settings.num_ranks or 1
    files.write_json(folder / ARGUMENTS, arguments)
    if state_of(folder) == "new":
        run_card.announce(folder, ranks, command.as_started(arguments, ranks))
    return Job(
        arguments=str(folder / ARGUMENTS),
        log=str(folder / LOG),
        ranks=ranks,
        sabotage=asdict(sabotage) if sabotage else {},
    )


class Zygote:
    """The test's side: starts the process and hands it one job after another."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=home, env=environment | {"NEOXKIT_HOME": str(home)}, text=True,
        )  # fmt: skip

    def begin(self, job: Job) -> list[int]:
        """Start a job; return the process ids of its ranks."""
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> list[int]:
        """Wait for the ranks; return their exit codes, negative for a signal."""
        return json.loads(self.process.stdout.readline())

    def run(self, job: Job) -> list[int]:
        """Start a job, wait for its end, and return the exit codes."""
        self.begin(job)
        return self.end()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


# The rest runs in the zygote and in its ranks.


def _serve() -> None:
    import deepspeed  # noqa: F401
    import transformers  # noqa: F401

    from neoxkit import train  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = Job(**json.loads(line))
        port = _free_port()
        pids = [_fork(job, rank, port) for rank in range(job.ranks)]
        print(json.dumps(pids), file=answers, flush=True)
        print(json.dumps(_wait(pids, job)), file=answers, flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(pids: list[int], job: Job) -> list[int]:
    """Wait for all; when one has failed, kill the others, as a launcher does."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + job.seconds
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + job.grace)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _fork(job: Job, rank: int, port: int) -> int:
    if pid := os.fork():
        return pid
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "LOCAL_SIZE": str(job.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **job.environment,
    }
    code = 70
    try:
        _pretend(job.bf16_gain)
        if job.sabotage and Sabotage(**job.sabotage).rank in (rank, -1):
            _sabotage(Sabotage(**job.sabotage))
        from neoxkit import train

        code = train.main([job.arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _pretend(bf16_gain: float) -> None:
    from neoxkit import machine
    from neoxkit.models import flops, loading

    machine.cpu_has_bf16 = lambda: bf16_gain > 0
    flops.bf16_gain = lambda _: bf16_gain
    loading.NARROWEST = 0


def _sabotage(plan: Sabotage) -> None:
    if plan.without:
        _take_away(plan.without)
    if plan.seal:
        _sabotage_seal(plan)
    elif plan.where:
        _sabotage_writes(plan)
    elif plan.at >= 0:
        _sabotage_step(plan)


def _take_away(what: str) -> None:
    from neoxkit.runs import checkpoints
    from neoxkit.training import trainer

    if what == "manifest":  # the newest folder counts, complete or not
        checkpoints.fault = lambda *_, **__: None
        checkpoints.manifest = lambda _: {
            "num_ranks": int(os.environ["WORLD_SIZE"]),
            "zero_stage": 2,
        }
    elif what == "rng":
        trainer.KitTrainer._load_rng_state = lambda *_: None
    elif what == "filter":  # as by transformers' default: NaN counts as 0
        trainer.KitTrainer.step_faults = lambda _: {}


def _sabotage_step(plan: Sabotage) -> None:
    import torch

    from neoxkit.training import trainer

    compute_loss, count = trainer.KitTrainer.compute_loss, [0]

    def sabotaged(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        number, count[0] = count[0], count[0] + 1
        if number != plan.at:
            return compute_loss(self, model, inputs, *args, **kwargs)
        if plan.how == "waits":
            open(f"{plan.listed}.{os.environ['RANK']}", "w").close()  # noqa: PTH123
            while not os.path.exists(f"{plan.listed}.go"):  # noqa: PTH110
                time.sleep(0.01)
        if plan.how == "memory":
            torch.empty(2**60)
        if plan.how == "masked":
            inputs["labels"] = torch.full_like(inputs["labels"], -100)
            kwargs["num_items_in_batch"] = torch.tensor(0)
        if plan.how == "gradient":
            hook = next(self.model.parameters()).register_hook(
                lambda g: (hook.remove(), g * torch.nan)[1]
            )
        if plan.how == "flip":
            _flip(plan, model)
        losses = trainer.token_losses
        if plan.how in ("nan", "inf"):
            trainer.token_losses = lambda *a: losses(*a) * float(plan.how)
        try:
            return compute_loss(self, model, inputs, *args, **kwargs)
        finally:
            trainer.token_losses = losses

    trainer.KitTrainer.compute_loss = sabotaged


def _flip(plan: Sabotage, engine: Any) -> None:
    """Flip one bit of an engine's weight now, or of what its next pass computes."""
    import random

    import torch

    dice = random.Random(plan.seed)

    def flip(tensor: torch.Tensor) -> torch.Tensor:
        values = tensor.data.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
        at = tuple(dice.randrange(size) for size in values.shape)
        bit = dice.randrange(8 * tensor.element_size() - 1)
        values[at] ^= 1 << bit
        return tensor

    trained = [p for p in engine.module.parameters() if p.requires_grad]
    if plan.flipped == "weight":
        weight = dice.choice(trained)
        flip(getattr(weight, "ds_tensor", weight))  # under ZeRO 3 this rank's part
    elif plan.flipped == "copy":
        flip(dice.choice([*engine.basic_optimizer.state]))
    elif plan.flipped == "gradient":
        once = dice.choice(trained).register_hook(lambda g: (once.remove(), flip(g.clone()))[1])
    else:
        some = dice.choice([m for m in engine.module.modules() if isinstance(m, torch.nn.Linear)])

        def of_output(_: Any, __: Any, output: torch.Tensor) -> None:
            once.remove()
            if plan.flipped == "activation":
                flip(output)
            else:
                output.register_hook(lambda g: flip(g.clone()))

        once = some.register_forward_hook(of_output)


def _sabotage_seal(plan: Sabotage) -> None:
    from neoxkit.runs import checkpoints

    hash_files, seal = checkpoints.hash_files, checkpoints.seal

    def hashes(checkpoint: Path, names: list[str]) -> dict:
        if plan.seal not in f"{checkpoint}/":
            return hash_files(checkpoint, names)
        if plan.how == "full":
            raise OSError(errno.ENOSPC, "No space left on device", names[0])
        if plan.how == "broken":
            raise KeyError("hashing is broken")
        Path(plan.listed).write_text("\n".join(names))
        return hash_files(checkpoint, names)

    def seals(checkpoint: Path, *args: Any, **facts: Any) -> None:
        if plan.how == "altered" and plan.seal in f"{checkpoint}/":
            file = checkpoint / plan.where
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        seal(checkpoint, *args, **facts)

    checkpoints.hash_files, checkpoints.seal = hashes, seals


def _sabotage_writes(plan: Sabotage) -> None:
    """Wrap every way in which a save writes a file."""
    import safetensors.torch
    import torch
    import transformers.modeling_utils

    count = [0]
    quiet = [False]  # inside a write that is counted already

    def is_meant(path: Any) -> bool:
        try:
            name = os.fspath(path)
        except TypeError:
            return False
        return not quiet[0] and plan.where in str(name)

    def meets_its_end(path: Any) -> str:
        """Return what should happen to this write; "" for nothing."""
        number, count[0] = count[0], count[0] + 1
        if plan.listed:
            with raw_open(plan.listed, "a") as file:
                file.write(f"{os.path.basename(os.fspath(path))}\n")  # noqa: PTH119
        if number != plan.at:
            return ""
        if plan.how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if plan.how == "full":
            _fill_disk(Path(path).parent)
        if plan.how == "fenced":
            _take_over(next(p for p in Path(path).parents if p.parent.name == "runs"))
        return plan.how

    @contextmanager
    def counted(path: Any) -> Iterator[None]:
        how = meets_its_end(path)
        quiet[0] = True
        try:
            yield
        finally:
            quiet[0] = False
        if how == "inside":
            os.truncate(path, os.stat(path).st_size // 2)  # noqa: PTH116
            os.kill(os.getpid(), signal.SIGKILL)

    def whole_file(write: Callable, position: int) -> Callable:
        def sabotaged(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if len(args) > position else kwargs.get("filename")
            if not is_meant(path):
                return write(*args, **kwargs)
            with counted(path):
                return write(*args, **kwargs)

        return sabotaged

    raw_open = builtins.open

    def sabotaged_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax") or not is_meant(file):
            return raw_open(file, mode, *args, **kwargs)
        how = meets_its_end(file)
        opened = raw_open(file, mode, *args, **kwargs)
        if how == "inside":
            write = opened.write

            def half(data: Any) -> None:
                write(data[: len(data) // 2])
                opened.flush()
                os.kill(os.getpid(), signal.SIGKILL)

            return _Instead(opened, half)
        return opened

    def before_rename(rename: Callable) -> Callable:
        def sabotaged(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            how = meets_its_end(target) if is_meant(target) else ""
            done = rename(source, target, *args, **kwargs)
            if how == "inside":  # a rename has no middle: killed right after it
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return sabotaged

    torch.save = whole_file(torch.save, 1)
    save_file = whole_file(safetensors.torch.save_file, 1)
    safetensors.torch.save_file = transformers.modeling_utils.safe_save_file = save_file
    shutil.copyfile = whole_file(shutil.copyfile, 1)
    builtins.open = io.open = sabotaged_open
    os.rename, os.replace = before_rename(os.rename), before_rename(os.replace)


class _Instead:
    """A file that can be written only by another `write`."""

    def __init__(self, file: Any, write: Callable) -> None:
        self._file, self.write = file, write

    def fileno(self) -> int:
        raise io.UnsupportedOperation("no copy past `write`")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Instead":
        self._file.__enter__()
        return self

    def __exit__(self, *fault: Any) -> Any:
        return self._file.__exit__(*fault)


def _take_over(run: Path) -> None:
    from neoxkit.runs import lease

    own = lease.Token.of(os.environ[lease.VARIABLE])
    later = lease.Lease(run, lease.Token(own.engine, own.job, own.restart + 1))
    later._over.set()  # it is not renewed
    lease.SETTLE_SECONDS = 0.0
    later.take()


def _fill_disk(folder: Path) -> None:
    """Leave no byte free on the folder's disk (a small one of its own, made for it)."""
    ballast = os.open(folder.parent / "ballast", os.O_WRONLY | os.O_CREAT)
    size = 2**20
    while size:
        try:
            os.write(ballast, b"\0" * size)
        except OSError:
            size //= 2
    os.close(ballast)


if __name__ == "__main__":
    _serve()
