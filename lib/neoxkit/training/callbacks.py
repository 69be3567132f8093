"""The Trainer's callbacks that act: stops, sealed checkpoints, snapshots, heartbeats."""

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from neoxkit import files
from neoxkit.errors import NotFinite, UserError
from neoxkit.runs import checkpoints, heartbeat, lease, lock, snapshots
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.training import distributed, sealing, universal, verifying
from neoxkit.training.arguments import Parsed, zero_stage


class StepCheck(TrainerCallback):
    """The callback by which all ranks agree, after each step, whether to stop.

    A fault (no trained token, a number that is not finite, or other bits when the step was taken
    twice) ends the training before this step is saved or logged, and so does a lost lease: the run
    is another training's now. A stop request
    (the STOP file, or TERM or INT to a rank) ends it with a checkpoint of this step.
    """

    def __init__(self, folder: Path, trainer: Any, until: int = 0) -> None:
        """`until`: stop after this step, which is saved if it is a multiple of save_steps; 0:
        don't."""
        self.folder, self.trainer, self.until, self.stopped = folder, trainer, until, False
        self._signalled = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # before this, they end the rank at once
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self._signalled or lock.asked_to_stop(self.folder)
        is_until = state.global_step == self.until
        flags = {"lost": lease.is_lost(self.folder), "stop": asked}
        if self.trainer.verifier:  # first: a flipped bit may be why a number is not finite
            flags |= {f"other {name}": d for name, d in self.trainer.verifier.differs.items()}
        flags |= self.trainer.step_faults()
        if args.world_size > 1:
            flags = distributed.set_by_any(flags, args.device)
        if flags["lost"]:
            raise lease.lost(self.folder)
        faults = [name for name in flags if flags[name] and name != "stop"]
        if faults:
            raise self._explain(faults[0], state.global_step)
        verified = self.trainer.verifier and self.trainer.verifier.taken == state.global_step
        if verified and state.is_world_process_zero:
            append_event(self.folder, "verified", step=state.global_step)
        if is_until or (flags["stop"] and state.global_step < state.max_steps):
            self.stopped = True
            control.should_log = control.should_training_stop = True
            control.should_save = flags["stop"] or state.global_step % _save_steps(args, state) == 0
            control.should_evaluate = False

    def _explain(self, fault: str, step: int) -> UserError:
        """Return the error for a fault of the step; all ranks call this."""
        saved = checkpoints.saved_step(self.folder)
        kept = f"step {saved} is saved" if saved else "nothing was saved"
        if fault.startswith("other "):
            by_rank = distributed.by_each(self.trainer.verifier.differs.copy)
            where = _ranks(fault.removeprefix("other "), by_rank)
            what = f"{kept}; step {step}, taken twice, gave {fault}{where}"
            return UserError("verify_steps", what, "run the same again, on another machine")
        if fault == "no trained token":
            what = f"step {step} has no trained token: every label is -100; {kept}"
            return UserError("dataset", what, "look at the audit of 01_tokenize")
        what = f"the {fault} is not finite at step {step}; {kept}"
        return NotFinite("learning_rate", what, "restart with a lower one, or with bf16 or fp32")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:  # inside the epoch: no second save of the checkpoint, no evaluation
            control.should_save = control.should_evaluate = control.should_log = False


def _save_steps(args: Any, state: Any) -> int:
    """Return the steps between saves; those of a resumed run's state are its checkpoint's."""
    return int(args.save_steps) if args.save_steps >= 1 else state.save_steps


def _ranks(what: str, by_rank: Sequence[Mapping[str, bool]]) -> str:
    """Say on which of several ranks something differs, if it is each rank's own."""
    if len(by_rank) == 1 or what not in verifying.OF_A_RANK:
        return ""
    numbers = [str(rank) for rank, differs in enumerate(by_rank) if differs[what]]
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f" on rank{'s' * (len(numbers) > 1)} {', '.join(numbers[:3])}{more}"


class SaveWhole(TrainerCallback):
    """The callback that seals a checkpoint once every rank has written it, then rotates."""

    def __init__(self, folder: Path, parsed: Parsed, limit: int | None) -> None:
        self.folder, self.parsed, self.limit, self.stepped = folder, parsed, limit, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not self.stepped:  # every rank has loaded it
            lease.check(self.folder)
            shutil.rmtree(self.folder / universal.FOLDER, ignore_errors=True)
        self.stepped = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        distributed.barrier()
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        sealing.seal(
            checkpoint,
            lambda: {
                "step": state.global_step,
                "num_ranks": args.world_size,
                "zero_stage": zero_stage(args),
                "dataset_sha256": self.parsed.kit.dataset_sha256,
                "arguments_sha256": files.sha256(self.folder / ARGUMENTS),
            },
        )
        if not state.is_world_process_zero:
            return
        append_event(self.folder, "checkpoint", step=state.global_step, folder=checkpoint.name)
        checkpoints.rotate(self.folder, self.limit)


class Snapshots(TrainerCallback):
    """The callback that keeps the weights of steps 0, 1, 2, 4, ...; the last step's are model/.

    A snapshot is whole before its step is saved, so that no resume skips one.
    """

    def __init__(self, folder: Path, trainer: Any, signs: heartbeat.Signs) -> None:
        self.folder, self.trainer, self.signs = folder, trainer, signs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._write(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if snapshots.is_due(state.global_step) and state.global_step < state.max_steps:
            self._write(state)

    def _write(self, state: Any) -> None:
        """Write one; every rank helps to gather the weights."""
        self.signs.give(silent=True)
        place = snapshots.folder_of(self.folder, state.global_step)
        if not state.is_world_process_zero:
            self.trainer.save_model(str(place))
            return
        with files.whole_folder(place, check=lambda: lease.check(self.folder)) as part:
            self.trainer.save_model(str(part))
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed


class Alive(TrainerCallback):
    """The callback that writes this rank's heartbeats; `trainer.evaluation_loop` does so too."""

    def __init__(self, signs: heartbeat.Signs) -> None:
        self.signs, self.begun = signs, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_on_start:
            self.signs.begin(heartbeat.EVALUATING)
        else:
            self._begin_first_step(args)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self._begin_first_step(args)

    def _begin_first_step(self, args: Any) -> None:
        compiles = "(it compiles, which takes long)" if args.torch_compile else ""
        self.signs.begin(heartbeat.FIRST_STEP, compiles)

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
        self.signs.begin("")  # no stage: a run that resumed at its last step takes none
