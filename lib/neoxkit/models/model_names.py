"""Which model a name means: the built-in one, a folder here, or a commit on the hub."""

import os
from pathlib import Path

from neoxkit import hub_faults, paths
from neoxkit.errors import UserError
from neoxkit.models import hub, refusals
from neoxkit.models.tiny import tiny_folder
from neoxkit.settings import TINY

_SHORT_NAMES = ("pythia-", "gpt-neo-", "gpt-neox-")


def resolve(name: str) -> str:
    """Return the folder or hub name that `from_pretrained` opens.

    >>> resolve("pythia-70m-deduped")
    'EleutherAI/pythia-70m-deduped'
    """
    name, _ = split(name)
    if name == TINY:
        return str(tiny_folder())
    if folder := local_folder(name):
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        paths.find("model_name_or_path", name)  # refuses it
    if "/" not in name and name.startswith(_SHORT_NAMES):
        return _on_the_hub(f"EleutherAI/{name}")
    if "/" not in name:
        raise UserError(
            "model_name_or_path",
            f"{name!r} is not a folder here",
            "use tiny, a folder, or owner/name",
        )
    return _on_the_hub(name)


def _on_the_hub(name: str) -> str:
    """Return a hub name unchanged; prepare the hub's client for it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        what = f"{name!r} is neither a folder here nor a name on the hub"
        raise UserError("model_name_or_path", what, "write owner/name, or check the path") from None
    hub_faults.prepare_client()
    return name


def at(name: str, revision: str) -> str:
    """Return the name of a model at a revision, as the kit and hf:// paths write it.

    Refuse a revision of a model on this machine, and a second one.

    >>> at("EleutherAI/pythia-70m", "step3000"), at("tiny", "")
    ('EleutherAI/pythia-70m@step3000', 'tiny')
    """
    place, also = split(name)
    if also and place != TINY:
        remedy = f"give {place} alone, and set revision to {also}"
        raise UserError("model_name_or_path", f"got {name!r}", remedy)
    if (revision or also) and (place == TINY or local_folder(name)):
        what = f"{portable(place)} is on this machine: only models on the hub have revisions"
        raise UserError("revision", what, "leave it out")
    return f"{name}@{revision}" if revision else name


def split(name: str) -> tuple[str, str]:
    """Return a model's name and its revision, which is empty for main and for a folder.

    >>> split("EleutherAI/pythia-70m@step3000")
    ('EleutherAI/pythia-70m', 'step3000')
    """
    if local_folder(name):
        return name, ""
    place, _, revision = name.partition("@")
    return place, revision


def pinned(name: str) -> str:
    """Return a model's name at the commit that its revision means; that of a folder as it is."""
    place, revision = split(name)
    if place == TINY or local_folder(place):
        return name
    place = resolve(place)
    try:
        return f"{place}@{hub.commit(place, revision)}"
    except Exception as fault:  # the client's network library, and with it its errors, has changed
        raise cannot_load(name, "model", fault) from fault


def same_weights(name: str) -> list[str]:
    """Say in a sentence which other revisions in the hub's cache here have the same weights; say
    nothing for a folder."""
    place, commit = split(pinned(name))
    if not commit:
        return []
    try:
        same = hub.same_weights(place, commit)
    except Exception as fault:  # the client's network library, and with it its errors, has changed
        raise cannot_load(name, "weights", fault) from fault
    more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
    mine = f"{place}@{hub.known_as(place, commit)}"
    return [f"{mine} has the weights of {same[0]}{more}, byte for byte"] if same else []


def _in_full(name: str) -> str:
    """Return a hub model's name with its owner, and its revision if it has one."""
    place, revision = split(name)
    if place == TINY or local_folder(place):
        return name
    return f"{resolve(place)}@{revision}" if revision else resolve(place)


def revision(name: str) -> str:
    """Return the revision to give to `from_pretrained`."""
    return split(name)[1] or hub.MAIN


def local_folder(name: str) -> Path | None:
    """Return the folder on this machine that a model's name means, or None."""
    # Path.is_dir would raise for a name that is too long.
    found = (path for path in paths.candidates(name) if name and os.path.isdir(path))  # noqa: PTH112
    return next((path.resolve() for path in found), None)


def base_name(name: str) -> str:
    """Return a model's name as a run records it, beside its revision."""
    place = portable(split(name)[0])
    return place if place == TINY or local_folder(place) else resolve(name)


def portable(name: str) -> str:
    """Return a model's name in portable form: a folder below the root becomes relative to it, and
    a commit on the hub goes by the name that it has in the cache."""
    folder = None if name == TINY else local_folder(name)
    if folder:
        return paths.short(folder)
    place, revision = split(name)
    known = hub.known_as(resolve(place), revision) if revision else hub.MAIN
    return place if known == hub.MAIN else f"{place}@{known}"


def cannot_load(name: str, what: str, fault: Exception) -> UserError:
    """Explain why a "model", its "tokenizer" or its "weights" can't be loaded."""
    if isinstance(fault, UserError):
        return fault
    return refusals.explain(portable(_in_full(name)), local_folder(name), what, fault)
