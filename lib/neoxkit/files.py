"""Write files so that they are complete or absent, and read them back."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

MANIFEST = "manifest.json"
FINISHED = "FINISHED.json"  # of a run


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    The same holds after a power cut: the new file is on disk before it replaces the old one.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        flush(part)
        part.replace(path)
        flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    target: Path, replace: bool = True, check: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Give an empty hidden folder, which becomes `target` when the block ends without an error.

    It is on disk before it takes the place of an older one. Without `replace`, a folder that
    another process has put there meanwhile is kept. `check` may refuse, by an error, at the
    beginning and again before it takes that place. Remnants of killed writers are removed first.
    """
    check()
    _remove_remnants(target)
    mine = f".{target.name}.{platform.node()}.{os.getpid()}"
    part, old = (target.with_name(f"{mine}.{end}") for end in ("part", "old"))
    part.mkdir(parents=True)
    try:
        yield part
        flush_all(part)
        check()
        if replace and target.exists():
            target.rename(old)
        _put(part, target, keep=not replace)
        flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _put(part: Path, target: Path, keep: bool) -> None:
    """Give a folder its place. With `keep`, one that is there already keeps it."""
    try:
        part.rename(target)
    except OSError as error:  # to ask first would leave a moment for another process
        if not keep or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_remnants(target: Path) -> None:
    """Remove the hidden folders of `whole_folder` that killed writers on this host have left."""
    name = re.escape(f".{target.name}.{platform.node()}.")
    for path in target.parent.glob(".*"):
        found = re.fullmatch(rf"{name}(\d+)\.(part|old)", path.name)
        if not found or (int(found[1]) != os.getpid() and psutil.pid_exists(int(found[1]))):
            continue
        if found[2] == "old" and not target.exists():
            path.rename(target)  # the writer was killed just before it put the new one there
        else:
            shutil.rmtree(path)


def scratch_folder(parent: Path) -> "tempfile.TemporaryDirectory[str]":
    """Make a hidden folder that vanishes when this process ends, or lets go of it.

    Those of killed processes on this host are removed first.
    """
    mine = f".scratch.{platform.node()}."
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{mine}*"):
        if not psutil.pid_exists(int(left.name.removeprefix(mine).partition(".")[0])):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(
        prefix=f"{mine}{os.getpid()}.", dir=parent, ignore_cleanup_errors=True
    )


def flush(path: Path) -> None:
    """Flush a file's contents, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Flush everything below a folder to disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or path.is_file():
            flush(path)


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
