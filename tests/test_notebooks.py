"""The form of the notebooks, on which readers, papermill and git rely."""

import ast
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from dataclasses import MISSING, fields
from io import StringIO
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from neoxkit import paths
from neoxkit.fields import Settings
from neoxkit.settings import NOTEBOOKS

SETTINGS = {s.notebook: s for s in NOTEBOOKS}
FILES = sorted((paths.root() / "notebooks").glob("*.ipynb"))
PARAMETER = re.compile(r"(\w+)(?:: (\w+))? = (.+?)  # (.+)")
HEADING = re.compile(r"# ([A-Z][^=]+)")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook: Any) -> Any:
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    return cell


def declared(settings: type[Settings]) -> list[tuple[str, str, Any, str]]:
    """Return name, type, default and help of each setting, in order."""
    return [
        (
            f.name,
            getattr(f.type, "__name__", "None"),  # papermill reads no union of types
            f.default if f.default is not MISSING else f.default_factory(),
            f.metadata["help"],
        )
        for f in fields(settings)
    ]


def test_every_settings_class_has_its_notebook() -> None:
    assert {path.stem for path in FILES} == set(SETTINGS)


def test_parameters_equal_the_settings_class(path: Path, notebook: Any) -> None:
    cell = parameters_cell(notebook)
    assert cell.cell_type == "code"
    found = []
    for line in cell.source.splitlines():
        if not line or HEADING.fullmatch(line):
            continue
        match = PARAMETER.fullmatch(line)
        assert match, f"{line!r} is not `name: type = value  # help`"
        name, kind, value, said = match.groups()
        assert "=" not in said, f"papermill loses {name}: a second = on its line"
        found.append((name, kind or "None", ast.literal_eval(value), said))
    assert found == declared(SETTINGS[path.stem])
    for _, kind, value, _ in found:  # 5 == 5.0: the types must be the declared ones, too
        assert kind in ("None", type(value).__name__) or (kind, type(value)) == ("float", int)


FIRST = {  # what is changed most
    "01_tokenize": ["train_file", "dataset", "model_name_or_path", "block_size", "train_on"],
    "02_train": [
        "run", "dataset", "model_name_or_path", "learning_rate", "block_size", "num_train_epochs",
        "per_device_train_batch_size",
    ],
    "03_evaluate": ["run", "my_questions", "num_questions", "max_new_tokens"],
    "04_compare": ["runs", "name"],
}  # fmt: skip


def test_parameters_are_grouped_and_what_is_changed_most_is_first(
    path: Path, notebook: Any
) -> None:
    groups = [group.splitlines() for group in parameters_cell(notebook).source.split("\n\n")]
    for heading, *lines in groups:
        assert HEADING.fullmatch(heading) and lines
        assert all(map(PARAMETER.fullmatch, lines)), heading
    headings = [heading for heading, *_ in groups]
    assert len({*headings}) == len(headings) > 1
    assert [h.startswith("# Rarely changed") for h in headings] == [False] + [True] * (
        len(headings) - 1
    )
    assert [line.partition(":")[0] for line in groups[0][1:]] == FIRST[path.stem]


def test_papermill_sees_every_parameter(path: Path) -> None:
    seen = papermill.inspect_notebook(str(path))
    assert [
        (p["name"], p["inferred_type_name"], ast.literal_eval(p["default"]), p["help"])
        for p in seen.values()
    ] == declared(SETTINGS[path.stem])


def test_no_outputs_and_no_counts(notebook: Any) -> None:
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_nbstripout_has_nothing_to_strip() -> None:
    keys = "metadata.papermill cell.metadata.papermill metadata.language_info.version"
    command = [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", "--extra-keys", keys]
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_size_and_contents_of_cells(path: Path, notebook: Any) -> None:
    assert 12 <= len(notebook.cells) <= 25
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source)  # also refuses "!command" and "%magic"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(tree)), cell.source
        assert "sys.path" not in cell.source
        if cell not in (parameters_cell(notebook), notebook.cells[2]):  # imports are one per line
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert max(map(len, cell.source.splitlines())) <= 100


def test_prose_comes_first_and_says_what_it_needs(path: Path, notebook: Any) -> None:
    first, second, third, *_ = notebook.cells
    number = path.stem.split("_")[0].lstrip("0")
    assert first.cell_type == "markdown" and first.source.startswith(f"# {number} · ")
    words = [first.source.index(f"**{word}**") for word in ("Needs", "Gives", "Takes")]
    assert words == sorted(words)
    assert second is parameters_cell(notebook) and third.cell_type == "code"
    assert notebook.cells[3].cell_type == "markdown"


def test_all_imports_are_in_one_cell(notebook: Any) -> None:
    where = [
        i
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        and any(
            isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(ast.parse(cell.source))
        )
    ]
    assert where == [2]


def test_imports_are_at_most_five_lines(notebook: Any) -> None:
    lines = [line for line in notebook.cells[2].source.splitlines() if not line.startswith("#")]
    assert 0 < len(lines) <= 5 and all(re.match("(from|import) ", line) for line in lines)


def test_settings_are_made_from_the_parameters(path: Path, notebook: Any) -> None:
    line = f"settings = {SETTINGS[path.stem].__name__}.from_parameters(globals())"
    assert sum(line in cell.source.splitlines() for cell in code_cells(notebook)) == 1


def bound(source: str) -> set[str]:
    """Return the global names that a cell binds; a comprehension's own names are not global."""
    names: set[str] = set()
    stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        stack.extend(ast.iter_child_nodes(node))
    return names


def test_bound_finds_names() -> None:
    found = bound("import a.b\nfrom c import d as e\nf, (g, h) = [i for i in j]\nfor k in f: l = k")
    assert found == {"a", "e", "f", "g", "h", "k", "l"}


def test_a_name_is_bound_in_one_cell(notebook: Any) -> None:
    """Otherwise a cell that is run twice may see another value the second time."""
    where = defaultdict(list)
    for number, cell in enumerate(notebook.cells):
        for name in bound(cell.source) if cell.cell_type == "code" else ():
            where[name].append(number)
    assert {name: cells for name, cells in where.items() if len(cells) > 1} == {}


def test_no_name_of_a_notebook_is_taken_for_a_mistyped_parameter(path: Path, notebook: Any) -> None:
    """So the settings cell can be run again after all the others."""
    cells = [c.source for c in code_cells(notebook) if c is not parameters_cell(notebook)]
    imports = [cells.pop(0)]
    names = {name for source in cells for name in bound(source)}
    assert names and not names & bound(imports[0])
    settings = SETTINGS[path.stem]
    kernel = settings().as_dict() | dict.fromkeys(names, "plain")
    assert settings.from_parameters(kernel) == settings()


def test_the_last_cell_prints_what_repeats_the_notebook(path: Path, notebook: Any) -> None:
    name = {"01_tokenize": "chosen", "02_train": "control.settings"}.get(path.stem, "settings")
    line = f'print({name}.run_command(), {name}.papermill_command(), sep="\\n")'
    assert notebook.cells[-1].source.splitlines()[-1] == line
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert "in the kit's folder, after `source .venv/bin/activate`" in " ".join(prose[-1].split())


def test_no_cell_is_a_shell_command(notebook: Any) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for token in tokenize.generate_tokens(StringIO(source).readline):
        assert not token.string.startswith(("!", "%%")) or token.string == "!="
