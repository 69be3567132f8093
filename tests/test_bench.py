"""The benchmark's arithmetic on made-up numbers, and its refusal if inputs are missing."""

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import summary

    return summary


def result(tokens: list[int], seconds: list[float]) -> dict:
    return {"step_tokens": tokens, "step_seconds": seconds}


@pytest.fixture
def rounds() -> list[dict]:
    """Return rounds with ratios of 2, 5 and 3, and one in which the baseline failed."""
    kit = result([100, 100], [0.5, 0.5])
    slow = [result([100, 100], [s, s]) for s in (1.0, 2.5, 1.5)]
    return [*({"kit": kit, "baseline": other} for other in slow), {"kit": kit}]


def compare(summary, **changes):
    given = {"other": "baseline", "least": 2.3} | changes
    return summary.Comparison("a", "A", "contest", summary.tokens_per_second, "kit", **given)


def test_median_and_range_are_those_of_the_rounds(summary, rounds) -> None:
    made = summary.summarise(compare(summary), rounds)
    assert made["rounds"] == [2.0, 5.0, 3.0]
    assert (made["median"], made["least"], made["largest"]) == (3.0, 2.0, 5.0)
    assert made["sides"] == {"kit": 200.0, "baseline": pytest.approx(200 / 3)}
    assert made["reached"] and made["target"] == "≥ 2.3 x"


@pytest.mark.parametrize(
    ("changes", "median", "reached"),
    [
        ({"least": 3.1}, 3.0, False),
        ({"least": None, "most": 3.0}, 3.0, True),
        ({"least": None, "most": 2.9}, 3.0, False),
        ({"how": "difference", "least": None, "most": 10.0}, 200 - 200 / 3, False),
        ({"how": "alone", "other": "", "least": 200.0}, 200.0, True),
    ],
)
def test_targets(summary, rounds, changes, median, reached) -> None:
    made = summary.summarise(compare(summary, **changes), rounds)
    assert (made["median"], made["reached"]) == (pytest.approx(median), reached)


def test_a_figure_that_no_program_logs_is_shown_as_missing(summary, rounds) -> None:
    mfu = summary.Comparison("m", "M", "contest", summary.mfu, "kit", how="alone", least=0.55)
    made = summary.summarise(mfu, rounds)
    assert made["median"] is None and not made["reached"]
    assert summary.row(made) == "| M | no figure | | ≥ 0.55 x | no | |"
    rounds[0]["kit"]["mfu"] = [0.5, 0.7]
    assert summary.summarise(mfu, rounds[:1])["median"] == pytest.approx(0.6)


def test_the_readme_keeps_its_prose(summary, rounds) -> None:
    machine = {"cpu": "C", "cores": 2, "memory_gib": 8, "system": "S", "versions": {"torch": "2"}}
    report = {"machine": machine, "comparisons": [summary.summarise(compare(summary), rounds)]}
    readme = f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n"
    made = summary.into_readme(readme, report)
    assert summary.into_readme(made, report) == made
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert "Medians of 3 rounds. C, 2 cores, 8 GiB, S; torch 2." in made
    line = "| A | 3.00 x | 2.00 to 5.00 | ≥ 2.3 x | yes | kit 200, baseline 66.7 |"
    assert line in made.splitlines()
    with pytest.raises(ValueError, match="put them where the table belongs"):
        summary.into_readme("no marks", report)
    (BENCHMARKS / "README.md").read_text("utf-8").index(summary.END)


@pytest.mark.parametrize("module", ["summary", "running", "inputs"])
def test_examples_in_the_docstrings(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_every_comparison_names_existing_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    contests = measure.contests(measure.FULL)
    for c in measure.COMPARISONS:
        assert {c.one, c.other} - {""} <= set(contests[c.contest])
        assert (c.least is None) != (c.most is None)
    scripts = {command[0] for programs in contests.values() for command in programs.values()}
    assert all((BENCHMARKS / script).is_file() for script in scripts)
    assert {c.contest for c in measure.COMPARISONS} == set(contests)


def test_programs_with_different_conversations_are_refused(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    same, other = result([1, 2], [1, 1]), result([1, 3], [1, 1])
    measure.check_equal_work({"kit": same, "baseline": dict(same), "trl": other, "none": None})
    with pytest.raises(SystemExit, match="different conversations"):
        measure.check_equal_work({"kit": same, "baseline": other})


def test_missing_inputs_are_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    said = subprocess.run(
        [sys.executable, BENCHMARKS / "measure.py"],
        env={**os.environ, "BENCH_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith("error: BENCH_DATA: no gpt-neox-tokenizer, ")
    assert "gsm8k_test.txt" not in line and line.endswith(
        " -- set it to the folder that holds them"
    )


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the benchmark reads Linux's /proc"
)
def test_a_program_is_run_and_its_result_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import running

    code = "import time; x = bytearray(200_000_000); time.sleep(1); print('{\"seconds\": 2}')"
    made = running.run(
        [sys.executable, "-c", code], os.environ, tmp_path, tmp_path / "log", watch=True
    )
    assert made["seconds"] == 2 and made["wall_seconds"] > 1
    assert 0.2 < made["pss_gb"] < 0.3
    with pytest.raises(running.Failed, match="exit code 3"):
        running.run([sys.executable, "-c", "exit(3)"], os.environ, tmp_path, tmp_path / "log")
    assert json.loads(json.dumps(made)) == made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def test_the_table_of_a_gpu_has_medians_of_rounds_and_says_what_failed(gpu) -> None:
    kit = [result([100], [s]) | {"peak_rss_gib": g, "forecast_gib": 9.0}
           for s, g in ((1.0, 8.0), (0.5, 8.5), (2.0, 8.0))]  # fmt: skip
    trl = [result([100], [2.0]) | {"peak_rss_gib": 20.0}] * 2
    results = {"shape": {"kit": kit, "TRL": [*trl, "failed: exit code 1"], "flash": ["none"] * 3}}
    assert gpu.table(results).splitlines()[2:] == [
        "| shape | kit | 100 (50 to 200) | 1.00 | 8.5 | 9 |",
        "| shape | TRL | 50 (50 to 50) | 3.00 | 20 |  |",
        "| shape | flash | none |  |  |  |",
    ]


@pytest.mark.process
def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "BENCH_DATA": str(tmp_path)}
    script = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: BENCH_DATA: no gpt-neox-tokenizer")


def test_the_table_of_several_nodes_is_what_its_script_prints() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "scale.py"], capture_output=True, text=True)
    shown = (BENCHMARKS.parent / "docs" / "scale.md").read_text()
    assert done.stdout in shown and done.stdout.count("\n") == 6, done.stderr


def test_a_contest_measured_again_in_part_keeps_the_rounds_that_others_rest_on(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    a, b, c = {"kit": 1, "trl": 2}, {"kit": 3, "bare": 4}, {"kit": 5, "trl": 6}
    assert measure._with_older({"one": [c]}, {"one": [a, b], "other": [a]}) == {"one": [b, c]}
    assert measure._with_older({"one": [c]}, {}) == {"one": [c]}
