"""Shared fixtures: a separate home for runs, with a small dataset from the built-in sample."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crashes import crashes  # noqa: F401 - a fixture
from zygote import Zygote, job

from neoxkit import errors, hub_faults, machine, paths
from neoxkit.launch import checks, process
from neoxkit.launch.command import environment
from neoxkit.runs.events import History, read_events
from neoxkit.settings import TrainSettings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"  # if it is beside the checkout
STEPS = 8
BASE = TrainSettings(
    dataset="small",
    max_steps=STEPS,
    per_device_train_batch_size=8,
    logging_steps=2,
    eval_steps=4,
    save_steps=4,
    save_total_limit=5,
)
PATIENCE_SECONDS = 300.0  # only what hangs takes this long; no test asserts a time
NUM_CONVERSATIONS = 400  # from the sample, in the small dataset


# A shell that runs the tests in the background ignores these, and so would every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Per rank: equal bytes need the same number, and tiny models need no more.
os.environ["OMP_NUM_THREADS"] = "1"


def make_home(folder: Path) -> Path:
    """Make a root with the kit's notebooks and configs, a small sample, and the built-in model."""
    for name in ("notebooks", "ds_configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    (folder / "data" / "models").mkdir(parents=True)
    for name in ("sample.txt", "sample_questions.jsonl"):
        shutil.copy(REPOSITORY / "data" / name, folder / "data")
    from neoxkit.models import tiny

    shutil.copytree(tiny.tiny_folder(), folder / "data" / "models" / "tiny")
    conversations = (folder / "data" / "sample.txt").read_text().split("<|endoftext|>\n")
    small = "".join(f"{c}<|endoftext|>\n" for c in conversations[:NUM_CONVERSATIONS])
    (folder / "data" / "small.txt").write_text(small)
    questions = (folder / "data" / "sample_questions.jsonl").read_text().splitlines()[::12]
    (folder / "data" / "small_questions.jsonl").write_text("\n".join(questions) + "\n")
    return folder


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one home for the whole session, tokenized as `small`; each test names its own runs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = make_home(tmp_path_factory.mktemp("home"))
        patch.setenv("NEOXKIT_HOME", str(folder))
        tokenize("small.txt", "small")
    return folder


@pytest.fixture(autouse=True)
def _no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every CPU for one without bf16, so that `precision auto` means the same on all."""
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)


@pytest.fixture
def home(session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the session's home as the kit's root."""
    monkeypatch.setenv("NEOXKIT_HOME", str(session_home))
    monkeypatch.chdir(session_home)
    return session_home


@pytest.fixture(autouse=True)
def a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask no hub whether it answers, and forget those that did not."""
    monkeypatch.setattr(hub_faults, "_answers", lambda _: True)
    monkeypatch.setattr(hub_faults, "_asked", {})
    monkeypatch.setattr(hub_faults, "_cut_off", set())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start ranks; other tests with processes are marked one by one."""
    for item in items:
        if "zygote" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def zygote(session_home: Path) -> Iterator[Zygote]:
    """Start ranks in a third of the time, without launcher and guard."""
    zygote = Zygote(session_home, environment(1))
    yield zygote
    zygote.close()


def tokenize(file: str, dataset: str, model: str = "tiny", **changes: object) -> None:
    """Do what 01_tokenize does, without the notebook."""
    from neoxkit.data import encoding, manifests, reading, selection, tokenized
    from neoxkit.models import loading, model_names
    from neoxkit.settings import TokenizeSettings

    settings = TokenizeSettings(
        train_file=f"data/{file}", dataset=dataset, model_name_or_path=model, **changes
    )
    sources = reading.read_sides(settings)
    tokenizer = loading.load_tokenizer(settings.model_name_or_path)
    encoded = {
        side: encoding.encode_file(tokenizer, source, sources["train"].names, settings.train_on)
        for side, source in sources.items()
    }
    fitted = selection.fit_sides(encoded, settings.block_size, settings.too_long)
    rows = {side: kept for side, (kept, _) in fitted.items()}
    shares = settings.eval_share, settings.seed, settings.test_share
    sides, _ = selection.split_rows(rows["train"], rows.get("eval"), *shares)
    manifest = manifests.make_manifest(
        settings.as_dict(),
        model_names.portable(settings.model_name_or_path),
        tokenizer,
        sources,
        {side: counts for side, (_, counts) in fitted.items()},
        sides,
    )
    tokenized.save(sides, paths.tokenized(dataset), manifest)


def train_to_the_end(settings: TrainSettings) -> Path:
    """Train and return the run folder; raises when it failed."""
    training = process.start(settings)
    while training.poll() is None:
        time.sleep(0.1)
    training.check()
    return training.folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Run `python -m ...` and capture what it says."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, **options
    )


def losses(folder: Path, event: str = "train") -> list[float]:
    return [e["loss"] for e in History(metrics(folder)).of(event)]


class Outputs(list):
    """A stand-in for IPython's display: the current content of each output, in order."""

    def __call__(self, thing: Any, **_: Any) -> Any:
        at = len(self)
        self.append(thing)
        return type("Handle", (), {"update": lambda _, new: self.__setitem__(at, new)})()


@pytest.fixture
def starts_sooner(home: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace process.start by ranks that start faster and run to the end."""

    class Ended:
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def poll(self) -> int:
            return 0

        def check(self) -> None:
            last = read_events(self.folder)[-1]
            if last["event"] == "error":
                if last["kind"] in errors.KINDS:
                    raise errors.from_fields(last)
                raise errors.TrainingError(errors.sentence(last))

    def start(settings: TrainSettings, **trial: Any) -> Ended:
        checks.check(settings, **trial)
        zygote.run(job(settings, **trial))
        return Ended(paths.run(settings.run))

    monkeypatch.setattr(process, "start", start)
