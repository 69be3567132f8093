"""Trainings that are started, broken and resumed: few conversations, a model with dropout."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from zygote import Sabotage, Zygote, job

from neoxkit import files, paths
from neoxkit.runs.folder import finished_facts, state_of
from neoxkit.settings import TrainSettings

STEPS_AN_EPOCH = 8
BASE = TrainSettings(
    dataset="few",
    model_name_or_path="data/models/dropout",
    logging_steps=2,
    lr_scheduler_type="constant",  # one step too many would show
    warmup_steps=0,
    eval_steps=6,
    num_replies=0,
)
KINDS = [(1, 2), (1, 3), (2, 2), (2, 3)]  # ranks, ZeRO stage
SHORT = {"max_steps": 6, "save_steps": 2}  # the second save is at step 4
LONG = {"max_steps": 3 * STEPS_AN_EPOCH, "save_steps": 3}

_numbers = itertools.count(1)  # every run of a session has its own name


@dataclass
class Crashes:
    """Trainings that are started, broken and resumed; counts what should never happen."""

    zygote: Zygote
    false_successes: int = 0
    num_broken: int = 0
    unbroken: dict[str, str] = field(default_factory=dict)  # a run's kind: its weights' SHA-256

    def settings(self, kind: tuple[int, int], **changes: Any) -> TrainSettings:
        """Return the settings of a new run."""
        ranks, stage = kind
        return BASE.replace(
            run=f"crash-{next(_numbers)}",
            num_ranks=ranks,
            ds_config=f"zero{stage}",
            per_device_train_batch_size=8 // ranks,
            **changes,
        )

    def broken(self, settings: TrainSettings, sabotage: Sabotage) -> list[int]:
        """Run a training that must not finish; return its exit codes."""
        codes = self.zygote.run(job(settings, sabotage))
        self.num_broken += 1
        if not any(codes) or state_of(paths.run(settings.run)) == "finished":
            self.false_successes += 1
        return codes

    def resumes(self, settings: TrainSettings) -> str:
        """Resume; return the SHA-256 of the final weights, empty if it fails."""
        codes = self.zygote.run(job(settings))
        folder = paths.run(settings.run)
        if any(codes) or state_of(folder) != "finished":
            return ""
        facts = finished_facts(folder)
        if facts["step"] != facts["planned_steps"]:
            return ""
        sha256 = files.sha256(folder / "model" / "model.safetensors")
        shutil.rmtree(folder.resolve())
        return sha256

    def expected(self, settings: TrainSettings) -> str:
        """Return the SHA-256 that an unbroken run with these settings gives."""
        kind = json.dumps(settings.as_dict() | {"run": ""})
        if kind not in self.unbroken:
            again = settings.replace(run=f"{settings.run}-unbroken")
            self.unbroken[kind] = self.resumes(again)
            assert self.unbroken[kind]
        return self.unbroken[kind]


@pytest.fixture(scope="module")
def crashes(session_home: Path, zygote: Zygote) -> Iterator[Crashes]:
    from conftest import tokenize

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        patch.chdir(session_home)
        text = (session_home / "data" / "small.txt").read_text().split("<|endoftext|>\n")
        few = "".join(f"{c}<|endoftext|>\n" for c in text[: 9 * STEPS_AN_EPOCH])
        (session_home / "data" / "few.txt").write_text(few)
        tokenize("few.txt", "few", eval_share=1 / 9)
        model = session_home / "data" / "models" / "dropout"
        shutil.copytree(session_home / "data" / "models" / "tiny", model, dirs_exist_ok=True)
        config = json.loads((model / "config.json").read_text())
        config |= {"attention_dropout": 0.1, "hidden_dropout": 0.1}
        (model / "config.json").write_text(json.dumps(config))
        yield Crashes(zygote)
