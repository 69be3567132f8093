"""Read a notebook on disk: the values in its parameters cell, and its code."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neoxkit import paths

_GIVEN = {"parameters", "injected-parameters"}  # tags of the cells that papermill fills


@dataclass(frozen=True)
class Expression:
    """The source of a parameter that is not a literal: its value is unknown and equals no other."""

    source: str


def read(name: str) -> dict[str, Any]:
    """Read notebooks/<name>.ipynb as JSON; empty if it is missing or damaged."""
    path = paths.root() / "notebooks" / f"{name}.ipynb"
    return parsed(path.read_bytes()) if path.is_file() else {}


def parsed(text: str | bytes) -> dict[str, Any]:
    """Parse a notebook's text as JSON; empty if it is damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the cell tagged `parameters`, by name; a later assignment wins."""
    cells = [source for source, tags in _code_cells(notebook) if "parameters" in tags]
    try:
        lines = ast.parse(cells[0]).body if cells else []
    except SyntaxError:
        return {}
    return {name: value for line in lines for name, value in _bound(line).items()}


def _bound(line: ast.stmt) -> dict[str, Any]:
    """Return the names that a statement binds, each with its value."""
    match line:
        case ast.AnnAssign(value=None):
            return {}
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ):
            try:
                return {name: ast.literal_eval(value)}
            except ValueError:
                return {name: Expression(ast.unparse(value))}
    found = [node for node in ast.walk(line) if isinstance(node, ast.Name)]
    names = [node.id for node in found if not isinstance(node.ctx, ast.Load)]
    return dict.fromkeys(names, Expression(ast.unparse(line)))


def code(notebook: Mapping[str, Any]) -> list[str]:
    """Return the sources of the code cells, except parameters and empty cells."""
    return [s for s, tags in _code_cells(notebook) if not tags & _GIVEN and s.strip()]


def _code_cells(notebook: Mapping[str, Any]) -> list[tuple[str, set[str]]]:
    """Return source and tags of each code cell."""
    return [
        ("".join(cell["source"]), {*cell["metadata"].get("tags", [])})
        for cell in notebook.get("cells", [])
        if cell["cell_type"] == "code"
    ]
