"""settings.py: what papermill hands over becomes the right type, or is refused in one sentence."""

import math
import shlex
from typing import Any

import papermill.cli
import pytest

from neoxkit.errors import UserError
from neoxkit.settings import EvaluateSettings, TokenizeSettings, TrainSettings
from neoxkit.validated import Settings, convert


def refusal(make: Any, **values: Any) -> str:
    """The sentence that a mistake is refused with; it is one line."""
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
        (int, 2**53 + 1, 2**53 + 1),  # no float on the way: it would lose the last digit
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
        "learning_rate": ("fast", "write for example 0.002"),
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
            "allow_change: 'lerning_rate' is no setting -- did you mean learning_rate?",
        ),
        (
            TrainSettings,
            {"allow_change": ["weight_decay"]},
            "allow_change: weight_decay can't change in a run -- begin a new run",
        ),
        (
            TrainSettings,
            {"num_train_epochs": 0},
            "num_train_epochs: must be above 0, got 0 -- choose more than 0",
        ),
        (
            TokenizeSettings,
            {"too_long": "crop"},
            "too_long: got 'crop' -- choose one of drop, cut, error",
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
    assert refusal(EvaluateSettings, run=bad).startswith("run: ")
    assert refusal(TokenizeSettings, dataset=bad).startswith("dataset: ")


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


def test_replace_checks_again_and_leaves_the_original() -> None:
    settings = TrainSettings()
    assert settings.replace(learning_rate="1e-5").learning_rate == 1e-5
    assert refusal(settings.replace, learning_rate=-1.0).startswith("learning_rate: must be above")
    assert settings == TrainSettings()


def test_changed_names_exactly_what_differs() -> None:
    assert TrainSettings().changed() == {}
    assert TrainSettings(seed="42", logging_steps=5.0).changed() == {}
    changed = TrainSettings(restart="true", training_arguments={"adam_beta1": 0.8}).changed()
    assert changed == {"restart": True, "training_arguments": {"adam_beta1": 0.8}}


def test_defaults_are_not_shared_between_objects() -> None:
    EvaluateSettings().my_questions.append("kept?")
    assert EvaluateSettings().my_questions == []


@pytest.mark.parametrize(
    "settings",
    [
        TokenizeSettings(),
        TokenizeSettings(agent_name="007", train_file="my data/it's.txt", block_size=64),
        TokenizeSettings(agent_name="None", dataset="1e5", eval_share=1e-4),
        TrainSettings(),
        TrainSettings(run="true", learning_rate=1e-8, restart=True, from_scratch=True),
        TrainSettings(training_arguments={"adam_epsilon": 1e-6, "group_by": "a b", "n": [1, None]}),
        EvaluateSettings(my_questions=["What's 2 + 2?", 'Say "no".', "$HOME `x`", "a: b # c"]),
        EvaluateSettings(my_questions=["Grüße? 你好?", "😀?"], temperature=1.5, do_sample=True),
    ],
    ids=lambda s: f"{s.notebook}-{'-'.join(s.changed()) or 'defaults'}",
)
def test_the_papermill_command_repeats_the_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **given: called.update(given))
    words = shlex.split(settings.papermill_command())
    folder = f"runs/{getattr(settings, 'run', None) or settings.dataset}"
    assert words[:4] == ["mkdir", "-p", folder, "&&"] and words[4] == "papermill"
    papermill.cli.papermill.main(words[5:], standalone_mode=False)
    assert called["input_path"] == f"notebooks/{settings.notebook}.ipynb"
    assert called["output_path"] == f"{folder}/{settings.notebook}.ipynb"
    assert set(called["parameters"]) == set(settings.changed())
    assert type(settings)(**called["parameters"]) == settings
