"""Print the table of docs/scale.md: GPT-NeoX-20B under ZeRO 3 on 2 to 16 nodes, by formulas.

    python benchmarks/scale.py        # computed, not measured; on any machine, in a second

Memory, and what the network must carry into each node: models/memory.py. Some of it is carried
during the computing.
Compute: 6 FLOP for each parameter and token, 8 with gradient checkpointing (Narayanan et al. 2021,
arXiv:2104.04473, appendix). Save: the checkpoint's bytes by the file system's speed.
"""

from neoxkit import machine
from neoxkit.launch import machines
from neoxkit.models.memory import Job

MODEL = "gpt-neox-20b"
NODES = (2, 4, 8, 16)
GPUS, GIB = 8, 80  # of a node, and of a GPU
CONVERSATIONS = 8  # in a micro-batch
NETWORKS = {"100 Gbit/s": 12.5e9, "8 x 400 Gbit/s": 400e9}  # bytes/s of a node
DISKS = {"1 GB/s": 1e9, "10 GB/s": 10e9}  # of the shared folder
FLOPS = 0.4 * 989e12  # of an H100 in bf16 (its data sheet), at an MFU of 0.4: an assumption


def job(num_nodes: int) -> Job:
    zero = machines.configurations()["zero3"]
    return machines.job_of(machines.SHAPES[MODEL], zero, num_nodes * GPUS, num_nodes=num_nodes)


def compute_seconds(one: Job) -> float:
    """Return the seconds of a step's FLOP on each GPU, with gradient checkpointing."""
    tokens = CONVERSATIONS * machines.BLOCK_SIZE
    return 8 * one.num_parameters * tokens / FLOPS


def rows() -> list[list[str]]:
    """Return the table's lines."""
    made = []
    for num_nodes in NODES:
        one = job(num_nodes)
        tokens = CONVERSATIONS * machines.BLOCK_SIZE
        memory = sum(one.rank_gib(tokens, tokens / 2).values())
        saved = one.checkpoint_gib()
        made.append(
            [
                f"{num_nodes} x {GPUS}",
                f"{memory:.0f} of {GIB}",
                f"{max(one.host_gib().values()):.0f}",
                f"{compute_seconds(one):.1f}",
                *(f"{one.network_gib() * machine.GIB / speed:.1f}" for speed in NETWORKS.values()),
                f"{saved:.0f}",
                *(f"{saved * machine.GIB / speed:.0f}" for speed in DISKS.values()),
            ]
        )
    return made


HEADER = [
    "nodes x GPUs", "GiB a GPU", "GiB a host, loading", "s a step, computing",
    *(f"s a step, {name}" for name in NETWORKS), "GiB a checkpoint",
    *(f"s a save, {name}" for name in DISKS),
]  # fmt: skip

if __name__ == "__main__":
    for line in (HEADER, ["---"] * len(HEADER), *rows()):
        print("| " + " | ".join(line) + " |")
