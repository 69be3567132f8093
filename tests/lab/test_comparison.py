"""comparison.py, compare_runs.py and seeds.py, on run files written by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from neoxkit import files
from neoxkit.errors import UserError
from neoxkit.evaluation import compare_runs, first, seeds
from neoxkit.lab import comparison, fitting
from neoxkit.runs.events import METRICS, append_event
from neoxkit.runs.folder import ARGUMENTS, DATASET, FINISHED
from neoxkit.settings import CompareSettings

STARTED_WITH = {
    "output_dir": "", "dataset": "data/tokenized/small", "dataset_sha256": "d",
    "report_to": ["none"], "deepspeed": "zero2", "learning_rate": 1e-3, "block_size": 0,
    "adam_beta1": 0.9,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ds_configs", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    return tmp_path


def make(
    home: Path,
    name: str,
    tokens: int,
    losses: list[float],
    eval_tokens: int = 50,
    **changes: object,
) -> Path:
    """Make a run with `tokens` trained tokens between evaluations, which are ten steps apart."""
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    values = STARTED_WITH | {"output_dir": f"runs/{name}"} | changes
    files.write_json(folder / ARGUMENTS, values)
    steps = 10 * len(losses)
    append_event(
        folder, "start", step=0, resumed_step=0, planned_steps=steps, num_ranks=1,
        matmul_peak_tflops=1.0,
    )  # fmt: skip
    for i, loss in enumerate(losses, start=1):
        append_event(
            folder, "train", step=10 * i, loss=loss + 0.5, tokens=2 * tokens, memory_gib=0.5,
            trained_tokens=tokens, seconds=2.0, padding_share=0.0, tflop=1.0,
            tokens_per_second=float(tokens),
        )  # fmt: skip
        append_event(folder, "eval", step=10 * i, loss=loss, trained_tokens=eval_tokens)
    files.write_json(folder / FINISHED, {"step": steps, "planned_steps": steps})
    return folder


def test_a_run_of_which_only_the_base_was_evaluated_sets_no_equal_tokens(home: Path) -> None:
    make(home, "a", 100, [4.0, 2.0])
    begun = make(home, "b", 100, [])
    append_event(begun, "eval", step=0, loss=0.5, trained_tokens=50)
    append_event(
        begun, "train", step=5, loss=0.5, tokens=200, memory_gib=0.5, trained_tokens=100,
        seconds=2.0, padding_share=0.0, tflop=1.0,
    )  # fmt: skip
    for name in "ab":
        (home / "runs" / name / FINISHED).unlink()
    chosen = compare_runs.load_runs(["a", "b"])
    assert compare_runs.equal_tokens(chosen) == 200
    by_run = {line["run"]: line["eval_loss"] for line in compare_runs.scores(chosen)}
    assert by_run == {"a": 2.0, "b": None}


def test_only_what_differs_is_shown(home: Path) -> None:
    make(home, "a", 100, [3.0])
    make(home, "b", 100, [2.0], learning_rate=2e-3, adam_beta1=0.8)
    assert compare_runs.differing(compare_runs.load_runs([])) == {
        "learning_rate": [1e-3, 2e-3],
        "adam_beta1": [0.9, 0.8],
    }


def test_losses_are_compared_at_equal_trained_tokens(home: Path) -> None:
    """a has 100 and 200 tokens, b only 150: there, a is halfway between its evaluations."""
    make(home, "a", 100, [4.0, 2.0])
    make(home, "b", 150, [2.5], learning_rate=2e-3)
    chosen = compare_runs.load_runs(["a", "b"])
    assert compare_runs.equal_tokens(chosen) == 150
    assert [compare_runs.eval_loss_at(run, 150) for run in chosen] == [3.0, 2.5]
    assert compare_runs.eval_loss_at(chosen[0], 99) is None  # before the first evaluation
    assert [line["run"] for line in compare_runs.scores(chosen)] == ["a", "b"]  # by the final loss
    shown = comparison.table(chosen).text.splitlines()
    assert "eval loss at 150 tokens" in shown[0] and "3.0000" in shown[1]


def test_a_run_that_failed_early_does_not_move_the_point_of_comparison(
    home: Path,
) -> None:
    make(home, "a", 100, [4.0, 2.0])
    (make(home, "b", 100, [9.0], learning_rate=2e-3) / FINISHED).unlink()
    chosen = compare_runs.load_runs([])
    assert compare_runs.equal_tokens(chosen) == 200
    assert [line["equal_loss"] for line in compare_runs.scores(chosen)] == [2.0, None]
    assert compare_runs.equal_tokens(chosen[1:]) == 100


def test_a_run_without_an_evaluation_does_not_disturb_the_others(home: Path) -> None:
    make(home, "a", 100, [4.0, 2.0])
    folder = make(home, "b", 100, [float("nan")], learning_rate=2e-3)
    assert json.loads((folder / METRICS).read_text().splitlines()[-1])["loss"] is None
    chosen = compare_runs.load_runs([])
    assert compare_runs.equal_tokens(chosen) == 200
    assert [line["equal_loss"] for line in compare_runs.scores(chosen)] == [2.0, None]
    assert comparison.table(chosen).text


def test_a_run_from_a_shell_or_one_that_failed_early_is_compared_as_well(home: Path) -> None:
    make(home, "a", 100, [4.0])
    flags = {"learning_rate": "0.001", "gradient_checkpointing": "None", "dataset_sha256": "d"}
    files.write_json(make(home, "b", 100, [3.0]) / ARGUMENTS, flags | {"report_to": "none"})
    (make(home, "c", 100, [2.0]) / ARGUMENTS).unlink()
    make(home, "d", 100, [1.0], lr_scheduler_type="polynomial")  # a user's own file
    chosen = compare_runs.load_runs([])
    assert [run.name for run in chosen] == ["a", "b", "c", "d"]
    assert compare_runs.differing(chosen)["learning_rate"] == [1e-3, "0.001", None, 1e-3]
    assert compare_runs.notes(chosen) == []  # a missing card is not other data


def test_the_ranks_are_those_of_the_last_start(home: Path) -> None:
    folder = make(home, "a", 100, [4.0])
    lines = (folder / METRICS).read_text()
    failed = json.dumps({"event": "start", "step": 0, "num_ranks": 2}) + "\n"
    (folder / METRICS).write_text(failed + lines)
    assert compare_runs.load_runs(["a"])[0].settings["num_ranks"] == 1


def test_evaluations_between_two_logged_steps_count_what_was_trained_by_then(home: Path) -> None:
    folder = make(home, "a", 100, [4.0])
    append_event(folder, "eval", step=5, loss=5.0, trained_tokens=50)
    (run,) = compare_runs.load_runs(["a"])
    assert run.trained_tokens([0, 5, 10]).tolist() == [0, 50, 100]


def test_different_held_out_sets_and_unfinished_runs_are_noted(home: Path) -> None:
    make(home, "a", 100, [3.0])
    (make(home, "b", 100, [2.0], eval_tokens=40) / FINISHED).unlink()
    sides, state = compare_runs.notes(compare_runs.load_runs([]))
    assert "40 and 50 trained tokens" in sides and state == "b is killed"
    assert compare_runs.notes(compare_runs.load_runs(["a"])) == []


def test_labels_are_the_values_that_differ_or_the_names(home: Path) -> None:
    make(home, "a", 100, [3.0])
    make(home, "b", 100, [2.0], learning_rate=2e-3)
    assert compare_runs.labels(compare_runs.load_runs([])) == ("learning_rate", ["0.001", "0.002"])
    make(home, "c", 100, [2.0], learning_rate=2e-3)
    assert compare_runs.labels(compare_runs.load_runs([])) == ("run", ["a", "b", "c"])


def test_two_settings_make_a_grid_with_gaps(home: Path) -> None:
    """Runs are compared at the 100 tokens that all reached, though one went further."""
    for name, rate, size, losses in (
        ("a", 2e-3, 8, [1.0]), ("b", 1e-3, 8, [2.0]), ("c", 1e-3, 16, [3.0, 0.5]),
    ):  # fmt: skip
        make(home, name, 100, losses, learning_rate=rate, block_size=size)
    found = compare_runs.grid(compare_runs.load_runs([]))
    assert (found["row_name"], found["rows"]) == ("learning_rate", [1e-3, 2e-3])
    assert (found["column_name"], found["columns"]) == ("block_size", [8, 16])
    assert np.array_equal(found["losses"], [[2.0, 3.0], [1.0, np.nan]], equal_nan=True)
    assert found["counts"].tolist() == [[1, 1], [1, 0]]
    assert compare_runs.grid(compare_runs.load_runs(["a", "b"])) is None


def test_a_trial_is_loaded_only_by_its_name(home: Path) -> None:
    """A pattern leaves trials out: otherwise all runs would be compared at a trial's few tokens."""
    make(home, "lr.1", 100, [3.0])
    make(home, "lr.1.probe", 5, [9.0], trial=True)
    assert [run.name for run in compare_runs.load_runs(["lr.*"])] == ["lr.1"]
    assert [run.name for run in compare_runs.load_runs([])] == ["lr.1"]
    assert [run.name for run in compare_runs.load_runs(["lr.1.probe"])] == ["lr.1.probe"]


def test_runs_are_compared_even_at_an_evaluation_between_two_logged_steps(home: Path) -> None:
    """Half of 99 tokens is not a whole number."""
    folder = make(home, "a", 99, [3.0])
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    lines[-1]["step"] = 5
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = compare_runs.load_runs([])
    assert compare_runs.equal_tokens([run]) == 49.5
    assert compare_runs.eval_loss_at(run, 49.5) == 3.0


def test_a_cell_of_the_grid_is_the_mean_over_its_seeds(home: Path) -> None:
    for name, rate, size, seed, loss in (
        ("a", 1e-3, 8, 1, 1.0), ("b", 1e-3, 8, 2, 2.0), ("c", 2e-3, 16, 1, 4.0),
    ):  # fmt: skip
        make(home, name, 100, [loss], learning_rate=rate, block_size=size, seed=seed)
    found = compare_runs.grid(compare_runs.load_runs([]))
    assert (found["row_name"], found["column_name"]) == ("learning_rate", "block_size")
    assert np.array_equal(found["losses"], [[1.5, np.nan], [np.nan, 4.0]], equal_nan=True)
    assert found["counts"].tolist() == [[2, 0], [0, 1]]


def test_runs_that_differ_only_in_their_seed_are_one_line(home: Path) -> None:
    """By hand: 1 and 2 have mean 1.5, standard error 0.5, and t = 12.706 at 95 %."""
    for rate, seed, loss in ((1e-3, 1, 1.0), (1e-3, 2, 2.0), (2e-3, 1, 1.5), (2e-3, 2, 2.7)):
        make(home, f"r{rate}.{seed}", 100, [loss], learning_rate=rate, seed=seed)
    (make(home, "killed", 100, [0.1], learning_rate=1e-3, seed=3) / FINISHED).unlink()
    chosen = compare_runs.load_runs([])
    first, second = seeds.over_seeds(chosen)
    assert (first.differs, first.by_seed) == ({"learning_rate": 1e-3}, {1: 1.0, 2: 2.0})
    assert (second.differs, second.mean) == ({"learning_rate": 2e-3}, pytest.approx(2.1))
    assert first.interval() == pytest.approx((1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), abs=1e-3)
    _, above = seeds.above_the_first([first, second])
    assert above == pytest.approx((0.6 - 12.706 * 0.1, 0.6 + 12.706 * 0.1), abs=1e-3)
    lines = comparison.seeds(chosen).text.splitlines()
    assert lines[1].split() == ["0.001", "1,", "2", "1.5000", "-4.8531", "to", "7.8531"]
    assert lines[2].endswith("+0.6000 (-0.6706 to +1.8706)")


def test_there_is_no_such_line_without_seeds_or_if_more_differs(home: Path) -> None:
    make(home, "a", 100, [3.0], seed=1)
    make(home, "b", 100, [2.0], seed=2, learning_rate=2e-3)
    assert seeds.over_seeds(compare_runs.load_runs([])) == []
    assert "No two finished runs" in comparison.seeds(compare_runs.load_runs([])).text
    make(home, "c", 100, [1.0], seed=3)
    assert [group.by_seed for group in seeds.over_seeds(compare_runs.load_runs([]))] == [
        {1: 3.0, 3: 1.0},
        {2: 2.0},
    ]


def carded(folder: Path, base: str, **code: object) -> None:
    """Give a run a card: the hash of its base, and the code it was started with."""
    start = {"code": code, "versions": {}, "machine": {}}
    base_sha256 = {"model.safetensors": base}
    card = {"dataset_sha256": "d", "base_sha256": base_sha256, "starts": [start]}
    files.write_json(folder / "run_card.json", card)


def test_random_initial_weights_do_not_split_a_group_of_seeds(home: Path) -> None:
    for seed, scratch in ((1, True), (2, True), (3, False), (4, False)):
        carded(make(home, f"{seed}", 100, [3.0], seed=seed, from_scratch=scratch), f"{seed}")
    found = [group.by_seed for group in seeds.over_seeds(compare_runs.load_runs([]))]
    assert found == [{1: 3.0, 2: 3.0}, {3: 3.0}, {4: 3.0}]
    assert len(comparison.seeds(compare_runs.load_runs([])).text.splitlines()) == 4


def test_other_code_does_not_split_a_group_and_is_noted(home: Path) -> None:
    """A commit made overnight, or a changed file, is not a setting."""
    carded(make(home, "a", 100, [3.0], seed=1), "b", commit="x", clean=True)
    carded(make(home, "b", 100, [2.0], seed=2), "b", commit="y", clean=False)
    chosen = compare_runs.load_runs([])
    (group,) = seeds.over_seeds(chosen)
    assert (group.differs, group.by_seed) == ({}, {1: 3.0, 2: 2.0})
    (note,) = compare_runs.notes(chosen)
    assert note == "besides settings, these differ: code commit, code clean"


def test_a_seed_that_was_trained_twice_counts_once_and_is_named(home: Path) -> None:
    for name, seed, loss in (("a", 1, 1.0), ("b", 2, 2.0), ("b.repeat-1", 2, 4.0)):
        make(home, name, 100, [loss], seed=seed)
    (group,) = seeds.over_seeds(compare_runs.load_runs([]))
    assert (group.by_seed, group.mean) == ({1: 1.0, 2: 3.0}, 2.0)
    assert "1, 2 (2 runs)" in comparison.seeds(compare_runs.load_runs([])).text


def test_different_held_out_sets_are_not_compared(home: Path) -> None:
    for size, seed in ((8, 1), (8, 2), (16, 1), (16, 2)):
        loss = size + seed
        make(home, f"{size}.{seed}", 100, [loss], eval_tokens=size, block_size=size, seed=seed)
    lines = comparison.seeds(compare_runs.load_runs([])).text.splitlines()
    assert lines[2].endswith("another held-out set")


def test_a_seed_is_known_from_a_shell_or_by_default(home: Path) -> None:
    """A user's own arguments may leave the seed at its default."""
    flags = {"seed": 7, "from_scratch": False, "report_to": "none", "dataset_sha256": "d"}
    for name, base in (("a", "aaa"), ("b", "bbb")):
        folder = make(home, name, 100, [3.0])
        files.write_json(folder / ARGUMENTS, flags | {"seed": 7 if name == "a" else 8})
        carded(folder, base)
    assert seeds.over_seeds(compare_runs.load_runs([])) == []  # their bases differ
    carded(folder, "aaa")
    (group,) = seeds.over_seeds(compare_runs.load_runs([]))
    assert group.by_seed == {7: 3.0, 8: 3.0}
    del flags["seed"]
    files.write_json(folder / ARGUMENTS, flags)
    (group,) = seeds.over_seeds(compare_runs.load_runs([]))
    assert group.by_seed == {7: 3.0, 42: 3.0}


def test_seeds_not_evaluated_at_the_point_of_comparison_are_noted(home: Path) -> None:
    """A short run of another kind is among them."""
    for name, rate, size in (("a", 1e-3, 8), ("b", 2e-3, 16)):
        make(home, name, 100, [3.0], learning_rate=rate, block_size=size, seed=1)
    make(home, "c", 5, [3.0], learning_rate=2e-3, block_size=8, seed=2)
    chosen = compare_runs.load_runs([])
    assert "were evaluated at 5 tokens" in comparison.seeds(chosen).text


def test_means_over_other_seeds_have_no_interval_between_them(home: Path) -> None:
    for rate, seed, loss in ((1e-3, 1, 1.0), (1e-3, 2, 2.0), (2e-3, 2, 3.0)):
        make(home, f"r{rate}.{seed}", 100, [loss], learning_rate=rate, seed=seed)
    lines = comparison.seeds(compare_runs.load_runs([])).text.splitlines()
    assert lines[2].split() == ["0.002", "2", "3.0000", "+1.5000"]


def test_runs_are_chosen_by_name_pattern_or_folder(home: Path, tmp_path: Path) -> None:
    for name in ("lr.1", "lr.2", "other"):
        make(home, name, 100, [3.0])
    copied = tmp_path / "elsewhere" / "copied"
    shutil.copytree(home / "runs" / "other", copied)
    assert [r.name for r in compare_runs.load_runs(["lr.*"])] == ["lr.1", "lr.2"]
    assert [r.name for r in compare_runs.load_runs(["lr.2", "lr.*", str(copied)])] == [
        "lr.2",
        "lr.1",
        "copied",
    ]
    assert [r.name for r in compare_runs.load_runs(["runs/lr.1"])] == ["lr.1"]  # below the root
    twice = copied.with_name("lr.1")
    copied.rename(twice)
    assert [r.name for r in compare_runs.load_runs(["lr.1", str(twice)])] == [
        "runs/lr.1",
        "elsewhere/lr.1",
    ]
    with pytest.raises(
        UserError, match=r"runs: 'lr\.3' is not a run here -- did you mean lr\.[12]"
    ):
        compare_runs.load_runs(["lr.3"])


def test_the_figures_are_saved_as_they_were_logged(home: Path) -> None:
    make(home, "a", 100, [10 / 3])
    scored = {"runs/a": "is stopped"}
    comparison.save(compare_runs.load_runs([]), CompareSettings(name="night"), scored)
    saved = json.loads((home / "runs" / "night" / "comparison.json").read_text())
    assert saved["scores"][0]["eval_loss"] == 10 / 3 and saved["runs"] == ["a"]
    assert saved["on_the_same_conversations"] == scored


def test_by_default_the_runs_of_the_newest_dataset_are_taken_and_the_rest_is_counted(
    home: Path,
) -> None:
    make(home, "a", 100, [3.0])
    make(home, "b", 100, [3.0], dataset_sha256="e", dataset="data/tokenized/other")
    make(home, "c", 100, [3.0], trial=True)
    make(home, "d", 100, [3.0])
    (make(home, "e", 100, [3.0]) / ARGUMENTS).unlink()
    chosen, said = compare_runs.choose([])
    assert [run.name for run in chosen] == ["a", "d"]
    assert said == (
        "2 runs of the newest run's dataset, small; left out: 1 run of other datasets, "
        '1 run whose dataset is unknown, 1 trial -- runs = ["*"] takes every run, a trial is '
        "taken by its name"
    )
    append_event(home / "runs" / "b", "stop", step=10)  # now the newest
    assert [run.name for run in compare_runs.choose([])[0]] == ["b"]
    every, said = compare_runs.choose(["*"])
    assert ([run.name for run in every], said) == (["a", "b", "d", "e"], "4 runs")
    assert [run.name for run in compare_runs.choose(["c", "b"])[0]] == ["c", "b"]


def test_a_dataset_that_was_made_anew_is_another_one(home: Path) -> None:
    make(home, "old", 100, [3.0], dataset_sha256="0123456789abcdef")
    make(home, "new", 100, [3.0], dataset_sha256="fedcba9876543210")
    chosen, said = compare_runs.choose([])
    assert [run.name for run in chosen] == ["new"]
    assert "dataset, small fedcba987654; left out: 1 run of other datasets -- runs" in said


def test_nothing_is_said_to_be_left_out_if_nothing_is(home: Path) -> None:
    assert compare_runs.choose([]) == ([], "0 runs")
    make(home, "a", 100, [3.0])
    assert compare_runs.choose([])[1] == "1 run of the newest run's dataset, small"


CORNERS = ("run", "setting")


def shown(runs: int, settings: int, value: str = "0.0005") -> list[list[list[str]]]:
    """Return the tables, as rows of cells, of so many runs and settings with wide names."""
    names = [f"night.per_device_train_batch_size={i}" for i in range(runs)]
    columns = [f"gradient_accumulation_steps_{i}" for i in range(settings)]
    cells = [[f"{value}{i}.{j}" for j in range(settings)] for i in range(runs)]
    found = fitting.table(names, columns, cells, CORNERS)
    assert found.html.count("<table") == found.text.count("\n\n") + 1
    return [[row.split() for row in part.splitlines()] for part in found.text.split("\n\n")]


def test_few_runs_are_columns_and_few_settings_are_columns() -> None:
    (table,) = shown(2, 12)
    assert table[0] == ["setting", *(f"night.per_device_train_batch_size={i}" for i in range(2))]
    assert len(table) == 13 and table[1][1:] == ["0.00050.0", "0.00051.0"]
    (table,) = shown(20, 2)
    assert table[0][0] == "run" and len(table) == 21


def test_what_does_not_fit_continues_below_with_the_same_rows_and_nothing_is_lost() -> None:
    tables = shown(20, 12)
    assert len(tables) > 1
    assert len({tuple(row[0] for row in table) for table in tables}) == 1
    rows = [[value for table in tables for value in table[i][1:]] for i in range(21)]
    assert rows[0] == [f"gradient_accumulation_steps_{i}" for i in range(12)]
    assert rows[1:] == [[f"0.0005{i}.{j}" for j in range(12)] for i in range(20)]


def test_a_column_that_is_too_wide_by_itself_is_shown_alone() -> None:
    assert len(shown(3, 3, value="x" * 39)) == 3


def test_no_table_is_wider_than_the_room() -> None:
    """Cells may break at dots and underscores; the widest piece of each column counts."""
    for table in shown(20, 12):
        columns = [*zip(*table, strict=True)]
        assert sum(fitting._width(of[0], of[1:]) for of in columns) <= fitting.ROOM


def test_the_scoreboard_shows_everything_the_lesser_figures_folded(home: Path) -> None:
    make(home, "a", 100, [3.0])
    table = comparison.table(compare_runs.load_runs([]))
    first, more = table.html.split("<details>")
    assert "tokens trained on" in first and "perplexity" not in first
    assert all(name in more for name in ("perplexity", "useful tokens/s", "memory", "seconds"))
    assert ">20.086<" in more and "20.086" in table.text


def looked(folder: Path, low: float | None, by_all: int) -> None:
    """Write what 03 leaves of a look at the test side."""
    difference = {"mean": -0.5, "low": low, "high": low and -0.4}
    loss = {"loss": 2.25, "conversations": 40}
    results = {"eval_loss": {"base": loss, "tuned": loss}, "depth": {"difference": difference}}
    looks = {"by_run": 1, "by_all": by_all}
    files.write_json(folder / "evaluation_test.json", results | {"looks": looks})


def test_04_says_that_the_first_was_chosen_by_the_side_that_reports_it(home: Path) -> None:
    """One run is not chosen; nor does one without an eval loss take part."""
    make(home, "a", 100, [3.0])
    make(home, "b", 100, [float("nan")])
    assert first.facts(compare_runs.load_runs([])) is None
    assert "chosen" not in comparison.table(compare_runs.load_runs([])).text
    best = make(home, "c", 100, [2.0], learning_rate=2e-3)
    chosen = compare_runs.load_runs([])
    why = "c was chosen by these losses, the lowest of 2, so that its own may be low by luck."
    other = "A dataset with a test side (01, test_share) has a figure that did not choose."
    assert f"{why} {other}" in comparison.table(chosen).text
    files.write_json(best / DATASET, {"sides": {"train": {}, "eval": {}, "test": {}}})
    remedy = "03_evaluate of it with side test gives a figure that did not choose."
    assert f"{why} {remedy}" in comparison.table(chosen).text
    comparison.save(chosen, CompareSettings(name="all"), {})
    assert files.read_json(home / "runs" / "all" / "comparison.json")["first"] == {
        "run": "c", "out_of": 2, "has_test_side": True, "on_the_test_side": None,
    }  # fmt: skip


def test_04_shows_the_firsts_figure_on_the_test_side_and_no_others(home: Path) -> None:
    best, other = make(home, "a", 100, [2.0]), make(home, "b", 100, [3.0])
    looked(other, -0.6, by_all=1)
    chosen = compare_runs.load_runs([])
    assert "On the test side" not in comparison.table(chosen).text
    looked(best, -0.6, by_all=3)
    said = (
        "On the test side, which did not choose: loss 2.2500, tuned minus base -0.5000, between "
        "-0.6000 and -0.4000 (95 %), over 40 conversations. This is look 1 at the test side by "
        "this run, and look 3 by all runs of its dataset."
    )
    assert said in comparison.table(chosen).text
    looked(best, None, by_all=3)  # fewer than 20 conversations
    assert "base -0.5000, over 40 conversations" in comparison.table(chosen).text
    results = files.read_json(best / "evaluation_test.json")
    results["eval_loss"] = {"base": None, "tuned": None}
    files.write_json(best / "evaluation_test.json", results | {"depth": None})
    assert first.facts(chosen)["on_the_test_side"] is None
