"""The rate that fits a base, and the number that a run records."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from zygote import Zygote, job

from neoxkit import files, paths
from neoxkit.cli import notebooks, variants
from neoxkit.errors import UserError
from neoxkit.launch import checks, command, machines
from neoxkit.models import loading, rates
from neoxkit.runs import card as run_card
from neoxkit.runs.events import History, append_event, read_events
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings

# From the papers' tables: parameters (with embeddings), pre-training rate.
PRETRAINED = {
    "pythia-14m": (14_067_712, 1e-3),
    "pythia-31m": (30_494_720, 1e-3),
    "pythia-70m": (70_426_624, 1e-3),
    "pythia-160m": (162_322_944, 6e-4),
    "pythia-410m": (405_334_016, 3e-4),
    "pythia-1b": (1_011_781_632, 3e-4),
    "pythia-1.4b": (1_414_647_808, 2e-4),
    "pythia-2.8b": (2_775_208_960, 1.6e-4),
    "pythia-6.9b": (6_857_302_016, 1.2e-4),
    "pythia-12b": (11_846_072_320, 1.2e-4),
    "gpt-neox-20b": (20_554_567_680, 0.97e-4),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_rate_by_size(name: str) -> None:
    num_parameters, rate = PRETRAINED[name]
    if name in machines.SHAPES:
        assert machines.num_parameters(*machines.SHAPES[name]) == num_parameters
    own = rates.by_size(f"EleutherAI/{name}", num_parameters)
    assert own.rate == pytest.approx(rate / 10, rel=1e-12)
    assert own.why.lower() == f"0.1 of what {name} was pre-trained with"
    scratch = rates.by_size(name, num_parameters, from_scratch=True)
    assert scratch.rate == rate and scratch.why.lower() == f"what {name} was pre-trained with"
    assert rates.by_size(name, num_parameters, lora=True).rate == pytest.approx(rate, rel=1e-12)


def test_a_size_between_two_takes_the_rate_of_the_nearest_in_ratio() -> None:
    middle = (160e6 * 410e6) ** 0.5  # 256 M; halfway between the numbers is 285 M
    assert rates.by_size("x", int(0.99 * middle)).rate == 6e-5
    assert rates.by_size("x", int(1.01 * middle)).rate == 3e-5
    assert rates.by_size("x", 1000).rate == 1e-4 and rates.by_size("x", 10**12).rate == 9.7e-6


def test_tiny_starts_from_random_weights_however_it_is_trained() -> None:
    for from_scratch in (False, True):
        for lora in (False, True):
            assert rates.of("tiny", from_scratch, lora).rate == 2e-3


@pytest.fixture
def pretrained(home: Path) -> str:
    """Make a folder with a model's files, which counts as pretrained whatever its weights are."""
    folder = home / "data" / "models" / "of-mine"
    if not folder.is_dir():
        loading.load_model("tiny").save_pretrained(folder)
        loading.load_tokenizer("tiny").save_pretrained(folder)
    return "data/models/of-mine"


SMALL = TrainSettings(run="rated", dataset="small")


def test_a_base_without_a_shape_is_refused_in_one_line(home: Path) -> None:
    folder = home / "data" / "models" / "t5"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"^model_name_or_path: data/models/t5 is not a causal"):
        checks.check(SMALL.replace(model_name_or_path="data/models/t5"))


def test_a_rate_of_0_becomes_a_number_in_the_arguments(home: Path, pretrained: str) -> None:
    def rate(**changes: object) -> float:
        return command.trainer_arguments(SMALL.replace(**changes))["learning_rate"]

    assert rate() == 2e-3
    assert rate(model_name_or_path=pretrained) == 1e-4
    assert rate(model_name_or_path=pretrained, lora_rank=4) == 1e-3
    assert rate(model_name_or_path=pretrained, from_scratch=True) == 1e-3
    assert rate(model_name_or_path=pretrained, learning_rate=7e-4) == 7e-4
    assert command.complete(SMALL).learning_rate == 2e-3
    assert command.complete(SMALL.replace(dataset="none-yet"), pretrained).learning_rate == 1e-4
    assert "--learning_rate 0.0001 " in command.shell_command(
        SMALL.replace(model_name_or_path=pretrained)
    )


def test_a_resumed_run_keeps_the_same_number(home: Path, pretrained: str) -> None:
    settings = SMALL.replace(run="goes-on", model_name_or_path=pretrained)
    folder = paths.run("goes-on")
    folder.mkdir(parents=True)
    files.write_json(folder / ARGUMENTS, checks.check(settings).arguments)
    append_event(folder, "train", step=5)
    assert checks.check(settings).arguments["learning_rate"] == 1e-4
    assert checks.check(settings.replace(learning_rate=1e-4)).arguments["learning_rate"] == 1e-4


def test_a_rate_far_above_is_reported_in_a_sentence(home: Path, pretrained: str) -> None:
    mine = SMALL.replace(model_name_or_path=pretrained)
    assert command.doubts(mine.replace(learning_rate=2e-3)) == [
        "learning_rate 0.002 is 20 times what fits this base "
        "(0.0001, 0.1 of what Pythia-14m was pre-trained with)"
    ]
    for fine in (mine, mine.replace(learning_rate=5e-4), SMALL, SMALL.replace(learning_rate=2e-3)):
        assert command.doubts(fine) == []
    assert command.doubts(None) == []


def test_a_sweep_over_0_has_a_name_and_trains_the_number(home: Path) -> None:
    fixed = {"run": "swept", "dataset": "small"}
    made = variants.variants(fixed, {"learning_rate": [0.0, 1e-3]})
    assert [v.settings.run for v in made] == [
        "swept.learning_rate=0.0",
        "swept.learning_rate=0.001",
    ]
    assert [checks.check(v.settings).arguments["learning_rate"] for v in made] == [2e-3, 1e-3]


NOTE = "note: learning_rate 0.002 is 20 times what fits this base (0.0001, "


@pytest.mark.parametrize("only", [["02_train"], None], ids=["02", "all"])
def test_the_terminal_warns_before_the_first_notebook(
    home: Path, pretrained: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    only: list[str] | None,
) -> None:  # fmt: skip
    """The warning comes whether 02 names the base itself or takes the model of 01."""
    ended = type("Fault", (), {"ename": "UserError", "evalue": "x: y -- z"})()
    monkeypatch.setattr(notebooks, "_execute", lambda *_: ended)
    values = {"run": "noted", "dataset": "noted" if only is None else "small"}
    values |= {"model_name_or_path": pretrained, "learning_rate": 2e-3}
    assert notebooks.execute(values, only) == 2
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(NOTE) and second.startswith("[1/")
    notebooks.execute(values | {"learning_rate": 5e-4}, only)
    notebooks.execute({k: v for k, v in values.items() if k != "learning_rate"}, only)
    assert "note: learning_rate" not in capsys.readouterr().out


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_the_trainer_warns_however_it_is_started(
    home: Path, pretrained: str, zygote: Zygote, config: str
) -> None:
    """Under ZeRO-3 a rank holds a part of each weight but counts the whole."""
    settings = SMALL.replace(
        run=f"rated-{config}", model_name_or_path=pretrained, max_steps=1, num_replies=0,
        ds_config=config, learning_rate=2e-3,
    )  # fmt: skip
    assert zygote.run(job(settings)) == [0]
    (start,) = History.of_run(paths.run(settings.run)).of("start")
    assert start["learning_rate"] == 2e-3
    assert f"note: {start['notices'][-1]}".startswith(NOTE) and len(start["notices"]) == 1


@pytest.mark.process
def test_02_trains_a_pretrained_base_with_a_tenth_of_its_rate(home: Path, pretrained: str) -> None:
    small = {"dataset": "small", "max_steps": 2, "num_replies": 0, "eval_steps": 2}
    values = {"run": "tenth", "model_name_or_path": pretrained, **small}
    assert notebooks.execute(values, ["02_train"]) == 0
    folder = paths.run("tenth")
    assert files.read_json(folder / ARGUMENTS)["learning_rate"] == 1e-4
    start, *_, done = read_events(folder)
    assert (start["learning_rate"], start["notices"], done["event"]) == (1e-4, [], "done")
    said = (folder / "02_train.ipynb").read_text()
    assert "rate 0.0001 · batch 16 · block 280" in said
    assert "-p learning_rate 0.0001" in said and "--learning_rate 0.0001" in said
    assert "0.0001 (0.1 of what Pythia-14m was pre-trained with)" in said
    assert re.search(r"learning_rate +0\.0001 +by the base", said)
    changed = dict(run_card.rows(folder))["settings that differ from the defaults"]
    assert "learning_rate 0.0001" in changed
