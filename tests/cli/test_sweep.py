"""sweep.py: the runs of a sweep, and (marked slow) that a killed sweep completes them all."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from neoxkit import files, machine, paths
from neoxkit.cli import parameters, sweep, variants
from neoxkit.cli.variants import Variant
from neoxkit.errors import UserError
from neoxkit.evaluation import compare_runs
from neoxkit.launch import checks, command, forecast
from neoxkit.runs import lock
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import ARGUMENTS, FINISHED, finished_facts, state_of
from neoxkit.settings import EvaluateSettings, TrainSettings


def names(made: list[Variant]) -> list[str]:
    return [variant.settings.run for variant in made]


def test_every_combination_or_the_nth_of_each() -> None:
    swept = {"learning_rate": [1e-5, 3e-5], "block_size": [128, 280]}
    assert names(variants.variants({"run": "g"}, swept)) == [
        "g.learning_rate=1e-05.block_size=128",
        "g.learning_rate=1e-05.block_size=280",
        "g.learning_rate=3e-05.block_size=128",
        "g.learning_rate=3e-05.block_size=280",
    ]
    paired = variants.variants({"run": "g", "seed": 7}, swept, paired=True)
    assert [(v.settings.learning_rate, v.settings.block_size) for v in paired] == [
        (1e-5, 128),
        (3e-5, 280),
    ]
    assert all(v.settings.seed == 7 for v in paired)


def test_a_name_is_a_run_name_whatever_the_values() -> None:
    made = variants.variants({"run": "g"}, {"ds_config": ["a/b.json", f"{'long/' * 40}c.json"]})
    assert names(made)[0] == "g.ds_config=a-b.json" and len(names(made)[1]) == 80
    assert all(paths.check_name("run", f"{name}.range-check-1.0e-03") for name in names(made))


def test_a_models_owner_is_left_out_of_names_that_still_differ() -> None:
    """Seeds of a model are repositories of their own; two owners may have models of one name."""
    seeds = [f"EleutherAI/pythia-70m-seed{i}" for i in (1, 2, 3)]
    made = variants.variants(
        {"run": "g"}, {"model_name_or_path": seeds, "revision": ["main", "step512"]}
    )
    assert names(made)[:3] == [
        "g.model_name_or_path=pythia-70m-seed1.revision=main",
        "g.model_name_or_path=pythia-70m-seed1.revision=step512",
        "g.model_name_or_path=pythia-70m-seed2.revision=main",
    ]
    assert [v.settings.model_name_or_path for v in made[::2]] == seeds
    folders = [f"runs/one/checkpoint-{i}" for i in (10, 20)]
    made = variants.variants({"run": "g"}, {"model_name_or_path": folders})
    assert names(made) == [f"g.model_name_or_path=checkpoint-{i}" for i in (10, 20)]
    made = variants.variants({"run": "g"}, {"model_name_or_path": ["one/a", "two/a", "tiny"]})
    assert names(made) == [f"g.model_name_or_path={name}" for name in ("one-a", "two-a", "tiny")]


def test_revisions_are_swept_as_the_readme_says(capsys: pytest.CaptureFixture) -> None:
    flags = [("run", "night"), ("dataset", "my"), ("revision", "step0,step512,step143000")]
    fixed, swept = parameters.read_swept([], flags)
    assert names(variants.variants(fixed, swept)) == [
        f"night.revision={revision}" for revision in ("step0", "step512", "step143000")
    ]


@pytest.mark.parametrize(
    ("fixed", "swept", "paired", "said"),
    [
        ({}, {}, False, "no parameter has several values"),
        ({}, {"seed": [1, 1]}, False, "two runs would be named g.seed=1 -- give each value once"),
        ({"run": "z 1"}, {"seed": [1, 2]}, False, "run: 'z 1' is not a name"),
        ({}, {"run": ["a", "b"]}, False, "run: has several values -- give one"),
        ({}, {"seed": [1, 2], "block_size": [8, 9, 10]}, True, "got 2 of seed, 3 of block_size"),
        (
            {},
            {"train_file": ["a", "b"]},
            False,
            "train_file: is not a parameter of 02_train -- name",
        ),
        ({"runs": []}, {"seed": [1, 2]}, False, "runs: is not a parameter of 02_train -- name"),
        (
            {"max_new_tokens": 8},
            {"seed": [1, 2]},
            False,
            "max_new_tokens: is not a parameter of 02",
        ),
        ({"restart": True}, {"seed": [1, 2]}, False, "restart: would restart every run"),
        ({"hub_model_id": "a/b"}, {"seed": [1, 2]}, False, "hub_model_id: would push every run"),
        ({}, {"learning_rate": [1e-5, 3.0]}, False, "learning_rate: must be at most 1"),
    ],
)
def test_what_can_not_be_swept_is_refused(
    fixed: dict, swept: dict, paired: bool, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        variants.variants({"run": "g", **fixed}, swept, paired)


def test_values_come_from_flags_with_commas_and_from_lists_in_files(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("learning_rate: [1e-5, 3e-5]\nseed: [1]\nmy_questions: [Hi, there]\nrun: g\n")
    flags = [("block_size", "128, 280"), ("run", "h"), ("report_to", "wandb,mlflow")]
    fixed, swept = parameters.read_swept([str(file)], flags)
    assert fixed.pop("report_to") == "wandb,mlflow"  # a list with commas of its own
    assert fixed == {"seed": 1, "my_questions": ["Hi", "there"], "run": "h"}
    assert swept == {"learning_rate": [1e-5, 3e-5], "block_size": [128, 280]}
    file.write_text("my_questions: [[Hi], [there]]\n")
    assert parameters.read_swept([str(file)], [])[1] == {"my_questions": [["Hi"], ["there"]]}
    file.write_text("my_questions: []\nallow_change: []\n")
    assert parameters.read_swept([str(file)], []) == ({"my_questions": [], "allow_change": []}, {})
    file.write_text("seed: []\n")
    with pytest.raises(UserError, match=r"s\.yaml:1: seed: has no value"):
        parameters.read_swept([str(file)], [])
    with pytest.raises(UserError, match="learning_rate: must be a number, got 'x'"):
        parameters.read_swept([], [("learning_rate", "1e-5,x")])


@pytest.mark.parametrize(
    ("gpus", "visible", "num_ranks", "at_once", "parts"),
    [
        (8, None, 0, 0, ["0,1,2,3,4,5,6,7"]),
        (8, None, 2, 0, ["0,1", "2,3", "4,5", "6,7"]),
        (8, None, 0, 4, ["0,1", "2,3", "4,5", "6,7"]),
        (8, None, 2, 3, ["0,1", "2,3", "4,5"]),
        (2, "5,7", 1, 0, ["5", "7"]),
    ],
)
def test_gpus_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, num_ranks: int, at_once: int,
    parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "num_gpus", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = sweep.environments([TrainSettings(num_ranks=num_ranks)], at_once)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == parts


def test_more_at_once_than_there_are_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 2)
    with pytest.raises(UserError, match="--at-once: got 3, there are 2 GPUs"):
        sweep.environments([TrainSettings()], 3)


def test_on_a_cpu_one_runs_after_the_other_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 0)
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    assert sweep.environments([TrainSettings()], 0) == [{}]
    shared = sweep.environments([TrainSettings(num_ranks=2)], 2)
    assert shared == [{"OMP_NUM_THREADS": "2"}] * 2


def test_on_the_hosts_of_a_hostfile_one_runs_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 8)
    by_ssh = TrainSettings(launcher="hostfile")
    assert sweep.environments([by_ssh], 0) == [{}]
    with pytest.raises(UserError, match="--at-once: the runs would share the hosts"):
        sweep.environments([by_ssh], 2)


def test_a_negative_number_at_once_is_refused() -> None:
    with pytest.raises(UserError, match="--at-once: got -1"):
        sweep.environments([TrainSettings()], -1)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Variant]:
    """Make two variants whose child only sleeps; nothing is checked or compared."""
    for name in ("notebooks", "ds_configs", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "num_gpus", lambda: 0)
    monkeypatch.setattr(checks, "check", lambda settings: {})
    monkeypatch.setattr(forecast, "doubts", lambda settings, at_once: [])
    monkeypatch.setattr(command, "same_weights", lambda settings, first: [])
    monkeypatch.setattr(sweep, "compare", lambda name, made: 0)
    return variants.variants({"run": "g"}, {"seed": [1, 2]})


def sleeps(seconds: float) -> subprocess.Popen:
    line = f"import time, sys\ntry: time.sleep({seconds})\nexcept KeyboardInterrupt: sys.exit(75)"
    return subprocess.Popen([sys.executable, "-c", line], start_new_session=True)


def test_no_variant_begins_after_a_signal(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if the first one ends at that moment, which frees its slot."""
    begun: list[str] = []

    def child(variant: variants.Variant, *_: object) -> subprocess.Popen:
        begun.append(variant.settings.run)
        if len(begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return sleeps(0.5)

    monkeypatch.setattr(sweep, "_child", child)
    assert sweep.run("g", two, ["02_train"]) == 75
    assert begun == ["g.seed=1"]


def test_a_signal_reaches_a_child_that_was_just_started(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []

    def child(*_: object) -> subprocess.Popen:
        children.append(started := sleeps(60))
        time.sleep(0.5)  # until it can be interrupted
        os.kill(os.getpid(), signal.SIGTERM)  # before the sweep knows about it
        time.sleep(0.2)
        return started

    monkeypatch.setattr(sweep, "_child", child)
    assert sweep.run("g", two[:1], ["02_train"]) == 75
    assert children[0].returncode != 0  # interrupted, not waited for


def test_a_sweep_waits_for_a_variant_that_still_saves(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    two[0].folder.mkdir()
    held = lock.hold(two[0].folder)
    begun: list[bool] = []

    def child(variant: variants.Variant, *_: object) -> subprocess.Popen:
        begun.append(bool(lock.locked_by(variant.folder)))
        return sleeps(0)

    monkeypatch.setattr(sweep, "_child", child)
    threading.Timer(1.5, held.close).start()
    assert sweep.run("g", two[:1], ["02_train"]) == 0
    assert begun == [False]


def ends(code: int) -> subprocess.Popen:
    """Start a stand-in for a run that ends with this code, or by this signal."""
    line = f"import os, sys; os.kill(os.getpid(), {-code}) if {code} < 0 else sys.exit({code})"
    return subprocess.Popen([sys.executable, "-c", line], start_new_session=True)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sweep, "SETTLE_SECONDS", 0.1)


def codes_given(
    monkeypatch: pytest.MonkeyPatch, codes: dict[str, list[int]]
) -> dict[str, list[int]]:
    """Have each start of a run end with its next code; what is left of them is returned."""

    def child(variant: Variant, *_: object) -> subprocess.Popen:
        variant.folder.mkdir(exist_ok=True)
        code = codes[variant.settings.run].pop(0)
        if not code:
            files.write_json(variant.folder / FINISHED, {})
        return ends(code)

    monkeypatch.setattr(sweep, "_child", child)
    return codes


def test_runs_of_which_a_process_was_killed_go_on_by_themselves(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    left = codes_given(monkeypatch, {"g.seed=1": [-9, 71, 0], "g.seed=2": [0]})
    assert sweep.run("g", two, ["02_train"]) == 0
    assert left == {"g.seed=1": [], "g.seed=2": []}
    said = capsys.readouterr().out.splitlines()
    cause = "its neoxkit run was killed (KILL)"
    assert f"g.seed=1  restarting  after {cause}" in said
    assert "g.seed=1  finished  restarted 2 times" in said
    last = "restarted 2 times, the last time after one of its processes was killed"
    assert f"note: g.seed=1 was {last}" in said
    found = [(e["times"], e["what"]) for e in read_events(two[0].folder)]
    assert found == [(1, cause), (2, "one of its processes was killed")]


@pytest.mark.parametrize("code", [1, 2, 75, 130, -15])
def test_no_other_end_is_followed_by_a_restart(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None, code: int
) -> None:
    left = codes_given(monkeypatch, {"g.seed=1": [code, 0], "g.seed=2": [0]})
    assert sweep.run("g", two, ["02_train"]) == code
    assert left == {"g.seed=1": [0], "g.seed=2": []}


def test_a_run_that_is_killed_again_and_again_is_left(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Where memory runs out, the system kills it each time."""
    left = codes_given(monkeypatch, {"g.seed=1": [71] * 9, "g.seed=2": [0]})
    assert sweep.run("g", two, ["02_train"]) == 71
    assert left == {"g.seed=1": [71] * 5, "g.seed=2": []}
    said = capsys.readouterr().out.splitlines()
    row = "g.seed=1  failed  see runs/g.seed=1/run.log, restarted 3 times"
    left_with = "3 restarts brought no new checkpoint, and one of its processes was killed"
    assert row in said and f"note: g.seed=1 is left: {left_with}" in said


def test_a_stop_ends_the_restarts(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    left = codes_given(monkeypatch, {"g.seed=1": [71, 0], "g.seed=2": [0]})
    monkeypatch.setattr(sweep, "SETTLE_SECONDS", 1.0)
    threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert sweep.run("g", two, ["02_train"]) == 75
    assert left == {"g.seed=1": [0], "g.seed=2": [0]}


def test_a_restart_waits_for_what_a_killed_one_has_left(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    """Also for its trials: a range test holds the lock of a folder of its own."""
    trial = two[0].folder.with_name("g.seed=1.range-test")
    trial.mkdir()
    files.write_json(trial / ARGUMENTS, {"trial": True})
    held: list = []
    begun: list[bool] = []

    def child(*_: object) -> subprocess.Popen:
        begun.append(bool(lock.locked_by(trial)))
        if len(begun) == 1:
            two[0].folder.mkdir()
            held.append(lock.hold(trial))
            threading.Timer(1.5, held[0].close).start()
            return ends(71)
        return ends(0)

    monkeypatch.setattr(sweep, "_child", child)
    assert sweep.run("g", two[:1], ["02_train"]) == 0
    assert begun == [False, False]


def test_each_run_that_was_started_is_told_once_however_often_it_was_restarted(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, at_once: None, tmp_path: Path
) -> None:
    for code, state in ((0, "finished"), (2, "failed"), (75, "stopped")):
        codes_given(monkeypatch, {"g.seed=1": [71, -9, code], "g.seed=2": [0]})
        tell = f'echo "$NEOXKIT_NAME $NEOXKIT_STATE" >> {tmp_path}/told'
        assert sweep.run("g", two, ["02_train"], on_end=tell) == code
        told = [f"g.seed=1 {state}", "g.seed=2 finished"]
        assert (tmp_path / "told").read_text().splitlines() == told
        assert sweep.run("g", two[1:], ["02_train"], on_end=tell) == 0  # it was finished before
        assert (tmp_path / "told").read_text().splitlines() == told
        (tmp_path / "told").unlink()
        for one in two:
            (one.folder / FINISHED).unlink(missing_ok=True)


def test_runs_that_may_not_fit_are_named_before_the_first_begins(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Only unfinished runs are named, and they are tried anyway."""

    def doubts(settings: list[TrainSettings], at_once: int) -> list[str]:
        assert ([one.seed for one in settings], at_once) == ([2], 1)
        return ["g.seed=2, DOES NOT FIT"]

    monkeypatch.setattr(forecast, "doubts", doubts)
    monkeypatch.setattr(sweep, "_child", lambda *_: sleeps(0))
    two[0].folder.mkdir()
    files.write_json(two[0].folder / FINISHED, {})
    assert sweep.run("g", two, ["02_train"], at_once=2) == 0  # one of them is left
    said = capsys.readouterr().out.splitlines()
    note = said.index("note: g.seed=2, DOES NOT FIT; trying anyway")
    assert said[:note] == ["1 of 2 finished", "g.seed=1  finished", "g.seed=2  waiting"]


def test_values_saved_in_the_notebooks_are_named_once_and_never_a_question(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "_child", lambda *_: sleeps(0))
    held = {"02_train": "seed = 9\nmax_steps = 7", "03_evaluate": 'my_questions = ["Who is Ann?"]'}
    for name, source in held.items():
        cell = {"cell_type": "code", "source": source, "metadata": {"tags": ["parameters"]}}
        files.write_json(paths.root() / "notebooks" / f"{name}.ipynb", {"cells": [cell]})
    assert sweep.run("g", two, ["02_train"]) == 0
    of_02 = "note: notebooks/02_train.ipynb holds max_steps 7; -1 is used"
    assert [s.split(" --")[0] for s in notes(capsys)] == [of_02]
    assert sweep.run("g", two, [*held]) == 0
    of_03 = "note: notebooks/03_evaluate.ipynb holds my_questions ...; ... is used"
    assert [s.split(" --")[0] for s in notes(capsys)] == [of_02, of_03]


def notes(capsys: pytest.CaptureFixture) -> list[str]:
    return [s for s in capsys.readouterr().out.splitlines() if s.startswith("note: notebooks")]


def test_a_rate_far_above_what_fits_is_reported_with_its_run(
    two: list[Variant], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "_child", lambda *_: sleeps(0))
    fixed = {"run": "g", "model_name_or_path": "tiny"}
    made = variants.variants(fixed, {"learning_rate": [0, 2e-3, 0.5]})
    assert sweep.run("g", made, ["02_train"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [
        "note: g.learning_rate=0.5: learning_rate 0.5 is 250 times what fits this base "
        "(0.002, tiny starts from random weights)"
    ]


@pytest.mark.parametrize(
    ("code", "state"), [(75, "killed"), (130, "killed"), (1, "failed"), (2, "failed")]
)
def test_a_run_that_was_interrupted_has_not_failed(
    two: list[Variant], code: int, state: str
) -> None:
    """Its state comes from its files; here, it has not done anything yet."""
    two[0].folder.mkdir()
    end: Future = Future()
    end.set_result(code)
    row = sweep._row(two[0], end, 0.0)
    assert (row.run, row.state) == ("g.seed=1", state)
    assert row.doing == ("see runs/g.seed=1/run.log" if state == "failed" else "")


def test_a_refusal_names_the_run(two: list[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: TrainSettings) -> None:
        if settings.seed == 2:
            raise UserError("run", "was started with other settings", "restore them")

    monkeypatch.setattr(checks, "check", refuse)
    said = "g.seed=2: run: was started with other settings -- restore them"
    with pytest.raises(UserError, match=said):
        sweep.run("g", two, ["02_train"])


def test_a_run_evaluated_with_other_settings_is_evaluated_again(
    two: list[Variant],
) -> None:
    both = ["02_train", "03_evaluate"]
    folder = two[0].folder
    folder.mkdir()
    assert not sweep.is_done(two[0], both)
    files.write_json(folder / FINISHED, {})
    assert sweep.is_done(two[0], ["02_train"]) and not sweep.is_done(two[0], both)
    settings = EvaluateSettings(run="g.seed=1", seed=1).as_dict()
    files.write_json(folder / "evaluation.json", {"settings": settings})
    assert sweep.is_done(two[0], both)
    files.write_json(folder / "evaluation.json", {"settings": settings | {"num_questions": 7}})
    assert not sweep.is_done(two[0], both)


def test_on_gpus_a_variant_has_a_rank_per_gpu_of_its_share() -> None:
    found = sweep._with_its_ranks(TrainSettings(), {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert found.num_ranks == 2
    assert sweep._with_its_ranks(TrainSettings(), {}).num_ranks == 0


def processes(home: Path) -> list[int]:
    """Return the processes of the trainings and notebooks in this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NEOXKIT_HOME") == str(home) and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_sweep_that_was_killed_ends_with_every_run_and_the_right_table(home: Path) -> None:
    line = [
        sys.executable, "-m", "neoxkit.cli", "sweep", "02_train", "-p", "run", "grid",
        "-p", "dataset", "small", "-p", "max_steps", "8", "-p", "eval_steps", "4",
        "-p", "num_replies", "0", "-p", "learning_rate", "1e-3,2e-3",
        "-p", "per_device_train_batch_size", "4,8,16",
    ]  # fmt: skip
    before = set(processes(home))
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    while sum((f / FINISHED).exists() for f in (home / "runs").glob("grid.*")) < 2:
        assert first.poll() is None
        time.sleep(0.1)
    while not any(  # in the middle of the third
        state_of(f) == "started" for f in (home / "runs").glob("grid.*")
    ):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    deadline = time.monotonic() + 30
    while set(processes(home)) - before:
        assert time.monotonic() < deadline, "something was left"
        time.sleep(0.2)
    old = {f: (f / FINISHED).stat().st_mtime_ns for f in (home / "runs").glob("grid.*")
           if (f / FINISHED).exists()}  # fmt: skip
    again = subprocess.run(line, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    chosen = compare_runs.load_runs(["grid.*"])
    assert [run.state for run in chosen] == ["finished"] * 6
    assert all((f / FINISHED).stat().st_mtime_ns == at for f, at in old.items())
    assert all((home / "runs" / run.name / "02_train.ipynb").is_file() for run in chosen)
    saved = json.loads((home / "runs" / "grid" / "comparison.json").read_text())
    assert set(saved["differs"]) == {"learning_rate", "per_device_train_batch_size"}
    losses = [finished_facts(home / "runs" / s["run"])["eval_loss"] for s in saved["scores"]]
    assert losses == sorted(losses) == [s["eval_loss"] for s in saved["scores"]]
    assert saved["scores"][0]["run"] in again.stdout
