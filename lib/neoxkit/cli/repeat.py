"""`neoxkit repeat`: train a finished run again, and compare the bytes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.cli import notebooks, terminal
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.launch import command
from neoxkit.runs import card as run_card
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, finished_facts, state_of
from neoxkit.settings import TrainSettings


def repeat(run: str) -> int:
    """Train a run again, into its own folder, and compare; return the exit code.

    On a CPU the same code, packages, threads and kind of machine give the same bytes; return 1 if
    they did not. A GPU adds in no fixed order: there the losses are reported.
    """
    folder = paths.run(run)
    facts, card = finished_facts(folder), run_card.read(folder)
    if not card["commands"]:
        remedy = "give its command again with another --output_dir"
        raise UserError("RUN", f"{run} was started in a shell", remedy)
    tokenized.unchanged(facts)
    settings = _settings(folder)
    if threads := card["starts"][-1]["threads_a_rank"]:
        os.environ["OMP_NUM_THREADS"] = threads  # sums depend on it
    _keep_commit(folder, paths.run(settings.run))
    terminal.note(*run_card.differences(card, run_card.this_start()))
    code = notebooks.execute(settings.as_dict(), [TrainSettings.notebook])
    return code or _compare(run, facts, settings.run)


def _keep_commit(folder: Path, again: Path) -> None:
    """Leave the run's arguments where its repeat will start, so that its base is at the same
    commit, whatever the branch means now."""
    if not (again / ARGUMENTS).exists():
        again.mkdir(parents=True, exist_ok=True)
        files.write_json(again / ARGUMENTS, files.read_json(folder / ARGUMENTS))


def _settings(folder: Path) -> TrainSettings:
    """Return the run's settings, under the first name that no finished repeat has, so that a
    stopped repeat is resumed."""
    number = 1
    while state_of(paths.run(f"{folder.name}.repeat-{number}")) == "finished":
        number += 1
    num_ranks = History.of_run(folder).start["num_ranks"]
    arguments = files.read_json(folder / ARGUMENTS)
    if changed := arguments["allow_change"]:
        terminal.note(
            f"{', '.join(changed)} changed during the run; the repeat has the last values"
        )
    settings = command.settings_of(arguments, num_ranks)
    return settings.replace(run=f"{folder.name}.repeat-{number}", allow_change=[])


def _compare(run: str, facts: Mapping[str, Any], again: str) -> int:
    """Print whether the weights are the same; return the exit code."""
    new = finished_facts(paths.run(again))
    if new["model_sha256"] == facts["model_sha256"]:
        for name, sha256 in new["model_sha256"].items():
            print(f"same bytes: {name} of {run} and {again} is {sha256}")
        return 0
    was, is_ = (run_card.read(paths.run(name)) for name in (run, again))
    for name in ("base_sha256", "ds_config"):
        if was[name] != is_[name]:
            terminal.note(f"{name} differs from that of {run}")
    print(
        f"different bytes: eval loss {facts['eval_loss']} in {run}, {new['eval_loss']} in {again}"
    )
    return 1 if History.of_run(paths.run(again)).start["device"] == "cpu" else 0
