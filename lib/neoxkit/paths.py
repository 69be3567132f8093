"""Where things are: the kit's root folder and the folders below it."""

import os
import re
from pathlib import Path

from neoxkit.errors import UserError


def root() -> Path:
    """The folder that holds notebooks/ and ds_configs/.

    `NEOXKIT_HOME` wins; then the checkout this package was installed from; then the nearest such
    folder at or above the working directory.
    """
    if home := os.environ.get("NEOXKIT_HOME"):
        return Path(home).resolve()
    here = Path(__file__).resolve().parents[2]
    for folder in (here, Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "ds_configs").is_dir():
            return folder
    raise UserError(
        "NEOXKIT_HOME",
        "no folder with notebooks/ and ds_configs/ was found",
        "set it to the checkout",
    )


def find(parameter: str, value: str) -> Path:
    """An existing file or folder named by a parameter.

    A relative path is looked for in the working directory first, then below the root, so that the
    same value works in JupyterLab, under papermill and at a shell.
    """
    path = Path(value).expanduser()
    places = [path] if path.is_absolute() else [Path.cwd() / path, root() / path]
    for place in places:
        if place.exists():
            return place.resolve()
    looked = " or ".join(dict.fromkeys(short(place.parent) for place in places))
    raise UserError(parameter, f"{value!r} does not exist in {looked}", "check the path")


def tokenized(dataset: str) -> Path:
    """data/tokenized/<dataset>, whether or not it exists."""
    return root() / "data" / "tokenized" / check_name("dataset", dataset)


def run(name: str) -> Path:
    """runs/<run>, whether or not it exists."""
    return root() / "runs" / check_name("run", name)


def check_name(parameter: str, name: str) -> str:
    """The name of a run or dataset, refused where it could leave its folder."""
    if not re.fullmatch(r"[\w][\w.+=-]{0,99}", name):
        raise UserError(
            parameter,
            f"{name!r} is not a name",
            "use letters, digits and _ . + = - (at most 100, no slash)",
        )
    return name


def short(path: Path) -> str:
    """A path as people want to read it: relative to the root where it is below it.

    >>> short(root() / "runs" / "demo")
    'runs/demo'
    """
    path = Path(path)
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)
