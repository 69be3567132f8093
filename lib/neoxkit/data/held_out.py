"""The parts of a held-out set that was given as several files, each with a loss of its own."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from neoxkit.data.examining import ConversationFile


def parts(read: ConversationFile) -> list[dict[str, Any]]:
    """Return each part's name, its path as a person writes it, and its first line or row, counted
    through all parts; nothing if the source was not put together from several."""
    begins = {label: number for number, label in read.places.begins}
    firsts = (begins.get(part.label, begins.get(part.label_of(part.files[0])))
              for _, part in read.source.parts)  # fmt: skip
    return [
        {"name": name, "path": part.label, "first": first}
        for (name, part), first in zip(read.source.parts, firsts, strict=True)
    ]


def rows_by_part(manifest: Mapping[str, Any], lines: Sequence[int]) -> dict[str, np.ndarray]:
    """Return which rows of the held-out set belong to each of its parts that has some, by name;
    nothing if it was not given as several files.

    `lines`: the rows' column of that name.

    >>> described = [{"name": "a", "first": 1}, {"name": "b", "first": 9}]
    >>> manifest = {"eval_source": {"parts": described}}
    >>> {name: rows.tolist() for name, rows in rows_by_part(manifest, [3, 7, 9]).items()}
    {'a': [0, 1], 'b': [2]}
    """
    known = _known(manifest)
    firsts = [part["first"] for part in known]
    of = np.searchsorted(firsts, np.asarray(lines), side="right") - 1
    found = {part["name"]: np.flatnonzero(of == i) for i, part in enumerate(known)}
    return {name: rows for name, rows in found.items() if len(rows)}


def without_rows(manifest: Mapping[str, Any], parts: Collection[str]) -> list[str]:
    """Say which parts have none of the held-out set's rows; `parts`: those that have some."""
    empty = [part["name"] for part in _known(manifest) if part["name"] not in parts]
    return [f"No conversation of {name} was kept: it will have no loss." for name in empty]


def _known(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (manifest["eval_source"] or {}).get("parts", [])
