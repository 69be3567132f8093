"""compare_models.py on made-up losses whose answer is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from scipy import stats

from neoxkit import paths
from neoxkit.data.conversation import Names
from neoxkit.data.table import NOT_TRAINED
from neoxkit.errors import UserError
from neoxkit.evaluation import compare_models, evaluate, scoring
from neoxkit.models import loading
from neoxkit.settings import EvaluateSettings

A, B = 7, NOT_TRAINED  # trained, not trained


def simulated(chance: np.random.Generator, num: int, effect: float) -> tuple[list, list]:
    """Make conversations that vary in length and difficulty; tuning moves each by `effect`."""
    base, tuned = [], []
    for _ in range(num):
        tokens = int(chance.integers(5, 60))
        hard, own = chance.normal(3, 0.5), chance.normal(effect, 0.2)
        base.append(hard + chance.normal(0, 1, tokens))
        tuned.append(hard + own + chance.normal(0, 1, tokens))
    return base, tuned


def test_the_interval_covers_a_known_difference_as_often_as_it_says() -> None:
    """A 95 % interval should cover the true value in 90 to 99 of 100 cases."""
    chance = np.random.default_rng(6)
    covered = 0
    for case in range(100):
        found = compare_models.difference(*simulated(chance, 60, -0.3), seed=case)
        covered += found.low <= -0.3 <= found.high
    assert 90 <= covered <= 99


@pytest.mark.parametrize("num", [20, 300])
def test_the_interval_is_that_of_scipy(num: int) -> None:
    """Which takes the square of the number of conversations, and so is not asked for it."""
    chance = np.random.default_rng(num)
    base, tuned = simulated(chance, num, -0.3)
    tuned[0] = tuned[0] + 40  # far from symmetric
    found = compare_models.difference(base, tuned, seed=3)
    theirs = stats.bootstrap(
        ([b.sum() - a.sum() for a, b in zip(base, tuned, strict=True)], [len(a) for a in base]),
        lambda gained, tokens, axis: gained.sum(axis) / tokens.sum(axis),
        paired=True,
        n_resamples=compare_models.RESAMPLES,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_difference_is_weighted_by_token_and_paired() -> None:
    """A hard and an easy conversation of 1 and 3 tokens: what they share cancels out."""
    base = [np.array([9.0]), np.array([1.0, 1.0, 1.0])]
    tuned = [np.array([8.0]), np.array([1.0, 2.0, 3.0])]
    found = compare_models.difference(base, tuned)
    assert (found.mean, found.low, found.high, found.better) == (0.5, None, None, 1)
    assert found.detectable is None
    said = found.text()
    assert "fewer than 20 conversations (here 2) is too narrow to trust" in said
    assert "between" not in said and "would show" not in said
    same = compare_models.difference(base * 10, base * 10)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert "the interval includes zero" in same.text() and "would show" not in same.text()


@pytest.mark.parametrize(
    ("num", "cases"),
    [(20, 300), (150, 300), *(pytest.param(n, 500, marks=pytest.mark.slow) for n in (20, 60, 400))],
)
def test_the_detectable_difference_is_detected_in_80_percent_of_cases(num: int, cases: int) -> None:
    """If tuning adds d to every token, mean and bounds rise by d: so one series of cases shows, for
    every d, how often 0 is outside them. The figure is within 20 % of the right d."""
    chance = np.random.default_rng(9)
    found = [compare_models.difference(*simulated(chance, num, -2.0), seed=i) for i in range(cases)]
    simulated_d = np.quantile([-2.0 - one.low for one in found], compare_models.POWER)
    figures = [one.detectable for one in found]
    assert np.median(figures) == pytest.approx(simulated_d, rel=0.2)
    assert np.mean(figures) == pytest.approx(simulated_d, rel=0.2)


def test_the_detectable_difference_is_stated_and_shrinks_with_more_conversations() -> None:
    found = {
        num: compare_models.difference(*simulated(np.random.default_rng(3), num, -0.3))
        for num in (25, 400)
    }
    assert found[25].detectable == pytest.approx(4 * found[400].detectable, rel=0.4)
    said = f"; these 400 conversations would show a difference of {found[400].detectable:.2g} nats"
    assert said in found[400].text()


@pytest.mark.parametrize("cases", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_as_many_conversations_as_needed_show_the_difference_that_was_seen(cases: int) -> None:
    """In 80 % of cases, if it is the true one: what was seen is moved there. The figure is within
    20 % of the right one, which follows from how the conversations are made."""
    chance, d = np.random.default_rng(2), -0.06
    figures = []
    for case in range(cases):
        base, tuned = simulated(chance, 100, d)
        moved = d - compare_models.difference(base, tuned).mean
        found = compare_models.difference(base, [one + moved for one in tuned], seed=case)
        if found.low <= 0 <= found.high:
            figures.append(found.needed)
    tokens = np.arange(5, 60)
    variance = (0.2**2 * (tokens**2).mean() + 2 * tokens.mean()) / tokens.mean() ** 2
    right = stats.norm.ppf([0.975, 0.8]).sum() ** 2 * variance / d**2
    assert len(figures) > cases * 0.5 and np.median(figures) == pytest.approx(right, rel=0.2)
    again = [simulated(chance, int(np.median(figures)), d) for _ in range(cases)]
    sure = [compare_models.difference(*one, seed=i).high < 0 for i, one in enumerate(again)]
    assert 0.7 < np.mean(sure) < 0.9


def test_how_many_are_needed_is_said_only_where_the_difference_is_not_sure() -> None:
    unsure = compare_models.Difference(-0.01, -0.03, 0.01, 100, 55, 0.0435)
    assert unsure.needed == 1893
    assert unsure.text("pieces").endswith(
        "these 100 pieces would show a difference of 0.043 nats (80% power); about 1,900 pieces "
        "like these would show the one seen"
    )
    for sure in (
        replace(unsure, low=-0.03, high=-0.001), replace(unsure, low=0.001, high=0.02),
        replace(unsure, low=None, high=None, detectable=None), replace(unsure, mean=0.0),
        compare_models.Difference(0.0, 0.0, 0.0, 40, 0, 0.0),
    ):  # fmt: skip
        assert sure.needed is None and "like these" not in sure.text()


@pytest.mark.parametrize(("num", "has_interval"), [(19, False), (20, True)])
def test_fewer_than_20_conversations_have_no_interval(num: int, has_interval: bool) -> None:
    found = compare_models.difference(*simulated(np.random.default_rng(4), num, -0.3))
    figures = (found.low, found.high, found.detectable)
    assert [figure is not None for figure in figures] == [has_interval] * 3


def test_each_conversation_is_drawn_with_its_own_length() -> None:
    """With an equal gain per token everywhere, lengths matter only if they are mixed up."""
    chance = np.random.default_rng(1)
    base = [chance.normal(3, 1, n) for n in chance.integers(1, 400, 40)]
    tuned = [losses - 0.3 + chance.normal(0, 1e-3) for losses in base]
    found = compare_models.difference(base, tuned)
    assert found.high - found.low < 0.01 and found.mean == pytest.approx(-0.3, abs=1e-3)
    exact = compare_models.difference(base, [losses - 0.3 for losses in base])
    assert exact.low == exact.high == exact.mean


def test_the_worst_are_those_whose_mean_rose_most_without_any_that_fell() -> None:
    base = [np.full(n, 1.0) for n in (1, 9, 2, 3)]
    tuned = [base[0] + 2, base[1] + 1, base[2] - 1, base[3] + 3]
    assert compare_models.worst(base, tuned) == [3, 0, 1]
    assert compare_models.worst(base, tuned, most=1) == [3]


def test_a_conversation_without_trained_tokens_does_not_count() -> None:
    chance = np.random.default_rng(2)
    base, tuned = simulated(chance, 24, -0.3)
    none = np.zeros(0)
    with np.errstate(all="raise"):
        assert compare_models.difference(
            [*base, none], [*tuned, none]
        ) == compare_models.difference(base, tuned)
        assert compare_models.worst([none, *base], [none, *tuned]) == [
            i + 1 for i in compare_models.worst(base, tuned)
        ]
        lengths = [1, *[2] * 9, 200]  # the shorter ones, a part of their own, have nothing
        rows = [{"labels": [B, B], "length": n} for n in lengths[:-1]]
        rows.append({"labels": [B, A], "length": 200})
        one = [none] * 10 + [np.array([1.0])]
        assert [part.name for part in compare_models.by_length(rows, one, one)] == ["200-200"]


def test_parts_hold_every_token_once_by_turn_and_by_length() -> None:
    rows = [
        {"labels": [B, A, A, B, A], "length": 5},
        {"labels": [A, B, A, A], "length": 4},  # the first token is never predicted
        {"labels": [B, A, B, A, B, A], "length": 6},
    ]
    base = [np.array([1.0, 1.0, 4.0]), np.array([1.0, 1.0]), np.array([1.0, 4.0, 9.0])]
    tuned = [one + 1 for one in base]
    by_turn = compare_models.by_turn(rows, base, tuned)
    assert [(p.name, p.tokens, p.base, p.tuned) for p in by_turn] == [
        ("1", 5, 1.0, 2.0),
        ("2", 2, 4.0, 5.0),
        ("3", 1, 9.0, 10.0),
    ]
    late = compare_models.by_turn(rows, base, tuned, most=2)
    assert [(p.name, p.tokens) for p in late] == [("1", 5), ("2 and later", 3)]
    by_length = compare_models.by_length(rows, base, tuned)
    assert sum(p.tokens for p in by_length) == 8
    total = sum(p.tokens * p.base for p in by_length)
    assert total == pytest.approx(sum(one.sum() for one in base))
    assert [p.name for p in by_length] == ["4-5", "6-6"]


def test_bits_per_byte_is_the_loss_in_bits_over_the_text(home: Path) -> None:
    tokenizer = loading.load_tokenizer("tiny")
    ids = tokenizer("Hé")["input_ids"]
    rows = [{"labels": [B, *ids, tokenizer.eos_token_id]}]
    assert compare_models.num_bytes(rows, tokenizer) == len("Hé".encode()) == 3
    losses = [np.full(len(ids) + 1, np.log(2))]
    assert compare_models.bits_per_byte(losses, 3) == pytest.approx((len(ids) + 1) / 3)
    assert compare_models.bits_per_byte(losses, 0) is None


def test_a_score_keeps_each_conversations_losses_in_the_order_of_the_rows(home: Path) -> None:
    """Score one conversation at a time to compare; batches are made by length."""
    rows = load_from_disk(paths.tokenized("small"))["eval"].select(range(7))
    model = loading.load_model("tiny").eval()
    found = scoring.score(model, rows, batch_size=3, pad_id=1)
    for row, losses in zip(rows, found.losses, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        alone = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert losses == pytest.approx(alone[labels != NOT_TRAINED].numpy(), rel=1e-4)
    assert len(compare_models.turns(rows[0]["labels"])) == len(found.losses[0])


def test_a_plain_text_is_scored_whole_in_windows_behind_end_marks(home: Path) -> None:
    tokenizer = loading.load_tokenizer("tiny")
    text = "Counting: <|endoftext|> one two three four five six seven eight nine ten. " * 3
    rows = scoring.text_rows(text, tokenizer, 16)
    assert all(row["input_ids"][0] == tokenizer.eos_token_id for row in rows)
    assert all(row["labels"] == [B, *row["input_ids"][1:]] for row in rows)
    assert max(rows["length"]) == 16
    again = "".join(tokenizer.decode(row["input_ids"][1:]) for row in rows)
    assert again == text and compare_models.num_bytes(rows, tokenizer) == len(text)


@pytest.mark.parametrize(("data", "said"), [(b" \n", "is empty"), (b"\xff", "is not UTF-8 text")])
def test_a_plain_text_file_without_text_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"plain_text_file: {said}"):
        scoring.plain_rows(tmp_path / "t.txt", None, None)


def test_the_size_of_a_plain_text_is_that_of_its_file(home: Path, tmp_path: Path) -> None:
    """A window may end inside a character, so that its bytes can't be counted from its tokens."""
    (tmp_path / "t.txt").write_text("日本語の文章です。" * 60)
    model, tokenizer = loading.load_model("tiny"), loading.load_tokenizer("tiny")
    rows, size = scoring.plain_rows(tmp_path / "t.txt", model, tokenizer)
    assert size == 27 * 60 and compare_models.num_bytes(rows, tokenizer) != size
    settings = EvaluateSettings(plain_text_file=str(tmp_path / "t.txt"))
    one = evaluate.Evaluation(
        settings, tmp_path, {}, tokenizer, Names(), rows.select([]), [], 0, "here"
    )  # fmt: skip
    one.tuned_model = model.eval()
    one.examine("tuned")
    found = one.examined["tuned"].plain
    assert found.bits_per_byte == compare_models.bits_per_byte(found.losses, size)


def test_an_evaluation_holds_all_comparisons_of_the_two_models() -> None:
    rows = [{"labels": [B, A, B, A], "length": 4}] * 24
    one = [np.array([2.0, 3.0 + i]) for i in range(24)]
    other = [losses - 1 + 0.05 * i for i, losses in enumerate(one)]
    scores = [scoring.Score(0, 1, 48, 24, losses=losses) for losses in (one, other)]
    base, tuned = (evaluate.Examination(score, [], score) for score in scores)
    pair = evaluate.Evaluation(EvaluateSettings(), Path(), {}, None, Names(), rows, [], 0, "here")
    pair.examined = {"base": base, "tuned": tuned}
    deep = pair.compare()
    assert compare_models.worst(*pair.losses()) == [23, 22, 21]
    assert len(deep["turns"]) == 2 and len(compare_models.sentences(deep)) == 2
    assert list(deep) == ["difference", "turns", "lengths", "plain", "parts"]
    assert deep["plain"] == deep["difference"] and deep["difference"]["better"] == 20
    assert json.loads(json.dumps(deep)) == deep
    assert deep["difference"]["detectable"] > 0
    pair.examined["base"] = evaluate.Examination(None, [])
    assert pair.compare() is None and pair.losses_by_step() == {}
