"""The training of one rank, from its start to the exported model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit import machine, paths
from neoxkit.data import held_out, tokenized
from neoxkit.data.conversation import Names
from neoxkit.data.questions import questions_for, spread
from neoxkit.errors import UserError
from neoxkit.models import configs, flops, loading, model_names, packing, sharing
from neoxkit.models.batches import Collator
from neoxkit.runs import card as run_card
from neoxkit.runs import heartbeat, lease, lock, resuming, snapshots
from neoxkit.runs.folder import state_of
from neoxkit.training import (
    arguments,
    base_model,
    contradictions,
    distributed,
    export,
    extensions,
    precision,
    resume,
)
from neoxkit.training.callbacks import Alive, SaveWhole, Snapshots, StepCheck
from neoxkit.training.recording import Metrics, Replies, Steps
from neoxkit.training.trainer import KitTrainer


def run(parsed: arguments.Parsed, folder: Path) -> bool:
    """Load, train (from the newest whole checkpoint if there is one), evaluate, export.

    Return False if it was asked to stop: its last step is saved, and it can be resumed.
    """
    kit = parsed.kit
    signs = distributed.signs(folder)
    extensions.take_over_locks(signs, parsed.notices)
    if parsed.training.deepspeed:
        distributed.check_launcher()
        deepspeed.init_distributed()  # before the model: ZeRO-3 shards it over the ranks on load
        if not torch.cuda.is_available():
            distributed.use_broadcasts()
    if lease.is_wanted():  # before anything of the run is read
        lease.join(folder, distributed.by_first(lambda: _take_lease(folder)))
    if state_of(folder) == "finished":
        raise UserError("output_dir", f"{folder} is finished", "choose another folder")
    signs.begin(heartbeat.READING)
    sides, manifest = _load_rows(parsed)
    parts = held_out.rows_by_part(manifest, sides["eval"]["line"][:])
    parsed.notices += held_out.without_rows(manifest, parts)
    _pin(parsed, folder, manifest)
    precision.settle(parsed)
    if not len(sides["eval"]):
        _leave_out_evaluations(parsed)
    args = parsed.training
    tokenizer = loading.load_tokenizer(kit.base)
    tokenized.check_tokenizer(tokenizer, manifest, kit.revision)
    folder.mkdir(parents=True, exist_ok=True)
    # Held until this returns.
    held = lock.hold(folder) if distributed.is_first() and not lease.is_wanted() else None  # noqa: F841
    resume.check_start(folder, parsed, manifest)
    resume.keep_manifest(folder, manifest, kit.allow_change)
    signs.begin(heartbeat.VERIFYING)
    checkpoint = resume.newest_checkpoint(folder, parsed)
    args.eval_on_start = args.eval_on_start and not checkpoint  # of the base, once
    signs.begin(heartbeat.LOADING)
    base_model.check_needs(parsed, folder, _num_snapshots(parsed, len(sides["train"])))
    if distributed.is_first() and not kit.trial:
        export.rehearse(kit.base, tokenizer, Names.of(manifest))
    with base_model.counting_weights(signs):
        model = base_model.load(parsed, folder, sides["train"]["length"][:])
    loading.check_vocabulary(model, tokenizer)
    configs.check_positions(configs.positions(model.config), kit.block_size)
    contradictions.check_experts(arguments.together(parsed), model.config.to_dict())
    sharing.make_own(model, tokenizer)
    same_weights = [] if kit.from_scratch else model_names.same_weights(kit.base)
    parsed.notices += same_weights
    if kit.early_stopping_patience and not kit.load_best_model_at_end:
        parsed.notices.append("the last step is exported, not the best: see load_best_model_at_end")
    if distributed.is_first():
        for notice in parsed.notices:
            print(f"notice: {notice}", flush=True)
    signs.begin(heartbeat.PREPARING)
    trainer, check = _trainer(parsed, folder, model, tokenizer, sides, manifest, parts, signs)
    if distributed.is_first():
        made_of = _made_of(parsed, folder, manifest, same_weights)
        run_card.begin(folder, args.world_size, made_of, base_model.files(kit, folder))
    trainer.train(resume_from_checkpoint=checkpoint)
    if check.stopped:
        resume.say_stopped(folder, trainer.state.global_step)
        signs.over()
        return False
    if len(sides["eval"]) and args.do_eval:
        trainer.evaluate_once()
    trainer.load_best()
    export.finish(trainer, tokenizer, kit, manifest, folder)
    signs.over()
    return True


def _take_lease(folder: Path) -> str:
    """Take the lease on a run, in rank 0; return what the other ranks join it with."""
    folder.mkdir(parents=True, exist_ok=True)
    once = lock.take_lease(folder)
    heartbeat.Watch(folder).forget()  # of an earlier attempt, perhaps with more ranks
    return once


def _trainer(
    parsed: arguments.Parsed,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sides: Mapping[str, Dataset],
    manifest: dict[str, Any],
    parts: Mapping[str, np.ndarray],
    signs: heartbeat.Signs,
) -> tuple[KitTrainer, StepCheck]:
    """Make the Trainer with the kit's callbacks; return it and the one that stops it."""
    kit, args = parsed.kit, parsed.training
    # SaveWhole deletes instead, once the new checkpoint is sealed.
    limit, args.save_total_limit = args.save_total_limit, None
    trainer = KitTrainer(
        model=model,
        args=args,
        data_collator=Collator(
            kit.layout,
            kit.block_size,
            loading.pad_id(tokenizer),
            kit.row_tokens,
            by_conversation=model.config._attn_implementation == packing.VARLEN,
        ),
        train_dataset=sides["train"],
        eval_dataset=sides["eval"],
        processing_class=tokenizer,  # which each checkpoint then has
        signs=signs,
        lr_range_from=kit.lr_range_from,
        exports_best=kit.load_best_model_at_end,
        patience=kit.early_stopping_patience,
        threshold=kit.early_stopping_threshold,
        parts=parts,
        verify_steps=kit.verify_steps,
    )
    check = StepCheck(folder, trainer, kit.until_step)
    trainer.add_callback(check)
    trainer.add_callback(Steps(folder, trainer))
    if kit.num_replies and len(sides["eval"]):
        # Only some rows of a large held-out set are looked at; a few of them may have no reply.
        some = spread(range(len(sides["eval"])), 10 * kit.num_replies)
        asked, _ = questions_for(manifest, sides["eval"].select(some), tokenizer)
        some_asked = spread(asked, kit.num_replies)
        trainer.add_callback(Replies(folder, some_asked, tokenizer, Names.of(manifest)))
    dtype = getattr(torch, loading.dtype_of(kit.precision))
    trainer.add_callback(Metrics(folder, parsed, _matmul_peak(trainer, dtype), trainer.parts))
    if kit.snapshots:
        trainer.add_callback(Snapshots(folder, trainer, signs))
    trainer.add_callback(SaveWhole(folder, parsed, limit))
    trainer.add_callback(Alive(signs))
    return trainer, check


def _made_of(
    parsed: arguments.Parsed, folder: Path, manifest: Mapping[str, Any], same_weights: list[str]
) -> dict[str, Any]:
    """Return the run card's facts besides the base's files and the starts."""
    kit, args = parsed.kit, parsed.training
    config = args.hf_deepspeed_config.config if args.deepspeed else {}
    return {
        "run": folder.name,
        "base": kit.model_name_or_path,
        "revision": kit.revision,
        "base_commit": kit.base_commit,
        "same_weights": same_weights,
        "from_scratch": kit.from_scratch,
        "dataset": kit.dataset,
        "dataset_sha256": kit.dataset_sha256,
        "source": manifest["source"],
        "seeds": {"training": args.seed, "split": manifest["settings"]["seed"]},
        "ds_config": {k: v for k, v in config.items() if k != "checkpoint"},
    }


def _load_rows(parsed: arguments.Parsed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both sides' rows that fit, and the manifest; fill empty arguments from it.

    A test side is not among them: what it says must have chosen nothing.
    """
    kit = parsed.kit
    folder = paths.find("dataset", kit.dataset or "(none given)", file=False)
    tokenized.check_sha256(folder, kit.dataset_sha256)
    dataset, manifest = tokenized.load(folder)
    kit.dataset, kit.dataset_sha256 = paths.short(folder), tokenized.sha256(folder)
    kit.block_size = tokenized.check_block_size(kit.block_size, manifest)
    sides = {side: tokenized.within(rows, kit.block_size) for side, rows in dataset.items()}
    if not len(sides["train"]):
        raise UserError("block_size", "no conversation is this short", "raise it")
    num_ranks, values = parsed.training.world_size, arguments.together(parsed)
    contradictions.check_rows(values, len(sides["train"]), len(sides["eval"]), num_ranks)
    if kit.verify_steps > (steps := machine.count_steps(values, len(sides["train"]), num_ranks)):
        said = f"verify_steps {kit.verify_steps}: no step is taken twice, the run has {steps:,}"
        parsed.notices.append(said)
    return sides, manifest


def _num_snapshots(parsed: arguments.Parsed, num_rows: int) -> int:
    """Return how many snapshots the run will keep."""
    if not parsed.kit.snapshots:
        return 0
    values = arguments.together(parsed)
    return snapshots.how_many(machine.count_steps(values, num_rows, parsed.training.world_size))


def _leave_out_evaluations(parsed: arguments.Parsed) -> None:
    parsed.training.eval_strategy, parsed.training.eval_on_start = "no", False
    parsed.notices.append("the held-out set is empty: no eval loss will be shown")


def _pin(parsed: arguments.Parsed, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Fill in the base and its commit, the same for all ranks; a run keeps that of its start."""
    kit = parsed.kit
    asked = (kit.model_name_or_path, kit.revision)
    if not kit.model_name_or_path:
        kit.model_name_or_path = manifest["model_name_or_path"]
        kit.revision = kit.revision or manifest["revision"]
    commit = kit.base_commit or resuming.base_commit(folder, *asked)
    if not commit:
        _, commit = model_names.split(
            model_names.pinned(model_names.at(kit.model_name_or_path, kit.revision))
        )
    (kit.base_commit,) = distributed.of_first([commit])


def _matmul_peak(trainer: KitTrainer, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of matrix products in the training's precision, over all ranks."""
    peak = flops.matmul_peak(trainer.args.device, dtype)
    here = torch.tensor([peak], dtype=torch.float64, device=trainer.args.device)
    return trainer.accelerator.reduce(here, "sum").item()
