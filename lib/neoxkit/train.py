"""What each DeepSpeed rank runs: a Hugging Face training script over tokenized conversations.

deepspeed --module neoxkit.train runs/demo/arguments.json
deepspeed --module neoxkit.train --dataset data/tokenized/sample --output_dir runs/demo --do_train
"""

import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import (
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.trainer_utils import EvalLoopOutput

from neoxkit import arguments, export, models, paths, plan, runs, tokenized
from neoxkit.batches import Collator, packed, padded
from neoxkit.errors import UserError
from neoxkit.losses import token_losses
from neoxkit.metrics import Metrics
from neoxkit.tokens import NOT_TRAINED

# Without this a CPU start compiles an extension for minutes; gloo was measured to be as fast.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# Model families whose packed rows are known to be exact; every run checks its own as well.
PACKS_EXACTLY = {"gpt_neox", "gpt_neo", "gpt2"}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 2 a person's mistake (one line on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    folder = next((Path(a).parent for a in argv if a.endswith("arguments.json")), None)
    try:
        parsed = arguments.parse(argv)
        folder = Path(parsed.training.output_dir)
        run(parsed)
        return 0
    except UserError as mistake:
        _report(folder, str(mistake))
        if _is_first():
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    except Exception as fault:
        _report(folder, " ".join(f"{type(fault).__name__}: {fault}".split())[:300])
        traceback.print_exc()
        return 1


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _report(folder: Path | None, message: str) -> None:
    """One error event, for whoever reads metrics.jsonl."""
    if folder and _is_first() and folder.is_dir():
        runs.append_event(folder, "error", message=message)


def run(parsed: arguments.Parsed) -> None:
    """Load, train (from the newest whole checkpoint if there is one), evaluate, export."""
    kit, args = parsed.kit, parsed.training
    if args.hf_deepspeed_config:
        deepspeed.init_distributed()  # before the model: ZeRO-3 shards it over the ranks on load
    folder = Path(args.output_dir)
    if runs.state(folder) == "finished":
        raise UserError("output_dir", f"{folder} is finished", "choose another folder")
    data = paths.find("dataset", kit.dataset or "(none given)", file=False)
    tokenized.check_sha256(data, kit.dataset_sha256)
    kit.dataset, kit.dataset_sha256 = paths.short(data), tokenized.sha256(data)
    dataset, manifest = tokenized.load(data)
    kit.model_name_or_path = kit.model_name_or_path or manifest["model_name_or_path"]
    kit.block_size = tokenized.check_block_size(kit.block_size, manifest)
    tokenizer = models.load_tokenizer(kit.model_name_or_path)
    tokenized.check_tokenizer(tokenizer, manifest)
    sides = {side: tokenized.within(rows, kit.block_size) for side, rows in dataset.items()}
    if not len(sides["train"]):
        raise UserError("block_size", "no conversation is this short", "raise it")
    if not len(sides["eval"]):
        args.eval_strategy = "no"
        parsed.notices.append("the eval side is empty: no eval loss will be shown")
    folder.mkdir(parents=True, exist_ok=True)
    if parsed.flags is not None:
        _record_flags(folder, parsed.flags)
    runs.check_ranks(folder, args.world_size)
    if kit.from_scratch:
        model = models.load_model(str(_random_base(folder, kit.model_name_or_path, args)))
    else:
        model = models.load_model(kit.model_name_or_path)
    models.check_vocabulary(model, tokenizer)
    models.check_positions(model, kit.block_size)
    if kit.layout == "packed" and model.config.model_type not in PACKS_EXACTLY:
        kit.layout = "padded"
        parsed.notices.append(
            f"rows are padded: {model.config.model_type} is not known to pack exactly"
        )
    if _is_first():
        for notice in parsed.notices:
            print(f"notice: {notice}", flush=True)
    trainer = KitTrainer(
        model=model,
        args=args,
        data_collator=Collator(kit.layout, kit.block_size, models.pad_id(tokenizer)),
        train_dataset=sides["train"],
        eval_dataset=sides["eval"],
        callbacks=[Metrics(folder, parsed)],
    )
    checkpoints = runs.whole_checkpoints(folder)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    if len(sides["eval"]) and args.do_eval:
        trainer.evaluate_once()
    export.finish(trainer, tokenizer, kit, manifest, folder)


def _record_flags(folder: Path, flags: dict[str, str]) -> None:
    """What a shell said, kept as the notebook keeps it: going on with other flags is refused."""
    path = folder / runs.ARGUMENTS
    if path.exists() and runs.state(folder) != "new":
        plan.refuse_changes(runs.read_json(path), flags)
    if _is_first():
        runs.write_json(path, flags)
    _barrier()


def _random_base(folder: Path, name: str, args: TrainingArguments) -> Path:
    """runs/<run>/base: the random weights a run from scratch starts from, written once by rank 0.

    Written whole and then loaded by every rank, so that they are the same under every ZeRO stage
    and 03 can compare with them.
    """
    base, part = folder / "base", folder / ".base.part"
    if _is_first() and not base.is_dir():
        unset_hf_deepspeed_config()  # else ZeRO-3 would shard the model as it is made
        models.random_model(name, args.seed).save_pretrained(part)
        models.load_tokenizer(name).save_pretrained(part)
        part.rename(base)
        if args.hf_deepspeed_config:
            set_hf_deepspeed_config(args.hf_deepspeed_config)
    _barrier()
    return base


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class KitTrainer(Trainer):
    """A Trainer whose loss is per trained token of the whole step, over all ranks."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's tokens
        self.model_accepts_loss_kwargs = (
            True  # so that num_items_in_batch is counted, for any model
        )
        self.counts = torch.zeros(
            3, dtype=torch.float64
        )  # tokens, trained tokens, cells of a batch
        self.packing_checked = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the losses over the trained tokens of the step; a scalar.

        `num_items_in_batch` counts over all ranks and DeepSpeed averages gradients over them, so
        the sum is multiplied by the number of ranks.
        """
        num_tokens = inputs.pop("num_tokens")
        if not self.packing_checked:
            self._check_packing(model)
        cells, trained = inputs["labels"].numel(), (inputs["labels"] != NOT_TRAINED).sum()
        self.counts += torch.tensor([num_tokens.sum().item(), trained.item(), cells])
        losses = token_losses(model, self.model, inputs)
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    @torch.no_grad()
    def _check_packing(self, model: torch.nn.Module) -> None:
        """Stop where conversations of a packed row change each other's loss.

        The measure is what padding changes: nothing but rounding, which is coarse in half
        precision.
        """
        self.packing_checked = True
        rows, pad_id = self.train_dataset, self.data_collator.pad_id
        if self.data_collator.layout != "packed" or len(rows) < 2:
            return
        shortest = sorted(range(len(rows)), key=rows["length"][:].__getitem__)[:3]
        chosen = [rows[i] for i in reversed(shortest)]  # longest first, as a packed row has them
        lengths = [len(row["input_ids"]) for row in chosen]
        model.eval()
        together, side_by_side, *alone = (
            token_losses(model, self.model, self._prepare_inputs(batch))
            for batch in (
                packed(chosen, sum(lengths), pad_id),
                padded(chosen, max(lengths), pad_id),
                *(padded([row], n, pad_id) for row, n in zip(chosen, lengths, strict=True)),
            )
        )
        model.train()
        rounding = (side_by_side - torch.cat(alone)).abs().mean().item()
        difference = (together - side_by_side).abs().mean().item()
        half = self.args.bf16 or self.args.fp16
        if difference > 4 * rounding + (0.01 if half else 1e-4):
            raise UserError(
                "layout",
                f"packed rows change the loss of this model by {difference:.2g}",
                "set layout to padded",
            )

    def evaluation_loop(self, *_: Any, **__: Any) -> EvalLoopOutput:
        """Mean loss per trained token of the eval side, whatever the batches and ranks."""
        self.model_wrapped.eval()
        rank, world = self.args.process_index, self.args.world_size
        order = sorted(
            range(len(self.eval_dataset)), key=self.eval_dataset["length"][:].__getitem__
        )
        size = self.args.per_device_eval_batch_size
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for round_start in range(0, len(batches), world):
            mine = round_start + rank
            batch = self.data_collator(
                [self.eval_dataset[i] for i in batches[min(mine, len(batches) - 1)]]
            )
            batch.pop("num_tokens")
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = token_losses(self.model_wrapped, self.model, self._prepare_inputs(batch))
            if mine < len(batches):  # with ZeRO-3 every rank takes part in every forward pass
                totals += torch.tensor(
                    [losses.double().sum(), losses.numel()], device=totals.device
                )
        loss_sum, count = self.accelerator.reduce(totals, "sum").tolist()
        metrics = {"eval_loss": loss_sum / count, "eval_trained_tokens": int(count)}
        return EvalLoopOutput(None, None, metrics, len(order))

    def evaluate_once(self) -> None:
        """Evaluate at the end, unless the last step was evaluated already."""
        if self.args.load_best_model_at_end or not any(
            "eval_loss" in e and e["step"] == self.state.global_step for e in self.state.log_history
        ):
            self.evaluate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the step's tokens were; every rank calls this at the same steps."""
        if "loss" in logs:
            memory = torch.tensor([_peak_memory_gib()], dtype=torch.float64)
            summed = self.accelerator.reduce(self.counts.to(self.args.device), "sum").tolist()
            logs["tokens"], logs["trained_tokens"], cells = map(int, summed)
            logs["padding_share"] = round(1 - summed[0] / cells, 4) if cells else 0.0
            logs["memory_gib"] = round(
                self.accelerator.gather(memory.to(self.args.device)).max().item(), 2
            )
            self.counts.zero_()
        super().log(logs, start_time)


def _peak_memory_gib() -> float:
    """Of this rank: the GPU's peak allocation, or the process's largest resident size."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    code = main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)
