"""Name places in a source: a line of a file, a row of a table, a line of a folder's files."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self


class Places(NamedTuple):
    """What a source's numbers mean: `unit` is "line" or "row".

    Lines are counted through all files of a folder: `begins` has each file's first one.
    """

    label: str = ""
    unit: str = "line"
    begins: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, source: Mapping[str, Any]) -> Self:
        """Read them from a manifest's description of a source."""
        begins = tuple((int(line), name) for line, name in source["begins"].items())
        return cls(source["path"], source["unit"], begins)

    def at(self, number: int) -> str:
        """Return a place as a fault names it.

        >>> Places("talks.txt").at(7), Places("talks.csv", "row").at(7)
        ('talks.txt:7', 'talks.csv, row 7')
        >>> Places("talks", "line", ((1, "talks/a.txt"), (5, "talks/b.txt"))).at(7)
        'talks/b.txt:3'
        >>> Places("a.csv, b.csv", "row", ((1, "a.csv"), (5, "b.csv"))).at(7)
        'b.csv, row 3'
        """
        if self.begins:
            first, name = self.begins[bisect_right(self.begins, number, key=lambda b: b[0]) - 1]
            inside = number - first + 1
            return f"{name}, row {inside}" if self.unit == "row" else f"{name}:{inside}"
        return f"{self.label}, row {number}" if self.unit == "row" else f"{self.label}:{number}"

    def listed(self, numbers: Sequence[int], most: int = 5) -> str:
        """Format places for a table.

        >>> Places().listed([3, 9]), Places("", "row").listed([1, 2, 3, 4, 5, 6])
        ('lines 3, 9', 'rows 1, 2, 3, 4, 5, ...')
        >>> Places("talks", "line", ((1, "talks/a.txt"), (5, "talks/b.txt"))).listed([1, 7])
        'talks/a.txt:1, talks/b.txt:3'
        """
        shown = [self.at(n) if self.begins else str(n) for n in numbers[:most]]
        listed = ", ".join(shown) + (", ..." if len(numbers) > most else "")
        if self.begins:
            return listed
        return f"{self.unit}{'s' if len(numbers) > 1 else ''} {listed}"


NO_PLACES = Places()  # lines of a text that has no name
