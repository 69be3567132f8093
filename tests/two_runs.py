"""Two finished runs on the small dataset, written by hand: equal, so that a test changes one."""

import json
import shutil
from pathlib import Path
from typing import Any

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.launch import command
from neoxkit.runs.card import CARD
from neoxkit.runs.events import METRICS, append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, FINISHED
from neoxkit.settings import TrainSettings

STARTED = {
    "resumed_step": 0, "planned_steps": 8, "num_ranks": 1, "precision": "fp32", "tf32": False,
    "attention": "sdpa", "row_tokens": 280, "block_size": 280, "optimizer": "adamw",
    "learning_rate": 2e-3, "device": "cpu", "vocabulary": 1024,
}  # fmt: skip
TRAINED = {
    "tokens": 200, "trained_tokens": 100, "seconds": 1.0, "padding_share": 0.0, "tflop": 1.0,
    "memory_gib": 0.5,
}  # fmt: skip
LOSSES = {2: 4.0, 4: 3.0, 6: 2.5, 8: 2.25}
EVALS = {0: 6.0, 4: 3.5, 8: 2.5}
START = {
    "code": {"commit": "c" * 40, "clean": True, "changed": []},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": {"system": "Linux-6", "cpu": "AMD EPYC", "cores": 2, "gpus": [], "cuda": None},
    "threads_a_rank": "2",
}
REPLIES = {f"What is {n} plus 1?": f"{n + 1}" for n in range(5)}


def made(name: str, dataset: str = "small", **changes: Any) -> Path:
    """Make a finished run in the kit's root: its folder, with every file that a run has but the
    model; `changes` are settings of 02."""
    folder = paths.run(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = paths.tokenized(dataset)
    settings = TrainSettings(run=name, dataset=dataset, learning_rate=2e-3, **changes)
    files.write_json(folder / ARGUMENTS, command.trainer_arguments(settings))
    shutil.copy(data / files.MANIFEST, folder / DATASET)
    card = {
        "dataset_sha256": tokenized.sha256(data), "base_commit": "", "from_scratch": False,
        "base_sha256": {"config.json": "a" * 64, "model.safetensors": "b" * 64},
        "ds_config": {"gradient_clipping": 1.0, "zero_optimization": {"stage": 2}},
        "starts": [START],
    }  # fmt: skip
    files.write_json(folder / CARD, card)
    trained(folder, dataset=dataset)
    weights = {"model_sha256": {"model.safetensors": "e" * 64}}
    files.write_json(folder / FINISHED, weights | {"step": 8, "planned_steps": 8})
    replied(folder)
    return folder


def trained(
    folder: Path,
    losses: dict[int, float] = LOSSES,
    evals: dict[int, float] = EVALS,
    dataset: str = "small",
    **start: Any,
) -> None:
    """Write a run's metrics anew, with these losses by step."""
    (folder / METRICS).unlink(missing_ok=True)
    place = paths.short(paths.tokenized(dataset))
    append_event(folder, "start", step=0, dataset=place, **STARTED | start)
    for step in sorted({*losses, *evals}):
        if step in losses:
            append_event(folder, "train", step=step, loss=losses[step], **TRAINED)
        if step in evals:
            append_event(folder, "eval", step=step, loss=evals[step], trained_tokens=50)


def replied(folder: Path, replies: dict[str, str] = REPLIES, **settings: Any) -> None:
    """Write what 03 writes: the tuned model's replies by question."""
    how = {"max_new_tokens": 64, "do_sample": False, "temperature": 0.7, "seed": 0} | settings
    files.write_json(folder / "evaluation.json", {"settings": how})
    lines = [
        {"prompt": f"User: {asked}\n\nAgent:", "set": "held out", "kind": "all", "reference": None,
         "base": {"text": "?", "exact": None}, "tuned": {"text": reply, "exact": None}}
        for asked, reply in replies.items()
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "replies.jsonl").write_text(text)


def change(path: Path, *keys: Any, to: Any) -> None:
    """Change one value, deep in a JSON file."""
    found = inner = files.read_json(path)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    files.write_json(path, found)
