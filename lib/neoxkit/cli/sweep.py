"""`neoxkit sweep`: one run per variant, each in its own folder, and a table of all."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neoxkit import files, machine, paths
from neoxkit.cli import progress, terminal
from neoxkit.cli.notebooks import OWNER, execute, on_signals, unused
from neoxkit.cli.parameters import own
from neoxkit.cli.variants import Variant
from neoxkit.errors import STOPPED, UserError
from neoxkit.evaluation import compare_runs
from neoxkit.fields import as_flags
from neoxkit.launch import checks, command, forecast, nodes
from neoxkit.runs import endings
from neoxkit.runs.events import METRICS
from neoxkit.runs.folder import EVALUATION, is_trial, live_state, standing_of, state_of
from neoxkit.runs.restarts import Restarts, sentence
from neoxkit.settings import CompareSettings, EvaluateSettings, TrainSettings

LOG = "run.log"  # the output of a variant's `neoxkit run`
LOOK_SECONDS = 1.0
SETTLE_SECONDS = 3.0  # after a kill: a kernel looks every second whether its parent is there
INTERRUPTED = 130  # `neoxkit run` after Ctrl-C, if no training was asked to stop


def run(
    name: str,
    made: Sequence[Variant],
    notebooks: Sequence[str],
    at_once: int = 0,
    on_end: str = "",
) -> int:
    """Run every unfinished variant, then 04_compare over all; return the exit code.

    `at_once` trainings share the machine; 0: as many as the GPUs allow, one on a CPU. A variant
    that fails does not stop the others, and one of which a process was killed goes on by itself
    (restarts.py). `on_end`: the command that is told the end of each run that was started.
    """
    table = progress.LiveTable()
    table.show([_before(variant, notebooks) for variant in made])  # what comes first takes seconds
    try:
        parts = environments([variant.settings for variant in made], at_once)
        doubts = check_before(made, parts, notebooks)
    finally:
        table.clear()
    terminal.note(*doubts)
    slots: queue.Queue[dict[str, str]] = queue.Queue()
    for part in parts:
        slots.put(part)
    children: dict[str, subprocess.Popen] = {}
    begun: dict[str, float] = {}  # when each child was started
    again: dict[str, Restarts] = {}
    took: list[float] = []  # seconds of each run that ended well
    asked: list[int] = []  # signals received
    notes: list[str] = []  # said when the table is complete

    def carry_out(variant: Variant) -> int:
        if is_done(variant, notebooks):
            return 0
        part = slots.get()
        try:
            _wait_until_free(variant.folder, asked)
            if asked:
                return STOPPED
            run = variant.settings.run
            again[run] = Restarts(variant.folder)
            with endings.told(endings.RUN, run, on_end, notes.append) as ending:
                code = ending.by(until_its_end(variant, part))
                if ending.state in ("failed", "killed"):
                    ending.reason = _why(variant, again[run])
                return code
        finally:
            slots.put(part)

    def until_its_end(variant: Variant, part: dict[str, str]) -> int:
        first, run = time.monotonic(), variant.settings.run
        while True:
            begun[run] = time.monotonic()
            child = _child(variant, notebooks, part)
            children[run] = child
            if asked:  # while it was starting
                child.send_signal(signal.SIGINT)
            if not (code := child.wait()):
                took.append(time.monotonic() - first)
            if asked or not again[run].may_go_on(code):
                return code
            del begun[run]
            time.sleep(SETTLE_SECONDS)
            _wait_until_free(variant.folder, asked)
            if asked:
                return STOPPED

    with ThreadPoolExecutor(len(parts)) as pool, _signals_reach(children, asked):
        ends = {v.settings.run: pool.submit(carry_out, v) for v in made}
        rows: dict[str, progress.SweepRow] = {}
        while not all(end.done() for end in ends.values()):
            _look(made, ends, begun, again, rows)
            table.show([*rows.values()], _left(rows, begun, took, len(parts)))
            time.sleep(LOOK_SECONDS)
            if asked:
                pool.shutdown(wait=False, cancel_futures=True)
        _look(made, ends, begun, again, rows)
        table.show([*rows.values()])
    terminal.note(*notes, *_told_of(again))
    if asked:
        print("stopped -- run the same command again to resume", file=sys.stderr)
        return STOPPED
    codes = [end.result() for end in ends.values()]
    return compare(name, made) or next((code for code in codes if code), 0)


def _wait_until_free(folder: Path, asked: Sequence[int]) -> None:
    """Wait for what still trains in a run's folder, or in those of its trials: the training of a
    killed sweep or notebook, which saves or is being ended."""
    while not asked:
        trials = filter(is_trial, folder.parent.glob(f"{folder.name}.*"))
        if not any(live_state(one) for one in (folder, *trials)):
            return
        time.sleep(LOOK_SECONDS)


def _why(variant: Variant, again: Restarts) -> str:
    """Say why a run of the sweep has not finished."""
    said = standing_of(variant.folder).says if (variant.folder / METRICS).exists() else ""
    return again.is_left or said or f"see {paths.short(variant.folder / LOG)}"


def _told_of(again: Mapping[str, Restarts]) -> list[str]:
    """Say which runs were started again, and which are left as they are after that."""
    said = []
    for run, restarts in again.items():
        if restarts.is_left:
            said.append(f"{run} is left: {restarts.is_left}")
        elif restarts.causes:
            said.append(f"{run} was {sentence(restarts.causes)}")
    return said


def check_before(
    made: Sequence[Variant], parts: Sequence[Mapping[str, str]], notebooks: Sequence[str]
) -> list[str]:
    """Refuse what a variant would refuse later, before the first one starts; return doubts."""
    unfinished = []
    for settings in (_with_its_ranks(variant.settings, parts[0]) for variant in made):
        try:
            checks.check(settings)
        except UserError as mistake:
            raise mistake.of(settings.run) from None
        if state_of(paths.run(settings.run)) != "finished":
            unfinished.append(settings)
    misfits = forecast.doubts(unfinished, min(len(parts), len(unfinished)))
    doubts = [f"{doubt}; trying anyway" for doubt in misfits]
    for held in (made[0].settings, EvaluateSettings()):
        if held.notebook in notebooks:
            doubts += unused(held, made[0].parameters)
    for settings in unfinished:
        doubts += [f"{settings.run}: {doubt}" for doubt in command.doubts(settings)]
    return doubts


def _with_its_ranks(settings: TrainSettings, part: Mapping[str, str]) -> TrainSettings:
    """Return the settings with as many ranks as its part of the machine has GPUs."""
    ids = part.get("CUDA_VISIBLE_DEVICES")
    if settings.num_ranks or not ids:
        return settings
    return settings.replace(num_ranks=ids.count(",") + 1)


def environments(settings: Sequence[TrainSettings], at_once: int) -> list[dict[str, str]]:
    """Return the environment of each training that shares the machine: its GPUs or cores.

    On the hosts of a hostfile there is one at a time, whatever this machine has.
    """
    if at_once < 0:
        raise UserError("--at-once", f"got {at_once}", "give 0 or more")
    if any(one.launcher == nodes.HOSTFILE for one in settings):
        if at_once > 1:
            what = "the runs would share the hosts of one hostfile"
            raise UserError("--at-once", what, "leave it out: one run after another")
        return [{}]
    ranks = max(one.num_ranks for one in settings)
    gpus = machine.num_gpus()
    if not gpus:
        together = at_once or 1
        cores = max(machine.num_cores() // (together * max(ranks, 1)), 1)
        return [{"OMP_NUM_THREADS": str(cores)}] * together if together > 1 else [{}]
    each = ranks or gpus // max(at_once, 1)
    together = min(at_once or gpus // max(each, 1), gpus // max(each, 1))
    if not each or not together:
        raise UserError("--at-once", f"got {at_once}, there are {gpus} GPUs", "lower it")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else [str(i) for i in range(gpus)]
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(ids[i * each : (i + 1) * each])} for i in range(together)
    ]


def is_done(variant: Variant, notebooks: Sequence[str]) -> bool:
    """Return whether a variant is trained and, if wanted, evaluated with these settings."""
    if state_of(variant.folder) != "finished":
        return False
    if EvaluateSettings.notebook not in notebooks:
        return True
    wanted = EvaluateSettings(**own(EvaluateSettings, variant.parameters)).as_dict()
    path = variant.folder / EVALUATION
    return path.is_file() and files.read_json(path)["settings"] == wanted


def _child(variant: Variant, notebooks: Sequence[str], part: Mapping[str, str]) -> subprocess.Popen:
    """Start a variant's `neoxkit run` in its own session; it ends when this process is gone."""
    variant.folder.mkdir(parents=True, exist_ok=True)
    words = [word for name in notebooks for word in ("--only", name)]
    words += as_flags(variant.parameters)
    with (variant.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "neoxkit.cli", "run", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **part, OWNER: str(os.getpid())},
        )


@contextmanager
def _signals_reach(children: Mapping[str, subprocess.Popen], asked: list[int]) -> Iterator[None]:
    """While the block runs, pass Ctrl-C and TERM to the children, which save and stop.

    Signals received are added to `asked`.
    """

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        for child in list(children.values()):
            if child.poll() is None:
                child.send_signal(signal.SIGINT)

    with on_signals(ask):
        yield


def _before(variant: Variant, notebooks: Sequence[str]) -> progress.SweepRow:
    """Return a variant's row before any is started."""
    if is_done(variant, notebooks):
        return progress.ended(standing_of(variant.folder))
    return progress.SweepRow(variant.settings.run, "waiting")


def _look(
    made: Sequence[Variant],
    ends: Mapping[str, Future],
    begun: Mapping[str, float],
    again: Mapping[str, Restarts],
    rows: dict[str, progress.SweepRow],
) -> None:
    """Bring the variants' rows up to date; that of one that has ended does not change again."""
    for variant in made:
        name = variant.settings.run
        end = ends[name]
        if name in rows and end.done() and rows[name].state not in ("waiting", *progress.GOING):
            continue
        causes = again[name].causes if name in again else ()
        rows[name] = _row(variant, end, begun.get(name), causes)


def _row(
    variant: Variant, end: Future, begun: float | None, causes: Sequence[str] = ()
) -> progress.SweepRow:
    """Return a run's name, its state, and how far it is; `causes`: of its restarts."""
    row = _row_of(variant, end, begun, causes)
    if not causes or row.state == "restarting":
        return row
    times = f"restarted {len(causes)} time{'s' if len(causes) > 1 else ''}"
    return row._replace(doing=", ".join(filter(None, (row.doing, times))))


def _row_of(
    variant: Variant, end: Future, begun: float | None, causes: Sequence[str]
) -> progress.SweepRow:
    name, folder = variant.settings.run, variant.folder
    if end.cancelled() or (end.done() and not folder.is_dir()):
        return progress.SweepRow(name, "not started")
    if end.done():
        if endings.state_by(end.result()) in ("finished", "stopped"):
            return progress.ended(standing_of(folder))
        return progress.SweepRow(name, "failed", f"see {paths.short(folder / LOG)}")
    if begun is None and causes:
        return progress.SweepRow(name, "restarting", f"after {causes[-1]}")
    if begun is None and not live_state(folder):  # by the training of a killed sweep
        return progress.SweepRow(name, "waiting")
    return progress.going(folder, time.monotonic() - (begun or time.monotonic()))


def _left(
    rows: Mapping[str, progress.SweepRow],
    begun: Mapping[str, float],
    took: Sequence[float],
    at_once: int,
) -> float | None:
    """Estimate the seconds until the last run has ended."""
    going = [row for row in rows.values() if row.state in progress.GOING]
    waiting = sum(row.state == "waiting" for row in rows.values())
    now = time.monotonic()
    since = [(now - begun.get(row.run, now), row.left) for row in going]
    return progress.seconds_left(took, since, waiting, at_once)


def compare(name: str, made: Sequence[Variant]) -> int:
    """Print the table of all variants, and execute 04_compare into the sweep's own folder."""
    chosen = compare_runs.load_runs(
        [v.settings.run for v in made if (v.folder / METRICS).is_file()]
    )
    if not chosen:
        return 1
    scores, equal_tokens = compare_runs.scores(chosen), compare_runs.equal_tokens(chosen)
    print("\n".join(progress.scoreboard(scores, equal_tokens, sys.stdout)))
    terminal.note(*compare_runs.notes(chosen))
    other_sides = len({variant.settings.block_size for variant in made}) > 1
    names = [run.name for run in chosen]
    parameters = {"runs": names, "name": name, "score_again": other_sides}
    return execute(parameters, [CompareSettings.notebook])
