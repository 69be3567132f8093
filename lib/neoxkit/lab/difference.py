"""What differs between two runs, as tables: difference("a", "b") in any notebook."""

from collections.abc import Sequence

from neoxkit.evaluation import difference as runs
from neoxkit.evaluation.sections import Listed, RunDifference, Section, Unequal, marked
from neoxkit.lab import view
from neoxkit.lab.view import View


def difference(a: str, b: str, most: int | None = 12) -> View:
    """Show what differs between two runs, by name or folder, and nothing else: settings,
    conversations, versions, losses, and the replies of 03.

    Of conversations (folded) and replies, at most `most` of each kind are shown (None: all). What
    is equal, and what could not be compared, is said below.
    """
    return tables(runs.of_runs(a, b, most))


def tables(found: RunDifference) -> View:
    """Show a difference, section by section."""
    sections = [_section(one, found.runs) for one in found.sections if one.differs]
    said = [f"Equal: {equal}" for equal in [found.equal()] if equal]
    said += [f"Not compared: {why}" for why in found.unknown()]
    below = view.sentences(said) if said else view.NOTHING
    return sum([*sections, below], view.sentence(found.summary()))


def _section(section: Section, names: Sequence[str]) -> View:
    title = View(f"<h4>{view.escape(section.name)}</h4>", view.visible(section.name))
    values = _values(section.unequal, names) if section.unequal else view.NOTHING
    says = view.sentences(section.says) if section.says else view.NOTHING
    fold = section.name == "data"  # conversations are long, and losses follow below
    return sum([_listed(one, fold) for one in section.listed], title + values + says)


def _values(found: Sequence[Unequal], names: Sequence[str]) -> View:
    rows = [(one.name, *map(view.narrow, one.texts()), one.by_text()) for one in found]
    columns = ("", *names, "difference")[: 4 if any(row[3] for row in rows) else 3]
    return view.table([row[: len(columns)] for row in rows], columns, close=True)


def _listed(listed: Listed, fold: bool) -> View:
    few = f"; the first {len(listed.rows)}" if len(listed.rows) < listed.count else ""
    rows = [[marked(text) for text in row.values()] for row in listed.rows]
    header = [*listed.rows[0]] if rows else []
    shown = view.table(rows, header, even=True) if rows else view.NOTHING
    what = f"{listed.count:,} {listed.what}{few}"
    return view.fold(what, shown) if fold else view.sentence(what) + shown
