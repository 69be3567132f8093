"""The three notebooks in order through papermill: what is refused first, what is said meanwhile."""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.cli import terminal
from neoxkit.errors import KINDS, STOPPED, Stopped, UserError
from neoxkit.evaluation import compare_runs, tasks
from neoxkit.fields import Settings, as_flags
from neoxkit.launch import checks, command
from neoxkit.runs import heartbeat, lock, resuming
from neoxkit.runs.folder import LOG, set_aside, state_of
from neoxkit.settings import (
    NOTEBOOKS,
    STAGES,
    CompareSettings,
    EvaluateSettings,
    TokenizeSettings,
    TrainSettings,
)

OWNER = "NEOXKIT_OWNER"  # the process that started this one for itself, where there is one
KERNEL_STARTS = 3
KERNEL_DIED = "Kernel died before replying"  # jupyter_client's words
MISTAKES = tuple(KINDS)  # by these names a notebook's failure is known


def execute(parameters: Mapping[str, Any], only: Sequence[str] | None = None) -> int:
    """Execute the notebooks in order; stops at the first that fails, its copy kept.

    Everything that can be refused is refused before the first of them writes anything.
    """
    _end_with_owner()
    stages = [s for s in NOTEBOOKS if (s.notebook in only if only else s in STAGES)]
    settings = _settings(stages, parameters)
    for name in parameters:
        if name != "run" and not any(name in stage.__dataclass_fields__ for stage in stages):
            raise UserError(name, "is no parameter of the chosen notebooks", "leave out --only")
    folder = _folder(settings, parameters.get("run"))
    for one in settings.values():  # first, for it may be why something is refused
        _note(unused(one, parameters))
    _note(_check_before(settings))
    _note(_doubts(settings))
    train = settings.get(TrainSettings)
    if train and train.restart and state_of(folder) != "new":
        print(f"the old run is kept as {paths.short(set_aside(folder))}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, start=1):
        target = folder / f"{stage.notebook}.ipynb"
        print(f"[{number}/{len(stages)}] {stage.notebook} -> {paths.short(target)}", flush=True)
        begun = time.monotonic()
        if stage is TrainSettings and settings[stage].probe_steps:
            _say("first a probe, which takes as long as a start")
        if stage is TrainSettings and settings[stage].range_test_steps:
            _say("first a range test and three short runs, which take as long as four starts")
        with _watched(stage, folder):
            fault = _execute(settings[stage], target)
        if fault:
            return _failed(fault, target)
        _say(f"{time.monotonic() - begun:.0f} s")
        if stage is TokenizeSettings:
            manifest = files.read_json(_dataset(settings) / files.MANIFEST)
            counted = terminal.tokenized_note(manifest)
            for line in (*manifest["notes"], counted, *manifest["split_notes"]):
                _say(line)
    trained = folder if {TrainSettings, EvaluateSettings} & {*stages} else None
    said = terminal.summary(_dataset(settings), trained, EvaluateSettings in settings)
    print(f"done: {said or paths.short(folder)}")
    return 0


def _settings(
    stages: Sequence[type[Settings]], parameters: Mapping[str, Any]
) -> dict[type[Settings], Any]:
    """The settings of each stage, bad values refused; 02 trains on the dataset that 01 writes."""
    made: dict[type[Settings], Any] = {}
    for stage in stages:
        own = {k: v for k, v in parameters.items() if k in stage.__dataclass_fields__}
        if stage is TrainSettings and TokenizeSettings in made and not own.get("dataset"):
            own["dataset"] = made[TokenizeSettings].dataset
        made[stage] = stage(**own)
    return made


def unused(settings: Settings, given: Container[str]) -> list[str]:
    """A sentence on what is saved in a notebook's parameters cell and not used, if anything is.

    Nothing is said of parameters that a person gave. What a list holds is not shown: it may be a
    private question.
    """
    saved = {k: v for k, v in settings.saved_otherwise().items() if k not in given}
    if not saved:
        return []
    held = [f"{name} {_in_short(value)}" for name, value in saved.items()]
    used = ", ".join(_in_short(getattr(settings, name)) for name in saved)
    counts = f"{used} is used -- give -p {held[0]} to use it"
    if len(saved) > 1:
        counts = f"{used} are used -- give them with -p to use them"
    return [f"notebooks/{settings.notebook}.ipynb holds {', '.join(held)}; {counts}"]


def _in_short(value: Any) -> str:
    """A number or a text as a shell takes it; dots for all else."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.isprintable()):
        return shlex.quote(as_flags({"": value})[-1])
    return "..."


def _end_with_owner() -> None:
    """Where another process started this one for itself: ask this one to end when it is gone."""
    owner = int(os.environ.pop(OWNER, 0))

    def wait() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if owner:
        threading.Thread(target=wait, daemon=True).start()


def _folder(settings: Mapping[type[Settings], Any], run: str | None) -> Path:
    """Where the executed notebooks go: the run's folder; the dataset's name if there is no run."""
    alone = next(iter(settings.values())) if len(settings) == 1 else None
    own = {TokenizeSettings: "dataset", CompareSettings: "name"}.get(type(alone))
    return paths.run(run or (getattr(alone, own) if own else TrainSettings.run))


def _dataset(settings: Mapping[type[Settings], Any]) -> Path | None:
    first = settings.get(TokenizeSettings)
    return paths.tokenized(first.dataset) if first else None


def _check_before(settings: Mapping[type[Settings], Any]) -> list[str]:
    """Refuse now what a notebook would refuse later, after others have written their files.

    Returns what is replaced, in a sentence.
    """
    first, train, last = (settings.get(stage) for stage in STAGES)
    if CompareSettings in settings:
        compare_runs.load(settings[CompareSettings].runs)
    if first:
        checks.check_files(first, last.questions_file if last else "")
    if train:
        lock.refuse_locked(paths.run(train.run))
        checks.check_before_tokenizing(first, train) if first else checks.check(train)
    if last:
        for name in ("questions_file", "plain_text_file"):
            if file := getattr(last, name):
                paths.find(name, file)
        tasks.check(last.tasks)
        if not train:
            checks.check_evaluable(paths.run(last.run))
    return resuming.replaced(first) if first else []


def _doubts(settings: Mapping[type[Settings], Any]) -> list[str]:
    """What a person should know of the training that is started all the same."""
    first = settings.get(TokenizeSettings)
    return command.doubts(settings.get(TrainSettings), first.model_name_or_path if first else "")


@contextmanager
def _watched(stage: type[Settings], folder: Path) -> Iterator[None]:
    """Around 02: how the run begins, where its log is, and how it goes."""
    if stage is not TrainSettings:
        yield
        return
    outset = terminal.outset(folder)
    if outset:
        _say(outset)
    _say(f"its log: {paths.short(folder / LOG)}")
    if state_of(folder) == "finished":
        yield
        return
    with terminal.following(folder), _signals_stop(folder):
        yield


@contextmanager
def on_signals(ask: Callable[[int, Any], None]) -> Iterator[None]:
    """Have Ctrl-C and TERM call a handler while the block runs."""
    before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_stop(folder: Path) -> Iterator[None]:
    """While the block runs, the first Ctrl-C or TERM asks the training to save and stop.

    One that has made no step yet has nothing to save, and is ended at once.
    """
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked or not (lock.locked_by(folder) and heartbeat.Watch(folder).ranks()):
            raise KeyboardInterrupt
        asked = True
        lock.ask_to_stop(folder)
        _say("finishes its step and saves; once more, and it ends at once")

    with on_signals(ask):
        yield


def _note(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"note: {line}", flush=True)


def _say(text: str) -> None:
    print(f"{terminal.INDENT}{text}", flush=True)


def _execute(settings: Settings, target: Path) -> Any:
    """Execute one notebook; papermill's error of the cell that failed, if one did.

    Every setting is injected, and the kernel named: what JupyterLab saved in the notebook's
    parameters and metadata does not count. A kernel that dies before it answers has run nothing,
    and is started again: between the search for free ports and their use another process may have
    taken one.
    """
    import papermill  # slow: after every value was checked

    logging.getLogger("papermill").setLevel(logging.ERROR)  # else it tells of slow autosaves
    from papermill.exceptions import PapermillExecutionError

    for start in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(
                str(paths.root() / "notebooks" / f"{settings.notebook}.ipynb"),
                str(target),
                parameters=settings.as_dict(),
                kernel_name="python3",
                language="python",
                autosave_cell_every=1,
                # 02 has a line of its own
                progress_bar=sys.stderr.isatty() and not isinstance(settings, TrainSettings),
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else a warning about TCP
            )
            return None
        except PapermillExecutionError as fault:
            return fault
        except RuntimeError as fault:
            if not str(fault).startswith(KERNEL_DIED) or start == KERNEL_STARTS:
                raise
            _say("its kernel did not start; once more")


def _failed(fault: Any, target: Path) -> int:
    """Say what a failed cell said; the exit code."""
    if fault.ename == Stopped.__name__:
        print(fault.evalue, file=sys.stderr)
        return STOPPED
    mistake = fault.ename in MISTAKES
    said = fault.evalue if mistake else f"{fault.ename}: {fault.evalue}"
    print(f"error: {said}\n       in {paths.short(target)}", file=sys.stderr)
    return 2 if mistake else 1
