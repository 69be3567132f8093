"""The lease on a run folder: taken, refused, taken over, lost, given back."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neoxkit.errors import UserError
from neoxkit.runs import checkpoints, heartbeat, lease, lock
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import standing_of
from neoxkit.runs.lease import Lease, Token


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the waits short, and let no test's lease stay this process's own."""
    for name, seconds in (("SETTLE", 0.02), ("LOOK", 0.02), ("STALE", 0.5), ("RENEW", 0.05)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(lease, "_mine", None)
    monkeypatch.delenv(lease.VARIABLE, raising=False)
    yield
    lease.release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    return folder


def taken(folder: Path, text: str) -> Lease:
    found = Lease(folder, Token.of(text))
    found.take()
    return found


def dead(folder: Path, text: str) -> Lease:
    """Return a lease whose holder was killed: it is renewed no more."""
    found = Lease(folder, Token.of(text))
    found._over.set()
    found.take()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lease_is_taken_renewed_and_given_back(folder: Path) -> None:
    assert lease.holder(folder) is None
    mine = taken(folder, "slurm 123 1")
    first = lease.holder(folder)
    assert str(first) == f"slurm job 123, restart 1 on {lease.platform.node()}"
    assert first.pid == os.getpid() and first.since == first.time
    wait_for(lambda: lease.holder(folder).count >= 2)
    later = lease.holder(folder)
    assert later.time > first.time and later.once == first.once and not mine.is_lost()
    assert names(folder) == [lease.FILE]
    mine.release()
    assert names(folder) == [] and lease.holder(folder) is None


def wait_for(ready: object) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("text", ["slurm 8 0", "slurm 7 0", "hostfile 7 3"])
def test_a_lease_that_is_renewed_is_refused_by_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Even with the same token: it may have been started twice."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e6)
    mine = taken(folder, "slurm 7 0")
    with pytest.raises(UserError) as refused:
        taken(folder, text)
    assert str(refused.value) == (
        f"run: mine is training now (slurm job 7 on {lease.platform.node()}) -- "
        'wait, watch("mine"), or neoxkit stop mine'
    )
    assert not mine.is_lost() and names(folder) == [lease.FILE]
    mine.release()


@pytest.mark.parametrize("text", ["slurm 8 0", "slurm 7 0"])
def test_a_lease_is_taken_over_when_it_has_not_changed_for_long(folder: Path, text: str) -> None:
    """By the taker's own clock, from when it first looked: the time in the file doesn't count. One
    with the same token loses it as well."""
    old = dead(folder, "slurm 7 0")
    found = json.loads((folder / lease.FILE).read_text())
    (folder / lease.FILE).write_text(json.dumps(found | {"time": 0.0}))  # an old clock
    begun = time.monotonic()
    new = taken(folder, text)
    assert time.monotonic() - begun > lease.STALE_SECONDS
    assert old.is_lost() and not new.is_lost()
    new.release()


def test_a_file_that_can_not_be_read_is_taken_over_like_any_other(folder: Path) -> None:
    (folder / lease.FILE).write_text("{")
    assert lease.holder(folder) is None
    begun = time.monotonic()
    new = taken(folder, "slurm 8 0")
    assert time.monotonic() - begun > lease.STALE_SECONDS
    assert not new.is_lost()
    new.release()


def test_a_later_attempt_of_the_same_job_fences_the_earlier_one_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = taken(folder, "slurm 7 0")
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e6)
    new = taken(folder, "slurm 7 1")
    assert old.is_lost() and not new.is_lost()
    with pytest.raises(lease.Lost, match=r"^mine is trained by slurm job 7, restart 1 on "):
        taken(folder, "slurm 7 0")
    old.release()
    assert lease.holder(folder).token == Token("slurm", "7", 1)  # not the other's
    new.release()


def test_a_late_renewal_does_not_bring_a_lost_lease_back(folder: Path) -> None:
    """One that had looked before the take-over and writes after it."""
    old = dead(folder, "slurm 7 0")
    new = dead(folder, "slurm 7 1")
    before = (folder / lease.FILE).read_bytes()
    old.renew()
    assert (folder / lease.FILE).read_bytes() == before and names(folder) == [lease.FILE]
    assert old.is_lost() and not new.is_lost()
    (folder / lease.FILE).unlink()
    new.renew()
    assert names(folder) == [] and new.is_lost()


def test_a_lost_lease_stays_lost(folder: Path) -> None:
    old = dead(folder, "slurm 7 0")
    mine = (folder / lease.FILE).read_bytes()
    new = dead(folder, "slurm 7 1")
    assert old.is_lost()
    (folder / lease.FILE).write_bytes(mine)
    assert old.is_lost() and new.is_lost()


def test_a_renewal_has_the_size_of_the_first_write(folder: Path) -> None:
    """So that it is one write, and a reader never meets the end of a longer one."""
    mine = dead(folder, "slurm 7 0")
    before = (folder / lease.FILE).stat().st_size
    for _ in range(12):
        mine.renew()
    assert (folder / lease.FILE).stat().st_size == before == lease._SIZE
    assert lease.holder(folder).count == 12


RACE = """
import sys
from pathlib import Path
from neoxkit.errors import UserError
from neoxkit.runs import lease
lease.SETTLE_SECONDS, lease.LOOK_SECONDS, lease.RENEW_SECONDS = 1.0, 0.02, 0.1
lease.STALE_SECONDS = 4.0 if sys.argv[3] == "stale" else 1e6
mine = lease.Lease(Path(sys.argv[1]), lease.Token.of(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
try:
    mine.take()
except UserError:
    print("refused", flush=True)
else:
    print("taken", flush=True)
    sys.stdin.readline()
    print("lost" if mine.is_lost() else "kept", flush=True)
"""


@pytest.mark.parametrize("before", ["free", "stale"])
def test_of_processes_that_take_it_at_once_one_has_it(folder: Path, before: str) -> None:
    if before == "stale":
        dead(folder, "slurm 1 0")
    rivals = [
        subprocess.Popen([sys.executable, "-c", RACE, str(folder), f"slurm {job} 0", before],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for job in (2, 3, 4)
    ]  # fmt: skip
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    said = [rival.stdout.readline() for rival in rivals]
    assert sorted(said) == ["refused\n", "refused\n", "taken\n"]
    winner = rivals[said.index("taken\n")]
    assert winner.communicate("look\n")[0] == "kept\n"
    for rival in rivals:
        rival.communicate()


def test_a_file_system_without_hard_links_has_leases_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e6)
    mine = taken(folder, "slurm 7 0")
    with pytest.raises(UserError, match="is training now"):
        taken(folder, "slurm 8 0")
    assert not mine.is_lost()
    mine.release()


def test_a_token_that_is_none_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("slurm", "slurm 7", "slurm 7 x", "slurm 7 -1", "a b 1 c"):
        monkeypatch.setenv(lease.VARIABLE, text)
        with pytest.raises(UserError, match=r"^NEOXKIT_LEASE: must be an engine, a job and a"):
            lease.check(folder)


def test_without_the_variable_a_lease_is_nobodys_business(folder: Path) -> None:
    dead(folder, "slurm 7 0")
    assert not lease.is_wanted() and not lease.is_lost(folder)
    append_event(folder, "train", step=1)
    heartbeat.Signs(folder, 0).give()
    assert (folder / heartbeat.FOLDER / "0").exists()


@pytest.fixture
def fenced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this process's training, whose lease a later attempt has taken."""
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    once = lease.take(folder)
    lease.join(folder, once)
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"12345")
    append_event(folder, "train", step=1)
    lock.ask_to_stop(folder)
    heartbeat.Signs(folder, 0).give()
    dead(folder, "slurm 7 1")
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fenced_training_writes_nothing(fenced: Path) -> None:
    before = bytes_of(fenced)
    checkpoint = fenced / "checkpoint-2"
    for write in (
        lambda: append_event(fenced, "train", step=2),
        lambda: checkpoints.hash_files(checkpoint, ["model.safetensors"]),
        lambda: checkpoints.seal(checkpoint, {}),
        lambda: lock.answer_stop(fenced),
        lambda: lease.check(fenced),
    ):
        with pytest.raises(lease.Lost, match=r"^mine is trained by slurm job 7, restart 1 on "):
            write()
    signs = heartbeat.Signs(fenced, 0)
    signs.give()
    signs.over()
    lease.release()
    assert bytes_of(fenced) == before and lock.asked_to_stop(fenced)


def test_a_fenced_training_deletes_no_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    lease.take(folder)
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}").mkdir()
        checkpoints.seal(folder / f"checkpoint-{step}", step=step)
    dead(folder, "slurm 7 1")
    with pytest.raises(lease.Lost):
        checkpoints.rotate(folder, 2)
    assert [path.name for path in checkpoints.whole(folder)] == [
        "checkpoint-1", "checkpoint-2", "checkpoint-3",
    ]  # fmt: skip


def test_a_rank_that_has_not_joined_writes_nothing_beside_another_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead(folder, "slurm 6 0")
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    heartbeat.Signs(folder, 1).begin(heartbeat.MEETING)
    with pytest.raises(lease.Lost):
        append_event(folder, "error", what="a mistake")
    assert names(folder) == [lease.FILE]


def test_a_rank_that_has_joined_is_fenced_with_rank_0(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    first = dead(folder, "slurm 7 0")
    lease.join(folder, first.once)
    lease.check(folder)
    (folder / lease.FILE).unlink()
    with pytest.raises(lease.Lost, match="mine has no lease any more"):
        lease.check(folder)


def test_a_rank_gives_nothing_back_that_rank_0_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    lease.join(folder, dead(folder, "slurm 7 0").once)
    lease.release()
    assert names(folder) == [lease.FILE]


def test_a_reader_goes_by_the_time_in_the_file(folder: Path) -> None:
    dead(folder, "slurm 7 0")
    found = json.loads((folder / lease.FILE).read_text())
    for ago, live in ((0, True), (94, True), (96, False), (-1000, True)):
        (folder / lease.FILE).write_text(json.dumps(found | {"time": time.time() - ago}))
        assert bool(lease.holder(folder, 90)) == live


def test_a_run_whose_lease_is_held_is_training(folder: Path) -> None:
    assert lock.locked_by(folder) is None
    append_event(folder, "train", step=1)
    mine = taken(folder, "slurm 7 0")
    assert lock.locked_by(folder) == lock.UNKNOWN
    assert standing_of(folder).state == "training"
    assert lock.began(folder) == lease.holder(folder).since
    said = r"^run: mine is training now \(slurm job 7 on .*\) -- wait, "
    with pytest.raises(UserError, match=said):
        lock.refuse_locked(folder)
    with pytest.raises(UserError, match=said):  # a start at a shell
        lock.hold(folder)
    mine.release()
    assert lock.locked_by(folder) is None and standing_of(folder).state == "killed"
    lock.hold(folder).close()


def test_a_folder_that_is_locked_gives_no_lease(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.VARIABLE, "slurm 7 0")
    held = lock.hold(folder)
    with pytest.raises(UserError, match=rf"mine is training now \(process {os.getpid()}\)"):
        lock.take_lease(folder)
    assert lease.FILE not in names(folder)
    held.close()
    lock.ask_to_stop(folder)
    os.utime(folder / lock.STOP, (1, 1))
    assert lock.take_lease(folder) == lease.holder(folder).once
    assert lock.asked_to_stop(folder)  # made while the job was queued
    assert read_events(folder) == []


def live_rival(folder: Path) -> Lease:
    """Take a lease by force, as a process that has not seen the other's."""
    rival = Lease(folder, Token.of("slurm 9 0"))
    rival._put(lease._read(folder))
    lease.threading.Thread(target=rival._keep_renewed, daemon=True).start()
    return rival


def test_who_reads_anothers_token_back_has_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival that replaced the same lease at the same moment, a bit later."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 7.0)
    sleep, rivals = time.sleep, []

    def meanwhile(seconds: float) -> None:
        if seconds == lease.SETTLE_SECONDS:
            rivals.append(live_rival(folder))
        else:
            sleep(seconds)

    monkeypatch.setattr(lease, "STALE_SECONDS", 1e6)
    monkeypatch.setattr(lease.time, "sleep", meanwhile)
    with pytest.raises(UserError, match=r"is training now \(slurm job 9 on "):
        taken(folder, "slurm 8 0")
    (rival,) = rivals
    assert not rival.is_lost() and names(folder) == [lease.FILE]
    rival.release()


def test_a_lease_that_was_taken_since_the_last_look_is_not_replaced(folder: Path) -> None:
    dead(folder, "slurm 7 0")
    seen = lease._read(folder)
    rival = live_rival(folder)
    assert not Lease(folder, Token.of("slurm 8 0"))._put(seen)
    assert not rival.is_lost() and names(folder) == [lease.FILE]
    rival.release()
