"""screen.py: what fits into a terminal of 80 or 60 columns, and when it is coloured."""

import io
import re

import pytest

from neoxkit.cli import screen

ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
NAMES = [
    f"night.learning_rate={rate}.batch_size={size}" for rate in (5e-4, 2e-3) for size in (8, 16)
]
HEADER = ("run", "state", "step", "train loss", "eval loss")
ROWS = [(name, "finished", "1,192 of 1,192", "0.0494", "0.0427") for name in NAMES]
DROP = ("train loss", "step")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_a_file_gets_every_column_whole_and_without_colour() -> None:
    lines = screen.table(ROWS, HEADER, io.StringIO(), DROP)
    assert [line.split("  ")[0] for line in lines] == ["run", *NAMES]
    assert all(name in lines[0] for name in HEADER)
    assert not any(ESCAPE.search(line) for line in lines)
    long = "word " * 60
    assert screen.wrapped(long, io.StringIO(), 4) == long


@pytest.mark.parametrize("columns", [200, 100, 80, 60, 40])
def test_a_table_fits_and_says_what_it_left_out(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = screen.table(ROWS, HEADER, terminal, DROP)
    assert max(map(screen.width, lines)) <= columns
    shown = ESCAPE.sub("", "\n".join(lines))
    missing = [name for name in DROP if name not in lines[0]]
    said = re.findall(r"more columns in a wider terminal: (.*(?:\n.*)?)", shown)
    assert set(re.split(r",\s*", said[0]) if said else []) == set(missing)
    assert missing == list(DROP[: len(missing)])  # the least important first
    assert shown.count("finished") == shown.count("0.0427") == 4


def test_names_are_shortened_only_when_no_column_is_left_to_drop(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(map(len, NAMES))
    room = longest + len("  finished  eval loss")
    monkeypatch.setenv("COLUMNS", str(room))
    assert all(name in "\n".join(screen.table(ROWS, HEADER, terminal, DROP)) for name in NAMES)
    monkeypatch.setenv("COLUMNS", str(room - 1))
    assert screen.CUT in "\n".join(screen.table(ROWS, HEADER, terminal, DROP))
    kept = screen.table(ROWS, HEADER, terminal, DROP, shortest=20)  # names first, down to 20
    assert "step" in kept[0] and screen.CUT in kept[1]


@pytest.mark.parametrize("room", [39, 36, 33, 30])
def test_shortened_names_still_differ(room: int) -> None:
    made = screen.shortened(tuple(NAMES), room)
    assert len(set(made)) == len(NAMES)
    assert all(len(name) <= room for name in made)
    assert not any(re.search(r"\d…|…\d", name) for name in made)  # half a number is another one


@pytest.mark.parametrize("room", [40, 30, 20])
def test_a_sweeps_runs_keep_their_values(room: int) -> None:
    swept = [f"night.learning_rate={r}.batch_size={n}" for r in ("1e-05", "3e-05") for n in (8, 16)]
    for name, made in zip(swept, screen.shortened(tuple(swept), room), strict=True):
        assert re.findall(r"=([^.]+)", made) == re.findall(r"=([^.]+)", name)


def test_a_column_in_which_nothing_stands_takes_no_room(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    lines = screen.table([("a" * 30, "waiting", "", "", "")], HEADER, terminal, DROP)
    assert lines == [f"run{' ' * 27}  state", f"{'a' * 30}  waiting"]


def test_a_terminal_for_nothing_and_a_table_of_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    lines = screen.table(ROWS, HEADER, terminal, DROP)
    assert [line.split()[0] for line in lines[1:5]] == [screen.CUT] * 4
    assert screen.table([], HEADER, terminal, DROP) == ["run"]


def test_wide_characters_count_twice(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [("模型" * 20, "failed", "", "", "2.5"), ("short", "failed", "", "", "2.5")]
    lines = screen.table(rows, HEADER, terminal, DROP)

    def columns(text: str) -> int:
        return sum(2 if char > "\u2e80" else 1 for char in text)

    assert max(map(columns, lines)) <= 40
    # Both states stand in the same column.
    assert len({columns(line.partition("failed")[0]) for line in lines[1:]}) == 1


@pytest.mark.parametrize("columns", [80, 60])
def test_columns_that_all_count_go_below_each_other(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    header = ("model", *(f"{n} x 24 GiB" for n in range(1, 7)))
    rows = [
        (f"pythia-{i}", *(f"zero2_offload {i}{n}, host 13" for n in range(1, 7))) for i in (1, 2)
    ]
    lines = screen.stacked(rows, header, terminal)
    assert max(map(screen.width, lines)) <= columns
    text = "\n".join(lines)
    assert all(
        text.count(cell) == 1 for row in (header[1:], *(row[1:] for row in rows)) for cell in row
    )
    blocks = text.split("\n\n")
    assert len(blocks) > 1 and all(b.split("\n")[1].startswith("pythia-1 ") for b in blocks)
    assert len(screen.stacked(rows, header, io.StringIO())) == 3


def test_a_text_is_broken_between_words_and_a_path_never(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    path = "/a/path/that/is/longer/than/the/terminal"
    lines = screen.wrapped(f"note: the file is in {path} and it is large", terminal, 6).split("\n")
    assert lines == ["note: the file is in", f"      {path}", "      and it is large"]


@pytest.mark.parametrize(
    ("values", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], coloured: bool
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    said = [screen.painted(state, terminal) for state in ("finished", "failed", "training")]
    said += [screen.label(f"{label}: it rises", terminal) for label in ("warning", "error")]
    assert [bool(ESCAPE.search(text)) for text in said] == [coloured] * 5
    plain = ["finished", "failed", "training", "warning: it rises", "error: it rises"]
    assert [ESCAPE.sub("", text) for text in said] == plain
    assert len({*said}) == 5 and screen.painted("waiting", terminal) == "waiting"


def test_what_takes_long_is_named_and_gone_when_it_is_over(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen.sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), screen.busy("reading the model"):
        assert terminal.getvalue() == "reading the model ..."
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(screen.sys, "stderr", io.StringIO())
    with screen.busy("reading the model"):
        assert screen.sys.stderr.getvalue() == ""
