"""A model's configuration: loaded, or its config.json alone, and the positions that it knows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoxkit.errors import UserError
from neoxkit.files import read_json
from neoxkit.models import hub, tiny
from neoxkit.models.model_names import cannot_load, local_folder, resolve, revision, split
from neoxkit.settings import TINY

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def config_of(name: str) -> "PretrainedConfig":
    """Load a model's configuration."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            resolve(name),
            revision=revision(name),
            trust_remote_code=False,
        )
    except Exception as fault:  # whatever a value in config.json leads to
        raise cannot_load(name, "model", fault) from fault


def check_positions(most: int | None, block_size: int) -> None:
    """Refuse a block size above the number of positions that a model knows."""
    if most and block_size > most:
        raise UserError(
            "block_size", f"{block_size} is above the model's {most} positions", "lower it"
        )


def positions(config: "PretrainedConfig") -> int | None:
    """Return how many positions a model knows; None for a family without a limit."""
    return getattr(config, "max_position_embeddings", None)


def by_file(name: str) -> dict[str, Any]:
    """Return what a model's config.json holds, if it is on this machine, else nothing; refuse one
    that names no family."""
    file = config_file(name)
    if not file:
        return {}
    try:
        config = read_json(file)
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ValueError("no model_type")
    except ValueError as fault:
        raise cannot_load(name, "model", fault) from fault
    return config


def positions_by_files(name: str) -> int | None:
    """Return the positions by a model's config.json alone, if it is on this machine."""
    config = by_file(name)
    most = config.get("max_position_embeddings") or config.get("n_positions")
    is_number = isinstance(most, int | None)
    return most if is_number else positions(config_of(name))  # transformers says what is wrong


def config_file(name: str) -> Path | None:
    """Return a model's config.json, if it is on this machine."""
    place, commit = split(name)
    folder = tiny.place() if place == TINY else local_folder(place)
    if not folder and commit:
        folder = hub.snapshot(resolve(place), commit)
    file = folder and folder / "config.json"
    return file if file and file.is_file() else None
