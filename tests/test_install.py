"""One list of packages in three files, and a Makefile that make can read."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from neoxkit import paths

ROOT = paths.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds name==version lines"
    found = {canonicalize_name(name): version for name, version in pairs}
    assert len(found) == len(pairs), "a package is pinned twice"
    return found


def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_conda_installs_the_same_requirements() -> None:
    (pip,) = [d["pip"] for d in conda()["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[test]"]  # the tested versions, and the kit itself


def test_conda_brings_no_python_package_of_its_own() -> None:
    """torch and similar packages must never come from both sources: one resolver decides."""
    own = {re.split("[=<>]", d)[0] for d in conda()["dependencies"] if isinstance(d, str)}
    assert not own & set(pins()) - {"ninja"}
    assert "pip" in own and "python=3.11" in conda()["dependencies"]
    assert conda()["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("line", DIRECT)
def test_each_range_goes_from_the_tested_version_to_the_next_major(line: str) -> None:
    requirement = Requirement(line)
    name = canonicalize_name(requirement.name)
    assert name in pins(), f"constraints.txt does not pin {name}"
    tested = Version(pins()[name])
    bounds = {s.operator: s.version for s in requirement.specifier}
    assert bounds == {">=": str(tested), "<": str(tested.major + 1)}


def test_the_build_needs_no_network_address_and_no_torch() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "+cpu" not in text and "://" not in text  # the same pin gives CUDA on a GPU machine


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "neoxkit run"),
        ("test", "-m pytest"),
        ("lab", "jupyter lab"),
        ("lint", "ruff check ."),
        ("doctor", "neoxkit doctor"),
    ],
)
def test_make_targets_run_their_commands(target: str, command: str) -> None:
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_fresh_clone_sets_up_first_with_the_tested_versions(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert installs and all("-c constraints.txt" in line for line in installs)
    assert installs[0].endswith("torch")  # before what is built against it
    assert done.stdout.index("pip install") < done.stdout.index("neoxkit run")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("others", ["", "/a:/b"])
def test_make_lab_finds_the_kernel_of_its_own_environment_first(
    tmp_path: Path, others: str
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    jupyter = tmp_path / ".venv" / "bin" / "jupyter"
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text('#!/bin/sh\necho "$JUPYTER_PATH"\n')
    jupyter.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()  # newer than the lists: nothing is installed
    env = os.environ | {"JUPYTER_PATH": others}
    done = subprocess.run(
        ["make", "--no-print-directory", "lab"], cwd=tmp_path, env=env, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    own = f"{tmp_path}/.venv/share/jupyter"
    assert done.stdout.splitlines()[-1] == (f"{own}:{others}" if others else own)
