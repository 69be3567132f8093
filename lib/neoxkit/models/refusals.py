"""Why a model or a tokenizer can't be loaded, from what transformers and the hub raise."""

from pathlib import Path

from neoxkit import hub_faults, paths
from neoxkit.errors import UserError, shorten
from neoxkit.files import read_json
from neoxkit.models import hub

NO_SAFETENSORS = "does not appear to have a file named model.safetensors"  # transformers says
_NAMED = 3  # revisions


def explain(name: str, folder: Path | None, what: str, fault: Exception) -> UserError:
    """Return the refusal of a name that means a folder here, or a model on the hub (None), there
    with its revision if it is not main.

    `what`: "model", "tokenizer" or "weights". No cause is guessed: what is not known is quoted.
    """
    if folder:
        return UserError("model_name_or_path", *_of_a_folder(folder, what, fault))
    where = "revision" if "@" in name else "model_name_or_path"
    return UserError(where, *_of_the_hub(name, what, fault))


def _of_the_hub(name: str, what: str, fault: Exception) -> tuple[str, str]:
    if any(NO_SAFETENSORS in str(cause) for cause in hub_faults.chain(fault)):
        return f"{name} has no model.safetensors on the hub", f"neoxkit convert {name}"
    place, _, revision = name.partition("@")
    if "RevisionNotFoundError" in hub_faults.kinds(fault):
        said = f"{place} has no revision {revision or hub.MAIN} on the hub"
        return said, "see its branches there"
    missing = f"a part of {name}" if what == "weights" else name
    if is_other := _not_causal(fault):
        return f"{name} {is_other[0]}", is_other[1]
    said = f"the {what} {name!r} can't be loaded ({said_by(fault)})"
    known = hub_faults.explain(name, fault, missing, _otherwise(place))
    return known or (said, "use another model")


def _otherwise(place: str) -> str:
    """Name the revisions of a model that need no network."""
    here = hub.revisions_here(place)
    more = f" and {len(here) - _NAMED} more" if len(here) > _NAMED else ""
    listed = f"use a revision that is here: {', '.join(here[:_NAMED])}{more}"
    return listed if here else "give a folder"


def _of_a_folder(folder: Path, what: str, fault: Exception) -> tuple[str, str]:
    from transformers import CONFIG_MAPPING, __version__

    place = paths.short(folder)
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        return f"{place} has no config.json", "give the folder of a saved model"
    except ValueError:
        return f"{place}/config.json is not JSON", "copy it again"
    family = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(family, str):
        return f"{place}/config.json names no model_type", "copy the config.json of the base"
    if family not in CONFIG_MAPPING:
        said = f"{place} is a {family}, which transformers {__version__} doesn't know"
        return said, "use GPT-NeoX, GPT-Neo or another family that it knows"
    if is_other := _not_causal(fault):
        return f"{place} {is_other[0]}", is_other[1]
    if damaged := _damaged(folder):
        return damaged
    if what == "tokenizer" and not any(folder.glob("tokenizer.*")):
        lacks = f"{place} has no tokenizer in its folder (tokenizer.json)"
        return lacks, "copy the tokenizer files of its base there"
    said = f"the {what} in {place} can't be loaded ({said_by(fault)})"
    return said, "correct what is named in brackets, or copy the folder again"


def _not_causal(fault: Exception) -> tuple[str, str] | None:
    """Tell a model of another kind, and one that needs code of its own; None for other faults."""
    if "Unrecognized configuration class" in str(fault):
        return "is not a causal language model", "use GPT-NeoX, GPT-Neo or another one"
    if "custom code" in str(fault):
        what = "needs code of its own, which the kit does not run"
        return what, "use GPT-NeoX, GPT-Neo or another family that transformers knows"
    return None


def _damaged(folder: Path) -> tuple[str, str] | None:
    """Name a JSON file of a model's folder that is a Git LFS pointer, or is not JSON."""
    for file in sorted(folder.glob("*.json")):
        with file.open("rb") as opened:
            is_pointer = opened.read(30).startswith(b"version https://git-lfs")
        if is_pointer:
            return f"{paths.short(file)} is a Git LFS pointer, not the file", "run git lfs pull"
        try:
            read_json(file)
        except ValueError:
            return f"{paths.short(file)} is not JSON", "copy it again"
    return None


def said_by(fault: Exception, most: int = 90) -> str:
    """Return what a fault says in a line: its second one, if the first only announces it."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [""]
    return shorten(lines[1] if lines[0].endswith(":") and lines[1:] else lines[0], most)
