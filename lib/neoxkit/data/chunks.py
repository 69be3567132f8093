"""Cut a text file into chunks of whole conversations, so that no step needs all of it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from neoxkit.errors import Faults, UserError

CHUNK_BYTES = 2 << 20
HEAD_BYTES = 2 << 20  # read to detect how a file is written

_LINE_ENDS = re.compile(rb"[ \t]*[\r\n]")

# (bytes of the file, where to search from) -> the end of the last conversation in them, or 0
Boundary = Callable[[bytearray, int], int]


class Chunk(NamedTuple):
    """A part of a source: of its file number `file`, the first byte, the size in bytes, and the
    first line's number; or of its rows, the first one's index, how many, and the first's number."""

    start: int
    size: int
    line: int
    file: int = 0


def cut(path: Path, label: str, boundary: Boundary) -> tuple[list[Chunk], int]:
    """Return a file's chunks and its number of lines; refuse everything but UTF-8.

    A chunk has about CHUNK_BYTES and ends at a `boundary`; a longer conversation makes it longer.
    """
    chunks: list[Chunk] = []
    damage = _Damage(label)
    buffer, start, line, searched = bytearray(), 0, 1, 0
    with path.open("rb") as file:
        while raw := file.read(CHUNK_BYTES):
            buffer += raw
            if len(buffer) < CHUNK_BYTES:
                break  # the end of the file
            if end := boundary(buffer, searched):
                chunks.append(Chunk(start, end, line))
                damage.look(chunks[-1], bytes(buffer[:end]))
                line += _num_line_ends(buffer[:end])
                start += end
                del buffer[:end]
            searched = len(buffer)
    if buffer:
        chunks.append(Chunk(start, len(buffer), line))
        damage.look(chunks[-1], bytes(buffer))
        line += _num_line_ends(buffer) + (not buffer.endswith((b"\n", b"\r")))
    damage.refuse(start + len(buffer))
    return chunks, line - 1


def at_lines(buffer: bytearray, searched: int) -> int:
    """Return where the last line ends: a Boundary for files with one conversation per line."""
    return buffer.rfind(b"\n", searched) + 1


def nowhere(buffer: bytearray, searched: int) -> int:
    """Return 0: a Boundary for files that can only be read as a whole."""
    return 0


def at_marks(mark: str) -> Boundary:
    """Make a Boundary that finds the last end mark at the end of a line."""
    raw = mark.encode()

    def boundary(buffer: bytearray, searched: int) -> int:
        searched = max(searched - 2 * len(raw), 0)
        at = buffer.rfind(raw, searched)
        while at >= 0:
            if _LINE_ENDS.match(buffer, at + len(raw)):
                return at + len(raw)
            at = buffer.rfind(raw, searched, at)
        return 0

    return boundary


def _num_line_ends(raw: bytes | bytearray) -> int:
    return raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")


def read_chunk(path: Path, label: str, chunk: Chunk) -> str:
    """Read a chunk's text, with line ends normalised to \\n."""
    with path.open("rb") as file:
        file.seek(chunk.start)
        raw = file.read(chunk.size)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        what = "changed while it was being read"
        raise UserError(label, what, "start again") from None
    return _lines_of_one_kind(text.removeprefix("\ufeff") if chunk.start == 0 else text)


def head(path: Path, label: str) -> str:
    """Read the beginning of a file, to detect how it is written; refuse a binary file."""
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
    _refuse_binary(label, raw)
    return _lines_of_one_kind(raw.decode("utf-8", "replace").removeprefix("\ufeff"))


def _lines_of_one_kind(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


_BINARY = {
    b"PK\x03\x04": ("is a zip or Office file", "save it as plain UTF-8 text"),
    b"\x1f\x8b": ("is packed by gzip twice", "unpack it once"),
    b"BZh9": ("is packed by bzip2", "unpack it, or pack it with gzip"),
    b"\xfd7zXZ": ("is packed by xz", "unpack it, or pack it with gzip"),
    b"PAR1": ("is a Parquet file", "name it .parquet"),
    b"ARROW1": ("is an Arrow file", "name it .arrow"),
    b"%PDF": ("is a PDF file", "save it as plain UTF-8 text"),
    b"\xff\xfe": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
}


def _refuse_binary(where: str, raw: bytes) -> None:
    for magic, (what, remedy) in _BINARY.items():
        if raw.startswith(magic):
            raise UserError(f"{where}:1", what, remedy)
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{where}:1", "is a Git LFS pointer, not the file", "run git lfs pull")
    start = raw[:4096]
    if start.count(b"\0") >= max(len(start) / 4, 1):
        half = "LE" if raw[1:2] == b"\0" else "BE"
        raise UserError(
            f"{where}:1", "is UTF-16, by its NUL bytes", f"iconv -f UTF-16{half} -t UTF-8"
        )


class _Wrong(NamedTuple):
    """A line that is not UTF-8: its number, its first wrong bytes and their place in the file."""

    line: int
    at: int
    raw: bytes


@dataclass
class _Damage:
    """The bytes of a file that are not UTF-8 text, collected chunk by chunk."""

    where: str
    nul_lines: list[int] = field(default_factory=list)
    wrong: list[_Wrong] = field(default_factory=list)
    has_utf8: bool = False  # it has valid characters of more than one byte

    def look(self, chunk: Chunk, raw: bytes) -> None:
        """Check a chunk's bytes."""
        if b"\0" in raw:
            self.nul_lines.append(chunk.line + _num_line_ends(raw[: raw.index(b"\0")]))
        try:
            raw.decode("utf-8")
            self.has_utf8 = self.has_utf8 or not raw.removeprefix(b"\xef\xbb\xbf").isascii()
        except UnicodeDecodeError:
            self.wrong += self._wrong_lines(chunk, raw)

    def _wrong_lines(self, chunk: Chunk, raw: bytes) -> Iterator[_Wrong]:
        at = chunk.start
        for number, line in enumerate(re.split(rb"(?<=\n)|(?<=\r)(?!\n)", raw), start=chunk.line):
            try:
                line.decode("utf-8")
                self.has_utf8 = self.has_utf8 or not line.removeprefix(b"\xef\xbb\xbf").isascii()
            except UnicodeDecodeError as fault:
                yield _Wrong(number, at + fault.start, line[fault.start : fault.start + 4])
            at += len(line)

    def refuse(self, size: int) -> None:
        """Refuse the file, of `size` bytes, if there is any damage."""
        faults = [
            UserError(f"{self.where}:{line}", "contains a NUL byte", "delete it: text has none")
            for line in self.nul_lines
        ]
        faults += [self._fault(wrong, size) for wrong in self.wrong]
        if faults:
            raise Faults(faults)

    def _fault(self, wrong: _Wrong, size: int) -> UserError:
        where, byte = f"{self.where}:{wrong.line}", f"byte {wrong.at} (0x{wrong.raw[0]:02x})"
        if wrong.at + len(wrong.raw) == size and self._is_cut_off(wrong.raw):
            return UserError(where, f"the file ends inside a character, at {byte}", "copy it again")
        if self.has_utf8:
            what = f"damaged at {byte}: the rest of the file is UTF-8, and this is not"
            return UserError(where, what, "correct this line")
        what = f"not UTF-8 at {byte}"
        return UserError(where, what, "probably Windows-1252: iconv -f WINDOWS-1252 -t UTF-8")

    def _is_cut_off(self, raw: bytes) -> bool:
        """Return whether a file's last bytes are the beginning of a character.

        A single byte might also be a Windows-1252 letter: those that end a text are mostly above
        0xde.
        """
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as fault:
            begins = fault.reason == "unexpected end of data"
            return begins and (self.has_utf8 or len(raw) > 1 or 0xC2 <= raw[0] < 0xDF)
        return False
