"""The house of lib/neoxkit: imports run one way, and torch is imported only where it is needed."""

import ast
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import neoxkit

LIB = Path(neoxkit.__file__).parent
# A module imports only from its own level or those above it in this list, and never in a circle.
LEVELS: dict[str, tuple[str, ...]] = {
    "the kit's name": ("__init__",),
    "ground": ("errors", "paths", "workers", "notebook"),
    "files and settings": (
        "turns",
        "validated",
        "settings",
        "runs",
        "health",
        "run_card",
        "checkpoints",
        "alive",
        "lock",
        "guard",
    ),
    "conversations": (
        "blocks",
        "fences",
        "labels",
        "naming",
        "text_format",
        "json_format",
        "detect",
        "conversations",
    ),
    "tokens": ("tiny", "table", "tokens", "policy", "quality", "tokenized"),
    "tensors": (
        "lora",
        "model_card",
        "batches",
        "sampler",
        "losses",
        "gloo",
        "pickles",
        "ranks",
        "models",
        "arguments",
    ),
    "parts of the work": ("metrics", "safety", "universal", "export", "replies", "speed"),
    "plans": ("needs", "fit", "rates", "changes", "estimates", "listing", "plan", "forecast"),
    "work": (
        "failures",
        "base",
        "resume",
        "trainer",
        "train",
        "scoring",
        "depth",
        "harness",
        "evaluate",
        "launch",
    ),
    "look": ("plots", "charts", "views", "outcome", "browser"),
    "notebook": (
        "dials",
        "controls",
        "pager",
        "chat",
        "dashboard",
        "experiments",
        "compare",
        "rescore",
        "trial",
        "range_test",
        "share",
    ),
    "shell": (
        "doctor",
        "terminal",
        "parameters",
        "pipeline",
        "repeat",
        "sweep",
        "report",
        "merge",
        "cli",
    ),
}
LEVEL = {module: i for i, modules in enumerate(LEVELS.values()) for module in modules}
WITHOUT_TORCH = (
    "errors", "lora", "model_card", "share", "fit", "rescore", "harness", "forecast", "trial",
    "range_test", "health",
    "paths", "workers", "turns", "validated", "settings", "runs", "lock", "guard", "blocks",
    "fences", "labels", "naming", "text_format", "json_format", "detect", "conversations", "tiny",
    "table", "tokens", "policy", "tokenized",
    "models", "plots", "charts", "views", "outcome", "depth", "changes", "plan", "launch",
    "controls", "dashboard", "doctor", "terminal", "cli", "listing", "browser", "quality", "pager",
    "estimates", "rates", "checkpoints", "alive", "universal", "needs", "run_card", "experiments",
    "compare", "notebook",
)  # fmt: skip
HEAVY = ("torch", "transformers", "datasets", "deepspeed")


def tree(module: str) -> ast.Module:
    return ast.parse((LIB / f"{module}.py").read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """The modules of the kit that one imports, those inside functions included."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("neoxkit")]
            found |= {name.partition(".")[2] or "__init__" for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neoxkit"):
            inside = node.module.partition(".")[2]
            names = [inside] if inside else [alias.name for alias in node.names]
            found |= {name if name in LEVEL else "__init__" for name in names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return found


def test_every_module_has_its_level() -> None:
    assert {path.stem for path in LIB.glob("*.py")} == set(LEVEL)


@pytest.mark.parametrize("module", LEVEL)
def test_imports_run_one_way(module: str) -> None:
    later = {other for other in imports(module) if LEVEL[other] > LEVEL[module]}
    assert later == set(), f"{module} imports from a later level"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(module) for module in LEVEL}
    while ends := {module for module, needs in graph.items() if not needs}:
        graph = {m: needs - ends for m, needs in graph.items() if m not in ends}
    assert graph == {}, "these import each other in a circle"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    program = f"""
import importlib, json, sys
found = {{}}
for name in {WITHOUT_TORCH}:
    importlib.import_module(f"neoxkit.{{name}}")
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules]
print(json.dumps({{k: v for k, v in found.items() if v}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == {}, "the first of these imports it"


def public(module: str) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and the public methods of its classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in tree(module).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        found.append((node.name, node))
        if isinstance(node, ast.ClassDef):
            found += [
                (f"{node.name}.{method.name}", method)
                for method in node.body
                if isinstance(method, ast.FunctionDef)
                and (not method.name.startswith("_") or method.name in ("__init__", "__call__"))
            ]
    return found


@pytest.mark.parametrize("module", LEVEL)
def test_public_functions_have_type_hints(module: str) -> None:
    bare = []
    for name, node in public(module):
        if isinstance(node, ast.ClassDef):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given += [a for a in (node.args.vararg, node.args.kwarg) if a]
        method = "." in name
        missing = [a.arg for a in given if a.annotation is None]
        if method and missing[:1] in (["self"], ["cls"]):
            missing = missing[1:]
        if missing or node.returns is None:
            bare.append((name, missing))
    assert bare == []


@pytest.mark.parametrize("module", LEVEL)
def test_modules_and_public_names_have_docstrings(module: str) -> None:
    """Methods are left out where their class says it all."""
    assert ast.get_docstring(tree(module))
    assert [
        name for name, node in public(module) if "." not in name and not ast.get_docstring(node)
    ] == []


@pytest.mark.parametrize("module", [m for m in LEVEL if ">>> " in (LIB / f"{m}.py").read_text()])
def test_examples_in_the_docstrings_are_right(module: str) -> None:
    name = "neoxkit" if module == "__init__" else f"neoxkit.{module}"
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("module", LEVEL)
def test_no_module_hides_one_of_the_standard_library(module: str) -> None:
    assert module == "__init__" or module not in sys.stdlib_module_names
