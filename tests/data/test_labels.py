"""labels.py: labels of the two sides, and text that only looks like a label."""

import pytest

from neoxkit.data.conversation import Names
from neoxkit.data.labels import any_label, any_labels, label_of

NAMES = Names("Dr. Rosey", "User")

NEAR = [
    "USER:", "user:", " User:", "\t User:", "\u00a0User:", "\u200bUser:", "User :", "User\u00a0:",
    "**User:**", "**User**:", "*User:*", "__User:__", "### User:", "> User:", "- User:",
    "[User]:", "<User>:", "<b>User:</b>", "`User:`", "> **User**:",
]  # fmt: skip


@pytest.mark.parametrize("label", NEAR)
def test_labels_written_differently_are_found(label: str) -> None:
    for rest in (" kiwi", "", " **so**"):
        found = label_of(f"{label}{rest}", NAMES)
        assert found is not None and (found.role, found.exact) == ("user", False)
        assert f"{label}{rest}"[found.end :] == rest
    for name, agent in (("User", "Dr. Rosey"), ("USER", "DR. ROSEY"), ("user", "dr. rosey")):
        label = label.replace(name, agent)
    assert label_of(label, NAMES).role == "agent"


def test_an_exact_label_leaves_the_text_unchanged() -> None:
    for rest in (" kiwi", "kiwi", "", "**kiwi**", " : x"):
        assert label_of(f"User:{rest}", NAMES) == ("user", 5, True)
    assert label_of("Dr. Rosey: x", NAMES) == ("agent", 10, True)
    assert label_of("用户：kiwi", Names("助手", "用户")) == ("user", 3, True)


def test_the_sides_are_not_confused_when_case_is_ignored() -> None:
    """İ has two characters in lower case; its label must still be the user's, not the agent's."""
    assert label_of("ibrahim: x", Names("Bot", "İbrahim")) in (None, ("user", 8, False))
    assert label_of("Anna: x", Names("Anna", "Ann")) == ("agent", 5, True)


@pytest.mark.parametrize(
    "line",
    ["Users: x", "The User: x", "User", "User x: y", '"User: x"', "User's: x", "x User:", "Rosey:"],
)
def test_similar_words_are_not_labels(line: str) -> None:
    assert label_of(line, NAMES) is None


def test_a_list_item_is_a_label_only_at_the_start_of_a_paragraph() -> None:
    for bullet in "-*+•":
        assert label_of(f"{bullet} User: x", NAMES)
        assert label_of(f"{bullet} User: x", NAMES, paragraph=False) is None
    assert label_of("**User**: x", NAMES, paragraph=False)


def test_any_name_can_be_a_label_but_not_in_a_list_item() -> None:
    labels = {"Joi: x": "Joi", "### Response:": "Response", "**Zoë Élan:** x": "Zoë Élan"}
    others = {"- one: two": "", "http://x": "", "12: x": "", "a, b: c": "", f"{'x' * 41}: y": ""}
    assert {line: any_label(line) for line in labels | others} == labels | others


def test_labels_begin_paragraphs_or_lines_outside_code() -> None:
    lines = ["A: 1", "B: 2", "", "C: 3", "```", "D: 4", "", "E: 5", "```", "F: 6"]
    assert any_labels(lines) == [(0, "A"), (3, "C")]
    assert any_labels(lines, glued=True) == [(0, "A"), (1, "B"), (3, "C"), (9, "F")]


def test_a_hostile_line_takes_no_time() -> None:
    for hostile in ("\u200b" * 10**6, " " * 10**6, "*_" * 10**6, "x" * 10**6):
        assert label_of(f"{hostile}:", NAMES) is None and any_label(f"{hostile}:") == ""
