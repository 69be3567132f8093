"""Find the two names in a file: its conversations vote, and a doubtful vote is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from neoxkit import paths
from neoxkit.data.conversation import Names
from neoxkit.data.labels import any_labels, finder
from neoxkit.errors import UserError

# Names that tell which side they are, in any case.
ASKING = {
    "user", "human", "question", "q", "instruction", "prompt", "query", "input", "customer",
    "client", "student", "patient", "person", "me", "you", "用户",
}  # fmt: skip
ANSWERING = {
    "agent", "assistant", "answer", "a", "bot", "chatbot", "ai", "gpt", "chatgpt", "response",
    "reply", "output", "completion", "model", "助手",
}  # fmt: skip
MOST_LABELS = 12  # examined in a conversation, after the asker's
SHARE = 0.9  # of the conversations that two names must fit to be certain
FEWEST = 3  # conversations; with fewer, such names are not taken for the two sides
RIVAL = 0.05  # of the votes for the top name; another name with more is a rival


@dataclass
class Votes:
    """The conversations' votes for the names: who asks, and who answers.

    Each conversation counts once in `asks`, in `first` (the asker, the first other name after it)
    and in `also` (the same, and each further name after it). `steps` counts pairs of neighbouring
    labels, `seen` conversations in which a name is a label; `lines` has the line of the first.
    """

    pieces: int = 0
    asks: Counter[str] = field(default_factory=Counter)
    first: Counter[tuple[str, str]] = field(default_factory=Counter)
    also: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    lines: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Votes") -> None:
        """Add the votes of a later part of the file."""
        self.pieces += other.pieces
        for name in ("asks", "first", "also", "steps", "seen"):
            getattr(self, name).update(getattr(other, name))
        self.lines = other.lines | self.lines

    def has(self, name: str) -> bool:
        """Return whether a name is a label, in any case."""
        return any(same(one, name) for one in self.seen)

    def known(self) -> bool:
        """Return whether an asking name is known to be one (`ASKING`)."""
        return any(name.casefold() in ASKING for name in self.asks)

    def answered(self) -> float:
        """Return the share of conversations in which the most common pair asks and answers."""
        pairs = Counter(self.first)
        for (one, _, other), count in self.also.items():
            pairs[one, other] += count
        return max(pairs.values(), default=0) / max(self.pieces, 1)

    def turns_of(self, user: str) -> Counter[str]:
        """Count the names that follow a name's labels."""
        return _behind(user, self.steps)

    def answers(self, user: str) -> Counter[str]:
        """Count the conversations in which each name answers; with one or two, the turns."""
        if self.pieces < FEWEST:
            return _one_spelling(self.turns_of(user))
        return _one_spelling(_behind(user, self.first) + _behind(user, self.also))

    def without(self, user: str, agent: str) -> Counter[str]:
        """Count the names that answer where this agent does not."""
        if self.pieces < FEWEST:
            counts = self.answers(user)
        else:
            counts = _behind(user, self.first)
            for (one, first, other), count in self.also.items():
                if same(one, user) and same(other, agent):
                    counts[first] -= count
        return Counter({n: c for n, c in _one_spelling(counts).items() if not same(n, agent)})


def _behind(
    user: str, counts: Mapping[tuple[str, str], int] | Mapping[tuple[str, str, str], int]
) -> Counter[str]:
    """Count the last name of each key whose first name is the user's."""
    found: Counter[str] = Counter()
    for (one, *_, other), count in counts.items():
        if same(one, user):
            found[other] += count
    return found


def same(one: str, other: str) -> bool:
    """Return whether two names differ at most in case."""
    return one.casefold() == other.casefold()


def _one_spelling(counts: Counter[str]) -> Counter[str]:
    """Merge the counts of names that differ only in case, under the most common spelling."""
    spelling: dict[str, str] = {}
    merged: Counter[str] = Counter()
    for name, count in counts.most_common():
        merged[spelling.setdefault(name.casefold(), name)] += count
    return merged


def votes(
    pieces: Iterable[tuple[int, str]], user: str = "", agent: str = "", glued: bool = False
) -> Votes:
    """Collect the votes of conversations, each a first line's number and a text.

    `user` and `agent` are names that the user set. `glued`: a label needs no blank line before it.
    """
    found, given = Votes(), finder([user, agent])
    for line, text in pieces:
        found.pieces += 1
        names = [name for _, name in any_labels(text.split("\n"), glued, given)]
        found.seen.update(list(dict.fromkeys(names)))
        for name in names:
            found.lines.setdefault(name, line)
        if asker := _asker(names, user, agent):
            found.asks[asker] += 1
            behind = [n for n in names[names.index(asker) :] if not same(n, asker)]
            first, *others = list(dict.fromkeys(behind))[:MOST_LABELS] or [""]
            found.first.update([(asker, first)] if first else [])
            found.also.update((asker, first, other) for other in others)
            found.steps.update(
                (one, other) for one, other in pairwise(names) if not same(one, other)
            )
    return found


def _asker(names: Sequence[str], user: str, agent: str) -> str:
    """Return the asker in a conversation with these labels: a known asking name, preferably before
    an answering one; else the first that is not an answering one."""
    others = [name for name in names if not same(name, agent)]
    if user:
        return next((name for name in others if same(name, user)), "")
    before = [a for a, b in pairwise(names) if b.casefold() in ANSWERING or same(b, agent)]
    for wanted, where in (
        ({"user"}, others),
        ({"human"}, others),
        (ASKING, before),
        (ASKING, others),
    ):
        if known := next((name for name in where if name.casefold() in wanted), ""):
            return known
    others = [name for name in others if name.casefold() not in ANSWERING]
    return others[0] if len({*names}) > 1 and others else ""


def choose(path: Path, votes: Votes, user: str = "", agent: str = "") -> Names | None:
    """Choose the two names of a file; None if nobody asks or nobody answers.

    Raise UserError if two names are about equally likely for one side.
    """
    sure, user = bool(user), user or _choose_user(path, votes)
    if not user and agent:
        user = "User"  # the usual name; a file without it is refused later
    agent = agent or _choose_agent(path, votes, user, sure)
    return Names(agent, user) if user and agent else None


def _choose_agent(path: Path, votes: Votes, user: str, sure: bool) -> str:
    """Choose who answers most; refuse if another answers without it, or has an answering name.

    `sure`: the user named the asker, so no other name asks.
    """
    counts, first = votes.answers(user), _behind(user, votes.first)
    if sure:
        counts = Counter({n: c for n, c in counts.items() if n.casefold() not in ASKING})
    top = max(counts, key=lambda name: (counts[name], first[name]), default="")
    if top.casefold() in ASKING:
        raise _two(path, votes, [user, top], votes.asks + counts, "ask", "user_name")
    rivals = votes.without(user, top)
    known = [n for n in counts if n.casefold() in ANSWERING and counts[n] >= SHARE * counts[top]]
    if known and top not in known:
        rivals[top], top = counts[top], known[0]
    return _clear(path, votes, top, counts[top], rivals, "answer", "agent_name")


def _choose_user(path: Path, votes: Votes) -> str:
    asks = _one_spelling(votes.asks)
    known = Counter({name: count for name, count in asks.items() if name.casefold() in ASKING})
    top = max(asks, key=asks.__getitem__, default="")
    if top not in known and votes.pieces >= FEWEST and asks[top] >= SHARE * votes.pieces:
        return top
    top = max(known, key=known.__getitem__, default="")
    count = asks.pop(top, 0)
    return _clear(path, votes, top, count, asks if top else known, "ask", "user_name")


def _clear(
    path: Path,
    votes: Votes,
    top: str,
    count: int,
    others: Counter[str],
    verb: str,
    parameter: str,
) -> str:
    """Return the name with most votes; refuse if others have many."""
    rivals = [n for n, c in others.most_common() if c == count or c >= max(2, RIVAL * count)]
    if not rivals:
        return top
    raise _two(path, votes, [top, *rivals], others + Counter({top: count}), verb, parameter)


def _two(
    path: Path,
    votes: Votes,
    names: Sequence[str],
    counts: Mapping[str, int],
    verb: str,
    parameter: str,
) -> UserError:
    names = sorted(names, key=lambda name: -counts[name])
    said = ", ".join(f"{name[:24]} ({counts[name]})" for name in names[:3])
    return UserError(
        f"{paths.short(path)}:{votes.lines[names[1]]}",
        f"several names {verb}: {said}",
        f'set {parameter}, for example to "{names[0][:24]}"',
    )
