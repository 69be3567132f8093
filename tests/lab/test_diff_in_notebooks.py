"""lab/difference.py: the difference of two runs as tables, of harmless text."""

import re
from pathlib import Path

import pytest
import two_runs
from conftest import tokenize
from two_runs import REPLIES

from neoxkit.lab.difference import difference
from neoxkit.runs.card import CARD

NASTY = "<script>alert('x')</script>\x1b[31m\u202e"
SEEN = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;␛[31m‹U+202E›"


@pytest.fixture
def b(home: Path) -> Path:
    """Make two equal runs, diff-a and diff-b; return the second one's folder."""
    two_runs.made("diff-a")
    return two_runs.made("diff-b")


def test_equal_runs_show_no_table(b: Path) -> None:
    shown = difference("diff-a", "diff-b")
    assert "<table" not in shown.html and "do not differ" in shown.html
    assert shown.text.splitlines()[-1].startswith("- Equal: settings, base, data (400 rows)")


def test_what_differs_is_shown_as_a_table_and_as_text(home: Path, b: Path) -> None:
    two_runs.made("diff-b", seed=7)
    shown = difference("diff-a", "diff-b")
    assert shown._repr_mimebundle_() == {"text/html": shown.html, "text/plain": shown.text}
    assert shown.html.count("<table") == 1 and re.findall("<h4>(.*?)</h4>", shown.html) == [
        "settings"
    ]
    title, (header, row) = shown.text.split("\n\n")[1:3][0], shown.text.split("\n\n")[2].split("\n")
    assert title == "settings" and header.split() == ["diff-a", "diff-b"]
    assert row.split() == ["seed", "42", "7"]


def test_conversations_are_folded_so_that_losses_are_on_the_same_screen(home: Path) -> None:
    two_runs.made("diff-a")
    text = (home / "data" / "small.txt").read_text().partition("<|endoftext|>\n")[2]
    (home / "data" / "other.txt").write_text(text)
    tokenize("other.txt", "other")
    two_runs.made("diff-b", "other")
    shown = difference("diff-a", "diff-b")
    assert "<details><summary>1 conversation only in diff-a</summary><table" in shown.html
    assert "1 conversation only in diff-a:\nwhere" in shown.text


def test_texts_are_escaped_and_follow_the_theme(b: Path) -> None:
    two_runs.replied(b, dict.fromkeys(REPLIES, NASTY))
    two_runs.change(b / CARD, "starts", 0, "versions", to={NASTY: NASTY})
    shown = difference("diff-a", "diff-b", most=2)
    assert shown.html.replace("<wbr>", "").count(SEEN) == 4 and "<script" not in shown.html
    assert "5 of 5 questions are answered differently; the first 2" in shown.text
    for text in (shown.html, shown.text):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "color" not in shown.html and "background" not in shown.html
    assert difference("diff-a", "diff-b", most=None).html.replace("<wbr>", "").count(SEEN) == 7
