"""files.py: folders that are complete or absent, whatever ends their writer."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neoxkit import files

HOST = platform.node()

# Write a folder of two files, and kill this process before the renaming whose number is given.
WRITER = """
import os, pathlib, signal, sys
from neoxkit import files

target, at, done = pathlib.Path(sys.argv[1]), int(sys.argv[2]), []
rename = pathlib.Path.rename

def killed(source, place):
    if len(done) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(place)
    return rename(source, place)

pathlib.Path.rename = killed
with files.whole_folder(target) as part:
    (part / "one").write_text("new")
    if at < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    (part / "two").write_text("new")
"""


def write(target: Path, text: str, **options: bool) -> None:
    with files.whole_folder(target, **options) as part:
        for name in ("one", "two"):
            (part / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("*")}


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob(".*"))


def both(text: str) -> dict[str, str]:
    return {"one": text, "two": text}


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with files.whole_folder(target) as part:
        (part / "one").write_text("new")
        assert not target.exists() and part.parent == target.parent and part.name[0] == "."
    assert contents(target) == {"one": "new"} and hidden(target.parent) == []
    write(target, "newer")
    assert contents(target) == both("newer") and hidden(target.parent) == []


def test_an_error_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(KeyboardInterrupt), files.whole_folder(tmp_path / "model") as part:
        (part / "one").write_text("new")
        raise KeyboardInterrupt
    assert contents(tmp_path / "model") == both("old") and hidden(tmp_path) == []


def test_a_folder_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, flush, rename = [], files.flush, Path.rename
    monkeypatch.setattr(files, "flush", lambda p: (steps.append(p.name), flush(p)))
    monkeypatch.setattr(
        Path, "rename", lambda s, t: (steps.append(f"-> {t.name}"), rename(s, t))[1]
    )
    write(tmp_path / "model", "new")
    *inside, part, renamed, folder = steps
    assert {*inside} == {"one", "two"} and part == f".model.{HOST}.{os.getpid()}.part"
    assert (renamed, folder) == ("-> model", tmp_path.name)


@pytest.mark.parametrize(
    ("at", "left"),
    [(-1, both("old")), (0, both("old")), (1, {}), (2, both("new"))],
    ids=["writing", "before the old one goes", "before the new one comes", "not at all"],
)
def test_a_killed_writer_leaves_the_old_folder_the_new_one_or_none(
    tmp_path: Path, at: int, left: dict[str, str]
) -> None:
    """The next writer restores the old one if there is none, and removes the hidden folders."""
    target = tmp_path / "model"
    write(target, "old")
    done = subprocess.run([sys.executable, "-c", WRITER, str(target), str(at)], check=False)
    assert done.returncode == (0 if at == 2 else -signal.SIGKILL)
    assert contents(target) == left and bool(hidden(tmp_path)) == (at != 2)
    with pytest.raises(KeyboardInterrupt), files.whole_folder(target):
        raise KeyboardInterrupt
    assert contents(target) == (left or both("old")) and hidden(tmp_path) == []
    write(target, "newer")
    assert contents(target) == both("newer") and hidden(tmp_path) == []


def test_another_writer_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    kept = [
        f".model.{HOST}.{os.getppid()}.part",  # of a process that is alive
        ".model.another-host.99999999.part",  # which only that host can know
        ".model.part",
        f".model.x.{HOST}.99999999.part",  # of a folder model.x
        f".model.{HOST}.99999999.parts",
        f".models.{HOST}.99999999.part",
    ]
    (tmp_path / "model").mkdir()
    for name in (*kept, f".model.{HOST}.99999999.part", f".model.{HOST}.{os.getpid()}.old"):
        (tmp_path / name).mkdir()
    write(tmp_path / "model", "new")
    assert hidden(tmp_path) == sorted(kept)


def test_a_folder_that_another_process_wrote_first_can_be_kept(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "tiny", replace=False) as part:
        (part / "one").write_text("second")
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "one").write_text("first")
    assert contents(tmp_path / "tiny") == {"one": "first"} and hidden(tmp_path) == []


def test_also_when_it_is_first_by_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of a test run made the built-in model: one's move met the other's folder."""

    def met(part: Path, target: Path) -> None:
        target.mkdir()
        (target / "one").write_text("first")
        rename(part, target)

    with files.whole_folder(tmp_path / "tiny", replace=False) as part:
        (part / "one").write_text("second")
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", met)
    monkeypatch.undo()
    assert contents(tmp_path / "tiny") == {"one": "first"} and hidden(tmp_path) == []


def test_a_folder_that_is_refused_at_the_end_takes_no_place(tmp_path: Path) -> None:
    """What may be put there at the beginning may be forbidden when it is written."""
    target, asked = tmp_path / "model", []

    def check() -> None:
        asked.append((target / "old").exists())
        if len(asked) == 2:
            raise PermissionError

    target.mkdir()
    (target / "old").touch()
    with pytest.raises(PermissionError), files.whole_folder(target, check=check) as part:
        assert len(asked) == 1
        (part / "new").touch()
    assert asked == [True, True] and [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
