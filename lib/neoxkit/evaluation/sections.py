"""The difference of two runs as plain data: sections of values, conversations and replies."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neoxkit.evaluation import compare_runs


@dataclass(frozen=True)
class Unequal:
    """A value that differs between two runs (None: a run has none); `by`: how much, for losses."""

    name: str
    a: Any
    b: Any
    by: float | None = None

    def texts(self) -> tuple[str, str]:
        """Return both values as texts that differ.

        >>> Unequal("loss", 2.5, 2.25, -0.25).texts(), Unequal("loss", 2.5, 2.50001, 1e-5).texts()
        (('2.5000', '2.2500'), ('2.5', '2.50001'))
        >>> Unequal("seed", 1, None).texts(), Unequal("seed", 1, "1").texts()
        (('1', 'none'), ('1', "'1'"))
        """
        as_text = _text if self.by is None else _loss
        one, other = as_text(self.a), as_text(self.b)
        return (one, other) if one != other else (repr(self.a), repr(self.b))

    def by_text(self) -> str:
        """Return how much the second value is above the first, for losses."""
        return "" if self.by is None or math.isnan(self.by) else f"{self.by:+.3g}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none" if value is None else "(empty)"
    return json.dumps(value) if isinstance(value, list) else compare_runs.as_text(value)


@dataclass(frozen=True)
class Listed:
    """Conversations or replies that differ: what they are, how many, and some of them, each as its
    columns by name."""

    what: str
    count: int
    rows: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Section:
    """One part of the difference, like the settings.

    `says`: what must be known of the differences. `equal`: what was compared and is equal.
    `unknown`: what could not be compared, and why.
    """

    name: str
    unequal: Sequence[Unequal] = ()
    listed: Sequence[Listed] = ()
    says: Sequence[str] = ()
    equal: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def differs(self) -> bool:
        return bool(self.unequal or self.listed)


def joined(*parts: Section) -> Section:
    """Return one section of the contents of several, under the name of the first."""
    kinds = ("unequal", "listed", "says", "equal", "unknown")
    contents = {kind: [one for part in parts for one in getattr(part, kind)] for kind in kinds}
    return Section(parts[0].name, **contents)


@dataclass(frozen=True)
class RunDifference:
    """All sections of the difference of two runs, and the names of the runs."""

    runs: tuple[str, str]
    sections: Sequence[Section]

    @property
    def differs(self) -> bool:
        return any(section.differs for section in self.sections)

    def summary(self) -> str:
        """Say in a sentence in what the runs differ.

        >>> RunDifference(("a", "b"), [Section("data", [Unequal("seed", 1, 2)])]).summary()
        'a and b differ in data.'
        """
        both, found = " and ".join(self.runs), [s.name for s in self.sections if s.differs]
        if found:
            return f"{both} differ in {', '.join(found)}."
        if not self.equal():
            return f"Nothing of {both} could be compared."
        return f"{both} do not differ."

    def equal(self) -> str:
        """List what was compared and is equal; empty if nothing was."""
        return ", ".join(what for section in self.sections for what in section.equal)

    def unknown(self) -> list[str]:
        """List what could not be compared, each with the reason."""
        return [why for section in self.sections for why in section.unknown]

    def as_dict(self) -> dict[str, Any]:
        """Return the difference as JSON holds it."""
        sections = {section.name: asdict(section) for section in self.sections}
        for section in sections.values():
            section.pop("name")
        found = {"runs": list(self.runs), "differs": self.differs, "sections": sections}
        return _without_infinity(found)


def _without_infinity(value: Any) -> Any:
    """Replace numbers that JSON does not know by their names."""
    if isinstance(value, Mapping):
        return {key: _without_infinity(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lack(runs: Sequence[str], what: str) -> str:
    """Say that runs have none of something.

    >>> lack(["a"], "no run card"), lack(["a", "b"], "no run card")
    ('a has no run card', 'a and b have no run card')
    """
    return f"{' and '.join(runs)} {'has' if len(runs) == 1 else 'have'} {what}"


def marked(text: str) -> str:
    """Mark what could not be seen of a text: that it is empty, and spaces at its ends.

    >>> marked(""), marked(" 12 ")
    ('(nothing)', '␠12␠')
    """
    inside = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inside else len(text)
    after = len(text) - before - len(inside)
    return f"{'␠' * before}{inside}{'␠' * after}" or "(nothing)"


def unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Unequal]:
    """Return the values that differ between two mappings, in order; None stands for a missing one.

    >>> unequal({"seed": 1, "layout": "packed"}, {"seed": 2, "layout": "packed"})
    [Unequal(name='seed', a=1, b=2, by=None)]
    """
    return [
        Unequal(name, a.get(name), b.get(name))
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with names joined by dots.

    >>> flat({"zero_optimization": {"stage": 2}})
    {'zero_optimization.stage': 2}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
