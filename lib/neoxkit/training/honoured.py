"""What becomes of each of transformers' TrainingArguments: read, always the same, noted, refused.

Nothing heavy is imported, so that a notebook is told before the ranks start; the ranks check again,
for flags at a shell. A test goes through all fields of the installed transformers.
"""

from collections.abc import Mapping
from typing import Any

from neoxkit import fields
from neoxkit.errors import UserError, near

LARGEST_SEED = 2**32 - 1  # numpy's

WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau")

# Renamed or dropped in transformers 5: old flag -> (new flag, or None; fixed value or None).
RENAMED: dict[str, tuple[str | None, str | None]] = {
    "evaluation_strategy": ("eval_strategy", None),
    "no_cuda": ("use_cpu", None),
    "warmup_ratio": ("warmup_steps", None),
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "gradient_checkpointing": ("activation_checkpointing", None),
    "overwrite_output_dir": (None, None),
    "save_safetensors": (None, None),
}

_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")  # which these do not read:
_NOT_ADAM = ("adafactor", "sgd", "rmsprop")


def _of(kind: Any, **rule: Any) -> dict[str, Any]:
    """Return the type of an argument and its rule, as `fields.check` takes it."""
    return {"kind": kind, "choices": (), "least": None, "most": None, "above": None, **rule}


_INTERVALS = ("no", "steps", "epoch")
_BETA = _of(float, least=0, most=0.999999)
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "passive")

_MAPPING = (dict, str)  # a shell's text is JSON

# Read by the kit's trainer. Several types: one of them.
READ: dict[str, dict[str, Any]] = {
    "output_dir": _of(str),
    "do_train": _of(bool),
    "do_eval": _of(bool),
    "use_cpu": _of(bool),
    "deepspeed": _of(_MAPPING),
    # What a step is.
    "per_device_train_batch_size": _of(int, least=1),
    "gradient_accumulation_steps": _of(int, least=1),
    "num_train_epochs": _of(float, above=0),
    "max_steps": _of(int, least=-1),
    "learning_rate": _of(float, least=0),
    "lr_scheduler_type": _of(str),
    "lr_scheduler_kwargs": _of(_MAPPING),
    "warmup_steps": _of(float, least=0),
    "optim": _of(str),
    "optim_args": _of(str),
    "weight_decay": _of(float, least=0),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _of(float, least=0),
    "max_grad_norm": _of(float, least=0),
    "neftune_noise_alpha": _of(float, least=0),
    "seed": _of(int, least=0, most=LARGEST_SEED),
    "data_seed": _of(int, least=0, most=LARGEST_SEED),
    "full_determinism": _of(bool),
    # How it is computed.
    "bf16": _of(bool),
    "fp16": _of(bool),
    "tf32": _of(bool),
    "activation_checkpointing": _of(bool),
    "activation_checkpointing_kwargs": _of(_MAPPING),
    "gradient_checkpointing": _of(bool),
    "gradient_checkpointing_kwargs": _of(_MAPPING),
    "torch_compile": _of(bool),
    "torch_compile_backend": _of(str),
    "torch_compile_mode": _of(str),
    "torch_empty_cache_steps": _of(int, least=1),
    "ddp_timeout": _of(int, least=1),
    "debug": _of(str, choices=("", "underflow_overflow")),
    # Its rows.
    "train_sampling_strategy": _of(str, choices=("random", "sequential", "group_by_length")),
    "length_column_name": _of(str, choices=("length",)),  # the dataset's column
    "dataloader_drop_last": _of(bool),
    "dataloader_num_workers": _of(int, least=0),
    "dataloader_pin_memory": _of(bool),
    "dataloader_persistent_workers": _of(bool),
    "dataloader_prefetch_factor": _of(int, least=1),
    "dataloader_multiprocessing_context": _of(str, choices=("fork", "spawn", "forkserver")),
    "dataloader_in_order": _of(bool),
    # What happens between steps.
    "eval_strategy": _of(str, choices=_INTERVALS),
    "eval_steps": _of(float, above=0),
    "eval_delay": _of(float, least=0),
    "eval_on_start": _of(bool),
    "per_device_eval_batch_size": _of(int, least=1),
    "save_strategy": _of(str, choices=(*_INTERVALS, "best")),
    "save_steps": _of(float, above=0),
    "save_total_limit": _of(int, least=1),
    "load_best_model_at_end": _of(bool),
    "metric_for_best_model": _of(str, choices=("loss", "eval_loss")),
    "logging_strategy": _of(str, choices=_INTERVALS),
    "logging_steps": _of(float, above=0),
    "logging_first_step": _of(bool),
    # In trainer_state.json and what report_to names.
    "include_num_input_tokens_seen": _of((bool, str)),
    "log_level": _of(str, choices=_LOG_LEVELS),
    "log_level_replica": _of(str, choices=_LOG_LEVELS),
    "report_to": _of((str, list)),
    "run_name": _of(str),
    "project": _of(str),
    "trackio_space_id": _of(str),
    "trackio_bucket_id": _of(str),
    "trackio_static_space_id": _of((str, bool)),
}

# The kit sets these itself, whatever the caller says.
FIXED: dict[str, Any] = {
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,  # otherwise a NaN is logged as loss 0.0
    "disable_tqdm": True,
    "log_on_each_node": False,  # all ranks of a job write to one log
    "label_names": ["labels"],
    "average_tokens_across_devices": True,
}

_LOSS_ALONE = "an evaluation keeps the loss alone"
_NO_DDP = "DeepSpeed averages the gradients"
_ONE_FOLDER = "one rank writes to the run's folder"
# Without an effect here, said once.
NOTED = {
    "prediction_loss_only": _LOSS_ALONE,
    "eval_accumulation_steps": _LOSS_ALONE,
    "eval_do_concat_batches": _LOSS_ALONE,
    "eval_use_gather_object": _LOSS_ALONE,
    "include_for_metrics": _LOSS_ALONE,
    "batch_eval_metrics": _LOSS_ALONE,
    "skip_memory_metrics": "metrics.jsonl has the memory of each rank in any case",
    "restore_callback_states_from_checkpoint": "the kit's callbacks have no state",
    "save_on_each_node": _ONE_FOLDER,
    "ddp_find_unused_parameters": _NO_DDP,
    "ddp_bucket_cap_mb": _NO_DDP,
    "ddp_broadcast_buffers": _NO_DDP,
    "ddp_static_graph": _NO_DDP,
}

LEAVE = "leave it out"
_HUB = ("would push every checkpoint", "leave it out: 02's hub_model_id pushes the finished model")
_PRECISION = ("is not how the kit evaluates", "leave it out: evaluations use the precision of 02")
_SHARDS = ("is for training without DeepSpeed", "leave it out: ds_config says how ranks share it")
_PARTS = ("is for optimizers that the kit does not train with", LEAVE)
# Refused, each with the reason and the remedy.
REFUSED: dict[str, tuple[str, str]] = {
    "label_smoothing_factor": ("is not part of the loss per trained token", LEAVE),
    "save_only_model": ("leaves checkpoints that no run can resume from", LEAVE),
    "enable_jit_checkpoint": (
        "saves weights one step ahead of their state under DeepSpeed",
        LEAVE,
    ),
    "do_predict": ("has no effect on a training", "leave it out: 03_evaluate asks both models"),
    "resume_from_checkpoint": (
        "is not needed: a run resumes from its own newest checkpoint",
        "leave it out; for another's weights set model_name_or_path to that checkpoint",
    ),
    "ignore_data_skip": ("would train a resumed run twice on the same conversations", LEAVE),
    "auto_find_batch_size": (
        "would train with another batch size than is shown",
        "leave it out; neoxkit fit finds one that fits",
    ),
    "greater_is_better": ("would keep the worst checkpoint: the measure is a loss", LEAVE),
    "use_liger_kernel": ("has no kernels for GPT-NeoX or GPT-Neo", LEAVE),
    "liger_kernel_config": ("has no kernels for GPT-NeoX or GPT-Neo", LEAVE),
    "use_cache": ("keeps a cache in which packed conversations would meet", LEAVE),
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "optim_target_modules": _PARTS,
    "accelerator_config": ("would share the rows out in another way than the kit does", LEAVE),
    "parallelism_config": _SHARDS,
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "ddp_backend": ("is chosen by the device: nccl on GPUs, gloo on CPUs", LEAVE),
    "local_rank": ("is the launcher's to say", LEAVE),
    "push_to_hub": _HUB,
    "hub_token": ("would be written into the run's files", "leave it out: hf auth login"),
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
}


def names() -> list[str]:
    """Return the name of each of the TrainingArguments."""
    return [*READ, *FIXED, *NOTED, *REFUSED]


def taken(given: Mapping[str, Any], parameter: str = "") -> dict[str, Any]:
    """Return the values in their arguments' types; refuse what would not be honoured.

    `given`: what a person says, without defaults. `parameter` names the setting that holds it.
    """
    values = {}
    for name, value in given.items():
        if name not in names():
            remedy = near(name, names(), "see transformers' TrainingArguments")
            if now := RENAMED.get(name, (None, None))[0]:
                remedy = f"use {now}"
                remedy += f": {RENAMED[name][1]}" if RENAMED[name][1] else ""
            raise UserError(parameter or name, f"{name} is not one of them", remedy)
        if name in REFUSED and value not in (None, False, "", {}, [], 0):
            why, remedy = REFUSED[name]
            said = f"{name} {why}" if parameter else why
            raise UserError(parameter or name, said, remedy)
        values[name] = _convert(name, value)
    return values


def _convert(name: str, value: Any) -> Any:
    rule = READ.get(name)
    if rule is None or value is None:
        return value
    value = fields.convert(name, rule["kind"], plain(value))
    fields.check(name, value, rule)
    return value


def notices(given: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each argument that has no effect here."""
    optimizer = plain(given.get("optim"))
    unread = [name for name in _ADAM if name in given and optimizer in _NOT_ADAM]
    fixed = [
        f"{name} is always {value} here"
        for name, value in FIXED.items()
        if given.get(name, value) != value
    ]
    kind = plain(given.get("lr_scheduler_type"))
    if kind in WITHOUT_WARM_UP and given.get("warmup_steps"):
        fixed.append(f"warmup_steps has no effect: {kind} has none, constant_with_warmup has")
    # Several ranks without DeepSpeed are torch's DDP.
    noted = [n for n in given if n in NOTED and (NOTED[n] != _NO_DDP or given.get("deepspeed"))]
    return [
        *fixed,
        *(f"{name} has no effect: {NOTED[name]}" for name in noted),
        *(f"{name} has no effect: {optimizer} does not read it" for name in unread),
    ]


def plain(value: Any) -> Any:
    """Return the text of an enumeration's member."""
    return getattr(value, "value", value)
