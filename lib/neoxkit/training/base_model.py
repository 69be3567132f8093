"""The model a training starts from: its memory, its weights, the layout of its rows."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import (
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.utils import logging

from neoxkit import machine
from neoxkit.errors import UserError
from neoxkit.files import whole_folder
from neoxkit.models import attention, configs, loading, lora, memory, packing, rates
from neoxkit.models.shape import ModelShape
from neoxkit.runs import lease
from neoxkit.runs.folder import state_of
from neoxkit.runs.heartbeat import Signs
from neoxkit.training import arguments, distributed


def load(parsed: arguments.Parsed, folder: Path, lengths: Sequence[int]) -> PreTrainedModel:
    """Load the base with the attention that fits the conversations' `lengths`; set layout to padded
    for a family that is not known to pack exactly."""
    kit, config = parsed.kit, configs.config_of(parsed.kit.base)
    family = config.model_type
    name = kit.base
    if kit.from_scratch:
        name = str(_random_base(folder, name, parsed.training))
    kernel = _kernel(parsed, config, lengths)
    # DeepSpeed casts the weights and takes its fp32 copy from the cast ones: the same training for
    # half the host's memory. Without it autocast needs them in fp32.
    dtype = loading.dtype_of(kit.precision) if parsed.training.deepspeed else "float32"
    model = loading.load_model(name, dtype, kernel)
    kernel = model.config._attn_implementation
    if kit.layout == "packed" and not packing.packs_exactly(family, kernel):
        kit.layout = "padded"
        parsed.notices.append(f"rows are padded: {family} is not known to pack exactly")
    if kit.precision == "fp16" and family == "gpt_neo":
        # transformers#11076
        parsed.notices.append(
            "GPT-Neo overflows in fp16 on long rows: prefer bf16 where the GPU has it"
        )
    set_row_tokens(kit, kernel)
    _find_fitting_rate(parsed, model)
    if kit.lora_rank:
        set_seed(parsed.training.seed)  # adapters begin with random weights: the same in a repeat
        checkpointing = bool(parsed.training.activation_checkpointing)
        name = kit.model_name_or_path
        return lora.add(model, kit.lora_rank, name, checkpointing, kit.base_commit)
    return model


def _kernel(
    parsed: arguments.Parsed, config: PretrainedConfig, lengths: Sequence[int]
) -> str | None:
    """Choose the attention for conversations of these lengths."""
    kit = parsed.kit
    by_rows = kit.layout != "packed" or parsed.training.torch_compile or kit.row_tokens > 0
    by_rows |= bool(getattr(config, "sliding_window", None))
    return attention.choose(
        config.model_type, kit.attn_implementation, kit.precision, lengths, by_rows
    )


@contextlib.contextmanager
def counting_weights(signs: Signs) -> Iterator[None]:
    """Say in the heartbeats how many weights are loaded, while the block runs."""

    def bar(make: Callable[..., Any], args: Any, options: Any) -> Iterable[Any]:
        shown: Iterable[Any] = make(*args, **options)
        return _counted(signs, args[0]) if options.get("desc") == "Loading weights" else shown

    before = logging.set_tqdm_hook(bar)  # what transformers makes its progress bars with
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _counted(signs: Signs, weights: Any) -> Iterator[Any]:
    for number, weight in enumerate(weights, 1):
        signs.tell(f"(weights {number:,} of {len(weights):,})")
        yield weight


def _find_fitting_rate(parsed: arguments.Parsed, model: PreTrainedModel) -> None:
    """Record the rate that fits, and add a notice of one far above it (not in a range test)."""
    kit = parsed.kit
    # Under ZeRO-3 p is a shard.
    size = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    fit = rates.by_size(kit.model_name_or_path, size, kit.from_scratch, kit.lora_rank > 0)
    parsed.fitting_rate = fit.rate
    said = rates.doubt(parsed.training.learning_rate, fit)
    if said and not kit.lr_range_from:
        parsed.notices.append(said)


def files(kit: arguments.KitArguments, folder: Path) -> Path:
    """Return the folder of a run's base, once it has been loaded."""
    return folder / "base" if kit.from_scratch else loading.files(kit.base)


def set_row_tokens(kit: arguments.KitArguments, kernel: str) -> None:
    """Set the length of packed rows, by the attention kernel.

    Kernels that go by conversation take a micro-batch as one row: with flash attention,
    conversations of several rows would leak into each other. The other kernels build masks that
    grow with the square of a row: on a CPU rows of one block size were fastest
    (benchmarks/bare_loop.py --row-tokens); a GPU is faster with fewer and longer ones.
    """
    if kernel.startswith("flash") or kernel == packing.VARLEN:
        if kit.row_tokens:
            what = f"{kernel} attention takes a micro-batch as one row"
            raise UserError("row_tokens", what, "use 0")
    elif not kit.row_tokens:
        kit.row_tokens = kit.block_size * (2 if torch.cuda.is_available() else 1)
    elif kit.row_tokens < kit.block_size:
        what = f"{kit.row_tokens} is less than the block size, {kit.block_size}"
        raise UserError("row_tokens", what, f"choose {kit.block_size} or more")


def _random_base(folder: Path, name: str, args: TrainingArguments) -> Path:
    """Return runs/<run>/base, the random weights of a run from scratch; rank 0 writes them once.

    They are written whole and then loaded by every rank, so that they are the same under every
    ZeRO stage and 03 can compare with them.
    """
    base = folder / "base"
    # The base of a start without a step may have had another seed.
    if distributed.is_first() and (state_of(folder) == "new" or not base.is_dir()):
        unset_hf_deepspeed_config()  # otherwise ZeRO-3 would shard the new model
        with whole_folder(base, check=lambda: lease.check(folder)) as part:
            loading.random_model(name, args.seed).save_pretrained(part)
            loading.load_tokenizer(name).save_pretrained(part)
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)
    distributed.barrier()
    return base


def check_needs(parsed: arguments.Parsed, folder: Path, num_snapshots: int = 0) -> None:
    """Refuse a training that does not fit on this machine, before any weight is loaded."""
    kit, args = parsed.kit, parsed.training
    zero = args.hf_deepspeed_config.config.get("zero_optimization", {}) if args.deepspeed else {}
    unset_hf_deepspeed_config()  # otherwise ZeRO-3 would shard missing weights
    try:
        if not kit.from_scratch:
            loading.check_base(kit.base)
            if zero.get("stage") == 3:  # under which load_model can't
                loading.check_weights(kit.base)
        job = memory.Job.of(
            ModelShape.of_model(loading.without_weights(kit.base)),
            kit.lora_rank,
            num_ranks=args.world_size,
            num_nodes=distributed.num_nodes(),
            zero=zero,
            half=kit.precision != "fp32" and bool(args.deepspeed),  # else autocast
            from_scratch=kit.from_scratch,
            verifies=kit.verify_steps > 0,
            on_gpu=args.device.type == "cuda",
            checkpointing=bool(args.activation_checkpointing),
        )
    finally:
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)
    if not distributed.is_first():
        return
    if not kit.trial:
        best = kit.load_best_model_at_end
        memory.check_disk(folder, job, args.save_total_limit, best, num_snapshots)
    memory.check_host(job)
    if job.on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory / machine.GIB
        parsed.notices.append(memory.check_gpu(job, total))
