"""Write a model's weights as safetensors: from pickles, or without the prefix of a wrapper.

Pickles are read in a separate process, for tensors alone (`weights_only`) and without the hub.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.errors import UserError
from neoxkit.models import loading, weights

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# What else a model's folder holds, besides weights and lists of their files.
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")


def convert(name: str) -> Path:
    """Write data/models/<name>-converted, which from_pretrained opens; return its path.

    `name` is a folder or a model on the hub, and stays as it is.
    """
    source = _source(name)
    target = paths.root() / "data" / "models" / f"{Path(name).name}-converted"
    if target.exists():
        raise UserError("MODEL", f"{paths.short(target)} exists", "use it, or delete it first")
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
            raise UserError("MODEL", f"{name} can't be converted ({why})", remedy)
        loading.check_weights(str(part))
    return target


def _source(name: str) -> Path:
    """Return the folder with the model's files, downloaded if need be."""
    if folder := loading.local_folder(name):
        return folder
    from huggingface_hub import snapshot_download

    wanted = [*BESIDE, weights.PICKLED]
    try:
        return Path(snapshot_download(loading.resolve(name), allow_patterns=wanted))
    except OSError as fault:
        raise loading.cannot_load(name, "model", fault) from fault


def _read(folder: Path) -> dict[str, Any]:
    """Return all tensors of a folder by name; refuse a file that holds anything else."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob(weights.PICKLED)):
        if file.suffix == ".safetensors":
            held: Any = load_file(file)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True)
        while len(inside := [v for v in held.values() if isinstance(v, Mapping)]) == 1:
            held = inside[0]  # a trainer's checkpoint: the weights among other things
        tensors |= {key: v for key, v in held.items() if isinstance(v, torch.Tensor)}
    return tensors


def _without_prefix(tensors: Mapping[str, Any], expected: set[str]) -> dict[str, Any]:
    """Return the tensors by the names that fit the model best."""
    named = (
        {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        for prefix in ("", *weights.WRAPPERS)
    )
    return max(named, key=lambda one: len(expected & one.keys()))


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
