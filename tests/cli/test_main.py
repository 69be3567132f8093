"""main.py and doctor.py: mistakes are refused in one line, before slow imports."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nbclient.exceptions import DeadKernelError

from neoxkit import files, paths
from neoxkit.cli import doctor, notebooks, parameters, stopping, sweep, terminal, variants
from neoxkit.cli import main as cli
from neoxkit.runs import heartbeat, lease, lock
from neoxkit.runs.events import read_events
from neoxkit.settings import NOTEBOOKS, EvaluateSettings, TokenizeSettings, TrainSettings

CapSys = pytest.CaptureFixture[str]
FACTS = {"dataset": "data/tokenized/sample", "dataset_sha256": ""}


class Failure(Exception):
    """A stand-in for PapermillExecutionError."""

    def __init__(self, ename: str, evalue: str) -> None:
        super().__init__(evalue)
        self.ename, self.evalue = ename, evalue


def write_results(notebook: str, data: Path, run: Path) -> None:
    """Write what `neoxkit run` reads of a notebook's results."""
    data.mkdir(parents=True, exist_ok=True)
    if notebook == "01_tokenize":
        counts = {"read": 60, "cut_lines": [], "dropped_lines": {"no reply": [7]}}
        sides = {"train": {"conversations": 56}, "eval": {"conversations": 3}}
        source = {"path": "away.txt", "sha256": "", "unit": "line", "begins": {}}
        made_of = {"source": source, "eval_source": None, "settings": {}, "versions": {}}
        notes = {"notes": ["labels of neither side"], "split_notes": ["Only 3 are held out."]}
        manifest = {"counts": {"train": counts}, "sides": sides, **notes, **made_of}
        files.write_json(data / "manifest.json", manifest)
    elif notebook == "02_train":
        files.write_json(run / "FINISHED.json", {"eval_loss": 2.766, "warnings": [], **FACTS})
    else:
        scores = {"base": {"loss": 6.857}, "tuned": {"loss": 2.766}}
        files.write_json(run / "evaluation.json", {"eval_loss": scores})


class Papermill(ModuleType):
    """A stand-in for papermill: keeps what it was asked to execute."""

    def __init__(self) -> None:
        super().__init__("papermill")
        self.exceptions = ModuleType("papermill.exceptions")
        self.exceptions.PapermillExecutionError = Failure
        self.calls: list[tuple[str, Path, dict[str, Any]]] = []
        self.failure: Failure | None = None
        self.faults: list[Exception] = []  # raised one per call, before anything is done
        self.fails_at = "01_tokenize"

    def execute_notebook(self, source: str, target: str, **options: Any) -> None:
        if self.faults:
            raise self.faults.pop()
        assert (options["kernel_name"], options["language"]) == ("python3", "python")
        self.calls.append((Path(source).stem, Path(target), options["parameters"]))
        if self.failure and Path(source).stem == self.fails_at:
            raise self.failure
        name = options["parameters"].get("dataset", "sample")
        write_results(Path(source).stem, paths.tokenized(name), Path(target).parent)

    def given(self) -> dict[str, dict[str, Any]]:
        """Return each notebook's values other than the defaults; every parameter is injected."""
        stages = {stage.notebook: stage for stage in NOTEBOOKS}
        for stem, _, injected in self.calls:
            assert [*injected] == [field.name for field in fields(stages[stem])]
        return {stem: stages[stem](**injected).changed() for stem, _, injected in self.calls}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.delenv("NEOXKIT_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def papermill(monkeypatch: pytest.MonkeyPatch) -> Papermill:
    fake = Papermill()
    monkeypatch.setitem(sys.modules, "papermill", fake)
    monkeypatch.setitem(sys.modules, "papermill.exceptions", fake.exceptions)
    return fake


@pytest.fixture
def finished(folder: Path) -> Path:
    """Make a finished run `demo` on the dataset `sample`."""
    run = folder / "runs" / "demo"
    run.mkdir(parents=True)
    write_results("02_train", folder / "data" / "tokenized" / "sample", run)
    return run


def refused(capsys: CapSys, *argv: str) -> str:
    """Return the one line on stderr with which a command is refused."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    return err.strip().removeprefix("error: ")


def test_an_unknown_parameter_is_refused_with_a_similar_one(
    capsys: CapSys, papermill: Papermill
) -> None:
    said = refused(capsys, "run", "-p", "learning_rat", "1e-5")
    assert said == (
        "learning_rat: is not a parameter of these notebooks -- did you mean learning_rate?"
    )
    assert "known are " in refused(capsys, "run", "-p", "zzz", "1")
    assert papermill.calls == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("block_size", "many", "block_size: must be a whole number, got 'many'"),
        ("restart", "perhaps", "restart: must be true or false, got 'perhaps'"),
        ("block_size", "4", "block_size: must be at least 8, got 4"),
        ("learning_rate", "-1", "learning_rate: must be at least 0, got -1"),
        ("too_long", "crop", "too_long: got 'crop' -- choose one of drop, cut, split, error"),
        ("run", "../x", "run: '../x' is not a name"),
        ("my_questions", "[one", "my_questions: '[one' is not YAML"),
        (
            "my_questions",
            "one?",
            "my_questions: must be a list, got 'one?' -- write ",
        ),
    ],
)
def test_a_bad_value_is_refused_before_papermill_is_imported(
    capsys: CapSys, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, value: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "papermill", None)  # importing it would raise ImportError
    assert refused(capsys, "run", "-p", name, value).startswith(said)
    assert {p.name for p in folder.iterdir()} == {"notebooks", "ds_configs", "data"}


def test_parameters_go_to_every_notebook_that_has_them(papermill: Papermill, folder: Path) -> None:
    argv = ["run", "-p", "run", "x", "-p", "seed", "7", "-p", "learning_rate", "2e-5"]
    (folder / "data" / "sample.txt").write_text("User: a\n\n123: b<|endoftext|>\n")
    assert cli.main([*argv, "-p", "restart", "true", "-p", "agent_name", "123"]) == 0
    assert papermill.given() == {
        "01_tokenize": {"seed": 7, "agent_name": "123"},
        "02_train": {"run": "x", "learning_rate": 2e-5, "seed": 7, "restart": True},
        "03_evaluate": {"run": "x", "seed": 7},
    }
    assert [stem for stem, _, _ in papermill.calls] == ["01_tokenize", "02_train", "03_evaluate"]
    assert [target for _, target, _ in papermill.calls] == [
        folder / "runs" / "x" / f"{stem}.ipynb" for stem in papermill.given()
    ]
    assert (folder / "runs" / "x").is_dir()


def test_without_parameters_the_default_run_is_made(papermill: Papermill, capsys: CapSys) -> None:
    assert cli.main(["run"]) == 0
    assert papermill.given() == {"01_tokenize": {}, "02_train": {}, "03_evaluate": {}}
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "[1/3] 01_tokenize -> runs/demo/01_tokenize.ipynb",
        "0 s",
        "labels of neither side",
        "60 read, 1 dropped (no reply: line 7); 56 train, 3 eval",
        "Only 3 are held out.",
        "[2/3] 02_train -> runs/demo/02_train.ipynb",
        "its log: runs/demo/train.log",
        "0 s",
        "[3/3] 03_evaluate -> runs/demo/03_evaluate.ipynb",
        "0 s",
        "done: 60 read, 1 dropped; eval loss 6.86 -> 2.77; model in runs/demo/model",
    ]


def save(folder: Path, notebook: str, parameters: str) -> None:
    """Save a notebook as JupyterLab does, with only its parameters cell."""
    cell = {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}}
    kernel = {"name": "julia", "language": "julia"}
    saved = {"cells": [cell], "metadata": {"kernelspec": kernel}}
    files.write_json(folder / "notebooks" / f"{notebook}.ipynb", saved)


def test_values_saved_in_the_notebooks_are_ignored(
    papermill: Papermill, folder: Path, capsys: CapSys
) -> None:
    """Each is named in one line, unless it was given or equals the default."""
    save(folder, "01_tokenize", 'train_file = "data/other.txt"\nblock_size = 64\nseed = 9\n')
    save(folder, "02_train", 'dataset = "sample"\nlearning_rate: float = 5e-05  # peak')
    save(folder, "03_evaluate", 'seed = 0\nmy_questions: list = ["Who is Ann?"]\nbatch_size = 2**3')
    assert cli.main(["run", "-p", "block_size", "32", "-p", "seed", "7"]) == 0
    assert papermill.given() == {
        "01_tokenize": {"block_size": 32, "seed": 7},
        "02_train": {"block_size": 32, "seed": 7},
        "03_evaluate": {"seed": 7},
    }
    out = capsys.readouterr().out
    assert out.splitlines()[:4] == [
        "note: notebooks/01_tokenize.ipynb holds train_file data/other.txt; data/sample.txt is used"
        " -- give -p train_file data/other.txt to use it",
        "note: notebooks/02_train.ipynb holds learning_rate 5e-05; 0.0 is used"
        " -- give -p learning_rate 5e-05 to use it",
        "note: notebooks/03_evaluate.ipynb holds my_questions ..., batch_size ...; ..., 32 are used"
        " -- give them with -p to use them",
        "[1/3] 01_tokenize -> runs/demo/01_tokenize.ipynb",
    ]
    assert "Ann" not in out


@pytest.mark.parametrize("held", ['dataset = "sample"\nrestart = False', "rate = ", ""])
def test_a_notebook_that_holds_the_defaults_is_not_mentioned(
    papermill: Papermill, folder: Path, capsys: CapSys, held: str
) -> None:
    (folder / "data" / "mine.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    for stage in NOTEBOOKS:
        save(folder, stage.notebook, held)
    assert cli.main(["run", "-p", "train_file", "data/mine.txt"]) == 0
    assert "note: " not in capsys.readouterr().out


def test_ignored_values_are_named_before_a_refusal_that_they_explain(
    papermill: Papermill, folder: Path, capsys: CapSys
) -> None:
    save(folder, "03_evaluate", 'run = "mine"')
    assert cli.main(["run", "--only", "03_evaluate"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: run: runs/demo does not exist")
    assert out.startswith("note: notebooks/03_evaluate.ipynb holds run mine; demo is used")


def test_a_sweep_skips_what_is_finished_whatever_03_holds(
    papermill: Papermill, folder: Path, finished: Path
) -> None:
    """A private question saved in 03 does not reach any run either."""
    save(folder, "03_evaluate", 'num_questions = 7\nmy_questions = ["Who is Ann?"]')
    assert cli.main(["run", "--only", "03_evaluate"]) == 0
    ((_, _, injected),) = papermill.calls
    assert injected == EvaluateSettings().as_dict()
    files.write_json(finished / "evaluation.json", {"settings": injected})
    variant = variants.Variant({"run": "demo"}, TrainSettings())
    assert sweep.is_done(variant, ["02_train", "03_evaluate"])


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["-p", "train_file", "data/my talks.txt"], ("my-talks", "my-talks")),
        (["-p", "train_file", "data/my talks.txt", "-p", "dataset", "x"], ("x", "x")),
        (["-p", "train_file", "data/my talks.txt", "-p", "dataset", ""], ("my-talks", "my-talks")),
        ([], ("sample", "sample")),
    ],
)
def test_02_trains_on_the_dataset_that_01_writes(
    papermill: Papermill, folder: Path, flags: list[str], names: tuple[str, str]
) -> None:
    (folder / "data" / "my talks.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    assert cli.main(["run", *flags]) == 0
    assert tuple(injected["dataset"] for _, _, injected in papermill.calls[:2]) == names


def test_flags_win_over_files_and_later_files_over_earlier(
    papermill: Papermill, folder: Path
) -> None:
    (folder / "a.yaml").write_text(
        'run: a\nseed: 1\nlearning_rate: 2e-5\nmy_questions: ["a?", "b?"]\n'
    )
    (folder / "b.yaml").write_text("seed: 2\nblock_size: 64\n")
    argv = ["run", "-p", "block_size", "32", "-f", "a.yaml", "-f", "b.yaml"]
    assert cli.main(argv) == 0
    assert papermill.given()["02_train"] == {
        "run": "a",
        "seed": 2,
        "learning_rate": 2e-5,
        "block_size": 32,
    }
    assert papermill.given()["03_evaluate"]["my_questions"] == ["a?", "b?"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nrun: : x\n", "bad.yaml:2: is not YAML"),
        ("seed: 1\nrun: x\n\tblock_size: 3\n", "bad.yaml:3: is not YAML"),
        ("- seed\n", "bad.yaml:1: is not a mapping"),
        (
            "sead: 1\n",
            "bad.yaml:1: sead: is not a parameter of these notebooks -- did you mean seed?",
        ),
        ("agent_name: 123\n", "agent_name: got the number 123 for a text"),
    ],
)
def test_a_bad_file_names_its_line(
    capsys: CapSys, papermill: Papermill, folder: Path, text: str, said: str
) -> None:
    (folder / "bad.yaml").write_text(text)
    assert refused(capsys, "run", "-f", "bad.yaml").startswith(said)
    assert papermill.calls == []


@pytest.mark.parametrize("make", [Path.mkdir, lambda p: p.write_bytes(b"seed: \xff\xfe\n")])
def test_a_file_that_is_not_text_is_refused(
    capsys: CapSys, papermill: Papermill, folder: Path, make: Any
) -> None:
    make(folder / "odd.yaml")
    assert re.match(r"(-f: ')?odd.yaml", refused(capsys, "run", "-f", "odd.yaml"))


def test_a_missing_file_and_an_empty_one(
    capsys: CapSys, papermill: Papermill, folder: Path
) -> None:
    assert refused(capsys, "run", "-f", "no.yaml").startswith("-f: 'no.yaml' does not exist in ")
    (folder / "empty.yaml").write_text("# nothing\n")
    assert cli.main(["run", "-f", "empty.yaml"]) == 0


def test_lists_and_dicts_are_written_as_yaml(papermill: Papermill) -> None:
    questions, more = '["What is 2 + 2?", "Why: so?"]', "{adam_beta1: 0.8, adam_epsilon: 1e-6}"
    argv = ["run", "-p", "my_questions", questions, "-p", "training_arguments", more]
    assert cli.main(argv) == 0
    assert papermill.given()["03_evaluate"] == {"my_questions": ["What is 2 + 2?", "Why: so?"]}
    assert papermill.given()["02_train"] == {
        "training_arguments": {"adam_beta1": 0.8, "adam_epsilon": 1e-6}
    }


def test_only_runs_the_chosen_notebooks_and_refuses_others_parameters(
    capsys: CapSys, papermill: Papermill, finished: Path
) -> None:
    said = refused(capsys, "run", "--only", "01_tokenize", "-p", "max_new_tokens", "5")
    assert said.startswith("max_new_tokens: is not a parameter of the chosen notebooks")
    assert papermill.calls == []
    assert cli.main(["run", "--only", "03_evaluate", "-p", "max_new_tokens", "5"]) == 0
    assert papermill.given() == {"03_evaluate": {"max_new_tokens": 5}}


@pytest.mark.parametrize("said", ["03_evaluate", "03", "3", "03_e", "evaluate", "eval"])
def test_a_notebook_is_named_by_its_number_or_how_its_name_begins(
    papermill: Papermill, finished: Path, said: str
) -> None:
    assert cli.main(["run", "--only", said]) == 0
    assert [stem for stem, _, _ in papermill.calls] == ["03_evaluate"]


def test_the_notebooks_of_a_sweep_are_named_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sweep, "run", lambda name, made, books, *_: asked.append(books) or 0)
    assert cli.main(["sweep", "2", "eval", "-p", "seed", "1,2"]) == 0
    assert [*asked[0]] == ["02_train", "03_evaluate"]


@pytest.mark.parametrize("by_flag", [True, False])
def test_the_end_of_a_command_is_told_once(
    papermill: Papermill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_flag: bool
) -> None:
    """What the command starts does not hear of it, or it would be told again."""
    tell = f'echo "$NEOXKIT_SAYS" >> {tmp_path}/told'
    if not by_flag:
        monkeypatch.setenv("NEOXKIT_ON_END", tell)
    flags = ["--on-end", tell] if by_flag else []
    assert cli.main(["run", "--only", "01_tokenize", "-p", "run", "mine", *flags]) == 0
    assert (tmp_path / "told").read_text() == "mine: finished\n"
    assert "NEOXKIT_ON_END" not in os.environ
    wrong = ["run", "--only", "02", "-p", "dataset", "gone", "-p", "run", "bad"]
    assert cli.main([*wrong, "--on-end", tell]) == 2
    said = (tmp_path / "told").read_text().splitlines()[1:]
    assert len(said) == 1 and said[0].startswith("bad: failed; dataset: ")


@pytest.mark.parametrize("what", ["a rank", "the kernel"])
def test_a_kill_has_an_exit_code_of_its_own(
    papermill: Papermill, capsys: CapSys, what: str, tmp_path: Path
) -> None:
    """By which a sweep knows that the run may go on."""
    if what == "a rank":
        papermill.failure = Failure("Killed", "its kernel was killed")
        papermill.fails_at = "02_train"
    else:
        execute = papermill.execute_notebook

        def dies(source: str, target: str, **options: Any) -> None:
            if Path(source).stem == "02_train":
                raise DeadKernelError("Kernel died")
            execute(source, target, **options)

        papermill.execute_notebook = dies
    assert cli.main(["run"]) == 71
    said = capsys.readouterr().err.splitlines()
    assert said == ["error: its kernel was killed", "       in runs/demo/02_train.ipynb"]
    events = [] if what == "a rank" else [("killed", "its kernel was killed")]
    assert [(e["event"], e["what"]) for e in read_events(tmp_path / "runs" / "demo")] == events


def test_the_end_of_a_job_array_is_told_by_slurm(
    monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    words = ["sweep", "02", "--slurm", "-p", "seed", "1,2", "--on-end", "true"]
    assert cli.main(words) == 2
    said = (
        "error: --on-end: does not follow jobs -- leave it out; -p slurm '{mail-type: END}' mails"
    )
    assert capsys.readouterr().err.strip() == said


def test_run_sets_the_folder_of_every_notebook(capsys: CapSys, papermill: Papermill) -> None:
    """This includes 01, which has no parameter `run` itself."""
    assert cli.main(["run", "--only", "01_tokenize", "-p", "run", "mine"]) == 0
    assert papermill.given() == {"01_tokenize": {}}
    assert "runs/mine/01_tokenize.ipynb" in capsys.readouterr().out


def test_01_alone_has_a_folder_of_its_own(papermill: Papermill, folder: Path) -> None:
    assert cli.main(["run", "--only", "01_tokenize", "-p", "dataset", "mine"]) == 0
    assert [target for _, target, _ in papermill.calls] == [
        folder / "runs" / "mine" / "01_tokenize.ipynb"
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-p", "ds_config", "zero9"], "ds_config: 'zero9' is not in ds_configs/"),
        (["-p", "train_file", "no.txt"], "train_file: 'no.txt' does not exist in "),
        (["-p", "questions_file", "no.jsonl"], "questions_file: 'no.jsonl' does not exist in "),
        (["-p", "model_name_or_path", "gpt"], "model_name_or_path: 'gpt' is not a folder here"),
        (["-p", "num_ranks", "10000"], "num_ranks: got 10000"),
        (["--only", "02_train"], "dataset: data/tokenized/sample is not a tokenized dataset"),
        (["--only", "03_evaluate", "-p", "run", "x"], "run: runs/x does not exist -- run 02_train"),
    ],
)
def test_what_a_later_notebook_would_refuse_is_refused_before_the_first(
    capsys: CapSys, papermill: Papermill, folder: Path, argv: list[str], said: str
) -> None:
    assert refused(capsys, "run", *argv).startswith(said)
    assert papermill.calls == [] and not (folder / "runs").exists()


def test_a_run_that_trains_now_keeps_its_dataset(
    capsys: CapSys, papermill: Papermill, finished: Path
) -> None:
    with (finished / lock.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert refused(capsys, "run").startswith("run: demo is training now ")
    assert papermill.calls == []


def test_03_alone_refuses_a_dataset_tokenized_anew(
    capsys: CapSys, papermill: Papermill, finished: Path
) -> None:
    files.write_json(finished / "FINISHED.json", {**FACTS, "dataset_sha256": "of the old one"})
    said = refused(capsys, "run", "--only", "03_evaluate")
    assert said.startswith("dataset: data/tokenized/sample was tokenized again after the run")
    assert papermill.calls == []


def test_a_finished_run_is_said_to_be_shown(
    capsys: CapSys, papermill: Papermill, finished: Path
) -> None:
    assert cli.main(["run"]) == 0
    assert "      already trained: shown as it is\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (Failure("UserError", "run: is taken -- wait"), 2, "error: run: is taken -- wait"),
        (Failure("Faults", "a:1: is x -- y\na:2: z -- y"), 2, "error: a:1: is x -- y\na:2: z -- y"),
        (Failure("TrainingError", "no result"), 1, "error: TrainingError: no result"),
    ],
)
def test_a_failing_notebook_stops_those_after_it(
    capsys: CapSys, papermill: Papermill, failure: Failure, code: int, said: str
) -> None:
    papermill.failure = failure
    assert cli.main(["run"]) == code
    assert [stem for stem, _, _ in papermill.calls] == ["01_tokenize"]
    assert capsys.readouterr().err == f"{said}\n       in runs/demo/01_tokenize.ipynb\n"


def test_a_kernel_that_did_not_start_is_started_again(capsys: CapSys, papermill: Papermill) -> None:
    """A kernel may die twice, its port taken; a third death is raised, like any other error."""
    died = RuntimeError("Kernel died before replying to kernel_info")
    papermill.faults = [died, died]
    assert cli.main(["run", "--only", "01_tokenize"]) == 0
    assert capsys.readouterr().out.count("its kernel did not start; trying again") == 2
    assert [stem for stem, _, _ in papermill.calls] == ["01_tokenize"]
    for faults in ([died] * 3, [RuntimeError("out of luck")]):
        papermill.faults = [*faults]
        with pytest.raises(RuntimeError, match=str(faults[0])):
            cli.main(["run", "--only", "01_tokenize"])
        assert not papermill.faults


def test_an_error_is_printed_below_the_progress_line(
    capsys: CapSys, papermill: Papermill, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def following(folder: Path) -> Iterator[None]:
        yield
        print("the line is over", file=sys.stderr)

    monkeypatch.setattr(terminal, "following", following)
    papermill.failure, papermill.fails_at = Failure("TrainingError", "no result"), "02_train"
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err.splitlines()[:2] == [
        "the line is over",
        "error: TrainingError: no result",
    ]


def test_a_parameter_has_one_type_in_all_notebooks() -> None:
    for name, field in parameters.known().items():
        for stage in (TokenizeSettings, TrainSettings, EvaluateSettings):
            assert stage.__dataclass_fields__.get(name) is None or (
                stage.__dataclass_fields__[name].type is field.type
            )


def test_the_name_alone_shows_the_help(capsys: CapSys) -> None:
    assert cli.main([]) == 0
    alone = capsys.readouterr()
    assert cli.main(["--help"]) == 0
    assert alone == capsys.readouterr() and alone.out.startswith("Usage: neoxkit ")
    assert alone.err == ""


def test_the_help_names_every_command_in_a_line_of_80_columns(
    capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.partition("Commands:")[2].strip().splitlines()]
    wanted = "run sweep doctor runs diff step repeat fit convert merge report stop completion"
    assert names == wanted.split()
    assert "..." not in out.partition("Commands:")[2]  # no sentence is cut
    for name in names:
        assert cli.main([name, "-h"]) == 0
        out += capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for flags in (
        "-p NAME VALUE ",
        "-p NAME V1,V2,... ",
        "-f FILE.yaml ",
        "--at-once N ",
        "--now ",
    ):
        assert f"\n  {flags}" in out


NEEDED = ("Python", "torch", "DeepSpeed", "C++ compiler", "ninja", "free disk", "JupyterLab kernel")


def lines(report: str) -> dict[str, str]:
    """Return the doctor's table as what -> found, without remedies (indented lines)."""
    rows = [line.split("  ", 1) for line in report.splitlines() if not line.startswith(" ")]
    assert len({what for what, _ in rows}) == len(rows), "a line stands twice"
    return {what: found.strip() for what, found in rows}


def test_doctor_has_one_line_for_each_thing(capsys: CapSys) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    found = lines(out)
    assert set(NEEDED) <= set(found)
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    width = max(map(len, found))
    for line in out.splitlines():  # two columns, remedies in the second
        assert line[width : width + 2] == "  " and line[width + 2] != " "


def test_doctor_works_on_a_machine_with_nothing(
    capsys: CapSys, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    found = lines(out)
    assert set(NEEDED) <= set(found)
    assert found["C++ compiler"] == found["ninja"] == "missing"
    rows = out.splitlines()
    for name in ("C++ compiler", "ninja"):  # a missing thing has its remedy on the next line
        at = next(i for i, row in enumerate(rows) if row.startswith(name))
        assert rows[at + 1].strip().startswith("-> ")


def test_doctor_names_a_kernel_of_another_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    spec = type("Spec", (), {"argv": ["/other/python", "-m", "ipykernel_launcher"]})()
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    *_, kernel, remedy = doctor.report().splitlines()
    assert lines(kernel)["JupyterLab kernel"] == "python3 -> /other/python"
    assert remedy.strip() == (  # tests/cli/test_saved_notebooks.py follows it
        "-> neoxkit run and make lab don't mind; for papermill -k neoxkit, or JupyterLab's kernel "
        f"menu: {sys.executable} -m ipykernel install --user --name neoxkit"
    )


def report_with(monkeypatch: pytest.MonkeyPatch, torch: Any) -> dict[str, str]:
    """Return the doctor's table with another torch, each remedy after what it is for."""
    monkeypatch.setitem(sys.modules, "torch", torch)
    return lines(re.sub(r"\n +->", " ->", doctor.report()))


def test_doctor_counts_gpus_and_names_an_nvcc_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    gpu = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    torch = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"))
    torch.cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda _: gpu,
        is_bf16_supported=lambda emulated: True,
    )  # fmt: skip
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\necho release 12.4, V12.4\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path="": str(nvcc))
    found = report_with(monkeypatch, torch)
    assert found["torch"] == "2.13.0, CUDA 13.0"
    assert found["GPUs"] == "2 x H100, 80 GiB; bf16 yes"
    assert found["nvcc"].startswith("12.4; torch was built with 13.0 -> only to compile ")
    nvcc.write_text("#!/bin/sh\necho release 13.1, V13.1\n")
    assert report_with(monkeypatch, torch)["nvcc"] == "13.1; torch was built with 13.0"
    torch.version.cuda, torch.cuda.is_available = None, lambda: False
    found = report_with(monkeypatch, torch)  # nvidia-smi is found
    assert found["torch"].startswith("2.13.0, a CPU build, though there is a GPU -> to use the GPU")
    assert found["nvcc"] == "not needed with a CPU build of torch"


def test_doctor_names_a_missing_torch_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_with(monkeypatch, None)
    assert all(found[what].endswith(" -> run make demo, or pip install -e .")
               for what in ("torch", "GPUs", "nvcc"))  # fmt: skip
    assert set(NEEDED) <= set(found)


@pytest.mark.parametrize("name", ["nobody", "demo"])
def test_a_run_that_is_not_training_can_not_be_stopped(
    capsys: CapSys, finished: Path, name: str
) -> None:
    assert refused(capsys, "stop", name) == f"RUN: {name} is not training -- see neoxkit runs"


def test_runs_are_listed(capsys: CapSys, finished: Path) -> None:
    assert cli.main(["runs"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.startswith("run") and line.split()[:2] == ["demo", "finished"]


def test_a_stopped_training_ends_the_command_with_a_code_of_its_own(
    capsys: CapSys, folder: Path, tmp_path: Path
) -> None:
    fault = type("Fault", (), {"ename": "Stopped", "evalue": "demo: stopped -- run it again"})
    assert notebooks._failed(fault, tmp_path) == 75
    assert capsys.readouterr().err == "demo: stopped -- run it again\n"


def test_stop_now_signals_nobody_before_the_holder_is_known(
    capsys: CapSys, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.kill(-1) would end every process of the user."""
    holders = iter([lock.UNKNOWN, lock.UNKNOWN, 12345, None])
    killed = []
    monkeypatch.setattr(lock, "locked_by", lambda folder: next(holders, None))
    monkeypatch.setattr(cli.os, "kill", lambda pid, number: killed.append(pid))
    assert cli.main(["stop", "demo", "--now"]) == 0
    assert killed == [12345]


def test_stop_now_signals_nobody_on_another_machine(
    capsys: CapSys, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "locked_by", lambda folder: lock.UNKNOWN)
    monkeypatch.setattr(stopping.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cli.os, "kill", lambda pid, number: pytest.fail(f"signal to {pid}"))
    said = refused(capsys, "stop", "demo", "--now")
    assert said.startswith("RUN: demo is trained by a process that is not on this machine -- ")


def test_a_run_under_a_lease_is_stopped_by_its_file_from_any_host(
    capsys: CapSys, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(cli.os, "kill", lambda pid, number: pytest.fail(f"signal to {pid}"))
    held, slept = lease.Lease(finished, lease.Token.of("slurm 7 0")), []
    held.take()
    said = refused(capsys, "stop", "demo", "--now")
    assert said.startswith("RUN: demo is trained by a process that is not on this machine -- ")

    def sleep(seconds: float) -> None:
        slept.append(lock.asked_to_stop(finished))
        held.release()  # it has saved and ended

    monkeypatch.setattr(stopping.time, "sleep", sleep)
    assert cli.main(["stop", "demo"]) == 0
    assert slept == [True] and not lock.asked_to_stop(finished)


def test_a_reader_that_has_seen_enough_is_not_an_error(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "neoxkit.cli", "runs"], stdout=writer,
                          stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(
    capsys: CapSys, folder: Path, number: signal.Signals
) -> None:
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    before = signal.getsignal(number)
    with lock.take(run / lock.LOCK), notebooks._signals_stop(run):
        with pytest.raises(KeyboardInterrupt):  # no step yet
            signal.raise_signal(number)
        heartbeat.Signs(run, 0).give()
        signal.raise_signal(number)
        assert lock.asked_to_stop(run)
        lock.answer_stop(run)  # saved, but not over yet
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert capsys.readouterr().out.count("finishing the step and saving") == 1
    assert signal.getsignal(number) is before
