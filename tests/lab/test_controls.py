"""controls.py without a browser: sliders show the parameters, and change nothing silently."""

import re
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest

from neoxkit import files, machine, paths
from neoxkit.data import selection
from neoxkit.data.table import COLUMNS, Table, from_parts
from neoxkit.errors import UserError
from neoxkit.lab import controls, dials, frontend, view
from neoxkit.launch import command, forecast, measured, nodes
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TokenizeSettings, TrainSettings


class Screen:
    """A stand-in for IPython's display: the current content of each output, in order."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def __call__(self, thing: Any, **_: Any) -> Any:
        at = len(self.shown)
        self.shown.append(thing)
        return type("Handle", (), {"update": lambda _, new: self.shown.__setitem__(at, new)})()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(dials, "display", screen)
    monkeypatch.setattr(frontend, "display", screen)
    monkeypatch.setattr(machine, "num_gpus", lambda: 0)
    monkeypatch.setattr(machine, "available_gib", lambda: 10.0)
    monkeypatch.setattr(measured, "last_run", lambda *_: None)
    return screen


def table(*lengths: int) -> Table:
    """Make one conversation per line with these lengths; the second half of each is a reply."""
    parts = [
        {name: np.zeros(1, kind) for name, kind in COLUMNS.items()}
        | {
            "ids": np.arange(n, dtype=np.int32),
            "replies": np.array([[n // 2, n - 1, n]], np.int32),
            "length": np.array([n], np.int32),
            "num_replies": np.ones(1, np.int32),
            "line": np.array([line], np.int32),
            "key": np.array([bytes([line])], "S16"),
            "chars": np.array([4 * n], np.int32),
            "shortest": np.array([n], np.int32),
        }
        for line, n in enumerate(lengths, start=1)
    ]
    return from_parts(parts, "agent")


def manifest(block_size: int) -> dict[str, Any]:
    return {"block_size": block_size, "model_name_or_path": "tiny", "revision": ""}


ROWS = table(10, 50, 70, 70, 130, 300)


def dial(control: dials.Controls, label: str) -> list[ipywidgets.Widget]:
    """Return a dial's slider, its field, and the message beside them."""
    rows = [w for w in control.box.children if isinstance(w, ipywidgets.HBox)]
    return next(list(row.children) for row in rows if row.children[0].description == label)


def slider(control: dials.Controls, label: str) -> ipywidgets.SelectionSlider:
    return dial(control, label)[0]


def field(control: dials.Controls, label: str) -> ipywidgets.Text:
    return dial(control, label)[1]


def mistake(control: dials.Controls, label: str) -> str:
    return dial(control, label)[2].value


LABELS = ("learning rate", "block size", "batch size", "accumulation")
TRAIN = TrainSettings(learning_rate=2e-3)  # what fits tiny


def training(**changes: Any) -> dials.Controls:
    """Make 02's dials over three conversations."""
    return controls.training(TRAIN.replace(**changes), [10, 130, 300], [5, 60, 150], manifest(300))


def press(control: dials.Controls, label: str) -> None:
    buttons = control.box.children[-1].children
    next(w for w in buttons if w.description == label).click()


@pytest.mark.parametrize("value", [8, 77, 280, 300, 9999])
def test_the_parameter_is_on_the_block_size_slider(screen: Screen, value: int) -> None:
    control = controls.block_size(TokenizeSettings(block_size=value), ROWS)
    size = slider(control, "block size")
    values = list(size.options)
    assert size.value == value == control.settings.block_size and value in values
    assert values == sorted(set(values)) and 300 in values  # the longest conversation, too
    assert not size.continuous_update
    assert control.overrides() == {}


@pytest.mark.parametrize(("rate", "block_size"), [(2e-3, 0), (1.234e-4, 77), (0.9, 128), (1e-9, 8)])
def test_the_parameters_are_on_the_training_sliders(
    screen: Screen, rate: float, block_size: int
) -> None:
    settings = TrainSettings(learning_rate=rate, block_size=block_size)
    control = controls.training(settings, [10, 130, 300], [5, 60, 150], manifest(300))
    assert slider(control, "learning rate").value == rate
    assert slider(control, "block size").value == block_size
    assert control.settings == settings and control.overrides() == {}


def test_dials_work_without_a_conversation(screen: Screen) -> None:
    control = controls.block_size(TokenizeSettings(), ROWS.select(slice(0)))
    assert slider(control, "block size").value == 280


def test_moving_a_dial_overrides_visibly_and_reset_restores(screen: Screen) -> None:
    settings = TokenizeSettings(block_size=280, seed=3)
    control = controls.block_size(settings, ROWS)
    before = screen.shown[2]
    slider(control, "block size").value = 64
    assert control.settings == settings.replace(block_size=64)
    assert control.overrides() == {"block_size": (280, 64)}
    assert "block_size: 280 → 64" in screen.shown[2].text
    assert "block_size: 280 → 64" in screen.shown[2].html
    assert settings == TokenizeSettings(block_size=280, seed=3)  # the parameters are unchanged
    press(control, "Reset")
    assert control.settings == settings and control.overrides() == {}
    assert slider(control, "block size").value == 280
    assert screen.shown[2] == before
    assert "as the parameters say" in screen.shown[2].text


def test_two_sliders_add_up(screen: Screen) -> None:
    settings, control = TRAIN, training()
    slider(control, "learning rate").value = 2e-5
    slider(control, "block size").value = 64
    assert control.settings == settings.replace(learning_rate=2e-5, block_size=64)
    assert control.overrides() == {"learning_rate": (2e-3, 2e-5), "block_size": (0, 64)}
    slider(control, "learning rate").value = 2e-3
    assert control.overrides() == {"block_size": (0, 64)}
    control.reset()
    assert control.settings == settings


def test_any_value_can_be_typed_and_widens_the_slider(screen: Screen) -> None:
    settings, control = TRAIN, training()
    assert field(control, "learning rate").value == "0.002"
    field(control, "learning rate").value = "0.9"  # the slider ends at 0.01
    assert slider(control, "learning rate").value == 0.9
    field(control, "learning rate").value = " 3.3e-5"  # and has no such value
    assert slider(control, "learning rate").value == 3.3e-5 == control.settings.learning_rate
    values = list(slider(control, "learning rate").options)
    assert values == sorted(values) and {3.3e-5, 0.9, 2e-3} < set(values)
    assert "learning_rate: 0.002 → 3.3e-05" in screen.shown[2].text
    slider(control, "learning rate").value = 1e-5
    assert field(control, "learning rate").value == "1e-05"
    field(control, "batch size").value = "1,024"
    assert control.settings.per_device_train_batch_size == 1024
    press(control, "Reset")
    assert field(control, "learning rate").value == "0.002" and control.settings == settings


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [
        ("learning rate", "fast", "learning_rate: must be a number, got &#x27;fast&#x27;"),
        ("learning rate", "-1", "learning_rate: must be at least 0"),
        ("learning rate", "0,001", "learning_rate: must be a number, got &#x27;0,001&#x27;"),
        ("learning rate", "", "learning_rate: must be a number"),
        ("batch size", "2.5", "per_device_train_batch_size: must be a whole number"),
        ("block size", "5", "block_size: must be at least 8"),
        ("block size", "301", "block_size: "),  # more than the dataset's
        ("block size", "<script>", "must be a whole number, got &#x27;&lt;script&gt;&#x27;"),
    ],
)
def test_a_wrong_value_is_refused_in_a_line(
    screen: Screen, label: str, text: str, said: str
) -> None:
    """The message is beside its own dial; the field shows the value in use again."""
    settings, control = TRAIN, training()
    before, shown = list(screen.shown), field(control, label).value
    field(control, label).value = text
    assert said in mistake(control, label)
    assert [other for other in LABELS if mistake(control, other)] == [label]
    assert field(control, label).value == shown == str(slider(control, label).value)
    assert control.settings == settings and screen.shown == before
    field(control, label).value = "0.5" if label == "learning rate" else "64"
    assert mistake(control, label) == "" and control.settings != settings


@pytest.mark.parametrize("act", ["slider", "field", "reset"])
def test_a_message_goes_with_the_next_change_of_any_dial(screen: Screen, act: str) -> None:
    control = training()
    field(control, "learning rate").value = "10"
    field(control, "block size").value = "4000"
    assert mistake(control, "learning rate") and mistake(control, "block size")
    if act == "slider":
        slider(control, "batch size").value = 32
    elif act == "field":
        field(control, "accumulation").value = "3"
    else:
        press(control, "Reset")
    assert [mistake(control, label) for label in LABELS] == [""] * 4
    assert [field(control, label).value for label in LABELS[:2]] == ["0.002", "0"]


def test_a_rate_of_0_is_a_number_on_the_dial(screen: Screen) -> None:
    control = training(learning_rate=0)
    assert control.settings == TRAIN and control.overrides() == {}
    assert slider(control, "learning rate").value == 2e-3
    field(control, "learning rate").value = "5e-4"
    field(control, "learning rate").value = "0"
    assert field(control, "learning rate").value == "0.002" and control.settings == TRAIN
    assert 0 not in slider(control, "learning rate").options


def test_a_rate_far_above_what_fits_is_pointed_out(screen: Screen) -> None:
    control = training()
    assert facts(screen)["learning rate"] == "0.002 (tiny starts from random weights)"
    slider(control, "learning rate").value = 1e-2  # five times
    assert facts(screen)["learning rate"].startswith("0.01; what fits this base is 0.002 (")
    field(control, "learning rate").value = "0.011"
    assert facts(screen)["learning rate"] == (
        "FAR ABOVE WHAT FITS: 0.011 is 6 times 0.002 (tiny starts from random weights)"
    )


def test_what_the_dial_no_longer_shows_is_not_written(screen: Screen) -> None:
    """In 01 the remedy is to run the cells below the dial again; they use its value."""
    control = controls.block_size(TokenizeSettings(block_size=280), ROWS)
    chosen = control.settings
    control.require(chosen)
    slider(control, "block size").value = 64
    with pytest.raises(UserError) as refused:
        control.require(chosen)
    assert str(refused.value) == (
        "block_size: the dial says 64, the cells below it were run with 280 -- "
        "run them again from 'Keep, cut, drop'"
    )
    control.require(control.settings)
    notebook = (paths.root() / "notebooks" / "01_tokenize.ipynb").read_text()
    after = notebook.partition("controls.block_size(")[2]
    assert after.index(dials.BELOW_THE_DIAL) < after.index("chosen = control.settings")
    assert after.count("control.require(chosen)") == 2


@pytest.mark.parametrize("too_long", ["drop", "cut", "error"])
def test_the_consequences_are_those_of_selection_fit(screen: Screen, too_long: str) -> None:
    settings = TokenizeSettings(block_size=280, too_long=too_long)
    control = controls.block_size(settings, ROWS)
    for size in (280, 64, 300):
        slider(control, "block size").value = size
        shown = "cut" if too_long == "cut" else "drop"  # "error" is shown as what it would drop
        _, counts = selection.fit(ROWS, size, shown)
        for row in counts.rows():
            assert re.search(r" +".join(map(re.escape, row)), screen.shown[2].text)
        padding = 1 - counts.tokens / (counts.kept * size)
        assert f"{counts.kept} of {size} tokens, {padding:.0%} padding" in screen.shown[2].text


def test_the_command_is_that_of_the_settings(screen: Screen) -> None:
    control = controls.training(TrainSettings(run="x"), [10, 130], [5, 60], manifest(130))
    for rate in (2e-5, 1e-3):
        slider(control, "learning rate").value = rate
        line = control.settings.papermill_command()
        assert screen.shown[2].text.splitlines()[-1] == line
        assert view.command(line).html in screen.shown[2].html
        assert f"-p learning_rate {rate}" in line


def test_what_matters_is_shown_and_the_rest_is_folded(screen: Screen) -> None:
    control = training()
    names = ["optimizer steps", "time", "memory", "left out"]
    assert shown_rows(screen) == names
    slider(control, "learning rate").value = 1e-2  # five times what fits: not folded any more
    assert shown_rows(screen) == names
    field(control, "learning rate").value = "0.011"
    assert shown_rows(screen) == ["learning rate", *names]
    assert [*facts(screen)].count("learning rate") == 1
    controls.block_size(TokenizeSettings(), ROWS)
    assert view.escape("conversations read") in screen.shown[-2].html.partition("<details>")[0]
    assert "rows per epoch" in screen.shown[-2].html.partition("<details>")[2]


def shown_rows(screen: Screen) -> list[str]:
    """Return the first column of the consequences' table that is not folded."""
    shown = screen.shown[2].html.partition("<details>")[0]
    return re.findall(r"<tr><td[^>]*>(.*?)</td>", shown)


def test_a_run_that_goes_on_says_how_it_was_started_and_a_button_turns_the_dials(
    home: Path, screen: Screen
) -> None:
    """The parameters win: the dials open at them, also where dials had changed them."""
    run = paths.run("dialled-before")
    run.mkdir(parents=True)
    asked = TRAIN.replace(run=run.name, dataset="small")
    was = asked.replace(learning_rate=5e-4, per_device_train_batch_size=32)
    files.write_json(run / ARGUMENTS, command.trainer_arguments(was))

    def opened(**changes: Any) -> dials.Controls:
        settings = asked.replace(**changes)
        return controls.training(settings, [10, 130, 300], [5, 60, 150], manifest(280))

    def says() -> str:
        return next((x for x in screen.shown[-2].text.splitlines() if dials.RUN_WAS in x), "")

    opened()
    assert says() == ""  # it never made a step: it is started anew
    (run / "checkpoint-1").mkdir()
    control = opened()
    assert control.settings == asked and control.overrides() == {}
    assert says() == (
        "this run was started with learning_rate 0.0005 (here 0.002), "
        "per_device_train_batch_size 32 (here 16); 'As it was started' turns the dials to it"
    )
    button = control.box.children[-1].children[1]
    assert (button.description, button.layout.display) == (dials.AS_STARTED, None)
    button.click()
    assert control.settings == was and says() == "" and button.layout.display == "none"
    assert control.overrides() == {
        "learning_rate": (2e-3, 5e-4), "per_device_train_batch_size": (16, 32),
    }  # fmt: skip
    press(control, "Reset")
    assert control.settings == asked and says() and button.layout.display is None
    for free in ({"restart": True}, {"run": "never-started"}):
        opened(**free)
        assert says() == ""


def lines(shown: view.View) -> dict[str, str]:
    rows = [line.split("  ") for line in shown.text.splitlines() if "  " in line]
    return {parts[0]: parts[-1].strip() for parts in rows}


def facts(screen: Screen) -> dict[str, str]:
    return lines(screen.shown[2])


def test_training_consequences_are_counted(screen: Screen) -> None:
    settings = TrainSettings(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        num_ranks=2,
        layout="padded",
    )
    lengths, trained = [10] * 15 + [100] * 5, [5] * 15 + [25] * 5
    control = controls.training(settings, lengths, trained, manifest(280))
    said = facts(screen)
    assert said["left out"] == "nothing: all 20 conversations are trained on"
    assert said["optimizer steps"] == "9 (3 per epoch)"  # 10 rows per rank, 5 batches, 3 steps
    assert said["effective batch (one step)"] == "8 conversations, about 260 tokens, 2 rank(s)"
    assert said["rows per epoch, padded"] == "20 of 280 tokens, 88% padding"
    assert said["time"].startswith("unknown")
    assert said["correction"].startswith("not measured: ")
    slider(control, "batch size").value = 64  # more than there are
    assert facts(screen)["effective batch (one step)"].startswith(
        "256 conversations, all there are, about 650"
    )
    slider(control, "batch size").value = 2
    slider(control, "block size").value = 64
    said = facts(screen)
    assert said["left out"] == "5 of 20 conversations, 62.5% of the trained tokens"
    assert said["optimizer steps"] == "6 (2 per epoch)"
    assert said["rows per epoch, padded"] == "15 of 64 tokens, 84% padding"
    rates = screen.shown[3].axes[0].get_lines()[0].get_ydata()
    assert len(rates) == 6 and max(rates) <= control.settings.learning_rate == 2e-3


def test_several_nodes_are_named_with_what_their_network_carries(screen: Screen) -> None:
    settings = TrainSettings(
        launcher="slurm", num_nodes=2, num_ranks=4, gradient_accumulation_steps=2
    )
    controls.training(settings, [10] * 200, [5] * 200, manifest(280))
    said = facts(screen)
    assert said["effective batch (one step)"].endswith("8 rank(s) on 2 nodes")
    assert (
        said["network"].startswith("at least ") and "GiB into each node a step" in said["network"]
    )
    assert controls._network(TrainSettings(), "tiny") == []


def test_the_time_comes_from_the_last_run_and_the_memory_from_the_forecast(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = measured.Measured(paths.run("old"), 1, False, 100.0, 3.0, 1600.0, 800.0)
    monkeypatch.setattr(measured, "last_run", lambda *_: last)
    asked = []

    def forecast_of(settings: TrainSettings, *_: object) -> forecast.Forecast:
        asked.append(settings)
        return forecast.Forecast({"weights": 0.2}, 1.0, 9)

    monkeypatch.setattr(forecast, "forecast", forecast_of)
    control = controls.training(TrainSettings(), [100] * 40, [50] * 40, manifest(100))
    slider(control, "batch size").value = 64  # more than there are
    assert asked[-1] == control.settings and asked[-1].per_device_train_batch_size == 64
    said = facts(screen)
    assert said["memory"] == "needs about 0.2 GiB per rank; 1 GiB free here"
    assert said["time"].startswith("about 3 min")  # 4 epochs of 40 x 100 at 100 per second


@pytest.mark.parametrize("correction", [1.0, 1.5])
def test_01_forecasts_what_02_would_with_its_defaults(
    home: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch, correction: float
) -> None:
    """At each block size, micro-batch and correcting run are those of 02."""
    plain = TrainSettings()
    if correction > 1:
        run = paths.run(f"took{correction}")
        run.mkdir(parents=True, exist_ok=True)
        arguments = command.trainer_arguments(plain.replace(run=run.name, dataset="small"))
        files.write_json(run / ARGUMENTS, arguments)
        job = forecast.job_of(plain, "tiny", nodes.of(plain))
        took = correction * sum(job.rank_gib(1600, 800).values())
        last = measured.Measured(run, 1, False, 100.0, took, 1600.0, 800.0)
        monkeypatch.setattr(measured, "last_run", lambda *_: last)
    monkeypatch.setattr(machine, "available_gib", lambda: 2.0)
    control = controls.block_size(TokenizeSettings(block_size=280), ROWS)
    for size in (280, 64):
        slider(control, "block size").value = size
        said = lines(screen.shown[2])
        kept, _ = selection.fit(ROWS, size)
        controls.training(plain, kept.length, kept.trained, manifest(size))
        by = "corrected by run took1.5" if correction > 1 else "not measured yet"
        wanted = lines(screen.shown[-2])
        assert said["memory"] == f"{wanted['memory']}; {by}"
        assert said["largest micro-batch"] == f"{wanted['largest micro-batch']}; 02 starts with 16"
        assert ("all times 1.50" in wanted["correction"]) == (correction > 1)


def test_01_says_what_will_not_fit_and_what_is_not_a_model(
    home: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may hold only a tokenizer; the host is mentioned only if it is too small."""
    monkeypatch.setattr(machine, "available_gib", lambda: 0.1)
    controls.block_size(TokenizeSettings(), ROWS)
    said = lines(screen.shown[-2])
    assert said["memory"].startswith("DOES NOT FIT: needs about ")
    assert said["memory"].endswith(" GiB per rank; 0.1 GiB free here; not measured yet")
    assert said["largest micro-batch"] == "about 0 conversations; 02 starts with 16"
    for gib, shown in ((4.0, True), (6.0, False)):
        found = forecast.Forecast({}, 24.0, 9, host={"loading": 5.0}, host_gib=gib)
        assert ("memory of the host" in dict(controls._in_brief(found, 16)[0])) == shown
    (home / "tokens").mkdir(exist_ok=True)
    controls.block_size(TokenizeSettings(model_name_or_path="tokens"), ROWS)
    said = lines(screen.shown[-2])
    assert said["memory"].startswith("unknown: tokens ")
    assert "largest micro-batch" not in said


def test_a_saved_notebook_says_what_the_sliders_were(screen: Screen) -> None:
    controls.training(
        TrainSettings(learning_rate=1e-5, block_size=64), [10, 130], [5, 60], manifest(130)
    )
    assert screen.shown[0]["text/plain"] == (
        "(dials, with a kernel: learning_rate 1e-05, block_size 64, "
        "per_device_train_batch_size 16, gradient_accumulation_steps 1)"
    )
