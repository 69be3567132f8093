"""Find the conversations that a parameter names: a file, a folder, or a data set of the hub."""

import functools
import gzip
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from neoxkit import files, paths
from neoxkit.data import downloads
from neoxkit.errors import UserError

# How a file is read, by the end of its name; every other file is a text.
_READERS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
_READERS_OF_FOLDERS = {"text", *_READERS.values()}
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # by a file's first bytes
_ABOUT = {".md", ".py"}  # the end of files that tell about a folder's data


@dataclass(frozen=True)
class Source:
    """The files that a parameter names, and how they are read.

    `label`: the name as a person writes it; `path`: the file or folder. `reader`: "text", "json",
    "saved" (by `save_to_disk`), or what `datasets` calls a table: "csv", "parquet", "arrow".
    `notes`: what is not read, in sentences. `parts`: the sources that it was put together from, by
    name, if it was (`together`); `path` is then the first one's.
    """

    label: str
    path: Path
    reader: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    parts: tuple[tuple[str, "Source"], ...] = ()

    @property
    def is_file(self) -> bool:
        return self.files == (self.path,)

    def sha256(self) -> str:
        """Hash the files that are read, and their names if it is a folder."""
        if self.parts:
            hashes = (f"{part.sha256()}\n" for _, part in self.parts)
            return hashlib.sha256("".join(hashes).encode()).hexdigest()
        if self.is_file:
            return files.sha256(self.path)
        listed = (f"{self._inside(file)} {files.sha256(file)}\n" for file in self.files)
        return hashlib.sha256("".join(listed).encode()).hexdigest()

    def label_of(self, file: Path) -> str:
        """Return what a person calls one of the files."""
        for _, part in self.parts:
            if file in part.files:
                return part.label_of(file)
        folder = self.label.partition(":")[0]
        return self.label if self.is_file else f"{folder}/{self._inside(file)}"

    def _inside(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()


def find(parameter: str, value: str) -> Source:
    """Return the source that a parameter names.

    A file or folder is searched for in the places of `paths.candidates`. A folder's name may end
    in `:split`, the name of a data set of the hub in `:split` or `:config:split`.
    """
    for place in paths.candidates(value):
        if place.is_file():
            return of_file(place.resolve())
    name, *parts = value.split(":")
    for place in paths.candidates(name):
        if name and place.is_dir():
            return _of_folder(parameter, place.resolve(), paths.short(place.resolve()), parts)
    is_file = ending(name) in {*_READERS, ".txt"}  # by its name: a slip in a path, say
    if (
        downloads.is_name(name)
        and not is_file
        and not any(p.parent.is_dir() for p in paths.candidates(name))
    ):
        folder = downloads.fetch(parameter, name, parts)
        return _of_files(parameter, folder, value, parts, is_fetched=True)
    file = paths.find(parameter, value)  # refuses it
    raise AssertionError(file)


def find_all(parameter: str, named: Mapping[str, str]) -> Source:
    """Return the sources that a parameter names, put together (see `together`)."""
    return together(parameter, {name: find(parameter, value) for name, value in named.items()})


def together(parameter: str, named: Mapping[str, Source]) -> Source:
    """Put several sources together, to be read one after the other; refuse different kinds of
    files, and one that is named twice."""
    first, *others = named.values()
    if not others:
        return first
    for one in others:
        if "saved" in (first.reader, one.reader) or one.reader != first.reader:
            what = f"{first.label} and {one.label} are not files of one kind"
            raise UserError(parameter, what, "give several texts, or several files of one format")
    every = tuple(file for one in named.values() for file in one.files)
    if twice := next((file for file in every if every.count(file) > 1), None):
        raise UserError(parameter, f"names {paths.short(twice)} twice", "name each file once")
    label = ", ".join(one.label for one in named.values())
    notes = tuple(f"{one.label}: {note}" for one in named.values() for note in one.notes)
    return Source(label, first.path, first.reader, every, notes, tuple(named.items()))


def of_file(file: Path) -> Source:
    """Return the source that is one file."""
    return Source(paths.short(file), file, _reader(file.name), (file,))


def _reader(name: str) -> str:
    return _READERS.get(ending(name), "text")


def ending(name: str) -> str:
    """Return the end of a file's name before those of a packed file.

    >>> ending("talks.JSONL.gz"), ending("talks.txt"), ending("talks")
    ('.jsonl', '.txt', '')
    """
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in paths.PACKED else path.suffix


def _of_folder(parameter: str, folder: Path, label: str, parts: Sequence[str]) -> Source:
    label = ":".join([label, *parts])
    if (folder / "dataset_dict.json").is_file():
        splits = files.read_json(folder / "dataset_dict.json")["splits"]
        split = choose_split(parameter, label, splits, parts)
        place, others = folder / split, [name for name in splits if name != split]
    else:
        place, others = folder, []
    if (place / "state.json").is_file():
        return Source(label, folder, "saved", tuple(sorted(place.glob("*.arrow"))), _left(others))
    return _of_files(parameter, folder, label, parts)


def _of_files(
    parameter: str, folder: Path, label: str, parts: Sequence[str], is_fetched: bool = False
) -> Source:
    """Return a folder's files of one split, as `datasets` finds them.

    `is_fetched`: the folder was fetched from the hub, and may hold files of other configurations.
    """
    found = downloads.layout(parameter, str(folder), label, parts)
    if found.reader not in _READERS_OF_FOLDERS:
        what = f"{label} would be read as {found.reader}, not as conversations"
        raise UserError(parameter, what, "name a file")
    split = choose_split(parameter, label, found.splits, found.parts)
    chosen = tuple(sorted(map(Path, found.splits[split])))
    read = {Path(file) for listed in found.splits.values() for file in listed}
    unread = [] if is_fetched else [file for file in _visible(folder) if file not in read]
    mixed = [file for file in unread if ending(file.name) in {*_READERS, ".txt"}]
    if mixed:
        what = f"{label} also holds {mixed[0].relative_to(folder)}, which would not be read"
        raise UserError(parameter, what, "move it away, or name one file")
    notes = _left([name for name in found.splits if name != split])
    odd = [str(file.relative_to(folder)) for file in unread if file.suffix not in _ABOUT]
    notes += (f"files that are not read: {', '.join(odd[:5])}",) if odd else ()
    return Source(label, folder, found.reader, chosen, notes)


def _visible(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(
            part.startswith((".", "__")) for part in file.relative_to(folder).parts
        ):
            yield file


def _left(splits: Sequence[str]) -> tuple[str, ...]:
    return (f"splits that are not read: {', '.join(splits)}",) if splits else ()


def choose_split(parameter: str, label: str, splits: Iterable[str], parts: Sequence[str]) -> str:
    """Return the split that is asked for; else train, or the only one."""
    known = [*map(str, splits)]
    if parts and parts[-1] in known:
        return parts[-1]
    listed = ", ".join(known)
    if parts:
        what = f"{label} has no split {parts[-1]!r}, only {listed}"
        raise UserError(parameter, what, f"write {label.partition(':')[0]}:{known[0]}")
    if "train" in known or len(known) == 1:
        return "train" if "train" in known else known[0]
    raise UserError(
        parameter, f"{label} has the splits {listed}", f"choose one: {label}:{known[0]}"
    )


def here(described: Mapping[str, Any]) -> Source | None:
    """Return the source that a manifest describes; None if not all of it is on this machine."""
    if parts := described.get("parts"):
        found = {part["name"]: _here(part["path"]) for part in parts}
        known = {name: one for name, one in found.items() if one}
        return together("dataset", known) if len(known) == len(found) else None
    return _here(described["path"])


def _here(label: str) -> Source | None:
    place = paths.root() / label.partition(":")[0]
    if place.is_file():
        return of_file(place)
    return find("dataset", str(paths.root() / label)) if place.is_dir() else None


def unpacked(file: Path, label: str) -> Path:
    """Return a file to read from: itself, or a copy unpacked from gzip or zstd.

    The copy vanishes when this process ends.
    """
    return _unpacked(file, label, stamp((file,)))


def stamp(several: Sequence[Path]) -> tuple[int, ...]:
    """Return numbers that change when one of the files does."""
    return tuple(n for file in several for n in (file.stat().st_mtime_ns, file.stat().st_size))


@functools.cache
def _unpacked(file: Path, label: str, when: tuple[int, ...]) -> Path:
    with file.open("rb") as raw:
        start = raw.read(4)
    kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), "")
    if not kind:
        return file
    copy = scratch() / f"{files.sha256(file)}{ending(file.name)}"
    if not copy.exists():
        part = copy.with_suffix(".part")
        try:
            with _opened(file, kind) as packed, part.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (OSError, EOFError, ValueError, zlib.error) as fault:
            if getattr(fault, "errno", None):  # the disk is full, say
                raise
            what = f"is a damaged {kind} file, or cut off"
            raise UserError(label, what, "copy it again") from None
        part.rename(copy)
    return copy


def _opened(file: Path, kind: str) -> BinaryIO:
    if kind == "gzip":
        return cast("BinaryIO", gzip.open(file))
    import pyarrow

    return cast("BinaryIO", pyarrow.input_stream(str(file), compression=kind))


def scratch() -> Path:
    """Return the folder of this process for what is unpacked: not /tmp, which may be in memory."""
    return Path(_scratch_folder(paths.root() / "data" / "tokenized").name)


@functools.cache
def _scratch_folder(parent: Path) -> "tempfile.TemporaryDirectory[str]":
    return files.scratch_folder(parent)
