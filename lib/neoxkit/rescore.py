"""Runs scored once more, on the same conversations: those that every one of them evaluates."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neoxkit import paths, runs, tokenized, views
from neoxkit.compare import Run
from neoxkit.workers import Progress

if TYPE_CHECKING:
    from neoxkit.scoring import Score

OFF = "score_again is off: each eval loss above is of the run's own eval side."
BATCH_SIZE = 32  # conversations


def again(chosen: Sequence[Run], wanted: bool) -> views.View:
    """The table of `scores`, or that nobody asked for it."""
    return table(scores(chosen, views.Progress)) if wanted else views.sentences([], none=OFF)


def scores(
    chosen: Sequence[Run], show: Callable[[str], Progress]
) -> "dict[str, Score | str | None]":
    """Each run folder's score on the first one's eval side, up to the smallest block size of all.

    Where a run can't be scored there, the reason.
    """
    facts = [_facts(run) for run in chosen]
    finished = [found for found in facts if found]
    block_size = min((found["block_size"] for found in finished), default=0)
    data = finished[0]["dataset_sha256"] if finished else ""
    return {
        paths.short(run.folder): _why_not(run, own, data) or _score(run, own, block_size, show)
        for run, own in zip(chosen, facts, strict=True)
    }


def _facts(run: Run) -> dict[str, Any] | None:
    return runs.read_json(run.folder / runs.FINISHED) if run.state == "finished" else None


def _why_not(run: Run, facts: Mapping[str, Any] | None, data: str) -> str:
    """What stands in the way of scoring a run, or nothing."""
    if not facts:
        return f"is {run.state}"
    if facts["dataset_sha256"] != data:
        return "was trained on other data"
    place = paths.root() / facts["dataset"]
    if not (place / runs.MANIFEST).is_file() or tokenized.sha256(place) != data:
        return "its dataset is not here"
    return "" if (run.folder / "model").is_dir() else "its model is not here"


def _score(
    run: Run, facts: Mapping[str, Any], block_size: int, show: Callable[[str], Progress]
) -> "Score | None":
    from neoxkit import evaluate, models, scoring  # torch

    dataset, _ = tokenized.load(paths.root() / facts["dataset"])
    return scoring.score(
        evaluate.load(facts, run.folder, "tuned"),
        tokenized.within(dataset["eval"], block_size),
        batch_size=BATCH_SIZE,
        pad_id=models.pad_id(models.load_tokenizer(str(run.folder / "model"))),
        progress=show(f"{run.name} scores conversations"),
    )


def table(scored: "Mapping[str, Score | str | None]") -> views.View:
    """The runs' losses on the same conversations, the lowest first."""
    said = {name: one or "the eval side is empty" for name, one in scored.items()}
    found = sorted((s.loss, name, s) for name, s in said.items() if not isinstance(s, str))
    rows = [
        (
            name,
            f"{loss:.4f}",
            f"{s.perplexity:,.3f}",
            f"{s.trained_tokens:,}",
            f"{s.conversations:,}",
        )
        for loss, name, s in found
    ]
    rows += [(name, why, "", "", "") for name, why in said.items() if isinstance(why, str)]
    return views.table(rows, ("run", "eval loss", "perplexity", "trained tokens", "conversations"))
