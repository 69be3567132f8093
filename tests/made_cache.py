"""A hub cache as huggingface_hub leaves it: files named by their hashes, revisions that link there.

Models in it are copies of the built-in one; no network is needed to load them.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save

from neoxkit.models import hub
from neoxkit.models.tiny import tiny_folder


class Cache:
    """A cache in a folder, which the hub's client uses, offline."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_CACHE", str(folder))  # for child processes
        patch.setenv("HF_HUB_OFFLINE", "1")
        hub.commit.cache_clear()

    def add(self, place: str, revision: str, files: Mapping[str, bytes]) -> str:
        """Add a revision with these files; return its commit."""
        model = self.folder / f"models--{place.replace('/', '--')}"
        held = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        commit = hashlib.sha1(f"{place} {revision} {held}".encode()).hexdigest()
        snapshot = model / "snapshots" / commit
        for made in (snapshot, model / "blobs", (model / "refs" / revision).parent):
            made.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (model / "blobs" / held[name]).write_bytes(content)
            (snapshot / name).symlink_to(Path("../../blobs") / held[name])
        (model / "refs" / revision).write_text(commit)
        return commit


def model_files(step: int = 0) -> dict[str, bytes]:
    """Return the files of the built-in model; with each step other weights."""
    files = {file.name: file.read_bytes() for file in tiny_folder().iterdir()}
    tensors = load_file(tiny_folder() / "model.safetensors")
    moved = {name: tensor * (1 - step / 1000) for name, tensor in tensors.items()}
    return files | {"model.safetensors": save(moved, {"format": "pt"})}
