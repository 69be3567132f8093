"""A Hugging Face Trainer whose loss is per trained token of the whole step, over all ranks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]  # no types
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from neoxkit import machine
from neoxkit.data.table import NOT_TRAINED
from neoxkit.errors import UserError
from neoxkit.models import flops, power
from neoxkit.models.batches import Collator, EvenRanks
from neoxkit.models.losses import token_losses
from neoxkit.runs import checkpoints, steps
from neoxkit.runs.heartbeat import Signs
from neoxkit.training import distributed, packing_check
from neoxkit.training.verifying import Verifier

COUNTS = ("tokens", "pairs", "trained_tokens", "cells")  # of batches; cells: with padding


class _Epochs(TrainerCallback):
    """A callback that tells the sampler which epoch begins.

    accelerate does so too, but does not reach the sampler when a run resumes inside an epoch:
    several ranks would get the first epoch's order.
    """

    def __init__(self, sampler: EvenRanks) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(math.floor((state.epoch or 0) + 1e-6))


def without_improvement(losses: Iterable[float], threshold: float = 0.0) -> int:
    """Count the evaluations since the last that improved, as transformers' EarlyStoppingCallback.

    A loss improves if it is more than `threshold` below the lowest one before it.

    >>> without_improvement([3.0, 2.0, 2.5, 2.0]), without_improvement([2.0, 1.9], threshold=0.5)
    (2, 1)
    """
    best, count = math.inf, 0
    for loss in losses:
        count = 0 if loss < best and best - loss > threshold else count + 1
        best = min(loss, best) if math.isfinite(loss) else best
    return count


class KitTrainer(Trainer):
    """A Trainer whose loss is per trained token of the whole step, over all ranks."""

    # Narrower than the Trainer's own hints.
    model: PreTrainedModel
    train_dataset: Dataset
    eval_dataset: Dataset
    data_collator: Collator

    def __init__(
        self,
        signs: Signs | None = None,
        lr_range_from: float = 0.0,
        exports_best: bool = False,
        patience: int = 0,
        threshold: float = 0.0,
        parts: Mapping[str, np.ndarray] | None = None,
        verify_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        """`parts`: the rows of each part of the held-out set, by name, if it has several;
        `verify_steps`: take every Nth step twice (verifying.py); 0: none."""
        super().__init__(**kwargs)
        self.signs, self.lr_range_from = signs, lr_range_from
        self.exports_best, self.patience, self.threshold = exports_best, patience, threshold
        self.parts = parts or {}
        self.verifier = Verifier(verify_steps) if verify_steps else None
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's tokens
        self.model_accepts_loss_kwargs = True  # so that num_items_in_batch is always counted
        self.work = flops.work(self.model)
        # COUNTS since the last log; kept on the device, so that counting never waits for it.
        self.counts = torch.zeros(len(COUNTS), dtype=torch.float64, device=self.args.device)
        # Since the last step: was no token trained, was the loss of a micro-batch not finite?
        self.flags = torch.zeros(2, dtype=torch.bool, device=self.args.device)
        self.grad_norm: float | None = None
        # Of each micro-batch of the step: the conversations' lines, and whose each loss is.
        self.step: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.packing_checked = False
        self.of_base: torch.Tensor | None = None  # see `_detectable`

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Return the Trainer's order, each step shared out so that no rank waits long."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        sampler = super()._get_train_sampler(rows)
        if self.args.world_size == 1 or type(sampler) not in (RandomSampler, SequentialSampler):
            return sampler
        assert isinstance(sampler, RandomSampler | SequentialSampler)
        if type(sampler) is RandomSampler:  # accelerate would replace it by this one
            sampler = SeedableRandomSampler(rows, data_seed=self.args.data_seed)
        size = self.args.per_device_train_batch_size
        shared = EvenRanks(sampler, rows["length"][:], self.args.world_size, size)
        self.add_callback(_Epochs(shared))
        return shared

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Take a micro-batch; after the last one of a step that is due, the whole step again."""
        take = partial(super().training_step, model, num_items_in_batch=num_items_in_batch)
        verifier, step = self.verifier, self.state.global_step + 1
        if not verifier or not verifier.is_due(step, model):
            return take(inputs)
        verifier.begin(step, model, inputs)
        loss = take(inputs)
        if self.accelerator.sync_gradients:
            again = partial(self._losses_again, take, verifier.micro_batches)
            verifier.compare([losses for _, _, losses in self.step], again)
        return loss

    def _losses_again(
        self, take: Callable[[dict[str, Any]], object], micro_batches: Sequence[dict[str, Any]]
    ) -> list[torch.Tensor]:
        """Take the micro-batches of a step, of which nothing is counted; return their losses."""
        kept = self.counts, self.flags, self.step
        self.counts, self.flags = torch.zeros_like(self.counts), torch.zeros_like(self.flags)
        self.step = []
        for i, inputs in enumerate(micro_batches, start=1):
            if self.signs:
                self.signs.give()
            self.accelerator.gradient_state._set_sync_gradients(i == len(micro_batches))
            take(inputs)
        found = [losses for _, _, losses in self.step]
        self.counts, self.flags, self.step = kept
        return found

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the micro-batch's share of the loss per trained token of the step; a scalar.

        `num_items_in_batch` counts the tokens of all ranks and DeepSpeed averages gradients over
        the ranks, so the sum is multiplied by their number.
        """
        tokens, pairs = inputs.pop("counts")
        lines, of = inputs.pop("lines", None), inputs.pop("owners", None)
        if not self.packing_checked:
            self._check_packing(model)
        trained = (inputs["labels"] != NOT_TRAINED).sum()
        cells = torch.full_like(trained, inputs["labels"].numel())
        self.counts += torch.stack([tokens, pairs, trained, cells])  # in the order of COUNTS
        losses = token_losses(model, self.model, inputs)
        if lines is not None and of is not None:
            self.step.append((lines, of, losses.detach()))
        num_items = torch.as_tensor(num_items_in_batch, device=losses.device)
        loss = losses.sum() / num_items * self.accelerator.num_processes
        self.flags |= torch.stack([num_items == 0, ~torch.isfinite(loss.detach())])
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> float | None:
        self.grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self.grad_norm

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Make the Trainer's scheduler; in a range test each step multiplies the rate."""
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        if not hasattr(optimizer, "defaults"):  # DeepSpeed's, which some schedules ask for the rate
            optimizer.defaults = {"lr": self.args.learning_rate}
        if not self.lr_range_from or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        lowest = self.lr_range_from / self.args.learning_rate
        last = max(num_training_steps - 1, 1)
        self.lr_scheduler = LambdaLR(optimizer, lambda step: lowest ** (1 - min(step, last) / last))
        return self.lr_scheduler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing when a run resumes from its last step: the Trainer would take one more."""
        if self.state.global_step < self.state.max_steps and not self._waited_in_vain():
            super()._run_epoch(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Note the lowest eval loss, after each evaluation; save its step if it is to be exported,
        and the last step if the training ends early."""
        is_best = super()._determine_best_metric(metrics, trial)
        if self._waited_in_vain():
            self.control.should_training_stop = True
        if (is_best and self.exports_best) or self.control.should_training_stop:
            self.control.should_save |= self.args.save_strategy != "no"
        return is_best

    def _waited_in_vain(self) -> int:
        """Return how many evaluations have not improved, if they are as many as the patience; else
        0.

        They are counted in the history of the losses, which each checkpoint has: a run that resumes
        goes on counting, with another patience as well.
        """
        logged = [e for e in self.state.log_history if "eval_loss" in e and e["step"]]
        count = without_improvement([e["eval_loss"] for e in logged], self.threshold)
        return count if self.patience and count >= self.patience else 0

    def stopped_early(self) -> int:
        """Return after how many evaluations without an improvement the training ended before its
        planned step; 0 if it did not."""
        return self._waited_in_vain() if self.state.global_step < self.state.max_steps else 0

    @property
    def exported_step(self) -> int:
        """The step whose weights are exported."""
        best = self.state.best_global_step if self.exports_best else None
        return best or self.state.global_step

    def load_best(self) -> None:
        """Load the weights of the step to export, if others are loaded; refuse a checkpoint of it
        that is not whole."""
        if self.exported_step == self.state.global_step:
            return
        checkpoint = Path(self.args.output_dir or "") / f"checkpoint-{self.exported_step}"
        if found := distributed.by_first(lambda: checkpoints.fault(checkpoint)):
            remedy = "bring it back, or set load_best_model_at_end False and allow_change for it"
            raise UserError("load_best_model_at_end", f"{checkpoint.name}: {found}", remedy)
        self.state.best_model_checkpoint = str(checkpoint)
        self._load_best_model()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        distributed.check_lease(Path(self.args.output_dir or ""))
        super()._save_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; a learning rate changed by allow_change wins over the checkpoint's."""
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler = self.lr_scheduler
        if not isinstance(scheduler, LambdaLR):  # all of the Trainer's are, except the plateau
            return
        for i, (group, share) in enumerate(
            zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True)
        ):
            if scheduler.base_lrs[i] != self.args.learning_rate:
                scheduler.base_lrs[i] = group["initial_lr"] = self.args.learning_rate
                group["lr"] = self.args.learning_rate * share(scheduler.last_epoch)
                scheduler._last_lr[i] = group["lr"]

    def step_faults(self) -> dict[str, bool]:
        """Return whether the last step trained no token, and whether loss or gradient isn't finite.

        In fp16 an overflowing gradient is not a fault: DeepSpeed skips the step, lowers the loss
        scale, and raises when it can't be lowered further.
        """
        no_token, loss = self.flags.tolist()
        self.flags = torch.zeros_like(self.flags)
        norm = 0.0 if self.grad_norm is None or self.args.fp16 else float(self.grad_norm)
        gradient = not (math.isfinite(norm) and norm >= 0)
        return {"no trained token": no_token, "loss": loss, "gradient": gradient}

    def take_step(self) -> list[steps.Taken]:
        """Return the conversations of the last step that this rank had, with their losses, and
        forget them."""
        found = []
        for lines, of, losses in self.step:
            sums = torch.zeros((2, len(lines)), dtype=torch.float64, device=losses.device)
            sums.index_add_(1, of, torch.stack([losses.double(), torch.ones_like(losses).double()]))
            columns = zip(lines.tolist(), *sums.tolist(), strict=True)
            found += [steps.Taken(line, loss, int(count)) for line, loss, count in columns]
        self.step = []
        return found

    def _check_packing(self, model: torch.nn.Module) -> None:
        """Check the packing of the training's own rows, once."""
        self.packing_checked = True
        half = self.args.bf16 or self.args.fp16
        rows, collator = self.train_dataset, self.data_collator
        packing_check.refuse_leaks(model, self.model, rows, collator, self._prepare_inputs, half)

    def evaluation_loop(self, *_: Any, **__: Any) -> EvalLoopOutput:
        """Return the held-out set's mean loss per trained token, however it is batched."""
        self.model_wrapped.eval()
        rank, world = self.args.process_index, self.args.world_size
        order = sorted(
            range(len(self.eval_dataset)), key=self.eval_dataset["length"][:].__getitem__
        )
        size = self.args.per_device_eval_batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        # Of each conversation, in the order of the held-out set: its loss, and its trained tokens.
        sums = torch.zeros((2, len(order)), dtype=torch.float64, device=self.args.device)
        for round_start in range(0, len(batches), world):
            if self.signs and not self.state.global_step:
                self.signs.tell(f"(batch {round_start + 1:,} of {len(batches):,})")
            elif self.signs:
                self.signs.give(silent=self.args.torch_compile)
            mine = round_start + rank
            chosen = batches[min(mine, len(batches) - 1)]
            # A row's number in place of its line, to know whose loss is whose.
            batch = self.data_collator([{**self.eval_dataset[i], "line": i} for i in chosen])
            batch.pop("counts")
            at = batch.pop("lines")[batch.pop("owners")].to(sums.device)
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = token_losses(self.model_wrapped, self.model, self._prepare_inputs(batch))
            if mine < len(batches):  # with ZeRO-3 every rank takes part in every forward pass
                totals += torch.tensor(
                    [losses.double().sum(), losses.numel()], device=totals.device
                )
                of_each = losses.double()
                sums.index_add_(1, at, torch.stack([of_each, torch.ones_like(of_each)]))
        machine.release_memory()  # batches of every length have left gaps between what is in use
        if self.signs:
            self.signs.give(silent=True)  # a save, or the end, may follow
        loss_sum, count = self.accelerator.reduce(totals, "sum").tolist()
        metrics = {"eval_loss": loss_sum / count, "eval_trained_tokens": int(count)}
        sums = self.accelerator.reduce(sums, "sum").cpu()
        metrics |= self._losses_of_parts(sums)
        if (seen := self._detectable(sums)) is not None:
            metrics["eval_detectable"] = seen
        # The Trainer itself returns None here when it computes the loss alone.
        return EvalLoopOutput(None, None, metrics, len(order))  # type: ignore[arg-type]

    def _losses_of_parts(self, sums: torch.Tensor) -> dict[str, float]:
        """Return the mean loss per trained token of each part of the held-out set, named as the
        Trainer names those of several eval datasets; `sums`: (2, conversations), see above."""
        of_parts = ((name, sums[:, rows].sum(1).tolist()) for name, rows in self.parts.items())
        return {f"eval_{name}_loss": loss / count for name, (loss, count) in of_parts if count}

    def _detectable(self, sums: torch.Tensor) -> float | None:
        """Return the difference to the base that the held-out set can show (models/power.py); None
        at step 0, whose losses are kept for this, and in a run that resumed later.

        `sums` has shape (2, conversations): the same ones in the same order at each evaluation.
        """
        if not self.state.global_step:
            self.of_base = sums
            return None
        if self.of_base is None:
            return None
        return power.detectable_of(self.of_base[0].numpy(), sums[0].numpy(), sums[1].numpy())

    def evaluate_once(self) -> None:
        """Evaluate at the end, unless the last step has been evaluated already."""
        if not any(
            "eval_loss" in e and e["step"] == self.state.global_step for e in self.state.log_history
        ):
            self.evaluate()

    def loss_scale(self) -> float | None:
        """Return what the loss is multiplied by in fp16; None in other precisions."""
        if not self.args.fp16:
            return None
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            return float(engine.optimizer.loss_scale)
        return float(self.accelerator.scaler.get_scale())

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add token counts and memory to the logs; every rank calls this at the same steps."""
        if "loss" in logs:
            memory = torch.tensor([flops.peak_memory_gib()], dtype=torch.float64)
            sums = self.accelerator.reduce(self.counts, "sum").tolist()
            num = dict(zip(COUNTS, sums, strict=True))
            logs |= {name: int(num[name]) for name in ("tokens", "trained_tokens")}
            logs["padding_share"] = (
                round(1 - num["tokens"] / num["cells"], 4) if num["cells"] else 0.0
            )
            logs["flop"] = self.work.training_flop(
                num["tokens"], num["trained_tokens"], num["pairs"]
            )
            by_rank = self.accelerator.gather(memory.to(self.args.device)).tolist()
            logs["memory_gib_by_rank"] = [round(gib, 2) for gib in by_rank]
            logs["memory_gib"] = max(logs["memory_gib_by_rank"])
            if (scale := self.loss_scale()) is not None:
                logs["loss_scale"] = scale
            self.counts = torch.zeros_like(self.counts)
        super().log(logs, start_time)
