"""The checks before anything slow starts."""

from collections.abc import Collection, Mapping
from typing import Any

from neoxkit import paths
from neoxkit.data import reading, tokenized
from neoxkit.errors import UserError
from neoxkit.launch import command, nodes
from neoxkit.models import configs, loading, model_names, packing
from neoxkit.runs import heartbeat, resuming
from neoxkit.runs.resuming import Start
from neoxkit.settings import TINY, TokenizeSettings, TrainSettings
from neoxkit.training import contradictions, ds_file


def check_files(settings: TokenizeSettings, questions_file: str = "") -> None:
    """Check the files that 01_tokenize reads, the questions that 02 and 03 ask, and the model's
    name, which must be a folder, or be on the hub with its revision."""
    model = model_names.at(settings.model_name_or_path, settings.revision)
    if model != TINY:
        model_names.pinned(model)
    source = reading.read_sides(settings)["train"]
    questions = reading.questions_beside(source.path)
    if questions_file:
        questions = paths.find("questions_file", questions_file)
    if questions.is_file():
        reading.read(questions, *source.names)


def check(settings: TrainSettings, dialled: Collection[str] = (), **trial: Any) -> Start:
    """Check all that can be checked without loading a model; return the start.

    Refuse a run folder that was started with other settings, other data or other ranks; `dialled`
    names the settings that dials have changed, `trial` are a trial's arguments (trials.py).
    """
    _, manifest = tokenized.sizes(paths.tokenized(settings.dataset))  # a damaged one is refused
    block_size = tokenized.check_block_size(settings.block_size, manifest)
    arguments = _arguments(settings, block_size) | trial
    return _check_start(settings, arguments, manifest, dialled)


def check_before_tokenizing(first: TokenizeSettings, settings: TrainSettings) -> None:
    """Refuse what `check` would refuse later, as far as known before 01_tokenize runs."""
    model = model_names.at(first.model_name_or_path, first.revision)
    arguments = _arguments(settings, settings.block_size or first.block_size, model)
    del arguments["dataset_sha256"]  # 01_tokenize may replace the dataset
    _check_start(settings, arguments, resuming.planned_data(first))


def _arguments(settings: TrainSettings, block_size: int, first: str = "") -> dict[str, Any]:
    """Return the trainer's arguments; refuse a base that no training can start from (`first`:
    `command.base_of`)."""
    base = command.base_of(settings, first)
    if not settings.from_scratch:
        loading.check_base(base)
    configs.check_positions(configs.positions_by_files(base), block_size)
    config = configs.by_file(base)
    if family := config.get("model_type"):
        packing.check_varlen(settings.attn_implementation, family)
    arguments = command.trainer_arguments(settings, first)
    contradictions.check_experts(arguments, config)
    return arguments


def _check_start(
    settings: TrainSettings,
    arguments: Mapping[str, Any],
    data: Mapping[str, Any],
    dialled: Collection[str] = (),
) -> Start:
    heartbeat.least_seconds()  # refuses an environment variable that is not a number
    where = nodes.of(settings)
    if settings.precision == "fp16" and not where.on_gpu:
        raise UserError("precision", "fp16 needs a GPU and there is none", "use auto or fp32")
    num_ranks = where.num_ranks
    config = _ds_config(settings, arguments, num_ranks)
    contradictions.check_together(arguments, where.on_gpu)
    if sides := data.get("sides"):  # not before 01_tokenize
        kept, held_out = (sides[side]["conversations"] for side in ("train", "eval"))
        contradictions.check_rows(arguments, kept, held_out, num_ranks)
    start = Start(
        folder=paths.run(settings.run),
        arguments=arguments,
        num_ranks=num_ranks,
        zero_stage=config.get("zero_optimization", {}).get("stage", 0),
        data=data,
        allowed=settings.allow_change,
        dialled=dialled,
        restart=settings.restart,
    )
    resuming.refuse(start)
    return start


def _ds_config(
    settings: TrainSettings, arguments: Mapping[str, Any], num_ranks: int
) -> dict[str, Any]:
    """Read the DeepSpeed file; refuse what it would ignore, and what contradicts the settings."""
    config = ds_file.read("ds_config", settings.ds_config)
    file = paths.short(paths.ds_config("ds_config", settings.ds_config))
    ds_file.check_values(config, arguments, num_ranks, file)
    return config
