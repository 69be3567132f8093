"""Compare the datasets of two runs: how they were tokenized, and which conversations differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neoxkit import files, paths
from neoxkit.data import manifests, pairing, tokenized
from neoxkit.data.pairing import RowHashes
from neoxkit.data.places import Places
from neoxkit.data.questions import decode
from neoxkit.data.selection import SETS
from neoxkit.errors import UserError
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.sections import Listed, Section, Unequal, lack, unequal
from neoxkit.models import loading, model_names
from neoxkit.runs import resuming
from neoxkit.runs.folder import DATASET

# Settings of 01 that are compared as what they mean: the texts, the model, the names.
_IN_OTHER_WORDS = {"dataset", "train_file", "eval_file", "model_name_or_path", "revision"}
_NAMED = ("model_name_or_path", "revision", "agent_name", "user_name")  # keys of a manifest


@dataclass(frozen=True)
class Data:
    """The section of the data, and whether the runs have the same held-out rows; None: unknown."""

    section: Section
    same_held_out: bool | None


@dataclass(frozen=True)
class _Side:
    """A run's dataset as far as it is here: its manifest and its folder, or None."""

    run: Run
    manifest: dict[str, Any] | None
    folder: Path | None

    @classmethod
    def of_run(cls, run: Run) -> "_Side":
        named = run.history.start.get("dataset", "")
        place = paths.root() / named
        is_here = bool(named) and tokenized.sha256(place) == run.made_of["dataset_sha256"]
        kept = run.folder / DATASET
        if not kept.is_file():
            kept = place / files.MANIFEST if is_here else kept
        manifest = files.read_json(kept) if kept.is_file() else None
        return cls(run, manifest, place if is_here else None)


def compared(a: Run, b: Run, most: int | None) -> Data:
    """Compare two runs' datasets by the hashes of their manifests; if these differ, setting by
    setting and row by row, listing at most `most` conversations of each kind."""
    hashes = [run.made_of["dataset_sha256"] for run in (a, b)]
    without = [run.name for run, known in zip((a, b), hashes, strict=True) if not known]
    if without:
        why = f"data: {lack(without, 'no record of the dataset')}"
        return Data(Section("data", unknown=[why]), None)
    one, other = _Side.of_run(a), _Side.of_run(b)
    if hashes[0] == hashes[1]:
        manifest = one.manifest or other.manifest
        sides = manifest["sides"] if manifest else {}
        rows = sum(sides[n]["conversations"] for n in tokenized.OF_TRAINING) if sides else None
        return Data(Section("data", equal=[_said(rows)]), True)
    return _other_data(one, other, most)


def _said(rows: int | None) -> str:
    return "data" if rows is None else f"data ({rows:,} rows)"


def _other_data(a: _Side, b: _Side, most: int | None) -> Data:
    found, unknown = [], []
    if a.manifest and b.manifest:
        found = _texts(a.manifest, b.manifest) + unequal(_facts(a.manifest), _facts(b.manifest))
    else:
        without = [side.run.name for side in (a, b) if not side.manifest]
        unknown = [f"how the data was tokenized: {lack(without, 'no manifest')}"]
    rows, why = None, _why_no_rows(a, b)
    if not why:
        try:
            rows = _Rows.of(a, b, most)
        except UserError as fault:  # a damaged dataset
            why = fault.what
    if not rows:
        return Data(Section("data", found, unknown=[*unknown, f"conversations: {why}"]), None)
    manifests_here = filter(None, (a.manifest, b.manifest))
    unread = {side for one in manifests_here for side in one["sides"]} - {*tokenized.OF_TRAINING}
    unknown += [f"the {SETS[side]}, which no training reads" for side in sorted(unread)]
    listed, unnamed = rows.listed()
    order = rows.order()
    equal = [] if listed or order else [_said(rows.pairing.num_equal)]
    unknown += unnamed
    section = Section("data", [*found, *order], listed, equal=equal, unknown=unknown)
    return Data(section, rows.same_held_out())


def _texts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Unequal]:
    """Return the texts whose bytes, or the names of whose parts, differ: where the same bytes lie
    makes no difference."""
    return [
        Unequal(name, _described(a[key]), _described(b[key]))
        for name, key in (("text", "source"), ("eval text", "eval_source"))
        if _identity(a[key]) != _identity(b[key])
    ]


def _identity(source: Mapping[str, Any] | None) -> tuple[str, list[str]] | None:
    if source is None:
        return None
    return source["sha256"], [part["name"] for part in source.get("parts", ())]


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was done to a text, without what follows from it (counts, say)."""
    settings = resuming.settings_of_data(manifest)
    settings = {k: v for k, v in settings.items() if k not in _IN_OTHER_WORDS}
    return {
        **settings,
        **{name: manifest[name] for name in _NAMED},
        "tokenizer": manifest["tokenizer_sha256"],
        **{f"tokenized by {name}": v for name, v in manifest["versions"].items()},
    }  # fmt: skip


def _described(source: Mapping[str, Any] | None) -> str | None:
    """Name a source's files, those of parts with the parts' names, and their hash."""
    if source is None:
        return None
    named = [f"{part['name']}: {part['path']}" for part in source.get("parts", ())]
    return f"{', '.join(named) or source['path']} {source['sha256'][:12]}"


def _why_no_rows(a: _Side, b: _Side) -> str:
    """Say why the rows can't be compared; empty if they can."""
    if away := [side.run.name for side in (a, b) if not side.folder]:
        are = "are" if len(away) > 1 else "is"
        return f"the data of {' and '.join(away)} {are} not here as trained on"
    both = [side.manifest["tokenizer_sha256"] for side in (a, b) if side.manifest]
    return "the tokenizers differ" if len({*both}) > 1 else ""


@dataclass(frozen=True)
class _Rows:
    """The rows of two datasets, paired."""

    sides: tuple[_Side, _Side]
    rows: tuple[RowHashes, RowHashes]
    pairing: pairing.Pairing
    most: int | None

    @classmethod
    def of(cls, a: _Side, b: _Side, most: int | None) -> "_Rows":
        assert a.folder and b.folder  # _why_no_rows
        one, other = RowHashes.of_dataset(a.folder), RowHashes.of_dataset(b.folder)
        return cls((a, b), (one, other), pairing.paired(one, other), most)

    def same_held_out(self) -> bool:
        """Return whether no held-out row lacks an equal one in the other dataset."""
        kinds = (self.pairing.moved, self.pairing.relabelled, self.pairing.only)
        without = [self.rows[i].is_eval[of].any() for kind in kinds for i, of in enumerate(kind)]
        return not any(without)

    def order(self) -> list[Unequal]:
        """Return the first two conversations that come in another order, if any do."""
        if not (found := self.pairing.reordered):
            return []
        side, number = self.rows[0].place(found[0])
        a, b = (self._place(i, row) for i, row in enumerate(found))
        return [Unequal(f"order of {side}, first at row {number + 1:,}", a, b)]

    def listed(self) -> tuple[list[Listed], list[str]]:
        """Return the conversations that differ, and why their texts are unknown if they are."""
        (a, b), found = (side.run.name for side in self.sides), self.pairing
        into = ["eval" if self.rows[1].is_eval[row] else "train" for row in found.moved[1]]
        moved = f"on another side in {b}"
        if len({*into}) == 1:
            moved = f"in {b}'s {into[0]} side, in {a}'s {'train' if into[0] == 'eval' else 'eval'}"
        kinds = [
            (f"only in {a}", 0, found.only[0]),
            (f"only in {b}", 1, found.only[1]),
            (moved, 0, found.moved[0]),
            (f"with other labels in {b}", 0, found.relabelled[0]),
        ]
        made, unknown = [], []
        for what, i, rows in kinds:
            if len(rows):
                texts, why = self._texts(i, rows[: self.most])
                shown = [
                    {"where": self._place(i, row)} | ({"conversation": texts[at]} if texts else {})
                    for at, row in enumerate(rows[: self.most].tolist())
                ]
                s = "" if len(rows) == 1 else "s"
                made.append(Listed(f"conversation{s} {what}", len(rows), shown))
                unknown += [why] if why else []
        return made, [*dict.fromkeys(unknown)]

    def _place(self, i: int, row: int) -> str:
        """Return a row's side, and its place in its source."""
        (side, number), manifest = self.rows[i].place(row), self.sides[i].manifest
        if not manifest:
            return f"{side}, row {number + 1}"
        source = (side == "eval" and manifest["eval_source"]) or manifest["source"]
        return f"{side}, {Places.of(source).at(int(self.rows[i].line[row]))}"

    def _texts(self, i: int, rows: np.ndarray) -> tuple[list[str], str]:
        """Return the rows' texts, or none and the reason."""
        side = self.sides[i]
        assert side.folder
        try:
            tokenizer = _tokenizer(side)
        except UserError as fault:
            return [], f"texts of {side.run.name}'s conversations: {fault.what}"
        read: dict[tuple[str, int], list[int]] = {}
        places = [self.rows[i].place(row) for row in rows.tolist()]
        for name in tokenized.OF_TRAINING:
            numbers = np.array([number for of, number in places if of == name], np.int64)
            found = tokenized.tokens_at(side.folder / name, numbers)
            read |= {(name, number): ids for number, ids in found.items()}
        return [decode(tokenizer, read[place]) for place in places], ""


def _tokenizer(side: _Side) -> Any:
    """Load the tokenizer of a dataset: the run's own, or that of the model it was made with."""
    model, manifest = side.run.folder / "model", side.manifest
    if not manifest:
        raise UserError("dataset", "there is no manifest", "run 01_tokenize")
    named = model_names.at(manifest["model_name_or_path"], manifest["revision"])
    tokenizer = loading.load_tokenizer(str(model) if model.is_dir() else named)
    if manifests.tokenizer_sha256(tokenizer) != manifest["tokenizer_sha256"]:
        raise UserError("dataset", "its tokenizer is not here", "run 01_tokenize again")
    return tokenizer
