"""Write a model's weights as safetensors: from pickles, or without the prefix of a wrapper.

Pickles are read in a separate process, for tensors alone (`weights_only`) and without the hub.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import UserError, shorten
from neoxkit.models import hub, loading, model_names, weights
from neoxkit.models.sharing import OFFLINE

# What else a model's folder holds, besides weights and lists of their files.
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")


def convert(name: str) -> Path:
    """Write data/models/<name>-converted, which from_pretrained opens; return its path.

    `name` is a folder or a model on the hub (`owner/name@revision`), and stays as it is.
    """
    source = _source(name)
    _check_pickles(name, source)
    loading.without_weights(str(source))  # refuses a configuration that nothing can be loaded with
    target = paths.root() / "data" / "models" / f"{_in_one(name, source)}-converted"
    if target.exists():
        raise UserError("MODEL", f"{paths.short(target)} exists", "delete or rename it first")
    with files.whole_folder(target) as part:
        for file in {file for pattern in BESIDE for file in source.glob(pattern)}:
            if not file.name.endswith(".index.json"):
                shutil.copy(file, part)
        child = subprocess.run(
            [sys.executable, "-m", "neoxkit.models.convert", str(source), str(part)],
            env=os.environ | OFFLINE, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if child.returncode:
            why = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            remedy = "ask whoever made it for safetensors"
            raise UserError("MODEL", f"{name} can't be converted ({shorten(why, 70)})", remedy)
        try:
            loading.check_weights(str(part))
        except UserError as fault:
            what = fault.what.replace(paths.short(part), name)
            remedy = "use weights and a config.json that belong together"
            raise UserError("MODEL", what, remedy) from None
    return target


def _check_pickles(name: str, source: Path) -> None:
    """Refuse a folder without weights, and files that torch has not written or that are cut."""
    if any(source.glob("*.safetensors")):
        return
    found = sorted(source.glob(weights.PICKLED))
    if not found:
        what = f"{name} has no {weights.WHOLE} and no {weights.PICKLED}"
        raise UserError("MODEL", what, "name a folder that holds weights")
    for file in found:
        with file.open("rb") as opened:
            start = opened.read(30)
        what = f"{file.name} of {name}"
        if start.startswith(b"version https://git-lfs"):
            raise UserError("MODEL", f"{what} is a Git LFS pointer", "run git lfs pull")
        is_whole = zipfile.is_zipfile(file) if start.startswith(b"PK") else start[:1] == b"\x80"
        if not is_whole:
            what = f"{what} is cut short or damaged ({file.stat().st_size:,} bytes)"
            raise UserError("MODEL", what, "copy or download it again")


def _in_one(name: str, source: Path) -> str:
    """Return a name for a copy: that of the folder, with its run's or owner's before it."""
    is_folder = model_names.local_folder(name) is not None
    parts = source.parts if is_folder else Path(name).parts
    alone = is_folder and source.name != "model"
    return re.sub(r"[^\w.+=-]+", "-", "-".join(parts[-1:] if alone else parts[-2:]))


def _source(name: str) -> Path:
    """Return the folder with the model's files, downloaded if need be."""
    if folder := model_names.local_folder(name):
        return folder
    from huggingface_hub import snapshot_download

    place, commit = model_names.split(model_names.pinned(name))
    try:
        has_whole = any(f.endswith(".safetensors") for f in hub.file_hashes(place, commit))
        wanted = [*BESIDE, "*.safetensors" if has_whole else weights.PICKLED]
        return Path(snapshot_download(place, revision=commit, allow_patterns=wanted))
    except Exception as fault:  # the client's network library, and with it its errors, has changed
        raise model_names.cannot_load(name, "model", fault) from fault


def _read(folder: Path) -> dict[str, Any]:
    """Return all tensors of a folder by name."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob(weights.PICKLED)):
        if file.suffix == ".safetensors":
            held: Any = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
        tensors |= _tensors(held)
    if not tensors:
        sys.exit("it holds no tensors by name")
    return tensors


def _tensors(held: Any) -> dict[str, Any]:
    """Return the tensors of a file; of a trainer's checkpoint, the mapping with most of them."""
    import torch

    found = [held, *held.values()] if isinstance(held, Mapping) else []
    named = [
        {key: v for key, v in one.items() if isinstance(v, torch.Tensor)}
        for one in found
        if isinstance(one, Mapping)
    ]
    return max(named, key=len, default={})


def _without_prefix(tensors: Mapping[str, Any], expected: set[str]) -> dict[str, Any]:
    """Return the tensors by the model's names, where a name without its prefix is one of them."""
    found = {
        key: next((name for name in weights.unwrapped(key) if name in expected), "")
        for key in tensors
    }
    prefixes = {key.removesuffix(name) for key, name in found.items() if name}
    # For names that transformers renames as it loads (embed_out), which are not the model's.
    longest = sorted(prefixes, key=len, reverse=True)
    named = {
        found[key] or key.removeprefix(next(filter(key.startswith, longest), "")): tensor
        for key, tensor in tensors.items()
    }
    if len(named) < len(tensors):
        sys.exit("two of its tensors have one name without the prefix")
    return named


def main(source: Path, target: Path) -> None:
    """Write the weights of one folder into another, which has the configuration already."""
    from huggingface_hub import save_torch_state_dict

    expected = {*loading.without_weights(str(target)).state_dict()}
    save_torch_state_dict(_without_prefix(_read(source), expected), target)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except pickle.UnpicklingError:
        sys.exit("it holds more than tensors, which might run code")
