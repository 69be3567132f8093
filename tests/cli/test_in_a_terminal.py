"""The commands in a real pseudo terminal of 80 and 60 columns, and in a pipe."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from neoxkit import files
from neoxkit.cli import screen
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import FINISHED

CLI = [sys.executable, "-m", "neoxkit.cli"]
NAMES = [
    f"night.learning_rate={r}.per_device_train_batch_size={n}" for r in (1, 2) for n in (8, 16)
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home with a run that trained well, and some that did not."""
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    for name in ("zero2", "zero2_offload", "zero3", "zero3_offload"):
        zero = {"zero_optimization": {"stage": int(name[4])}}
        files.write_json(tmp_path / "ds_configs" / f"{name}.json", zero)
    for name in (*NAMES, "demo", "burnt"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        append_event(folder, "start", planned_steps=1192, resumed_step=0, vocabulary=1024)
        loss = 80.0 if name == "burnt" else 2.5
        append_event(folder, "train", step=1192, loss=loss)
        append_event(folder, "eval", step=1192, loss=loss)
        if name in ("demo", "burnt"):
            files.write_json(folder / FINISHED, {})
    append_event(folder, "error", where="", what="the machine has no memory left", remedy="")
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def in_a_terminal(columns: int, *argv: str) -> str:
    """Return what a command writes to a terminal, its status line as it was last."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**os.environ}  # readline, which pytest imports, sets COLUMNS in the C environment
    child = subprocess.Popen([*CLI, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # Linux says so when the last writer has closed it
        pass
    os.close(ours)
    child.wait()
    return said.decode().replace("\r\n", "\n")


def lines(said: str) -> list[str]:
    """Return the lines, also those that were overwritten."""
    return [part for line in said.split("\n") for part in re.split(r"\r|\x1b\[K", line)]


COMMANDS = {
    "help": ["--help"],
    "runs": ["runs"],
    "diff": ["diff", "demo", NAMES[0]],
    "fit": ["fit"],
    "a mistake": ["run", "-p", "learning_rat", "1e-5"],
    "a notebook that may be two": ["run", "--only", "0"],
    "a wrong command": ["trian"],
}


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_every_line_fits(home: Path, argv: list[str], columns: int) -> None:
    said = in_a_terminal(columns, *argv)
    assert max(map(screen.width, lines(said))) <= columns
    assert len(lines(said)) > 1 and "Traceback" not in said


def test_runs_are_coloured_on_a_terminal_and_nowhere_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = in_a_terminal(120, "runs")
    assert "\x1b[32mfinished" in said and "\x1b[33mwarning:\x1b[0m" not in said
    assert "burnt: the machine has no memory left" in said
    done = subprocess.run([*CLI, "runs"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    header, *rest = done.stdout.splitlines()
    assert header.split("  ")[0] == "run" and header.endswith("changed")
    assert all(any(line.startswith(f"{name} ") for line in rest) for name in NAMES)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[\d*m", in_a_terminal(120, "runs"))


def test_runs_as_json(home: Path) -> None:
    done = subprocess.run([*CLI, "runs", "--json"], capture_output=True, text=True, check=True)
    found = {run["run"]: run for run in json.loads(done.stdout)}
    assert set(found) == {*NAMES, "demo", "burnt"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["demo"].pop("changed"))
    assert found["demo"] == {
        "run": "demo", "state": "finished", "step": 1192, "planned_steps": 1192,
        "train_loss": 2.5, "eval_loss": 2.5, "says": "", "trial": False,
    }  # fmt: skip
    assert found["burnt"]["says"] == "the machine has no memory left"
    help_text = subprocess.run([*CLI, "runs", "-h"], capture_output=True, text=True, check=True)
    assert all(field in help_text.stdout for field in (*found["demo"], "changed"))


def test_no_runs_are_an_empty_array(home: Path) -> None:
    (home / "runs").rename(home / "away")
    done = subprocess.run([*CLI, "runs", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def completed(shell: str, typed: str, **more: str) -> list[str]:
    """Return what a shell is offered after a line; its last word is the one being typed."""
    words = typed.split(" ")
    asked = {"_NEOXKIT_COMPLETE": f"{shell}_complete", "COMP_WORDS": typed}
    number = words[-1] if shell == "fish" else str(len(words) - 1)
    code = "import sys; from neoxkit.cli.main import main; code = main(); sys.stdout.flush(); "
    code += "sys.exit(9 if 'torch' in sys.modules or 'numpy' in sys.modules else code)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, **asked, "COMP_CWORD": number, **more},
    )  # fmt: skip
    assert (done.stderr, done.returncode == 9) == ("", False)
    found = done.stdout.split("\n")
    return found[1::3] if shell == "zsh" else [f.partition(",")[2] for f in found if f]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_flags_notebooks_and_runs_are_completed(home: Path, shell: str) -> None:
    def first(typed: str) -> list[str]:
        return [found.partition(",")[0].partition("\t")[0] for found in completed(shell, typed)]

    assert first("neoxkit re") == ["repeat", "report"]
    assert first("neoxkit run --on") == ["--only", "--on-end"]
    assert first("neoxkit run --only 03") == ["03_evaluate"]
    assert first("neoxkit sweep 0") == ["02_train", "03_evaluate"]
    for command in ("repeat", "merge", "report", "stop", "diff", "diff burnt"):
        assert first(f"neoxkit {command} d") == ["demo"]
    assert first("neoxkit stop ") == sorted(["demo", "burnt", *NAMES])


def test_completing_says_nothing_of_errors(home: Path, tmp_path: Path) -> None:
    assert completed("bash", "neoxkit nonsense --wrong x") == []
    assert completed("bash", "neoxkit stop 'open") == []
    assert completed("bash", "neoxkit stop d", NEOXKIT_HOME="/nowhere") == []
    assert completed("bash", "neoxkit stop d", COMP_CWORD="many") == []


def test_bash_completes_a_name_after_an_equals_sign(home: Path) -> None:
    """It hands over the pieces between "=", and replaces only the last one."""
    at = "neoxkit report night.learning_rate"
    assert completed("bash", at) == sorted(NAMES)
    ends = [name.partition("=")[2] for name in sorted(NAMES)]
    assert completed("bash", f"{at} =") == ends
    assert completed("bash", f"{at} = 2.per_device_train_batch_size = 1") == ["16"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_command(home: Path, shell: str) -> None:
    done = subprocess.run([*CLI, "completion", shell], capture_output=True, text=True, check=True)
    assert f"_NEOXKIT_COMPLETE={shell}_complete" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
