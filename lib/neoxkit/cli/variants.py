"""The runs of a sweep: which values each one gets, and its name."""

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoxkit import paths
from neoxkit.cli.parameters import known, own
from neoxkit.errors import UserError
from neoxkit.settings import EvaluateSettings, TrainSettings

MOST_CHARACTERS = 80  # in a run's name: with ".range-check-1.0e-03" added it must still be valid


@dataclass(frozen=True)
class Variant:
    """One run of a sweep: the parameters of its `neoxkit run`, and its 02 settings."""

    parameters: dict[str, Any]
    settings: TrainSettings

    @property
    def folder(self) -> Path:
        return paths.run(self.settings.run)


def variants(
    fixed: Mapping[str, Any],
    swept: Mapping[str, Sequence[Any]],
    paired: bool = False,
    notebooks: Sequence[str] = (TrainSettings.notebook,),
) -> list[Variant]:
    """Return the runs of a sweep: all combinations of the swept values, or (`paired`) the n-th of
    each.

    `fixed["run"]` is the sweep's name, with which its runs' names begin; the others are parameters
    of the notebooks that are run.

    >>> made = variants({"run": "lr"}, {"learning_rate": [1e-5, 3e-5]})
    >>> [v.settings.run for v in made]
    ['lr.learning_rate=1e-05', 'lr.learning_rate=3e-05']
    """
    if not swept:
        what = "no parameter has several values"
        raise UserError("-p", what, "give for example -p learning_rate 1e-5,3e-5")
    if paired and len({len(values) for values in swept.values()}) > 1:
        counts = ", ".join(f"{len(values)} of {name}" for name, values in swept.items())
        raise UserError("--paired", f"got {counts}", "give the same number of each")
    together = zip(*swept.values(), strict=True) if paired else itertools.product(*swept.values())
    if "run" in swept:
        raise UserError("run", "has several values", "give one, the sweep's own name")
    paths.check_name("run", fixed["run"])
    for name in {**fixed, **swept}:
        _check_name(name, notebooks)
    shown = _values_in_names(swept)
    made = [_variant(fixed, dict(zip(swept, values, strict=True)), shown) for values in together]
    names = [variant.settings.run for variant in made]
    if twice := {name for name in names if names.count(name) > 1}:
        what = f"two runs would be named {twice.pop()}"
        raise UserError("-p", what, "give each value once, and let letters or digits differ")
    return made


def _values_in_names(swept: Mapping[str, Sequence[Any]]) -> dict[Any, Any]:
    """Return how the names of runs write a model: without its owner, or the folders above it, if
    the models still differ."""
    models = swept.get("model_name_or_path", ())
    short = {model: Path(model).name for model in models}
    return short if len({*short.values()}) == len(models) else {}


def _variant(
    fixed: Mapping[str, Any], chosen: Mapping[str, Any], shown: Mapping[Any, Any]
) -> Variant:
    values = {
        name: shown.get(value, value) if name == "model_name_or_path" else value
        for name, value in chosen.items()
    }
    given = {**fixed, **chosen, "run": _name(fixed["run"], values)}
    return Variant(given, TrainSettings(**own(TrainSettings, given)))


def _check_name(name: str, notebooks: Sequence[str]) -> None:
    """Refuse what is not a parameter of the notebooks, and what makes no sense in a sweep."""
    stages = [s for s in (TrainSettings, EvaluateSettings) if s.notebook in notebooks]
    if name not in ("run", *known(stages)):
        what = f"is not a parameter of {' or '.join(notebooks)}"
        raise UserError(name, what, "name its notebook, or tokenize into several datasets first")
    if name == "restart":
        what = "would restart every run each time"
        raise UserError(name, what, "give the sweep another run name")
    if name == "hub_model_id":
        raise UserError(name, "would push every run to the same place", "push the best one")
    if name == "side":
        what = "would have every run look at the test side, to choose by it"
        raise UserError(name, what, "leave it out, and run 03_evaluate with it of the chosen run")


def _name(sweep: str, chosen: Mapping[str, Any]) -> str:
    """Name the run of a variant by its swept values, cut if that would be too long."""
    parts = [f"{name}={value}" for name, value in chosen.items()]
    name = ".".join([sweep, *(re.sub(r"[^\w.+=-]+", "-", part) for part in parts)])
    if len(name) <= MOST_CHARACTERS:
        return name
    return f"{name[: MOST_CHARACTERS - 9]}-{zlib.crc32(name.encode()):08x}"
