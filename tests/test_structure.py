"""The structure of lib/neoxkit: which folder imports which; torch is imported only when needed."""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import neoxkit

LIB = Path(neoxkit.__file__).parent
ROOT = (
    "__init__", "errors", "hub_faults", "files", "paths", "notebook", "fields", "settings",
    "machine", "parallel",
)  # fmt: skip
# What is known of a training without torch.
OF_TRAINING = {"training.honoured", "training.contradictions", "training.ds_file"}
# What each folder's modules may import besides their own folder; ROOT is the root's order.
MAY_IMPORT: dict[str, set[str]] = {
    "data": {"root"},
    "runs": {"root", "data"},
    "models": {"root", "data", "runs"},
    "training": {"root", "data", "runs", "models"},
    "launch": {"root", "data", "runs", "models", *OF_TRAINING},
    "evaluation": {"root", "data", "runs", "models", "launch.command"},
    "lab": {"root", "data", "runs", "models", "launch", "evaluation"},
    "cli": {"root", "data", "runs", "models", "launch", "evaluation", "lab"},
}
DOOR = "train"  # deepspeed --module neoxkit.train: it may import whatever a rank needs
HEAVY = ("torch", "transformers", "datasets", "deepspeed")
LIGHT = ("root", "data", "runs", "launch", "lab", "cli")  # nothing HEAVY is imported with these
LIGHT_TOO = ("models.sharing", "evaluation.rescoring")  # 02 and 04 import these at their top


MODULES = sorted(
    ".".join(path.relative_to(LIB).with_suffix("").parts) for path in LIB.rglob("*.py")
)
INSIDE = [module for module in MODULES if module.partition(".")[0] in MAY_IMPORT]


def folder_of(module: str) -> str:
    """Return the folder of a module of the kit, "root", or "door": no module imports the door."""
    first, dot, _ = module.partition(".")
    if module == DOOR:
        return "door"
    return first if dot or first in MAY_IMPORT else "root"


def tree(module: str) -> ast.Module:
    return ast.parse((LIB / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """Return the kit's modules that a module imports, including inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        inside = [name.partition(".")[2] for name in names if name.startswith("neoxkit")]
        inside = [f"{name}.__init__" if name in MAY_IMPORT else name for name in inside]
        found |= {name if name in MODULES else name.rpartition(".")[0] for name in inside}
    return found - {""}


def allowed(module: str, other: str) -> bool:
    """Return whether `module` may import `other`."""
    mine, its = folder_of(module), folder_of(other)
    if mine == "door":
        return True
    if mine == "root":
        return its == "root" and ROOT.index(other) <= ROOT.index(module)
    return its == mine or its in MAY_IMPORT[mine] or other in MAY_IMPORT[mine]


def test_the_root_contains_the_allowed_modules_and_no_others() -> None:
    flat = {module for module in MODULES if "." not in module}
    assert flat == {DOOR, *ROOT}
    assert {m.partition(".")[0] for m in MODULES if "." in m} == {*MAY_IMPORT}


@pytest.mark.parametrize("module", [*INSIDE, *ROOT])
def test_imports_follow_the_order_of_the_folders(module: str) -> None:
    up = {other for other in imports(module) if not allowed(module, other)}
    assert up == set(), f"{module} may not import from there"


def test_imports_have_no_circles() -> None:
    graph = {module: imports(module) for module in MODULES}
    while ends := {module for module, needs in graph.items() if not needs}:
        graph = {m: needs - ends for m, needs in graph.items() if m not in ends}
    assert graph == {}, "these import each other in a circle"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """A notebook opens at once, and its process never touches the GPU while a training runs."""
    light = [m for m in (*INSIDE, *ROOT) if folder_of(m) in LIGHT or m in LIGHT_TOO]
    program = f"""
import importlib, json, sys
found = {{}}
for name in {light}:
    importlib.import_module(f"neoxkit.{{name}}".removesuffix(".__init__"))
    found[name] = [heavy for heavy in {HEAVY} if heavy in sys.modules]
print(json.dumps({{k: v for k, v in found.items() if v}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == {}, "the first of these imports it"


def used_by_notebooks() -> dict[str, set[str]]:
    """Return what notebooks use of each folder: names of modules, functions and classes."""
    used: dict[str, set[str]] = {}
    for path in (LIB.parents[1] / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ast.parse("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
        home: dict[str, str] = {}
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neoxkit."):
                folder = node.module.split(".")[1]
                home |= {alias.asname or alias.name: folder for alias in node.names}
                used.setdefault(folder, set()).update(alias.name for alias in node.names)
        for node in ast.walk(code):
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in home:
                used[home[owner.id]].add(node.attr)
    return used


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_says_what_notebooks_use_of_it_and_imports_nothing(folder: str) -> None:
    said = tree(f"{folder}.__init__")
    assert len(said.body) == 1
    text, used = ast.get_docstring(said), used_by_notebooks().get(folder, set())
    assert used - set(re.findall(r"\w+", text)) == set()
    assert {name for name in re.findall(r"\w+\.(\w+)", text) if name not in ("py", *used)} == set()


def public(module: str) -> list[tuple[str, ast.AST]]:
    """Return a module's public functions and classes, and the public methods of these classes."""
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


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for name, node in public(module):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(name, []).append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_has_one_function_of_a_common_name(folder: str) -> None:
    found = [
        name
        for module in INSIDE
        if folder_of(module) == folder
        for name, node in public(module)
        if not isinstance(node, ast.ClassDef)
    ]
    common = ("check", "read", "run", "of", "load")
    assert [name for name in common if found.count(name) > 1] == []


@pytest.mark.parametrize("module", MODULES)
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


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_public_names_have_docstrings(module: str) -> None:
    """Methods are left out if their class says it all."""
    assert ast.get_docstring(tree(module))
    assert [
        name for name, node in public(module) if "." not in name and not ast.get_docstring(node)
    ] == []


@pytest.mark.parametrize("module", [m for m in MODULES if ">>> " in ast.unparse(tree(m))])
def test_examples_in_the_docstrings_are_right(module: str) -> None:
    name = f"neoxkit.{module}".removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("module", MODULES)
def test_no_module_shadows_the_standard_library(module: str) -> None:
    assert not {*module.split(".")} & {*sys.stdlib_module_names}
