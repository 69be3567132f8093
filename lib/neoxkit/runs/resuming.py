"""Check whether a run may resume: compare its start with what is asked for now."""

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.data import sources, tokenized
from neoxkit.errors import UserError, shorten
from neoxkit.runs import checkpoints
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, DATASET, DIALS, is_trial, state_of
from neoxkit.settings import TokenizeSettings, TrainSettings

MOST_ZERO_STAGE = 2  # under ZeRO 3 a converted checkpoint gave other losses (DeepSpeed 0.19)

_OF_THE_DATA = "dataset_sha256"  # refuse_other_data reports it in words
_OF_THE_BASE = "base_commit"  # it follows from the base and its revision
_OF_A_REPLAY = "until_step"  # where a start ends changes no step before it
_FILES = {"train_file": "source", "eval_file": "eval_source"}  # setting -> manifest
_ROOM = 70  # characters of a refusal for the settings that differ


@dataclass(frozen=True)
class Start:
    """What a run is to be started with, again if it resumes.

    `arguments` are the trainer's, `data` the dataset's manifest or what is known of it before
    01_tokenize runs (`planned_data`; then there is no dataset_sha256 among the arguments).
    `allowed` names the settings that may differ from the run's first start (allow_change),
    `dialled` those that dials have changed now; `restart` sets an earlier run aside.
    """

    folder: Path
    arguments: Mapping[str, Any]
    num_ranks: int
    zero_stage: int | None
    data: Mapping[str, Any]
    allowed: Sequence[str] = ()
    dialled: Collection[str] = ()
    restart: bool = False

    @property
    def resumes(self) -> bool:
        """Whether this start would resume (or show) an earlier one."""
        started = (self.folder / ARGUMENTS).exists() and state_of(self.folder) != "new"
        return started and not self.restart


def refuse(start: Start) -> None:
    """Refuse to resume a run with other settings, other ranks or other data than it has."""
    if start.resumes:
        refuse_changes(start)
        refuse_other_ranks(start)
        if "dataset" not in start.allowed:
            refuse_other_data(start)


def refuse_changes(start: Start) -> None:
    """Refuse to resume a run with other settings, with a list old -> new."""
    old, new = files.read_json(start.folder / ARGUMENTS), start.arguments
    changed = {
        name: f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in _binding({*old, *new}, start.allowed)
        if old.get(name) != new.get(name)
    }
    if not changed:
        return
    dials = {*dialled(start.folder), *start.dialled}
    by_dial = [name for name in changed if name in dials]
    said = "; ".join(f"{how}{' by a dial' * (n in by_dial)}" for n, how in changed.items())
    remedy = "restore them, name them in allow_change, choose another run name, or set restart"
    if by_dial:
        turn = " and ".join(f"{name} to {_shown(old.get(name))}" for name in by_dial)
        rest = (
            "and restore the rest" if len(by_dial) < len(changed) else "or choose another run name"
        )
        remedy = f"turn the dial {turn} or set that parameter, {rest}"
    what = said if len(said) <= _ROOM else _names([*changed])
    raise UserError("run", f"was started with other settings ({what})", remedy)


def _binding(names: Collection[str], allowed: Collection[str] = ()) -> list[str]:
    """Return which of the trainer's arguments a resumed run must have as before, by name; those of
    the data and the base are looked at elsewhere."""
    theirs = TrainSettings.trainer_names()
    named = {*TrainSettings.with_role("resume", "free"), *allowed}
    free = {theirs.get(name, name) for name in named}
    return sorted({*names} - free - {_OF_THE_DATA, _OF_THE_BASE, _OF_A_REPLAY})


def computes_like(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether trainings with these arguments, which may be of one run, take the same steps:
    nothing differs but what a resumed run may change freely, and the list of what it changed."""
    names = [*_binding({*one, *other}, ["allow_change"]), _OF_THE_DATA, _OF_THE_BASE]
    return all(one.get(name) == other.get(name) for name in names)


def base_commit(folder: Path, model: str, revision: str) -> str:
    """Return the commit that a run's base was at when it was first started; "" if it has none, or
    was not started with this model and revision.

    A branch may mean another commit now.
    """
    path = folder / ARGUMENTS
    was = files.read_json(path) if path.is_file() else {}
    same = (was.get("model_name_or_path"), was.get("revision")) == (model, revision)
    return was.get(_OF_THE_BASE, "") if same else ""


def precision(folder: Path) -> str:
    """Return the precision that a run has trained in, on whatever machine; "" for a new one."""
    return "" if state_of(folder) == "new" else History.of_run(folder).start.get("precision", "")


def _names(changed: Sequence[str]) -> str:
    """List as many names as there is room for, and count the rest.

    >>> _names(["gradient_accumulation_steps", "learning_rate", "max_steps", "num_train_epochs"])
    'gradient_accumulation_steps, learning_rate, max_steps, and 1 more'
    """
    for more in range(len(changed)):
        shown = ", ".join(changed[: len(changed) - more]) + (f", and {more} more" if more else "")
        if len(shown) <= _ROOM:
            break
    return shown


def dialled(folder: Path) -> dict[str, list[Any]]:
    """Read the changes by dials at a run's last start: setting -> [parameter, dial]."""
    path = folder / DIALS
    return files.read_json(path) if path.is_file() else {}


def refuse_other_ranks(start: Start) -> None:
    """Refuse a checkpoint written by another number of ranks or with another ZeRO stage.

    It can be converted to another number of ranks if allow_change names `num_ranks`; not where the
    best one may be loaded at the end, which is not converted.
    """
    for checkpoint in checkpoints.whole(start.folder)[-1:]:
        manifest = checkpoints.manifest(checkpoint)
        was = (manifest["num_ranks"], manifest["zero_stage"])
        now = (start.num_ranks, start.zero_stage)
        convertible = was[1] == now[1] and (now[1] or 0) <= MOST_ZERO_STAGE
        if was == now:
            continue
        if convertible and start.arguments.get("load_best_model_at_end"):
            what = (
                f"is set, and {checkpoint.name} is from {_ranks(*was)}; the best is not converted"
            )
            remedy = (
                "go back to these ranks, or set it False and name it and num_ranks in allow_change"
            )
            raise UserError("load_best_model_at_end", what, remedy)
        if convertible and "num_ranks" in start.allowed:
            continue
        first = "add num_ranks to allow_change" if convertible else "go back"
        what = f"{checkpoint.name} is from {_ranks(*was)}, this start has {_ranks(*now)}"
        raise UserError(
            "num_ranks" if was[1] == now[1] else "ds_config",
            what,
            f"{first}, or begin a new run with model_name_or_path {paths.short(checkpoint)}",
        )


def _ranks(num_ranks: int, zero_stage: int | None) -> str:
    return f"{num_ranks} {'ranks' if num_ranks > 1 else 'rank'} under ZeRO {zero_stage or 0}"


def _shown(value: Any) -> str:
    text = str(value) if value != "" else "(empty)"
    return text if len(text) <= 40 else f"{text[:12]}..."


def refuse_other_data(start: Start) -> None:
    """Refuse to resume a run on data other than it was started with.

    A run that did not keep its manifest can only be compared by the hash.
    """
    folder, now, sha256 = start.folder, start.data, start.arguments.get(_OF_THE_DATA)
    was_sha256 = files.read_json(folder / ARGUMENTS).get(_OF_THE_DATA)
    was = _manifest_of(folder, now["settings"]["dataset"], was_sha256)
    differs = differences(was, now) if was else []
    if (sha256 and sha256 == was_sha256) or (not sha256 and not differs):
        return
    raise UserError(
        "run",
        f"{folder.name} was trained on other data ({'; '.join(differs) or 'retokenized since'})",
        "choose another run name and another dataset name, or set restart"
        + ("" if sha256 else " and overwrite"),
    )


def _manifest_of(folder: Path, dataset: str, sha256: str | None) -> dict[str, Any] | None:
    """Return the manifest a run was started with: its copy, else the dataset's if unchanged."""
    if (folder / DATASET).is_file():
        return files.read_json(folder / DATASET)
    data = paths.tokenized(dataset)
    return files.read_json(data / files.MANIFEST) if tokenized.sha256(data) == sha256 else None


def planned_data(settings: TokenizeSettings) -> dict[str, Any]:
    """Return the part of a manifest that is known before 01_tokenize runs."""
    files_of = {"train_file": {"": settings.train_file}, "eval_file": settings.eval_files}
    sources = {
        _FILES[parameter]: _source(parameter, named) if named else None
        for parameter, named in files_of.items()
    }
    return {**sources, "settings": settings.as_dict()}


def replaced(settings: TokenizeSettings) -> list[str]:
    """Say in a sentence what 01_tokenize replaces; none for a new dataset, or the same again.

    Refuse if runs were trained on it, unless `overwrite` is set.
    """
    data = paths.tokenized(settings.dataset)
    was = files.read_json(data / files.MANIFEST) if (data / files.MANIFEST).is_file() else None
    differs = differences(was, planned_data(settings)) if was else []
    if not was or not differs:
        return []
    what, trained = "; ".join(differs), _trained_on(was)
    if trained and not settings.overwrite:
        more = f" and {len(trained) - 1} more were" if len(trained) > 1 else " was"
        raise UserError(
            "dataset",
            f"{settings.dataset} would be replaced ({shorten(what, 48)}), "
            f"and {trained[0]}{more} trained on it",
            "choose another dataset name, or set overwrite",
        )
    after = f"; 03 can't evaluate {', '.join(trained)} any more" if trained else ""
    return [f"{paths.short(data)} is replaced ({what}){after}"]


def _trained_on(manifest: Mapping[str, Any]) -> list[str]:
    """List the runs that made a step on a dataset: if it is replaced, 03 can't evaluate them and
    02 can't resume them."""
    return [
        kept.parent.name
        for kept in sorted((paths.root() / "runs").glob(f"*/{DATASET}"))
        if files.read_json(kept) == manifest
        and not is_trial(kept.parent)
        and state_of(kept.parent) != "new"
    ]


def _source(parameter: str, named: Mapping[str, str]) -> dict[str, str]:
    source = sources.find_all(parameter, named)
    return {"path": source.label, "sha256": source.sha256()}


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences between two manifests' texts, settings and versions, in words."""
    texts = {name: _text_change(was[key], now[key]) for name, key in _FILES.items()}
    old, new = (settings_of_data(of) for of in (was, now))
    return [
        *filter(None, texts.values()),
        *(
            f"{name} {_shown(value)} -> {_shown(new.get(name))}"
            for name, value in old.items()
            if value != new.get(name) and not texts.get(name)
        ),
        *(
            f"tokenized by {name} {version}, now {installed}"
            for name, version in was["versions"].items()
            if version != (installed := importlib.metadata.version(name))
        ),
    ]


def settings_of_data(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a dataset was made with, those that did not exist then included:
    their defaults are what was done."""
    plain = {k: v for k, v in TokenizeSettings().as_dict().items() if k != "overwrite"}
    return plain | manifest["settings"]


def _text_change(was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    if (was and was["sha256"]) == (now and now["sha256"]):
        return ""
    old, new = (source["path"] if source else "none" for source in (was, now))
    return f"{old} has changed" if old == new else f"{old} -> {new}"
