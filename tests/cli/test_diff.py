"""difference.py: `neoxkit diff` in 80 columns, in a pipe, and as JSON."""

import io
import json
import re
from pathlib import Path

import pytest
import two_runs
from two_runs import LOSSES, REPLIES

from neoxkit import paths
from neoxkit.cli import difference as cli_difference
from neoxkit.cli import main as cli
from neoxkit.cli import screen
from neoxkit.evaluation import difference

CapSys = pytest.CaptureFixture[str]
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
NASTY = "\x1b[31mred\x1b]0;title\x07 \u202eevil\r\n\tlast\x9b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def b(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two equal runs, diff-a and diff-b; return the second one's folder."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    two_runs.made("diff-a")
    return two_runs.made("diff-b")


def shown(monkeypatch: pytest.MonkeyPatch, columns: int = 80, everything: bool = False) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = difference.of_runs("diff-a", "diff-b", None if everything else difference.FIRST)
    return "\n".join(cli_difference.lines(found, Terminal(), everything))


def test_equal_runs_are_one_line_and_exit_code_0(b: Path, capsys: CapSys) -> None:
    assert cli.main(["diff", "diff-a", "diff-b"]) == 0
    assert capsys.readouterr().out == (
        "diff-a and diff-b do not differ.\n"
        "Equal: settings, base, data (400 rows), versions, training losses (4), eval losses (3), "
        "final weights, replies (5)\n"
    )


def test_in_a_pipe_what_differs_is_a_table_and_exit_code_1(home: Path, capsys: CapSys) -> None:
    two_runs.made("diff-a")
    folder = two_runs.made("diff-b", seed=7)
    two_runs.trained(folder, LOSSES | {8: 2.5})
    two_runs.replied(folder, {**REPLIES, "What is 1 plus 1?": ""})
    assert cli.main(["diff", "diff-a", "diff-b"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "diff-a and diff-b differ in settings, losses, replies.",
        "",
        "settings",
        "        diff-a  diff-b",
        "  seed  42      7",
        "",
        "losses",
        "                               diff-a  diff-b  difference",
        "  training loss, steps 7 to 8  2.2500  2.5000  +0.25",
        "  1 of 4 training losses differ, from steps 7 to 8 on.",
        "",
        "replies",
        "  1 of 5 questions is answered differently",
        "",
        "    asked   User: What is 1 plus 1?",
        "    diff-a  2",
        "    diff-b  (nothing)",
        "",
        "Equal: base, data (400 rows), versions, eval losses (3)",
    ]


def test_a_table_that_is_too_wide_is_a_block_for_each_value(home: Path, capsys: CapSys) -> None:
    two_runs.made("diff-a")
    two_runs.made("diff-b", seed=7, training_arguments={"lr_scheduler_kwargs": {"x": "y" * 200}})
    cli.main(["diff", "diff-a", "diff-b"])
    assert capsys.readouterr().out.splitlines()[3:9] == [
        "  seed",
        "    diff-a  42",
        "    diff-b  7",
        "  lr_scheduler_kwargs",
        "    diff-a  none",
        f"    diff-b  {{'x': '{'y' * 200}'}}",
    ]


def test_a_mistake_is_one_line_and_exit_code_2(b: Path, capsys: CapSys) -> None:
    assert cli.main(["diff", "diff-a", "dif-b"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: runs: 'dif-b' is not a run here -- did you mean diff-b?\n")
    assert cli.main(["diff", "diff-a"]) == 2
    assert "missing argument 'B'" in capsys.readouterr().err
    assert cli.main(["difference", "diff-a", "diff-b"]) == 2
    assert "did you mean diff?" in capsys.readouterr().err


def test_as_json(home: Path, capsys: CapSys) -> None:
    two_runs.made("diff-a")
    two_runs.replied(two_runs.made("diff-b", seed=7), dict.fromkeys(REPLIES, "?" * 300))
    assert cli.main(["diff", "--json", "diff-a", "diff-b"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["differs"]) == (["diff-a", "diff-b"], True)
    assert [*found["sections"]] == ["settings", "data", "versions", "losses", "replies"]
    settings, replies = found["sections"]["settings"], found["sections"]["replies"]
    assert settings["unequal"] == [{"name": "seed", "a": 42, "b": 7, "by": None}]
    (listed,) = replies["listed"]
    assert (listed["count"], len(listed["rows"])) == (5, 3)
    assert listed["rows"][0]["diff-b"] == "?" * 300  # whole
    cli.main(["diff", "--json", "--all", "diff-a", "diff-b"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["sections"]["replies"]["listed"][0]["rows"]) == 5
    cli.main(["diff", "--help"])
    said = capsys.readouterr().out
    assert all(field in said for field in (*settings, *settings["unequal"][0], *listed))


@pytest.mark.parametrize("columns", [80, 60])
def test_every_line_fits(home: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Also a text without a space, in letters that are two columns wide."""
    two_runs.made("diff-a")
    arguments = {"adam_beta1": 0.8, "lr_scheduler_kwargs": {f"name_{i}": i for i in range(20)}}
    folder = two_runs.made("diff-b", seed=7, training_arguments=arguments)
    two_runs.replied(folder, {asked: "模型" * 300 for asked in REPLIES})
    for everything in (False, True):
        said = ESCAPE.sub("", shown(monkeypatch, columns, everything))
        assert max(map(screen.width, said.split("\n"))) <= columns
        assert ("--all shows every one" in " ".join(said.split())) != everything
        assert ("…" in said) != everything and "  5 of 5 questions are" in said
        assert said.count("模") == (5 * 300 if everything else 3 * 60)


def test_long_names_that_no_cut_tells_apart_are_shown_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{'a' * 30}{n}{'b' * 30}" for n in (1, 2)]
    for name in names:
        two_runs.replied(two_runs.made(name), {"Why?": f"of {name[30]}"})
    monkeypatch.setenv("COLUMNS", "80")
    said = "\n".join(cli_difference.lines(difference.of_runs(*names), Terminal()))
    assert "of 1" in said and "of 2" in said


def test_colours_are_on_a_terminal_alone(b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (b / "replies.jsonl").unlink()
    two_runs.trained(b, LOSSES | {8: 2.5})
    said = shown(monkeypatch)
    assert "\x1b[1mlosses\x1b[0m" in said and "\x1b[32mEqual:\x1b[0m settings" in said
    assert "\x1b[33mNot compared:\x1b[0m replies: diff-b was not evaluated by 03" in said
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(monkeypatch)


def test_nothing_of_a_text_acts_in_the_terminal(b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_runs.replied(b, {f"{NASTY} {asked}": reply for asked, reply in REPLIES.items()})
    two_runs.replied(paths.run("diff-a"), {f"{NASTY} {asked}": NASTY for asked in REPLIES})
    monkeypatch.setenv("NO_COLOR", "1")
    said = shown(monkeypatch, 400)
    assert not re.search(r"[^\n\x20-\x7e…␀-␡‹›]", said)
    assert said.count("␛[31mred␛]0;title␇ ‹U+202E›evil␍␊␉last‹U+009B›") == 6


def test_a_long_reply_is_shown_from_where_it_differs(
    b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = " ".join(f"w{i}" for i in range(500))
    two_runs.replied(paths.run("diff-a"), {"Why?": f"{same} here"})
    two_runs.replied(b, {"Why?": f"{same} there "})
    said = shown(monkeypatch)
    assert re.search(r"diff-a  ….{40}here\n", said) and re.search(r"diff-b  ….{40}there␠", said)
    assert "w0" in shown(monkeypatch, everything=True)
