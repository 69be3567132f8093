"""difference.py: two runs, equal but for one seeded difference, which alone is found."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import two_runs
from conftest import tokenize
from two_runs import EVALS, LOSSES, REPLIES, change

from neoxkit import files, paths
from neoxkit.data import manifests, tokenized
from neoxkit.errors import UserError
from neoxkit.evaluation import difference, different_data
from neoxkit.evaluation.sections import RunDifference, Section
from neoxkit.runs.card import CARD
from neoxkit.runs.folder import ARGUMENTS, DATASET, DIALS, FINISHED

EQUAL = "settings, base, data (400 rows), versions, training losses (4), eval losses (3), "
EQUAL += "final weights, replies (5)"
CHANGED = {"commit": "c" * 40, "clean": False, "changed": ["lib/x.py"]}


@pytest.fixture
def b(home: Path) -> Path:
    """Make two equal runs, diff-a and diff-b; return the second one's folder."""
    two_runs.made("diff-a")
    return two_runs.made("diff-b")


def found(most: int | None = 3) -> RunDifference:
    return difference.of_runs("diff-a", "diff-b", most)


def differing(most: int | None = 3) -> dict[str, Section]:
    return {section.name: section for section in found(most).sections if section.differs}


def only(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the values of the one section that differs, in which nothing is listed."""
    ((section, it),) = differing().items()
    assert section == name and not it.listed
    return {one.name: (one.a, one.b) for one in it.unequal}


def test_of_equal_runs_nothing_is_listed(b: Path) -> None:
    it = found()
    assert not it.differs and it.equal() == EQUAL and it.unknown() == []
    assert it.summary() == "diff-a and diff-b do not differ."
    assert not difference.of_runs("diff-a", str(paths.run("diff-a"))).differs


def test_one_setting(home: Path, b: Path) -> None:
    two_runs.made("diff-b", seed=7)
    assert only("settings") == {"seed": (42, 7)}
    assert found().summary() == "diff-a and diff-b differ in settings."
    two_runs.made("diff-b", training_arguments={"adam_beta1": 0.8})
    assert only("settings") == {"adam_beta1": (None, 0.8)}


def test_a_setting_and_what_follows_from_it_is_one_difference(home: Path, b: Path) -> None:
    folder = two_runs.made("diff-b", max_grad_norm=0.5, block_size=128)
    two_runs.trained(folder, block_size=128, row_tokens=128)
    change(folder / CARD, "ds_config", "gradient_clipping", to=0.5)
    assert only("settings") == {"block_size": (0, 128), "max_grad_norm": (1.0, 0.5)}
    two_runs.made("diff-b", model_name_or_path="tiny")
    change(b / CARD, "base_sha256", "model.safetensors", to="d" * 64)
    assert only("settings") == {"model_name_or_path": ("", "tiny")}


def test_what_auto_came_to(b: Path) -> None:
    two_runs.trained(b, precision="bf16", tf32=True)
    change(b / CARD, "ds_config", "bf16", to={"enabled": True})
    assert only("settings") == {"precision, as trained": ("fp32", "bf16")}


def test_the_deepspeed_file_by_its_contents(b: Path) -> None:
    change(b / CARD, "ds_config", "zero_optimization", "overlap_comm", to=False)
    assert only("settings") == {"DeepSpeed zero_optimization.overlap_comm": (None, False)}


def test_the_base_by_its_bytes(b: Path) -> None:
    change(b / CARD, "base_sha256", "model.safetensors", to="d" * 64)
    assert only("settings") == {"base, model.safetensors": ("b" * 64, "d" * 64)}


def test_sizes_that_follow_from_another_base_are_not_listed(b: Path) -> None:
    change(b / CARD, "ds_config", "zero_optimization", "reduce_bucket_size", to=16384)
    assert [*only("settings")] == ["DeepSpeed zero_optimization.reduce_bucket_size"]
    change(b / CARD, "base_sha256", "model.safetensors", to="d" * 64)
    assert len(only("settings")) == 2  # of the same shape
    change(b / CARD, "base_sha256", "config.json", to="d" * 64)
    assert [*only("settings")] == ["base, config.json", "base, model.safetensors"]


def test_a_setting_by_a_dial_says_so(home: Path, b: Path) -> None:
    two_runs.made("diff-b", seed=7)
    files.write_json(b / DIALS, {"seed": [42, 7], "block_size": [0, 0]})
    assert differing()["settings"].says == ["seed was set by a dial in diff-b."]


def test_what_changed_on_the_way_is_not_known(home: Path, b: Path) -> None:
    two_runs.made("diff-b", allow_change=["seed"])
    it = found()
    assert not it.differs
    assert it.unknown() == ["earlier values of seed: allow_change of diff-b let them change"]


def test_a_run_from_a_shell_is_compared_where_both_name_an_argument(b: Path) -> None:
    given = files.read_json(b / ARGUMENTS) | {"report_to": "none", "adam_beta2": 0.9, "seed": 1}
    given |= {"deepspeed": "ds_configs/zero2.json", "gradient_checkpointing": None}
    files.write_json(b / ARGUMENTS, given)
    ((_, section),) = differing().items()
    assert [(one.name, one.a, one.b) for one in section.unequal] == [("seed", 42, 1)]
    alone = "trainer arguments (1): only diff-b, from a shell, names them"
    assert found().unknown() == [alone]


def test_versions_of_all_starts(b: Path) -> None:
    older = two_runs.START | {"versions": {"python": "3.11.7", "torch": "2.12.0"}}
    change(b / CARD, "starts", to=[older, two_runs.START])
    assert only("versions") == {"torch": ("2.13.0", "2.12.0, then 2.13.0")}


@pytest.mark.parametrize(
    ("keys", "to", "expected"),
    [
        (("code", "commit"), "d" * 40, {"the kit's commit": ("c" * 40, "d" * 40)}),
        (("code",), CHANGED, {"files changed since": ([], ["lib/x.py"])}),
        (("machine", "cpu"), "Xeon", {"cpu": ("AMD EPYC", "Xeon")}),
        (("threads_a_rank",), "1", {"threads per rank": ("2", "1")}),
    ],
)
def test_code_and_machine(b: Path, keys: tuple[str, ...], to: Any, expected: dict) -> None:
    change(b / CARD, "starts", 0, *keys, to=to)
    assert only("versions") == expected


@pytest.mark.parametrize("name", ["system", "cores", "memory_gib"])
def test_what_decides_no_bytes_is_no_difference(b: Path, name: str) -> None:
    change(b / CARD, "starts", 0, "machine", name, to="another")
    assert not found().differs


def test_equal_descriptions_may_be_of_different_code(b: Path) -> None:
    for name in ("diff-a", "diff-b"):
        change(paths.run(name) / CARD, "starts", 0, "code", to=CHANGED)
    told = ["the kit's code: lib/x.py changed since the commit in both runs"]
    assert (found().differs, found().unknown()) == (False, told)
    for name in ("diff-a", "diff-b"):
        none = {"commit": None, "clean": None, "changed": []}
        change(paths.run(name) / CARD, "starts", 0, "code", to=none)
    assert found().unknown() == ["the kit's code: not started from a git checkout"]


def test_a_run_without_a_card_or_versions_is_named(b: Path) -> None:
    change(b / CARD, "starts", 0, "versions", to={})
    assert found().unknown() == ["versions: diff-b has none in the run card"]
    (b / CARD).unlink()
    said = "DeepSpeed file and base: diff-b has no run card", "versions: diff-b has no run card"
    assert (found().differs, found().unknown()) == (False, list(said))


def test_losses_that_differ_while_all_else_is_equal(b: Path) -> None:
    two_runs.trained(b, LOSSES | {6: 2.75, 8: 2.5}, EVALS | {8: 2.0})
    change(b / FINISHED, "model_sha256", "model.safetensors", to="f" * 64)
    ((name, it),) = differing().items()
    assert name == "losses"
    assert [(one.name, one.a, one.b, one.by) for one in it.unequal] == [
        ("training loss, steps 5 to 6", 2.5, 2.75, 0.25),
        ("training loss, steps 7 to 8", 2.25, 2.5, 0.25),
        ("eval loss, step 8", 2.5, 2.0, -0.5),
    ]
    assert it.says == [
        "2 of 4 training losses differ, from steps 5 to 6 on.",
        "1 of 3 eval losses differ, from step 8 on.",
        "Settings, data and versions are equal: the training is not deterministic.",
    ]


def test_losses_are_explained_only_if_nothing_else_differs(home: Path, b: Path) -> None:
    two_runs.trained(b, LOSSES | {4: 3.5}, device="H200")
    first, last = differing()["losses"].says
    assert first.endswith("from steps 3 to 4 on; the last, steps 7 to 8, is equal again.")
    assert last.endswith("the training is not deterministic (a GPU adds in no fixed order).")
    (b / CARD).unlink()
    said = "equal as far as they could be compared: what could not be is another, or the training"
    assert said in differing()["losses"].says[-1]
    folder = two_runs.made("diff-b", seed=7)
    two_runs.trained(folder, LOSSES | {4: 3.5})
    assert [*differing()] == ["settings", "losses"]
    assert not any("deterministic" in said for said in differing()["losses"].says)


def test_runs_of_different_lengths_are_compared_as_far_as_both_go(b: Path) -> None:
    two_runs.trained(b, {2: 4.0, 4: 3.0}, {0: 6.0, 4: 3.5})
    (b / FINISHED).unlink()
    assert only("losses") == {"steps": (8, 4)}
    assert found().unknown() == ["losses after step 4: diff-b ends there (killed)"]
    assert "training losses (2), eval losses (2)" in found().equal()


def test_means_over_other_steps_are_not_compared(b: Path) -> None:
    """At steps 4 and 8 both logged a loss: of two steps in diff-a, of four in diff-b."""
    two_runs.trained(b, {4: 3.5, 8: 2.375})
    assert not found().differs
    assert found().unknown() == ["6 training losses: the other run's are over other steps"]


def test_a_loss_that_is_not_finite(b: Path) -> None:
    two_runs.trained(b, LOSSES | {8: float("nan")})
    (one,) = differing()["losses"].unequal
    assert one.texts() == ("2.2500", "not finite") and one.by_text() == ""
    two_runs.trained(paths.run("diff-a"), LOSSES | {8: float("nan")})
    assert not found().differs


def test_weights_that_differ_after_equal_losses(b: Path) -> None:
    change(b / FINISHED, "model_sha256", "model.safetensors", to="f" * 64)
    assert only("losses") == {"weights, model.safetensors": ("e" * 64, "f" * 64)}
    assert "not deterministic" in differing()["losses"].says[-1]


def test_replies_are_paired_by_question(b: Path) -> None:
    other = dict(reversed(REPLIES.items())) | {"What is 3 plus 1?": "5", "What is 1 plus 1?": "3"}
    two_runs.replied(b, other)
    ((name, it),) = differing().items()
    (listed,) = it.listed
    assert (name, listed.count) == ("replies", 2)
    assert listed.what == "of 5 questions are answered differently"
    assert listed.rows == [
        {"asked": "User: What is 1 plus 1?", "diff-a": "2", "diff-b": "3"},
        {"asked": "User: What is 3 plus 1?", "diff-a": "4", "diff-b": "5"},
    ]
    (few,) = differing(1)["replies"].listed
    assert (few.count, few.rows) == (2, listed.rows[:1])
    assert differing(None)["replies"].listed == [listed]


def test_a_run_that_has_the_name_of_a_column_keeps_its_replies(home: Path) -> None:
    two_runs.made("diff-a")
    two_runs.replied(two_runs.made("asked"), REPLIES | {"What is 3 plus 1?": "5"})
    (listed,) = difference.of_runs("diff-a", "asked").sections[-1].listed
    (row,) = listed.rows
    assert row == {"asked": "User: What is 3 plus 1?", "runs/diff-a": "4", "runs/asked": "5"}


def test_replies_that_were_made_differently_or_not_at_all(b: Path) -> None:
    two_runs.replied(b, max_new_tokens=9, seed=5)  # the seed of replies that are not sampled
    assert only("replies") == {"max_new_tokens": (64, 9)}
    two_runs.replied(b, REPLIES | {"Why?": "Because."})
    assert found().unknown() == ["replies to 1 questions: only diff-b was asked them"]
    assert not found().differs
    (b / "replies.jsonl").unlink()
    assert found().unknown() == ["replies: diff-b was not evaluated by 03"]


def on_another_text(home: Path, edit: Any, name: str = "other", **settings: Any) -> None:
    """Make diff-b anew on the small dataset's text with an edit, tokenized under another name."""
    text = (home / "data" / "small.txt").read_text().split("<|endoftext|>\n")[:-1]
    changed = "".join(f"{one}<|endoftext|>\n" for one in edit(text))
    (home / "data" / "other.txt").write_text(changed)
    tokenize("other.txt", name, **settings)
    two_runs.made("diff-b", name)


def kinds(most: int | None = 3) -> dict[str, list[dict[str, str]]]:
    """Return what is listed of the data: "12 conversations only in a" -> rows."""
    return {f"{one.count} {one.what}": [*one.rows] for one in differing(most)["data"].listed}


def test_the_same_rows_under_another_name_are_equal(home: Path) -> None:
    two_runs.made("diff-a")
    tokenize("small.txt", "other")
    two_runs.made("diff-b", "other")
    assert only("settings") == {"dataset": ("small", "other")}
    assert "data (400 rows)" in found().equal() and "eval losses (3)" in found().equal()


def test_where_the_same_text_lies_makes_no_difference(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text, "elsewhere", block_size=200)
    assert [one.name for one in differing()["data"].unequal] == ["block_size"]
    on_another_text(home, lambda text: text[1:], "elsewhere")
    assert [one.name for one in differing()["data"].unequal] == ["text"]


def test_a_test_side_is_named_as_not_compared(home: Path) -> None:
    """It has left the train side of the one, which is a difference."""
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text, "with-test", test_share=0.1)
    assert "the test set, which no training reads" in found().unknown()
    assert [*kinds(0)] == ["40 conversations only in diff-a"]


def test_conversations_that_only_one_run_has(home: Path) -> None:
    two_runs.made("diff-a")
    new = "User: Are you new?\n\nAgent: <b>Yes</b>."
    on_another_text(home, lambda text: [*text[:10], new, *text[11:]])
    assert {*differing()} == {"settings", "data"}
    listed, text = kinds(), (home / "data" / "small.txt").read_text()
    gone, added = listed["1 conversation only in diff-a"], listed["1 conversation only in diff-b"]
    assert len(listed) == 2 and added[0]["conversation"] == f"{new}<|endoftext|>"
    line = text[: text.index(gone[0]["conversation"])].count("\n") + 1
    assert gone[0]["where"] in (f"train, data/small.txt:{line}", f"eval, data/small.txt:{line}")
    assert [one.name for one in differing()["data"].unequal] == ["text"]
    assert not any(one.by is not None for one in found().sections[3].unequal)


def test_a_conversation_that_is_there_once_more(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: [*text, text[0]])
    assert [*kinds()] == ["1 conversation only in diff-b"]


def test_another_order(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text[::-1])
    section = differing()["data"]
    assert not section.listed
    assert [one.name for one in section.unequal] == ["text", "order of train, first at row 1"]


def test_another_split(home: Path) -> None:
    """Counted by hand: those of the one held-out set that are not in the other."""
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text, seed=1)
    data = {name: tokenized.load(paths.tokenized(name))[0] for name in ("small", "other")}
    held_out = [{tuple(ids) for ids in data[n]["eval"]["input_ids"]} for n in ("small", "other")]
    moved = sum(tuple(ids) not in held_out[0] for ids in data["other"]["eval"]["input_ids"])
    moved += sum(tuple(ids) not in held_out[1] for ids in data["small"]["eval"]["input_ids"])
    ((what, rows),) = kinds().items()
    assert what == f"{moved} conversations on another side in diff-b" and len(rows) == 3
    assert len(kinds(None)[what]) == moved
    assert "eval losses: the held-out sets differ" in found().unknown()


def test_other_labels(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text, train_on="all")
    ((what, _),) = kinds().items()
    assert what == "400 conversations with other labels in diff-b"
    values = {one.name: (one.a, one.b) for one in differing()["data"].unequal}
    assert values["train_on"] == ("agent", "all")


def test_rows_of_other_tokenizers_are_not_compared(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text)
    sha256 = tokenized.sha256(paths.tokenized("other"))
    change(paths.run("diff-b") / DATASET, "tokenizer_sha256", to="f" * 64)
    assert tokenized.sha256(paths.tokenized("other")) == sha256  # the run's copy alone
    assert "conversations: the tokenizers differ" in found().unknown()
    assert "tokenizer" in [one.name for one in differing()["data"].unequal]


def test_a_damaged_dataset_is_a_reason_and_no_end(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text[1:])
    (paths.tokenized("other") / "train" / "state.json").write_text("{")
    why = "conversations: data/tokenized/other/train is cut short or damaged"
    assert why in found().unknown()


def test_a_text_without_its_tokenizer_is_a_place_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text[1:])
    monkeypatch.setattr(manifests, "tokenizer_sha256", lambda tokenizer: "of another one")
    ((_, rows),) = kinds().items()
    assert [[*row] for row in rows] == [["where"]]
    assert "texts of diff-a's conversations: its tokenizer is not here" in found().unknown()


def test_a_dataset_that_is_gone_or_was_made_again_is_compared_by_its_manifest(home: Path) -> None:
    two_runs.made("diff-a")
    on_another_text(home, lambda text: text[:-1])
    shutil.rmtree(paths.tokenized("other"))
    tokenize("small.txt", "other", block_size=100)
    why = "conversations: the data of diff-b is not here as trained on"
    assert found().unknown() == [why, "eval losses: the held-out sets may differ"]
    assert [one.name for one in differing()["data"].unequal] == ["text"]
    (paths.run("diff-b") / DATASET).unlink()
    told = found().unknown()
    assert "how the data was tokenized: diff-b has no manifest" in told and why in told


def test_a_run_that_is_not_here_is_refused_with_its_likely_name(b: Path) -> None:
    with pytest.raises(UserError, match="'diff-c' is not a run here -- did you mean diff-"):
        difference.of_runs("diff-a", "diff-c")
    with pytest.raises(UserError, match="'diff-\\*' means 2 runs -- name one"):
        difference.of_runs("diff-*", "diff-a")


def test_a_setting_that_did_not_exist_then_is_its_default(home: Path) -> None:
    manifest = files.read_json(paths.tokenized("small") / files.MANIFEST)
    older = {**manifest, "settings": dict(manifest["settings"])}
    del older["settings"]["test_share"], older["settings"]["near_duplicates"]
    assert different_data._facts(older) == different_data._facts(manifest)
    older["settings"]["test_share"] = 0.2
    assert different_data._facts(older) != different_data._facts(manifest)
