"""Score runs again on the same conversations: those that all of them evaluate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.errors import UserError
from neoxkit.evaluation import families
from neoxkit.evaluation.compare_models import Difference
from neoxkit.evaluation.compare_runs import Run
from neoxkit.models.power import POWER
from neoxkit.parallel import Progress
from neoxkit.runs.folder import FINISHED

if TYPE_CHECKING:
    from neoxkit.evaluation.scoring import Score

BATCH_SIZE = 32  # conversations


def scores(chosen: Sequence[Run], show: Callable[[str], Progress]) -> dict[str, Any]:
    """Score each run on the first one's held-out set, up to the smallest block size of all; return
    plain figures, as `ranked` does. A run that can't be scored has the reason instead.
    """
    finished = [run for run in chosen if run.state == "finished"]
    facts = {run.name: files.read_json(run.folder / FINISHED) for run in finished}
    block_size = min((own["block_size"] for own in facts.values()), default=0)
    data = next((own["dataset_sha256"] for own in facts.values()), "")
    scored: dict[str, Score | str] = {}
    for run in chosen:
        own = facts.get(run.name, {})
        scored[run.name] = _why_not(run, own, data) or _score(run, own, block_size, show)
    return ranked(scored)


def _why_not(run: Run, facts: Mapping[str, Any], data: str) -> str:
    """Return why a run can't be scored; empty if it can."""
    if not facts:
        return f"is {run.state}"
    if facts["dataset_sha256"] != data:
        return "was trained on other data"
    place = paths.root() / facts["dataset"]
    if not (place / files.MANIFEST).is_file() or tokenized.sha256(place) != data:
        return "its dataset is not here"
    return "" if (run.folder / "model").is_dir() else "its model is not here"


def _score(
    run: Run, facts: Mapping[str, Any], block_size: int, show: Callable[[str], Progress]
) -> "Score | str":
    from neoxkit.evaluation import evaluate, scoring
    from neoxkit.models import loading

    dataset, _ = tokenized.load(paths.root() / facts["dataset"])
    try:
        model = evaluate.load_side(facts, run.folder, "tuned")
    except UserError as why:  # adapters whose base is not here, say
        return str(why)
    score = scoring.score(
        model,
        tokenized.within(dataset["eval"], block_size),
        batch_size=BATCH_SIZE,
        pad_id=loading.pad_id(loading.load_tokenizer(str(run.folder / "model"))),
        progress=show(f"{run.name} scores conversations"),
    )
    return score or "the held-out set is empty"


def ranked(scored: "Mapping[str, Score | str]") -> dict[str, Any]:
    """Return the reasons of runs without a score, then the figures of the others, the lowest loss
    first, each with its difference to that one (None for the first; see families)."""
    found: dict[str, Any] = {name: why for name, why in scored.items() if isinstance(why, str)}
    scores = [(name, one) for name, one in scored.items() if not isinstance(one, str)]
    scores.sort(key=lambda pair: pair[1].loss)
    above = [None, *map(asdict, families.above_the_first([one.losses for _, one in scores]))]
    for (name, one), further in zip(scores, above, strict=False):
        found[name] = {**one.facts(), "above_the_first": further}
    return found


def holds_for(scored: Mapping[str, Any]) -> str:
    """Say what the intervals of `ranked` hold for; empty without any."""
    above = [one["above_the_first"] for one in scored.values() if not isinstance(one, str)]
    if not any(one and one["low"] is not None for one in above):
        return ""
    num = len(above)
    pairs = f"all {num * (num - 1) // 2} differences between the {num} models"
    together = f"hold together for {pairs}" if num > 2 else "hold for the two models"
    said = (
        f"The 95 % intervals {together}, on conversations like these: for these models, not for "
        "their settings, which another seed might put in another order."
    )
    if any(one and Difference(**one).needed for one in above):
        said += (
            f" Where one contains 0, the last column says with how many such conversations it would"
            f" show the difference that was seen ({POWER:.0%}), if that is the true one."
        )
    return said
