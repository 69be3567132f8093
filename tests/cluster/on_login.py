"""A person on the login node of the test cluster, and the trainings that its tests start."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest

from neoxkit import files, paths
from neoxkit.runs import events, jobs
from neoxkit.runs.folder import LOG

# One rank on each of two hosts computes what two ranks on one host do.
PARAMETERS = {
    "dataset": "small", "per_device_train_batch_size": 4, "logging_steps": 1, "eval_steps": 20,
    "save_steps": 20, "save_total_limit": 20, "num_replies": 0,
}  # fmt: skip
ON_NODES = {"launcher": "slurm", "num_nodes": 2, "num_ranks": 1}
STEPS = 100
LONG = 2000  # a minute and more
WEIGHTS = "model/model.safetensors"


class Login:
    """A person on the login node, with the kit in a folder that the nodes share."""

    def __init__(self, cluster: hosts.Cluster) -> None:
        self.cluster = cluster

    def words(self, *words: str, **parameters: object) -> list[str]:
        flags = [w for name, v in parameters.items() for w in ("-p", name, str(v))]
        return [sys.executable, "-m", "neoxkit.cli", *words, *flags]

    def run_words(self, run: str, steps: int, **more: object) -> list[str]:
        given = PARAMETERS | ON_NODES | more
        return self.words("run", "--only", "02", run=run, max_steps=steps, **given)

    def kit(self, *words: str, **parameters: object) -> subprocess.CompletedProcess[str]:
        """Run a command of the kit's to its end."""
        return self.cluster.on("login", self.words(*words, **parameters))

    def train(self, run: str, steps: int, **more: object) -> subprocess.CompletedProcess[str]:
        """Train in a job on both nodes, to its end."""
        return self.cluster.on("login", self.run_words(run, steps, **more))

    def begin(self, run: str, steps: int, **more: object) -> subprocess.Popen:
        """Train in a job on both nodes, and return at once."""
        return self.cluster.start("login", self.run_words(run, steps, **more))

    def slurm(self, *words: str) -> str:
        done = self.cluster.on("login", words)
        assert not done.returncode, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        return self.slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def until(self, job: str, *states: str) -> None:
        """Wait until a job is in one of these states."""
        self.cluster.wait_for(lambda: self.state(job) in states)

    def until_step(self, run: str, step: int) -> str:
        """Wait until a run has logged a step; return its job."""
        folder = paths.run(run)
        self.cluster.wait_for(lambda: steps_of(folder)[-1:] >= [step])
        return jobs.job_of(folder)

    def kill_a_rank(self, run: str) -> None:
        """Kill a rank of a run's job once it takes steps."""
        job = self.until_step(run, 10)
        node = self.slurm("squeue", "-h", "-j", job, "-o", "%B")
        self.cluster.on(node, ["kill", f"-{signal.SIGKILL}", self.ranks(node, run)[0]])

    def ranks(self, node: str, run: str) -> list[str]:
        """Return the ids of a run's ranks on a node, as the node counts."""
        ask = ["pgrep", "-f", f"neoxkit.train .*/{run}/"]
        return self.cluster.on(node, ask).stdout.split()


def steps_of(folder: Path) -> list[int]:
    """Return the steps that a run has logged, in the order of the log."""
    if not (folder / events.METRICS).exists():
        return []
    return [e["step"] for e in events.read_events(folder) if e["event"] == "train"]


def starts_of(folder: Path) -> list[int]:
    """Return the step at which each start of a run began."""
    return [e["resumed_step"] for e in events.read_events(folder) if e["event"] == "start"]


def told(folder: Path) -> str:
    """Return what a failed test needs to be understood."""
    return (folder / LOG).read_text() if (folder / LOG).exists() else "no log"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Cluster]:
    """Start the hosts and SLURM, once for all tests."""
    if why := hosts.missing():
        pytest.skip(why)
    made = hosts.Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def login(cluster: hosts.Cluster, home: Path) -> Login:
    return Login(cluster)


@pytest.fixture(scope="session")
def undisturbed(session_home: Path) -> str:
    """Train STEPS steps with two ranks on one host; return the SHA-256 of the weights."""
    given = PARAMETERS | {"run": "undisturbed", "max_steps": STEPS, "num_ranks": 2}
    flags = [w for name, v in given.items() for w in ("-p", name, str(v))]
    words = [sys.executable, "-m", "neoxkit.cli", "run", "--only", "02", *flags]
    home = {**os.environ, "NEOXKIT_HOME": str(session_home)}
    subprocess.run(words, check=True, capture_output=True, env=home)
    return files.sha256(session_home / "runs" / "undisturbed" / WEIGHTS)
