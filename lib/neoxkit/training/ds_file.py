"""The check of a DeepSpeed file: keys that DeepSpeed does not know, values that contradict ours.

DeepSpeed ignores a top-level key that it does not know, and refuses others only once the model is
loaded. Nothing heavy is imported; tests compare these tables with the installed DeepSpeed.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from neoxkit import paths
from neoxkit.errors import UserError, near
from neoxkit.fields import NOUNS

AUTO = "auto"

# What DeepSpeed reads, and does, in a training by the kit; each with its type.
READ: dict[str, type] = {
    **dict.fromkeys(
        ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
         "vocabulary_size"), int,
    ),
    **dict.fromkeys(("gradient_clipping", "gradient_predivide_factor"), float),
    **dict.fromkeys(("communication_data_type", "log_level"), str),
    **dict.fromkeys(
        ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "prescale_gradients",
         "disable_allgather", "disable_python_gc", "wall_clock_breakdown", "memory_breakdown",
         "dump_state"), bool,
    ),
    **dict.fromkeys(
        ("bf16", "fp16", "zero_optimization", "data_types", "aio", "checkpoint", "compile",
         "comms_logger", "csv_monitor", "comet", "tensorboard", "wandb", "flops_profiler",
         "timers"), dict,
    ),
}  # fmt: skip
# Without an effect here, said once.
NOTED = {"steps_per_print": "metrics.jsonl has every step"}

_DELETE = "delete it there"
_PARALLEL = ("is for a kind of parallelism that the kit does not train with", _DELETE)
_BATCHES = ("is for batches made by DeepSpeed, and the trainer makes them", _DELETE)
# Known to DeepSpeed, and refused: (why, remedy).
REFUSED = {
    "optimizer": (
        "would train in place of the trainer's optimizer",
        f"{_DELETE}: optim, weight_decay and the rest of training_arguments say which",
    ),
    "scheduler": (
        "would set the learning rate in place of lr_scheduler_type and warmup_steps",
        _DELETE,
    ),
    "torch_autocast": ("would train in another precision than is shown", "set precision instead"),
    "bfloat16": ("is the old name of bf16", "rename it"),
    "activation_checkpointing": (
        "has no effect on a transformers model",
        f"{_DELETE}, and set gradient_checkpointing",
    ),
    "gradient_allreduce_op": ("would change what a step averages", _DELETE),
    "managed_gradient_accumulation": ("would change what a step is", _DELETE),
    "data_efficiency": _BATCHES,
    "dataloader_drop_last": (
        "is for batches made by DeepSpeed",
        "name it in training_arguments instead",
    ),
    "datastates_ckpt": ("writes checkpoints that may be incomplete when they are sealed", _DELETE),
    "autotuning": ("is for DeepSpeed's own tuner", f"{_DELETE}: neoxkit fit answers"),
    "hybrid_engine": ("is for training by generated replies", _DELETE),
    "weight_quantization": ("is for inference", _DELETE),
    "pipeline": _PARALLEL,
    "tensor_parallel": _PARALLEL,
    "expert_parallel": _PARALLEL,
    "seq_parallel_communication_data_type": _PARALLEL,
    "use_data_before_expert_parallelism": _PARALLEL,
}

_Kinds = dict[str, type | tuple[str, ...]]  # types, or choices
_OFFLOAD: _Kinds = {
    "device": ("none", "cpu", "nvme"), "nvme_path": str, "buffer_count": int, "pin_memory": bool,
}  # fmt: skip
# The blocks that a file for the kit usually has, with their keys' types or choices.
BLOCKS: dict[str, _Kinds] = {
    "bf16": {
        "enabled": bool,
        "immediate_grad_update": bool,
        "check_grad_overflow": bool,
        "bf16_master_weights_and_grads": bool,
        "bf16_optimizer_states": bool,
    },
    "fp16": {
        "enabled": bool,
        "auto_cast": bool,
        "loss_scale": float,
        "initial_scale_power": int,
        "loss_scale_window": int,
        "hysteresis": int,
        "consecutive_hysteresis": bool,
        "min_loss_scale": int,
        "fp16_master_weights_and_grads": bool,
    },
    "zero_optimization": {
        "stage": int,
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": int,
        "use_multi_rank_bucket_allreduce": bool,
        "allgather_partitions": bool,
        "allgather_bucket_size": int,
        "overlap_comm": bool,
        "compute_grad_norm": bool,
        "load_from_fp32_weights": bool,
        "elastic_checkpoint": bool,
        "offload_param": dict,
        "offload_optimizer": dict,
        "zenflow": dict,
        "sub_group_size": int,
        "stage3_prefetch_bucket_size": int,
        "stage3_param_persistence_threshold": int,
        "stage3_model_persistence_threshold": int,
        "stage3_max_live_parameters": int,
        "stage3_max_reuse_distance": int,
        "stage3_gather_16bit_weights_on_model_save": bool,
        "stage3_module_granularity_threshold": int,
        "stage3_use_all_reduce_for_fetch_params": bool,
        "stage3_allgather_sequential": bool,
        "ignore_unused_parameters": bool,
        "legacy_stage1": bool,
        "round_robin_gradients": bool,
        "parameter_alignment": bool,
        "zero_hpz_partition_size": int,
        "zero_quantized_weights": bool,
        "zero_quantized_nontrainable_weights": bool,
        "zero_quantized_gradients": bool,
        "memory_efficient_linear": bool,
        "pipeline_loading_checkpoint": bool,
        "override_module_apply": bool,
        "log_trace_cache_warnings": bool,
        "enable_sanity_checks": bool,
        "save_muon_momentum_buffer_in_memory": bool,
        "leaf_module": dict,
    },
    "zero_optimization.offload_param": {**_OFFLOAD, "buffer_size": int, "max_in_cpu": int},
    "zero_optimization.offload_optimizer": {
        **_OFFLOAD,
        "pipeline_read": bool,
        "pipeline_write": bool,
        "fast_init": bool,
        "ratio": float,
        "super_offload": bool,
        "cpuadam_cores_perc": float,
    },
}
# Old keys of zero_optimization, which DeepSpeed takes with a warning or together with the new: no.
RENAMED = {
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_use_pin_memory": "pin_memory of offload_optimizer",
}
MOST_STAGE = 3

# The keys whose "auto" is filled in, with the trainer's name for those that must agree.
AGREE = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
FILLED = {
    *AGREE, "train_batch_size", "bf16.enabled", "fp16.enabled",
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}  # fmt: skip


def read(parameter: str, value: str) -> dict[str, Any]:
    """Read the file that a setting names, or that ds_configs/ has; refuse what is wrong in it."""
    path = paths.ds_config(parameter, value)
    file = paths.short(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UserError(file, f"{key} is there twice", "delete one")
        return dict(pairs)

    config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    _check_keys(config, file)
    return config


def notices(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each key that has no effect here."""
    return [f"deepspeed: {key} has no effect: {NOTED[key]}" for key in config if key in NOTED]


def _check_keys(config: Any, file: str) -> None:
    if not isinstance(config, dict):
        raise UserError(file, "is not a mapping of settings", "write {...}, as in ds_configs/")
    for key, value in config.items():
        if key in REFUSED:
            why, remedy = REFUSED[key]
            raise UserError(file, f"{key} {why}", remedy)
        if key not in READ and key not in NOTED:
            remedy = near(key, READ, "delete it: DeepSpeed would ignore it")
            raise UserError(file, f"{key} is not a key of DeepSpeed", remedy)
        if key in READ and (value is not None or READ[key] is dict):  # null: the default
            _check_value(key, value, READ[key], file)
    for block in BLOCKS:
        outer, _, inner = block.partition(".")
        held = config.get(outer) or {}
        _check_block((held.get(inner) or {}) if inner else held, block, file)


def _check_block(held: Any, block: str, file: str) -> None:
    known = BLOCKS[block]
    for key, value in held.items():
        name = f"{block}.{key}"
        if key in RENAMED and block == "zero_optimization":
            raise UserError(file, f"{name} is an old name", f"use {RENAMED[key]}")
        if key not in known:
            remedy = near(key, known, "delete it")
            raise UserError(file, f"{name} is not a key of DeepSpeed", remedy)
        if value is not None:
            _check_value(name, value, known[key], file)
    if block == "zero_optimization" and not 0 <= (held.get("stage") or 0) <= MOST_STAGE:
        raise UserError(file, f"{block}.stage is {held['stage']}", "choose 0, 1, 2 or 3")


def _check_value(name: str, value: Any, kind: type | tuple[str, ...], file: str) -> None:
    """Refuse a value of another type, or one that is not among the choices."""
    if value == AUTO and name in FILLED:
        return
    if isinstance(kind, tuple):
        if value not in kind:
            what = f"{name} is {json.dumps(value)[:40]}"
            raise UserError(file, what, f"choose {', '.join(kind[:-1])} or {kind[-1]}")
    elif value == AUTO and kind is not dict:
        what = f'{name} is "auto", which nothing fills in'
        raise UserError(file, what, "write a value there")
    elif not _is_a(value, kind):
        what = f"{name} must be {NOUNS[kind]}, got {repr(value)[:40]}"
        raise UserError(file, what, "write {...}" if kind is dict else "correct it")


def _is_a(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())  # 5e8
    return not isinstance(value, bool) and (whole or (kind is float and isinstance(value, float)))


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """Add what a file leaves out, as "auto": otherwise DeepSpeed's own defaults would count.

    Without gradient_clipping, for example, it would not clip whatever max_grad_norm says.
    """
    for key in ("train_batch_size", *AGREE):
        config.setdefault(key, AUTO)
    for key in ("bf16", "fp16"):
        config.setdefault(key, {}).setdefault("enabled", AUTO)
    config.setdefault("zero_optimization", {}).setdefault("stage", 0)
    return config


def summing_in_fp32(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `complete` file with gradients added up and reduced in fp32 where they are computed
    in half precision, unless it names other types.

    Under ZeRO 2 and 3: without ZeRO, DeepSpeed 0.19 refuses it.
    """
    if config["zero_optimization"]["stage"] not in (2, 3):
        return dict(config)
    types = {"grad_accum_dtype": "fp32"} | config.get("data_types", {})
    return {"communication_data_type": "fp32"} | dict(config) | {"data_types": types}


def check_values(
    config: Mapping[str, Any], values: Mapping[str, Any], num_ranks: int, file: str
) -> None:
    """Refuse numbers and a precision in `file` that differ from the settings.

    `values`: the trainer's arguments, with `precision`, which may be auto.
    """
    expected = {key: values[ours] for key, ours in AGREE.items()}
    expected["train_batch_size"] = (
        values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * num_ranks
    )
    for key, ours in expected.items():
        theirs = config.get(key, AUTO)
        if theirs not in (AUTO, None) and theirs != ours:
            named = AGREE.get(key, f"batch size x accumulation x {num_ranks} rank(s)")
            what = f"{key} is {theirs}, but {named} is {ours:g}"
            raise UserError(file, what, 'write "auto" there: then the settings count')
    if values.get("verify_steps"):
        _check_copyable(config, values["precision"], file)
    for name in ("bf16", "fp16"):
        enabled = config.get(name, {}).get("enabled", AUTO)
        _check_precision(name, enabled, values["precision"], file)


def _check_copyable(config: Mapping[str, Any], precision: str, file: str) -> None:
    """Refuse what keeps a part of a step's state where training/verifying.py does not find it."""
    zero = config.get("zero_optimization") or {}
    optimizer, weights = (zero.get(f"offload_{of}") or {} for of in ("optimizer", "param"))
    elsewhere = {
        "offload to nvme": "nvme" in (optimizer.get("device"), weights.get("device")),
        "offload_optimizer.ratio": optimizer.get("ratio", 1) != 1,
        "super_offload": optimizer.get("super_offload"),
        "zenflow": zero.get("zenflow"),
        "fp16 without ZeRO": precision == "fp16" and not zero.get("stage"),
    }
    for name, is_there in elsewhere.items():
        if is_there:
            what = f"verify_steps can't take a step back with {name}"
            raise UserError(file, what, "leave one out")


def _check_precision(name: str, enabled: Any, precision: str, file: str) -> None:
    """Refuse a switch that differs from `precision`; auto may become bf16 or fp32."""
    if enabled in (AUTO, None) or (precision == AUTO and name == "fp16" and not enabled):
        return
    if precision != AUTO and enabled == (precision == name):
        return
    wanted = name if enabled else "fp32"
    raise UserError(
        file,
        f"{name}.enabled is {str(enabled).lower()}, but precision is {precision}",
        f'write "auto" there, or set precision to {wanted}',
    )
