"""Jobs of SLURM: what is asked of it, what its answers mean, and what a job does with its ranks.

A shell script stands for SLURM's commands; tests/cluster runs the same against a real SLURM.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BASE, Outputs

from neoxkit import files, machine, paths
from neoxkit.cli import job_array, stopping
from neoxkit.cli.variants import Variant
from neoxkit.errors import STOPPED, Stopped, TrainingError, UserError
from neoxkit.lab import dashboard
from neoxkit.launch import checks, cluster_file, inspection, job, join, nodes, plan, process, slurm
from neoxkit.runs import card, heartbeat, jobs, lease, lock
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import LOG, doing, standing_of

ON_NODES = BASE.replace(launcher="slurm", num_nodes=2, num_ranks=4)

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "{folder}/asked"
name=$(basename "$0")
[ -f "{folder}/fails.$name" ] && {{ echo "$name: error: Invalid account" >&2; exit 1; }}
cat "{folder}/says.$name" 2>/dev/null || true
"""


class Slurm:
    """Stand-ins for SLURM's commands: what each says, and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
            path = folder / name
            path.write_text(FAKE.format(folder=folder))
            path.chmod(0o755)
        self.says("sbatch", "41;kit")

    def says(self, name: str, text: str) -> None:
        (self.folder / f"says.{name}").write_text(text + "\n")
        jobs.forget()

    def fails(self, name: str) -> None:
        (self.folder / f"fails.{name}").touch()
        jobs.forget()

    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def fake(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    jobs.forget()
    return Slurm(tmp_path)


_names = (f"job-{i}" for i in itertools.count())


@pytest.fixture
def folder(home: Path) -> Path:
    made = paths.run(next(_names))
    made.mkdir(parents=True)
    return made


# Where it runs


def test_a_job_has_the_ranks_of_all_nodes_whatever_this_machine_has(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 1 / 0)
    monkeypatch.setattr(machine, "num_cores", lambda: 1 / 0)
    place = nodes.of(ON_NODES)
    assert (place.num_ranks, place.num_nodes, place.ranks_a_node) == (8, 2, 4)
    assert (place.on_gpu, place.precision, place.device_gib) == (False, "fp32", None)
    gpus = nodes.of(ON_NODES.replace(num_ranks=0, slurm={"gpus-per-node": "a100:8", "mem": "64G"}))
    assert (gpus.num_ranks, gpus.on_gpu, gpus.precision, gpus.host_gib) == (16, True, "bf16", 64.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_ranks": 0}, "slurm: names no GPUs"),
        ({"slurm": {"gpus-per-node": 2}}, "num_ranks: got 4, the job asks for 2 GPUs a node"),
        ({"launcher": "local"}, "num_nodes: is for launcher slurm"),
        ({"slurm": {"p": "gpu"}}, "'p' is not a long name"),
        ({"slurm": {"nodes": 3}}, "nodes is not for a person to set here -- set num_nodes"),
        ({"slurm": {"time": 28800}}, "YAML reads 8:00:00 as 28800"),
        ({"slurm": {"comment": "a\nb"}}, "comment can't be"),
    ],
)  # fmt: skip
def test_what_no_job_can_be_is_refused(home: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        nodes.of(ON_NODES.replace(**changes))


def test_a_job_may_have_more_ranks_than_this_machine_has_cores(home: Path) -> None:
    with pytest.raises(UserError, match="cores"):
        checks.check(BASE.replace(num_ranks=64))
    assert checks.check(ON_NODES.replace(run=next(_names), num_ranks=10)).num_ranks == 20


def test_fp16_and_tf32_are_refused_by_the_place_and_not_by_this_machine(home: Path) -> None:
    on_gpus = {"num_ranks": 0, "slurm": {"gpus-per-node": 8}, "run": next(_names)}
    checks.check(ON_NODES.replace(precision="fp16", **on_gpus))
    checks.check(ON_NODES.replace(training_arguments={"tf32": True}, **on_gpus))
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        checks.check(ON_NODES.replace(precision="fp16"))


# The site's file


@pytest.fixture
def site_file(home: Path, request: pytest.FixtureRequest) -> Path:
    path = home / cluster_file.FILE
    request.addfinalizer(lambda: path.unlink(missing_ok=True))
    return path


def test_a_runs_own_options_win_over_the_sites(site_file: Path) -> None:
    site_file.write_text("slurm: {partition: gpu, account: lab}\ngpu_gib: 80\n")
    assert cluster_file.options({"partition": "big"}) == {"partition": "big", "account": "lab"}
    gpus = ON_NODES.replace(num_ranks=0, slurm={"gpus-per-node": 8})
    assert nodes.of(gpus).device_gib == 80


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slurm: [", "cluster.yaml:[12]: is not YAML"),
        ("slurms: {}", "did you mean slurm"),
        ("setup: module load cuda", "setup must be a list"),
        ("- a", "is not a mapping"),
        ("slurm: {nodes: 2}", "cluster.yaml: nodes is not for a person to set here"),
    ],
)
def test_a_mistake_in_the_sites_file_is_named(site_file: Path, text: str, said: str) -> None:
    site_file.write_text(text)
    with pytest.raises(UserError, match=said):
        cluster_file.options({})


# The script


def test_the_script_has_the_options_the_set_up_and_the_program(
    site_file: Path, folder: Path
) -> None:
    site_file.write_text('slurm: {account: lab}\nsetup: ["module load cuda"]\n')
    settings = ON_NODES.replace(slurm={"time": "8:00:00", "exclusive": True})
    program = ["neoxkit.launch.job", str(folder)]
    lines = slurm.script(folder.name, folder / LOG, program, settings).splitlines()
    root = paths.root()
    assert lines == [
        "#!/bin/bash",
        f"#SBATCH --job-name={folder.name}",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        f"#SBATCH --output={folder}/train.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@180",
        "#SBATCH --account=lab",
        "#SBATCH --time=8:00:00",
        "#SBATCH --exclusive",
        f"cd {root} || exit 1",
        f"export NEOXKIT_HOME={root}",
        "module load cuda",
        f"exec {sys.executable} -m neoxkit.launch.job {folder}",
    ]


def test_a_job_inherits_nothing_of_a_job_around_it(
    fake: Slurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fake.folder / "sbatch"
    inner.write_text(f"#!/bin/sh\nenv > {fake.folder}/env\necho 5\n")
    for name in ("SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "PMI_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "kept")
    slurm.start(folder, ON_NODES)
    names = {line.partition("=")[0] for line in (fake.folder / "env").read_text().splitlines()}
    assert "SLURM_CONF" in names
    assert not names & {"SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "PMI_RANK"}


def test_a_refused_job_and_a_machine_without_sbatch_are_one_line(
    fake: Slurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.fails("sbatch")
    with pytest.raises(UserError, match="sbatch refused the job: Invalid account"):
        slurm.start(folder, ON_NODES)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="launcher: has no sbatch here"):
        process.start(ON_NODES.replace(run=next(_names)))


# A job and its run


def started(fake: Slurm, **changes: object) -> process.Training:
    fake.says("squeue", "41|PENDING|Priority|")
    return process.start(ON_NODES.replace(run=next(_names), **changes))


def test_a_job_in_the_queue_is_said_to_be_queued_and_is_not_started_twice(fake: Slurm) -> None:
    training = started(fake)
    standing = standing_of(training.folder)
    assert (standing.state, standing.says) == ("queued", "queued (Priority)")
    assert training.poll() is None
    fake.says("squeue", "41|RUNNING|None|n[1-2]")
    assert standing_of(training.folder).state == "training"
    again = process.start(ON_NODES.replace(run=training.folder.name))
    assert again.job == "41"
    assert sum(line.startswith("sbatch") for line in fake.asked()) == 1
    with pytest.raises(UserError, match="has job 41"):
        process.start(BASE.replace(run=training.folder.name, restart=True))


def test_the_live_view_says_where_the_job_is(fake: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    training = started(fake)
    shown = Outputs()
    monkeypatch.setattr(dashboard, "display", shown)
    screen = dashboard._Screen(training, "auto")
    screen.draw()
    assert shown[0].text.startswith("Queued (Priority) ...")
    fake.says("squeue", "41|RUNNING|None|n[1-2]")
    screen.next_text = 0.0
    screen.draw()
    assert "on n[1-2]" in shown[0].text


def test_a_job_is_as_it_was_while_slurm_does_not_answer(fake: Slurm) -> None:
    training = started(fake)
    assert training.poll() is None
    (fake.folder / "fails.squeue").touch()
    jobs._newest._asked = -jobs.LOOK_SECONDS  # it is time to ask again
    assert training.poll() is None and standing_of(training.folder).state == "queued"
    jobs.forget()  # as in a new process
    assert training.poll() is None
    standing = standing_of(training.folder)
    assert (standing.state, standing.says) == ("unknown", "SLURM does not answer")
    with pytest.raises(UserError, match="does not answer, and job 41 may run"):
        slurm.stop(training.folder)
    (training.folder / files.FINISHED).touch()  # whatever SLURM would say
    assert jobs.look(training.folder) is None


@pytest.mark.parametrize(
    ("event", "fate", "kind", "said"),
    [
        ({"event": "stop", "step": 4}, "", Stopped, "stopped"),
        ({}, "JobState=CANCELLED Reason=None", Stopped, "before the first checkpoint"),
        ({}, "JobState=TIMEOUT Reason=TimeLimit", TrainingError, r"job 41 has ended: TIMEOUT"),
        ({"event": "error", "kind": "UserError", "where": "slurm", "what": "node n1 has torch 1",
          "remedy": "use one"}, "", UserError, "node n1 has torch 1"),
        ({"event": "error", "kind": "failure", "where": "", "what": "it broke", "remedy": ""},
         "", TrainingError, "it broke"),
    ],
)  # fmt: skip
def test_a_job_that_has_left_the_queue_ends_as_its_run_says(
    fake: Slurm, event: dict, fate: str, kind: type[Exception], said: str
) -> None:
    training = started(fake)
    if event:
        append_event(training.folder, event.pop("event"), **event)
    fake.says("scontrol", f"JobId=41 {fate}")
    fake.says("squeue", "")
    assert training.poll() is not None
    with pytest.raises(kind, match=said):
        training.check()


def test_stopping_a_job_keeps_it_from_coming_back(
    fake: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = started(fake)
    slurm.stop(training.folder)
    assert fake.asked()[-2:] == ["scontrol update JobId=41 Requeue=0", "scancel 41"]
    assert not lock.asked_to_stop(training.folder)
    fake.says("squeue", "41|RUNNING|None|n1")
    training.interrupt()  # it has just begun: nothing to save
    assert fake.asked()[-1] == "scancel 41"
    assert not lock.asked_to_stop(training.folder)
    monkeypatch.setattr(lock, "locked_by", lambda _: lock.UNKNOWN)
    training.interrupt()
    assert lock.asked_to_stop(training.folder)
    assert fake.asked()[-1] == "scontrol update JobId=41 Requeue=0"
    training.interrupt()
    assert fake.asked()[-1] == "scancel 41"
    fake.fails("scancel")
    with pytest.raises(UserError, match="scancel refused: Invalid account"):
        slurm.stop(training.folder, now=True)


def test_a_lease_that_is_renewed_holds_whatever_this_persons_queue_says(
    fake: Slurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another's job, or one on another cluster."""
    fake.says("squeue", "")
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    held = lease.Lease(folder, lease.Token.of("slurm 41 0"))
    held.take()
    assert lock.locked_by(folder) == lock.UNKNOWN
    monkeypatch.setenv("SLURM_JOB_ID", "41")  # the same job, back again
    assert lock.locked_by(folder) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    late = time.time() + 2 * lease.RENEW_SECONDS + lease.CLOCKS_SECONDS + 1
    monkeypatch.setattr(lease.time, "time", lambda: late)
    assert lock.locked_by(folder) is None  # its job is gone, and nobody renews it
    fake.says("squeue", "41|RUNNING|None|n1")
    assert lock.locked_by(folder) == lock.UNKNOWN
    held.release()


def test_a_persons_own_filters_hide_no_job(fake: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    training = started(fake)
    (fake.folder / "squeue").write_text(
        '#!/bin/sh\n[ -n "$SQUEUE_STATES" ] || echo "41|RUNNING|None|n1"\n'
    )
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    monkeypatch.setenv("LOGNAME", "somebody")
    jobs.forget()
    assert training.poll() is None
    assert not any("somebody" in line for line in fake.asked())


def test_a_sites_greeting_is_no_job_and_no_answer_is_refused(fake: Slurm, folder: Path) -> None:
    fake.says("sbatch", "Welcome, 7 nodes are idle\n41;kit")
    assert slurm.start(folder, ON_NODES) == "41"
    fake.says("sbatch", "Welcome")
    with pytest.raises(UserError, match="gave no job id: Welcome"):
        slurm.start(folder, ON_NODES)


def test_a_damaged_note_of_a_job_is_none(folder: Path) -> None:
    for text in ("", "{}", "[]", "41"):
        (folder / jobs.JOB).write_text(text)
        assert jobs.job_of(folder) == ""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/a b/train.log", '--output="/a b/train.log"'),
        ("/o'neil/train.log", '--output="/o\'neil/train.log"'),
        ('/say"x/train.log', "--output='/say\"x/train.log'"),
        ("/a#b/train.log", '--output="/a#b/train.log"'),
    ],
)
def test_a_path_is_quoted_as_sbatch_reads_it(path: str, line: str) -> None:
    assert slurm._option("output", path) == line


def test_a_path_that_sbatch_can_not_read_is_refused() -> None:
    for path in ("/back\\slash", "/both'and\""):
        with pytest.raises(UserError, match="which sbatch can't read"):
            slurm._option("output", path)


# The job's own program


def run_job(fake: Slurm, folder: Path, code: int, send: int = 0) -> int:
    """Run a job whose ranks end with a code, after it was sent a signal."""
    wait = "while [ ! -e STOP ]; do sleep 0.05; done" if send else ":"
    (fake.folder / "srun").write_text(f"#!/bin/sh\ncd {folder}; touch begun; {wait}; exit {code}\n")
    fake.says("scontrol", "n1")
    env = {**os.environ, "SLURM_JOB_ID": "41"}
    words = [sys.executable, "-m", "neoxkit.launch.job", str(folder)]
    running = subprocess.Popen(words, env=env)
    while send and not (folder / "begun").exists():
        assert running.poll() is None
        time.sleep(0.05)
    if send:
        running.send_signal(send)
    return running.wait()


@pytest.mark.parametrize(
    ("code", "send", "comes_back"),
    [
        (STOPPED, signal.SIGUSR1, True),  # the time limit
        (STOPPED, signal.SIGTERM, False),  # cancelled, or preempted: then SLURM requeues it
        (STOPPED, 0, False),  # neoxkit stop
        (1, signal.SIGUSR1, False),
        (0, 0, False),
    ],
)
def test_a_job_comes_back_after_its_time_limit_alone(
    fake: Slurm, folder: Path, code: int, send: int, comes_back: bool
) -> None:
    assert run_job(fake, folder, code, send) == code
    assert ("scontrol requeue 41" in fake.asked()) is comes_back
    assert jobs.job_of(folder) == "41"  # whoever submitted it may have been killed before


def test_a_job_that_slurm_does_not_take_back_says_so(
    fake: Slurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    fake.fails("scontrol")
    job.come_back(folder)
    assert read_events(folder)[-1]["what"].startswith("did not take the job back")


@pytest.mark.parametrize(
    ("code", "send", "comes_back"),
    [
        (STOPPED, signal.SIGUSR1, True),
        (130, signal.SIGUSR1, True),  # before its first step
        (-signal.SIGTERM, signal.SIGUSR1, True),  # in 03
        (1, signal.SIGUSR1, False),
        (STOPPED, signal.SIGTERM, False),
        (0, 0, False),
    ],
)
def test_an_element_comes_back_whatever_its_run_was_doing(
    fake: Slurm,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    send: int,
    comes_back: bool,
) -> None:
    words, returned = [], []

    class Child:
        returncode = code

        def __init__(self, command: list[str], **_: object) -> None:
            words.extend(command)
            if send:
                os.kill(os.getpid(), send)

        def poll(self) -> int | None:
            return code

    monkeypatch.setattr(job_array.subprocess, "Popen", Child)
    monkeypatch.setattr(job_array.job, "come_back", returned.append)
    for name, value in {"ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "1", "JOB_ID": "41"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    plan = folder / "array-1.json"
    files.write_json(plan, [{}, {"run": folder.name, "words": ["-p", "seed", "2"]}])
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        assert job_array.main([str(plan)]) == (code if code >= 0 else 128 - code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert words[-3:] == ["-p", "seed", "2"] and jobs.job_of(folder) == "40_1"
    assert returned == ([folder] if comes_back else [])


def test_a_job_that_makes_no_progress_comes_back_twenty_times(fake: Slurm, folder: Path) -> None:
    assert all(job.may_come_back(folder) for _ in range(job.MOST_REQUEUES))
    assert not job.may_come_back(folder)
    assert "20 times without a new checkpoint" in read_events(folder)[-1]["what"]
    jobs.record(folder, "42")  # submitted again, with more time
    assert job.may_come_back(folder)


def test_a_step_between_them_begins_the_count_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(2 * job.MOST_REQUEUES))
    monkeypatch.setattr(job.checkpoints, "saved_step", lambda _: next(steps))
    assert all(job.may_come_back(folder) for _ in range(2 * job.MOST_REQUEUES))


# Each rank


GIVEN = {
    "SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip


def test_a_rank_gets_what_deepspeeds_launcher_would_tell_it(
    fake: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.says("scontrol", "n1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    env = join.environment({"ranks": 4, "on_gpu": False}, GIVEN)
    told = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_SIZE": "4",
            "NEOXKIT_LEASE": "slurm 41 2", "MASTER_ADDR": "localhost", "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    assert told.items() <= env.items()
    assert "GLOO_SOCKET_IFNAME" not in env  # one node: no way to another
    unknown = GIVEN | {"MASTER_ADDR": "no-such-host.invalid"}
    assert join.environment({"ranks": 4, "on_gpu": False}, unknown)["MASTER_ADDR"] == "10.0.0.1"


def test_gloo_is_told_the_interface_that_leads_to_another_node(fake: Slurm) -> None:
    fake.says("scontrol", "n1\n127.0.0.1")
    env = join.environment({"ranks": 4, "on_gpu": False}, GIVEN)
    assert env["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"on_gpu": False, "versions": {"torch": "0.1"}}, "had 0.1 -- use one environment"),
        ({"on_gpu": True, "versions": {}}, "shows 0 GPUs to its 4 ranks"),
    ],
)
def test_a_node_that_can_not_be_a_rank_says_so_in_the_run(
    home: Path, folder: Path, facts: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "num_gpus", lambda: 0)
    files.write_json(folder / plan.FILE, {"launcher": "slurm", "ranks": 4, **facts})
    assert join.main([str(folder)]) == 2
    event = read_events(folder)[-1]
    assert event["kind"] == "UserError" and said in f"{event['what']} -- {event['remedy']}"


def test_equal_versions_pass(folder: Path) -> None:
    plan.check_here({"launcher": "slurm", "ranks": 1, "on_gpu": False, "versions": card.versions()})


# What other parts do with jobs


def test_every_rank_may_end_in_its_own_time(fake: Slurm, folder: Path) -> None:
    """A stop is exit code 75, and rank 0 writes for longer than the others."""
    fake.says("scontrol", "n1")
    words, _ = job.ranks_command(folder)
    assert "--kill-on-bad-exit=0" in words and f"--wait={job.WAIT_SECONDS}" in words


def test_an_arrays_folders_are_there_before_it_is_submitted(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ON_NODES.replace(run=next(_names))
    made = Variant(settings.as_dict(), settings)

    def submit(path: Path, text: str) -> str:
        assert path.parent.is_dir() and made.folder.is_dir()
        return "7"

    monkeypatch.setattr(slurm, "submit", submit)
    job_array._submit(folder / "array-1.json", "", [made], ["02_train"])
    assert jobs.job_of(made.folder) == "7_0"


@pytest.mark.parametrize(("event", "code"), [("stop", 0), ("error", 1)])
def test_stopping_a_job_that_could_not_save_is_no_success(
    folder: Path, monkeypatch: pytest.MonkeyPatch, event: str, code: int
) -> None:
    found = [jobs.Queued("41", "RUNNING", nodes="n1")]
    monkeypatch.setattr(jobs, "look", lambda folder: found.pop() if found else None)
    monkeypatch.setattr(slurm, "stop", lambda folder, now: False)
    append_event(folder, event, step=3, kind="failure", where="", what="it broke", remedy="")
    assert stopping.stop(folder.name, now=False) == code


def test_a_start_that_waits_for_a_dead_lease_says_so(folder: Path) -> None:
    files.write_json(folder / lease.FILE, HELD | {"time": time.time() - 30})
    said, seconds = doing(folder)
    assert said == "making sure that an earlier start is over (up to 90 s)" and seconds >= 30
    heartbeat.Signs(folder, 0).begin(heartbeat.READING)
    assert doing(folder)[0] == heartbeat.READING
    files.write_json(folder / lease.FILE, HELD | {"time": time.time()})
    (folder / heartbeat.FOLDER / "0").unlink()
    assert doing(folder) == ("", 0.0)


HELD = {
    "token": {"engine": "slurm", "job": "41", "restart": 0}, "once": "a", "host": "n1", "pid": 1,
    "since": 0.0, "count": 1, "time": 0.0,
}  # fmt: skip


# The inspection


def inspected(**changes: object) -> list[inspection.Found]:
    one = inspection.facts(Path(__file__)) | {"gpus": 8, "address": "10.0.0.1"} | changes
    place = nodes.of(ON_NODES.replace(num_ranks=0, slurm={"gpus-per-node": 8}))
    now = time.time()
    return inspection._of_node(one, place, now, now)


def test_a_node_that_is_right_has_one_line_without_a_remedy(home: Path) -> None:
    (line,) = inspected()
    assert line[2] == "" and "sees this folder" in line[1]
    for address, said in (("127.0.1.1", "127.0.1.1"), ("", "unknown there")):
        assert f"its own name is {said}, which the kit works" in inspected(address=address)[0][1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sees": False}, "does not see"),
        ({"versions": {}}, "has python (none), neoxkit (none)"),
        ({"commit": "another"}, "has commit another"),
        ({"time": 0.0}, "its clock is off"),
        ({"gpus": 4}, "shows 4 GPUs, 8 are needed"),
        ({"files": 256}, "allows 256 open files"),
    ],
)
def test_a_fault_of_a_node_is_named_with_its_remedy(home: Path, changes: dict, said: str) -> None:
    ((_, what, remedy),) = inspected(**changes)
    assert what.startswith(said) and remedy


def test_a_site_that_cuts_saves_off_is_named() -> None:
    site = {"KillWait": "10 sec", "PreemptMode": "CANCEL", "JobRequeue": "0"}
    found = {name: (what, bool(remedy)) for name, what, remedy in inspection._of_slurm(site)}
    cuts = [name for name, (_, has_remedy) in found.items() if has_remedy]
    assert cuts == ["KillWait", "PreemptMode"]
    asked = "other jobs do not come back by themselves; the kit's ask for it"
    assert found["JobRequeue"][0] == asked
    assert not any(remedy for _, _, remedy in inspection._of_slurm({"PreemptMode": "REQUEUE"}))
