"""Failures inside a training, explained in one line."""

import errno
import shutil
from pathlib import Path

from safetensors import SafetensorError

from neoxkit.errors import UserError
from neoxkit.models import memory
from neoxkit.runs import checkpoints
from neoxkit.runs.events import History
from neoxkit.training.arguments import Parsed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEARLY_FULL_BYTES = 2**22  # a C++ writer does not say why it failed


def explain(fault: Exception, parsed: Parsed | None, folder: Path | None) -> UserError | None:
    """Explain exhausted memory, a full disk or a stuck loss scale; return None for the rest."""
    if not (parsed and folder):
        return None
    text = str(fault)
    if memory.ran_out(fault):
        what = f"ran out ({_where(folder)})"
        return UserError("memory", what, memory.half_the_memory(parsed.training.to_dict()))
    if "loss scale already at minimum" in text:
        what = f"the loss scale of fp16 is at its minimum ({_where(folder)})"
        return UserError("precision", what, "use bf16 or fp32, or a lower learning_rate")
    if _is_disk_full(fault, folder):
        return UserError("disk", f"is full ({_where(folder)})", "free some space and run it again")
    return None


def _where(folder: Path) -> str:
    """Name the last step that was logged, and the one that is saved."""
    steps = [e["step"] for e in History.of_run(folder).events if "step" in e]
    saved = checkpoints.saved_step(folder)
    kept = f"step {saved} is saved" if saved else "nothing is saved yet"
    return f"after step {max(steps)}; {kept}" if steps else kept


def _is_disk_full(fault: Exception, folder: Path) -> bool:
    if getattr(fault, "errno", None) in _FULL or "No space left" in str(fault):
        return True
    may_be_a_write = isinstance(fault, RuntimeError | OSError | SafetensorError)
    return may_be_a_write and shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES
