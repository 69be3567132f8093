"""Start a script under DeepSpeed's runner as the kit does, without what makes the kit faster.

python benchmarks/under_deepspeed.py baseline.py --steps 3 ...
"""

import os
import sys
import time
from pathlib import Path

from neoxkit.launch.command import CPU_ENVIRONMENT, environment, free_port


def main() -> None:
    """Become the runner; BENCH_STARTED says when the command began."""
    script, *arguments = sys.argv[1:]
    runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
    runner += ["--num_gpus=1", f"--master_port={free_port()}"]
    command = [*runner, str(Path(__file__).with_name(script)), *arguments]
    env = environment(1)
    for name in CPU_ENVIRONMENT:
        env.pop(name)
    env["BENCH_STARTED"] = str(time.time())
    os.execve(sys.executable, command, env)


if __name__ == "__main__":
    main()
