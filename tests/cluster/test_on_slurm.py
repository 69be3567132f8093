# ruff: noqa: F811 - fixtures that are imported
"""Trainings as jobs of a real SLURM with two nodes: the same bytes, whatever ends them."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import losses
from on_login import (  # noqa: F401 - fixtures
    LONG,
    ON_NODES,
    PARAMETERS,
    STEPS,
    WEIGHTS,
    Login,
    cluster,
    login,
    starts_of,
    steps_of,
    told,
    undisturbed,
)

from neoxkit import files, paths
from neoxkit.errors import STOPPED
from neoxkit.runs import checkpoints, events, jobs
from neoxkit.runs.folder import FINISHED

pytestmark = [pytest.mark.cluster, pytest.mark.process]

TIMES = 10  # that a job comes back beside its old rank


def ended(login: Login, run: str, training: subprocess.Popen) -> Path:
    """Wait until a run has ended well; return its folder."""
    folder = paths.run(run)
    assert training.wait() == 0, told(folder)
    return folder


def test_two_nodes_compute_what_two_ranks_on_one_host_do(login: Login, undisturbed: str) -> None:
    done = login.train("nodes", STEPS)
    folder = paths.run("nodes")
    assert done.returncode == 0, done.stderr + told(folder)
    assert files.sha256(folder / WEIGHTS) == undisturbed
    assert losses(folder) == losses(paths.run("undisturbed"))
    assert losses(folder, "eval") == losses(paths.run("undisturbed"), "eval")


def test_at_its_time_limit_a_job_saves_comes_back_and_goes_on(
    login: Login, undisturbed: str
) -> None:
    """SLURM warns a job with USR1; here the test does so, twice."""
    training = login.begin("limit", STEPS)
    for step in (10, 50):
        job = login.until_step("limit", step)
        login.slurm("scancel", "--batch", "--signal=USR1", job)
        login.until(job, "PENDING")
    folder = ended(login, "limit", training)
    starts = starts_of(folder)
    assert len(starts) == 3 and starts == sorted(starts) and starts[1] >= 10
    assert files.sha256(folder / WEIGHTS) == undisturbed


def test_slurms_own_warning_comes_in_time(login: Login) -> None:
    training = login.begin("warned", LONG, slurm='{"time": "4"}', eval_steps=LONG)
    folder = ended(login, "warned", training)
    starts = starts_of(folder)
    assert len(starts) > 1 and starts == sorted(starts)
    assert steps_of(folder)[-1] == LONG


def test_a_job_that_is_requeued_or_preempted_ends_with_the_same_bytes(
    login: Login, undisturbed: str
) -> None:
    training = login.begin("requeued", STEPS, slurm='{"partition": "main"}')
    login.slurm("scontrol", "requeue", login.until_step("requeued", 10))
    job = login.until_step("requeued", 50)
    login.slurm("sbatch", "-N2", "-p", "urgent", "--exclusive", "--wrap", "sleep 1")
    login.until(job, "PENDING")
    folder = ended(login, "requeued", training)
    starts = starts_of(folder)
    assert len(starts) == 3 and starts == sorted(starts)
    assert files.sha256(folder / WEIGHTS) == undisturbed


def test_stop_saves_and_the_same_command_goes_on(login: Login, undisturbed: str) -> None:
    training = login.begin("asked", STEPS)
    job = login.until_step("asked", 10)
    standing = json.loads(login.kit("runs", "--json").stdout)
    assert [r["state"] for r in standing if r["run"] == "asked"] == ["training"]
    done = login.kit("stop", "asked")
    assert done.returncode == 0 and "stopped at step" in done.stdout, done.stderr
    assert training.wait() == STOPPED
    assert login.state(job) not in ("PENDING", "RUNNING")  # it does not come back
    assert checkpoints.saved_step(paths.run("asked")) >= 10
    again = login.train("asked", STEPS)
    assert again.returncode == 0, again.stderr
    assert files.sha256(paths.run("asked") / WEIGHTS) == undisturbed


def test_a_job_that_waits_is_queued_and_can_be_cancelled(
    login: Login, request: pytest.FixtureRequest
) -> None:
    other = login.slurm("sbatch", "--parsable", "-N2", "--exclusive", "--wrap", "sleep 600")
    request.addfinalizer(lambda: login.slurm("scancel", other))
    training = login.begin("waits", STEPS)
    folder = paths.run("waits")
    login.cluster.wait_for(lambda: jobs.job_of(folder))
    job = jobs.job_of(folder)
    login.until(job, "PENDING")
    found = json.loads(login.kit("runs", "--json").stdout)
    says = {r["run"]: (r["state"], r["says"]) for r in found}
    assert says["waits"][0] == "queued" and says["waits"][1].startswith("queued (")
    again = login.train("waits", STEPS)
    assert again.returncode == 2 and f"has job {job} (queued" in again.stderr
    assert "is cancelled" in login.kit("stop", "waits").stdout
    assert training.wait() == STOPPED
    assert login.state(job) == "CANCELLED" and not steps_of(folder)


def test_a_node_without_the_gpus_asked_for_is_refused_in_one_line(login: Login) -> None:
    """The nodes have a GPU in name only; what the login node has decides nothing."""
    gpus = {"num_ranks": 0, "slurm": '{"gpus-per-node": 1}'}
    done = login.train("gpus", STEPS, **gpus)
    assert done.returncode == 2
    assert "shows 0 GPUs to its 1 ranks" in done.stderr, done.stderr
    folder = paths.run("gpus")
    assert not (folder / FINISHED).exists()
    assert "use_cpu" not in files.read_json(folder / "arguments.json")


def test_a_job_can_be_submitted_from_inside_another(login: Login, undisturbed: str) -> None:
    inner = login.run_words("inside", STEPS)
    job = login.slurm(
        "sbatch", "--parsable", "-N1", "--mem-per-cpu=100", "--output=/dev/null",
        "--wrap", subprocess.list2cmdline(inner),
    )  # fmt: skip
    login.until(job, "COMPLETED", "FAILED", "CANCELLED")
    folder = paths.run("inside")
    assert login.state(job) == "COMPLETED", told(folder)
    assert files.sha256(folder / WEIGHTS) == undisturbed


@pytest.mark.parametrize("time", range(TIMES))
def test_a_job_that_comes_back_beside_its_old_rank_fences_it(login: Login, time: int) -> None:
    """SLURM loses a node's daemon, and starts the job elsewhere while the old rank goes on."""
    alone = {
        "num_nodes": 1,
        "save_steps": 100,
        "eval_steps": 1000,
        "per_device_train_batch_size": 8,
    }
    run = f"twice-{time}"
    training = login.begin(run, LONG, **alone)
    folder = paths.run(run)
    job = login.until_step(run, 150)
    node = login.slurm("squeue", "-h", "-j", job, "-o", "%B")
    login.cluster.kill_slurmd(node)
    before = steps_of(folder)[-1]
    login.cluster.wait_for(lambda: len(starts_of(folder)) == 2)
    assert login.ranks(node, run) == []  # it has ended by itself
    assert training.wait() == 0, told(folder)
    newest = events.read_events(folder)
    at = max(i for i, e in enumerate(newest) if e["event"] == "start")
    old, new = (
        [e["step"] for e in part if e["event"] == "train"] for part in (newest[:at], newest[at:])
    )
    assert old[-1] > before  # it went on for as long as the run was its own
    assert new == [*range(newest[at]["resumed_step"] + 1, LONG + 1)]  # none of its steps among them
    login.cluster.start_slurmd(node)
    login.cluster.wait_for(lambda: login.cluster.idle() == 2)


def test_a_sweep_is_one_array_and_the_same_command_again_finishes_it(login: Login) -> None:
    """Of four runs one is cancelled, and a rank of another is killed."""
    given = PARAMETERS | ON_NODES | {"num_nodes": 1, "max_steps": 60, "seed": "1,2,3,4"}
    words = login.words("sweep", "02", "--slurm", "--at-once", "2", **given, run="night")
    runs = [paths.run(f"night.seed={seed}") for seed in (1, 2, 3, 4)]
    night = login.cluster.start("login", words)
    login.cluster.wait_for(lambda: all(jobs.job_of(folder) for folder in runs))
    assert len({jobs.job_of(folder).split("_")[0] for folder in runs}) == 1
    login.slurm("scancel", jobs.job_of(runs[3]))
    login.kill_a_rank("night.seed=1")
    assert night.wait() == 1
    finished = [(folder / FINISHED).exists() for folder in runs]
    assert finished == [False, True, True, False], told(runs[1])
    again = login.cluster.on("login", words)
    assert again.returncode == 0, again.stderr
    assert all((folder / FINISHED).exists() for folder in runs)
    assert (paths.run("night") / "04_compare.ipynb").exists()


def test_a_rank_that_is_killed_ends_the_job_as_failed(login: Login) -> None:
    training = login.begin("killed", STEPS)
    login.kill_a_rank("killed")
    assert training.wait() == 1
    assert not (paths.run("killed") / FINISHED).exists()


def test_the_doctor_asks_every_node(login: Login) -> None:
    done = login.kit("doctor", "--cluster", num_nodes=2, num_ranks=1)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in lines[:2]] == ["n1", "n2"]
    assert "KillWait" in done.stdout and "30 s to save" in done.stdout
    gpus = login.kit("doctor", "--cluster", slurm='{"gpus-per-node": 1}')
    assert gpus.returncode == 1 and "shows 0 GPUs, 1 are needed" in gpus.stdout
