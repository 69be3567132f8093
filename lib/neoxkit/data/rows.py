"""Open the rows of a table (CSV, Parquet, Arrow) or of a saved data set."""

import contextlib
import csv
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.data import sources
from neoxkit.data.sources import Source
from neoxkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow.parquet import FileMetaData

# A part that is written at once. Opening Arrow files reads a page or more of every part.
BYTES_AT_ONCE, ROWS_AT_ONCE = 4 << 20, 10_000


def open_rows(source: Source) -> "Dataset":
    """Open the rows of a table or of a saved data set; the values of CSV stay the text they are.

    They are in mapped files, whose pages stay in memory once they were read, for as long as the
    rows are open: open them anew for each part.
    """
    import datasets

    with _reading(source):
        if source.parts:
            return datasets.concatenate_datasets([*_same_columns(source)])
        if source.reader == "saved":
            return datasets.load_from_disk(source.files[0].parent)
        parts = map(datasets.Dataset.from_file, _as_arrow(source, sources.stamp(source.files)))
        return datasets.concatenate_datasets([*parts])


def _same_columns(source: Source) -> Iterator["Dataset"]:
    """Open each part of a table; refuse other columns than the first one's."""
    columns: list[str] = []
    for _, part in source.parts:
        rows = open_rows(part)
        if columns and {*rows.column_names} != {*columns}:  # their order may differ
            raise _other_columns(part.label, rows.column_names, columns)
        columns = rows.column_names
        yield rows


@functools.cache
def _as_arrow(source: Source, when: tuple[int, ...]) -> list[str]:
    """Write a table as Arrow files of this process, once; return their paths."""
    import pyarrow

    copies = [sources.unpacked(file, source.label_of(file)) for file in source.files]
    convert = _from_parquet if source.reader == "parquet" else _by_datasets
    made = [*convert(source, copies, sources.scratch() / source.sha256())]
    pyarrow.default_memory_pool().release_unused()
    return [*map(str, made)]


def _by_datasets(source: Source, copies: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Have `datasets` write CSV, or copy Arrow, as Arrow files."""
    import datasets

    options = _csv_options(source, copies) if source.reader == "csv" else {}
    rows = datasets.load_dataset(
        source.reader,
        data_files=[*map(str, copies)],
        split="train",
        cache_dir=str(folder),
        writer_batch_size=ROWS_AT_ONCE,
        **options,
    )
    yield from (Path(file["filename"]) for file in rows.cache_files)


def _from_parquet(source: Source, copies: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Write Parquet files as Arrow files of the first one's types, some rows at a time: `datasets`
    would hold a row group in memory, which may have all rows."""
    import pyarrow
    from datasets.table import table_cast
    from pyarrow import ipc, parquet

    folder.mkdir(exist_ok=True)
    schema = None
    for number, copy in enumerate(copies):
        target = folder / f"{number}.arrow"
        with parquet.ParquetFile(copy, buffer_size=1 << 20, pre_buffer=False) as table:
            found, schema = table.schema_arrow.names, schema or table.schema_arrow
            if {*found} != {*schema.names}:  # their order may differ
                raise _other_columns(source.label_of(source.files[number]), found, schema.names)
            with pyarrow.OSFile(str(target), "wb") as file, ipc.new_stream(file, schema) as out:
                for batch in table.iter_batches(_rows_at_once(table.metadata)):
                    out.write_table(table_cast(pyarrow.Table.from_batches([batch]), schema))
        yield target


def _rows_at_once(metadata: "FileMetaData") -> int:
    """Return how many rows of a Parquet file have about BYTES_AT_ONCE, by its row groups' sizes."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    return min(max(BYTES_AT_ONCE * metadata.num_rows // max(size, 1), 1), ROWS_AT_ONCE)


def _other_columns(label: str, found: Sequence[str], columns: Sequence[str]) -> UserError:
    """Return the refusal of a file with other columns than the first one's."""
    what = f"has the columns {', '.join(found)}, and another file {', '.join(columns)}"
    return UserError(label, what, "write all files in the same columns")


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Refuse what `datasets` can't read, in one line."""
    with _quiet_datasets():
        try:
            yield
        except UserError:
            raise
        except Exception as fault:  # whatever a damaged file leads to
            if "corresponds to no data" in str(fault):
                raise no_rows(source) from None
            cause = " ".join(str(fault.__cause__ or fault).split())
            raise UserError(
                source.label, f"can't be read ({cause[:90]})", "save it again"
            ) from fault


def no_rows(source: Source) -> UserError:
    """Return the refusal of a table without rows."""
    return UserError(source.label, "has no rows", "write conversations into it")


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silence the progress bars and messages of `datasets`, whose faults we tell in one line."""
    from datasets.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _csv_options(source: Source, copies: Sequence[Path]) -> Mapping[str, object]:
    """Return how CSV files are read: their separator, and every column as text.

    Otherwise 007 would become 7, and the answer "NA" would be no answer.
    """
    from datasets import Features, Value

    separator = _separator(source.files[0], copies[0])
    columns: list[str] = []
    for file, copy in zip(source.files, copies, strict=True):
        found = _check_csv(source.label_of(file), copy, separator)
        if columns and found != columns:
            raise _other_columns(source.label_of(file), found, columns)
        columns = found
    named = [name or f"column {number}" for number, name in enumerate(columns, start=1)]
    if twice := [name for name, count in Counter(named).items() if count > 1]:
        what = f"has {Counter(named)[twice[0]]} columns named {twice[0]}"
        raise UserError(f"{source.label_of(source.files[0])}:1", what, "rename one")
    return {
        "sep": separator, "features": Features({name: Value("string") for name in named}),
        "names": named, "header": 0, "keep_default_na": False,
    }  # fmt: skip


def _separator(file: Path, copy: Path) -> str:
    """Return what separates the columns of the first line, outside of quotes."""
    with copy.open(encoding="utf-8-sig") as opened:
        line = re.sub(r'"[^"]*"', "", opened.readline())
    if sources.ending(file.name) == ".tsv" and "\t" in line:
        return "\t"
    return max(",\t;|", key=line.count)


def _check_csv(label: str, copy: Path, separator: str) -> list[str]:
    """Return the columns; refuse a row that has more fields or fewer, or a field in half quotes.

    pandas takes a row's first fields for an index where there are too many.
    """
    csv.field_size_limit(sys.maxsize)
    with copy.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        columns: list[str] = []
        try:
            for row in reader:
                columns = columns or row
                if row and len(row) != len(columns):
                    what = f"a row of {len(row)} fields, and {len(columns)} columns"
                    remedy = f'put a field with "{separator}" in it into double quotes'
                    raise UserError(f"{label}:{reader.line_num}", what, remedy)
        except csv.Error as fault:
            where, what = f"{label}:{reader.line_num}", f"is not CSV ({fault})"
            raise UserError(where, what, "double the quotes within a field in quotes") from None
    return columns
