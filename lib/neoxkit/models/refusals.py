"""Why a model or a tokenizer can't be loaded, from what transformers and the hub raise."""

from collections.abc import Iterator
from pathlib import Path

from neoxkit import paths
from neoxkit.errors import UserError, shorten
from neoxkit.files import read_json

NO_SAFETENSORS = "does not appear to have a file named model.safetensors"  # transformers says
# Errors of huggingface_hub: the kind, what it means for a name, and what to do.
_HUB_FAULTS = (
    ("GatedRepoError", "is gated on the hub", "accept its terms there, and hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or is private", "check the name"),
    ("RevisionNotFoundError", "has no such revision on the hub", "see its branches there"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub can't be reached",
     "connect to the network, or give a folder"),
    ("OfflineModeIsEnabled", "is not in the cache, and HF_HUB_OFFLINE is set",
     "unset it, or give a folder"),
)  # fmt: skip


def explain(name: str, folder: Path | None, what: str, fault: Exception) -> UserError:
    """Return the refusal of a name that means a folder here, or a model on the hub (None).

    `what`: "model" or "tokenizer". No cause is guessed: what is not known is quoted.
    """
    if isinstance(fault, UserError):
        return fault
    return UserError(
        "model_name_or_path",
        *(_of_a_folder(folder, what, fault) if folder else _of_the_hub(name, what, fault)),
    )


def _of_the_hub(name: str, what: str, fault: Exception) -> tuple[str, str]:
    causes = [*_chain(fault)]
    if any(NO_SAFETENSORS in str(cause) for cause in causes):
        return f"{name} has no model.safetensors on the hub", f"neoxkit convert {name}"
    kinds = {type(cause).__name__ for cause in causes}
    for kind, said, remedy in _HUB_FAULTS:
        if kind in kinds:
            return f"{name} {said}", remedy
    return f"the {what} {name!r} can't be loaded ({shorten(str(fault), 90)})", "use another model"


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    while fault:
        yield fault
        fault = fault.__cause__ or fault.__context__


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
    said = f"the {what} in {place} can't be loaded ({shorten(str(fault), 90)})"
    return said, "correct what is named in brackets, or copy the folder again"
