"""A notebook on disk: the values in its parameters cell, and its code."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neoxkit import paths

_GIVEN = {"parameters", "injected-parameters"}  # tags of the cells that papermill fills


@dataclass(frozen=True)
class Expression:
    """The value of a parameter that is not a literal: it is not known, so it equals nothing."""

    source: str


def read(name: str) -> dict[str, Any]:
    """notebooks/<name>.ipynb as JSON; without cells where it is missing or damaged."""
    path = paths.root() / "notebooks" / f"{name}.ipynb"
    return parsed(path.read_bytes()) if path.is_file() else {}


def parsed(text: str | bytes) -> dict[str, Any]:
    """The same of a notebook's text."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the cell that is tagged `parameters`, by name; a later one of a name wins."""
    cells = [source for source, tags in _code_cells(notebook) if "parameters" in tags]
    try:
        lines = ast.parse(cells[0]).body if cells else []
    except SyntaxError:
        return {}
    return {name: value for line in lines for name, value in _bound(line).items()}


def _bound(line: ast.stmt) -> dict[str, Any]:
    """The names that a statement binds, each with its value."""
    match line:
        case ast.AnnAssign(value=None):
            return {}
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            try:
                return {name: ast.literal_eval(line.value)}
            except ValueError:
                return {name: Expression(ast.unparse(line.value))}
    names = [node.id for node in ast.walk(line) if _binds(node)]
    return dict.fromkeys(names, Expression(ast.unparse(line)))


def _binds(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)


def code(notebook: Mapping[str, Any]) -> list[str]:
    """The sources of its code cells, without the parameters and without empty cells."""
    return [s for s, tags in _code_cells(notebook) if not tags & _GIVEN and s.strip()]


def _code_cells(notebook: Mapping[str, Any]) -> list[tuple[str, set[str]]]:
    """Source and tags of each code cell."""
    return [
        ("".join(cell["source"]), {*cell["metadata"].get("tags", [])})
        for cell in notebook.get("cells", [])
        if cell["cell_type"] == "code"
    ]
