"""Find the two names in a file: its conversations vote, and a doubtful vote is refused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from neoxkit.data.conversation import Names
from neoxkit.data.labels import any_labels, finder
from neoxkit.data.places import Places
from neoxkit.errors import UserError

# Names that tell which side they belong to, in upper or lower case.
ASKING = {
    "user", "human", "question", "q", "instruction", "prompt", "query", "input", "customer",
    "client", "student", "patient", "person", "me", "you", "用户",
}  # fmt: skip
ANSWERING = {
    "agent", "assistant", "answer", "a", "bot", "chatbot", "ai", "gpt", "chatgpt", "response",
    "reply", "output", "completion", "model", "助手",
}  # fmt: skip
MOST_LABELS = 12  # different names examined in a conversation, after the asker's
SHARE = 0.9  # share of conversations that two names must fit to be certain
FEWEST = 3  # conversations: with fewer, unknown names are not taken for the two sides
RIVAL = 0.05  # share of the top name's votes: another name with that many is a rival
_PARAMETERS = {"ask": "user_name", "answer": "agent_name"}  # set these to settle a doubtful vote


@dataclass
class Votes:
    """The conversations' votes for the names: who asks, and who answers.

    Each conversation counts once in `asks`, once in `first` (the asker and the first other name
    after it) and once per further name in `also` (the same two and that name). `steps` counts
    pairs of neighbouring labels. `seen` counts the conversations in which a name is a label, and
    `lines` has the line where the first of them starts.
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
        """Return whether a name is a label, in upper or lower case."""
        return any(same(one, name) for one in self.seen)

    def known(self) -> bool:
        """Return whether an asking name is known to be one (`ASKING`)."""
        return any(name.casefold() in ASKING for name in self.asks)

    def mostly_asks(self) -> bool:
        """Return whether a known asking name is a label in nearly all conversations (SHARE)."""
        known = sum(count for name, count in self.asks.items() if name.casefold() in ASKING)
        return known >= SHARE * self.pieces

    def answered(self) -> float:
        """Return the share of conversations in which the most common pair asks and answers."""
        pairs = Counter(self.first)
        for (one, _, other), count in self.also.items():
            pairs[one, other] += count
        return max(pairs.values(), default=0) / max(self.pieces, 1)

    def turns_of(self, user: str) -> Counter[str]:
        """Count the names that follow a name's labels."""
        return _last_after(user, self.steps)

    def answers(self, user: str) -> Counter[str]:
        """Count the conversations in which each name answers; in a tiny file, count the turns."""
        if self.pieces < FEWEST:
            return _one_spelling(self.turns_of(user))
        return _one_spelling(_last_after(user, self.first) + _last_after(user, self.also))

    def without(self, user: str, agent: str) -> Counter[str]:
        """Count the conversations in which each name answers and this agent does not."""
        if self.pieces < FEWEST:
            counts = self.answers(user)
        else:
            counts = _last_after(user, self.first)
            for (one, first, other), count in self.also.items():
                if same(one, user) and same(other, agent):
                    counts[first] -= count
        return Counter({n: c for n, c in _one_spelling(counts).items() if not same(n, agent)})


def _last_after(
    user: str, counts: Mapping[tuple[str, str], int] | Mapping[tuple[str, str, str], int]
) -> Counter[str]:
    """Count the last name of each key whose first name is `user`."""
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


def collect_votes(pieces: Iterable[tuple[int, str]], given: Names, glued: bool = False) -> Votes:
    """Collect the votes of conversations, each a line number and a text.

    `given`: the names that the user set, "" where not. `glued`: a label needs no blank line
    before it.
    """
    found, find = Votes(), finder(given)
    for line, text in pieces:
        found.pieces += 1
        names = [name for _, name in any_labels(text.split("\n"), glued, find)]
        found.seen.update(list(dict.fromkeys(names)))
        for name in names:
            found.lines.setdefault(name, line)
        if asker := _asker(names, given):
            found.asks[asker] += 1
            later = [n for n in names[names.index(asker) :] if not same(n, asker)]
            first, *others = list(dict.fromkeys(later))[:MOST_LABELS] or [""]
            found.first.update([(asker, first)] if first else [])
            found.also.update((asker, first, other) for other in others)
            found.steps.update(
                (one, other) for one, other in pairwise(names) if not same(one, other)
            )
    return found


def _asker(names: Sequence[str], given: Names) -> str:
    """Return who asks in a conversation with these labels, "" if nobody does.

    That is a known asking name, preferably one before an answering name; else the first name that
    is not an answering one.
    """
    others = [name for name in names if not same(name, given.agent)]
    if given.user:
        return next((name for name in others if same(name, given.user)), "")
    before = [a for a, b in pairwise(names) if b.casefold() in ANSWERING or same(b, given.agent)]
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


def choose(places: Places, votes: Votes, given: Names) -> Names | None:
    """Choose the two names of a file; None if nobody asks or nobody answers.

    Raise UserError if two names are about equally likely for one side.
    """
    user = given.user or _choose_user(places, votes)
    if not user and given.agent:
        user = "User"  # the usual name; a file without it is refused later
    agent = given.agent or _choose_agent(places, votes, user, sure=bool(given.user))
    return Names(agent, user) if user and agent else None


def _choose_agent(places: Places, votes: Votes, user: str, sure: bool) -> str:
    """Choose who answers most; refuse if others answer where that name does not.

    `sure`: the user named the asker, so other asking names are text.
    """
    counts, first = votes.answers(user), _last_after(user, votes.first)
    if sure:
        asking = [name for name in counts if name.casefold() in ASKING]
        if asking and len(asking) == len(counts):
            raise _only_asking_names(places, votes, user, asking[0], counts)
        counts = Counter({n: c for n, c in counts.items() if n not in asking})
    top = max(counts, key=lambda name: (counts[name], first[name]), default="")
    if top.casefold() in ASKING:
        raise _two(places, votes, [user, top], votes.asks + counts, "ask")
    rivals = votes.without(user, top)
    known = [n for n in counts if n.casefold() in ANSWERING and counts[n] >= SHARE * counts[top]]
    if known and top not in known:
        rivals[top], top = counts[top], known[0]
    rivals[top] = counts[top]
    return _clear(places, votes, top, rivals, "answer")


def _choose_user(places: Places, votes: Votes) -> str:
    asks = _one_spelling(votes.asks)
    known = Counter({name: count for name, count in asks.items() if name.casefold() in ASKING})
    top = max(asks, key=asks.__getitem__, default="")
    if top not in known and votes.pieces >= FEWEST and asks[top] >= SHARE * votes.pieces:
        return top
    top = max(known, key=known.__getitem__, default="")
    return _clear(places, votes, top, asks, "ask") if top else ""


def _clear(places: Places, votes: Votes, top: str, counts: Counter[str], verb: str) -> str:
    """Return `top`; refuse if other names have many votes too."""
    least = min(max(2, RIVAL * counts[top]), counts[top])
    rivals = [name for name, count in counts.most_common() if name != top and count >= least]
    if not rivals:
        return top
    raise _two(places, votes, [top, *rivals], counts, verb)


def _two(
    places: Places, votes: Votes, names: Sequence[str], counts: Mapping[str, int], verb: str
) -> UserError:
    names = sorted(names, key=lambda name: -counts[name])
    said = ", ".join(f"{name[:24]} ({counts[name]})" for name in names[:3])
    return UserError(
        places.at(votes.lines[names[1]]),
        f"several names {verb}: {said}",
        f'set {_PARAMETERS[verb]}, for example to "{names[0][:24]}"',
    )


def _only_asking_names(
    places: Places, votes: Votes, user: str, name: str, counts: Mapping[str, int]
) -> UserError:
    """Explain that the asker's turns are followed only by names that ask elsewhere."""
    return UserError(
        places.at(votes.lines[name]),
        f"only a name that usually asks follows {user[:24]}: {name[:24]} ({counts[name]})",
        f'set agent_name, for example to "{name[:24]}"',
    )
