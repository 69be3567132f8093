"""Whatever kills a run, running it again finishes it with the same bytes.

The default tier runs a sample of each series; `make test-crash` runs them all and writes
RELIABILITY.md.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reliability
from conftest import PATIENCE_SECONDS
from crashes import KINDS, LONG, SHORT, STEPS_AN_EPOCH, Crashes
from zygote import Sabotage, job

from neoxkit import errors, files, paths
from neoxkit.runs import checkpoints
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import LOG, state_of

pytestmark = pytest.mark.process


def writes_of(crashes: Crashes, kind: tuple[int, int], rank: int, where: str) -> list[str]:
    """Return the files that a rank writes in a save, in order."""
    settings = crashes.settings(kind, **SHORT)
    folder = paths.run(settings.run)
    listed = folder / "listed"
    plan = Sabotage(rank=rank, where=where, listed=str(listed))
    assert not any(crashes.zygote.run(job(settings, plan)))
    names = listed.read_text().split() if listed.exists() else []
    shutil.rmtree(folder)
    return names


def kill_at_a_write(
    crashes: Crashes, kind: tuple[int, int], rank: int, where: str, at: int, how: str
) -> bool:
    """Return whether the run killed there resumes to the bytes of the unbroken one."""
    settings = crashes.settings(kind, **SHORT)
    codes = crashes.broken(settings, Sabotage(rank=rank, where=where, at=at, how=how))
    assert codes[rank] == -signal.SIGKILL
    return crashes.resumes(settings) == crashes.expected(settings)


SAVE, EXPORT = "/checkpoint-4/", "/.model."


@pytest.mark.parametrize(
    ("kind", "rank", "name", "how"),
    [
        ((1, 2), 0, "model.safetensors", "inside"),
        ((1, 2), 0, "README.md", "before"),  # in the export, after all steps
        ((2, 3), 1, "rng_state_1.pth", "before"),
    ],
)
def test_a_run_killed_in_a_save_resumes_to_the_same_bytes(
    crashes: Crashes, kind: tuple[int, int], rank: int, name: str, how: str
) -> None:
    where = EXPORT if name == "README.md" else SAVE
    at = writes_of(crashes, kind, rank, where).index(name)
    assert kill_at_a_write(crashes, kind, rank, where, at, how)
    assert crashes.false_successes == 0


def kill_at_random(
    crashes: Crashes, kind: tuple[int, int], chance: random.Random, in_save: bool
) -> tuple[bool, bool, bool]:
    """Return whether it resumed to the same bytes; was killed in a save; in epoch 2 or later."""
    settings = crashes.settings(kind, **LONG)
    expected = crashes.expected(settings)
    folder = paths.run(settings.run)
    pids = crashes.zygote.begin(job(settings))
    step = chance.randrange(3, LONG["max_steps"], 3)
    wait_until(lambda: newest_step(folder) >= step or state_of(folder) == "finished")
    if in_save:
        wait_until(lambda: is_saving(folder) or state_of(folder) == "finished", pause=0)
        time.sleep(chance.uniform(0, 0.05))
    else:
        time.sleep(chance.uniform(0, 0.3))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that its state is the one that is killed
    inside, epoch_2 = is_saving(folder), newest_step(folder) >= STEPS_AN_EPOCH
    over = state_of(folder) == "finished"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    codes = crashes.zygote.end()
    crashes.num_broken += 1
    if not over and not any(codes):
        crashes.false_successes += 1
    return crashes.resumes(settings) == expected, inside, epoch_2


def newest_step(folder: Path) -> int:
    return max((e.get("step", 0) for e in read_events(folder)), default=0)


def is_saving(folder: Path) -> bool:
    return any(not (c / files.MANIFEST).exists() for c in checkpoints.folders(folder))


def wait_until(
    ready: Callable[[], bool], seconds: float = PATIENCE_SECONDS, pause: float = 0.002
) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


def test_a_run_killed_at_random_resumes_to_the_same_bytes(crashes: Crashes) -> None:
    chance = random.Random(1)
    kinds = [KINDS[0]] * 4 + [KINDS[3]] * 2
    results = [kill_at_random(crashes, kind, chance, i % 2 == 0) for i, kind in enumerate(kinds)]
    assert [same for same, _, _ in results] == [True] * 6
    assert sum(inside for _, inside, _ in results) >= 2 and any(late for *_, late in results)
    assert crashes.false_successes == 0


FAULTS = {  # what is wrong in a step -> the error
    "nan": "learning_rate: the loss is not finite at step 4; step 2 is saved",
    "inf": "learning_rate: the loss is not finite at step 4; step 2 is saved",
    "gradient": "learning_rate: the gradient is not finite at step 4; step 2 is saved",
    "masked": "dataset: step 4 has no trained token: every label is -100; step 2 is saved",
    "memory": "memory: ran out (after step 2; step 2 is saved) -- set per_device_train_batch_size",
}


def spoil_a_step(crashes: Crashes, kind: tuple[int, int], rank: int, how: str) -> bool:
    """Return whether the training reported the fault at once and saved nothing of that step."""
    settings = crashes.settings(kind, **SHORT)
    codes = crashes.broken(settings, Sabotage(rank=rank, at=3, how=how))
    folder = paths.run(settings.run)
    said = [errors.sentence(e) for e in read_events(folder) if e["event"] == "error"]
    lines = [line for line in (folder / LOG).read_text().splitlines() if "Traceback" in line]
    return (
        2 in codes
        and all(message.startswith(FAULTS[how]) for message in said)
        and bool(said)
        and not lines
        and [checkpoints.step_of(c) for c in checkpoints.folders(folder)] == [2]
    )


@pytest.mark.parametrize(
    ("kind", "rank", "how"), [*(((1, 2), 0, how) for how in FAULTS), ((2, 3), 1, "memory")]
)
def test_a_step_that_is_not_finite_ends_the_run_there(
    crashes: Crashes, kind: tuple[int, int], rank: int, how: str
) -> None:
    assert spoil_a_step(crashes, kind, rank, how)
    assert crashes.false_successes == 0


def fill_the_disk(crashes: Crashes, disk: Path, at: int) -> bool:
    """Return whether a full disk spares the last checkpoint, and space lets the run resume."""
    settings = crashes.settings((1, 2), **SHORT)
    folder = paths.run(settings.run)
    folder.symlink_to(disk / folder.name)
    (disk / folder.name).mkdir()
    codes = crashes.broken(settings, Sabotage(where=SAVE, at=at, how="full"))
    events = read_events(folder)
    left = [checkpoints.fault(folder / "checkpoint-2"), codes]
    for ballast in disk.rglob("ballast"):
        ballast.unlink()
    said = [errors.sentence(e) for e in events if e["event"] == "error"]
    sha256 = crashes.resumes(settings)
    folder.unlink()
    return left == [None, [2]] and sha256 == crashes.expected(settings) and _says_full(said)


def _says_full(said: list[str]) -> bool:
    """Return whether all messages say so; the full disk may have no room for any."""
    return all(message.startswith("disk: is full (") for message in said)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a separate disk that may be filled."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk to fill needs the right to mount one (root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(crashes: Crashes, small_disk: Path) -> None:
    at = writes_of(crashes, (1, 2), 0, SAVE).index("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert fill_the_disk(crashes, small_disk, at)
    assert crashes.false_successes == 0


DAMAGES: dict[str, Callable[[Path, random.Random], Any]] = {
    "cut": lambda file, chance: os.truncate(file, chance.randrange(file.stat().st_size)),
    "empty": lambda file, _: os.truncate(file, 0),
    "missing": lambda file, _: file.unlink(),
    "flipped": lambda file, chance: flip(file, chance),
    "stale": lambda file, _: shutil.copy(file, file.with_name(f"old_{file.name}")),
}


def flip(file: Path, chance: random.Random) -> None:
    """Flip one bit of one byte."""
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def damage(whole: Path, place: Path, chance: random.Random, how: str) -> Path:
    """Copy a checkpoint with one file damaged; the others are links to the same bytes."""
    copy = place / whole.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, copy_function=os.link)
    files = [f for f in sorted(copy.rglob("*")) if f.is_file() and f.stat().st_size]
    shards = [f for f in files if "optim_states" in f.name or "rng_state" in f.name]
    file = chance.choice(shards if chance.random() < 0.3 else files)
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    DAMAGES[how](file, chance)
    return copy


def judge_damaged(crashes: Crashes, place: Path, num: int, num_good: int) -> tuple[int, int]:
    """Count the damaged checkpoints that are rejected, and the good ones that are accepted."""
    settings = crashes.settings((2, 3), **SHORT)
    assert not any(crashes.zygote.run(job(settings)))
    whole, chance = paths.run(settings.run) / "checkpoint-4", random.Random(7)
    rejected = 0
    for i in range(num):
        copy = damage(whole, place, chance, list(DAMAGES)[i % len(DAMAGES)])
        rejected += checkpoints.fault(copy) is not None
    accepted = sum(checkpoints.fault(whole) is None for _ in range(num_good))
    shutil.rmtree(paths.run(settings.run))
    return rejected, accepted


def test_damaged_checkpoints_are_rejected_and_good_ones_accepted(
    crashes: Crashes, tmp_path: Path
) -> None:
    assert judge_damaged(crashes, tmp_path, 50, 5) == (50, 5)


def test_a_checkpoint_is_judged_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from neoxkit.runs import checkpoints; "
        "checkpoints.fault(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def without(crashes: Crashes, what: str) -> bool:
    """Return whether a series fails when one of the kit's safeguards is removed."""
    settings = crashes.settings((1, 2), **SHORT)
    if what == "filter":
        codes = crashes.zygote.run(job(settings, Sabotage(at=3, how="nan", without="filter")))
        return codes == [0]  # it finished, with a step that was not finite
    at = writes_of(crashes, (1, 2), 0, SAVE).index("rng_state.pth")
    crashes.zygote.run(job(settings, Sabotage(where=SAVE, at=at + 1, how="before")))
    codes = crashes.zygote.run(job(settings, Sabotage(without=what)))
    if any(codes):
        return True
    model = paths.run(settings.run) / "model" / "model.safetensors"
    return files.sha256(model) != crashes.expected(settings)


def test_a_series_notices_when_a_safeguard_is_missing(crashes: Crashes) -> None:
    assert without(crashes, "rng")


# The whole series: make test-crash.


@pytest.mark.crash
def test_every_write_of_a_save(crashes: Crashes) -> None:
    same, total = 0, 0
    for kind in KINDS:
        for rank in range(kind[0]):
            for where in (SAVE, EXPORT)[: 3 - kind[0]]:  # only rank 0 exports
                for at in range(len(writes_of(crashes, kind, rank, where))):
                    for how in ("before", "inside"):
                        same += kill_at_a_write(crashes, kind, rank, where, at, how)
                        total += 1
    reliability.record(reliability.SERIES[0], f"{same} of {total}")
    assert same == total >= 100


@pytest.mark.crash
def test_sixty_random_kills(crashes: Crashes) -> None:
    chance = random.Random(2026)
    results = [kill_at_random(crashes, KINDS[i % 4], chance, i % 3 == 0) for i in range(60)]
    same, inside, late = (sum(column) for column in zip(*results, strict=True))
    reliability.record(reliability.SERIES[1], f"{same} of 60")
    reliability.record(reliability.SERIES[2], f"{inside} / {late}")
    assert same == 60 and inside >= 12 and late >= 12


@pytest.mark.crash
def test_five_hundred_damaged_checkpoints(crashes: Crashes, tmp_path: Path) -> None:
    rejected, accepted = judge_damaged(crashes, tmp_path, 500, 100)
    reliability.record(reliability.SERIES[3], f"{rejected} of 500")
    reliability.record(reliability.SERIES[4], f"{accepted} of 100")
    assert (rejected, accepted) == (500, 100)


@pytest.mark.crash
def test_twenty_good_runs(crashes: Crashes) -> None:
    settings = [crashes.settings(KINDS[i % 4], **SHORT) for i in range(20)]
    failed = sum(crashes.resumes(s) != crashes.expected(s) for s in settings)
    reliability.record(reliability.SERIES[5], f"{failed} of 20")
    assert failed == 0


@pytest.mark.crash
def test_ten_spoilt_steps_of_each_kind(crashes: Crashes) -> None:
    found = {
        how: sum(spoil_a_step(crashes, KINDS[i % 4], KINDS[i % 4][0] - 1, how) for i in range(10))
        for how in FAULTS
    }
    counted = ", ".join(f"{how} {n} of 10" for how, n in found.items())
    reliability.record(reliability.SERIES[6], counted)
    assert set(found.values()) == {10}


@pytest.mark.crash
def test_a_disk_full_at_every_write(crashes: Crashes, small_disk: Path) -> None:
    num = len(writes_of(crashes, (1, 2), 0, SAVE))
    whole = sum(fill_the_disk(crashes, small_disk, at) for at in range(num))
    reliability.record(reliability.SERIES[8], f"{whole} of {num}")
    assert whole == num


@pytest.mark.crash
def test_every_safeguard_is_needed(crashes: Crashes) -> None:
    noticed = sum(without(crashes, what) for what in ("manifest", "rng", "filter"))
    reliability.record(reliability.SERIES[11], f"{noticed} of 3")
    assert noticed == 3


@pytest.mark.crash
def test_no_failure_looked_like_success(crashes: Crashes) -> None:
    """The last test: counted over all runs that were broken above."""
    reliability.record(reliability.SERIES[10], f"{crashes.false_successes} of {crashes.num_broken}")
    assert crashes.false_successes == 0 < crashes.num_broken
