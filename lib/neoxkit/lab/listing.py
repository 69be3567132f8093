"""The table of all runs: what each one does, its losses, and how its train loss fell."""

import time
from collections.abc import Sequence

from neoxkit.lab import view
from neoxkit.lab.view import View
from neoxkit.machine import duration
from neoxkit.runs.following import Seen

ENDED = 20  # runs that are shown; older ones are folded
WIDTH, HEIGHT = 60, 20  # of a small curve, in pixels
HEADER = ("run, state, step", "train loss", "eval loss", "useful tokens/s", "changed")


def tables(seen: Sequence[Seen]) -> tuple[View, View]:
    """Show the runs, those in training on top; and folded what is older, the trials, and what
    ended runs say."""
    live = [one for one in seen if one.is_live]
    trials = [one for one in seen if not one.is_live and one.standing.is_trial]
    ended = [one for one in seen if not one.is_live and not one.standing.is_trial]
    if not seen:
        return view.sentence("No runs yet -- use 02_train, or neoxkit run."), view.NOTHING
    shown = _table([*live, *ended[:ENDED]]) + view.alert(_says(live))
    folded = {
        "older runs": ended[ENDED:] and _table(ended[ENDED:]),
        "trials": trials and _table(trials),
        "what ended runs said": _says(ended) and view.sentences(_says(ended)),
    }
    views = [view.fold(title, of) for title, of in folded.items() if of]
    return shown, sum(views, view.NOTHING)


def _says(seen: Sequence[Seen]) -> list[str]:
    return [f"{one.standing.run}: {one.standing.says}" for one in seen if one.standing.says]


def _table(seen: Sequence[Seen]) -> View:
    return view.table([_row(one) for one in seen], HEADER, close=True)


def _row(one: Seen) -> tuple[View, ...]:
    """Return a run's cells, of two lines each; only the first one may break into more."""
    standing = one.standing
    state = f"{standing.state} (a trial)" if standing.is_trial else standing.state
    state += ", see below" if standing.says else ""
    step = "" if standing.planned is None else f"{standing.step:,} of {standing.planned:,}"
    rate = "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}"
    left = "" if one.seconds_left is None else f"{duration(one.seconds_left)} left"
    changed = time.localtime(standing.changed)
    return (
        _lines(view.narrow(standing.run), _doing(state, one.doing or step)),
        sparkline(one.losses),
        _lines(_loss("", standing.eval_loss), _loss("best ", one.best_eval)),
        _lines(rate, left),
        _lines(time.strftime("%d %b", changed), time.strftime("%H:%M", changed)),
    )


def _loss(what: str, loss: float | None) -> str:
    return "" if loss is None else f"{what}{loss:.4f}"


def _lines(*lines: str | View) -> View:
    views = [line if isinstance(line, View) else _unbroken(line) for line in lines if line]
    return View("<br>".join(one.html for one in views), ", ".join(one.text for one in views))


def _doing(state: str, step: str) -> View:
    first, second = _unbroken(state), _unbroken(step)
    return View(f"{first.html} · {second.html}", f"{state} · {step}") if step else first


def _unbroken(text: str) -> View:
    return View(view.escape(text).replace(" ", "&nbsp;"), view.visible(text))


def sparkline(losses: Sequence[float]) -> View:
    """Draw a small curve in the colour of the text, and the last loss below it; as text, the first
    loss and the last."""
    if not losses:
        return view.NOTHING
    low, high = min(losses), max(losses)
    across, down = (WIDTH - 4) / max(len(losses) - 1, 1), (HEIGHT - 4) / ((high - low) or 1)
    points = [f"{2 + i * across:.1f},{2 + (high - x) * down:.1f}" for i, x in enumerate(losses)]
    said = f"{losses[0]:.4f} to {losses[-1]:.4f}"
    title = f"train loss, {said}"
    svg = (
        f'<svg role="img" aria-label="{title}" width="{WIDTH}" height="{HEIGHT}"'
        f' style="min-width:{WIDTH}px;vertical-align:middle"><title>{title}</title>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor"'
        ' stroke-width="1.5" stroke-linecap="round"/></svg>'
    )
    return View(f"{svg}<br>{losses[-1]:.4f}", said)
