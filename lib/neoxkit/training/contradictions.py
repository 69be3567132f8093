"""Refuse trainer's arguments that contradict each other, or that a run of these rows can't follow.

Nothing heavy is imported, as in honoured.py.
"""

import contextlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from neoxkit import fields, machine
from neoxkit.errors import UserError, near
from neoxkit.training.honoured import LEAVE, WITHOUT_WARM_UP, plain

# Schedule -> the `lr_scheduler_kwargs` that it takes.
_COSINE = ("num_cycles", "min_lr", "min_lr_rate")
SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": _COSINE,
    "cosine_warmup_with_min_lr": (*_COSINE, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio",
        "num_cycles",
    ),
    "reduce_lr_on_plateau": ("factor", "patience", "threshold", "cooldown", "min_lr", "eps"),
}  # fmt: skip
# Of these a schedule needs one; transformers would end the training only after loading the model.
_NEEDED = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}

# Optimizer -> the package that it needs besides torch. Others hook into backward, or (adagrad)
# fail under ZeRO.
_BITSANDBYTES = (
    "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "rmsprop")),
    **dict.fromkeys(_BITSANDBYTES, "bitsandbytes"),
}
# Optimizer of torch or transformers -> the `optim_args` that it takes.
_OPTIM_ARGS: dict[str, tuple[str, ...]] = {
    "adamw_torch_fused": (),
    "adamw_torch": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}

EARLY = ("early_stopping_patience", "early_stopping_threshold")
_OF_EVALUATIONS = ("load_best_model_at_end", "early_stopping_patience")


def check_together(values: Mapping[str, Any], on_gpu: bool) -> None:
    """Refuse arguments that contradict each other; `values` are the trainer's, by its names.

    `on_gpu`: whether the training has GPUs, where it runs.
    """
    _check_schedule(values)
    _check_optimizer(values)
    _check_workers(values)
    if values.get("max_steps", -1) > 0 and not values.get("trial"):
        _check_warm_up(values, values["max_steps"])
    if not values.get("trial"):
        _check_best(values)
    if values.get("tf32") and (values.get("use_cpu") or not on_gpu):
        raise UserError("tf32", "needs a GPU and there is none", LEAVE)
    for name in ("torch_compile_backend", "torch_compile_mode"):
        if values.get(name) and not values.get("torch_compile"):
            raise UserError(name, "would compile the model", "set torch_compile, too")
    if values.get("verify_steps"):
        _check_verifying(values, on_gpu)
    if values.get("attn_implementation") == "varlen":
        _check_varlen(values)
    if values.get("neftune_noise_alpha") and values.get("layout", "packed") == "packed":
        what = "scales its noise by a row's length, and packed rows hold several conversations"
        raise UserError("neftune_noise_alpha", what, "set layout to padded")


def _check_verifying(values: Mapping[str, Any], on_gpu: bool) -> None:
    """Refuse to take steps twice where the second time is another computation."""
    if not values.get("deepspeed"):
        raise UserError("verify_steps", "needs DeepSpeed's engine", "add --deepspeed zero2")
    if on_gpu and not values.get("use_cpu") and not values.get("full_determinism"):
        raise _adds_otherwise("a GPU")
    if plain(values.get("optim")) == "sgd" and "momentum" not in (values.get("optim_args") or ""):
        what = "sgd without a momentum keeps no state, by which the kit takes a step back"
        raise UserError("verify_steps", what, "set optim_args to momentum=0.9, or choose another")


def check_experts(values: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse to take steps of a mixture of experts twice: its gradients are added up in another
    order each time, on a CPU as well. `config`: the model's, as in its config.json."""
    numbers = (n for name, n in config.items() if "experts" in name and isinstance(n, int))
    is_asked = values.get("verify_steps") and not values.get("full_determinism")
    if is_asked and any(n > 1 for n in numbers):
        raise _adds_otherwise("a mixture of experts")


def _adds_otherwise(what: str) -> UserError:
    what = f"{what} adds numbers up in another order each time"
    return UserError("verify_steps", what, "set full_determinism True in training_arguments")


def _check_varlen(values: Mapping[str, Any]) -> None:
    """Refuse rows that attention by conversation can't take."""
    for name, right in (("layout", "packed"), ("torch_compile", False), ("row_tokens", 0)):
        if values.get(name, right) != right:
            what = f"varlen takes packed rows as they come, and {name} is {values[name]}"
            remedy = f"set {name} to {right}, or choose auto"
            raise UserError("attn_implementation", what, remedy)


def _check_schedule(values: Mapping[str, Any]) -> None:
    kind = plain(values.get("lr_scheduler_type", "linear"))
    given, where = values.get("lr_scheduler_kwargs") or {}, "lr_scheduler_kwargs"
    if kind not in SCHEDULES:
        remedy = near(kind, SCHEDULES, "choose cosine, linear, constant or constant_with_warmup")
        raise UserError("lr_scheduler_type", f"the kit does not train with {kind!r}", remedy)
    allowed = SCHEDULES[kind]
    if isinstance(given, str):  # a flag's
        with contextlib.suppress(ValueError):
            given = json.loads(given)
    if not isinstance(given, Mapping):
        raise UserError(where, f"must be a mapping, got {given!r}", 'write {"num_cycles": 0.5}')
    for name, value in given.items():
        if name not in allowed:
            remedy = near(name, allowed, f"it takes {', '.join(allowed) or 'none'}")
            raise UserError(where, f"{name} is not an argument of {kind}", remedy)
        if name not in ("warmup_type", "decay_type"):
            fields.convert(name, float, value)
    needed = _NEEDED.get(kind, ())
    if needed and not {*needed} & {*given}:
        what = f"{kind} needs {' or '.join(needed)}"
        raise UserError(where, what, f"add one, for example {{{needed[0]}: ...}}")
    if kind == "reduce_lr_on_plateau" and plain(values.get("eval_strategy", "no")) == "no":
        what = f"{kind} needs evaluations, and there are none"
        raise UserError("lr_scheduler_type", what, "set eval_strategy to steps")
    rate = values.get("learning_rate") or 1.0
    if kind == "polynomial" and float(given.get("lr_end", 0)) >= rate:
        what = f"lr_end is not below the learning rate, {rate:g}"
        raise UserError(where, what, "lower it")
    if {"min_lr", "min_lr_rate"} <= {*given}:
        raise UserError(where, "has both min_lr and min_lr_rate", "leave one out")


def _check_optimizer(values: Mapping[str, Any]) -> None:
    name = plain(values.get("optim", "adamw_torch_fused"))
    if name not in OPTIMIZERS:
        remedy = near(name, OPTIMIZERS, f"choose {', '.join(_OPTIM_ARGS)}, or one of bitsandbytes")
        raise UserError("optim", f"the kit does not train with {name!r}", remedy)
    package = OPTIMIZERS[name]
    if package and importlib.util.find_spec(package) is None:
        raise UserError("optim", f"{name} needs {package}", f"pip install {package}")
    for pair in filter(None, (values.get("optim_args") or "").replace(" ", "").split(",")):
        key, equals, _ = pair.partition("=")
        if not equals:
            raise UserError("optim_args", f"got {pair!r}", "write name=value,name=value")
        allowed = _OPTIM_ARGS.get(name, (key,))
        if key not in allowed:
            remedy = near(key, allowed, f"it takes {', '.join(allowed) or 'none'}")
            raise UserError("optim_args", f"{key} is not an argument of {name}", remedy)


def _check_workers(values: Mapping[str, Any]) -> None:
    if values.get("dataloader_num_workers"):
        return
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        if values.get(f"dataloader_{name}"):
            what = "needs processes that load data, and there are none"
            raise UserError(f"dataloader_{name}", what, "set dataloader_num_workers to 1 or more")


def _check_best(values: Mapping[str, Any]) -> None:
    """Refuse to keep the best of no evaluation, or to wait for a better one."""
    evals, saves = (plain(values.get(f"{name}_strategy", "no")) for name in ("eval", "save"))
    for where in filter(values.get, _OF_EVALUATIONS):
        if evals == "no":
            what = "needs evaluations, and there are none"
            raise UserError(where, what, "set eval_strategy to steps")
    if values.get("load_best_model_at_end") and saves == "no":
        what = "needs checkpoints, and there are none"
        raise UserError("load_best_model_at_end", what, "set save_strategy to steps")
    patience, threshold = (values.get(name) for name in EARLY)
    if threshold and not patience:
        what = "has no effect without early_stopping_patience"
        raise UserError("early_stopping_threshold", what, "set that as well, or leave it out")


def check_rows(values: Mapping[str, Any], training: int, held_out: int, num_ranks: int) -> None:
    """Refuse a run without a step, with too long a warm-up, or with a best of no evaluation.

    `training` and `held_out` are the sides' conversations.
    """
    batch = values["per_device_train_batch_size"] * num_ranks
    if values.get("dataloader_drop_last") and training < batch:
        what = f"{training:,} conversations are less than a batch of {batch:,}: there is no step"
        raise UserError("dataloader_drop_last", what, "leave it out, or lower the batch size")
    if values.get("trial"):
        return
    for where in filter(values.get, _OF_EVALUATIONS):
        if not held_out:
            what = "needs evaluations, and the held-out set is empty"
            raise UserError(where, what, LEAVE)
    _check_warm_up(values, machine.count_steps(values, training, num_ranks))


def _check_warm_up(values: Mapping[str, Any], steps: int) -> None:
    warmup = values.get("warmup_steps") or 0
    if warmup > steps and plain(values.get("lr_scheduler_type")) not in WITHOUT_WARM_UP:
        what = f"{warmup:g} are more than the {steps:,} steps of this run"
        raise UserError("warmup_steps", what, "lower it; below 1 it is a share of all steps")
