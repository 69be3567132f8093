"""paired.py and answers.py: the same questions, answered by two models or by several runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from neoxkit import files
from neoxkit.evaluation import answers, paired
from neoxkit.evaluation.compare_runs import Run
from neoxkit.evaluation.paired import Pairs
from neoxkit.lab import comparison
from neoxkit.runs.events import History

SHARES = (  # of both, gained, lost, neither
    (0.3, 0.3, 0.1, 0.3), (0.05, 0.2, 0.2, 0.55), (0.9, 0.05, 0.01, 0.04), (0, 0.5, 0.02, 0.48),
)  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "low", "high"),
    [(Pairs(59, 16, 6, 80), 0.0046, 0.1186), (Pairs(1, 7, 1, 12), 0.0256, 0.5069)],
)
def test_the_interval_is_that_of_the_textbook(pairs: Pairs, low: float, high: float) -> None:
    """Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8; with
    base and tuned exchanged it is the same interval with another sign."""
    assert pairs.interval() == pytest.approx((low, high), abs=6e-5)
    other_way = Pairs(pairs.both, pairs.lost, pairs.gained, pairs.neither)
    assert other_way.interval() == pytest.approx((-high, -low), abs=6e-5)


@pytest.mark.parametrize("num", [20, 40, 200])
@pytest.mark.parametrize("shares", SHARES)
def test_the_interval_covers_the_true_difference(num: int, shares: tuple[float, ...]) -> None:
    """In 94 % of cases at least; an interval for unpaired shares would do so in nearly all."""
    cases = np.random.default_rng(1).multinomial(num, shares, 2000)
    covered = sum(
        low <= shares[1] - shares[2] <= high
        for low, high in (Pairs(*map(int, case)).interval() for case in cases)
    )
    assert covered / len(cases) >= 0.94


def test_the_test_is_exact_and_of_those_that_differ_alone() -> None:
    for gained, lost in ((13, 1), (1, 13), (4, 4), (5, 0)):
        p = stats.binomtest(gained, gained + lost).pvalue
        assert Pairs(3, gained, lost, 50).p_value() == pytest.approx(p)
        assert Pairs(70, gained, lost, 0).p_value() == pytest.approx(p)
    assert Pairs(3, 0, 0, 5).p_value() == 1
    assert Pairs(0, 2, 9, 5).p_value(comparisons=3) == pytest.approx(
        3 * Pairs(0, 2, 9, 5).p_value()
    )


def test_what_all_questions_share_hides_no_difference() -> None:
    """50 and 60 of 100: as two samples of 100 questions that is chance (p 0.2)."""
    pairs = Pairs(both=50, gained=10, lost=0, neither=40)
    assert stats.fisher_exact([[50, 50], [60, 40]]).pvalue > 0.15
    assert pairs.p_value() < 0.01 and pairs.interval()[0] > 0.03


def test_pairs_are_made_question_by_question() -> None:
    first, second = [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]
    assert Pairs.of(first, second) == Pairs(both=1, gained=2, lost=1, neither=1)
    with pytest.raises(AssertionError):
        Pairs.of([1], [1, 0])


def test_a_difference_is_said_in_its_own_direction() -> None:
    more = paired.exact(Pairs(4, 13, 1, 22))
    assert paired.exact(Pairs(4, 1, 13, 22)) == more.replace("more", "fewer")
    assert paired.exact(Pairs(4, 3, 3, 22)).startswith("as many of 32 exact, 95 % interval -")


def test_a_metric_is_paired_by_document() -> None:
    chance = np.random.default_rng(0)
    hard = chance.normal(0, 5, 40)
    base, tuned = hard + chance.normal(0, 0.1, 40), hard + 0.3 + chance.normal(0, 0.1, 40)
    found = paired.values(base.tolist(), tuned.tolist())
    assert 0.2 < found["low"] < found["mean"] < found["high"] < 0.4 and found["p"] is None
    few = paired.values([0.5, 0.1], [0.7, 0.2])
    assert (few["low"], few["high"], few["p"]) == (None, None, None)
    right = paired.values([0, 0, 1, 1], [1.0, 1.0, 1.0, 0.0])
    low, high = Pairs(1, 2, 1, 0).interval()
    assert right == {"mean": 0.25, "low": low, "high": high, "p": 1.0}


@pytest.mark.parametrize("questions", [40, 200])
def test_few_sweeps_of_equal_runs_make_a_false_claim(tmp_path: Path, questions: int) -> None:
    """Twelve runs that are right equally often: the first is chosen by looking."""
    chance, false, alone = np.random.default_rng(4), 0, 0
    for _ in range(100):
        easy = chance.random(questions)
        right = chance.random((12, questions)) < easy
        lines = {f"{i}": lines_of(of.tolist()) for i, of in enumerate(right)}
        rows = answers._ranked(lines, "s")[1:]
        pairs = [Pairs(**row["to_the_first"]) for row in rows]
        false += any(one.interval(rows[0]["comparisons"])[1] < 0 for one in pairs)
        alone += any(one.interval()[1] < 0 for one in pairs)
    assert false <= 6 and alone > 50


def lines_of(right: list[bool], asked: str = "q") -> list[dict]:
    return [
        {"set": "s", "prompt": f"{asked}{i}\u2028", "reference": "r", "tuned": {"exact": one}}
        for i, one in enumerate(right)
    ]


def made(home: Path, name: str, lines: list[dict], **settings: object) -> Run:
    """Make a run that was evaluated, with these lines in replies.jsonl."""
    (home / name).mkdir()
    how = {"max_new_tokens": 64, "do_sample": False, "temperature": 0.7} | settings
    files.write_json(home / name / "evaluation.json", {"settings": how})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (home / name / "replies.jsonl").write_text(text)
    return Run(name, home / name, "finished", {}, {}, History())


def test_runs_are_compared_on_the_same_questions_alone(tmp_path: Path) -> None:
    few, many = [i < 4 for i in range(40)], [i < 30 for i in range(40)]
    free = {"set": "mine", "prompt": "?", "reference": None, "tuned": {"exact": None}}
    bare = Run("bare", tmp_path / "bare", "finished", {}, {}, History())
    chosen = [
        bare,
        made(tmp_path, "few", [*lines_of(few), free]),
        made(tmp_path, "many", lines_of(many)),
        made(tmp_path, "others", lines_of(many, "other")),
        made(tmp_path, "longer", lines_of(many), max_new_tokens=9),
        made(tmp_path, "older", [{"tuned": {}}]),
        made(tmp_path, "free", [free]),
    ]
    found = answers.counted(chosen)
    assert found["without"] == {
        "bare": "was not evaluated by 03",
        "older": "was evaluated by an older 03: evaluate it again",
        "free": "was asked no question with a short reference",
        "others": "was asked other questions",
        "longer": "its replies were made with another max_new_tokens",
    }
    first, second = found["sets"]["s"]
    assert (first["run"], first["exact"], first["to_the_first"]) == ("many", 30, None)
    assert second["to_the_first"] == {"both": 4, "gained": 0, "lost": 26, "neither": 10}
    assert json.loads(json.dumps(found)) == found
    lines = comparison.replies(chosen).text.splitlines()
    assert lines[1].split() == ["s", "many", "30", "of", "40"]
    assert lines[2].endswith(" 26 fewer of 40 exact, 95 % interval 18 to 31; p < 0.0001")
    assert lines[-1].startswith("Each question is compared with itself.")
    assert "hold for the two runs (McNemar" in lines[-1]
    assert "03 makes them" in comparison.replies([bare]).text
    one = answers.counted(chosen[1:2])
    assert answers.holds_for(one) == "" and one["sets"]["s"][0]["exact"] == 4
