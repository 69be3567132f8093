"""Execute the notebooks in order through papermill, after checking everything they need."""

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
from typing import Any, NamedTuple

from neoxkit import files, paths
from neoxkit.cli import parameters, screen, terminal
from neoxkit.data import tokenized
from neoxkit.errors import KILLED, KINDS, STOPPED, Killed, Stopped, UserError
from neoxkit.evaluation import compare_runs, tasks
from neoxkit.fields import Settings, as_flags
from neoxkit.launch import checks, command, process, slurm
from neoxkit.machine import duration
from neoxkit.models import model_names
from neoxkit.runs import endings, heartbeat, lock, resuming
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import LOG, finished_facts, is_trial, set_aside, state_of
from neoxkit.settings import (
    NOTEBOOKS,
    STAGES,
    CompareSettings,
    EvaluateSettings,
    TokenizeSettings,
    TrainSettings,
)

OWNER = "NEOXKIT_OWNER"  # process that started this one and that it must not outlive
KERNEL_STARTS = 3
KERNEL_DIED = "Kernel died before replying"  # jupyter_client's words


def execute(given: Mapping[str, Any], only: Sequence[str] | None = None, on_end: str = "") -> int:
    """Execute the notebooks in order; stop at the first that fails, and keep its copy.

    Everything that can be refused is refused before the first one writes anything. `on_end`: the
    command that is told the end (endings.py), once the parameters were understood.
    """
    _end_with_owner()
    stages = [s for s in NOTEBOOKS if (s.notebook in only if only else s in STAGES)]
    settings = _settings(stages, given)
    for name in given:
        if name not in ("run", *parameters.known(stages)):
            raise UserError(name, "is not a parameter of the chosen notebooks", "leave out --only")
    folder = _folder(settings, given.get("run"))
    with endings.told(endings.RUN, folder.name, on_end, terminal.note) as ending:
        code, ending.reason = _carry_out(settings, given, folder)
        return ending.by(code)


def _carry_out(
    settings: Mapping[type[Settings], Any], given: Mapping[str, Any], folder: Path
) -> tuple[int, str]:
    """Check and execute the notebooks of these settings; return the exit code, and why if not 0."""
    for one in settings.values():  # first: it may be why something is refused
        terminal.note(*unused(one, given))
    first: Any = settings.get(TokenizeSettings)
    train: Any = settings.get(TrainSettings)
    with screen.busy("checking the files, the model and the machine"):
        notes = _check_before(settings)
    terminal.note(*notes)
    model = model_names.at(first.model_name_or_path, first.revision) if first else ""
    terminal.note(*command.doubts(train, model))
    if train and train.restart and state_of(folder) != "new":
        print(f"the old run is kept as {paths.short(set_aside(folder))}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(settings, start=1):
        target = folder / f"{stage.notebook}.ipynb"
        print(f"[{number}/{len(settings)}] {stage.notebook} -> {paths.short(target)}", flush=True)
        begun = time.monotonic()
        with _watched(settings[stage], folder):
            fault = _execute(settings[stage], target)
        if fault:
            return _failed(fault, target), fault.evalue
        _say(duration(time.monotonic() - begun))
        if stage is TokenizeSettings:
            manifest = files.read_json(paths.tokenized(first.dataset) / files.MANIFEST)
            counted = terminal.tokenized_note(manifest)
            for line in (*manifest["notes"], counted, *manifest["split_notes"]):
                _say(line)
    trained = folder if {TrainSettings, EvaluateSettings} & {*settings} else None
    dataset = paths.tokenized(first.dataset) if first else None
    last = settings.get(EvaluateSettings)
    said = terminal.summary(dataset, trained, last.side if last else "")
    print(screen.wrapped(f"done: {said or paths.short(folder)}", sys.stdout, len("done: ")))
    return 0, ""


def _settings(
    stages: Sequence[type[Settings]], given: Mapping[str, Any]
) -> dict[type[Settings], Any]:
    """Return each stage's settings, or refuse bad values; 02 uses the dataset that 01 writes."""
    made: dict[type[Settings], Any] = {}
    for stage in stages:
        own = parameters.own(stage, given)
        if stage is TrainSettings and TokenizeSettings in made and not own.get("dataset"):
            own["dataset"] = made[TokenizeSettings].dataset
        made[stage] = stage(**own)
    return made


def unused(settings: Settings, given: Container[str]) -> list[str]:
    """Say which values saved in a notebook's parameters cell are not used; empty if all are.

    Parameters that the user gave are not mentioned. The contents of lists are not shown: they may
    be private questions.
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
    """Return a number or a text as a shell takes it; dots for anything else."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.isprintable()):
        return shlex.quote(as_flags({"": value})[-1])
    return "..."


def _end_with_owner() -> None:
    """Stop this process when its owner, if it has one, is gone."""
    owner = int(os.environ.pop(OWNER, 0))

    def wait() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if owner:
        threading.Thread(target=wait, daemon=True).start()


def _folder(settings: Mapping[type[Settings], Any], run: str | None) -> Path:
    """Return the folder for the executed notebooks: the run's, or one named after the dataset."""
    alone = next(iter(settings.values())) if len(settings) == 1 else None
    own = {TokenizeSettings: "dataset", CompareSettings: "name"}.get(type(alone))
    return paths.run(run or (getattr(alone, own) if own else TrainSettings.run))


def _check_before(settings: Mapping[type[Settings], Any]) -> list[str]:
    """Refuse now what a notebook would refuse later, after others have written their files.

    Return what is replaced, in a sentence.
    """
    first, train, last = (settings.get(stage) for stage in STAGES)
    if CompareSettings in settings:
        compare_runs.load_runs(settings[CompareSettings].runs)
    if first:
        checks.check_files(first, last.questions_file if last else "")
    if train:
        process.refuse_running(paths.run(train.run))
        checks.check_before_tokenizing(first, train) if first else checks.check(train)
    if last:
        for name in ("questions_file", "plain_text_file"):
            if file := getattr(last, name):
                paths.find(name, file)
        tasks.check(last.tasks)
        if not train:
            tokenized.unchanged(finished_facts(paths.run(last.run)))
        if last.side == "test":
            _check_test_side(first, train, last)
    return resuming.replaced(first) if first else []


def _check_test_side(
    first: TokenizeSettings | None, train: TrainSettings | None, last: EvaluateSettings
) -> None:
    """Refuse to evaluate on a test side that the dataset does not have, or will not have."""
    if first and not first.test_share:
        raise UserError("side", "01 takes no test side", "set test_share, 0.1 say")
    if not first:
        data = paths.tokenized(train.dataset) if train else None
        data = data or tokenized.unchanged(finished_facts(paths.run(last.run)))
        tokenized.check_side(last.side, tokenized.load_manifest(data)["sides"])


@contextmanager
def _watched(settings: Settings, folder: Path) -> Iterator[None]:
    """Around 02, say how the run begins and where its log is, and show its progress."""
    if not isinstance(settings, TrainSettings):
        yield
        return
    if settings.probe_steps:
        _say("a probe comes first; it takes as long as a start")
    if settings.range_test_steps:
        _say("a range test and three short runs come first; they take as long as four starts")
    if outset := terminal.outset(folder):
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
    """While the block runs, let the first Ctrl-C or TERM ask the training to save and stop.

    A training without a finished step has nothing to save, and is ended at once; a job that waits
    is cancelled.
    """
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked or not (lock.locked_by(folder) and heartbeat.Watch(folder).ranks()):
            for one in (folder, *filter(is_trial, folder.parent.glob(f"{folder.name}.*"))):
                slurm.stop(one, now=True)
            raise KeyboardInterrupt
        asked = True
        slurm.stop(folder)
        lock.ask_to_stop(folder)
        _say("finishing the step and saving; interrupt again to end it at once")

    with on_signals(ask):
        yield


def _say(text: str) -> None:
    line = f"{terminal.INDENT}{text}"
    print(screen.wrapped(line, sys.stdout, len(terminal.INDENT)), flush=True)


class _KernelDied(NamedTuple):
    """What there is of papermill's error when the kernel was killed in a cell."""

    ename: str = Killed.__name__
    evalue: str = "its kernel was killed"


def _execute(settings: Settings, target: Path) -> Any:
    """Execute one notebook; return papermill's error if a cell failed.

    Every setting is injected and the kernel is this Python, so what JupyterLab saved in the
    notebook's parameters and metadata does not count. A kernel that dies before it answers has run
    nothing and is started again: another process may have taken one of the ports found free.
    """
    import papermill  # slow, so only once every value is checked

    from neoxkit.cli.kernel import OwnKernel

    logging.getLogger("papermill").setLevel(logging.ERROR)  # else it reports slow autosaves
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    for start in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(
                str(paths.root() / "notebooks" / f"{settings.notebook}.ipynb"),
                str(target),
                parameters=settings.as_dict(),
                kernel_name="python3",
                kernel_manager_class=OwnKernel,
                language="python",
                autosave_cell_every=1,
                # 02 has its own status line
                progress_bar=sys.stderr.isatty() and not isinstance(settings, TrainSettings),
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # else a warning about TCP
            )
            return None
        except PapermillExecutionError as fault:
            return fault
        except DeadKernelError:
            died = _KernelDied()
            if isinstance(settings, TrainSettings | EvaluateSettings):
                append_event(target.parent, "killed", what=died.evalue)
            return died
        except RuntimeError as fault:
            if not str(fault).startswith(KERNEL_DIED) or start == KERNEL_STARTS:
                raise
            _say("its kernel did not start; trying again")


def _failed(fault: Any, target: Path) -> int:
    """Print the error of a failed cell; return the exit code."""
    if fault.ename == Stopped.__name__:
        print(fault.evalue, file=sys.stderr)
        return STOPPED
    mistake = fault.ename in KINDS  # papermill names the exception
    was_killed = fault.ename == Killed.__name__
    said = fault.evalue if mistake or was_killed else f"{fault.ename}: {fault.evalue}"
    line = screen.label(f"error: {said}", sys.stderr)
    print(screen.wrapped(line, sys.stderr, len("error: ")), file=sys.stderr)
    print(f"       in {paths.short(target)}", file=sys.stderr)
    if was_killed:
        return KILLED
    return 2 if mistake else 1
