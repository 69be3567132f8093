"""Training as it is usually done, on Hugging Face's Trainer under DeepSpeed ZeRO-2.

One tokenizer call per conversation, every row padded to the block size, labels of -100 where
nothing is trained, the model's own loss (which computes the logits of all positions), gradient
checkpointing. Written without the kit: started by under_deepspeed.py.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import deepspeed
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import inputs
from stepclock import StepClock

# Without this a CPU start compiles an extension for minutes, as in the kit.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# An agent turn, with the end mark or the blank line and the next label that end it.
AGENT = re.compile(r"(?:^|\n\n)Agent:(.*?(?:\n\nUser:|$))", re.DOTALL)


def encode(tokenizer: Any, text: str, train_on: str) -> dict[str, list[int]]:
    """Tokenize a conversation and label the agent's turns (or all)."""
    text += tokenizer.eos_token
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    if train_on == "all":
        return {"input_ids": ids, "labels": list(ids)}
    spans = [match.span(1) for match in AGENT.finditer(text)]
    inside = [
        any(start <= at < end for start, end in spans) for at, _ in encoding["offset_mapping"]
    ]
    labels = [i if trained else -100 for i, trained in zip(ids, inside, strict=True)]
    return {"input_ids": ids, "labels": labels}


def pad(row: dict[str, list[int]], width: int, pad_id: int) -> dict[str, list[int]]:
    """Pad a row to the block size."""
    length = len(row["input_ids"])
    space = width - length
    return {
        "input_ids": row["input_ids"] + [pad_id] * space,
        "labels": row["labels"] + [-100] * space,
        "attention_mask": [1] * length + [0] * space,
    }


def rows_of(path: Path, tokenizer: Any, options: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Return the first rows that fit into the block size, as many as are trained on."""
    rows: list[dict[str, list[int]]] = []
    for text in inputs.conversations(path.read_text("utf-8")):
        row = encode(tokenizer, text, options.train_on)
        if len(row["input_ids"]) <= options.block_size:
            rows.append(row)
        if len(rows) == options.steps * options.batch:
            return rows
    raise SystemExit(f"error: {path.name}: has {len(rows)} conversations -- take fewer steps")


class Ticks(TrainerCallback):
    """A callback that times each optimizer step; rows are taken in the order of the file."""

    def __init__(self, clock: StepClock, lengths: list[int], batch: int) -> None:
        self.clock, self.lengths, self.batch = clock, lengths, batch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end = state.global_step * self.batch
        self.clock.tick(sum(self.lengths[end - self.batch : end]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=list(inputs.FILES), default="gsm8k")
    parser.add_argument("--train-on", choices=["agent", "all"], default="agent")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--block-size", type=int, default=280)
    parser.add_argument("--local_rank", type=int, default=0, help="given by DeepSpeed's launcher")
    options = parser.parse_args()
    args = TrainingArguments(
        output_dir=str(inputs.WORK / "baseline"),
        deepspeed=str(inputs.REPOSITORY / "ds_configs" / "zero2.json"),
        activation_checkpointing=True,
        per_device_train_batch_size=options.batch,
        train_sampling_strategy="sequential",
        max_steps=options.steps,
        **inputs.TRAINER,
    )
    tokenizer = AutoTokenizer.from_pretrained(inputs.MODEL)
    rows = rows_of(inputs.data_file(options.data), tokenizer, options)
    clock = StepClock()
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(inputs.MODEL, dtype="float32"),
        args=args,
        train_dataset=Dataset.from_list([pad(row, options.block_size, 1) for row in rows]),
        callbacks=[Ticks(clock, [len(row["input_ids"]) for row in rows], options.batch)],
    )
    trainer.train()
    clock.report()


if __name__ == "__main__":
    main()
