"""The notebooks in a real JupyterLab under headless Chromium (make test-browser)."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import command, make_home, tokenize, train_to_the_end

pytest.importorskip(
    "playwright", reason="playwright is not installed (pip install -e '.[browser]')"
)

import lab_driver
from test_comparison import make

from neoxkit import files
from neoxkit.runs import lock
from neoxkit.runs.events import append_event, read_events
from neoxkit.runs.folder import ARGUMENTS, FINISHED, finished_facts, standing_of
from neoxkit.settings import TrainSettings

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not lab_driver.CHROMIUM, reason="the Debian package chromium is not installed"
    ),
]
HOSTILE = (
    "User: What is <b>this</b>?\n\n"
    "Agent: <script>window.hacked = 1</script>\x1b[31m.<|endoftext|>\n"
)
WATCH = "dashboard.watch(process.start"
Open = Callable[..., lab_driver.Notebook]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_home(tmp_path_factory.mktemp("home"))
    text = (folder / "data" / "small.txt").read_text()
    (folder / "data" / "hostile.txt").write_text(HOSTILE + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(folder))
        tokenize("small.txt", "small")
        yield folder


@pytest.fixture(scope="module")
def opened(home: Path) -> Iterator[Open]:
    """Open a notebook, or a copy with other parameters that is named after its run."""
    with lab_driver.jupyterlab(home) as address, lab_driver.chromium() as browser:

        def open_notebook(name: str, /, **parameters: object) -> lab_driver.Notebook:
            if parameters:
                source = home / "notebooks" / f"{name}.ipynb"
                own = next(parameters[k] for k in ("run", "dataset", "name") if k in parameters)
                name = f"{name}-{own}"
                lab_driver.set_parameters(source, source.with_stem(name), parameters)
            return lab_driver.Notebook(browser, address, f"notebooks/{name}.ipynb")

        yield open_notebook


def papermill(notebook: str, **parameters: object) -> None:
    flags = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    done = command("neoxkit.cli", "run", "--only", notebook, *flags)
    assert done.returncode == 0, done.stderr


def events(home: Path, run: str, kind: str) -> list[dict]:
    return [e for e in read_events(home / "runs" / run) if e["event"] == kind]


def wait_until(true: Callable[[], object], tab: lab_driver.Notebook) -> None:
    deadline = time.monotonic() + lab_driver.PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        tab.page.wait_for_timeout(100)


def test_01_dials_pages_and_escapes(home: Path, opened: Open) -> None:
    tab = opened("01_tokenize", train_file="data/hostile.txt", dataset="hostile", block_size=280)
    tab.run_all()
    tab.wait_for("data.save(", "Tokenized conversations")
    written = home / "data" / "tokenized" / "hostile" / "manifest.json"
    in_the_browser = files.read_json(written)
    papermill("01_tokenize", train_file="data/hostile.txt", dataset="hostile")
    assert files.read_json(written) == in_the_browser
    dial = "controls.block_size("
    before, kept = tab.picture(dial), tab.outputs(dial).inner_text()
    assert "as the parameters say" in kept
    tab.outputs(dial).locator(".noUi-handle").focus()
    tab.page.keyboard.press("Home")
    tab.wait_for(dial, "block_size: 280 → 64")
    wait_until(lambda: tab.picture(dial) != before, tab)
    assert tab.outputs(dial).inner_text() != kept
    tab.outputs(dial).locator("input[type=text]").fill("77")
    tab.page.keyboard.press("Enter")
    tab.wait_for(dial, "block_size: 280 → 77")
    tab.outputs(dial).locator("input[type=text]").fill("64")
    tab.page.keyboard.press("Enter")
    tab.wait_for(dial, "block_size: 280 → 64")
    pages = "data.pages("
    assert "window.hacked = 1" in tab.outputs(pages).inner_text()
    assert tab.page.evaluate("window.hacked") is None
    tab.outputs(pages).locator(".noUi-handle").focus()
    tab.page.keyboard.press("ArrowRight")
    tab.wait_for(pages, "line 4:")
    for part in ("audit.audit(", "data.save("):  # cells that were run with 280
        tab.run(part)
        tab.wait_for(part, "block_size: the dial says 64, the cells below it were run with 280")
    assert files.read_json(written) == in_the_browser
    tab.run("fitted = selection.fit_sides", "notebook:run-all-below")  # the remedy
    tab.wait_for("data.save(", "Tokenized conversations")
    tab.wait_for("fitted = selection.fit_sides", "longer than 64 tokens")
    assert files.read_json(written)["block_size"] == 64
    assert tab.faults == []
    tab.close()


DIALS = "controls.training("
LABELS = ["learning rate", "block size", "batch size", "accumulation"]


def turn(tab: lab_driver.Notebook, number: int, text: str) -> None:
    """Type a value into the field of one of 02's dials."""
    tab.outputs(DIALS).locator("input[type=text]").nth(number).fill(text)
    tab.page.keyboard.press("Enter")


def test_02_trains_what_its_dials_show_and_not_what_they_showed(home: Path, opened: Open) -> None:
    tab = opened("02_train", dataset="small", run="dialled", max_steps=4, eval_steps=4)
    tab.run(WATCH, "notebook:run-all-above")
    tab.wait_for("command.shell_command(", "--learning_rate 0.002")
    rows = tab.outputs(DIALS).locator(".widget-vbox > .widget-hbox")  # the last are the buttons
    fields = tab.outputs(DIALS).locator("input[type=text]")
    turn(tab, 0, "10")
    rows.nth(0).get_by_text("learning_rate: must be at most 1, got 10").wait_for()
    turn(tab, 1, "4000")
    rows.nth(1).get_by_text("block_size: 4000 is above the dataset's 280").wait_for()
    assert [fields.nth(i).input_value() for i in range(4)] == ["0.002", "0", "16", "1"]
    tab.outputs(DIALS).locator(".noUi-handle").nth(2).focus()
    tab.page.keyboard.press("ArrowRight")
    tab.wait_for(DIALS, "per_device_train_batch_size: 16 → 32")
    assert [text.splitlines()[0] for text in rows.all_inner_texts()[:4]] == LABELS
    turn(tab, 0, "5e-4")
    tab.wait_for(DIALS, "learning_rate: 0.002 → 0.0005")
    tab.run(WATCH, "notebook:run-all-below")
    tab.wait_for(WATCH, "finished · rate 0.0005 · batch 32 · block 280")
    arguments = files.read_json(home / "runs" / "dialled" / ARGUMENTS)
    assert (arguments["learning_rate"], arguments["per_device_train_batch_size"]) == (5e-4, 32)
    tab.wait_for("papermill_command()", "-p learning_rate 0.0005")
    tab.restart_kernel()
    tab.run(WATCH, "notebook:run-all-above")
    tab.wait_for(DIALS, "as the parameters say")
    tab.wait_until_idle()
    tab.run(WATCH)
    tab.wait_for(WATCH, "turn the dial learning_rate to 0.0005 and per_device_train_batch_size to")
    tab.wait_for(DIALS, "this run was started with learning_rate 0.0005 (here 0.002), ")
    tab.outputs(DIALS).get_by_role("button", name="As it was started").press("Space")
    tab.wait_for(DIALS, "learning_rate: 0.002 → 0.0005; per_device_train_batch_size: 16 → 32")
    tab.run(WATCH)
    tab.wait_for(WATCH, "finished · rate 0.0005 · batch 32 · block 280")
    assert tab.faults == []
    tab.close()


def announced(tab: lab_driver.Notebook, part: str, role: str, name: str) -> str | None:
    """Return what a screen reader says of a control's value, found by its role and name."""
    found = tab.outputs(part).get_by_role(role, name=name, exact=True)
    return found.get_attribute("aria-valuetext") if role == "slider" else found.input_value()


def focused(tab: lab_driver.Notebook) -> str:
    """Return the name that a screen reader gives the control with the focus."""
    return tab.page.evaluate("""(() => {
        const at = document.activeElement;
        return at.ariaLabel ?? at.labels?.[0]?.textContent ?? (at.textContent || at.title);
    })()""")


def test_every_dial_of_02_has_a_name_and_needs_no_mouse(opened: Open) -> None:
    tab = opened("02_train", dataset="small", run="by-keyboard")
    tab.run(DIALS, "notebook:run-all-above")
    tab.run(DIALS)
    tab.wait_for(DIALS, "as the parameters say")
    tab.wait_until_idle()
    typed = [f"{label}: type any value, then Enter" for label in LABELS]
    values = ["0.002", "0", "16", "1"]
    assert [announced(tab, DIALS, "slider", label) for label in LABELS] == values
    assert [announced(tab, DIALS, "textbox", name) for name in typed] == values
    tab.outputs(DIALS).get_by_role("slider", name=LABELS[0]).focus()
    reached = [focused(tab)]
    for _ in range(8):
        tab.page.keyboard.press("Tab")
        reached.append(focused(tab))
    pairs = zip(LABELS, typed, strict=True)
    assert reached == [*(name for pair in pairs for name in pair), "Reset"]
    steps = [("ArrowLeft", "0.001"), ("ArrowUp", "64"), ("ArrowRight", "32"), ("End", "256")]
    for label, name, (key, value) in zip(LABELS, typed, steps, strict=True):
        tab.outputs(DIALS).get_by_role("slider", name=label).press(key)
        wait_until(
            lambda name=name, value=value: announced(tab, DIALS, "textbox", name) == value, tab
        )
        assert announced(tab, DIALS, "slider", label) == value
    for label, name, value in zip(LABELS, typed, ["0.0003", "77", "5", "3"], strict=True):
        field = tab.outputs(DIALS).get_by_role("textbox", name=name)
        field.fill(value)
        field.press("Enter")
        wait_until(
            lambda label=label, value=value: announced(tab, DIALS, "slider", label) == value, tab
        )
    tab.wait_for(DIALS, "learning_rate: 0.002 → 0.0003; block_size: 0 → 77; ")
    field.fill("0")
    field.press("Enter")
    tab.outputs(DIALS).get_by_role("alert").get_by_text("must be at least 1").wait_for()
    tab.outputs(DIALS).get_by_role("button", name="Reset").press("Space")
    tab.wait_for(DIALS, "as the parameters say")
    assert [announced(tab, DIALS, "slider", label) for label in LABELS] == values
    assert tab.faults == []
    tab.close()


@pytest.mark.parametrize("files_shown", [True, False])
def test_the_dials_their_cost_and_their_curve_are_on_one_screen(
    opened: Open, files_shown: bool
) -> None:
    tab = opened("02_train", dataset="small", run="one-screen")
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    tab.run(DIALS, "notebook:run-all-above")
    tab.run(DIALS)
    tab.wait_for(DIALS, "as the parameters say")
    tab.outputs(DIALS).locator("img").wait_for()
    if not files_shown:
        tab.command("application:toggle-left-area")
    tab.page.wait_for_timeout(1000)
    cell = tab.page.locator(".jp-Cell").nth(tab.number(DIALS)).bounding_box()
    screen = tab.page.locator(".jp-WindowedPanel-outer").bounding_box()
    assert cell and screen and cell["height"] <= screen["height"]
    tab.close()


def test_a_reopened_notebook_shows_what_it_can_and_says_how_to_get_the_dials(
    home: Path, opened: Open
) -> None:
    tab = opened("02_train", dataset="small", run="reopened", max_steps=4, eval_steps=4)
    tab.run_all()
    tab.wait_for("papermill_command()", "neoxkit run")
    tab.wait_until_idle()
    note, broken = "Run this cell to get the dials.", "Error displaying widget"
    shown = tab.outputs(DIALS)
    assert note not in shown.inner_text() and shown.get_by_role("slider").count() == 4
    tab.outputs(DIALS).get_by_role("slider", name="batch size").press("ArrowRight")
    tab.wait_for(DIALS, "per_device_train_batch_size: 16 → 32")
    pictures = [tab.picture(part) for part in (DIALS, WATCH)]
    tab.command("docmanager:save")
    saved = home / "notebooks" / "02_train-reopened.ipynb"
    wait_until(lambda: "16 → 32" in saved.read_text(), tab)
    tab.restart_kernel()
    tab.wait_for(DIALS, note)  # the old dials would do nothing
    assert not shown.get_by_role("slider").first.is_visible()
    tab.close()
    back = opened("02_train-reopened")
    back.wait_for(DIALS, note)
    text = back.outputs(DIALS).inner_text()
    assert "per_device_train_batch_size: 16 → 32" in text and "optimizer steps" in text
    assert broken not in back.page.locator(".jp-Notebook").inner_text()
    assert [back.picture(part) for part in (DIALS, WATCH)] == pictures and all(pictures)
    back.wait_for(WATCH, "finished")
    back.run(DIALS, "notebook:run-all-above")
    back.run(DIALS)
    back.outputs(DIALS).get_by_role("slider", name="batch size").wait_for()
    assert note not in back.outputs(DIALS).inner_text()
    back.close()


def test_the_pages_of_01_have_names_and_need_no_mouse(opened: Open) -> None:
    pages = "data.pages("
    tab = opened("01_tokenize", train_file="data/small.txt", dataset="paged")
    tab.run(pages, "notebook:run-all-above")
    tab.run(pages)
    number = tab.outputs(pages).get_by_role("slider", name="conversation", exact=True)
    number.wait_for()
    tab.wait_until_idle()
    assert tab.outputs(pages).get_by_role("combobox", name="show").count() == 1
    dial = tab.outputs("controls.block_size(").get_by_role("slider", name="block size")
    assert dial.get_attribute("aria-valuetext") == "280"
    number.press("ArrowRight")
    wait_until(lambda: number.get_attribute("aria-valuetext") == "2", tab)
    tab.outputs(pages).get_by_role("button", name="Next").press("Space")
    wait_until(lambda: number.get_attribute("aria-valuetext") == "3", tab)
    tab.outputs(pages).get_by_role("button", name="Previous").press("Enter")
    wait_until(lambda: number.get_attribute("aria-valuetext") == "2", tab)
    assert tab.faults == []
    tab.close()


def test_the_command_line_ignores_saved_parameters(home: Path, opened: Open) -> None:
    path = home / "notebooks" / "01_tokenize.ipynb"
    committed = path.read_bytes()
    try:
        tab = opened("01_tokenize")
        tab.replace("block_size: int", "block_size: int = 280", "block_size: int = 64")
        tab.command("docmanager:save")
        wait_until(lambda: "block_size: int = 64" in path.read_text(), tab)
        (home / "notebooks" / "uploaded.txt").write_bytes((home / "data/small.txt").read_bytes())
        papermill("01_tokenize", train_file="uploaded.txt")
        data = home / "data" / "tokenized" / "uploaded"
        assert files.read_json(data / files.MANIFEST)["block_size"] == 280
        tab.close()
    finally:
        path.write_bytes(committed)


def stamp(tab: lab_driver.Notebook) -> str:
    """Return the time that the status line says."""
    said = tab.outputs(WATCH).get_by_text(" at ").first.inner_text()
    return re.search(r"at \d\d:\d\d:\d\d", said)[0]


def test_02_draws_stops_and_resumes(home: Path, opened: Open) -> None:
    tab = opened("02_train", dataset="small", run="lab", max_steps=600, eval_steps=300)
    tab.run_all()
    tab.wait_for(WATCH, "left")
    pictures: set[str] = set()
    wait_until(lambda: pictures.add(tab.picture(WATCH)) or len(pictures) >= 3, tab)
    stamps = [stamp(tab) for _ in range(40) if tab.page.wait_for_timeout(250) is None]
    assert len({*stamps}) >= 5  # of ten seconds: the text is new at least every two
    image = tab.outputs(WATCH).locator("img").last
    assert "train loss" in (image.get_attribute("alt") or "")
    assert not (home / "runs" / "lab" / FINISHED).exists()
    tab.command("notebook:interrupt-kernel")
    tab.wait_for(WATCH, "stopped: lab: stopped, step")
    assert standing_of(home / "runs" / "lab").state == "stopped"
    tab.wait_until_idle()
    tab.run_all()
    tab.wait_for("training.summary(", "final eval loss")
    assert finished_facts(home / "runs" / "lab")["step"] == 600
    (stopped,) = events(home, "lab", "stop")
    assert [e["resumed_step"] for e in events(home, "lab", "start")] == [0, stopped["step"]]
    assert tab.faults == []
    tab.close()


def test_after_a_closed_tab_the_training_and_the_whole_curve_remain(
    home: Path, opened: Open
) -> None:
    tab = opened("02_train", dataset="small", run="away", max_steps=500, eval_steps=0.5)
    tab.run_all()
    tab.wait_for(WATCH, "left")
    tab.command("docmanager:save")
    tab.page.wait_for_timeout(1000)
    tab.close()
    step = events(home, "away", "train")[-1]["step"]
    back = opened("02_train-away")
    wait_until(lambda: events(home, "away", "train")[-1]["step"] > step, back)
    back.wait_until_idle()  # the cell has ended, but not the training
    assert standing_of(home / "runs" / "away").state == "training"
    back.run(WATCH)
    back.wait_for(WATCH, "left")
    first = back.picture(WATCH)
    wait_until(lambda: back.picture(WATCH) != first, back)
    cell = nbformat.v4.new_code_cell('from neoxkit.lab import dashboard\n\ndashboard.watch("away")')
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, home / "notebooks" / "second.ipynb")
    second = opened("second")
    second.run_all()
    second.wait_for("watch", "left")
    back.wait_for(WATCH, "finished")
    second.wait_for("watch", "finished")
    assert [e["resumed_step"] for e in events(home, "away", "start")] == [0]
    assert back.faults == second.faults == []
    back.close()
    second.close()


def test_run_all_gives_the_numbers_of_papermill(home: Path, opened: Open) -> None:
    same = {"dataset": "small", "max_steps": 8, "eval_steps": 4}
    tab = opened("02_train", run="run-all", **same)
    tab.run_all()
    tab.wait_for("training.summary(", "final eval loss")
    facts = finished_facts(home / "runs" / "run-all")
    other = finished_facts(train_to_the_end(TrainSettings(run="elsewhere", **same)))
    assert (facts["train_loss"], facts["eval_loss"]) == (other["train_loss"], other["eval_loss"])
    assert tab.faults == []
    tab.close()


# Inserted before the chat box: replies grow slowly enough to be stopped.
SLOWLY = """import time
from neoxkit.models import generation
put = generation._Growing.put
generation._Growing.put = lambda self, ids: (time.sleep(0.05), put(self, ids))
"""


class Talk:
    """The chat box of 03, as a person sees it."""

    def __init__(self, tab: lab_driver.Notebook) -> None:
        self.tab, self.box = tab, tab.outputs("chat.Chat(")
        self.field = self.box.get_by_role("textbox", name="question")
        self.field.wait_for()

    def button(self, name: str) -> Any:
        return self.box.get_by_role("button", name=name)

    def columns(self) -> list[str]:
        return self.box.locator(".widget-html").all_inner_texts()

    def questions(self, count: int) -> list[list[str]]:
        """Wait until so many questions are answered in each column; return them."""
        wait_until(lambda: all(text.count("Agent") == count for text in self.columns()), self.tab)
        self.button("Send").and_(self.box.locator(":enabled")).wait_for()
        return [re.findall(r"User (.*)", text) for text in self.columns()]

    def grows(self) -> bool:
        """Return whether both replies have begun and are growing."""
        return all(re.search(r"Agent \S.*▌", text, re.DOTALL) for text in self.columns())


def test_03_both_models_answer_in_the_chat_box(home: Path, opened: Open) -> None:
    train_to_the_end(TrainSettings(run="talk", dataset="small", max_steps=8, eval_steps=4))
    small = {"run": "talk", "num_questions": 4, "max_new_tokens": 8}
    tab = opened("03_evaluate", **small)
    tab.replace("chat.Chat(", "box =", f"{SLOWLY}box =")
    tab.run_all()
    talk = Talk(tab)
    tab.wait_until_idle()
    talk.field.press_sequentially("What is <b>3</b>")
    tab.page.keyboard.press("Tab")  # the field is left: nothing may be sent
    tab.page.wait_for_timeout(1000)
    talk.field.focus()
    tab.page.keyboard.press("End")
    talk.field.press_sequentially(" plus 4?")
    tab.page.keyboard.press("Enter")
    assert talk.questions(1) == [["What is <b>3</b> plus 4?"]] * 2
    assert [text.split("User")[0].strip() for text in talk.columns()] == ["base", "tuned"]
    assert talk.field.input_value() == ""
    talk.field.press_sequentially("Again?")
    tab.page.keyboard.press("Tab")
    talk.field.focus()
    tab.page.keyboard.press("Enter")  # with a text that was sent before, on leaving the field
    assert talk.questions(2)[0][-1] == "Again?"
    talk.field.press_sequentially("Sent?")
    talk.button("Send").click()
    assert talk.questions(3)[1][-1] == "Sent?"
    talk.button("Undo").click()
    assert talk.questions(2) == [["What is <b>3</b> plus 4?", "Again?"]] * 2
    wait_until(lambda: talk.field.input_value() == "Sent?", tab)
    written = home / "runs" / "talk" / "evaluation.json"
    in_the_browser = files.read_json(written)
    papermill("03_evaluate", **small)
    assert files.read_json(written) == in_the_browser
    assert tab.faults == []
    tab.close()


def test_03_replies_grow_at_once_and_stop_on_request(home: Path, opened: Open) -> None:
    train_to_the_end(TrainSettings(run="stop", dataset="small", max_steps=8, eval_steps=4))
    tab = opened("03_evaluate", run="stop", num_questions=4, max_new_tokens=8)
    tab.replace("chat.Chat(", "box =", f"{SLOWLY}box =")
    tab.run_all()
    talk = Talk(tab)
    tab.wait_until_idle()
    length = talk.box.get_by_role("spinbutton", name="longest reply (tokens)")
    length.fill("1500")
    talk.field.fill("Hi")
    tab.page.keyboard.press("Enter")
    wait_until(talk.grows, tab)
    assert talk.button("Send").is_disabled() and talk.button("Undo").is_disabled()
    tab.run("evaluation.scoreboard(")  # the kernel is free meanwhile
    tab.wait_until_idle()
    assert talk.grows()
    talk.field.focus()
    tab.page.keyboard.press("Tab")  # Send is disabled
    assert tab.page.evaluate("document.activeElement.textContent") == "Stop"
    tab.page.keyboard.press("Space")
    wait_until(lambda: all(t.rstrip().endswith("stopped") for t in talk.columns()), tab)
    assert talk.questions(1) == [["Hi"]] * 2 and talk.button("Stop").is_disabled()
    for _ in range(2):
        talk.button("Keep tuned").click()
    wait_until(lambda: "already kept in" in talk.columns()[1], tab)
    assert (home / "runs" / "stop" / "chat.txt").read_text().count("User: Hi") == 1
    assert tab.faults == []
    tab.close()


def test_04_shows_two_runs_and_what_differs(home: Path, opened: Open) -> None:
    for rate in (1e-3, 2e-3):
        train_to_the_end(
            TrainSettings(run=f"two.{rate}", dataset="small", max_steps=4, learning_rate=rate)
        )
    tab = opened("04_compare", name="both", runs=["two.*"])
    tab.run_all()
    tab.wait_for("comparison.save(", "comparison.json")
    said = tab.outputs("comparison.differences(").inner_text().split()
    assert said.count("learning_rate") == 1 and {"0.001", "0.002"} < {*said}
    assert "two.0.001" in tab.outputs("comparison.table(").inner_text()
    assert tab.picture("comparison.overlay(")
    written = home / "runs" / "both" / "comparison.json"
    in_the_browser = files.read_json(written)
    papermill("04_compare", name="both", runs='["two.*"]')
    assert files.read_json(written) == in_the_browser
    assert tab.faults == []
    tab.close()


def test_the_board_follows_a_live_run_and_draws_what_is_picked(home: Path, opened: Open) -> None:
    """The runs are written by hand; this process holds the lock of the live one."""
    make(home, "ended", 100, [3.0, 2.0])
    growing = make(home, "growing", 100, [3.0, 2.5])
    (growing / FINISHED).unlink()
    held = lock.hold(growing)
    cell = nbformat.v4.new_code_cell("from neoxkit.lab import board\n\nboard.board()")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, home / "notebooks" / "page.ipynb")
    tab, page = opened("page"), "board.board("
    tab.run(page)
    tab.wait_for(page, "training · 20 of 20")
    row = tab.outputs(page).locator("tr", has_text="growing").first
    assert row.locator("svg title").text_content() == "train loss, 3.5000 to 3.0000"
    append_event(
        growing, "train", step=30, loss=2.0, tokens=200, memory_gib=0.5, trained_tokens=100,
        seconds=2.0, padding_share=0.0, tflop=1.0, tokens_per_second=100.0,
    )  # fmt: skip
    tab.wait_for(page, "training · 30 of 20")
    held.close()
    tab.wait_for(page, "killed · 30 of 20")
    tab.wait_until_idle()
    picked = tab.outputs(page).get_by_label("growing")
    other = tab.outputs(page).get_by_label("ended", exact=True)
    assert (picked.is_checked(), other.is_checked()) == (True, False)
    before = tab.picture(page)
    picked.focus()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Space")
    assert other.is_checked()
    wait_until(lambda: tab.picture(page) != before, tab)
    assert tab.faults == []
    tab.close()
