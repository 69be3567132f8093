"""The checks before anything slow starts."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from neoxkit import files, machine, paths
from neoxkit.data import reading, tokenized
from neoxkit.errors import UserError
from neoxkit.launch import command
from neoxkit.models import loading
from neoxkit.runs import resuming
from neoxkit.runs.folder import ARGUMENTS, finished_facts, state_of
from neoxkit.settings import TINY, TokenizeSettings, TrainSettings


def check_files(settings: TokenizeSettings, questions_file: str = "") -> None:
    """Check the files that 01_tokenize reads, the questions that 02 and 03 ask, and the model's
    name, which must be a folder or a hub name."""
    if settings.model_name_or_path != TINY:
        loading.resolve(settings.model_name_or_path)
    source = reading.read_sides(settings)["train"]
    questions = reading.questions_beside(source.path)
    if questions_file:
        questions = paths.find("questions_file", questions_file)
    if questions.is_file():
        reading.read(questions, *source.names)


def check(settings: TrainSettings, dialled: Collection[str] = ()) -> dict[str, Any]:
    """Check all that can be checked without loading a model; return the trainer's arguments.

    Refuse a run folder that was started with other settings, other data or other ranks; `dialled`
    names the settings that dials have changed.
    """
    data = paths.tokenized(settings.dataset)
    manifest = tokenized.load_manifest(data)
    tokenized.check_block_size(settings.block_size, manifest)
    base = settings.model_name_or_path or manifest["model_name_or_path"]
    arguments = _check_start(settings, base, dialled)
    if _resumes(settings) and "dataset" not in settings.allow_change:
        resuming.refuse_other_data(paths.run(settings.run), manifest, arguments["dataset_sha256"])
    return arguments


def check_before_tokenizing(first: TokenizeSettings, settings: TrainSettings) -> None:
    """Refuse what `check` would refuse later, as far as known before 01_tokenize runs."""
    _check_start(settings, settings.model_name_or_path or first.model_name_or_path)
    if _resumes(settings) and "dataset" not in settings.allow_change:
        resuming.refuse_other_data(paths.run(settings.run), resuming.planned_data(first))


def _resumes(settings: TrainSettings) -> bool:
    """Tell whether this start would resume (or show) an earlier one."""
    folder = paths.run(settings.run)
    started = (folder / ARGUMENTS).exists() and state_of(folder) != "new"
    return started and not settings.restart


def _check_start(
    settings: TrainSettings, base: str, dialled: Collection[str] = ()
) -> dict[str, Any]:
    """Run the checks that need no dataset; return the trainer's arguments."""
    _check_model(settings, base)
    arguments = command.trainer_arguments(settings, base)
    if settings.precision == "fp16" and not machine.num_gpus():
        raise UserError("precision", "fp16 needs a GPU and there is none", "use auto or fp32")
    ranks = machine.num_ranks(settings)
    if _resumes(settings):
        folder = paths.run(settings.run)
        began = files.read_json(folder / ARGUMENTS)
        dials = {*resuming.dialled(folder), *dialled}
        resuming.refuse_changes(began, arguments, settings.allow_change, dials)
        config = files.read_json(paths.ds_config("ds_config", settings.ds_config))
        stage = config.get("zero_optimization", {}).get("stage", 0)
        resuming.refuse_other_ranks(folder, ranks, stage, settings.allow_change)
    return arguments


def _check_model(settings: TrainSettings, base: str) -> None:
    folder = None if base == TINY else loading.local_folder(loading.resolve(base))
    if folder and not settings.from_scratch and not any(folder.glob("*.safetensors*")):
        raise loading.no_weights(folder)


def check_evaluable(folder: Path) -> None:
    """Refuse a run that 03_evaluate can't compare: not finished, or its data has changed."""
    facts = finished_facts(folder)
    place = paths.find("dataset", facts["dataset"], file=False)
    tokenized.check_sha256(place, facts["dataset_sha256"])
