"""view.py: nothing from a file or a model acts in the page, and plain text says the same."""

import re
import unicodedata
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neoxkit.data import audit
from neoxkit.data.places import NO_PLACES
from neoxkit.data.table import Encoded
from neoxkit.lab import data, evaluation, training, view
from neoxkit.lab.view import View
from neoxkit.settings import CompareSettings, TrainSettings

# Markup, ANSI colours, bidi controls, NUL, DEL, C1, private use, half a character, zero width.
NASTY = {
    "<script>alert('x')</script>": "<script>alert('x')</script>",
    '<img src=x onerror="a">&amp;': '<img src=x onerror="a">&amp;',
    "a\x1b[31mred": "a␛[31mred",
    "\u202eevil\u2066": "‹U+202E›evil‹U+2066›",
    "nul\0": "nul␀",
    "\r\x7f\x9b": "␍‹U+007F›‹U+009B›",
    "\ue000\ud800\u200b\ufeff": "‹U+E000›‹U+D800›‹U+200B›‹U+FEFF›",
}
HARMLESS = "Grüße 你好 😀 — ‘x’\tand\nmore"
TAGS = re.compile(
    r"</?(table|thead|tbody|tr|t[dh]|ul|li|p|div|span|strong|progress|details|summary|wbr)"
    r"( [^<>]*)?>"
)


def seen(html: str) -> str:
    """Return an HTML view's text; only view.py's tags and no raw controls are allowed."""
    for tag in re.findall(r"<[^>]*>", html):
        assert TAGS.fullmatch(tag), tag
    text = re.sub(r"<[^>]*>", "", html)
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html
    )
    for entity, char in (("lt", "<"), ("gt", ">"), ("quot", '"'), ("#x27", "'"), ("amp", "&")):
        text = text.replace(f"&{entity};", char)
    return text


def both(shown: View) -> tuple[str, str]:
    bundle = shown._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    return seen(bundle["text/html"]), bundle["text/plain"]


@pytest.mark.parametrize(("given", "shown"), NASTY.items())
def test_visible(given: str, shown: str) -> None:
    assert view.visible(given) == shown


def test_visible_leaves_text_alone() -> None:
    assert view.visible(HARMLESS) == HARMLESS


@pytest.mark.parametrize(("given", "shown"), NASTY.items())
def test_table_and_sentences_escape(given: str, shown: str) -> None:
    for made in (
        view.alert([given]),
        view.table([(given, 1)]),
        view.table([("x", 1)], (given, "n")),
        view.sentences([given]),
        view.sentences([], none=given),
    ):
        html, text = both(made)
        assert shown in html and shown in text


def test_table_holds_the_same_in_both_forms() -> None:
    shown = view.table([("a", 1), ("long name", 2.5)], ("what", "n"))
    assert shown.text == "what       n\na          1\nlong name  2.5"
    rows = re.findall("<tr>(.*?)</tr>", shown.html)
    cells = [re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    assert cells == [["what", "n"], ["a", "1"], ["long name", "2.5"]]
    assert both(view.table([])) == ("", "")


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_an_alert_is_visible_in_both_themes(background: str) -> None:
    """WCAG 2 asks for a contrast of 3 to 1 in graphics; the words have the theme's colour."""
    shown = view.alert(["the loss rose", "so did the other"])
    assert f"border-left:6px solid {view.ALERT_COLOUR};" in shown.html
    assert not re.search(r"[;\"]color:", shown.html)
    light, dark = sorted((luminance(view.ALERT_COLOUR), luminance(background)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3
    assert shown.text == "warning: the loss rose\nwarning: so did the other"


def test_without_warnings_an_alert_takes_no_room() -> None:
    assert view.alert([]) == view.NOTHING
    line = View("<p>a</p>", "a")
    assert line + view.alert([]) == view.NOTHING + line == line


def test_settings_table_shows_what_differs_and_folds_the_rest() -> None:
    given = TrainSettings(run="b")
    shown = view.settings_table(given.replace(learning_rate=1e-5), given, ["a note"])
    names = list(TrainSettings().as_dict())
    head, _, folded = shown.html.partition("<details><summary>")
    assert re.findall(r"<tr><td[^>]*>(.*?)</td>", head) == ["run", "learning_rate"]
    assert folded.startswith(f"the other {len(names) - 2} settings have their defaults</summary>")
    rest = re.findall(r"<tr><td[^>]*>(.*?)</td>", folded)
    assert rest == [name for name in names if name not in ("run", "learning_rate")]
    table, count, note = shown.text.split("\n\n")
    lines = [re.split("  +", line) for line in table.splitlines()[1:]]
    assert [line[:3] for line in lines] == [
        ["run", "'b'", "changed"], ["learning_rate", "1e-05", "by the base"],
    ]  # fmt: skip
    assert count == f"(the other {len(names) - 2} settings have their defaults)"
    assert note == "- a note"


def test_settings_table_counts_defaults() -> None:
    plain = view.settings_table(CompareSettings())
    assert plain.text == "(all 3 settings have their defaults)"
    assert plain.html.count("<tr>") == 3


def test_what_is_off_says_so_in_a_sentence_that_names_its_parameter() -> None:
    plain = TrainSettings()
    assert training.probe(plain).text == "No probe: probe_steps is 0."
    assert training.range_test(plain).text == "No range test: range_test_steps is 0."


class Letters:
    """A tokenizer with one token per byte; `~` is its special token."""

    all_special_ids = (ord("~"),)

    def decode(self, ids: list[int]) -> str:
        try:
            return bytes(ids).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return bytes(ids).decode("utf-8", "replace")


def row(text: str, trained: str) -> Encoded:
    ids = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)
    marks = trained * len(ids) if len(trained) == 1 else trained
    return Encoded(ids, np.array([c == "x" for c in marks]), (), line=7)


def spans(shown: view.View) -> list[tuple[str, str, str]]:
    return re.findall('<span style="([^"]*)" title="([^"]*)">(.*?)</span>', shown.html, re.DOTALL)


def test_trained_tokens_marks_exactly_the_trained_tokens() -> None:
    shown = data.trained_tokens(row("abcdefg", ".xx..xx"), Letters())
    html, text = both(shown)
    caption = "line 7: 7 tokens, 4 of them trained (coloured)"
    assert text == f"a⟦bc⟧de⟦fg⟧\n({caption})"
    assert html == f"abcdefg{caption}"
    assert "".join(said for style, _, said in spans(shown) if "background" in style) == "bcfg"
    assert [title for _, title, _ in spans(shown)] == [str(ord(c)) for c in "abcdefg"]


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    shown = data.trained_tokens(row("a€b", "x"), Letters())
    assert [(title, said) for _, title, said in spans(shown)] == [
        ("97", "a"), ("226 130 172", "€"), ("98", "b"),
    ]  # fmt: skip
    broken = data.trained_tokens(row("€", ".xx"), Letters())  # trained from its middle on
    assert ["background" in style for style, _, _ in spans(broken)] == [False, True]


def test_special_tokens_are_marks() -> None:
    styles = [style for style, _, _ in spans(data.trained_tokens(row("a~", "x"), Letters()))]
    assert ["border:1px solid;" in style for style in styles] == [False, True]


def test_findings_count_and_name_lines() -> None:
    class Rows:
        places = NO_PLACES

        def column(self, name: str) -> np.ndarray:
            return {"line": np.arange(1, 9)}[name]

        def __len__(self) -> int:
            return 8

    found = [audit.Finding("is <odd>", {"train": Rows(), "eval": Rows()})]
    html, text = both(data.findings(found))
    assert "8 (lines 1, 2, 3, 4, 5, ...)" in text and "is <odd>" in html
    assert text.splitlines()[0].split("  ")[0] == "a conversation ..."


def test_the_audit_says_what_to_change_where_it_failed() -> None:
    good = audit.Check("this", "fine", True, "p", "do")
    bad = audit.Check("that", "wrong", False, "train_on", "set it")
    lines = data.audit([good, bad]).text.splitlines()
    assert lines[1].startswith("✓") and "do" not in lines[1]
    assert lines[2].startswith("✗ stop") and lines[2].endswith("train_on: set it")


@pytest.mark.parametrize(("given", "shown"), NASTY.items())
@pytest.mark.parametrize("trained", ["x", "."])
def test_trained_tokens_escapes(given: str, shown: str, trained: str) -> None:
    html, text = both(data.trained_tokens(row(given, trained), Letters()))
    assert html.startswith(shown)
    assert text.startswith(f"⟦{shown}⟧" if trained == "x" else shown)


def question(prompt: str, reference: str | None = None) -> Any:
    return SimpleNamespace(prompt=prompt, reference=reference, kind="", set="")


def reply(text: str, ended: str = "end mark") -> Any:
    return SimpleNamespace(text=text, ended=ended, num_tokens=1)


PLAIN = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))


def pair(questions: list[Any], base: list[Any], tuned: list[Any]) -> Any:
    """A stand-in for evaluate.Evaluation: what both models replied."""
    examined = {"base": SimpleNamespace(replies=base), "tuned": SimpleNamespace(replies=tuned)}
    settings = SimpleNamespace(side="eval")
    return SimpleNamespace(
        questions=questions, examined=examined, tokenizer=PLAIN, settings=settings
    )


@pytest.mark.parametrize(("given", "shown"), NASTY.items())
def test_replies_and_answers_escape(given: str, shown: str) -> None:
    asked = [question(f"User: {given}\n\nJoi:", given)]
    other = reply(f"{given}!", "ran on")
    html, text = both(evaluation.replies(pair(asked, [reply(given)], [other])))
    for form in (html, text):
        assert form.count(shown) == 4 and f"{shown}! [ran on]" in form and "Joi:" not in form
    folded = evaluation.replies(pair(asked, [reply(given)], [reply(given)]))
    assert seen(folded.html).count(shown) == 4
    html, text = both(evaluation.answer(given, reply(given)))
    assert html.count(shown) == text.count(shown) == 2


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13, 100])
def test_at_most_so_many_replies_are_shown_spread_evenly(count: int) -> None:
    asked = [question(f"q{i}\n\nJoi:") for i in range(count)]
    base = [reply(f"b{i}") for i in range(count)]
    tuned = [reply(f"t{i}") for i in range(count)]
    title, *lines = evaluation.replies(pair(asked, base, tuned), most=12).text.splitlines()
    assert title.startswith(f"{count} question") and ("12 of them" in title) == (count > 12)
    shown = [line.split() for line in lines[2:]]
    numbers = [int(q[1:]) for q, *_ in shown]
    assert shown == [[f"q{i}", f"b{i}", f"t{i}"] for i in numbers]  # each with its own replies
    assert len(numbers) == min(count, 12) == len(set(numbers)) and numbers == sorted(numbers)
    if count >= 12:
        gaps = np.diff([*numbers, count])
        assert gaps.max() - gaps.min() <= 1 and numbers[0] == 0


def test_equal_replies_are_folded_below_those_that_differ() -> None:
    known = [  # reference, base, tuned
        ("yes", "yes", "yes"), ("yes", "no", "no"), (None, "no", "no"), ("yes", "no", "yes"),
        ("yes", "yes", "yes"),
    ]  # fmt: skip
    asked = [question(f"q{i}\n\nJoi:", reference) for i, (reference, *_) in enumerate(known)]
    shown = evaluation.replies(
        pair(asked, [reply(one) for _, one, _ in known], [reply(two) for *_, two in known])
    )
    titles = [
        "1 question answered alike, not as the reference",
        "1 question answered alike, without a reference",
        "2 questions both answered as the reference",
    ]
    first, below = shown.text.split("\n\n", 1)
    assert first == "1 question answered differently by base and tuned"
    table, *folds = below.split("\n\n")
    assert table.splitlines()[1].split() == ["q3", "yes", "no", "yes"]
    assert folds == [f"({title})" for title in titles]
    assert re.findall("<summary>(.*?)</summary>", shown.html) == titles
    _, alike, without, right = shown.html.split("<summary>")
    assert "q1" in alike and "q2" in without and "q0" in right and "q4" in right


def test_replies_are_compared_as_the_scoreboard_does() -> None:
    """NFC, as GPT-NeoX's tokenizer has it: e and its accent are one letter."""
    composed = unicodedata.normalize("NFC", "é")
    asked = pair([question("q\n\nJoi:", "e\u0301")], [reply("e\u0301")], [reply(composed)])
    normalizer = SimpleNamespace(normalize_str=lambda text: unicodedata.normalize("NFC", text))
    asked.tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=normalizer))
    assert "(1 question both answered as the reference)" in evaluation.replies(asked).text


def test_questions_references_and_replies_are_whole() -> None:
    long = [letter * 500 for letter in "qrbt"]
    asked = [question(f"{long[0]}\n\nJoi:", long[1])]
    shown = evaluation.replies(pair(asked, [reply(long[2])], [reply(long[3])]))
    for form in both(shown):
        assert all(text in form for text in long)
    assert "overflow-wrap:anywhere" in shown.html and "table-layout:fixed" in shown.html


def test_a_reply_that_is_empty_or_found_no_room_says_so() -> None:
    asked = [question("q\n\nJoi:")]
    text = evaluation.replies(pair(asked, [reply("", "too long")], [reply("x")])).text
    assert "(nothing) [no room for a reply]" in text
    assert evaluation.answer("q", reply("")).text.split() == ["asked", "q", "tuned", "(nothing)"]


def test_scores_scoreboard_and_endings_carry_their_numbers() -> None:
    score = {"loss": 1.23456, "perplexity": 1234.5, "bits_per_byte": 0.98765}
    score |= {"trained_tokens": 9876, "conversations": 12}
    none = {"base": None, "tuned": None}
    html, text = both(evaluation.scores(losses(none | {"tuned": score}, none)))
    for form in (html, text):
        assert "1.2346" in form and "1,234.500" in form and "9,876" in form and "base" not in form
        assert "0.9877" in form and "plain text" not in form
    assert "empty" in evaluation.scores(losses(none, none)).text
    line = {"set": "s", "kind": "total", "base": 1, "tuned": 3, "questions": 4}
    line |= {"gained": 3, "lost": 1}
    counts = {"base": {"end mark": 1, "ran on": 2}, "tuned": {"end mark": 3, "ran on": 0}}
    shown = evaluation.scoreboard({"exact": [line], "endings": counts}).text
    board, said, below = shown.split("\n\n")
    assert board.splitlines()[1].split()[-4:] == ["3", "/", "1", "75.0%"]
    assert said == (
        "- s, tuned beside base: 2 more of 4 exact, 95 % interval -1.6 to 3.6; p = 0.62"
    )
    assert [x.split()[-2:] for x in below.splitlines()[1:]] == [["1", "2"], ["3", "0"]]


def losses(eval_loss: dict, plain_text: dict) -> dict:
    return {"eval_loss": eval_loss, "plain_text": plain_text, "depth": None}


def test_tasks_carry_their_errors() -> None:
    row = {"task": "<t>", "metric": "acc", "better": "higher", "value": 0.5}
    base = row | {"stderr": None, "examples": 1234}
    tuned = row | {"stderr": 0.012345, "examples": 1234}
    both = {"base": [base], "tuned": [tuned]}
    text = evaluation.tasks({"tasks": both}).text  # of a file without differences
    assert text.splitlines()[1].split()[-5:] == ["0.5000", "0.5000", "±", "0.0123", "1,234"]
    for found, said in (
        ({"mean": 0.02, "low": -0.01, "high": 0.05, "p": 0.21}, "(-0.0100 to +0.0500); p = 0.21"),
        ({"mean": 0.02, "low": None, "high": None, "p": None}, "± 0.0123  +0.0200  "),
    ):
        shown = evaluation.tasks({"tasks": both | {"differences": [found]}}).text
        assert said in shown and "Each document is compared with itself" in shown
    assert "higher is better" in text
    assert (
        evaluation.tasks({"tasks": {"base": [], "tuned": []}}).text
        == "No standard tasks: tasks is empty."
    )


class Display:
    """A stand-in for IPython's display: what was shown and each update of it."""

    def __init__(self) -> None:
        self.views: list[Any] = []

    def __call__(self, shown: Any, **_: Any) -> "Display":
        self.update(shown)
        return self

    def update(self, shown: Any) -> None:
        self.views.append(shown)


def test_progress_draws_at_most_twice_a_second_and_always_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, screen = [100.0], Display()
    monkeypatch.setattr(view, "display", screen)
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    progress = view.ProgressBar("<b>scoring")
    for done in range(1, 101):  # 100 calls in ten seconds
        now[0] += 0.1
        progress(done, 100)
    drawn = len(screen.views) - 1
    assert 18 <= drawn <= 21
    html, text = both(screen.views[-1])
    assert html == text == "<b>scoring: 100 of 100, 10.0 s"
    assert "<progress" not in screen.views[-1].html
    assert 'value="1" max="100"' in screen.views[1].html
    progress(100, 100)
    assert len(screen.views) == drawn + 2  # the end is never throttled


def test_a_long_name_may_break_after_its_dots() -> None:
    shown = view.table([("night.learning_rate=0.001.block_size=128", "data.txt is <b>", "1.5")])
    assert "night.<wbr>learning_rate=0.001.<wbr>block_size=128<" in shown.html
    assert "data.txt is &lt;b&gt;" in shown.html and ">1.5<" in shown.html
    assert "wbr" not in shown.text
