"""Run the neoxkit notebooks through papermill, with checked parameters, and manage runs."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from neoxkit import __version__, paths
from neoxkit.cli import notebooks, parameters, terminal
from neoxkit.errors import UserError
from neoxkit.runs import lock
from neoxkit.runs.folder import all_runs, standing_of
from neoxkit.settings import NOTEBOOKS, EvaluateSettings, TrainSettings

if TYPE_CHECKING:
    from neoxkit.launch.machines import Machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 notebook failed, 2 user's mistake, 75 training stopped."""
    try:
        options = _parser().parse_args(_protected(sys.argv[1:] if argv is None else argv))
        code = options.call(options)
        sys.stdout.flush()
        return code
    except UserError as mistake:
        if os.environ.get("NEOXKIT_DEBUG") == "1":
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, say) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as fault:
        where = fault.filename or "disk"
        print(f"error: {where}: {fault.strerror} -- check the folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped -- run the same command again to resume", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("command line", message, f"see {self.prog} --help")


def _protected(argv: Sequence[str]) -> list[str]:
    """Put a blank before a value like -1e-5, so that argparse does not take it for a flag."""
    words = list(argv)
    for i in range(2, len(words)):
        if words[i - 2] == "-p" and words[i].startswith("-"):
            words[i] = f" {words[i]}"
    return words


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="neoxkit", description=__doc__, allow_abbrev=False)
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
    _takes_parameters(run, "VALUE", "a YAML file of parameters; -p wins")
    run.add_argument("--only", choices=[s.notebook for s in NOTEBOOKS], action="append",
                     help="only this notebook (repeat for more)")  # fmt: skip
    run.set_defaults(call=_run)
    sweep = commands.add_parser(
        "sweep",
        help="make one run per combination of values, and a table of all",
        allow_abbrev=False,
        description="Run 02_train (and 03_evaluate, if named) once per combination of the values "
        "given, into runs/<run>.<name>=<value>, then 04_compare into runs/<run>. The same command "
        "again skips finished runs and resumes the rest.",
    )
    sweep.add_argument("notebooks", nargs="+", metavar="NOTEBOOK",
                       choices=[s.notebook for s in (TrainSettings, EvaluateSettings)],
                       help="02_train, 03_evaluate")  # fmt: skip
    _takes_parameters(sweep, "V1,V2,...", "a YAML file; a list in it means: sweep these values")
    sweep.add_argument("--paired", action="store_true",
                       help="combine the n-th values, not all with all")  # fmt: skip
    sweep.add_argument("--at-once", type=int, default=0, metavar="N",
                       help="trainings at once; 0: as the GPUs allow, one on a CPU")  # fmt: skip
    sweep.set_defaults(call=_sweep)
    doctor = commands.add_parser(
        "doctor", allow_abbrev=False, help="show what this machine has and what is missing"
    )
    doctor.set_defaults(call=lambda _: _doctor())
    listed = commands.add_parser(
        "runs", allow_abbrev=False, help="list every run with its state, step and losses"
    )
    listed.set_defaults(call=lambda _: _list_runs())
    _about_a_run(
        commands, "repeat", _repeat, "train a finished run again and compare the bytes",
        "Train runs/RUN again as its run card says, into runs/RUN.repeat-N, and compare the "
        "weights. On a CPU they are the same to the byte; exit code 1 if not.",
    )  # fmt: skip
    fits = commands.add_parser(
        "fit", allow_abbrev=False, help="show whether a training fits here, or what fits where",
        description="Given parameters of 02_train, show the memory that training needs per rank "
        "here, and its largest micro-batch (-p probe_steps 3 measures); exit code 1 if it does not "
        "fit. The flags of neoxkit run work: other notebooks' parameters are ignored. Without "
        "parameters, show for each model and machine the first configuration that fits, and its "
        "largest micro-batch (bf16, gradient checkpointing, conversations of 280 tokens).",
    )  # fmt: skip
    _takes_parameters(fits, "VALUE", "a YAML file of parameters; -p wins")
    fits.add_argument("--lora-rank", type=int, default=0, metavar="N",
                      help="for the table: train adapters only")  # fmt: skip
    fits.add_argument("--machine", action="append", default=[], metavar="GPUSxGIB",
                      help="another machine: 4x24 (repeat for more in the table)")  # fmt: skip
    fits.set_defaults(call=_fit)
    _about_a_run(commands, "merge", _merge, "merge a LoRA run into a whole model: runs/RUN/merged")
    _about_a_run(
        commands, "report", _report, "write runs/RUN/report.html: the whole run on one page"
    )
    stop = _about_a_run(
        commands, "stop", _stop, "stop a training: it finishes its step and saves",
        "Ask the training in runs/RUN to finish its step, save and stop, and wait until it has. "
        "The command that started it resumes from there.",
    )  # fmt: skip
    stop.add_argument("--now", action="store_true", help="end it at once, without saving")
    return parser


def _takes_parameters(parser: argparse.ArgumentParser, value: str, of_a_file: str) -> None:
    """Add -p NAME VALUE and -f FILE.yaml, each repeatable."""
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", value),
                        dest="parameters", help="a parameter (repeat for more)")  # fmt: skip
    parser.add_argument("-f", action="append", default=[], metavar="FILE.yaml", dest="files",
                        help=of_a_file)  # fmt: skip


def _about_a_run(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], help: str, more: str = ""
) -> argparse.ArgumentParser:
    """Add a command that takes the name of a run."""
    parser = commands.add_parser(name, allow_abbrev=False, help=help, description=more or help)
    parser.add_argument("run", metavar="RUN")
    parser.set_defaults(call=call)
    return parser


def _run(options: argparse.Namespace) -> int:
    flags = [(name, value.strip()) for name, value in options.parameters]
    return notebooks.execute(parameters.read(options.files, flags), options.only)


def _sweep(options: argparse.Namespace) -> int:
    from neoxkit.cli import sweep

    flags = [(name, value.strip()) for name, value in options.parameters]
    fixed, swept = parameters.read_swept(options.files, flags)
    name = fixed.setdefault("run", "sweep")
    made = sweep.variants(fixed, swept, options.paired, options.notebooks)
    return sweep.run(name, made, options.notebooks, options.at_once)


def _doctor() -> int:
    from neoxkit.cli import doctor

    print(doctor.report())
    return 0


def _list_runs() -> int:
    print(terminal.runs_table(all_runs()))
    return 0


def _repeat(options: argparse.Namespace) -> int:
    from neoxkit.cli import repeat

    return repeat.repeat(options.run)


def _fit(options: argparse.Namespace) -> int:
    from neoxkit.lab import view
    from neoxkit.launch import machines

    flags = [(name, value.strip()) for name, value in options.parameters]
    asked = [machines.machine(text) for text in options.machine]
    if options.lora_rank < 0:
        raise UserError("--lora-rank", f"got {options.lora_rank}", "give 0 or more")
    if chosen := parameters.read(options.files, flags):
        if options.lora_rank:
            what = "is for the table, not for one training"
            raise UserError("--lora-rank", what, f"write -p lora_rank {options.lora_rank}")
        own = {k: v for k, v in chosen.items() if k in TrainSettings.__dataclass_fields__}
        return _fits(TrainSettings(**own), asked)
    shown = asked or machines.MACHINES
    rows = machines.choices(machines.configurations(), options.lora_rank, shown)
    print(view.table(rows, ("model", *map(str, shown))).text)
    print(
        "ds_config, how many conversations of 280 tokens fit on each GPU, GiB of host memory; by "
        "formulas (lib/neoxkit/models/memory.py) that were checked on CPUs, not yet on GPUs"
    )
    return 0


def _fits(settings: TrainSettings, asked: Sequence["Machine"]) -> int:
    """Forecast a training, here or on another machine; return exit code 1 if it does not fit."""
    from neoxkit.lab import view
    from neoxkit.launch import forecast, trials

    if len(asked) > 1:
        raise UserError("--machine", f"got {len(asked)} for one training", "give one")
    if asked and settings.probe_steps:
        raise UserError("probe_steps", "run here, not on --machine", "leave one of them out")
    if not asked:
        trials.probe(settings, terminal.Counting)
    found = forecast.on_dataset(settings, asked[0] if asked else None)
    print(view.table(found.rows()).text)
    return 1 if found.misfit else 0


def _merge(options: argparse.Namespace) -> int:
    from neoxkit.models import sharing

    print(f"{paths.short(sharing.merge(options.run))} opens with from_pretrained")
    return 0


def _report(options: argparse.Namespace) -> int:
    from neoxkit.cli import report

    written = report.write(options.run)
    print(f"{paths.short(written)} ({written.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _stop(options: argparse.Namespace) -> int:
    """Stop a training and wait until it is gone; return 0 if it saved and stopped, or finished."""
    run, now = options.run, options.now
    folder = paths.run(run)
    while (pid := lock.locked_by(folder)) == lock.UNKNOWN:
        time.sleep(0.05)  # it has just started
    if not pid:
        raise UserError("RUN", f"{run} is not training", "see neoxkit runs")
    if now:
        os.kill(pid, signal.SIGQUIT)  # the guard, which ends the whole tree
    else:
        lock.ask_to_stop(folder)
        print(f"{run} finishes its step and saves ...", flush=True)
    while lock.locked_by(folder):
        time.sleep(0.2)
    lock.answer_stop(folder)  # a training that had just ended did not see it
    standing = standing_of(folder)
    print(terminal.how_it_stands(standing))
    return 0 if now or standing.state in ("stopped", "finished") else 1
