"""The model folder that a run leaves: weights, tokenizer, card; then FINISHED.json."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from neoxkit import files
from neoxkit.data.conversation import Names
from neoxkit.errors import UserError, shorten
from neoxkit.models import configs, generation, sharing
from neoxkit.runs import card as run_card
from neoxkit.runs import health, lease
from neoxkit.runs.events import History, append_event
from neoxkit.runs.folder import FINISHED
from neoxkit.training import distributed
from neoxkit.training.arguments import KitArguments
from neoxkit.training.trainer import KitTrainer

_CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]


def rehearse(name: str, tokenizer: Any, names: Names) -> None:
    """Write a model folder without its weights and read it again, as `finish` will; refuse a base
    with which that fails."""
    config, own = configs.config_of(name), copy.deepcopy(tokenizer)
    rope = copy.deepcopy(getattr(config, "rope_parameters", None))
    try:
        with tempfile.TemporaryDirectory() as place:
            sharing.own_ids(config, own)
            config.save_pretrained(place)
            generation.plain(own).save_pretrained(place)
            _complete(Path(place), config, own, names)
            again = AutoConfig.from_pretrained(place)
            ids = _ids(AutoTokenizer.from_pretrained(place))
    except UserError:
        raise
    except Exception as fault:  # whatever its family can't write or read
        what = f"a model/ of this base can't be written ({shorten(str(fault), 90)})"
        raise UserError("model_name_or_path", what, "start from another model") from fault
    if getattr(again, "rope_parameters", None) != rope:
        what = f"the rotary settings of a {config.model_type} are read otherwise than written"
        raise UserError("model_name_or_path", what, "start from a model of another family")
    if ids != _ids(own):
        what = "the tokenizer of this base is read otherwise than written"
        raise UserError("model_name_or_path", what, "start from another model")


def _ids(tokenizer: Any) -> list[int]:
    return tokenizer(tokenizer.apply_chat_template(_CHAT, tokenize=False))["input_ids"]


def _complete(folder: Path, config: PretrainedConfig, tokenizer: Any, names: Names) -> None:
    """Add the tokenizer to a folder with a configuration, and what older readers look for."""
    tokenizer.chat_template = sharing.chat_template(names)
    sharing.write_tokenizer(tokenizer, config, folder)
    sharing.for_older_readers(folder)


def finish(
    trainer: KitTrainer,
    tokenizer: Any,
    kit: KitArguments,
    manifest: dict[str, Any],
    folder: Path,
) -> None:
    """Write model/ (unless in a trial), the results, FINISHED.json and the done event, in turn.

    Rank 0 writes; the other ranks only help to gather the weights. A training that ended before its
    planned steps is not finished.
    """
    distributed.check_lease(folder)
    step, planned = trainer.state.global_step, trainer.state.max_steps
    if step != planned and not trainer.stopped_early():
        raise RuntimeError(f"the training ended at step {step:,} of {planned:,}")
    if not trainer.state.is_world_process_zero:
        if not kit.trial:
            trainer.save_model(str(folder / "model"))
        return
    facts = _facts(trainer, kit, manifest, folder)
    if not kit.trial:
        with files.whole_folder(folder / "model", check=lambda: lease.check(folder)) as part:
            trainer.model.config.use_cache = True
            trainer.save_model(str(part))
            weights = sorted(part.glob("*.safetensors"))
            assert weights, "the weights were not gathered"
            facts["model_sha256"] = {file.name: files.sha256(file) for file in weights}
            _complete(part, trainer.model.config, tokenizer, Names.of(manifest))
            (part / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed
            card = sharing.card(facts, manifest, trainer.args.to_dict())
            (part / "README.md").write_text(card, "utf-8")
    run_card.finish(folder, facts)
    lease.check(folder)
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
        "stopped_early": trainer.stopped_early(),  # evaluations without an improvement; 0: it isn't
        "model_step": trainer.exported_step,
        "base": kit.model_name_or_path,
        "revision": kit.revision,
        "base_commit": kit.base_commit,
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
