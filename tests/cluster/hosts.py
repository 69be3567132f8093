"""Test hosts and a real SLURM on one machine: a login node and two nodes, as root, without systemd.

Each host has its own network, name, processes and /dev/shm; the file system is shared, as on a
cluster. SLURM's daemons are Debian's, started as plain processes: munged for all, slurmctld on
login, a slurmd on each node, whose GPU exists in name only.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ADDRESSES = {"login": "10.77.0.254", "n1": "10.77.0.1", "n2": "10.77.0.2"}
NODES = ("n1", "n2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2 util-linux"
SSH_PROGRAMS, SSH_PACKAGES = ("sshd", "ssh", "ssh-keygen"), "openssh-server openssh-client"
PATIENCE_SECONDS = 300.0  # only what hangs takes this long

# What a host has of its own.
KINDS = ("--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--mount-proc")

_TRIAL = """
hostname trial
mount -t tmpfs none /run
ip link add br0 type bridge
ip link add one type veth peer name other
"""

_INIT = """
set -e
hostname "$1"
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mount --bind "$2/hosts.$1" /etc/hosts
ip link set lo up
if [ -f "$2/sshd_config" ]; then
  mkdir /run/sshd
  mount --bind "$2/ssh_config" /etc/ssh/ssh_config
  exec "$(command -v sshd)" -D -e -f "$2/sshd_config"
fi
exec sleep infinity
"""

_SSH = """
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""

_SSHD = """
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""

_CONF = """
ClusterName=kit
SlurmctldHost=login({login})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=15
InactiveLimit=0
KillWait=30
MinJobAge=300
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=n1 NodeAddr={n1} CPUs=2 RealMemory=8000 Gres=gpu:1
NodeName=n2 NodeAddr={n2} CPUs=2 RealMemory=8000 Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10
"""


def missing() -> str:
    """Return why there can be no cluster here; empty if there can."""
    if os.geteuid():
        return "needs root, for the network of the test hosts"
    if absent := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{', '.join(absent)} not found: apt-get install {PACKAGES}"
    tried = subprocess.run(["unshare", *KINDS, "sh", "-ec", _TRIAL], capture_output=True, text=True)
    if tried.returncode:
        return f"this root may not make test hosts (a container?): {tried.stderr.strip()}"
    return ""


def ssh_missing() -> str:
    """Return why the hosts can't reach each other by ssh; empty if they can."""
    absent = [name for name in SSH_PROGRAMS if not shutil.which(name)]
    return f"{', '.join(absent)} not found: apt-get install {SSH_PACKAGES}" if absent else ""


class Cluster:
    """The hosts, and SLURM on them; `folder` has its configuration, keys and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hosts: dict[str, int] = {}  # name -> process 1 of the host, as seen from outside
        self._started: list[subprocess.Popen] = []

    def up(self) -> None:
        """Start the hosts and SLURM; return when both nodes are idle."""
        for name in ADDRESSES:
            others = [f"{a} {other}" for other, a in ADDRESSES.items() if other != name]
            lines = ["127.0.0.1 localhost", f"127.0.1.1 {name}", *others]  # as Debian writes them
            (self.folder / f"hosts.{name}").write_text("\n".join(lines) + "\n")
        if not ssh_missing():
            self._write_ssh()
        for name in ADDRESSES:
            self._start_host(name)
        self._write_configuration()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        of_munge = {
            "key-file": key, "socket": self.folder / "munge.socket",
            "pid-file": self.folder / "munged.pid", "seed-file": self.folder / "munge.seed",
            "log-file": self.folder / "munged.log",
        }  # fmt: skip
        munged = ["munged", "--force", "--foreground"]
        self._spawn([*munged, *(f"--{name}={path}" for name, path in of_munge.items())])
        self.wait_for(of_munge["socket"].exists)
        self._spawn(self.command("login", ["slurmctld", "-D", "-i"]))
        for node in NODES:
            self.start_slurmd(node)
        self.wait_for(lambda: self.idle() == 2)

    def _write_configuration(self) -> None:
        conf = _CONF.format(folder=self.folder, **ADDRESSES)
        (self.folder / "slurm.conf").write_text(conf)
        devices = [f"NodeName={node} Name=gpu File=/dev/null\n" for node in NODES]
        (self.folder / "gres.conf").write_text("".join(devices))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()

    def _write_ssh(self) -> None:
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")]
        subprocess.run(key, check=True)
        for name, text in (("ssh_config", _SSH), ("sshd_config", _SSHD)):
            (self.folder / name).write_text(text.format(folder=self.folder))

    def cut(self, host: str) -> None:
        """Cut a host's link."""
        self.on("login", ["ip", "link", "set", f"kit-{host}", "down"])

    def mend(self, host: str) -> None:
        self.on("login", ["ip", "link", "set", f"kit-{host}", "up"])

    def start_slurmd(self, node: str) -> None:
        self._spawn(self.command(node, ["slurmd", "-D", "-N", node]))

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon; what it has started goes on."""
        self.on(node, ["pkill", "-KILL", "-f", f"^slurmd -D -N {node}"])

    def _start_host(self, name: str) -> None:
        """Start a host, and plug it into the bridge, which is on login."""
        init = ["bash", "-c", _INIT, "host", name, str(self.folder)]
        outer = self._spawn(["unshare", *KINDS, *init])
        self.wait_for(lambda: _children(outer.pid))
        pid = self._hosts[name] = _children(outer.pid)[0]
        self.wait_for(lambda: self.on(name, ["hostname"]).stdout.strip() == name)
        login = str(self._hosts["login"])
        if name == "login":
            self.on(name, ["ip", "link", "add", "br0", "type", "bridge"])
            self.on(name, ["ip", "link", "set", "br0", "up"])
        port = f"kit-{name}"
        pair = ["type", "veth", "peer", "name", "eth0", "netns", str(pid)]
        subprocess.run(["ip", "link", "add", port, *pair], check=True)
        subprocess.run(["ip", "link", "set", port, "netns", login], check=True)
        self.on("login", ["ip", "link", "set", port, "master", "br0", "up"])
        self.on(name, ["ip", "addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0"])
        self.on(name, ["ip", "link", "set", "eth0", "up"])

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one on a host."""
        enter = ["nsenter", "-t", str(self._hosts[host]), "-n", "-u", "-p", "-m", "-i", "--"]
        return [*enter, *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def on(
        self, host: str, words: Sequence[str], env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end."""
        return subprocess.run(
            self.command(host, words), env={**self.environment(), **(env or {})},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def start(self, host: str, words: Sequence[str]) -> subprocess.Popen:
        """Start a command on a host."""
        return self._spawn(self.command(host, words))

    def idle(self) -> int:
        """Return how many nodes are idle."""
        ask = ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"]
        return sum(int(line) for line in self.on("login", ask).stdout.split() if line.isdigit())

    def wait_for(self, is_so: object) -> None:
        """Wait until a function returns something true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():  # type: ignore[operator]
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def _spawn(self, words: Sequence[str]) -> subprocess.Popen:
        with (self.folder / "out.log").open("ab") as out:
            started = subprocess.Popen(
                words, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._started.append(started)
        return started

    def down(self) -> None:
        """End everything: with its process 1, each host ends all of its own."""
        for pid in self._hosts.values():
            os.kill(pid, signal.SIGKILL)
        for started in reversed(self._started):
            started.kill()
            started.wait()


def _children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]
