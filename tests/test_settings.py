"""settings.py: values from papermill get the right type, or are refused in one sentence."""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import papermill.cli
import pytest
from IPython.core.interactiveshell import InteractiveShell

from neoxkit import notebook
from neoxkit.cli import main as cli
from neoxkit.cli import notebooks
from neoxkit.errors import UserError
from neoxkit.fields import Settings, convert
from neoxkit.settings import (
    NOTEBOOKS,
    CompareSettings,
    EvaluateSettings,
    TokenizeSettings,
    TrainSettings,
)

Kernel = Callable[..., str]


def test_every_setting_of_a_training_says_whether_a_resumed_run_may_change_it() -> None:
    assert TrainSettings.with_role("resume", None) == []


def refusal(make: Any, **values: Any) -> str:
    """Return the sentence that refuses a mistake, which must be one line."""
    with pytest.raises(UserError) as caught:
        make(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (bool, "true", True),
        (bool, "False", False),
        (bool, False, False),
        (int, 3.0, 3),
        (int, "280", 280),
        (int, "3.0", 3),
        (int, -1, -1),
        (int, 2**53 + 1, 2**53 + 1),  # not by way of a float, which would lose the last digit
        (int, str(2**53 + 1), 2**53 + 1),
        (float, "2e-5", 2e-5),
        (float, 1, 1.0),
        (float, "1", 1.0),
        (str, "00123", "00123"),
        (str, "", ""),
        (list, ("a", "b"), ["a", "b"]),
        (list, ["a"], ["a"]),
        (dict, {"a": 1}, {"a": 1}),
    ],
)
def test_convert_repairs(kind: type, given: Any, expected: Any) -> None:
    value = convert("name", kind, given)
    assert (value, type(value)) == (expected, kind)


@pytest.mark.parametrize(
    ("kind", "given", "noun"),
    [
        (bool, "yes", "true or false"),
        (bool, 1, "true or false"),
        (int, 2.5, "a whole number"),
        (int, "many", "a whole number"),
        (int, True, "a whole number"),
        (int, math.inf, "a whole number"),
        (int, math.nan, "a whole number"),
        (int, None, "a whole number"),
        (float, "fast", "a number"),
        (float, True, "a number"),
        (float, None, "a number"),
        (list, "one?", "a list"),
        (dict, [1], "a mapping"),
    ],
)
def test_convert_refuses(kind: type, given: Any, noun: str) -> None:
    said = refusal(convert, name="name", kind=kind, value=given)
    assert said.startswith(f"name: must be {noun}")
    assert f"got {given!r} -- write " in said


def test_the_remedy_shows_a_right_value() -> None:
    remedies = {
        "block_size": ("many", "write for example 280"),
        "learning_rate": ("fast", "write for example 1e-05"),
        "restart": ("yes", "write true or false"),
        "training_arguments": (
            "x",
            "write {adam_beta1: 0.9}; at a shell: -p training_arguments '{adam_beta1: 0.9}'",
        ),
    }
    for name, (given, remedy) in remedies.items():
        stage = TokenizeSettings if name == "block_size" else TrainSettings
        assert refusal(stage, **{name: given}).endswith(f" -- {remedy}")


def test_a_number_for_a_text_is_refused_with_the_flag_that_keeps_it() -> None:
    assert refusal(TokenizeSettings, agent_name=123) == (
        "agent_name: got the number 123 for a text -- "
        "quote it in YAML; with papermill: -r agent_name TEXT"
    )


@pytest.mark.parametrize(
    ("make", "values", "sentence"),
    [
        (
            TokenizeSettings,
            {"block_size": 4},
            "block_size: must be at least 8, got 4 -- choose 8 or more",
        ),
        (
            TokenizeSettings,
            {"eval_share": 0.6},
            "eval_share: must be at most 0.5, got 0.6 -- choose 0.5 or less",
        ),
        (
            TrainSettings,
            {"max_steps": 0},
            "max_steps: is 0: no step -- choose 1 or more, or -1: by epochs",
        ),
        (
            TrainSettings,
            {"allow_change": ["lerning_rate"]},
            "allow_change: 'lerning_rate' is not a setting -- did you mean learning_rate?",
        ),
        (
            TrainSettings,
            {"allow_change": ["weight_decay"]},
            "allow_change: weight_decay can't change within a run -- start a new run",
        ),
        (
            TrainSettings,
            {"num_train_epochs": 0},
            "num_train_epochs: must be above 0, got 0 -- choose more than 0",
        ),
        (
            TokenizeSettings,
            {"too_long": "crop"},
            "too_long: got 'crop' -- choose one of drop, cut, split, error",
        ),
        (TrainSettings, {"block_size": 7}, "block_size: must be at least 8, got 7 -- or 0"),
    ],
)
def test_a_broken_rule_names_argument_rule_value_and_remedy(
    make: type[Settings], values: dict[str, Any], sentence: str
) -> None:
    assert refusal(make, **values) == sentence


def test_bounds_themselves_are_allowed() -> None:
    assert TokenizeSettings(block_size=8, eval_share=0.5).changed() == {
        "block_size": 8,
        "eval_share": 0.5,
    }
    assert TrainSettings(block_size=8, max_steps=-1, warmup_steps=0).block_size == 8


@pytest.mark.parametrize("value", [math.nan, "nan"])
def test_nan_is_refused(value: Any) -> None:
    assert refusal(TrainSettings, weight_decay=value) == (
        "weight_decay: is not a number (nan) -- give a number"
    )


def test_endless_training_is_refused_before_steps_are_counted() -> None:
    assert refusal(TrainSettings, num_train_epochs="inf").startswith("num_train_epochs: ")


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".hidden", "a\n"])
def test_names_that_could_leave_their_folder_are_refused(bad: str) -> None:
    assert refusal(TrainSettings, run=bad).startswith(f"run: {bad!r} is not a name")
    assert refusal(TrainSettings, dataset=bad).startswith("dataset: ")
    assert refusal(EvaluateSettings, run=bad).startswith("run: ")
    if bad:
        assert refusal(TokenizeSettings, dataset=bad).startswith("dataset: ")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/sample.txt", "sample"),
        ("/else/where/my.jsonl", "my"),
        ("my talks (2).txt", "my-talks-2"),
        ("../v2.1+a=b.json", "v2.1+a=b"),
        ("Gespräche_你好.txt", "Gespräche_你好"),
        ("-x-.txt", "x"),
        ("~/.hidden", "hidden"),
        (f"{'long' * 50}.txt", "long" * 25),
    ],
)
def test_a_dataset_has_the_name_of_its_file(file: str, name: str) -> None:
    settings = TokenizeSettings(train_file=file)
    assert settings.dataset == name
    assert TokenizeSettings(train_file=file, dataset="mine").dataset == "mine"
    assert settings.replace(block_size=64).dataset == name


def test_a_file_whose_name_gives_none_needs_a_dataset_name() -> None:
    said = "dataset: '???.txt' gives no name -- set a dataset name"
    assert refusal(TokenizeSettings, train_file="data/???.txt") == said
    assert TokenizeSettings(train_file="data/???.txt", dataset="x").dataset == "x"


@pytest.mark.parametrize("bad", [[""], [3], ["  "]])
def test_questions_are_texts(bad: list) -> None:
    assert refusal(EvaluateSettings, my_questions=bad).startswith("my_questions: got ")


def test_from_parameters() -> None:
    names = {**TrainSettings().as_dict(), "learning_rate": "2e-5", "unrelated": object()}
    assert TrainSettings.from_parameters(names) == TrainSettings(learning_rate=2e-5)
    del names["layout"]
    assert refusal(TrainSettings.from_parameters, names=names) == (
        "layout: has no value -- run the parameters cell first"
    )


def mistyped(names: dict[str, Any], settings: type[Settings] = TrainSettings) -> str:
    return refusal(settings.from_parameters, names=names)


PARAMETERS = TrainSettings().as_dict()
SLIP = (
    "lerning_rate: is not a parameter of 02_train -- "
    "did you mean learning_rate? rename it, and run on from the parameters cell"
)


def test_a_mistyped_parameter_is_named_with_the_right_one() -> None:
    assert mistyped({**PARAMETERS, "lerning_rate": 5e-5}) == SLIP
    without = {k: v for k, v in PARAMETERS.items() if k != "learning_rate"}
    assert mistyped({**without, "lerning_rate": 5e-5}) == SLIP  # in a fresh kernel
    for value in ("a", 1, 0.5, True, None, [], {}, ()):
        assert mistyped({**PARAMETERS, "datset": value}).startswith("datset: is not a parameter of")


@pytest.mark.parametrize("settings", NOTEBOOKS)
def test_every_slip_of_a_letter_is_found(settings: type[Settings]) -> None:
    """A slip is a missing or doubled letter; in longer names also a wrong one, or two swapped."""
    plain = settings().as_dict()
    for name in plain:
        for i in range(1, len(name)):
            slips = {name[:i] + name[i - 1 :]} if len(name) > 3 else set()
            slips |= {name[:i] + name[i + 1 :]} if len(name) > 3 else set()
            slips |= {name[:i] + "q" + name[i + 1 :]} if len(name) > 6 else set()
            slips |= (
                {name[: i - 1] + name[i] + name[i - 1] + name[i + 1 :]} if len(name) > 6 else set()
            )
            for slip in slips - {*plain}:
                said = mistyped({**plain, slip: 1}, settings)
                assert said.startswith(f"{slip}: is not a parameter"), (name, slip)


def test_names_that_are_not_slips_pass() -> None:
    """Another word, a private name, and values that no parameter could have."""
    passes = {"rate": 1, "my_file": "a", "_seeds": 1, "seeds": object(), "In": [], "Out": {}}
    assert TrainSettings.from_parameters({**PARAMETERS, **passes}) == TrainSettings()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Run cells one after the other, as a notebook's kernel does; return the last error."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()

    def run(*cells: str) -> str:
        done = [shell.run_cell(cell, store_history=True, silent=False) for cell in cells][-1]
        fault = done.error_in_exec
        return "" if fault is None else str(fault) or repr(fault)

    yield run
    shell.history_manager.end_session()


CELL = "\n".join(
    f"{name}: {type(value).__name__} = {value!r}" for name, value in PARAMETERS.items()
)
SETTLE = "settings = TrainSettings.from_parameters(globals())"
IMPORT = "from neoxkit.settings import TrainSettings"
RENAMED = CELL.replace("learning_rate: ", "lerning_rate: ")
ADDED = f"{CELL}\nlerning_rate = 5e-5"


@pytest.mark.parametrize("wrong", [RENAMED, ADDED])
@pytest.mark.parametrize("before", [(), (CELL, SETTLE)])
def test_the_remedy_for_a_slip_helps_without_a_restart(
    kernel: Kernel, wrong: str, before: tuple[str, ...]
) -> None:
    assert kernel(IMPORT, *before, wrong, SETTLE) == SLIP
    assert kernel(SETTLE) == SLIP  # as long as nothing was corrected
    right = wrong.replace("lerning_rate", "learning_rate").replace(
        "learning_rate: float = 0.0", "learning_rate: float = 5e-5"
    )
    assert kernel(right, SETTLE, "assert settings.learning_rate == 5e-5") == ""


def test_a_slip_in_a_cell_of_its_own(kernel: Kernel) -> None:
    """It is below the parameters, where papermill injects its own; run again, it counts again."""
    assert kernel(IMPORT, CELL, "lerning_rate = 5e-5", SETTLE) == SLIP
    rates = "assert settings.learning_rate == 5e-5"
    assert kernel(CELL, "learning_rate = 5e-5", SETTLE, rates) == ""
    assert kernel("lerning_rate = 1e-5", SETTLE) == SLIP


def test_replace_checks_again_and_leaves_the_original() -> None:
    settings = TrainSettings()
    assert settings.replace(learning_rate="1e-5").learning_rate == 1e-5
    assert refusal(settings.replace, learning_rate=-1.0).startswith("learning_rate: must be at le")
    assert settings == TrainSettings()


def test_changed_names_exactly_what_differs() -> None:
    assert TrainSettings().changed() == {}
    assert TrainSettings(seed="42", logging_steps=5.0).changed() == {}
    changed = TrainSettings(restart="true", training_arguments={"adam_beta1": 0.8}).changed()
    assert changed == {"restart": True, "training_arguments": {"adam_beta1": 0.8}}


def test_defaults_are_not_shared_between_objects() -> None:
    EvaluateSettings().my_questions.append("kept?")
    assert EvaluateSettings().my_questions == []


COMMANDS = [
    TokenizeSettings(),
    TokenizeSettings(agent_name="007", train_file="my data/it's.txt", block_size=64),
    TokenizeSettings(agent_name="None", dataset="1e5", eval_share=1e-4),
    TrainSettings(),
    TrainSettings(run="true", learning_rate=1e-8, restart=True, from_scratch=True),
    TrainSettings(training_arguments={"adam_epsilon": 1e-6, "group_by": "a b", "n": [1, None]}),
    EvaluateSettings(my_questions=["What's 2 + 2?", 'Say "no".', "$HOME `x`", "a: b # c"]),
    EvaluateSettings(my_questions=["Grüße? 你好?", "😀?"], temperature=1.5, do_sample=True),
    TrainSettings(training_arguments={"a": "1e-6", "b": "-1", "c": "null"}, max_steps=-1),
    TrainSettings(hub_model_id="-a/b", learning_rate=1e-5, num_train_epochs=1e-3),
    CompareSettings(runs=["lr.*", "1e5"], score_again=True),
]


@pytest.mark.parametrize(
    "settings",
    COMMANDS,
    ids=lambda s: f"{s.notebook}-{'-'.join(s.changed()) or 'defaults'}",
)
def test_the_papermill_command_repeats_the_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(getattr(settings, k) for k in ("run", "dataset", "name") if hasattr(settings, k))
    folder = f"runs/{name}"
    words = shlex.split(settings.papermill_command())
    assert words[:4] == ["mkdir", "-p", folder, "&&"] and words[4] == "papermill"
    called = of_papermill(words, monkeypatch)
    assert called["input_path"] == f"notebooks/{settings.notebook}.ipynb"
    assert called["output_path"] == f"{folder}/{settings.notebook}.ipynb"
    held = notebook.parameters(notebook.read(settings.notebook))
    assert type(settings)(**{**held, **called["parameters"]}) == settings
    assert set(called["parameters"]) <= set(settings.changed())  # the notebook holds the defaults


def of_papermill(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a papermill command would execute."""
    called: dict[str, Any] = {}
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **given: called.update(given))
    papermill.cli.papermill.main(words[5:], standalone_mode=False)
    return called


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (CELL, {}),
        (CELL.replace("learning_rate: float = 0.0", "learning_rate: float = 5e-05"),
         {"learning_rate": 0.0}),
        (CELL.replace("learning_rate: float = 0.0", "learning_rate: float = 2e-2 / 10"),
         {"learning_rate": 0.0}),
        (CELL.replace("allow_change: list = []", "allow_change: list = ['seed']"),
         {"allow_change": []}),
        (CELL.replace("max_steps: int = -1\n", ""), {"max_steps": -1}),
        (CELL.replace("seed: int = 42", "seed: int = '42'"), {}),
        ("", TrainSettings().as_dict()),
    ],
    ids=["defaults", "another value", "no literal", "a list", "a line less", "42", "no cell"],
)  # fmt: skip
def test_the_papermill_command_names_what_the_notebook_on_disk_does_not_hold(
    held: str, named: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notebooks", "ds_configs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    cell = {"cell_type": "code", "source": held, "metadata": {"tags": ["parameters"]}}
    (tmp_path / "notebooks" / "02_train.ipynb").write_text(json.dumps({"cells": [cell]}))
    words = shlex.split(TrainSettings().papermill_command())
    assert of_papermill(words, monkeypatch)["parameters"] == named
    assert TrainSettings().run_command() == "neoxkit run --only 02_train"


@pytest.mark.parametrize("settings", COMMANDS, ids=lambda s: s.notebook)
def test_the_run_command_repeats_the_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, *words = shlex.split(settings.run_command())
    assert kit == "neoxkit" and words[:3] == ["run", "--only", settings.notebook]
    assert words[4::3] == [*settings.changed()]
    called: list[Any] = []
    monkeypatch.setattr(notebooks, "execute", lambda *given: called.extend(given) or 0)
    assert cli.main(words) == 0
    given, only, on_end = called
    assert on_end == "" and type(settings)(**given) == settings and only == [settings.notebook]
