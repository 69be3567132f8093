"""A model's revisions on the hub: the commit of one, its files, and what the cache here holds."""

import functools
import re
from collections.abc import Collection
from pathlib import Path

from neoxkit.errors import UserError
from neoxkit.models import weights

MAIN = "main"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@functools.cache
def commit(place: str, revision: str) -> str:
    """Return the commit that a branch or tag of `owner/name` means, asked once per process.

    Without a network it is the one that the cache has noted. The hub client's errors pass.
    """
    from huggingface_hub import HfApi

    return HfApi().resolve_revision(place, revision=revision or None).resolved


def snapshot(place: str, commit: str) -> Path:
    """Return the folder in the cache with the files of a commit; it may lack some, or all."""
    return _cache(place) / "snapshots" / commit


def _cache(place: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=place, repo_type="model")


def is_whole(folder: Path) -> bool:
    """Return whether a snapshot has all the weights that transformers would load."""
    try:
        return bool(weights.files(folder))
    except UserError:
        return False


def file_hashes(place: str, commit: str) -> dict[str, str]:
    """Return the files of a commit with the hashes under which the cache would keep them.

    The hub is asked only if the cache lacks some of the weights. The client's errors pass.
    """
    folder = snapshot(place, commit)
    if is_whole(folder):
        return _cached_hashes(folder)
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(place, revision=commit, files_metadata=True).siblings or []
    except Exception:  # the client's network library, and with it its errors, has changed
        if any(folder.glob(weights.PICKLED)):
            return _cached_hashes(folder)
        raise
    return {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id or "" for one in found}


def _cached_hashes(folder: Path) -> dict[str, str]:
    """Return the files of a snapshot with their hashes: each is a link to a file named by its hash;
    a cache without links gives none ("")."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.readlink().name if file.is_symlink() else "" for file in sorted(files)}


def weight_names(files: Collection[str]) -> list[str]:
    """Return those of a model's files whose weights transformers loads: one whole, or shards.

    >>> weight_names(["config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
    ['model-00001-of-00002.safetensors']
    """
    whole = [name for name in files if name == weights.WHOLE]
    return whole or sorted(name for name in files if _SHARD.fullmatch(name))


def same_weights(place: str, commit: str) -> list[str]:
    """Name the other revisions in the cache, of this or another model, whose weights are the same
    bytes: `owner/name@revision`. No weight is read: the cache names files by their hashes."""
    mine = _weight_hashes(file_hashes(place, commit))
    return [
        f"{other}@{known_as(other, folder.name)}"
        for other, folder in _snapshots()
        if mine and (other, folder.name) != (place, commit)
        if _weight_hashes(_cached_hashes(folder)) == mine
    ]


def _weight_hashes(files: dict[str, str]) -> list[str]:
    """Return the hashes of the weights; none if one is not known."""
    found = [files[name] for name in weight_names(files)]
    return sorted(found) if all(found) else []


def _snapshots() -> list[tuple[str, Path]]:
    """Return every model's revisions in the cache, as `owner/name` and folder."""
    from huggingface_hub import constants

    folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/"))
    return [
        (folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder)
        for folder in folders
    ]


def known_as(place: str, commit: str) -> str:
    """Return the branch or tag by which the cache knows a commit (main first), else the commit."""
    refs = _cache(place) / "refs"
    files = [file for file in refs.rglob("*") if file.is_file()] if refs.is_dir() else []
    names = [
        file.relative_to(refs).as_posix() for file in files if file.read_text().strip() == commit
    ]
    return min(names, key=lambda name: (name != MAIN, name), default=commit)


def revisions_here(place: str) -> list[str]:
    """Return the revisions of a model that the cache holds with all their weights."""
    folders = _cache(place).glob("snapshots/*/")
    names = {known_as(place, folder.name) for folder in folders if is_whole(folder)}
    return sorted(names, key=lambda name: (name != MAIN, _by_number(name)))


def _by_number(name: str) -> tuple[str, int]:
    """Sort step512 before step1000."""
    text = name.rstrip("0123456789")
    return text, int(name[len(text) :] or 0)
