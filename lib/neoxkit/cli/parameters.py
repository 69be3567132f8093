"""Read the parameters of `neoxkit run` from YAML files and flags, checking name and type."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

import yaml

from neoxkit import paths
from neoxkit.errors import UserError, near, shorten
from neoxkit.fields import Settings, convert, example, kinds
from neoxkit.settings import NOTEBOOKS


def read(files: Sequence[str], flags: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Read the parameters of YAML files and of (name, value) flags; flags win."""
    given = {name: _checked(name, value, where) for name, value, where in _from_files(files)}
    return given | {name: _checked(name, _literal(name, value)) for name, value in flags}


def read_swept(
    files: Sequence[str], flags: Sequence[tuple[str, str]]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Read the parameters of a sweep: a flag may have several values with commas, a file a list.

    Return the parameters with one value, and those with several. A parameter that is itself a list
    (like `my_questions`) is swept by a list of lists, only in a file.
    """
    given = {name: (value, where) for name, value, where in _from_files(files)}
    given |= {name: (_several(name, value), "") for name, value in flags}
    fixed: dict[str, Any] = {}
    swept: dict[str, list[Any]] = {}
    for name, (value, where) in given.items():
        of_lists = isinstance(value, list) and value and all(isinstance(v, list) for v in value)
        is_one = isinstance(value, list) and list in kinds(_kind(name)) and not of_lists
        if not isinstance(value, list | tuple) or is_one:
            fixed[name] = _checked(name, value, where)
        elif not value:
            raise UserError(where + name, "has no value", "give one or more")
        elif len(values := [_checked(name, one, where) for one in value]) == 1:
            fixed[name] = values[0]
        else:
            swept[name] = values
    return fixed, swept


def _several(name: str, value: str) -> Any:
    """Return a flag's value, or a tuple of its values if it has commas."""
    if _is_nested(name, value) or name == "report_to" or "," not in value:
        return _literal(name, value)  # its own value may have commas
    return tuple(part.strip() for part in value.split(","))


def _from_files(files: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Yield each parameter of YAML files: its name, its value, and its place in the file."""
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
            remedy = "write one `name: value` per line, not indented"
            raise UserError(where, f"is not YAML ({why})", remedy) from None
        if not isinstance(values, dict):
            raise UserError(
                f"{paths.short(path)}:1", "is not a mapping", "write `name: value` lines"
            )
        for key, value in values.items():
            yield str(key), value, f"{paths.short(path)}:{_line_of(text, str(key))}: "


def _line_of(text: str, name: str) -> int:
    """Return the line on which a YAML file gives a name."""
    found = re.search(rf"(?m)^[ \t{{\"']*{re.escape(name)}[\"']?[ \t]*:", text)
    return text[: found.start()].count("\n") + 1 if found else 1


def known(stages: Sequence[type[Settings]] = NOTEBOOKS) -> dict[str, Field]:
    """Return the parameters of some notebooks by name."""
    return {f.name: f for stage in stages for f in fields(stage)}


def own(stage: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values that are one notebook's parameters."""
    return {name: value for name, value in given.items() if name in known([stage])}


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-6 as a number, as Python and JSON do."""


_Loader.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _literal(name: str, value: str) -> Any:
    """Return a flag's text; lists and dicts are read as YAML."""
    if not _is_nested(name, value):
        return value
    try:
        return _from_yaml(value)
    except yaml.YAMLError:
        shown = example(name, _kind(name), None)
        raise UserError(name, f"{value!r} is not YAML", shown) from None


def _is_nested(name: str, value: str) -> bool:
    """Return whether a flag's text is a list or a mapping; one that may be text as well is if it
    begins like one."""
    known_kinds = kinds(_kind(name))
    nested = list in known_kinds or dict in known_kinds
    return nested and (str not in known_kinds or value.lstrip().startswith(("[", "{")))


def _checked(name: str, value: Any, where: str = "") -> Any:
    """Convert a value to its parameter's type; `where`: its place in a file."""
    field = known().get(name)
    if field is None:
        remedy = near(name, known(), shorten(f"known are {', '.join(known())}"))
        raise UserError(where + name, "is not a parameter of these notebooks", remedy)
    return convert(name, field.type, value, field.default)


def _kind(name: str) -> Any:
    """Return a parameter's type; text for an unknown one, which is refused later."""
    return known()[name].type if name in known() else str
