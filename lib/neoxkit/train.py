"""What each DeepSpeed rank runs: a Hugging Face training script over tokenized conversations.

deepspeed --module neoxkit.train runs/demo/arguments.json
deepspeed --module neoxkit.train --dataset data/tokenized/sample --output_dir runs/demo --do_train
"""

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import deepspeed
import psutil
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neoxkit import arguments, base, export, failures, gloo, paths, pickles, plan, ranks, resume
from neoxkit.data import tokenized
from neoxkit.data.conversation import Names
from neoxkit.data.questions import questions_for, spread
from neoxkit.errors import STOPPED, UserError, shorten
from neoxkit.metrics import Metrics, Replies
from neoxkit.models import flops, loading
from neoxkit.models.batches import Collator
from neoxkit.runs import card as run_card
from neoxkit.runs import heartbeat, lock, resuming
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import state_of
from neoxkit.safety import Alive, SaveWhole, StepCheck
from neoxkit.trainer import KitTrainer

# Without this a CPU start compiles an extension for minutes; gloo was measured to be as fast.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

pickles.restrict()

OTHERS_SECONDS = 0.5  # a mistake is told by the first rank where it fails in all
LOST_SECONDS = 2.0  # a rank that lost another waits for the word of that one


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
        if _report(folder, said, 0 if ranks.is_alone() else LOST_SECONDS):
            traceback.print_exc()
        return 1


def _refuse(folder: Path | None, mistake: UserError) -> int:
    """One line, no traceback."""
    if os.environ.get("NEOXKIT_DEBUG") == "1":
        traceback.print_exc()
    if _report(folder, str(mistake), 0 if ranks.is_first() else OTHERS_SECONDS):
        print(f"error: {mistake}", file=sys.stderr, flush=True)
    return 2


def _report(folder: Path | None, message: str, patience_seconds: float) -> bool:
    """One error event, for whoever reads metrics.jsonl, unless another rank tells of one first."""
    if not (folder and folder.is_dir()):
        return ranks.is_first()
    time.sleep(patience_seconds)
    newest = read_events(folder)[-1:]
    begun = psutil.Process().create_time()
    if newest and newest[0]["event"] == "error" and newest[0]["time"] > begun:
        return False
    with contextlib.suppress(OSError):  # a full disk may have no room for it
        append_event(folder, "error", message=message)
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
    if state_of(folder) == "finished":
        raise UserError("output_dir", f"{folder} is finished", "choose another folder")
    sides, manifest = _load_rows(parsed)
    tokenizer = loading.load_tokenizer(kit.model_name_or_path)
    tokenized.check_tokenizer(tokenizer, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    held = lock.hold(folder) if ranks.is_first() else None  # noqa: F841 - until this is over
    if parsed.flags is not None:
        resume.record_flags(folder, parsed.flags, kit.allow_change)
    resume.keep_manifest(folder, manifest, kit.allow_change)
    stage = arguments.zero_stage(args)
    resuming.refuse_other_ranks(folder, args.world_size, stage, kit.allow_change)
    checkpoint = resume.newest_checkpoint(folder, parsed)
    base.check_needs(parsed, folder)
    model = base.load(parsed, folder)
    loading.check_vocabulary(model, tokenizer)
    loading.check_positions(model, kit.block_size)
    if ranks.is_first():
        for notice in parsed.notices:
            print(f"notice: {notice}", flush=True)
    trainer, check = _trainer(parsed, folder, model, tokenizer, sides, manifest)
    if ranks.is_first():
        run_card.begin(folder, _made_of(parsed, folder, manifest), base.files(kit, folder))
    trainer.train(resume_from_checkpoint=checkpoint)
    if check.stopped:
        resume.say_stopped(folder, trainer.state.global_step)
        trainer.signs.over()
        return False
    if len(sides["eval"]) and args.do_eval:
        trainer.evaluate_once()
    export.finish(trainer, tokenizer, kit, manifest, folder)
    trainer.signs.over()
    return True


def _trainer(
    parsed: arguments.Parsed,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sides: Mapping[str, Dataset],
    manifest: dict[str, Any],
) -> tuple[KitTrainer, StepCheck]:
    """The Trainer with the kit's callbacks, and the one that knows whether it was stopped."""
    kit, args = parsed.kit, parsed.training
    limit, args.save_total_limit = args.save_total_limit, None  # SaveWhole deletes, and later
    signs = heartbeat.Signs(folder, args.process_index)
    trainer = KitTrainer(
        model=model,
        args=args,
        data_collator=Collator(
            kit.layout, kit.block_size, loading.pad_id(tokenizer), kit.row_tokens
        ),
        train_dataset=sides["train"],
        eval_dataset=sides["eval"],
        signs=signs,
        lr_range_from=kit.lr_range_from,
    )
    check = StepCheck(folder, trainer)
    trainer.add_callback(check)
    if kit.num_replies and len(sides["eval"]):
        # Of a large eval side only some rows are looked at; a few of them may have no reply.
        some = spread(range(len(sides["eval"])), 10 * kit.num_replies)
        asked, _ = questions_for(manifest, sides["eval"].select(some), tokenizer)
        some_asked = spread(asked, kit.num_replies)
        trainer.add_callback(Replies(folder, some_asked, tokenizer, Names.of(manifest)))
    trainer.add_callback(Metrics(folder, parsed, _matmul_peak(trainer, kit.precision)))
    trainer.add_callback(SaveWhole(folder, parsed, limit))
    trainer.add_callback(Alive(signs))
    return trainer, check


def _made_of(parsed: arguments.Parsed, folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the run card says beside the base's files and the starts."""
    kit, args = parsed.kit, parsed.training
    config = args.hf_deepspeed_config.config if args.hf_deepspeed_config else {}
    return {
        "run": folder.name,
        "base": kit.model_name_or_path,
        "from_scratch": kit.from_scratch,
        "dataset": kit.dataset,
        "dataset_sha256": kit.dataset_sha256,
        "source": manifest["source"],
        "seeds": {"training": args.seed, "split": manifest["settings"]["seed"]},
        "ds_config": {k: v for k, v in config.items() if k != "checkpoint"},
        **plan.as_started(folder, args.world_size, parsed.flags),
    }


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


def _matmul_peak(trainer: KitTrainer, precision: str) -> float:
    """FLOP/s of the fastest matrix products of all ranks together, in the training's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    peak = flops.matmul_peak(trainer.args.device, dtype)
    here = torch.tensor([peak], dtype=torch.float64, device=trainer.args.device)
    return trainer.accelerator.reduce(here, "sum").item()


def leave(code: int) -> NoReturn:
    """End this process without the interpreter's own end.

    There gloo's threads may still drop tensors that Python knows, which aborts a rank that has
    done everything ("terminate called without an active exception"). What others registered
    for the end of the program is run, except after a failure: another rank may then wait in a
    collective, and whoever closes that waits as well.
    """
    if code in (0, STOPPED):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
