"""The Trainer's callbacks that keep a run safe: stop where it must, save whole, show it lives."""

import hashlib
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from neoxkit import ranks, universal
from neoxkit.arguments import Parsed, zero_stage
from neoxkit.errors import UserError
from neoxkit.runs import checkpoints, heartbeat, lock
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS


class StepCheck(TrainerCallback):
    """After each step, all ranks agree: was anything not finite, and did somebody ask to stop?

    A bad number ends the training at this step, before anything is saved or logged of it. A wish
    (the STOP file, or TERM or INT to a rank) ends it with a checkpoint of this step.
    """

    def __init__(self, folder: Path, trainer: Any) -> None:
        self.folder, self.trainer, self.stopped = folder, trainer, False
        self._signalled = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # until now they ended it at once
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wish = self._signalled or lock.asked_to_stop(self.folder)
        told = torch.tensor([wish, *self.trainer.step_faults()], dtype=torch.int32)
        if args.world_size > 1:
            told = told.to(args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        wish, *bad = told.tolist()
        if any(bad):
            raise _not_finite(self.folder, state.global_step, *bad)
        if wish and state.global_step < state.max_steps:
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:  # the epoch did not end: no second save into the checkpoint, no evaluation
            control.should_save = control.should_evaluate = control.should_log = False


def _not_finite(folder: Path, step: int, masked: int, loss: int, gradient: int) -> UserError:
    saved = checkpoints.saved_step(folder)
    kept = f"step {saved} is saved" if saved else "nothing was saved"
    if masked:
        what = f"no token is trained on in step {step}: every label is -100; {kept}"
        return UserError("dataset", what, "look at the audit of 01_tokenize")
    what = "the loss" if loss else "the gradient"
    what = f"{what} is not finite at step {step}; {kept}"
    return UserError("learning_rate", what, "restart with a lower one, or with bf16 or fp32")


class SaveWhole(TrainerCallback):
    """Seals a checkpoint when every rank has written its part, then deletes the oldest."""

    def __init__(self, folder: Path, parsed: Parsed, limit: int | None) -> None:
        self.folder, self.parsed, self.limit, self.stepped = folder, parsed, limit, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not self.stepped:  # every rank has loaded it
            shutil.rmtree(self.folder / universal.FOLDER, ignore_errors=True)
        self.stepped = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ranks.barrier()
        if not state.is_world_process_zero:
            return
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        names = [f"rng_state_{rank}.pth" for rank in range(args.world_size)]
        for name in names if len(names) > 1 else ["rng_state.pth"]:
            # One that is missing would be passed over when the run goes on.
            if not (checkpoint / name).is_file():
                raise RuntimeError(f"{checkpoint.name}: {name} was not written")
        arguments = self.folder / ARGUMENTS
        checkpoints.seal(
            checkpoint,
            step=state.global_step,
            num_ranks=args.world_size,
            zero_stage=zero_stage(args),
            dataset_sha256=self.parsed.kit.dataset_sha256,
            arguments_sha256=hashlib.sha256(arguments.read_bytes()).hexdigest(),
        )
        append_event(self.folder, "checkpoint", step=state.global_step, folder=checkpoint.name)
        best = [Path(state.best_model_checkpoint)] if state.best_model_checkpoint else []
        checkpoints.rotate(self.folder, self.limit, best)


class Alive(TrainerCallback):
    """Signs of life of this rank (heartbeat.py); `trainer.evaluation_loop` gives them as well."""

    def __init__(self, signs: heartbeat.Signs) -> None:
        self.signs, self.begun = signs, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.monotonic()
        self.signs.give()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.signs.give()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.signs.stepped(time.monotonic() - self.begun)
        if control.should_save or control.should_evaluate:
            self.signs.give(silent=True)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.signs.give(silent=True)
