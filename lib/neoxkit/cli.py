"""`neoxkit`: strict papermill over the three notebooks, and a look at the machine."""

import argparse
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml

from neoxkit import __version__, launch, listing, lock, paths, plan, runs, terminal
from neoxkit.errors import Faults, Stopped, UserError, near, shorten
from neoxkit.guard import STOPPED
from neoxkit.settings import (
    EvaluateSettings,
    Settings,
    TokenizeSettings,
    TrainSettings,
    convert,
    example,
)

MISTAKES = (UserError.__name__, Faults.__name__)  # by these names a notebook's failure is known
STAGES: tuple[type[Settings], ...] = (TokenizeSettings, TrainSettings, EvaluateSettings)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 a notebook failed, 2 a person's mistake, 75 a training stopped."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return options.call(options)
    except UserError as mistake:
        if os.environ.get("NEOXKIT_DEBUG") == "1":
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except OSError as fault:
        where = fault.filename or "disk"
        print(f"error: {where}: {fault.strerror} -- check the folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped -- run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neoxkit", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="execute the notebooks in order into runs/<run>/",
        allow_abbrev=False,
        description="Execute the three notebooks in order through papermill into runs/<run>/. A "
        "parameter goes to every notebook that has it. 01_tokenize alone goes into runs/<dataset>/ "
        "unless `run` is given.",
    )
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     dest="parameters", help="a parameter (repeat for more)")  # fmt: skip
    run.add_argument("-f", action="append", default=[], metavar="FILE.yaml", dest="files",
                     help="a YAML file of parameters; -p wins")  # fmt: skip
    run.add_argument("--only", choices=[s.notebook for s in STAGES], action="append",
                     help="this notebook alone (repeat for more)")  # fmt: skip
    run.set_defaults(call=lambda options: run_notebooks(read_parameters(options), options.only))
    doctor = commands.add_parser(
        "doctor", allow_abbrev=False, help="what this machine has and what is missing"
    )
    doctor.set_defaults(call=lambda _: _doctor())
    listed = commands.add_parser("runs", allow_abbrev=False, help="every run and how it stands")
    listed.set_defaults(call=lambda _: _list_runs())
    stop = commands.add_parser(
        "stop",
        allow_abbrev=False,
        help="stop a training: it finishes its step and saves",
        description="Ask the training in runs/RUN to finish its step, save and stop, and wait "
        "until it has. The same command that started it goes on from there.",
    )
    stop.add_argument("run", metavar="RUN")
    stop.add_argument("--now", action="store_true", help="end it at once, without saving")
    stop.set_defaults(call=lambda options: _stop(options.run, options.now))
    return parser


def _doctor() -> int:
    from neoxkit import doctor

    print(doctor.report())
    return 0


def _list_runs() -> int:
    print(terminal.runs_table(listing.all_runs()))
    return 0


def _stop(run: str, now: bool) -> int:
    """Returns when the training is gone; 0 where it saved and stopped, or had come to its end."""
    folder = paths.run(run)
    while (pid := lock.locked_by(folder)) == lock.UNKNOWN:
        time.sleep(0.05)  # it has just begun
    if not pid:
        raise UserError("RUN", f"{run} is not training", "see neoxkit runs")
    if now:
        os.kill(pid, signal.SIGTERM)  # the guard, which ends the whole tree
    else:
        lock.ask_to_stop(folder)
        print(f"{run} finishes its step and saves ...", flush=True)
    while lock.locked_by(folder):
        time.sleep(0.2)
    lock.answer_stop(folder)  # a training that was just over has not looked
    standing = listing.standing(folder)
    print(terminal.how_it_stands(standing))
    return 0 if now or standing.state in ("stopped", "finished") else 1


def read_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of files and flags together, each one known and of its own type."""
    given: dict[str, Any] = {}
    for name in options.files:
        path = paths.find("-f", name)
        try:
            values = _from_yaml(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError):
            where = paths.short(path)
            raise UserError(where, "can't be read as text", "give a UTF-8 YAML file") from None
        except yaml.YAMLError as fault:
            mark = getattr(fault, "problem_mark", None)
            where = f"{paths.short(path)}:{mark.line + 1 if mark else 1}"
            raise UserError(where, "is not YAML", "write one `name: value` a line") from None
        if not isinstance(values, dict):
            raise UserError(f"{paths.short(path)}:1", "is no mapping", "write `name: value` lines")
        given |= {str(k): v for k, v in values.items()}
    given |= {name: _literal(name, value) for name, value in options.parameters}
    return {name: _checked(name, value) for name, value in given.items()}


def _fields() -> dict[str, Field]:
    return {f.name: f for stage in STAGES for f in fields(stage)}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-6 is a number, as it is in Python and JSON."""


_Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _literal(name: str, value: str) -> Any:
    """A flag's text; lists and dicts are written as YAML."""
    kind = _fields()[name].type if name in _fields() else str
    if kind not in (list, dict):
        return value
    try:
        return _from_yaml(value)
    except yaml.YAMLError:
        raise UserError(name, f"{value!r} is not YAML", example(name, kind, None)) from None


def _checked(name: str, value: Any) -> Any:
    known = _fields()
    if name not in known:
        remedy = near(name, known, shorten(f"known are {', '.join(known)}"))
        raise UserError(name, "is not a parameter of these notebooks", remedy)
    return convert(name, known[name].type, value, known[name].default)


def run_notebooks(parameters: Mapping[str, Any], only: Sequence[str] | None = None) -> int:
    """Execute the stages in order; stops at the first that fails, its copy kept.

    Everything that can be refused is refused before the first of them writes anything.
    """
    stages = [stage for stage in STAGES if not only or stage.notebook in only]
    own = {
        stage: {k: v for k, v in parameters.items() if k in stage.__dataclass_fields__}
        for stage in stages
    }
    settings = {stage: stage(**values) for stage, values in own.items()}  # refuses bad values early
    for name in parameters:
        if name != "run" and not any(name in values for values in own.values()):
            raise UserError(name, "is no parameter of the chosen notebooks", "leave out --only")
    folder = _folder(settings, parameters.get("run"))
    _check_before(settings)
    train = settings.get(TrainSettings)
    if train and train.restart and runs.state(folder) != "new":
        print(f"the old run is kept as {paths.short(runs.set_aside(folder))}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, start=1):
        target = folder / f"{stage.notebook}.ipynb"
        print(f"[{number}/{len(stages)}] {stage.notebook} -> {paths.short(target)}", flush=True)
        begun = time.monotonic()
        with _watched(stage, folder):
            fault = _execute(stage, target, {k: getattr(settings[stage], k) for k in own[stage]})
        if fault:
            return _failed(fault, target)
        _say(f"{time.monotonic() - begun:.0f} s")
        if stage is TokenizeSettings:
            _say(terminal.tokenized_note(runs.read_json(_dataset(settings) / runs.MANIFEST)))
    trained = folder if stages != [TokenizeSettings] else None
    print(f"done: {terminal.summary(_dataset(settings), trained, EvaluateSettings in settings)}")
    return 0


def _folder(settings: Mapping[type[Settings], Any], run: str | None) -> Path:
    """Where the executed notebooks go: the run's folder; the dataset's name if there is no run."""
    alone = settings[TokenizeSettings].dataset if list(settings) == [TokenizeSettings] else None
    return paths.run(run or alone or TrainSettings.run)


def _dataset(settings: Mapping[type[Settings], Any]) -> Path | None:
    first = settings.get(TokenizeSettings)
    return paths.tokenized(first.dataset) if first else None


def _check_before(settings: Mapping[type[Settings], Any]) -> None:
    """Refuse now what a notebook would refuse later, after others have written their files."""
    first, train, last = (settings.get(stage) for stage in STAGES)
    if first:
        plan.check_files(first)
    if train:
        lock.refuse_locked(paths.run(train.run))
        plan.check_before_tokenizing(first, train) if first else plan.check(train)
    if last:
        if last.questions_file:
            paths.find("questions_file", last.questions_file)
        if not train:
            launch.check_evaluable(paths.run(last.run))


@contextmanager
def _watched(stage: type[Settings], folder: Path) -> Iterator[None]:
    """Around 02: how the run begins, where its log is, and how it goes."""
    if stage is not TrainSettings:
        yield
        return
    outset = terminal.outset(folder)
    if outset:
        _say(outset)
    _say(f"its log: {paths.short(folder / runs.LOG)}")
    if runs.state(folder) == "finished":
        yield
        return
    with terminal.following(folder), _interrupt_stops(folder):
        yield


@contextmanager
def _interrupt_stops(folder: Path) -> Iterator[None]:
    """While the block runs, the first Ctrl-C asks the training to save and stop."""

    def ask(*_: Any) -> None:
        if not lock.locked_by(folder) or lock.asked_to_stop(folder):
            raise KeyboardInterrupt
        lock.ask_to_stop(folder)
        _say("finishes its step and saves; Ctrl-C again ends it at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    print(f"{terminal.INDENT}{text}", flush=True)


def _execute(stage: type[Settings], target: Path, parameters: Mapping[str, Any]) -> Any:
    """Execute one notebook; papermill's error of the cell that failed, if one did."""
    import papermill  # slow: after every value was checked

    logging.getLogger("papermill").setLevel(logging.ERROR)  # else it tells of slow autosaves
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(paths.root() / "notebooks" / f"{stage.notebook}.ipynb"),
            str(target),
            parameters=dict(parameters),
            autosave_cell_every=1,
            # 02 has a line of its own
            progress_bar=sys.stderr.isatty() and stage is not TrainSettings,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else a warning about TCP
        )
        return None
    except PapermillExecutionError as fault:
        return fault


def _failed(fault: Any, target: Path) -> int:
    """Say what a failed cell said; the exit code."""
    if fault.ename == Stopped.__name__:
        print(fault.evalue, file=sys.stderr)
        return STOPPED
    mistake = fault.ename in MISTAKES
    said = fault.evalue if mistake else f"{fault.ename}: {fault.evalue}"
    print(f"error: {said}\n       in {paths.short(target)}", file=sys.stderr)
    return 2 if mistake else 1


if __name__ == "__main__":
    sys.exit(main())
