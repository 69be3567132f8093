"""Compare two runs: their settings, data, versions, losses and replies, and list what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from neoxkit import files, paths
from neoxkit.evaluation import compare_runs, different_data, different_results
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.sections import (
    RunDifference,
    Section,
    Unequal,
    flat,
    joined,
    lack,
    unequal,
)
from neoxkit.runs import card as run_card
from neoxkit.runs import resuming
from neoxkit.runs.folder import ARGUMENTS

FIRST = 3  # conversations and replies that are listed of each kind, unless more are asked for
# What settings came to: key of the start event -> the settings (and keys above it) it follows from.
_CAME_TO = {
    "precision": ("precision",),
    "tf32": ("tf32", "precision"),
    "block_size": ("block_size",),
    "row_tokens": ("row_tokens", "layout", "block_size"),
    "attention": ("attn_implementation", "layout", "block_size", "precision"),
    "optimizer": ("optim",),
    "learning_rate": ("learning_rate",),
}
# Keys of the DeepSpeed file that may be "auto", and the settings that then fill them.
_PER_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_ranks")
_BY_THE_BASE = ("model_name_or_path", "revision")
_FILLED_BY = {
    "train_batch_size": _PER_STEP,
    "train_micro_batch_size_per_gpu": _PER_STEP[:1],
    "gradient_accumulation_steps": _PER_STEP[1:2],
    "gradient_clipping": ("max_grad_norm",),
    "zero_optimization.reduce_bucket_size": _BY_THE_BASE,
    "zero_optimization.stage3_prefetch_bucket_size": _BY_THE_BASE,
    "zero_optimization.stage3_param_persistence_threshold": _BY_THE_BASE,
} | dict.fromkeys(
    (
        "bf16.enabled", "fp16.enabled", "communication_data_type", "data_types",
        "data_types.grad_accum_dtype",
    ), ("precision", "precision, as trained", "bf16", "fp16"),
)  # fmt: skip


def of_runs(a: str, b: str, most: int | None = FIRST) -> RunDifference:
    """Compare two runs, by name or folder; list at most `most` conversations and replies of each
    kind, all with None."""
    runs = [compare_runs.load_run(compare_runs.folder_of(name)) for name in (a, b)]
    names = {run.name for run in runs}
    if len(names) < 2 or different_results.ASKED in names:  # from two machines; a column's name
        runs = [replace(run, name=paths.short(run.folder)) for run in runs]
    one, other = runs
    data = different_data.compared(one, other, most)
    causes = [_settings(one, other), data.section, _versions(one, other)]
    losses = different_results.losses(one, other, data.same_held_out)
    sections = [
        *causes,
        _explained(losses, causes, runs),
        different_results.replies(one, other, most),
    ]
    return RunDifference((one.name, other.name), sections)


def _settings(a: Run, b: Run) -> Section:
    """Compare settings, what they came to, the DeepSpeed files and the bases."""
    if without := [run.name for run in (a, b) if not run.settings]:
        return Section("settings", unknown=[f"settings: {lack(without, f'no {ARGUMENTS}')}"])
    one, other, unknown = _alike(a, b)
    values = compare_runs.settings_that_differ([one, other])
    found = [Unequal(name, *of) for name, of in values.items()] + _came_to(a, b, {*values})
    says = [
        f"{name} was set by a dial in {run.name}."
        for run in (a, b)
        for name in resuming.dialled(run.folder)
        if name in values
    ]
    equal = [] if found else ["settings"]
    section = Section("settings", found, says=says, equal=equal, unknown=unknown)
    return joined(section, _inputs(a, b, {one.name for one in found}))


def _inputs(a: Run, b: Run, found: set[str]) -> Section:
    """Compare the DeepSpeed files and the bases, which the run cards have; `found`: the settings
    that differ."""
    cards = [run_card.read(run.folder) for run in (a, b)]
    if without := [run.name for run, card in zip((a, b), cards, strict=True) if not card]:
        why = f"DeepSpeed file and base: {lack(without, 'no run card')}"
        return Section("settings", unknown=[why])
    bases = _bases(cards[0], cards[1])
    shapes = [card.get("base_sha256", {}).get("config.json") for card in cards]
    by_shape = {*_BY_THE_BASE} if shapes[0] != shapes[1] else set()
    keys = _deepspeed(cards[0], cards[1], found | by_shape)
    if _names_the_base(found, cards):
        return Section("settings", keys)
    return Section("settings", [*keys, *bases], equal=[] if bases else ["base"])


def _alike(a: Run, b: Run) -> tuple[Run, Run, list[str]]:
    """Return the runs with settings that can be compared, and say what can't be.

    A run from a shell has recorded every argument of the trainer, one from a notebook those that
    it gave. Each has its own way to name a DeepSpeed file, which is compared by its contents.
    """
    unknown = [
        f"earlier values of {', '.join(of)}: allow_change of {run.name} let them change"
        for run in (a, b)
        if (of := run.settings.get("allow_change"))
    ]
    if _is_from_a_shell(a) == _is_from_a_shell(b):
        return a, b, unknown
    one, other = (files.read_json(run.folder / ARGUMENTS) for run in (a, b))
    shared = [name for name in one if name in other and name != "deepspeed"]
    alone = len(one.keys() ^ other.keys())
    shell = a if _is_from_a_shell(a) else b
    unknown.append(f"trainer arguments ({alone}): only {shell.name}, from a shell, names them")
    made = [
        replace(run, settings={name: _alike_written(of[name]) for name in shared} | _ranks(run))
        for run, of in ((a, one), (b, other))
    ]
    return made[0], made[1], unknown


def _alike_written(value: Any) -> Any:
    """Return a value as both write it: a shell's `none` is a notebook's ["none"], and a switch that
    a shell was not given (None) is off."""
    if value is None:
        return False
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_from_a_shell(run: Run) -> bool:
    return "output_dir" in run.settings  # the trainer's own arguments


def _ranks(run: Run) -> dict[str, Any]:
    return {"num_ranks": run.history.start.get("num_ranks")}


def _came_to(a: Run, b: Run, found: set[str]) -> list[Unequal]:
    """Return what equal settings, like auto, came to in each run; `found`: those that differ."""
    one, other = (run.history.start for run in (a, b))
    if not one or not other:
        return []
    names, made = {*found}, []
    for key, follows in _CAME_TO.items():
        if one.get(key) != other.get(key) and not names & {*follows}:
            made.append(Unequal(f"{key}, as trained", one.get(key), other.get(key)))
            names.add(key)
    return made


def _deepspeed(a: Mapping[str, Any], b: Mapping[str, Any], found: set[str]) -> list[Unequal]:
    """Return the keys of the DeepSpeed files that differ and don't follow from what does."""
    one, other = (flat(card.get("ds_config", {})) for card in (a, b))
    return [
        replace(key, name=f"DeepSpeed {key.name}")
        for key in unequal(one, other)
        if not found & {*_FILLED_BY.get(key.name, ())}
    ]


def _names_the_base(found: set[str], cards: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether settings that differ say that the bases are others, like the seed of random
    weights."""
    random = all(card.get("from_scratch") for card in cards)
    return bool(found & {*_BY_THE_BASE, "from_scratch", *(["seed"] if random else [])})


def _bases(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Unequal]:
    """Return the files of the bases that differ, and their commits on the hub."""
    one, other = (
        {"commit": card.get("base_commit"), **card.get("base_sha256", {})} for card in (a, b)
    )
    return [replace(file, name=f"base, {file.name}") for file in unequal(one, other)]


def _versions(a: Run, b: Run) -> Section:
    """Compare packages, the kit's code, and what of the machine decides a run's bytes."""
    cards = [run_card.read(run.folder) for run in (a, b)]
    had = [run_card.over_starts(card) if card else {} for card in cards]
    without = [
        run.name
        for run, of in zip((a, b), had, strict=True)
        if not any(name.startswith("versions ") for name in of)
    ]
    if without:
        why = f"versions: {lack(without, 'none in the run card' if all(cards) else 'no run card')}"
        return Section("versions", unknown=[why])
    one, other = (
        {_called(name): _then(of) for name, of in values.items() if name != "code clean"}
        for values in had
    )
    found, code = unequal(one, other), _unknown_code(*had)
    return Section("versions", found, equal=[] if found else ["versions"], unknown=code)


def _unknown_code(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say why equal descriptions of the kit's code may be of different code."""
    commits, changed = (a.get(f"code {name}", [None]) for name in ("commit", "changed"))
    if commits != b.get("code commit", [None]) or changed != b.get("code changed", [None]):
        return []  # it is told as a difference
    if None in commits:
        return ["the kit's code: not started from a git checkout"]
    if names := sorted({name for of in changed for name in of}):
        more = f" and {len(names) - 2} more files" if len(names) > 3 else ""
        named = ", ".join(names[:2] if more else names) + more
        return [f"the kit's code: {named} changed since the commit in both runs"]
    return []


def _called(name: str) -> str:
    part, _, rest = name.partition(" ")
    names = {"code commit": "the kit's commit", "code changed": "files changed since"}
    return names.get(name, rest if part in ("versions", "machine") else name)


def _then(values: Sequence[Any]) -> Any:
    """Return what all starts of a run had, or all values in order."""
    return values[0] if len(values) == 1 else ", then ".join(map(str, values))


def _explained(losses: Section, causes: Sequence[Section], runs: Sequence[Run]) -> Section:
    """Say of losses that differ if nothing else does: then the training is not deterministic."""
    if not losses.says or any(section.differs for section in causes):
        return losses
    on_gpu = any(run.history.start.get("device", "cpu") != "cpu" for run in runs)
    why = " (a GPU adds in no fixed order)" if on_gpu else ""
    then = f"the training is not deterministic{why}"
    said = f"Settings, data and versions are equal: {then}."
    if any(section.unknown for section in causes):
        said = "Settings, data and versions are equal as far as they could be compared: "
        said += f"what could not be is another, or {then}."
    return replace(losses, says=[*losses.says, said])
