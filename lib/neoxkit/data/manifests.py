"""The manifest of a tokenized dataset, and the card that shows it."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neoxkit.data import held_out
from neoxkit.data.examining import ConversationFile
from neoxkit.data.overlap import Near
from neoxkit.data.selection import Counts, num_duplicates
from neoxkit.data.table import Table
from neoxkit.settings import END_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_manifest(
    settings: Mapping[str, Any],
    model: str,
    tokenizer: "PreTrainedTokenizerBase",
    read: Mapping[str, ConversationFile],
    counts: Mapping[str, Counts],
    sides: Mapping[str, Table],
    split_notes: Sequence[str] = (),
    near: Sequence[Near] = (),
) -> dict[str, Any]:
    """Return the manifest, which later notebooks check and inherit from.

    `model`: its portable name (model_names.portable); `split_notes`: from selection.split_rows;
    `near`: the near-duplicates of the held-out set, then of the test side if there is one.
    """
    files = {
        "source": _source(read["train"]),
        "eval_source": _source(read["eval"]) if "eval" in read else None,
    }
    with_rows = held_out.rows_by_part(files, sides["eval"].column("line").tolist())
    empty = held_out.without_rows(files, with_rows)
    return {
        **files,
        "agent_name": read["train"].names.agent,
        "user_name": read["train"].names.user,
        "model_name_or_path": model,
        "revision": settings["revision"],
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "end_mark_id": tokenizer.eos_token_id,
        "block_size": settings["block_size"],
        "train_on": settings["train_on"],
        "too_long": settings["too_long"],
        "split_seed": settings["seed"],
        "notes": [line for source in read.values() for line in source.sentences()[1:]],
        "split_notes": [*split_notes, *empty, *(line for one in near for line in one.notes())],
        "counts": {side: c.as_dict() for side, c in counts.items()},
        "duplicates": num_duplicates(*sides.values()),
        "near_duplicates": _near_duplicates(near),
        "sides": {
            side: {
                "conversations": len(rows),
                "tokens": int(rows.length.sum()),
                "trained_tokens": int(rows.trained.sum()),
                "longest": int(rows.length.max(initial=0)),
            }
            for side, rows in sides.items()
        },
        # overwrite has no effect on the contents
        "settings": {k: v for k, v in settings.items() if k != "overwrite"},
        "versions": {
            p: importlib.metadata.version(p) for p in ("transformers", "tokenizers", "datasets")
        },
    }


def _near_duplicates(near: Sequence[Near]) -> dict[str, Any] | None:
    """Return the counts of the held-out set, and with a test side its own below "test"; None if
    none were looked for."""
    looked = {one.side: one.as_dict() for one in near if one.how != "ignore"}
    if not looked:
        return None
    return looked["eval"] | {side: of for side, of in looked.items() if side != "eval"}


def _source(source: ConversationFile) -> dict[str, Any]:
    parts = held_out.parts(source)
    return {
        "path": source.source.label,
        "sha256": source.sha256,
        "format": source.form.format,
        "unit": source.places.unit,
        "begins": {str(line): name for line, name in source.places.begins},
        **({"parts": parts} if parts else {}),
    }


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash the vocabulary, merges and rules: everything that decides a text's ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def card(manifest: dict[str, Any]) -> str:
    """Return the dataset card (Markdown), README.md of the folder."""
    source = manifest["source"]
    counts = [
        f"{name} file: read {c['read']:,}, kept {c['kept']:,}, cut {len(c['cut_lines']):,}, "
        + "dropped: "
        + ("; ".join(f"{why}: {len(at):,}" for why, at in c["dropped_lines"].items()) or "none")
        for name, c in manifest["counts"].items()
    ]
    sides = [
        f"| {side} | {n['conversations']:,} | {n['tokens']:,} | {n['trained_tokens']:,} "
        f"| {n['longest']} |"
        for side, n in manifest["sides"].items()
    ]
    return "\n".join(
        [
            "# Tokenized conversations",
            "",
            f"Made by neoxkit from `{source['path']}` (SHA-256 `{source['sha256'][:16]}...`) with "
            f"the tokenizer of `{_model(manifest)}`. `{manifest['user_name']}` asks, "
            f"`{manifest['agent_name']}` answers; trained on: {manifest['train_on']}. Block size "
            f"{manifest['block_size']} tokens, end mark (`{END_MARK}`) included.",
            "",
            "| side | conversations | tokens | trained tokens | longest |",
            "|---|---|---|---|---|",
            *sides,
            "",
            f"{'. '.join(counts).capitalize()}. {manifest['duplicates']:,} conversations repeat "
            "another one exactly. Rows are not padded; labels are -100 where nothing is "
            "trained. `datasets.load_from_disk` opens this folder.",
            *(line for note in manifest["split_notes"] for line in ("", f"**Held out.** {note}")),
            "",
        ]
    )


def _model(manifest: Mapping[str, Any]) -> str:
    """Name the model that a dataset's tokenizer is from, with its revision."""
    return "@".join(filter(None, (manifest["model_name_or_path"], manifest["revision"])))
