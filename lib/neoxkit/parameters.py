"""The parameters of `neoxkit run`: from YAML files and flags, each known and of its own type."""

import re
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

import yaml

from neoxkit import paths
from neoxkit.errors import UserError, near, shorten
from neoxkit.settings import STAGES, convert, example


def read(files: Sequence[str], flags: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of YAML files and of (name, value) flags together; flags win."""
    given: dict[str, Any] = {}
    for name in files:
        path = paths.find("-f", name)
        try:
            text = path.read_text(encoding="utf-8")
            values = _from_yaml(text) or {}
        except (OSError, UnicodeDecodeError):
            where = paths.short(path)
            raise UserError(where, "can't be read as text", "give a UTF-8 YAML file") from None
        except yaml.YAMLError as fault:
            mark = getattr(fault, "problem_mark", None)
            where = f"{paths.short(path)}:{mark.line + 1 if mark else 1}"
            why = getattr(fault, "problem", None) or "it can't be parsed"
            remedy = "write one `name: value` a line, none indented"
            raise UserError(where, f"is not YAML ({why})", remedy) from None
        if not isinstance(values, dict):
            raise UserError(f"{paths.short(path)}:1", "is no mapping", "write `name: value` lines")
        lines = {name: f"{paths.short(path)}:{_line_of(text, name)}: " for name in map(str, values)}
        given |= {str(k): _checked(str(k), v, lines[str(k)]) for k, v in values.items()}
    return given | {name: _checked(name, _literal(name, value)) for name, value in flags}


def _line_of(text: str, name: str) -> int:
    """Where a name is given in a YAML file."""
    found = re.search(rf"(?m)^[ \t{{\"']*{re.escape(name)}[\"']?[ \t]*:", text)
    return text[: found.start()].count("\n") + 1 if found else 1


def _fields() -> dict[str, Field]:
    return {f.name: f for stage in STAGES for f in fields(stage)}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-6 is a number, as it is in Python and JSON."""


_Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _literal(name: str, value: str) -> Any:
    """A flag's text; lists and dicts are written as YAML."""
    kind = _fields()[name].type if name in _fields() else str
    if kind not in (list, dict):
        return value
    try:
        return _from_yaml(value)
    except yaml.YAMLError:
        raise UserError(name, f"{value!r} is not YAML", example(name, kind, None)) from None


def _checked(name: str, value: Any, where: str = "") -> Any:
    """The value as its parameter's type; `where` it was given, for a file."""
    known = _fields()
    if name not in known:
        remedy = near(name, known, shorten(f"known are {', '.join(known)}"))
        raise UserError(where + name, "is not a parameter of these notebooks", remedy)
    return convert(name, known[name].type, value, known[name].default)
