"""Why a model or a tokenizer can't be loaded, from what transformers and the hub raise."""

from pathlib import Path

from neoxkit import hub_faults, paths
from neoxkit.errors import UserError, shorten
from neoxkit.files import read_json

NO_SAFETENSORS = "does not appear to have a file named model.safetensors"  # transformers says


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
    if any(NO_SAFETENSORS in str(cause) for cause in hub_faults.chain(fault)):
        return f"{name} has no model.safetensors on the hub", f"neoxkit convert {name}"
    said = f"the {what} {name!r} can't be loaded ({shorten(str(fault), 90)})"
    return hub_faults.explain(name, fault) or (said, "use another model")


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
