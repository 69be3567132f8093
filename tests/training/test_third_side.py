"""A training and its evaluations never read the test side of a dataset."""

import ast
from pathlib import Path

import pyarrow
import pytest
from conftest import BASE, losses, tokenize
from pyarrow import ipc
from test_structure import LIB, MODULES
from zygote import Zygote, job

from neoxkit import paths


def poison(folder: Path) -> None:
    """Replace each token of a side by one that no model has, and keep what is counted."""
    (path,) = folder.glob("*.arrow")
    table = ipc.open_stream(path.read_bytes()).read_all()
    for name in ("input_ids", "labels"):
        lists = table[name].combine_chunks()
        worse = pyarrow.array([10**6] * len(lists.values), pyarrow.int32())
        at = table.column_names.index(name)
        poisoned = pyarrow.ListArray.from_arrays(lists.offsets, worse)
        table = table.set_column(at, table.field(name), poisoned)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def test_a_test_side_that_no_model_could_read_changes_nothing(home: Path, zygote: Zygote) -> None:
    tokenize("small.txt", "third", test_share=0.1)
    settings = BASE.replace(dataset="third", run="third-good", num_replies=2)
    assert zygote.run(job(settings)) == [0]
    poison(paths.tokenized("third") / "test")
    assert zygote.run(job(settings.replace(run="third-poisoned"))) == [0]
    good, poisoned = map(paths.run, ("third-good", "third-poisoned"))
    for event in ("train", "eval"):
        assert losses(good, event) == losses(poisoned, event) != []


def test_the_poison_would_be_noticed(home: Path, zygote: Zygote) -> None:
    tokenize("small.txt", "third-eval", test_share=0.1)
    poison(paths.tokenized("third-eval") / "eval")
    assert zygote.run(job(BASE.replace(dataset="third-eval", run="third-noticed"))) != [0]


# Who splits and saves a test side, who evaluates on it when asked to, and who shows that.
MAY_NAME_IT = {
    "settings", "data.selection", "data.audit", "data.overlap", "evaluation.evaluate",
    "evaluation.first", "lab.evaluation", "cli.notebooks", "cli.report",
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_only_these_modules_name_the_test_side(module: str) -> None:
    tree = ast.parse((LIB / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert ("test" in texts or "SIDES" in names) == (module in MAY_NAME_IT)
