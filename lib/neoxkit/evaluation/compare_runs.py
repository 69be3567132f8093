"""Compare runs by their files: what differs between them, and how far each one got."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neoxkit import files, paths
from neoxkit.errors import UserError, near
from neoxkit.launch import command
from neoxkit.runs import card as run_card
from neoxkit.runs import health
from neoxkit.runs.events import METRICS, Event, History
from neoxkit.runs.folder import ARGUMENTS, early, is_trial, standing_of

MADE_OF = ("dataset_sha256", "base_sha256")  # keys of a run card
LAST_START = (
    ("code", "commit"), ("code", "clean"), ("versions", "torch"), ("machine", "cpu"),
    ("machine", "gpus"),
)  # fmt: skip
AT_LAST_START = tuple(f"{part} {name}" for part, name in LAST_START)
MOST_IN_LABEL = 3  # settings


@dataclass(frozen=True)
class Run:
    """A run as its files describe it: its settings, what it was made of, and its history."""

    name: str
    folder: Path
    state: str
    settings: dict[str, Any]
    made_of: dict[str, Any]
    history: History

    @property
    def evals(self) -> list[Event]:
        """Its evaluations, without those whose loss is not a number."""
        return [e for e in self.history.evals if e["loss"] is not None]

    def trained_tokens(self, steps: Sequence[int]) -> np.ndarray:
        """Return the tokens trained on by each of these steps, interpolated linearly."""
        train = self.history.train
        at = [0, *(e["step"] for e in train)]
        return np.interp(steps, at, np.cumsum([0, *(e["trained_tokens"] for e in train)]))


def load_runs(names: Sequence[str]) -> list[Run]:
    """Load runs by name, pattern ("grid.*") or folder (copied from elsewhere); [] loads all here.

    A trial is loaded only by its name, not by a pattern. Runs of the same name, from several
    machines, are named by their folders.
    """
    folders = dict.fromkeys(folder for name in names or ["*"] for folder in _folders(name))
    found = [run for run in map(load_run, folders) if run.history.train]
    known = [run.name for run in found]
    return [
        replace(run, name=paths.short(run.folder)) if known.count(run.name) > 1 else run
        for run in found
    ]


def choose(names: Sequence[str]) -> tuple[list[Run], str]:
    """Load the runs of these names (load_runs), or with none those of one dataset, the newest
    run's; return them with a sentence that says which they are and what was left out."""
    found = load_runs(names)
    known = [run for run in found if run.made_of["dataset_sha256"]]
    if names or not known:
        return found, _count(len(found), "run")
    newest = max(known, key=lambda run: run.history.last["time"])
    data = newest.made_of["dataset_sha256"]
    chosen = [run for run in found if run.made_of["dataset_sha256"] == data]
    others = [run for run in known if run.made_of["dataset_sha256"] != data]
    said = f"{_count(len(chosen), 'run')} of the newest run's dataset, {_dataset(newest, others)}"
    return chosen, said + _left_out(len(others), len(found) - len(known))


def _dataset(run: Run, others: Sequence[Run]) -> str:
    """Return the name of a run's dataset, with its hash if another one has the same name."""
    name, *rest = (Path(str(one.settings.get("dataset", ""))).name for one in (run, *others))
    return f"{name} {run.made_of['dataset_sha256'][:12]}" if name in rest else name


def _left_out(others: int, unknown: int) -> str:
    """Say what the default leaves out, and how to get it."""
    trials = sum(is_trial(p.parent) for p in (paths.root() / "runs").glob(f"*/{METRICS}"))
    counts = {
        "run of other datasets": others,
        "run whose dataset is unknown": unknown,
        "trial": trials,
    }
    said = [_count(count, what) for what, count in counts.items() if count]
    if not said:
        return ""
    remedies = ['runs = ["*"] takes every run'] if others or unknown else []
    remedies += ["a trial is taken by its name"] if trials else []
    return f"; left out: {', '.join(said)} -- {', '.join(remedies)}"


def _count(count: int, what: str) -> str:
    first, space, rest = what.partition(" ")
    return f"{count:,} {first}{'' if count == 1 else 's'}{space}{rest}"


def _folders(name: str) -> list[Path]:
    here = sorted(p.parent for p in (paths.root() / "runs").glob(f"*/{METRICS}"))
    found = [folder for folder in here if fnmatch.fnmatchcase(folder.name, name)]
    if found or name == "*":
        return [folder for folder in found if folder.name == name or not is_trial(folder)]
    for place in (Path(name).expanduser(), paths.root() / name):
        if (place / METRICS).is_file():
            return [place.resolve()]
    remedy = near(name, [f.name for f in here], "see neoxkit runs, or give a run's folder")
    raise UserError("runs", f"{name!r} is not a run here", remedy)


def folder_of(name: str) -> Path:
    """Return the folder of the one run that a name, or a path, means."""
    found = _folders(name)
    if len(found) != 1:
        raise UserError("runs", f"{name!r} means {len(found)} runs", "name one: see neoxkit runs")
    return found[0]


def load_run(folder: Path) -> Run:
    """Load the run in a folder, however far it is."""
    card, history = run_card.read(folder), History.of_run(folder)
    path = folder / ARGUMENTS
    arguments = files.read_json(path) if path.is_file() else {}  # the run ended before writing them
    made_of = {"dataset_sha256": arguments.get("dataset_sha256")}
    made_of |= {name: card[name] for name in MADE_OF if card}
    made_of |= {f"{a} {b}": card["starts"][-1][a].get(b) for a, b in LAST_START if card}
    return Run(
        name=folder.name,
        folder=folder,
        state=standing_of(folder, history).state,
        settings=_settings(arguments, history.start.get("num_ranks", 0)),
        made_of=made_of,
        history=history,
    )


def _settings(arguments: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """Return the settings of 02_train; for a run started in a shell, the flags it was given."""
    found = command.settings_if_any(arguments, num_ranks)
    if found is None:
        return arguments
    settings = found.as_dict()
    return settings | settings.pop("training_arguments")


def differing(chosen: Sequence[Run]) -> dict[str, list[Any]]:
    """Return what differs between the runs, with each run's value (None: it has none)."""
    skipped = ("run", "output_dir", "allow_change", "restart")
    every = [{**run.settings, **run.made_of} for run in chosen]
    names = [name for name in dict.fromkeys(n for one in every for n in one) if name not in skipped]
    values = {name: [one.get(name) for one in every] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def as_text(value: Any) -> str:
    """Return a value as text, hashes shortened; of a model's files, only those of its weights.

    >>> as_text(None), as_text({"config.json": "ab" * 32, "model.safetensors": "cd" * 32})
    ('', 'cdcdcdcdcdcd')
    """
    if isinstance(value, dict) and any(str(name).endswith(".safetensors") for name in value):
        return ", ".join(as_text(v) for k, v in value.items() if k.endswith(".safetensors"))
    text = "" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,64}", text) else text


def settings_that_differ(chosen: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that differ, without code, machine and data."""
    made_of = {*MADE_OF, *AT_LAST_START}
    return {name: of for name, of in differing(chosen).items() if name not in made_of}


def labels(chosen: Sequence[Run]) -> tuple[str, list[str]]:
    """Return what the labels show, and a short label for each run.

    Labels are the values of the settings that differ, if these are few and no two runs share them
    all; otherwise the runs' names.
    """
    found = settings_that_differ(chosen)
    values = [", ".join(map(str, of)) for of in zip(*found.values(), strict=True)]
    if found and len(found) <= MOST_IN_LABEL and len(set(values)) == len(chosen):
        return ", ".join(found), values
    return "run", [run.name for run in chosen]


def equal_tokens(chosen: Sequence[Run]) -> float:
    """Return the fewest trained tokens at which a finished run (any run, if none is finished) was
    last evaluated; 0 if none was."""
    evaluated = [run for run in chosen if run.evals and run.evals[-1]["step"]]  # not only the base
    last = [
        run.trained_tokens([run.evals[-1]["step"]])[0]
        for run in [run for run in evaluated if run.state == "finished"] or evaluated
    ]
    return float(min(last, default=0))


def eval_loss_at(run: Run, num_tokens: float) -> float | None:
    """Return the eval loss after this many trained tokens, interpolated linearly; None outside the
    evaluated range."""
    evals = run.evals
    if not evals:
        return None
    tokens = run.trained_tokens([e["step"] for e in evals])
    if not tokens[0] <= num_tokens <= tokens[-1]:
        return None
    return float(np.interp(num_tokens, tokens, [e["loss"] for e in evals]))


def scores(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one line per run: the lowest eval loss first, runs without one last."""
    equal = equal_tokens(chosen)
    lines = [_score(run, equal) for run in chosen]
    return sorted(lines, key=lambda s: (s["eval_loss"] is None, s["eval_loss"] or 0))


def _score(run: Run, equal: float) -> dict[str, Any]:
    reached = run.history.totals()
    names = ("eval_loss", "trained_tokens", "tokens_per_second", "memory_gib", "train_seconds")
    return {
        "run": run.name,
        "state": run.state,
        "step": run.history.train[-1]["step"],
        **{name: reached[name] for name in names},
        "equal_tokens": equal,
        "equal_loss": eval_loss_at(run, equal),
    }


def notes(chosen: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing the figures."""
    said = []
    sides = sorted({run.evals[-1]["trained_tokens"] for run in chosen if run.evals})
    if len({run.made_of["dataset_sha256"] for run in chosen} - {None}) > 1:
        said.append("the datasets differ: their eval losses can't be compared")
    elif len(sides) > 1:
        numbers = " and ".join(f"{n:,}" for n in sides)
        said.append(
            f"the held-out sets differ ({numbers} trained tokens): these eval losses can't be "
            "compared -- set score_again"
        )
    if others := [name for name in AT_LAST_START if name in differing(chosen)]:
        said.append(f"besides settings, these differ: {', '.join(others)}")
    said += [f"{run.name} is {run.state}" for run in chosen if run.state != "finished"]
    done = [(run.name, event) for run in chosen for event in run.history.of("done")[-1:]]
    said += [f"{name} {line}" for name, event in done if (line := early(event))]
    return said + [f"{run.name}: {line}" for run in chosen for line in health.warnings(run.history)]


def grid(chosen: Sequence[Run]) -> Mapping[str, Any] | None:
    """Return the values of the two settings that differ, and the eval loss of each pair at equal
    tokens, averaged over its runs; None unless exactly two settings (besides the seed) differ.

    `losses` and `counts` (of runs) have shape (len(rows), len(columns)); a loss is NaN where no run
    reached that many tokens.
    """
    equal = equal_tokens(chosen)
    values = settings_that_differ(chosen)
    if len(values) == 3:
        values.pop("seed", None)
    if len(values) != 2:
        return None
    (row_name, row_values), (column_name, column_values) = values.items()
    rows, columns = _in_order(row_values), _in_order(column_values)
    found: dict[tuple[int, int], list[float]] = {}
    for run, row, column in zip(chosen, row_values, column_values, strict=True):
        if (loss := eval_loss_at(run, equal)) is not None:
            found.setdefault((rows.index(row), columns.index(column)), []).append(loss)
    losses = np.full((len(rows), len(columns)), np.nan)
    counts = np.zeros(losses.shape, int)
    for cell, of in found.items():
        losses[cell], counts[cell] = np.mean(of), len(of)
    return {
        "row_name": row_name, "rows": rows, "column_name": column_name, "columns": columns,
        "losses": losses, "counts": counts, "equal_tokens": equal,
    }  # fmt: skip


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Return each value once, numbers sorted by size."""
    once = [value for i, value in enumerate(values) if value not in values[:i]]
    numbers = all(isinstance(value, int | float) for value in once)
    return sorted(once) if numbers else sorted(once, key=str)
