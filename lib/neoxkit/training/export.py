"""The model folder that a run leaves: weights, tokenizer, card; then FINISHED.json."""

import shutil
from pathlib import Path
from typing import Any

from neoxkit import files
from neoxkit.data.conversation import Names
from neoxkit.models import sharing
from neoxkit.runs import card as run_card
from neoxkit.runs import health
from neoxkit.runs.events import History, append_event
from neoxkit.runs.folder import FINISHED
from neoxkit.training.arguments import KitArguments
from neoxkit.training.trainer import KitTrainer


def finish(
    trainer: KitTrainer,
    tokenizer: Any,
    kit: KitArguments,
    manifest: dict[str, Any],
    folder: Path,
) -> None:
    """Write model/ (then FINISHED.json, then the done event); every rank takes part in the save.

    A trial leaves no model.
    """
    state = trainer.state
    part = folder / ".model.part"
    if not kit.trial:
        trainer.model.config.use_cache = True
        trainer.save_model(str(part))
    if not state.is_world_process_zero:
        return
    history = History.of_run(folder)
    weights = {file.name: files.sha256(file) for file in sorted(part.glob("*.safetensors"))}
    facts = {
        "step": state.global_step,
        "planned_steps": state.max_steps,
        "base": kit.model_name_or_path,
        "from_scratch": kit.from_scratch,
        "lora_rank": kit.lora_rank,
        "seed": trainer.args.seed,
        "dataset": kit.dataset,
        "dataset_sha256": kit.dataset_sha256,
        "agent_name": manifest["agent_name"],
        "user_name": manifest["user_name"],
        "block_size": kit.block_size,
        "precision": kit.precision,
        **history.totals(),
        "warnings": [] if kit.trial else health.warnings(history),
        "model_sha256": weights,
    }
    if not kit.trial:
        assert weights, "the weights were not gathered"
        tokenizer.chat_template = sharing.chat_template(Names.of(manifest))
        tokenizer.model_max_length = trainer.model.config.max_position_embeddings
        tokenizer.save_pretrained(part)
        sharing.for_older_readers(part)
        # A pickle, and not needed to use the model.
        (part / "training_args.bin").unlink(missing_ok=True)
        card = sharing.card(facts, manifest, trainer.args.to_dict())
        (part / "README.md").write_text(card, "utf-8")
        files.flush_all(part)
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    run_card.finish(folder, facts)
    files.write_json(folder / FINISHED, facts)
    append_event(folder, "done", **facts)
