"""Run the neoxkit notebooks through papermill, with checked parameters, and manage runs."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from neoxkit import __version__, paths
from neoxkit.cli import completion, parameters, screen, telling, words_for
from neoxkit.errors import UserError
from neoxkit.runs import endings
from neoxkit.settings import NOTEBOOKS, EvaluateSettings, TrainSettings

Flags = Sequence[tuple[str, str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 notebook failed, 2 user's mistake, 71 a process of the
    training was killed, 75 training stopped."""
    if argv is None and (answered := completion.answer(_neoxkit)) is not None:
        return answered
    try:
        code = _call(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as mistake:
        if os.environ.get("NEOXKIT_DEBUG") == "1":
            raise
        _print_error(str(mistake))
        return 2
    except BrokenPipeError:  # the reader (head, say) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as fault:
        where = fault.filename or "disk"
        _print_error(f"{where}: {fault.strerror} -- check the folder")
        return 2
    except KeyboardInterrupt:
        print("stopped -- run the same command again to resume", file=sys.stderr)
        return 130


def _print_error(said: str) -> None:
    line = screen.label(f"error: {said}", sys.stderr)
    print(screen.wrapped(line, sys.stderr, len("error: ")), file=sys.stderr)


def _call(words: Sequence[str]) -> int:
    """Run a command, or show the help without one; a mistake that click finds gets its remedy into
    the same line."""
    try:
        with _neoxkit.make_context("neoxkit", [*words] or ["--help"]) as context:
            return _neoxkit.invoke(context)
    except click.exceptions.Exit as done:  # after --help or --version
        return done.exit_code
    except click.UsageError as mistake:
        command = mistake.ctx.command_path if mistake.ctx else f"neoxkit {words[0]}"
        what, remedy = " ".join(mistake.format_message().split()), f"see {command} --help"
        meant = next(iter(getattr(mistake, "possibilities", None) or ()), "")  # an unknown flag
        if isinstance(mistake, click.NoSuchCommand):
            meant = words_for.command(mistake.command_name, _neoxkit.commands)
        if meant:
            what, remedy = mistake.message, f"did you mean {meant}?"
        what = what[0].lower() + what[1:].rstrip(".")
        raise UserError("command line", what, remedy) from None


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they are defined."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, help=__doc__, no_args_is_help=False,
             context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
@click.version_option(__version__, message="%(version)s")
def _neoxkit() -> None:
    pass


_about_a_run = click.argument("run", shell_complete=completion.runs)


def _takes_parameters(
    value: str = "VALUE", of_a_file: str = "a YAML file of parameters; -p wins"
) -> Callable[[Any], Any]:
    """Add -p NAME VALUE and -f FILE.yaml, each repeatable."""
    p = click.option("-p", "flags", type=(str, str), multiple=True, metavar=f"NAME {value}",
                     help="a parameter (repeat for more)")  # fmt: skip
    f = click.option("-f", "files", multiple=True, metavar="FILE.yaml", help=of_a_file,
                     type=click.Path())  # fmt: skip
    return lambda command: p(f(command))


@_neoxkit.command("run", short_help="Execute the notebooks in order into runs/<run>/.")
@_takes_parameters()
@click.option("--only", type=words_for.Notebook([s.notebook for s in NOTEBOOKS]), multiple=True,
              help="only this notebook: 02, 02_train or train (repeat for more)")  # fmt: skip
@telling.option()
def _run(flags: Flags, files: Sequence[str], only: Sequence[str], on_end: str) -> int:
    """Execute the three notebooks in order through papermill into runs/<run>/. A parameter goes to
    every notebook that has it. 01_tokenize alone goes into runs/<dataset>/ unless `run` is given.
    """
    given = parameters.read(files, flags)
    with screen.busy("importing"):
        from neoxkit.cli import notebooks
    return notebooks.execute(given, [*only], on_end)


@_neoxkit.command("sweep", short_help="Make one run per combination of values, and a table of all.")
@click.argument("notebooks", nargs=-1, required=True, metavar="NOTEBOOK...",
                type=words_for.Notebook([TrainSettings.notebook, EvaluateSettings.notebook]),
                help="02_train, 03_evaluate; or 02, 03")  # fmt: skip
@_takes_parameters("V1,V2,...", "a YAML file; a list in it means: sweep these values")
@click.option("--paired", is_flag=True, help="combine the n-th values, not all with all")
@click.option("--at-once", type=int, default=0, metavar="N",
              help="trainings at once; 0: as the GPUs allow, one on a CPU")  # fmt: skip
@click.option("--slurm", is_flag=True, help="as one job array of SLURM (-p launcher slurm)")
@click.option("--dry-run", is_flag=True, help="print the array's script; submit nothing")
@telling.option()
def _sweep(
    notebooks: Sequence[str],
    flags: Flags,
    files: Sequence[str],
    paired: bool,
    at_once: int,
    slurm: bool,
    dry_run: bool,
    on_end: str,
) -> int:
    """Run 02_train (and 03_evaluate, if named) once per combination of the values given, into
    runs/<run>.<name>=<value>, then 04_compare into runs/<run>. The same command again skips
    finished runs and resumes the rest. A run of which a rank, the kernel or the guard was killed
    goes on by itself. With --slurm each run is an element of one job array; Ctrl-C ends only the
    waiting for it.
    """
    with screen.busy("importing"):
        from neoxkit.cli import job_array, sweep, terminal, variants
    if slurm:
        flags = [*flags, ("launcher", "slurm")]
    fixed, swept = parameters.read_swept(files, flags)
    name = fixed.setdefault("run", "sweep")
    made = variants.variants(fixed, swept, paired, notebooks)
    if fixed.get("launcher") == "slurm":
        if on_end:
            what, remedy = "does not follow jobs", "leave it out; -p slurm '{mail-type: END}' mails"
            raise UserError("--on-end", what, remedy)
        return job_array.carry_out(name, made, notebooks, at_once, dry_run)
    if dry_run:
        raise UserError("--dry-run", "prints the script of a job array", "add --slurm")
    names = [variant.settings.run for variant in made]
    with endings.told(endings.SWEEP, name, on_end, terminal.note, names) as ending:
        return ending.by(sweep.run(name, made, notebooks, at_once, on_end))


@_neoxkit.command("doctor", short_help="Show what this machine has and what is missing.")
@click.option("--cluster", is_flag=True, help="ask the nodes of a job (SLURM), or of a hostfile")
@_takes_parameters()
def _doctor(cluster: bool, flags: Flags, files: Sequence[str]) -> int:
    """Show what this machine has and what is missing. With --cluster and the parameters of
    02_train that name the nodes (num_nodes, num_ranks, slurm; or launcher hostfile), ask those
    nodes before anything starts there, and SLURM about itself; exit code 1 if something won't do.
    """
    from neoxkit.cli import doctor

    if cluster:
        return doctor.show_cluster(parameters.read(files, flags))
    if flags or files:
        raise UserError("-p", "names the nodes of a job", "add --cluster")
    for line in doctor.examined(sys.stdout):
        print(line, flush=True)
    return 0


@_neoxkit.command("runs", short_help="List every run with its state, step and losses.")
@click.option("--json", "as_json", is_flag=True, help="as a JSON array of objects")
@telling.tells_what_is_owed
def _runs(as_json: bool) -> int:
    """List every run with its state, step and losses, the one that changed last first. With --json,
    each object has run, state (queued, training, finished, stopped, failed, killed or unknown),
    step and planned_steps, train_loss and eval_loss (the newest; null before the first), changed
    (UTC, as 2026-01-31T09:00:00Z), says (the error, or warnings about its losses) and trial (true
    for a range test or a probe, which leaves no model).
    """
    from neoxkit.cli import terminal
    from neoxkit.runs.folder import all_runs

    with screen.busy("reading runs/"):
        found = all_runs()
    print(terminal.runs_json(found) if as_json else terminal.runs_table(found))
    return 0


@_neoxkit.command("diff", short_help="Show what differs between two runs; nothing else.")
@click.argument("a", shell_complete=completion.runs)
@click.argument("b", shell_complete=completion.runs)
@click.option("--all", "everything", is_flag=True,
              help="every conversation and reply that differs, whole")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="as a JSON object, all texts whole")
def _diff(a: str, b: str, everything: bool, as_json: bool) -> int:
    """Show what differs between the runs A and B (names, or folders copied from elsewhere):
    settings, conversations, versions, losses, and the replies of 03. What is equal is named in one
    line, and what could not be compared, with the reason. Of conversations and replies that differ,
    the first 3 of each kind are shown, and the number of all. Exit code 0 if nothing differs, 1 if
    something does, 2 for a mistake.

    Of a machine, only what a run's bytes depend on counts: processor, GPUs, CUDA, threads. With
    --json, the object has runs, differs, and sections (settings, data, versions, losses, replies),
    each with unequal (name, a, b, by), listed (what, count, rows), says, equal and unknown.
    """
    with screen.busy("importing"):
        from neoxkit.cli import difference
    return difference.diff(a, b, everything, as_json)


@_neoxkit.command("step", short_help="Show what a step trained on, and take it again.")
@_about_a_run
@click.argument("number", type=click.IntRange(min=1), metavar="STEP")
@click.option("--list", "only_list", is_flag=True, help="show what was recorded; train nothing")
@click.option("--json", "as_json", is_flag=True, help="as a JSON object")
def _step(run: str, number: int, only_list: bool, as_json: bool) -> int:
    """Show the conversations of optimizer step STEP of runs/RUN by file and line, with the losses
    that they had then. Then take the step again, from the newest checkpoint before it (or from the
    base), in a folder that is deleted afterwards, and compare: on a CPU all losses, the norm of the
    gradient, and the bytes of the step's checkpoint, if the run has it, are the same. Exit code 1
    if anything differs.

    With --json, the object has step, loss, grad_norm, ranks, conversations (place, line, tokens,
    and loss: the sum over the tokens, in nats) and again (since, same, differences, files).
    """
    with screen.busy("importing"):
        from neoxkit.cli import step
    return step.show(run, number, only_list, as_json)


@_neoxkit.command("repeat", short_help="Train a finished run again and compare the bytes.")
@_about_a_run
def _repeat(run: str) -> int:
    """Train runs/RUN again as its run card says, into runs/RUN.repeat-N, and compare the weights.
    On a CPU they are the same to the byte; exit code 1 if not.
    """
    with screen.busy(f"reading {run}"):
        from neoxkit.cli import repeat
    return repeat.repeat(run)


@_neoxkit.command("fit", short_help="Show whether a training fits here, or what fits where.")
@_takes_parameters()
@click.option("--lora-rank", type=int, default=0, metavar="N",
              help="for the table: train adapters only")  # fmt: skip
@click.option("--machine", multiple=True, metavar="GPUSxGIB",
              help="another machine: 4x24, nodes: 4x8x80 (repeat for more columns)")  # fmt: skip
def _fit(flags: Flags, files: Sequence[str], lora_rank: int, machine: Sequence[str]) -> int:
    """Given parameters of 02_train, show the memory that training needs per rank here, and its
    largest micro-batch (-p probe_steps 3 measures); exit code 1 if it does not fit. The flags of
    neoxkit run work: other notebooks' parameters are ignored. Without parameters, show for each
    model and machine the first configuration that fits, and its largest micro-batch (bf16, gradient
    checkpointing, conversations of 280 tokens).
    """
    with screen.busy("importing"):
        from neoxkit.cli import fit
        from neoxkit.launch import machines
    asked = [machines.machine(text) for text in machine]
    if lora_rank < 0:
        raise UserError("--lora-rank", f"got {lora_rank}", "give 0 or more")
    if chosen := parameters.read(files, flags):
        if lora_rank:
            what = "is for the table, not for one training"
            raise UserError("--lora-rank", what, f"write -p lora_rank {lora_rank}")
        return fit.forecast_of(TrainSettings(**parameters.own(TrainSettings, chosen)), asked)
    return fit.choices(asked, lora_rank)


@_neoxkit.command("convert", short_help="Write a model's pickled weights as safetensors.")
@click.argument("model")
def _convert(model: str) -> int:
    """Write MODEL, a folder or a name on the hub (owner/name, or owner/name@revision), into
    data/models/<name>-converted: weights in pytorch_model.bin, or named by a wrapper
    (torch.compile), become safetensors that model_name_or_path takes. Only tensors are read from a
    pickle.
    """
    also = ", and leave revision out" if "@" in model else ""
    with screen.busy(f"converting {model}"):
        from neoxkit.models import convert

        made = convert.convert(model)
    print(f"set model_name_or_path to {paths.short(made)}{also}")
    return 0


@_neoxkit.command("merge", short_help="Merge a LoRA run into a whole model: runs/RUN/merged.")
@_about_a_run
def _merge(run: str) -> int:
    """Merge a LoRA run into a whole model: runs/RUN/merged."""
    with screen.busy(f"merging {run}"):
        from neoxkit.models import sharing

        merged = sharing.merge(run)
    print(f"{paths.short(merged)} opens with from_pretrained")
    return 0


@_neoxkit.command("report", short_help="Write runs/RUN/report.html: the whole run on one page.")
@_about_a_run
def _report(run: str) -> int:
    """Write runs/RUN/report.html: the whole run on one page."""
    with screen.busy(f"writing the report of {run}"):
        from neoxkit.cli import report

        written = report.write(run)
    print(f"{paths.short(written)} ({written.stat().st_size / 2**20:.1f} MiB)")
    return 0


@_neoxkit.command("stop", short_help="Stop a training: it finishes its step and saves.")
@_about_a_run
@click.option("--now", is_flag=True, help="end it at once, without saving")
@telling.tells_what_is_owed
def _stop(run: str, now: bool) -> int:
    """Ask the training in runs/RUN to finish its step, save and stop, and wait until it has. The
    command that started it resumes from there.
    """
    from neoxkit.cli import stopping

    return stopping.stop(run, now)


@_neoxkit.command("completion", short_help="Print what completes commands and runs in a shell.")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def _completion(shell: str) -> int:
    """Print the script with which SHELL completes commands, flags, notebooks and the names of
    runs. Add a line to the shell's own file:

    \b
    ~/.bashrc    eval "$(neoxkit completion bash)"
    ~/.zshrc     eval "$(neoxkit completion zsh)"
    config.fish  neoxkit completion fish | source
    """
    return completion.write_script(_neoxkit, shell)
