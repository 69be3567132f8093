"""A text file in blocks of whole conversations, so that no step has to hold all of it."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neoxkit import paths
from neoxkit.errors import Faults, UserError
from neoxkit.turns import END_MARK

BLOCK_BYTES = 2 << 20

_MARK = END_MARK.encode()
_LINE_ENDS = re.compile(rb"[ \t]*[\r\n]")


class Block(NamedTuple):
    """A stretch of a file: its first byte, its size in bytes, the number of its first line."""

    start: int
    size: int
    line: int


def cut(path: Path, jsonl: bool) -> tuple[list[Block], str]:
    """The blocks of a file and the file's SHA-256.

    A block of about BLOCK_BYTES ends behind an end mark that ends its line, or behind a line of
    JSON Lines; a longer conversation makes a longer block.
    """
    blocks: list[Block] = []
    digest, buffer, start, line = hashlib.sha256(), bytearray(), 0, 1
    with path.open("rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            digest.update(chunk)
            searched = max(len(buffer) - 2 * len(_MARK), 0)
            buffer += chunk
            if len(buffer) < BLOCK_BYTES:
                break  # the end of the file
            end = buffer.rfind(b"\n", searched) + 1 if jsonl else _last_mark(buffer, searched)
            if end:
                blocks.append(Block(start, end, line))
                line += _num_line_ends(buffer[:end])
                start += end
                del buffer[:end]
    if buffer:
        blocks.append(Block(start, len(buffer), line))
    return blocks, digest.hexdigest()


def _last_mark(buffer: bytearray, searched: int) -> int:
    """Where the last end mark that ends its line is over; 0 if there is none."""
    at = buffer.rfind(_MARK, searched)
    while at >= 0:
        if _LINE_ENDS.match(buffer, at + len(_MARK)):
            return at + len(_MARK)
        at = buffer.rfind(_MARK, searched, at)
    return 0


def _num_line_ends(raw: bytearray) -> int:
    return raw.count(b"\n") + raw.count(b"\r") - raw.count(b"\r\n")


def read(path: Path, block: Block) -> str:
    """A block's text, with line ends of one kind; everything but UTF-8 is refused."""
    with path.open("rb") as file:
        file.seek(block.start)
        raw = file.read(block.size)
    where = paths.short(path)
    if block.start == 0:
        _refuse_binary(where, raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Faults(list(_encoding_faults(where, raw, block))) from None
    if block.start == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


_BINARY = {
    b"\x1f\x8b": ("is a gzip file", "unpack it with gunzip first"),
    b"PK\x03\x04": ("is a zip or Office file", "save it as plain UTF-8 text"),
    b"%PDF": ("is a PDF file", "save it as plain UTF-8 text"),
    b"\x28\xb5\x2f\xfd": ("is a zstd file", "unpack it with zstd -d first"),
    b"\xff\xfe": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
}


def _refuse_binary(where: str, raw: bytes) -> None:
    for magic, (what, remedy) in _BINARY.items():
        if raw.startswith(magic):
            raise UserError(f"{where}:1", what, remedy)
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{where}:1", "is a Git LFS pointer, not the file", "run git lfs pull")
    if b"\0" in raw[:4096]:
        start = raw[:4096]
        if start.count(b"\0") < len(start) / 4:
            raise UserError(f"{where}:1", "is no text (it holds NUL bytes)", "give a text file")
        half = "LE" if raw[1:2] == b"\0" else "BE"
        raise UserError(
            f"{where}:1", "is UTF-16, by its NUL bytes", f"iconv -f UTF-16{half} -t UTF-8"
        )


def _encoding_faults(where: str, raw: bytes, block: Block) -> Iterator[UserError]:
    """One fault a line that is not UTF-8, with the offset of its first wrong byte in the file."""
    at = block.start
    for number, line in enumerate(re.split(rb"(?<=\n)|(?<=\r)(?!\n)", raw), start=block.line):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as fault:
            yield UserError(
                f"{where}:{number}",
                f"not UTF-8 at byte {at + fault.start} (0x{line[fault.start]:02x})",
                "probably Windows-1252: iconv -f WINDOWS-1252 -t UTF-8",
            )
        at += len(line)
