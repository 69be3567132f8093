"""The model folder that a run leaves: weights, tokenizer, card; then FINISHED.json."""

from collections.abc import Mapping
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
    """Write model/ (unless in a trial), the results, FINISHED.json and the done event, in turn.

    Rank 0 writes; the other ranks only help to gather the weights.
    """
    if not trainer.state.is_world_process_zero:
        if not kit.trial:
            trainer.save_model(str(folder / "model"))
        return
    facts = _facts(trainer, kit, manifest, folder)
    if not kit.trial:
        with files.whole_folder(folder / "model") as part:
            trainer.model.config.use_cache = True
            trainer.save_model(str(part))
            weights = sorted(part.glob("*.safetensors"))
            assert weights, "the weights were not gathered"
            facts["model_sha256"] = {file.name: files.sha256(file) for file in weights}
            tokenizer.chat_template = sharing.chat_template(Names.of(manifest))
            tokenizer.model_max_length = trainer.model.config.max_position_embeddings
            tokenizer.save_pretrained(part)
            sharing.for_older_readers(part)
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed
            card = sharing.card(facts, manifest, trainer.args.to_dict())
            (part / "README.md").write_text(card, "utf-8")
    run_card.finish(folder, facts)
    files.write_json(folder / FINISHED, facts)
    append_event(folder, "done", **facts)


def _facts(
    trainer: KitTrainer, kit: KitArguments, manifest: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Return what FINISHED.json, the run card and the done event say of the run."""
    history = History.of_run(folder)
    return {
        "step": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
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
        "model_sha256": {},
    }
