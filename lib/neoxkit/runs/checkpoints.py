"""Checkpoints that are complete or absent: a manifest of their files is written last.

A save writes its files into checkpoint-N; when every rank has written, they are flushed to disk and
hashed (training/sealing.py: by whom), and one rename puts the manifest in place. A folder counts if
its manifest is valid.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from neoxkit import files
from neoxkit.errors import Faults, UserError
from neoxkit.files import MANIFEST
from neoxkit.runs import lease
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import set_aside

LEAST_KEPT = 2  # one may be damaged while the next is incomplete
# Prefix of a checkpoint being deleted, so that what is left of it does not look like one.
_GOING = ".going-"

Hashed = dict[str, Any]  # the size and sha256 of a file, as in the manifest


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(checkpoint.name.split("-")[1])


def folders(run: Path) -> list[Path]:
    """Return every checkpoint-N of a run, complete or not, oldest first."""
    found = [p for p in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def whole(run: Path) -> list[Path]:
    """Return the checkpoints whose files all have their sizes, oldest first; hash nothing."""
    return [path for path in folders(run) if fault(path, hashes=False) is None]


def saved_step(run: Path) -> int | None:
    """Return the step of the newest complete checkpoint, from which a run would resume."""
    found = whole(run)
    return step_of(found[-1]) if found else None


def seal(checkpoint: Path, hashed: Mapping[str, Hashed] | None = None, **facts: Any) -> None:
    """Write a checkpoint's manifest, which makes it count.

    `hashed`: its files, if they have been flushed and hashed; otherwise that is done first.
    """
    hashed = hash_files(checkpoint, file_names(checkpoint)) if hashed is None else hashed
    for folder in (*filter(Path.is_dir, checkpoint.rglob("*")), checkpoint):
        files.flush(folder)
    lease.check(checkpoint.parent)
    files.write_json(checkpoint / MANIFEST, {**facts, "files": dict(sorted(hashed.items()))})
    files.flush(checkpoint.parent)


def hash_files(checkpoint: Path, names: Iterable[str]) -> dict[str, Hashed]:
    """Flush files of a checkpoint to disk; return the size and SHA-256 of each, by its name."""
    lease.check(checkpoint.parent)
    names = [*names]
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda n: _hashed(checkpoint / n), names), strict=True))


def _hashed(path: Path) -> Hashed:
    files.flush(path)
    return {"size": path.stat().st_size, "sha256": files.sha256(path)}


def file_names(checkpoint: Path) -> list[str]:
    """List a checkpoint's files, except hidden ones (.ipynb_checkpoints, .nfs...)."""
    paths = [p.relative_to(checkpoint) for p in checkpoint.rglob("*") if not p.is_dir()]
    own = [f for f in paths if not any(part.startswith(".") for part in f.parts)]
    return sorted(str(f) for f in own if f.name != MANIFEST)


def manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest: step, num_ranks, zero_stage, dataset_sha256, arguments_sha256, files."""
    return files.read_json(checkpoint / MANIFEST)


def fault(checkpoint: Path, hashes: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, or None; without `hashes`, compare only sizes."""
    try:
        sealed = {n: (f["size"], f["sha256"]) for n, f in manifest(checkpoint)["files"].items()}
    except FileNotFoundError:
        return "has no manifest, its save was interrupted"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "has a manifest that can't be read"
    there = file_names(checkpoint)
    for name in sorted({*sealed, *there}):
        if name not in there:
            return f"{name} is missing"
        if name not in sealed:
            return f"{name} is not in its manifest (remove it if it is yours)"
        path, (size, _) = checkpoint / name, sealed[name]
        if path.is_symlink() or not path.is_file():
            return f"{name} is not a file"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    if not hashes:
        return None
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: files.sha256(checkpoint / name), sealed)
        changed = [n for n, now in zip(sealed, found, strict=True) if now != sealed[n][1]]
    return f"{changed[0]} has changed since it was saved" if changed else None


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint (every hash), and a line for each that was set aside.

    Refuse a run that has saved before and has no valid checkpoint, with a line for each: resuming
    would mean starting over. Leftovers of interrupted saves and deletions don't count as saves.
    """
    for leftover in run.glob(f"{_GOING}*"):
        shutil.rmtree(leftover)
    faults: dict[Path, str] = {}
    for checkpoint in reversed(folders(run)):
        if found := fault(checkpoint):
            faults[checkpoint] = found
            continue
        return checkpoint, [_aside(path, why) for path, why in faults.items()]
    had_saved = any(e["event"] == "checkpoint" for e in read_events(run))
    if had_saved:
        raise Faults(
            [
                UserError(f"{run.name}/{path.name}", why, "bring it back, or set restart")
                for path, why in faults.items()
            ]
            or [UserError(run.name, "its checkpoints are gone", "bring them back, or set restart")]
        )
    return None, [_aside(path, why) for path, why in faults.items()]


def _aside(checkpoint: Path, why: str) -> str:
    """Rename an invalid checkpoint, so that a new one can take its place."""
    aside = set_aside(checkpoint)
    return f"{checkpoint.name} {why}; it is kept as {aside.name}"


def best_step(checkpoint: Path) -> int | None:
    """Return the step of the lowest eval loss up to a checkpoint; None if it was not looked for."""
    path = checkpoint / "trainer_state.json"  # transformers'
    return files.read_json(path).get("best_global_step") if path.is_file() else None


def rotate(run: Path, limit: int | None) -> None:
    """Delete the oldest complete checkpoints beyond the limit (at least 2; None: keep all).

    The best of each one that is kept is kept as well: a run that has to resume from the older of
    two still has it.
    """
    if limit is None:
        return
    found, newest = whole(run), max(limit, LEAST_KEPT)
    bests = {best_step(checkpoint) for checkpoint in found[-newest:]}
    for checkpoint in found[:-newest]:
        if step_of(checkpoint) not in bests:
            lease.check(run)
            going = checkpoint.with_name(f"{_GOING}{checkpoint.name}")
            os.rename(checkpoint, going)  # noqa: PTH104 - one atomic step
            shutil.rmtree(going)
