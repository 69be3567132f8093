"""Find a data set's files by split, and fetch them from the hub or from its cache here."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from neoxkit import hub_faults
from neoxkit.errors import UserError, shorten


class Layout(NamedTuple):
    """The files of each split, and how `datasets` would read them ("json", "csv", ...)."""

    splits: Mapping[str, list[str]]
    reader: str
    parts: Sequence[str]  # what was asked for, without the configuration


def layout(parameter: str, place: str, label: str, parts: Sequence[str]) -> Layout:
    """Find the files of a folder, or of a name on the hub, as `datasets` does.

    `parts` may begin with a configuration; `label` is what a person calls the place.
    """
    from datasets import get_dataset_config_names, load_dataset_builder

    try:
        known = get_dataset_config_names(place)
        chosen = parts[0] if parts and parts[0] in known else None
        if not chosen and len(known) > 1 and "default" not in known:
            what = f"{label} has the configurations {', '.join(known[:5])}"
            raise UserError(parameter, what, f"choose one: {label.partition(':')[0]}:{known[0]}")
        builder = load_dataset_builder(place, chosen)
    except UserError:
        raise
    except FileNotFoundError:
        what = f"{label} holds no file that can be read"
        remedy = "name files .txt, .jsonl, .json, .csv, .tsv, .parquet or .arrow"
        raise UserError(parameter, what, remedy) from None
    except ValueError as fault:  # files of several kinds, or a README.md that describes others
        what = f"{label} can't be read as one data set ({shorten(str(fault), 90)})"
        raise UserError(parameter, what, "name one file, or a folder of one kind") from None
    found = builder.config.data_files or {}
    splits = {str(split): sorted(map(str, listed)) for split, listed in found.items()}
    return Layout(splits, type(builder).__module__.rpartition(".")[2], parts[bool(chosen) :])


def is_name(value: str) -> bool:
    """Return whether a value could name a data set of the hub: owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value))


def fetch(parameter: str, name: str, parts: Sequence[str]) -> Path:
    """Return the folder with the files of a data set of the hub, of all its splits.

    Without a network, the folder with the files that an earlier call has fetched.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    hub_faults.prepare_client()
    try:
        try:
            HfApi().dataset_info(name, timeout=10)
        except RepositoryNotFoundError:
            raise
        except Exception:  # no network, or a hub in trouble
            return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
        found = layout(parameter, name, name, parts)
        inside = [f.partition("@")[2].partition("/")[2] for s in found.splits.values() for f in s]
        wanted = ["README.md", *inside]
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except UserError:
        raise
    except Exception as fault:
        said = f"{name} can't be fetched ({shorten(str(fault), 90)})"
        what, remedy = hub_faults.explain(name, fault) or (said, "give a file or a folder")
        raise UserError(parameter, what, remedy) from fault
