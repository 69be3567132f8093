"""Each of transformers' TrainingArguments is read, fixed, noted or refused; contradictions too."""

import inspect
import json
import math
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from conftest import BASE, STEPS, losses, metrics
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames
from zygote import Zygote, job

from neoxkit import files, paths
from neoxkit.errors import MOST_CHARACTERS, UserError
from neoxkit.lab.training import schedule
from neoxkit.launch import checks
from neoxkit.machine import num_steps
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, LOG, finished_facts
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments, contradictions, honoured

BASIC = {"output_dir": "out", "do_train": True, "dataset": "data"}
FIELDS = {f.name: f for f in fields(TrainingArguments)}
TYPES = get_type_hints(TrainingArguments)  # a field's own type is changed by HfArgumentParser
SMALL = TrainSettings(run="honoured", dataset="small", max_steps=8)
KINDS = {  # of the fields whose type in transformers is not a plain one
    "lr_scheduler_type": str, "optim": str, "eval_strategy": str, "save_strategy": str,
    "logging_strategy": str, "debug": str, "trackio_static_space_id": (str, bool),
}  # fmt: skip


def parse(tmp_path: Path, **values: Any) -> arguments.Parsed:
    """Parse a handwritten file for the trainer."""
    file = tmp_path / "given.json"
    file.write_text(json.dumps(BASIC | values))
    return arguments.parse([str(file)])


def more(**values: Any) -> dict[str, Any]:
    return {"training_arguments": values}


def refusal(**changes: Any) -> str:
    """Return the refusal of these settings."""
    with pytest.raises(UserError) as refused:
        checks.check(SMALL.replace(**changes))
    said = str(refused.value)
    assert "\n" not in said and len(f"error: {said}") <= MOST_CHARACTERS and " ..." not in said
    return said


def test_each_field_of_transformers_is_read_fixed_noted_or_refused() -> None:
    counted = Counter(honoured.names())
    assert {name for name in FIELDS if FIELDS[name].init} == {*counted}
    assert [name for name, count in counted.items() if count > 1] == []


def test_the_kinds_of_arguments_are_those_of_transformers() -> None:
    for name, rule in honoured.READ.items():
        theirs = TYPES[name]
        kinds = {get_origin(kind) or kind for kind in get_args(theirs)} - {type(None)} or {theirs}
        ours = rule["kind"] if isinstance(rule["kind"], tuple) else (rule["kind"],)
        assert KINDS.get(name) == rule["kind"] or kinds == {*ours}, name


@pytest.mark.parametrize(
    ("name", "value", "noun"),
    [
        ("report_to", 5, "text or a list"),
        ("lr_scheduler_kwargs", [1], "a mapping or text"),
        ("include_num_input_tokens_seen", 3, "true or false or text"),
    ],
)
def test_a_value_of_none_of_several_types_is_refused(name: str, value: Any, noun: str) -> None:
    with pytest.raises(UserError) as refused:
        arguments.build(BASIC | {name: value}, [])
    assert str(refused.value) == f"{name}: must be {noun}, got {value} -- correct it"


def test_each_default_of_transformers_is_taken(tmp_path: Path) -> None:
    """A value that someone writes down although it is the default changes nothing."""
    values = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in FIELDS.values()
    }
    values = {k: v for k, v in values.items() if k not in ("output_dir", "do_train")}
    parsed = parse(tmp_path, **json.loads(json.dumps(values)))
    assert parsed.notices == parse(tmp_path).notices == []


@pytest.mark.parametrize("name", honoured.REFUSED)
def test_what_is_refused_is_refused_in_a_notebook_and_at_a_shell(home: Path, name: str) -> None:
    value = {int: 3, float: 0.5, str: "some"}.get(TYPES[name], True)
    if name != "hub_model_id":  # a setting of the same name
        why, remedy = honoured.REFUSED[name]
        assert refusal(**more(**{name: value})) == f"training_arguments: {name} {why} -- {remedy}"
    with pytest.raises(UserError, match=f"^{name}: "):
        arguments.build(BASIC | {name: value}, [])


@pytest.mark.parametrize("name", honoured.NOTED)
def test_what_has_no_effect_is_said_once(home: Path, tmp_path: Path, name: str) -> None:
    value = {bool: not FIELDS[name].default, list[str]: ["loss"]}.get(TYPES[name], 3)
    checks.check(SMALL.replace(**more(**{name: value})))
    said = parse(tmp_path, **{name: value}, deepspeed="zero2").notices
    assert said == [f"{name} has no effect: {honoured.NOTED[name]}"]


@pytest.mark.parametrize("name", honoured.FIXED)
def test_what_the_kit_sets_itself_is_said_once(tmp_path: Path, name: str) -> None:
    other = ["others"] if name == "label_names" else not honoured.FIXED[name]
    default = FIELDS[name].default == other
    said = parse(tmp_path, **{name: other})
    assert getattr(said.training, name) == honoured.FIXED[name]
    assert said.notices == ([] if default else [f"{name} is always {honoured.FIXED[name]} here"])


def test_schedules_take_the_arguments_that_transformers_functions_take() -> None:
    given_by_the_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    theirs = {
        kind.value: {*inspect.signature(function).parameters} - given_by_the_trainer
        for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()
    }
    # The others are for a measure that should rise.
    theirs["reduce_lr_on_plateau"] = {*inspect.signature(ReduceLROnPlateau).parameters} - {
        "optimizer", "mode", "threshold_mode",
    }  # fmt: skip
    assert {kind: theirs.pop(kind) for kind in contradictions.SCHEDULES} == {
        kind: {*names} for kind, names in contradictions.SCHEDULES.items()
    }
    assert {*theirs} == {"greedy"}  # refused


def test_optimizers_are_those_of_transformers() -> None:
    assert {*contradictions.OPTIMIZERS} <= {name.value for name in OptimizerNames}
    assert {k for k, package in contradictions.OPTIMIZERS.items() if not package} == {
        *contradictions._OPTIM_ARGS
    }


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a setting": (more(learning_rate=1), "learning_rate is a setting of its own -- set it there"),
    "ds_config": (more(deepspeed="zero3"), "deepspeed is a setting of its own -- set ds_config"),
    "precision": (more(bf16=True), "bf16 is a setting of its own -- set precision to bf16"),
    "checkpointing": (
        more(activation_checkpointing=True),
        "activation_checkpointing is a setting of its own -- set gradient_checkpointing",
    ),
    "always": (more(save_strategy="no"), "save_strategy is always steps in a notebook -- leave it"),
    "a kit's own": (more(trial=True), "trial is not one of them -- "),
    "misspelt": (more(adam_beta_1=0.8), "adam_beta_1 is not one of them -- did you mean adam_beta"),
    "a text": (more(adam_beta1="much"), "adam_beta1: must be a number, got 'much'"),
    "a bound": (more(adam_beta2=1), "adam_beta2: must be at most 0.999999, got 1"),
    "a choice": (more(train_sampling_strategy="long"), "train_sampling_strategy: got 'long'"),
    "another column": (more(length_column_name="size"), "length_column_name: got 'size' -- choose"),
    "a measure": (more(metric_for_best_model="bleu"), "metric_for_best_model: got 'bleu'"),
    "seed": (more(data_seed=2**32), "data_seed: must be at most 4"),
    "the best": (
        more(load_best_model_at_end=True),
        "load_best_model_at_end is a setting of its own -- set it there",
    ),
    "a threshold": (
        {"early_stopping_threshold": 0.1},
        "early_stopping_threshold: has no effect without early_stopping_patience -- set that as",
    ),
    "a schedule's": (
        more(lr_scheduler_kwargs={"cycles": 2}),
        "lr_scheduler_kwargs: cycles is not an argument of cosine -- did you mean num_cycles?",
    ),
    "no mapping": (more(lr_scheduler_kwargs="2"), "lr_scheduler_kwargs: must be a mapping, got 2 "),
    "no number": (more(lr_scheduler_kwargs={"num_cycles": "two"}), "num_cycles: must be a number"),
    "an optimizer": (more(optim="galore_adamw"), "optim: the kit does not train with 'galore"),
    "a package": (more(optim="adamw_8bit"), "optim: adamw_8bit needs bitsandbytes -- pip install"),
    "its arguments": (
        more(optim_args="momentum=0.9"),
        "optim_args: momentum is not an argument of adamw_torch_fused -- it takes none",
    ),
    "workers": (
        more(dataloader_prefetch_factor=4),
        "dataloader_prefetch_factor: needs processes that load data, and there are none -- "
        "set dataloader_num_workers to 1 or more",
    ),
    "tf32": (more(tf32=True), "tf32: needs a GPU and there is none -- leave it out"),
    "compiled": (
        more(torch_compile_mode="default"),
        "torch_compile_mode: would compile the model -- set torch_compile, too",
    ),
    "neftune": (
        more(neftune_noise_alpha=5),
        "neftune_noise_alpha: scales its noise by a row's length, and packed rows hold several "
        "conversations -- set layout to padded",
    ),
    "varlen, padded": (
        {"attn_implementation": "varlen", "layout": "padded"},
        "attn_implementation: varlen takes packed rows as they come, and layout is padded -- set "
        "layout to packed, or choose auto",
    ),
    "varlen, compiled": (
        {"attn_implementation": "varlen", "torch_compile": True},
        "attn_implementation: varlen takes packed rows as they come, and torch_compile is True --",
    ),
    "varlen, in rows": (
        {"attn_implementation": "varlen", "row_tokens": 560},
        "attn_implementation: varlen takes packed rows as they come, and row_tokens is 560 -- set",
    ),
    "no step": (
        more(dataloader_drop_last=True) | {"per_device_train_batch_size": 500},
        "dataloader_drop_last: 380 conversations are less than a batch of 500: there is no step",
    ),
    "warm-up": (
        {"warmup_steps": 9},
        "warmup_steps: 9 are more than the 8 steps of this run -- lower it; below 1 it is a share",
    ),
    "numpy's seed": ({"seed": 2**32}, "seed: must be at most 4"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_are_refused_before_anything_starts(home: Path, what: str) -> None:
    changes, said = CONTRADICTIONS[what]
    assert refusal(**changes).removeprefix("training_arguments: ").startswith(said)


FOLLOWED: dict[str, dict[str, Any]] = {  # their remedies
    "the best": {"load_best_model_at_end": True},
    "a threshold": {"early_stopping_threshold": 0.1, "early_stopping_patience": 1},
    "a schedule's": more(lr_scheduler_kwargs={"num_cycles": 2}),
    "workers": more(dataloader_prefetch_factor=4, dataloader_num_workers=1),
    "compiled": more(torch_compile_mode="default") | {"torch_compile": True},
    "neftune": more(neftune_noise_alpha=5) | {"layout": "padded"},
    "no step": more(dataloader_drop_last=True) | {"per_device_train_batch_size": 380},
    "precision": {"precision": "bf16"},
    "ds_config": {"ds_config": "zero3"},
    "varlen, in rows": {"attn_implementation": "varlen"},
    "warm-up": {"warmup_steps": 0.9},
    "numpy's seed": {"seed": 2**32 - 1},
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_their_remedies_help(home: Path, what: str) -> None:
    assert checks.check(SMALL.replace(**FOLLOWED[what])).arguments


def test_texts_become_what_they_mean(home: Path) -> None:
    """papermill and YAML pass numbers as texts."""
    given = {"adam_epsilon": "1e-6", "dataloader_num_workers": "2", "logging_first_step": "true"}
    asked = checks.check(SMALL.replace(**more(**given))).arguments
    assert {name: asked[name] for name in given} == {
        "adam_epsilon": 1e-6, "dataloader_num_workers": 2, "logging_first_step": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type: the kit does not train with 'gr"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_kwargs: cosine_with_min_lr needs min_lr or min_lr_rate -- add one",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_kwargs: warmup_stable_decay needs num_decay_steps -- add one",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "lr_scheduler_type: reduce_lr_on_plateau needs evaluations, and there are none -- set",
        ),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs evaluations, and there"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "no"},
            "load_best_model_at_end: needs checkpoints, and there are none -- set save_strategy",
        ),
        (
            {"early_stopping_patience": 2},
            "early_stopping_patience: needs evaluations, and there are none -- set eval_strategy",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-3}},
            "lr_scheduler_kwargs: lr_end is not below the learning rate, 5e-05 -- lower it",
        ),
        ({"greater_is_better": True}, "greater_is_better: would keep the worst checkpoint"),
    ],
)
def test_contradictions_that_only_a_shell_can_cause_are_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse(tmp_path, **values)
    assert str(refused.value).startswith(said)


def test_a_schedule_without_a_warm_up_and_unread_betas_are_said(tmp_path: Path) -> None:
    values = {"lr_scheduler_type": "constant", "warmup_steps": 3, "optim": "sgd", "adam_beta1": 0.8}
    assert parse(tmp_path, **values).notices == [
        "warmup_steps has no effect: constant has none, constant_with_warmup has",
        "adam_beta1 has no effect: sgd does not read it",
    ]


def test_a_trial_may_be_shorter_than_the_warm_up_and_keeps_no_best(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "early_stopping_patience": 1, "eval_strategy": "steps"}
    parsed = parse(tmp_path, trial=True, warmup_steps=100, max_steps=3, eval_steps=3, **best)
    assert not parsed.kit.load_best_model_at_end and not parsed.kit.early_stopping_patience
    contradictions.check_rows(arguments.together(parsed), 10, 0, 1)


@pytest.mark.parametrize(
    ("values", "is_evaluated"),
    [
        ({"eval_strategy": "steps", "eval_steps": 5}, True),
        ({"eval_strategy": "epoch"}, True),
        ({}, False),
        ({"eval_strategy": "steps", "eval_steps": 5, "eval_delay": 3}, False),
        ({"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": False}, False),
        ({"eval_strategy": "steps", "eval_steps": 5, "trial": True}, False),
        ({"eval_on_start": True}, True),
    ],
)
def test_the_base_is_evaluated_first_where_there_are_evaluations(
    tmp_path: Path, values: dict[str, Any], is_evaluated: bool
) -> None:
    """The same by flags as in a file."""
    flags = [f"--{k}={v}" for k, v in (BASIC | values).items()]
    for parsed in (parse(tmp_path, **values), arguments.parse(flags)):
        assert parsed.training.eval_on_start is is_evaluated
        assert ("eval_on_start" in parsed.given) is ("eval_on_start" in values)


def test_one_process_does_not_share_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UserError, match=r"one process would share 2 GPUs -- start it with deepsp"):
        arguments.parse(["--output_dir", "out", "--do_train"])


def test_the_planned_steps_count_what_drop_last_leaves_out() -> None:
    plain = TrainSettings(num_train_epochs=2, per_device_train_batch_size=8)
    dropping = plain.replace(training_arguments={"dataloader_drop_last": True})
    assert [num_steps(s, 47, 1) for s in (plain, dropping)] == [12, 10]
    assert [num_steps(s, 47, 2) for s in (plain, dropping)] == [6, 4]


# The rest trains: these arguments do under DeepSpeed what they say.


def trained(zygote: Zygote, run: str, values: dict[str, Any], **changes: Any) -> Path:
    """Train with `values` as arguments, which a shell may give more freely than a notebook."""
    settings = BASE.replace(run=f"honoured-{run}", logging_steps=1, **changes)
    started = job(settings)
    folder = paths.run(settings.run)
    files.write_json(folder / ARGUMENTS, files.read_json(folder / ARGUMENTS) | values)
    assert zygote.run(started) == [0], (folder / LOG).read_text()[-2000:]
    return folder


@pytest.fixture(scope="module")
def plain(session_home: Path, zygote: Zygote) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        return trained(zygote, "plain", {})


def rates(folder: Path) -> list[float]:
    return [e["learning_rate"] for e in History(metrics(folder)).train]


def test_arguments_that_change_no_number_train_to_the_same_losses(
    home: Path, zygote: Zygote, plain: Path
) -> None:
    values = {
        "dataloader_num_workers": 1, "dataloader_prefetch_factor": 2, "full_determinism": True,
        "dataloader_persistent_workers": True, "dataloader_multiprocessing_context": "fork",
        "torch_empty_cache_steps": 1, "debug": "underflow_overflow", "log_level": "error",
        "eval_on_start": True, "include_num_input_tokens_seen": "all", "optim": "adamw_torch",
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        **dict.fromkeys(("prediction_loss_only", "eval_use_gather_object"), True),
    }  # fmt: skip
    folder = trained(zygote, "neutral", values, gradient_checkpointing=True)
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-5)
    first, *evals = History(metrics(folder)).evals
    assert first["step"] == 0 and first["loss"] > evals[0]["loss"]
    assert [first["loss"], *(e["loss"] for e in evals)] == pytest.approx(
        losses(plain, "eval"), rel=1e-5
    )
    state = files.read_json(folder / f"checkpoint-{STEPS}" / "trainer_state.json")
    assert state["num_input_tokens_seen"] >= sum(
        e["tokens"] for e in History(metrics(folder)).train
    )


def test_the_dials_schedule_is_what_runs(home: Path, zygote: Zygote, plain: Path) -> None:
    values = {"lr_scheduler_kwargs": {"num_cycles": 1.5}, "eval_delay": 5, "data_seed": 7}
    folder = trained(zygote, "cycles", values)
    shown = schedule(STEPS, 2e-3, BASE.warmup_steps, "cosine", 1.5)
    assert rates(folder) == pytest.approx(shown.tolist())
    assert [e["step"] for e in History(metrics(folder)).evals] == [8]
    assert losses(folder)[0] != losses(plain)[0]


@pytest.mark.parametrize(
    ("kind", "more", "last"),
    [
        ("polynomial", {"power": 2, "lr_end": 1e-4}, 1e-4 + 1.9e-3 / 7**2),
        (
            "cosine_with_min_lr",
            {"min_lr": 5e-4},
            5e-4 + 1.5e-3 * (1 + math.cos(math.pi * 6 / 7)) / 2,
        ),
        ("reduce_lr_on_plateau", {"patience": 0, "threshold": 0.9}, 2e-4),
    ],
)
def test_schedules_that_ask_the_optimizer_run_under_deepspeed(
    home: Path, zygote: Zygote, kind: str, more: dict[str, float], last: float
) -> None:
    """DeepSpeed's optimizer lacks the `defaults` in which two of these look for the rate."""
    values = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": more, "warmup_steps": 1}
    found = rates(trained(zygote, kind, values, eval_steps=3))
    assert max(found) == 2e-3 and found[-1] == pytest.approx(last)


@pytest.mark.parametrize("name", ["adafactor", "rmsprop"])
def test_optimizers_train_under_deepspeed(
    home: Path, zygote: Zygote, plain: Path, name: str
) -> None:
    folder = trained(zygote, name, {"optim": name})
    assert metrics(folder)[0]["optimizer"] == name
    assert losses(folder)[1] == pytest.approx(losses(plain)[1])  # the first step's rate is 0
    assert losses(folder)[-1] < losses(folder)[0] and losses(folder)[-1] != losses(plain)[-1]


def test_the_best_checkpoint_becomes_the_model(home: Path, zygote: Zygote) -> None:
    """Train at a rate that is too high: the last evaluation is not the best."""
    values = {"load_best_model_at_end": True, "optim": "sgd", "optim_args": "momentum=0.99"}
    too_high = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "warmup_steps": 0}
    folder = trained(zygote, "best", values, eval_steps=2, save_steps=2, **too_high)
    _, *evals = History(metrics(folder)).evals  # the base's is not saved
    best = min(evals, key=lambda event: event["loss"])
    assert best != evals[-1]
    facts = finished_facts(folder)
    assert (facts["model_step"], facts["eval_loss"]) == (best["step"], best["loss"])
    kept = files.sha256(folder / f"checkpoint-{best['step']}" / "model.safetensors")
    assert files.sha256(folder / "model" / "model.safetensors") == kept


def test_drop_last_and_noisy_embeddings_do_what_they_say(
    home: Path, zygote: Zygote, plain: Path
) -> None:
    one = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 64}
    values = {"dataloader_drop_last": True, "neftune_noise_alpha": 5.0}
    folder = trained(zygote, "dropping", values, layout="padded", **one)
    start = metrics(folder)[0]
    settings = BASE.replace(**one, training_arguments={"dataloader_drop_last": True})
    assert start["planned_steps"] == num_steps(settings, start["conversations"], 1) == 5
    without = trained(
        zygote, "quiet", values | {"neftune_noise_alpha": None}, layout="padded", **one
    )
    assert losses(folder)[0] != losses(without)[0]  # nothing is learnt yet: it is the noise


def test_a_file_without_its_usual_keys_trains_as_the_settings_say(
    home: Path, zygote: Zygote, plain: Path
) -> None:
    (home / "short.json").write_text('{"zero_optimization": {"stage": 2}}', "utf-8")
    folder = trained(zygote, "short", {"deepspeed": "short.json"})
    assert losses(folder) == losses(plain)


def test_ranks_find_what_a_shorter_block_size_leaves_before_a_model_is_loaded(
    home: Path, zygote: Zygote
) -> None:
    settings = BASE.replace(run="honoured-few", block_size=20, warmup_steps=5, max_steps=-1)
    settings = settings.replace(num_train_epochs=1, per_device_train_batch_size=64)
    asked = checks.check(settings)  # which knows the dataset's conversations, not their lengths
    assert asked.arguments["warmup_steps"] == 5
    assert zygote.run(job(settings)) == [2]
    said = (paths.run(settings.run) / LOG).read_text()
    assert "error: warmup_steps: 5 are more than the" in said


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("group_by_length", "use train_sampling_strategy: group_by_length"),
        ("warmup_ratio", "use warmup_steps"),
        ("no_cuda", "use use_cpu"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is not one of them -- {remedy}$"):
        honoured.taken({name: True}, "training_arguments")
