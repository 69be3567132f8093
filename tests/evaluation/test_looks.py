"""03 on the test side: the same figures from it, in files of their own, and each look counted."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import tokenize
from datasets import load_from_disk

from neoxkit import files, paths
from neoxkit.cli import main as cli
from neoxkit.cli import notebooks, report, sweep, terminal, variants
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.evaluation import evaluate
from neoxkit.lab import evaluation
from neoxkit.runs import card, looks
from neoxkit.runs.folder import FINISHED
from neoxkit.runs.looks import Looks
from neoxkit.settings import EvaluateSettings, TokenizeSettings, TrainSettings


def finish(home: Path, name: str, dataset: str) -> EvaluateSettings:
    """Make a finished run whose tuned model is its base, the built-in model."""
    folder = home / "runs" / name
    shutil.copytree(home / "data" / "models" / "tiny", folder / "model")
    facts = {"base": "tiny", "base_commit": "", "from_scratch": False, "precision": "fp32"}
    facts |= {"dataset": f"data/tokenized/{dataset}", "block_size": 60, "step": 8}
    sha256 = tokenized.sha256(paths.tokenized(dataset))
    files.write_json(folder / FINISHED, facts | {"dataset_sha256": sha256, "warnings": []})
    return EvaluateSettings(run=name, side="test", num_questions=3, max_new_tokens=4)


@pytest.fixture
def settings(home: Path) -> Iterator[EvaluateSettings]:
    tokenize("small.txt", "tested", test_share=0.1)
    yield finish(home, "chosen", "tested")
    for name in ("chosen", "other"):
        shutil.rmtree(home / "runs" / name, ignore_errors=True)
    shutil.rmtree(paths.tokenized("tested"))


def examined(settings: EvaluateSettings) -> evaluate.Evaluation:
    pair = evaluate.prepare(settings)
    for which in evaluate.MODELS:
        pair.examine(which)
    return pair


def test_the_figures_are_those_of_the_test_side_and_leave_the_others_alone(
    home: Path, settings: EvaluateSettings
) -> None:
    folder, data = paths.run("chosen"), paths.tokenized("tested")
    before, sha256 = {p.name for p in folder.iterdir()}, tokenized.sha256(data)
    pair = examined(settings)
    test = tokenized.within(load_from_disk(data)["test"], 60)
    assert pair.rows.to_list() == test.to_list() != []
    results = pair.save()
    scored = results["eval_loss"]["tuned"]
    assert (scored["conversations"], scored["trained_tokens"]) == (len(test), sum(test["trained"]))
    assert results["depth"]["difference"]["conversations"] == len(test)
    assert results["losses_by_step"] == {}  # no checkpoint is chosen by them
    assert {p.name for p in folder.iterdir()} - before == {
        "evaluation_test.json", "replies_test.jsonl", card.CARD,
    }  # fmt: skip
    assert tokenized.sha256(data) == sha256  # a look is no other dataset
    shown = evaluation.scores(results).text
    assert "test set" in shown and "held-out set" not in shown
    assert evaluation.checkpoints(pair, results).text.startswith("The checkpoints are not scored")
    page = report._overview(folder)
    assert "This is look 1 at the test side by this run, and look 1 by all runs of" in page
    said = terminal.summary(None, folder, "test")
    assert f"test loss {scored['loss']:.2f} -> {scored['loss']:.2f} (look 1 at the test" in said


def test_the_questions_are_of_the_test_side_unless_a_file_is_named(
    home: Path, settings: EvaluateSettings
) -> None:
    pair = evaluate.prepare(settings)
    assert pair.source == "the test set"
    ends = {pair.tokenizer.decode(ids) for ids in pair.rows["input_ids"]}
    assert all(any(text.startswith(q.prompt) for text in ends) for q in pair.questions)
    same = settings.replace(side="eval")
    assert evaluate.prepare(same).source == "data/small_questions.jsonl"
    named = settings.replace(questions_file="data/small_questions.jsonl")
    assert evaluate.prepare(named).source == "data/small_questions.jsonl"


def test_each_look_is_counted_once_and_the_held_out_set_is_free(
    home: Path, settings: EvaluateSettings
) -> None:
    first = examined(settings)
    assert first.save()["looks"] == first.save()["looks"] == {"by_run": 1, "by_all": 1}
    other = examined(finish(home, "other", "tested")).save()
    assert other["looks"] == {"by_run": 1, "by_all": 2}
    assert "looks" not in examined(settings.replace(side="eval")).save()
    again = examined(settings).save()
    assert again["looks"] == {"by_run": 2, "by_all": 3}
    assert Looks(**again["looks"]).text() == (
        "This is look 2 at the test side by this run, and look 3 by all runs of its dataset."
    )
    kept = files.read_json(paths.run("chosen") / card.CARD)
    assert kept["looks"] == {"by_run": 2, "by_all": 3}


def test_a_look_that_can_not_be_counted_shows_nothing(
    home: Path, settings: EvaluateSettings
) -> None:
    pair = examined(settings)
    (paths.tokenized("tested") / tokenized.LOOKS).mkdir()
    with pytest.raises(UserError, match=r"^side: .*/looks\.jsonl can't be written, so that no"):
        pair.save()
    assert not (paths.run("chosen") / "evaluation_test.json").exists()


def test_looks_are_not_forgotten_with_a_folder(home: Path, tmp_path: Path) -> None:
    """Of a deleted run the dataset knows, and of a deleted dataset the run."""
    run, other, data = tmp_path / "run", tmp_path / "other", tmp_path / "data"
    for folder in (run, other, data):
        folder.mkdir()
    assert [looks.add(run, data), looks.add(other, data)] == [Looks(1, 1), Looks(1, 2)]
    (run / card.CARD).unlink()
    assert looks.add(run, data) == Looks(2, 3)
    (data / tokenized.LOOKS).unlink()
    assert looks.add(run, data) == Looks(3, 4)
    with (data / tokenized.LOOKS).open("a") as file:
        file.write('{"run": "ru\n[]\n')  # cut short: somebody's looks
    assert looks.add(other, data) == Looks(2, 4)


def test_the_card_shows_the_looks(home: Path, tmp_path: Path) -> None:
    starts = [{"code": {"commit": None}, "versions": {}, "machine": {
        "gpus": [], "cpu": "c", "cpu_capability": "d", "cores": 1, "memory_gib": 1}}]  # fmt: skip
    made = {"base_sha256": {}, "source": {"path": "a", "sha256": "b"}, "settings": {}, "seeds": {}}
    made |= {
        "base": "tiny",
        "revision": "",
        "base_commit": "",
        "from_scratch": False,
        "same_weights": [],
    }
    made |= {"dataset": "d", "dataset_sha256": "e", "commands": {"repeat": "r"}, "starts": starts}
    files.write_json(tmp_path / card.CARD, made)
    assert "looks at the test side" not in dict(card.rows(tmp_path))
    looks.add(tmp_path, tmp_path)
    assert dict(card.rows(tmp_path))["looks at the test side"] == (
        "1; 1 by all runs of the dataset until then"
    )
    assert card.read(tmp_path) == made | {"looks": {"by_run": 1, "by_all": 1}}


NONE = (
    "side: the dataset has no test side -- "
    "run 01_tokenize with test_share and another dataset name, and train on that"
)


def test_a_dataset_without_a_test_side_is_refused_and_the_remedy_helps(
    home: Path, settings: EvaluateSettings, capsys: pytest.CaptureFixture
) -> None:
    plain = finish(home, "other", "small")
    with pytest.raises(UserError) as refused:
        evaluate.prepare(plain)
    assert str(refused.value) == NONE
    assert not (paths.tokenized("small") / tokenized.LOOKS).exists()
    only = ["run", "--only", "03_evaluate", "-p", "side", "test"]
    assert cli.main([*only, "-p", "run", "other"]) == 2
    assert capsys.readouterr().err.endswith(f"{NONE}\n")
    assert evaluate.prepare(settings).rows  # of a dataset with test_share


def test_a_command_that_would_end_without_a_test_side_is_refused_before_it_begins(
    home: Path, settings: EvaluateSettings
) -> None:
    first, train = TokenizeSettings(train_file="data/small.txt"), TrainSettings(dataset="small")
    with pytest.raises(
        UserError, match=r"^side: 01 takes no test side -- set test_share, 0.1 say$"
    ):
        notebooks._check_test_side(first, train, settings)
    notebooks._check_test_side(first.replace(test_share=0.1), train, settings)
    with pytest.raises(UserError, match=r"^side: the dataset has no test side"):
        notebooks._check_test_side(None, train, settings)
    notebooks._check_test_side(None, train.replace(dataset="tested"), settings)
    notebooks._check_test_side(None, None, settings)


def test_a_sweep_does_not_look_at_the_test_side_and_is_not_confused_by_a_look(
    home: Path, settings: EvaluateSettings
) -> None:
    both = ["02_train", "03_evaluate"]
    for fixed, swept in (({"side": "test"}, {}), ({}, {"side": ["eval", "test"]})):
        with pytest.raises(UserError, match=r"^side: would have every run look at the test side"):
            variants.variants({"run": "g", **fixed}, {"seed": [1, 2], **swept}, notebooks=both)
    own = {"run": "chosen", "num_questions": 3, "max_new_tokens": 4}
    variant = variants.Variant(own, TrainSettings(run="chosen"))
    examined(settings.replace(side="eval")).save()
    assert sweep.is_done(variant, both)
    examined(settings).save()
    assert sweep.is_done(variant, both)


@pytest.mark.process
def test_03_says_which_look_this_is(home: Path, settings: EvaluateSettings) -> None:
    """The notebook itself, twice; its copy is the record of the second look."""
    flags = ["-p", "run", "chosen", "-p", "side", "test", "-p", "num_questions", "3"]
    for _ in range(2):
        assert cli.main(["run", "--only", "03_evaluate", *flags]) == 0
    nb = nbformat.read(paths.run("chosen") / "03_evaluate.ipynb", as_version=4)
    said = [o.data.get("text/plain", "") for c in nb.cells for o in c.get("outputs", [])
            if "data" in o]  # fmt: skip
    (shown,) = [text for text in said if "at the test side by this run" in text]
    assert "This is look 2 at the test side by this run, and look 2 by all runs of its" in shown
    assert not (paths.run("chosen") / "evaluation.json").exists()
