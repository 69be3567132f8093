"""The program of each DeepSpeed rank: a Hugging Face training script for conversations.

deepspeed --module neoxkit.train runs/demo/arguments.json
deepspeed --module neoxkit.train --dataset data/tokenized/sample --output_dir runs/demo --do_train
"""

import atexit
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # before the imports, in which it may hang as well
    faulthandler.register(signal.SIGUSR1)  # the guard asks a silent rank for its stacks

import deepspeed
import psutil
import torch

from neoxkit.errors import FENCED, STOPPED, UserError, as_fields, shorten
from neoxkit.runs import heartbeat, lease
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import state_of
from neoxkit.training import arguments, distributed, failures, rank

# Otherwise a CPU start compiles an extension for minutes; gloo was measured to be as fast.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

distributed.restrict()

OTHERS_SECONDS = 0.5  # the other ranks wait, so that rank 0 reports an error that all hit
LOST_SECONDS = 2.0  # a rank that lost another waits for that one to report first


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 1 failed, 2 a user's mistake, 75 stopped, 76 fenced:
    another training has taken the run over."""
    try:
        return _train(argv)
    finally:
        lease.release()


def _train(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    folder = next((Path(a).parent for a in argv if a.endswith("arguments.json")), None)
    parsed = None
    try:
        if folder:  # on a CPU the ranks meet when the arguments are parsed
            distributed.signs(folder).begin(heartbeat.MEETING)
        parsed = arguments.parse(argv)
        assert parsed.training.output_dir  # parse refuses a missing one
        folder = Path(parsed.training.output_dir)
        return 0 if rank.run(parsed, folder) else STOPPED
    except lease.Lost as lost:
        return _end_fenced(lost)
    except UserError as mistake:
        return _refuse(folder, mistake)
    except Exception as fault:
        if folder and lease.is_lost(folder):  # the other ranks may have seen it first
            return _end_fenced(lease.lost(folder))
        if explained := failures.explain(fault, parsed, folder):
            return _refuse(folder, explained)
        said = shorten(" ".join(f"{type(fault).__name__}: {fault}".split()), 300)
        fields = {"kind": "failure", "where": "", "what": said, "remedy": ""}
        patience = LOST_SECONDS + (0 if distributed.is_first() else OTHERS_SECONDS)
        if _report(folder, fields, 0 if distributed.is_alone() else patience):
            traceback.print_exc()
        return 1


def _end_fenced(lost: lease.Lost) -> int:
    """Say who has the run now, and nothing in its folder."""
    if distributed.is_first():
        print(f"fenced: {lost}", file=sys.stderr, flush=True)
    return FENCED


def _refuse(folder: Path | None, mistake: UserError) -> int:
    """Report a user's mistake in one line, without a traceback."""
    if os.environ.get("NEOXKIT_DEBUG") == "1":
        traceback.print_exc()
    if folder and state_of(folder) == "finished":
        folder = None  # its last event says that it is done
    if _report(folder, as_fields(mistake), 0 if distributed.is_first() else OTHERS_SECONDS):
        print(f"error: {mistake}", file=sys.stderr, flush=True)
    return 2


def _report(folder: Path | None, fields: dict[str, str], patience_seconds: float) -> bool:
    """Write one error event to metrics.jsonl, unless another rank has reported one first."""
    if not (folder and folder.is_dir()):
        return distributed.is_first()
    time.sleep(patience_seconds)
    newest = read_events(folder)[-1:]
    begun = psutil.Process().create_time()
    if newest and newest[0]["event"] == "error" and newest[0]["time"] > begun:
        return False
    try:
        append_event(folder, "error", **fields)
    except OSError:  # the disk may be full
        return True
    except (lease.Lost, UserError):  # the folder is another's, or NEOXKIT_LEASE can't be read
        return distributed.is_first()
    return True


def leave(code: int) -> NoReturn:
    """End this process without the interpreter's shutdown.

    During shutdown gloo's threads may still release tensors that Python owns, which aborts a rank
    that has done everything ("terminate called without an active exception"). Exit handlers are
    run, except after a failure: another rank may then wait in a collective, and closing it would
    wait as well.
    """
    if code in (0, STOPPED):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
