"""`neoxkit run` and papermill on notebooks that JupyterLab saved, with real kernels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY, command, make_home

from neoxkit import files
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import DATASET

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a kit with a file that was uploaded beside the notebooks."""
    home = make_home(tmp_path_factory.mktemp("home"))
    (home / "data" / "small.txt").rename(home / "notebooks" / "my talks.txt")
    return home


def save(home: Path, more: str = "", kernel: str = "python3") -> None:
    """Save 01 as a user might: another block size, a slip, a line of their own, another kernel."""
    saved = json.loads((REPOSITORY / "notebooks" / "01_tokenize.ipynb").read_text())
    (cell,) = [c for c in saved["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = "".join(cell["source"])
    assert "block_size: int = 280" in lines
    cell["source"] = lines.replace("block_size: int = 280", "block_size: int = 64") + more
    saved["cells"][-1]["source"].insert(0, "print('a line of mine')\n")
    spec = {"name": kernel, "display_name": kernel, "language": kernel.rstrip("3")}
    saved["metadata"] = {"kernelspec": spec}
    (home / "notebooks" / "01_tokenize.ipynb").write_text(json.dumps(saved))


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """Tokenize the uploaded file with `neoxkit run` in the kit's folder; return its output."""
    save(home, more="\nblok_size = 32", kernel="julia")
    done = shell(home, "neoxkit run --only 01_tokenize -p train_file 'my talks.txt'")
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(home: Path, line: str) -> subprocess.CompletedProcess:
    """Run a command in the kit's folder, with its environment activated."""
    bin = Path(sys.executable).parent
    env = os.environ | {"NEOXKIT_HOME": str(home), "PATH": f"{bin}:{os.environ['PATH']}"}
    return subprocess.run(
        line, shell=True, cwd=home, env=env, capture_output=True, text=True, check=False
    )


def manifest(home: Path) -> dict:
    return files.read_json(home / "data" / "tokenized" / "my-talks" / files.MANIFEST)


def printed(home: Path) -> list[str]:
    """Return what the last cell of the executed notebook printed."""
    nb = nbformat.read(home / "runs" / "my-talks" / "01_tokenize.ipynb", as_version=4)
    return "".join(output.text for output in nb.cells[-1].outputs).splitlines()


def test_documented_defaults_are_used_and_the_notebook_is_run_as_it_is(
    home: Path, said: str
) -> None:
    assert said.splitlines()[0] == (
        "note: notebooks/01_tokenize.ipynb holds block_size 64; 280 is used -- "
        "give -p block_size 64 to use it"
    )
    assert manifest(home)["block_size"] == 280
    mine, dataset, run, papermill = printed(home)
    assert (mine, dataset) == ("a line of mine", 'dataset = "my-talks"')
    assert run.startswith("neoxkit run --only 01_tokenize -p train_file 'my talks.txt'")
    assert "-p block_size 280" in papermill


@pytest.mark.parametrize("number", [-2, -1], ids=["run", "papermill"])
def test_a_printed_line_gives_the_same_dataset(home: Path, said: str, number: int) -> None:
    line = printed(home)[number]
    if number == -1:
        save(home)  # plain papermill would take the kernel and the slip that were saved
    before = manifest(home)
    shutil.rmtree(home / "data" / "tokenized")
    done = shell(home, line)
    assert done.returncode == 0, done.stderr
    assert manifest(home) == before


@pytest.mark.parametrize(
    ("settings_say", "dial_says", "stopped_at"),
    [(64, 64, "from_parameters"), (280, 64, "data.save")],
    ids=["parameters", "dial"],
)
def test_01_replaces_no_dataset_that_a_run_was_trained_on(
    home: Path, said: str, tmp_path: Path, settings_say: int, dial_says: int, stopped_at: str
) -> None:
    """Parameters are checked in the settings cell, a dial's values before they are written."""
    notebook = nbformat.read(REPOSITORY / "notebooks" / "01_tokenize.ipynb", as_version=4)
    (dial,) = [c for c in notebook.cells if c.source.startswith("control = ")]
    dial.source += f"\ncontrol._moved('block_size', {dial_says})"
    nbformat.write(notebook, tmp_path / "in.ipynb")
    flags = ["-p", "train_file", "my talks.txt", "-p", "block_size", str(settings_say)]
    before, run = manifest(home), home / "runs" / "demo"
    run.mkdir()
    files.write_json(run / DATASET, before)
    append_event(run, "train", step=5)
    try:
        done = papermill(home, tmp_path / "in.ipynb", tmp_path / "out.ipynb", *flags)
    finally:
        shutil.rmtree(run)
    assert done.returncode == 1 and manifest(home) == before
    assert (
        "dataset: my-talks would be replaced (block_size 280 -> 64), and demo was trained on it"
    ) in done.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (failed,) = [c for c in executed.cells if any("ename" in o for o in c.get("outputs", []))]
    assert stopped_at in failed.source


def papermill(home: Path, *words: object) -> subprocess.CompletedProcess:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(home))
        return command("papermill", *map(str, words), cwd=home)


def test_plain_papermill_refuses_a_mistyped_parameter(home: Path, tmp_path: Path) -> None:
    source, target = home / "notebooks" / "02_train.ipynb", tmp_path / "out.ipynb"
    done = papermill(home, source, target, "-p", "lerning_rate", "5e-5")
    assert done.returncode == 1
    assert "lerning_rate: is not a parameter of 02_train -- did you mean learning_rate?" in (
        done.stderr
    )
    assert not (home / "runs" / "demo").exists()


def plant(folder: Path, *argv: str) -> dict[str, str]:
    """Install a kernel named python3 that comes before every other; return its environment."""
    spec = {"argv": [*argv, "-f", "{connection_file}"], "display_name": "3", "language": "python"}
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    return {"JUPYTER_PATH": str(folder), "JUPYTER_DATA_DIR": str(folder / "user")}


WITHOUT_THE_KIT = f"""#!{sys.executable}
import sys
sys.modules["neoxkit"] = None
from ipykernel import kernelapp
kernelapp.launch_new_instance()
"""


def test_the_kits_own_python_runs_the_notebooks_whatever_python3_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    for name, value in plant(tmp_path, "/bin/sh", "-c", f"touch {marker}; exit 1").items():
        monkeypatch.setenv(name, value)
    save(home)
    done = shell(home, "neoxkit run --only 01_tokenize -p train_file 'my talks.txt'")
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_a_kernel_without_the_kit_is_named_and_doctors_remedy_helps(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "python"
    other.write_text(WITHOUT_THE_KIT)
    other.chmod(0o755)
    for name, value in plant(tmp_path, str(other)).items():
        monkeypatch.setenv(name, value)
    line = (
        f"papermill notebooks/01_tokenize.ipynb {tmp_path}/out.ipynb -p train_file 'my talks.txt'"
    )
    save(home)
    done = shell(home, line)
    assert done.returncode == 1
    assert "No module named neoxkit? The kernel is another Python: see neoxkit doctor." in (
        done.stderr
    )
    kernel, remedy = shell(home, "neoxkit doctor").stdout.splitlines()[-2:]
    assert kernel == f"JupyterLab kernel  python3 -> {other}"
    flags, _, install = remedy.partition("; ")[2].partition(", or JupyterLab's kernel menu: ")
    assert shell(home, install).returncode == 0
    done = shell(home, line + flags.removeprefix("for papermill"))
    assert done.returncode == 0, done.stderr
