"""The three notebooks under papermill with real DeepSpeed, from another working directory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbconvert
import nbformat
import psutil
import pytest
from conftest import PATIENCE_SECONDS, command, make_home

from neoxkit.cli import report
from neoxkit.errors import UserError
from neoxkit.lab import dashboard
from neoxkit.runs import checkpoints
from neoxkit.runs.events import History
from neoxkit.runs.folder import ARGUMENTS, LOG, finished_facts, standing_of, state_of

pytestmark = pytest.mark.process

PARAMETERS = {
    "train_file": "mine.txt",  # in the folder the command is called from
    "dataset": "e2e",
    "run": "e2e",
    "max_steps": "30",
    "eval_steps": "10",
    "max_new_tokens": "12",
    "my_questions": '["What is <b>3</b> plus 4?"]',
}
FLAGS = [part for name, value in PARAMETERS.items() for part in ("-p", name, value)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Call `neoxkit run` from a folder that has nothing to do with the kit."""
    home = make_home(tmp_path_factory.mktemp("home"))
    shutil.rmtree(home / "data" / "models")  # the built-in model is made by it
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(home / "data" / "small.txt", elsewhere / "mine.txt")
    shutil.copy(home / "data" / "small_questions.jsonl", elsewhere / "mine_questions.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(home))
        done = command("neoxkit.cli", "run", *FLAGS, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing but the kit's own lines
    assert [line.split(" ->")[0] for line in done.stdout.splitlines() if line.startswith("[")] == [
        "[1/3] 01_tokenize", "[2/3] 02_train", "[3/3] 03_evaluate",
    ]  # fmt: skip
    assert {p.name for p in elsewhere.iterdir()} == {"mine.txt", "mine_questions.jsonl"}
    return home


def notebook(home: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(home / "runs" / "e2e" / f"{name}.ipynb", as_version=4)


def outputs(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in nb.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("name", ["01_tokenize", "02_train", "03_evaluate"])
def test_executed_notebooks_are_valid_and_contain_no_noise(executed: Path, name: str) -> None:
    nb = notebook(executed, name)
    nbformat.validate(nb)
    assert [o for o in outputs(nb) if o.output_type == "error"] == []
    assert [o.text for o in outputs(nb) if o.output_type == "stream" and o.name == "stderr"] == []
    printed = "".join(o.text for o in outputs(nb) if o.output_type == "stream")
    assert not re.search(r"(?i)warning|\d+%\|", printed)
    assert (executed / "runs" / "e2e" / f"{name}.ipynb").stat().st_size < 1e6


PICTURES = {"01_tokenize": 2, "02_train": 2, "03_evaluate": 3}


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_is_there_once(executed: Path, name: str) -> None:
    nb = notebook(executed, name)
    assert sum("image/png" in o.get("data", {}) for o in outputs(nb)) == PICTURES[name]


def test_the_training_cell_ends_with_status_curve_replies_and_log(executed: Path) -> None:
    cell = next(
        c for c in notebook(executed, "02_train").cells if "dashboard.watch(process" in c.source
    )
    assert [sorted(o.data) for o in cell.outputs] == [
        ["text/html", "text/plain"],
        ["image/png", "text/html", "text/plain"],
        ["text/html", "text/plain"],
        ["text/html", "text/plain"],
    ]
    rows = re.findall(r"<tr><td[^>]*>(.*?)</td>", cell.outputs[2].data["text/html"])
    assert rows == ["0", "10", "20", "30"]
    log = executed / "runs" / "e2e" / LOG
    assert cell.outputs[3].data["text/html"] == dashboard.log_end(log).html
    assert re.match(
        r"step 30 of 30 · loss [\d.]+ · eval loss [^·]+ · finished · rate 0\.002 · batch 16 · "
        r"block 280 · "
        r"epoch [\d.]+ · [\d,]+ useful tokens/s · padding \d+% · MFU \d+% · ",
        cell.outputs[0].data["text/plain"],
    )


def test_the_summary_shows_the_speed_and_how_it_was_reached(executed: Path) -> None:
    cell = next(c for c in notebook(executed, "02_train").cells if "training.summary" in c.source)
    said = dict(line.split("  ", 1) for line in cell.outputs[0].data["text/plain"].splitlines())
    facts = finished_facts(executed / "runs" / "e2e")
    assert f"{facts['tokens_per_second']:,} useful tokens/s" in said["speed"]
    assert said["MFU"].strip().startswith(f"{facts['mfu']:.1%} of the matrix-product speed")
    assert said["attention"].strip() == "sdpa, packed into rows of about 280 tokens"


def test_the_run_contains_what_the_design_says(executed: Path) -> None:
    folder = executed / "runs" / "e2e"
    assert {
        "arguments.json", "metrics.jsonl", "train.log", "FINISHED.json", "model", "evaluation.json",
        "replies.jsonl", "dataset.json", "run_card.json",
        "01_tokenize.ipynb", "02_train.ipynb", "03_evaluate.ipynb",
    } <= {p.name for p in folder.iterdir()}  # fmt: skip
    assert finished_facts(folder)["step"] == 30
    evaluation = json.loads((folder / "evaluation.json").read_text())
    base, tuned = (evaluation["eval_loss"][name] for name in ("base", "tuned"))
    assert base["trained_tokens"] == tuned["trained_tokens"] > 0
    assert tuned["loss"] < base["loss"]
    by_step = evaluation["losses_by_step"]  # the base, the kept checkpoints, the end
    assert list(by_step) == ["0", "24", "30"] and by_step["30"] == tuned["loss"]
    assert tuned["loss"] == pytest.approx(finished_facts(folder)["eval_loss"], rel=1e-5)
    assert sum(evaluation["endings"]["tuned"].values()) == len(
        (folder / "replies.jsonl").read_text().splitlines()
    )


def test_the_run_is_compared_with_one_that_was_copied_from_elsewhere(
    executed: Path, tmp_path: Path
) -> None:
    """04_compare needs only the files of a run: no dataset, no model."""
    run, copy = executed / "runs" / "e2e", tmp_path / "copied"
    copy.mkdir()
    for name in ("metrics.jsonl", "FINISHED.json", "run_card.json"):
        shutil.copy(run / name, copy)
    arguments = (run / "arguments.json").read_text()
    (copy / "arguments.json").write_text(arguments.replace('"seed": 42', '"seed": 7'))
    chosen = json.dumps(["e2e", str(copy)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command("neoxkit.cli", "run", "--only", "04_compare", "-p", "runs", chosen)
    assert done.returncode == 0, done.stderr
    nb = nbformat.read(executed / "runs" / "comparison" / "04_compare.ipynb", as_version=4)
    nbformat.validate(nb)
    said = "\n".join(o.data.get("text/plain", "") for o in outputs(nb) if "data" in o)
    assert (
        re.search(r"e2e +42\ncopied +7\n", said + "\n")
        and "The runs don't differ in exactly two settings" in said
    )
    assert sum("image/png" in o.get("data", {}) for o in outputs(nb)) == 1
    saved = json.loads((executed / "runs" / "comparison" / "comparison.json").read_text())
    assert saved["differs"] == {"seed": [42, 7]}
    assert saved["over_seeds"][0]["losses"].keys() == {"42", "7"}
    (loss,) = {line["eval_loss"] for line in saved["scores"]}
    assert loss == json.loads((run / "FINISHED.json").read_text())["eval_loss"]


def test_a_report_is_complete_and_needs_no_network(
    executed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEOXKIT_HOME", str(executed))
    page = report.write("e2e").read_text()
    assert page.count('src="data:image/png;base64,') == 2 + sum(
        PICTURES.values()
    )  # and the overview's
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "default-src 'none'" in page and "<script" not in page
    for name in PICTURES:
        assert f'<h2 class="part" id="{name}">' in page
    cells = [cell for name in PICTURES for cell in notebook(executed, name).cells]
    num_code = sum(cell.cell_type == "code" and bool(cell.source) for cell in cells)
    assert page.count("<details><summary>code</summary>") == num_code
    with pytest.raises(UserError, match="RUN: nowhere has neither metrics nor notebooks"):
        report.write("nowhere")


def test_text_from_data_is_escaped(executed: Path) -> None:
    html = "".join(
        o.data["text/html"]
        for o in outputs(notebook(executed, "03_evaluate"))
        if "text/html" in o.get("data", {})
    )
    assert "&lt;b&gt;3&lt;/b&gt;" in html and "<b>3</b>" not in html


def test_plain_papermill_says_the_run_is_finished_and_trains_nothing(
    executed: Path, tmp_path: Path
) -> None:
    before = (executed / "runs" / "e2e" / "metrics.jsonl").read_text()
    target = tmp_path / "again.ipynb"
    flags = [
        "-r",
        "dataset",
        "e2e",
        "-r",
        "run",
        "e2e",
        "-p",
        "max_steps",
        "30",
        "-p",
        "eval_steps",
        "10",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command(
            "papermill",
            str(executed / "notebooks" / "02_train.ipynb"),
            str(target),
            *flags,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert (executed / "runs" / "e2e" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", PICTURES)
def test_html_shows_everything_without_a_kernel(executed: Path, name: str) -> None:
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook(executed, name))
    assert html.count('src="data:image/png;base64,') == PICTURES[name]
    assert not re.search(r"\w+\(\)\s*</pre>", html)  # a widget's name in its place
    assert '<script type="application/vnd.jupyter.widget-view' not in html  # an empty place
    assert "with a kernel" in html
    assert all('value="30"' in bar for bar in re.findall("<progress[^>]*>", html))


def test_the_notebooks_data_is_shown_and_passes_the_audit(executed: Path) -> None:
    said = "\n".join(
        o.data["text/plain"]
        for o in outputs(notebook(executed, "01_tokenize"))
        if "text/plain" in o.get("data", {})
    )
    assert said.count("✓") == 5 and "✗" not in said
    assert "asks what the other side asks first" in said
    assert "(with a kernel: pages through the training set: " in said


def test_a_dataset_that_fails_the_audit_is_not_written(executed: Path, tmp_path: Path) -> None:
    text = f"User: {'Tell me more. ' * 200}\n\nAgent: No.<|endoftext|>\n"
    path = tmp_path / "next_to_nothing.txt"
    path.write_text(text * 2 + text.replace("more", "less"))
    flags = ["-p", "train_file", str(path), "-p", "dataset", "poor", "-p", "block_size", "999"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command("neoxkit.cli", "run", "--only", "01_tokenize", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: agent_name: trained tokens: ")
    assert not (executed / "data" / "tokenized" / "poor").exists()


@pytest.fixture
def bad(executed: Path) -> Path:
    """Write a file whose conversations are all too long, which only 01_tokenize can find."""
    path = executed / "data" / "bad.txt"
    path.write_text(f"User: {'a ' * 300}\n\nAgent: b<|endoftext|>\n" * 3)
    return path


def test_a_files_faults_are_reported_before_the_first_notebook(executed: Path) -> None:
    """All faults are reported, and nothing was written."""
    (executed / "data" / "worse.txt").write_bytes(b"User: \xff\n\nAgent: \xfe<|endoftext|>\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        file = str(executed / "data" / "worse.txt")
        done = command("neoxkit.cli", "run", "-p", "run", "worse", "-p", "train_file", file)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: data/worse.txt:1: not UTF-8")
    assert second.startswith("data/worse.txt:3: not UTF-8")
    assert not (executed / "runs" / "worse").exists()


def test_a_failing_notebook_ends_the_command_and_keeps_its_copy(executed: Path, bad: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command("neoxkit.cli", "run", "-p", "run", "bad", "-p", "train_file", str(bad))
    assert done.returncode == 2
    said, place = done.stderr.splitlines()
    assert said.startswith("error: block_size: no conversation is left (3 longer than 280 tokens)")
    assert place.strip() == "in runs/bad/01_tokenize.ipynb"
    nb = nbformat.read(executed / "runs" / "bad" / "01_tokenize.ipynb", as_version=4)
    (error,) = [o for o in outputs(nb) if o.output_type == "error"]
    assert error.traceback == [f"error: {error.evalue}"]
    assert not (executed / "runs" / "bad" / "02_train.ipynb").exists()


def test_restart_keeps_the_old_record_whole(executed: Path, bad: Path) -> None:
    """After a later failure the old run is still where it was moved to, with its notebooks."""
    yes = ["-p", "restart", "true", "-p", "overwrite", "true"]
    flags = [*FLAGS, *yes, "-p", "train_file", str(bad)]
    shutil.copytree(executed / "runs" / "e2e", executed / "runs" / "again")
    flags[flags.index("run") + 1] = "again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command("neoxkit.cli", "run", *flags)
    assert done.returncode == 2
    assert "the old run is kept as runs/again.old-1" in done.stdout
    old = {p.name for p in (executed / "runs" / "again.old-1").iterdir()}
    assert {"01_tokenize.ipynb", "02_train.ipynb", "03_evaluate.ipynb", "FINISHED.json"} <= old
    assert not (executed / "runs" / "again" / "FINISHED.json").exists()


def test_a_million_lines_of_log_stay_out_of_the_notebook(executed: Path) -> None:
    folder = executed / "runs" / "long"
    shutil.copytree(executed / "runs" / "e2e", folder)
    arguments = folder / ARGUMENTS
    arguments.write_text(arguments.read_text().replace("runs/e2e", "runs/long"))
    with (folder / LOG).open("a") as log:
        log.writelines(f"a line of the log, number {i}\n" for i in range(1_000_000))
    own = {**PARAMETERS, "run": "long"}
    names = ("dataset", "run", "max_steps", "eval_steps")
    flags = [part for name in names for part in ("-p", name, own[name])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        done = command("neoxkit.cli", "run", "--only", "02_train", *flags)
    assert done.returncode == 0, done.stderr
    path = folder / "02_train.ipynb"
    assert path.stat().st_size <= 1_000_000
    nbformat.validate(nbformat.read(path, as_version=4))
    assert "number 999999" in path.read_text() and "number 9999\\n" not in path.read_text()


def training_processes(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if str(home) in line and "neoxkit" in line and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_ctrl_c_lets_the_training_save_and_ends_with_its_own_exit_code(executed: Path) -> None:
    flags = ["-p", "dataset", "e2e", "-p", "run", "asked", "-p", "max_steps", "100000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        kit = subprocess.Popen(
            [sys.executable, "-m", "neoxkit.cli", "run", "--only", "02_train", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    folder = executed / "runs" / "asked"
    wait_for_a_step(folder, kit)
    os.killpg(kit.pid, signal.SIGINT)  # as a terminal does
    said, errors = kit.communicate(timeout=PATIENCE_SECONDS)
    assert kit.returncode == 75
    assert "finishing the step and saving; interrupt again to end it at once" in said
    standing = standing_of(folder)
    assert standing.state == "stopped" and checkpoints.whole(folder)
    assert errors == f"asked: stopped, step {standing.step:,} is saved -- run it again to resume\n"
    assert training_processes(folder) == []


def wait_for_a_step(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not History.of_run(folder).train:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_training_ends_with_papermill(executed: Path, number: int) -> None:
    """Interrupted or killed in the middle, no process is left, and the run is not a success."""
    name = f"stopped-{int(number)}"
    flags = ["-r", "dataset", "e2e", "-r", "run", name, "-p", "max_steps", "100000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(executed))
        papermill = subprocess.Popen(
            [sys.executable, "-m", "papermill", str(executed / "notebooks" / "02_train.ipynb"),
             str(executed / "runs" / f"{name}.ipynb"), *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    folder = executed / "runs" / name
    wait_for_a_step(folder, papermill)
    assert len(training_processes(folder)) >= 2  # guard, rank
    papermill.send_signal(number)
    papermill.wait(timeout=PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while training_processes(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert papermill.returncode != 0
    assert state_of(folder) == "started"
