"""LitGPT's full fine-tuning on the kit's rows. Runs in .venv-litgpt, without the kit.

Rows come tokenized and labelled from the kit's dataset, in its order, so that a step has the
conversations that it has in the other programs. LitGPT pads them to the longest of a micro-batch.
The rest is its own: model, loss, loop. AdamW is torch's fused one, which is faster than its
default; the rate is constant.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import full
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import inputs
from stepclock import StepClock

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
NEVER = 10**9


class Rows(DataModule):
    """The rows of a measurement, in order; LitGPT looks at a validation set before it starts."""

    prompt_style = Default()  # saved beside the model; the rows are tokenized already

    def __init__(self, rows: list[list[list[int]]], size: int) -> None:
        super().__init__()
        self.rows, self.size = [self._row(*row) for row in rows], size

    @staticmethod
    def _row(input_ids: list[int], labels: list[int]) -> dict[str, Any]:
        counts = {"raw": len(input_ids), "raw_plus_prompt_template": len(input_ids)}
        tensors = {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}
        return {**tensors, "token_counts": counts}

    def connect(self, *_: Any, **__: Any) -> None:
        pass

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.rows)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.rows[:1])

    def _loader(self, rows: list[dict[str, Any]]) -> DataLoader:
        return DataLoader(rows, self.size, collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]


def converted(model: Path, work: Path) -> Path:
    """Return the model as LitGPT's checkpoint, made on first use."""
    folder = work / "litgpt" / model.name
    if not (folder / "lit_model.pth").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(model / name, folder)
        convert_hf_checkpoint(folder, model_name=model.name)
    return folder


def ticking(clock: StepClock, lengths: list[int], batch: int) -> Any:
    """Return a maker of a constant schedule, whose steps are the optimizer's, with a clock."""

    def scheduler(optimizer: torch.optim.Optimizer, **_: Any) -> LambdaLR:
        made = LambdaLR(optimizer, lambda _: 1.0)
        step = made.step

        def timed() -> None:
            step()
            begin = len(clock.ends) * batch
            clock.tick(sum(lengths[begin : begin + batch]))

        made.step = timed
        return made

    return scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="inputs.rows_file")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="conversations per step")
    parser.add_argument("--micro-batch", type=int, default=8)
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text("utf-8"))[: options.steps * options.batch]
    clock = StepClock()
    lengths = [len(input_ids) for input_ids, _ in rows]
    full.get_lr_scheduler = ticking(clock, lengths, options.batch)
    full.save_hyperparameters = lambda *_, **__: None  # it reads our flags as its own
    full.setup(
        checkpoint_dir=converted(options.model, options.work),
        out_dir=options.work / "litgpt" / "out",
        precision="32-true",
        data=Rows(rows, min(options.micro_batch, options.batch)),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=options.batch,
            micro_batch_size=min(options.micro_batch, options.batch),
            lr_warmup_steps=0,
            epochs=2,  # it stops at max_steps
            max_steps=options.steps,
        ),
        eval=EvalArgs(interval=NEVER, max_new_tokens=1, max_iters=1),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": inputs.TRAINER["learning_rate"], "fused": True},
        },
    )
    clock.report()


if __name__ == "__main__":
    main()
