"""`neoxkit merge`: LoRA adapters added to the weights they belong to, as a whole model."""

import os
import shutil
from pathlib import Path

from neoxkit import export, files, lora, machine, models, paths
from neoxkit.errors import UserError
from neoxkit.runs.folder import finished_facts


def merge(run: str) -> Path:
    """Write runs/RUN/merged, which opens with plain from_pretrained; returns it."""
    folder = paths.run(run)
    finished_facts(folder)
    if (
        not machine.num_gpus()
    ):  # else DeepSpeed, which transformers asks, tells that it looked for one
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    adapters = folder / "model"
    if not lora.base_of(adapters):
        raise UserError(
            "RUN", f"{run} was not trained with lora_rank", "its model/ is whole already"
        )
    model = models.load_model(str(adapters)).merge_and_unload()
    part, target = folder / ".merged.part", folder / "merged"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer = models.load_tokenizer(str(adapters))
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(part)
    export.for_older_readers(part)
    card = (adapters / "README.md").read_text("utf-8")
    (part / "README.md").write_text(card.replace("name: peft", "name: transformers"), "utf-8")
    files.flush_all(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target
