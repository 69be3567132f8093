"""Sum up rounds of results as medians, ranges and a table: plain data in, text out."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]  # what one program reported in one round
Figure = Callable[[Result], float | None]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def tokens_per_second(result: Result) -> float:
    """Return the useful tokens of the counted steps divided by their seconds."""
    return sum(result["step_tokens"]) / sum(result["step_seconds"])


def start_seconds(result: Result) -> float:
    """Return the seconds from the start of the command to the end of the first step."""
    return result["first_step_end"] - result["started"]


def peak_memory_gb(result: Result) -> float:
    """Return the peak of the whole process tree or of its largest process, whichever is larger."""
    return max(result["pss_gb"], result["maxrss_gb"])


def mfu(result: Result) -> float | None:
    """Return useful FLOP/s of the counted steps by the matmul peak; None if not logged."""
    shares, seconds = result.get("mfu") or [], result["step_seconds"]
    if not shares:
        return None
    weighed = sum(share * s for share, s in zip(shares, seconds, strict=True))
    return weighed / sum(seconds)


def value(name: str) -> Figure:
    """Return the figure of that name from a program's result."""
    return lambda result: result[name]


@dataclass(frozen=True)
class Comparison:
    """A comparison: `figure` of program `one` divided by `other`'s (or minus it, or alone)."""

    name: str
    title: str
    contest: str
    figure: Figure
    one: str
    other: str = ""
    how: str = "ratio"  # ratio: one / other; difference: one - other; alone: one
    least: float | None = None
    most: float | None = None
    unit: str = "x"

    @property
    def target(self) -> str:
        """Return the target as the table shows it."""
        sign, bound = ("≤", self.most) if self.least is None else ("≥", self.least)
        return f"{sign} {bound:g}{unit_text(self.unit)}"

    def reached(self, median: float) -> bool:
        return (self.least is None or median >= self.least) and (
            self.most is None or median <= self.most
        )


def unit_text(unit: str) -> str:
    return f" {unit}" if unit else ""


def summarise(comparison: Comparison, rounds: Sequence[Mapping[str, Result]]) -> dict[str, Any]:
    """Return a comparison's median, least and largest over its rounds, and each side's median.

    A round is a program's result by its name; one that lacks a side is left out, and a comparison
    without any round has `median` None.
    """
    sides = [name for name in (comparison.one, comparison.other) if name]
    found = [
        [comparison.figure(results[side]) for side in sides]
        for results in rounds
        if all(side in results for side in sides)
    ]
    figures = [[f for f in pair if f is not None] for pair in found if None not in pair]
    values = [combine(comparison.how, *pair) for pair in figures]
    medians = [statistics.median(column) for column in zip(*figures, strict=True)]
    median = statistics.median(values) if values else None
    return {
        "name": comparison.name,
        "title": comparison.title,
        "median": median,
        "least": min(values, default=None),
        "largest": max(values, default=None),
        "unit": comparison.unit,
        "rounds": values,
        "sides": dict(zip(sides, medians, strict=False)),
        "target": comparison.target,
        "reached": median is not None and comparison.reached(median),
    }


def combine(how: str, one: float, other: float = 0.0) -> float:
    """
    >>> combine("ratio", 6.0, 2.0), combine("difference", 6.0, 2.0), combine("alone", 6.0)
    (3.0, 4.0, 6.0)
    """
    return {"ratio": lambda: one / other, "difference": lambda: one - other, "alone": lambda: one}[
        how
    ]()


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparisons as a Markdown table."""
    head = ["| comparison | median | range | target | reached | medians of the sides |"]
    return "\n".join([*head, "|---|---|---|---|---|---|", *map(row, summaries)])


def row(s: Mapping[str, Any]) -> str:
    if s["median"] is None:
        return f"| {s['title']} | no figure | | {s['target']} | no | |"
    unit = unit_text(s["unit"])
    sides = ", ".join(f"{name} {number(v)}" for name, v in s["sides"].items())
    reached = "yes" if s["reached"] else "**no**"
    return (
        f"| {s['title']} | {s['median']:.2f}{unit} | {s['least']:.2f} to {s['largest']:.2f} "
        f"| {s['target']} | {reached} | {sides} |"
    )


def number(v: float) -> str:
    """Format a number with three significant digits.

    >>> number(1234.5), number(12.34), number(0.6543)
    ('1,234', '12.3', '0.654')
    """
    return f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"


def machine_line(machine: Mapping[str, Any]) -> str:
    """Describe the machine in one sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}."
    )


def into_readme(readme: str, report: Mapping[str, Any]) -> str:
    """Return the README with machine and table between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"README.md: has no {BEGIN} ... {END} -- put them where the table belongs")
    rounds = {len(c["rounds"]) for c in report["comparisons"] if c["rounds"]}
    one = " (a range of one figure: a single round)" if min(rounds, default=0) == 1 else ""
    made = f"Medians of {max(rounds, default=0)} rounds{one}. {machine_line(report['machine'])}"
    return f"{before}{BEGIN}\n{made}\n\n{table(report['comparisons'])}\n{END}{after}"
