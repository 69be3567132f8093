"""Paths of the kit's root folder and of the folders below it."""

import json
import os
import re
import sys
from pathlib import Path

from neoxkit.errors import UserError, shorten


def root() -> Path:
    """Return the folder that contains notebooks/ and ds_configs/.

    `NEOXKIT_HOME` wins; then the checkout this package was installed from; then the nearest such
    folder at or above the working directory.
    """
    home = os.environ.get("NEOXKIT_HOME")
    here = Path(__file__).resolve().parents[2]
    for folder in [Path(home).resolve()] if home else (here, Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "ds_configs").is_dir():
            return folder
    what = f"{home} has no notebooks/ and ds_configs/" if home else "the kit's folder was not found"
    raise UserError("NEOXKIT_HOME", what, "set it to the checkout")


def other_python() -> str:
    """Say that this is not the Python of the kit's .venv; empty if it is, or if there is none.

    It may be meant: the kit can be installed anywhere.
    """
    own = root() / ".venv"
    if not (own / "bin" / "python").exists() or Path(sys.prefix).resolve() == own.resolve():
        return ""
    return f"this is {sys.executable}, not the Python of {own}: see neoxkit doctor"


def find(parameter: str, value: str, file: bool = True) -> Path:
    """Return the existing file (or, with `file` False, folder) that a parameter names.

    Search for a relative path in the places of `candidates`: the same value works in JupyterLab,
    under papermill and in a shell.
    """
    if "://" in value:
        what, remedy = f"{value!r} is an address, not a path", "write owner/name for the hub"
        raise UserError(parameter, what, remedy)
    tried = candidates(value)
    for place in tried:
        if place.is_file() if file else place.is_dir():
            return place.resolve()
    if any(place.exists() for place in tried):
        is_, isnt = ("a folder", "a file") if file else ("a file", "a folder")
        raise UserError(parameter, f"{value!r} is {is_}, not {isnt}", "check the path")
    looked = " or ".join(dict.fromkeys(str(place.parent) for place in tried))
    raise UserError(parameter, f"{value!r} does not exist in {looked}", "check the path")


def candidates(value: str) -> list[Path]:
    """Return the possible places of a relative path: below the working directory, the root, or
    notebooks/, where uploaded files end up."""
    path = Path(value).expanduser()
    around = [Path.cwd(), root(), root() / "notebooks"]
    return [*dict.fromkeys(folder / path for folder in around)]  # an absolute one is itself


def ds_config(parameter: str, value: str) -> Path:
    """Return the path of a DeepSpeed configuration: a name in ds_configs/, or any JSON file."""
    named = root() / "ds_configs" / f"{value}.json"
    if "/" not in value and not value.endswith(".json") and not named.is_file():
        known = ", ".join(sorted(p.stem for p in named.parent.glob("*.json")))
        raise UserError(parameter, f"{value!r} is not in ds_configs/", f"choose {known}, or a path")
    path = named if named.is_file() else find(parameter, value)
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        where = f"{short(path)}:{getattr(fault, 'lineno', 1)}"
        raise UserError(where, "is not JSON", shorten(str(fault))) from None
    return path


def tokenized(dataset: str) -> Path:
    """Return data/tokenized/<dataset>, whether or not it exists."""
    return root() / "data" / "tokenized" / check_name("dataset", dataset)


def run(name: str) -> Path:
    """Return runs/<run>, whether or not it exists."""
    return root() / "runs" / check_name("run", name)


def check_name(parameter: str, name: str) -> str:
    """Return the name of a run or dataset; refuse one that could leave its folder."""
    if not re.fullmatch(r"[\w][\w.+=-]{0,99}", name):
        raise UserError(
            parameter,
            f"{name!r} is not a name",
            "use letters, digits and _ . + = - (at most 100, no slash)",
        )
    return name


PACKED = (".gz", ".zst", ".zstd")  # the last end of a packed file's name


def stem(name: str) -> str:
    """Return a file's name without its ends.

    >>> stem("my.talks.jsonl.gz"), stem("talks")
    ('my.talks', 'talks')
    """
    path = Path(name)
    return path.with_suffix("").stem if path.suffix.lower() in PACKED else path.stem


def short(path: Path) -> str:
    """Shorten a path for people: relative to the root if it is below the root.

    >>> short(root() / "runs" / "demo")
    'runs/demo'
    """
    path = Path(path)
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)
