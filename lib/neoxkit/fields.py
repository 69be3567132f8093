"""The base of the settings classes: fields with help and rules, conversion, and display."""

import dataclasses
import difflib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

import yaml

from neoxkit import notebook, paths
from neoxkit.errors import UserError

_PLAIN = (str, int, float, bool, list, dict, tuple, type(None))  # types a parameter may have
# One wrong letter in seven is above this ratio, and so is one letter too many or too few in four.
_NEAR = 0.85
UNSET: Any = object()
NOUNS: Mapping[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", list: "a list",
    dict: "a mapping", str: "text",
}  # fmt: skip


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    resume: Literal["free", "named", "never"] | None = None,
    trainer: str | None = "",
    trial: Any = UNSET,
    memory: bool = False,
    card: bool = False,
) -> Any:
    """Make a dataclass field with help text, a rule, and the roles that the setting has.

    The rule: choices, or bounds (`above`: exclusive). The roles, for the settings of a training:

    resume   may a resumed run have another value? free: yes; named: if allow_change names it; never
    trainer  the trainer's name for it, if it differs; None: the trainer does not get it
    trial    its value in a trial, whatever the run's is
    memory   whether a rank's memory depends on it
    card     whether a shared model's card shows it
    """
    metadata = {
        "help": help, "choices": choices, "least": least, "most": most, "above": above,
        "resume": resume, "trainer": trainer, "trial": trial, "memory": memory, "card": card,
    }  # fmt: skip
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The base of all settings classes: conversion, checks, and display."""

    notebook: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = convert(f.name, f.type, getattr(self, f.name), f.default)
            check(f.name, value, f.metadata)
            object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """Check rules that involve more than one setting."""

    @classmethod
    def with_role(cls, role: str, value: Any = True) -> list[str]:
        """Return the names of the settings with this value of a role (see `setting`)."""
        return [f.name for f in fields(cls) if f.metadata[role] == value]

    @classmethod
    def from_parameters(cls, names: Mapping[str, Any]) -> Self:
        """Pick this class's settings out of a notebook's names (`globals()`) and check them.

        Print a note if the notebook's kernel is not the kit's own Python.
        """
        if said := paths.other_python():
            print(f"note: {said}")
        known = [f.name for f in fields(cls)]
        for wrong, right in _slips(names, known):
            what = f"is not a parameter of {cls.notebook}"
            remedy = f"did you mean {right}? rename it, and run on from the parameters cell"
            raise UserError(wrong, what, remedy)
        missing = [name for name in known if name not in names]
        if missing:
            raise UserError(missing[0], "has no value", "run the parameters cell first")
        return cls(**{name: names[name] for name in known})

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, in the order of the parameters cell."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults."""
        plain = type(self)()
        return {k: v for k, v in self.as_dict().items() if v != getattr(plain, k)}

    def says(self, name: str, held: Any) -> bool:
        """Return whether a value from a notebook would give the same setting as here."""
        try:
            return getattr(self.replace(**{name: held}), name) == getattr(self, name)
        except UserError:
            return False

    def saved_otherwise(self) -> dict[str, Any]:
        """Return the values in the notebook's parameters cell that these settings don't use."""
        held, plain = notebook.parameters(notebook.read(self.notebook)), type(self)()
        known = {name: held[name] for name in self.as_dict() if name in held}
        return {k: v for k, v in known.items() if not self.says(k, v) and not plain.says(k, v)}

    def run_command(self) -> str:
        """Return the `neoxkit run` command that does the same, whatever the notebook holds."""
        return shlex.join(["neoxkit", "run", "--only", self.notebook, *as_flags(self.changed())])

    def papermill_command(self) -> str:
        """Return the command that repeats this notebook with these settings, unattended.

        It sets each parameter that has another value, or none, in the notebook on disk. The
        executed copy goes where `neoxkit run` puts it: 01 has no run and uses its dataset's name,
        04 its own `name`.
        """
        values, held = self.as_dict(), notebook.parameters(notebook.read(self.notebook))
        other = {k: v for k, v in values.items() if k not in held or not self.says(k, held[k])}
        folder = f"runs/{next(values[k] for k in ('run', 'dataset', 'name') if k in values)}"
        parts = ["papermill", f"notebooks/{self.notebook}.ipynb", f"{folder}/{self.notebook}.ipynb"]
        for name, value in other.items():
            if not isinstance(value, dict | list):
                raw = isinstance(value, str)  # -r keeps text that looks like a number as text
                parts += ["-r" if raw else "-p", name, str(value)]
        if nested := {k: v for k, v in other.items() if isinstance(v, dict | list)}:
            parts += ["-y", as_yaml(nested)]
        return f"mkdir -p {folder} && {shlex.join(parts)}"


def _slips(names: Mapping[str, Any], known: Sequence[str]) -> list[tuple[str, str]]:
    """Return the kernel's misspelt setting names, each with the right one.

    A name last assigned before the right one is ignored: spelt right, it would have been
    overwritten. So a wrong name is forgotten once it is corrected and the parameters cell has been
    run again.
    """
    cells = names["In"] if isinstance(names.get("In"), list) else []  # run by the kernel
    found = []
    for name, value in names.items():
        if name.startswith("_") or name in known or type(value) not in _PLAIN:
            continue
        right = next(iter(difflib.get_close_matches(name.lower(), known, 1, _NEAR)), "")
        shorter = {*name.split("_")} < {*right.split("_")}  # questions, beside my_questions
        if right and not shorter and _last_bound(name, cells) >= _last_bound(right, cells):
            found.append((name, right))
    return found


def _last_bound(name: str, cells: Sequence[str]) -> int:
    """Return the index of the last cell that assigns a name; -1 if none does."""
    line = re.compile(rf"(?m)^[ \t]*{re.escape(name)}[ \t]*(:[^=\n]*)?=(?!=)")
    return max((i for i, cell in enumerate(cells) if line.search(cell)), default=-1)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Write parameters as flags of `neoxkit run`; values other than text as JSON, which is YAML.

    >>> as_flags({"run": "a", "restart": True, "allow_change": ["seed"]})
    ['-p', 'run', 'a', '-p', 'restart', 'true', '-p', 'allow_change', '["seed"]']
    """
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
    return [word for name, text in texts.items() for word in ("-p", name, text)]


def as_yaml(value: Any) -> str:
    """Write a value as one line of YAML that reads back as the same value."""
    text = yaml.safe_dump(
        value, width=10**9, default_flow_style=True, allow_unicode=True, sort_keys=False
    )
    return text.strip()


_EXAMPLES = {"columns": "{user: ask, agent: say}", "eval_file": "{chat: chat.txt, code: code.txt}"}


def kinds(kind: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: those of a union or tuple, or the one.

    >>> [[one.__name__ for one in kinds(kind)] for kind in (str | list, (int, float), bool)]
    [['str', 'list'], ['int', 'float'], ['bool']]
    """
    return kind if isinstance(kind, tuple) else get_args(kind) or (kind,)


def example(name: str, kind: Any, default: Any) -> str:
    """Return how to write a value of a setting; for a number, `default` is the example.

    >>> example("restart", bool, None), example("block_size", int, 280)
    ('write true or false', 'write for example 280')
    """
    nested = _EXAMPLES.get(name) or {list: '["Hi"]', dict: "{adam_beta1: 0.9}"}.get(kind)
    if nested:
        return f"write {nested}; at a shell: -p {name} '{nested}'"
    number = default or {float: 1e-5}.get(kind, default)
    return "write true or false" if kind is bool else f"write for example {number}"


def convert(name: str, kind: Any, value: Any, default: Any = 1) -> Any:
    """Convert a value to its setting's type; papermill and YAML pass text and other number types.

    >>> convert("learning_rate", float, "2e-5"), convert("restart", bool, "true")
    (2e-05, True)
    """
    try:
        if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind is int and isinstance(value, str):
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        if kind is int and isinstance(value, float) and value == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if kind is list and isinstance(value, tuple):
        return list(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if len(kinds(kind)) > 1:
        noun = " or ".join(NOUNS[one] for one in kinds(kind))
        remedy = example(name, kind, default) if name in _EXAMPLES else "correct it"
        raise UserError(name, f"must be {noun}, got {value!r}", remedy)
    if kind is str and isinstance(value, int | float):
        raise UserError(
            name,
            f"got the number {value!r} for a text",
            f"quote it in YAML; with papermill: -r {name} TEXT",
        )
    raise UserError(name, f"must be {NOUNS[kind]}, got {value!r}", example(name, kind, default))


def check(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    """Refuse a value that breaks its setting's rule (the metadata of its field)."""
    if rule["choices"] and value not in rule["choices"]:
        raise UserError(name, f"got {value!r}", f"choose one of {', '.join(rule['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        what = "is not a number (nan)" if math.isnan(value) else "must be finite"
        raise UserError(name, what, "give a number")
    least, most, above = rule["least"], rule["most"], rule["above"]
    if least is not None and value < least:
        raise UserError(name, f"must be at least {least}, got {value:g}", f"choose {least} or more")
    if above is not None and value <= above:
        raise UserError(name, f"must be above {above}, got {value:g}", f"choose more than {above}")
    if most is not None and value > most:
        raise UserError(name, f"must be at most {most}, got {value:g}", f"choose {most} or less")
