"""extensions.py: a lock that a killed process left in the extensions folder hangs no start."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from neoxkit.errors import UserError
from neoxkit.runs import heartbeat
from neoxkit.training import extensions

GONE = 2**22 + 1  # above the largest process id
HERE = platform.node()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of an extension's lock, on what counts as a disk of this machine alone."""
    monkeypatch.setattr(extensions, "_is_local", lambda folder: True)
    folder = tmp_path / "extensions" / "cpu_adam"
    folder.mkdir(parents=True)
    return folder / "lock"


def test_a_lock_that_is_open_in_a_living_process_is_left_alone(lock: Path) -> None:
    for held in ("", f"{HERE} {os.getpid()}\n"):
        with lock.open("w") as file:
            file.write(held)
            file.flush()
            os.utime(lock, (1, 1))  # however old
            assert extensions.why_stale(lock) == ""


@pytest.mark.parametrize(
    ("held", "why"),
    [("", "no process holds it"), (f"{HERE} {GONE}\n", f"process {GONE}, which held it, is gone")],
    ids=["torch", "kit"],
)
def test_a_lock_of_this_machine_that_no_process_has_open_is_stale(
    lock: Path, held: str, why: str
) -> None:
    lock.write_text(held)
    assert extensions.why_stale(lock) == why


@pytest.mark.parametrize("held", ["", "elsewhere 17\n"], ids=["shared disk", "another machine"])
def test_a_holder_that_may_be_elsewhere_has_ten_minutes_from_the_last_change(
    lock: Path, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "_is_local", lambda folder: bool(held))
    lock.write_text(held)
    (lock.parent / "cpu_adam.o").touch()
    old = time.time() - extensions.QUIET_SECONDS - 5
    os.utime(lock, (old, old))
    assert extensions.why_stale(lock) == ""
    os.utime(lock.parent / "cpu_adam.o", (old, old))
    assert extensions.why_stale(lock) == "nothing has changed there for 10 min"


def test_this_machines_disk_is_known_and_a_network_file_system_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    disks = [("/", "ext4"), (str(tmp_path), "nfs4"), (str(tmp_path / "scratch"), "xfs")]
    parts = [SimpleNamespace(mountpoint=at, fstype=kind) for at, kind in disks]
    monkeypatch.setattr(extensions.psutil, "disk_partitions", lambda all: parts)
    places = [Path("/"), tmp_path / "a", tmp_path / "scratch" / "a"]
    assert [extensions._is_local(place) for place in places] == [True, False, True]


def test_a_holder_that_hides_its_files_for_a_moment_is_seen(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does while it begins another program."""
    seen: set[int] = set()
    open_files = psutil.Process.open_files

    def hidden_at_first(self: psutil.Process) -> list:
        if self.pid not in seen:
            seen.add(self.pid)
            raise psutil.AccessDenied(self.pid)
        return open_files(self)

    monkeypatch.setattr(psutil.Process, "open_files", hidden_at_first)
    with lock.open("w"):
        assert extensions.why_stale(lock) == ""
    assert extensions.why_stale(lock) == "no process holds it"


def acquired(lock: Path, notices: list[str]) -> bool:
    run = lock.parents[2]
    return extensions.Lock(str(lock), heartbeat.Signs(run, 0), notices).try_acquire()


def test_a_stale_lock_is_taken_over_with_a_notice(lock: Path, tmp_path: Path) -> None:
    lock.write_text(f"{HERE} {GONE}\n")
    notices: list[str] = []
    assert acquired(lock, notices)
    assert notices == [f"{lock} was removed: process {GONE}, which held it, is gone"]
    assert lock.read_text() == f"{HERE} {os.getpid()}\n"
    assert heartbeat.stage(tmp_path)[0] == "compiling cpu_adam"


def test_a_living_holder_is_waited_for_and_the_heartbeat_names_its_lock(
    lock: Path, tmp_path: Path
) -> None:
    lock.touch()
    holder = subprocess.Popen(["sleep", "60"], stdin=lock.open("rb"))
    said, written = [], []

    def release(seconds: float, sleep: object = time.sleep) -> None:
        sleep(0.02)
        said.append(heartbeat.stage(tmp_path)[0])
        written.append((tmp_path / heartbeat.FOLDER / "0").stat().st_mtime_ns)
        if len(said) == 9:
            lock.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extensions, "LOOK_SECONDS", 0.01)  # so it looks at every turn
        patch.setattr(extensions.time, "sleep", release)
        notices: list[str] = []
        assert acquired(lock, notices)
    holder.kill()
    holder.wait()
    assert {*said} == {f"compiling cpu_adam, waiting for {lock}"} and notices == []
    assert len({*written}) == 1  # or the guard would take waiting for a sign of life


def test_a_holder_that_dies_meanwhile_is_noticed(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extensions, "LOOK_SECONDS", 0.1)
    lock.touch()
    holder = subprocess.Popen(["sleep", "60"], stdin=lock.open("rb"))

    def die(seconds: float, sleep: object = time.sleep) -> None:
        holder.kill()
        holder.wait()
        sleep(0.1)

    monkeypatch.setattr(extensions.time, "sleep", die)
    notices: list[str] = []
    assert acquired(lock, notices) and notices == [f"{lock} was removed: no process holds it"]


def test_a_lock_that_can_not_be_removed_is_refused_in_one_line(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.touch()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"lock: a process .* \(Permission denied\) -- delete it$"):
        acquired(lock, [])


@pytest.mark.process
@pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="no compiler")
def test_torch_compiles_in_a_folder_with_a_stale_lock(tmp_path: Path) -> None:
    """Without the kit's lock, torch waits for ever."""
    (tmp_path / "seven.cpp").write_text('extern "C" int seven() { return 7; }\n')
    code = """
        import sys
        from pathlib import Path
        from torch.utils import cpp_extension
        from neoxkit.runs.heartbeat import Signs
        from neoxkit.training import extensions
        here, notices = Path.cwd(), []
        if sys.argv[1:] != ["plain"]:
            extensions.take_over_locks(Signs(here, 0), notices)
        cpp_extension.load("seven", ["seven.cpp"], is_python_module=False, verbose=True)
        print(len(notices), (here / "ext/seven/seven.so").exists())
    """
    start = [sys.executable, "-c", textwrap.dedent(code)]
    env = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "ext"), "CXX": "c++"}
    (tmp_path / "ext" / "seven").mkdir(parents=True)
    lock = tmp_path / "ext" / "seven" / "lock"
    lock.touch()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([*start, "plain"], cwd=tmp_path, env=env, timeout=20, capture_output=True)
    done = subprocess.run(start, cwd=tmp_path, env=env, timeout=120, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1 True", done.stderr
    assert f"notice: {lock} was removed: no process holds it" in done.stdout
    assert not lock.exists()
