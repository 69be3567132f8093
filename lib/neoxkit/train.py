"""What each DeepSpeed rank runs: a Hugging Face training script over tokenized conversations.

deepspeed --module neoxkit.train runs/demo/arguments.json
deepspeed --module neoxkit.train --dataset data/tokenized/sample --output_dir runs/demo --do_train
"""

import faulthandler
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import (
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from neoxkit import (
    alive,
    arguments,
    changes,
    checkpoints,
    export,
    failures,
    gloo,
    lock,
    models,
    needs,
    paths,
    pickles,
    replies,
    runs,
    speed,
    tokenized,
    universal,
)
from neoxkit.batches import Collator
from neoxkit.errors import UserError, shorten
from neoxkit.guard import STOPPED
from neoxkit.metrics import Metrics, Replies
from neoxkit.safety import Alive, SaveWhole, StepCheck
from neoxkit.trainer import KitTrainer

# Without this a CPU start compiles an extension for minutes; gloo was measured to be as fast.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

pickles.restrict()

OTHERS_SECONDS = 0.5  # a mistake is told by the first rank where it fails in all
LOST_SECONDS = 2.0  # a rank that lost another waits for the word of that one

# Model families whose packed rows are known to be exact; every run checks its own as well.
PACKS_EXACTLY = {"gpt_neox", "gpt_neo", "gpt2"}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 2 a person's mistake (one line), 75 stopped."""
    faulthandler.register(signal.SIGUSR1)  # the guard asks for the stacks of a rank that is silent
    argv = sys.argv[1:] if argv is None else argv
    folder = next((Path(a).parent for a in argv if a.endswith("arguments.json")), None)
    parsed = None
    try:
        parsed = arguments.parse(argv)
        folder = Path(parsed.training.output_dir)
        return 0 if run(parsed) else STOPPED
    except UserError as mistake:
        return _refuse(folder, mistake)
    except Exception as fault:
        if mistake := failures.explain(fault, parsed, folder):
            return _refuse(folder, mistake)
        said = shorten(" ".join(f"{type(fault).__name__}: {fault}".split()), 300)
        if _report(folder, said, 0 if _is_alone() else LOST_SECONDS):
            traceback.print_exc()
        return 1


def _refuse(folder: Path | None, mistake: UserError) -> int:
    """One line, no traceback."""
    if os.environ.get("NEOXKIT_DEBUG") == "1":
        traceback.print_exc()
    if _report(folder, str(mistake), 0 if _is_first() else OTHERS_SECONDS):
        print(f"error: {mistake}", file=sys.stderr, flush=True)
    return 2


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _report(folder: Path | None, message: str, patience_seconds: float) -> bool:
    """One error event, for whoever reads metrics.jsonl, unless another rank tells of one first."""
    if not (folder and folder.is_dir()):
        return _is_first()
    time.sleep(patience_seconds)
    newest = runs.read_events(folder)[-1:]
    begun = psutil.Process().create_time()
    if newest and newest[0]["event"] == "error" and newest[0]["time"] > begun:
        return False
    runs.append_event(folder, "error", message=message)
    return True


def run(parsed: arguments.Parsed) -> bool:
    """Load, train (from the newest whole checkpoint if there is one), evaluate, export.

    False where somebody asked it to stop: what is there is saved, and it can go on.
    """
    kit, args = parsed.kit, parsed.training
    if args.hf_deepspeed_config:
        deepspeed.init_distributed()  # before the model: ZeRO-3 shards it over the ranks on load
        if not torch.cuda.is_available():
            gloo.use_broadcasts()
    folder = Path(args.output_dir)
    if runs.state(folder) == "finished":
        raise UserError("output_dir", f"{folder} is finished", "choose another folder")
    sides, manifest = _load_rows(parsed)
    tokenizer = models.load_tokenizer(kit.model_name_or_path)
    tokenized.check_tokenizer(tokenizer, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock.hold(folder) if _is_first() else None  # noqa: F841 - until this function is over
    if parsed.flags is not None:
        _record_flags(folder, parsed.flags, kit.allow_change)
    _keep_manifest(folder, manifest)
    stage = arguments.zero_stage(args)
    changes.refuse_other_ranks(folder, args.world_size, stage, kit.allow_change)
    _check_needs(parsed, folder)
    model = _load_model(parsed, folder)
    _set_row_tokens(kit, model.config._attn_implementation)
    models.check_vocabulary(model, tokenizer)
    models.check_positions(model, kit.block_size)
    if _is_first():
        for notice in parsed.notices:
            print(f"notice: {notice}", flush=True)
    signs = alive.Signs(folder, args.process_index)
    limit, args.save_total_limit = args.save_total_limit, None  # SaveWhole deletes, and later
    trainer = KitTrainer(
        model=model,
        args=args,
        data_collator=Collator(
            kit.layout, kit.block_size, models.pad_id(tokenizer), kit.row_tokens
        ),
        train_dataset=sides["train"],
        eval_dataset=sides["eval"],
        signs=signs,
    )
    check = StepCheck(folder, trainer)
    trainer.add_callback(check)
    if kit.num_replies and len(sides["eval"]):
        # Of a large eval side only some rows are looked at; a few of them may have no reply.
        some = replies.spread(range(len(sides["eval"])), 10 * kit.num_replies)
        asked, _ = replies.questions_for(manifest, sides["eval"].select(some), tokenizer)
        trainer.add_callback(Replies(folder, replies.spread(asked, kit.num_replies), tokenizer))
    trainer.add_callback(Metrics(folder, parsed, _matmul_peak(trainer, kit.precision)))
    trainer.add_callback(SaveWhole(folder, parsed, limit))
    trainer.add_callback(Alive(signs))
    trainer.train(resume_from_checkpoint=_newest_checkpoint(folder, parsed))
    shutil.rmtree(folder / universal.FOLDER, ignore_errors=True)
    if check.stopped:
        _say_stopped(folder, trainer.state.global_step)
        return False
    if len(sides["eval"]) and args.do_eval:
        trainer.evaluate_once()
    export.finish(trainer, tokenizer, kit, manifest, folder)
    return True


def _newest_checkpoint(folder: Path, parsed: arguments.Parsed) -> str | None:
    """Where to go on from. Rank 0 looks at every byte of it, and the others take its word."""
    args, found = parsed.training, [None, False]
    if _is_first():
        checkpoint, aside = checkpoints.newest(folder)
        for line in aside:
            print(f"notice: {line}", flush=True)
        parsed.notices += aside
        other = checkpoint and checkpoints.manifest(checkpoint)["num_ranks"] != args.world_size
        found = [str(universal.convert(checkpoint) if other else checkpoint or ""), other]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    path, is_universal = found
    if is_universal:
        args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    return path or None


def _say_stopped(folder: Path, step: int) -> None:
    _barrier()  # no rank looks for the wish any more
    if _is_first():
        runs.append_event(folder, "stop", step=step)
        lock.answer_stop(folder)
        print(
            f"stopped after step {step} as asked; the same command goes on from there", flush=True
        )


def _load_rows(parsed: arguments.Parsed) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of both sides that fit, and the manifest, from which empty arguments are filled."""
    kit = parsed.kit
    folder = paths.find("dataset", kit.dataset or "(none given)", file=False)
    tokenized.check_sha256(folder, kit.dataset_sha256)
    dataset, manifest = tokenized.load(folder)
    kit.dataset, kit.dataset_sha256 = paths.short(folder), tokenized.sha256(folder)
    kit.model_name_or_path = kit.model_name_or_path or manifest["model_name_or_path"]
    kit.block_size = tokenized.check_block_size(kit.block_size, manifest)
    sides = {side: tokenized.within(rows, kit.block_size) for side, rows in dataset.items()}
    if not len(sides["train"]):
        raise UserError("block_size", "no conversation is this short", "raise it")
    if not len(sides["eval"]):
        parsed.training.eval_strategy = "no"
        parsed.notices.append("the eval side is empty: no eval loss will be shown")
    return sides, manifest


def _check_needs(parsed: arguments.Parsed, folder: Path) -> None:
    """Refuse what this machine has no room for, before a weight is loaded."""
    kit, args = parsed.kit, parsed.training
    zero = args.hf_deepspeed_config.config.get("zero_optimization", {}) if args.deepspeed else {}
    job = needs.Job(
        num_parameters=_num_parameters(kit.model_name_or_path, args),
        num_ranks=args.world_size,
        zero_stage=zero.get("stage", 0),
        half=kit.precision != "fp32",
        on_gpu=args.device.type == "cuda",
        offload_optimizer=zero.get("offload_optimizer", {}).get("device") == "cpu",
        offload_weights=zero.get("offload_param", {}).get("device") == "cpu",
    )
    if not _is_first():
        return
    needs.check_disk(folder, job, args.save_total_limit)
    needs.check_host(job)
    if job.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory / needs.GIB
        parsed.notices.append(needs.check_gpu(job, total))


def _num_parameters(name: str, args: TrainingArguments) -> int:
    """Of a model, without its weights."""
    unset_hf_deepspeed_config()  # else ZeRO-3 would shard what is not there
    try:
        return models.num_parameters(name)
    finally:
        if args.hf_deepspeed_config:
            set_hf_deepspeed_config(args.hf_deepspeed_config)


def _load_model(parsed: arguments.Parsed, folder: Path) -> PreTrainedModel:
    """The base; a family that is not known to pack exactly turns the layout to padded."""
    kit = parsed.kit
    name = kit.model_name_or_path
    if kit.from_scratch:
        name = str(_random_base(folder, name, parsed.training))
    half = kit.precision != "fp32"
    model = models.load_model(name, attention=models.attention(name, kit.attn_implementation, half))
    if kit.layout == "packed" and model.config.model_type not in PACKS_EXACTLY:
        kit.layout = "padded"
        family = model.config.model_type
        parsed.notices.append(f"rows are padded: {family} is not known to pack exactly")
    if kit.precision == "fp16" and model.config.model_type == "gpt_neo":
        # transformers#11076
        parsed.notices.append(
            "GPT-Neo overflows in fp16 on long rows: prefer bf16 where the GPU has it"
        )
    return model


def _set_row_tokens(kit: arguments.KitArguments, attention: str) -> None:
    """How long packed rows are, by the attention kernel.

    Flash attention sees where conversations begin only if a micro-batch is one row; in more rows
    they would leak into each other. The other kernels build masks that grow with the square of a
    row: on a CPU rows of one block size were fastest (benchmarks/bare_loop.py --row-tokens); a GPU
    wants fewer and longer ones.
    """
    if attention.startswith("flash"):
        if kit.row_tokens:
            raise UserError("row_tokens", "flash attention takes a micro-batch as one row", "use 0")
    elif not kit.row_tokens:
        kit.row_tokens = kit.block_size * (2 if torch.cuda.is_available() else 1)
    elif kit.row_tokens < kit.block_size:
        what = f"{kit.row_tokens} is less than the block size, {kit.block_size}"
        raise UserError("row_tokens", what, f"choose {kit.block_size} or more")


def _matmul_peak(trainer: KitTrainer, precision: str) -> float:
    """FLOP/s of the fastest matrix products of all ranks together, in the training's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    peak = speed.matmul_peak(trainer.args.device, dtype)
    here = torch.tensor([peak], dtype=torch.float64, device=trainer.args.device)
    return trainer.accelerator.reduce(here, "sum").item()


def _record_flags(folder: Path, flags: dict[str, str], allowed: Sequence[str]) -> None:
    """What a shell said, kept as the notebook keeps it: going on with other flags is refused."""
    path = folder / runs.ARGUMENTS
    if path.exists() and runs.state(folder) != "new":
        changes.refuse_changes(runs.read_json(path), flags, allowed)
    if _is_first():
        runs.write_json(path, flags)
    _barrier()


def _keep_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """The run keeps what its data was made of: 01_tokenize may write another dataset there."""
    if _is_first() and runs.state(folder) == "new":
        runs.write_json(folder / runs.DATASET, manifest)


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


if __name__ == "__main__":
    code = main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)
