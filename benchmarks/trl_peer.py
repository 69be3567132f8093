"""TRL's SFTTrainer on the kit's rows, packed its own way. Runs in .venv-trl, without the kit.

Rows come tokenized and labelled from the kit's dataset (columns `input_ids` and `labels`, which
TRL takes as they are). `packing=True, packing_strategy="bfd"` is its default strategy: whole
conversations, best fit. It packs all conversations of the measurement at once, so a step does
not hold the same conversations as a step of the other programs, but as many tokens on average, and
the whole run holds the same ones.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

import inputs
from stepclock import StepClock


class CountingTrainer(SFTTrainer):
    """A trainer that counts its micro-batches' tokens: packed without padding, all are useful."""

    counted = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        assert "attention_mask" not in inputs, "with a mask, packed conversations see each other"
        self.counted += inputs["input_ids"].numel()
        return super().training_step(model, inputs, *args, **kw)


class Ticks(TrainerCallback):
    """A callback that times each optimizer step and counts the tokens since the last one."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.trainer: CountingTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.tick(self.trainer.counted)
        self.trainer.counted = 0


def sft_config(options: argparse.Namespace, num_tokens: int) -> SFTConfig:
    """Return settings: fp32 on the CPU, bf16 on a GPU; one packed row per micro-batch, or all.

    TRL lays a micro-batch out as one row, and without flash attention its mask grows with the
    square of its length.
    """
    rows_a_step = math.ceil(num_tokens / options.row_tokens / options.steps)
    at_once = rows_a_step if options.rows_at_once else 1
    return SFTConfig(
        output_dir=str(options.work / "trl"),
        bf16=options.on_gpu,
        packing=True,
        packing_strategy="bfd",
        max_length=options.row_tokens,
        gradient_checkpointing=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows_a_step // at_once,
        max_steps=options.steps,
        **inputs.TRAINER | {"use_cpu": not options.on_gpu},
    )


def peak_memory() -> dict[str, float]:
    """Return a GPU's peak memory, which then counts instead of the process's."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_rss_gib": torch.cuda.max_memory_allocated() / 2**30}


def check_packing(model: torch.nn.Module, trainer: SFTTrainer, rows: Dataset) -> float:
    """Return how much packing changes log-probabilities, at most, on two conversations."""
    rows = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows.select(range(2))]
    lengths = [len(row["input_ids"]) for row in rows]
    joined = {k: rows[0][k] + rows[1][k] for k in ("input_ids", "labels")}
    together = trainer.data_collator([{**joined, "seq_lengths": lengths}])
    alone = [
        trainer.data_collator([{**r, "seq_lengths": [n]}])
        for r, n in zip(rows, lengths, strict=True)
    ]
    with torch.no_grad():
        packed, *single = (
            model(**batch, use_cache=False, fused_lm_head=True).log_probs[0]
            for batch in (together, *alone)
        )
    packed = [packed[: lengths[0] - 1], packed[lengths[0] :]]
    return max((a - b).abs().max().item() for a, b in zip(packed, single, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="what 01_tokenize wrote")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--batch", type=int, required=True, help="conversations per step, on average"
    )
    parser.add_argument("--row-tokens", type=int, default=280, help="TRL's max_length")
    parser.add_argument("--rows-at-once", action="store_true", help="a step's in one micro-batch")
    parser.add_argument("--attention", default=None, help="transformers' attn_implementation")
    parser.add_argument("--on-gpu", action="store_true", help="and in bf16")
    options = parser.parse_args()
    rows = load_from_disk(options.dataset)["train"].select_columns(["input_ids", "labels"])
    rows = rows.select(range(options.steps * options.batch))
    num_tokens = sum(map(len, rows["input_ids"]))
    clock = StepClock()
    ticks = Ticks(clock)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype="float32", attn_implementation=options.attention
    )
    trainer = CountingTrainer(
        model=model,
        args=sft_config(options, num_tokens),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[ticks],
    )
    ticks.trainer = trainer
    difference = check_packing(model, trainer, rows)
    trainer.train()
    clock.report(
        packing_changes_log_probs_by=difference,
        packed_rows=len(trainer.train_dataset),
        **peak_memory(),
    )


if __name__ == "__main__":
    main()
