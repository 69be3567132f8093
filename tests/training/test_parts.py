"""A held-out set of several files: the losses on each, while training and in 03."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BASE, metrics, tokenize
from zygote import Zygote, job

from neoxkit import paths
from neoxkit.data import held_out, tokenized
from neoxkit.evaluation import evaluate
from neoxkit.lab import evaluation
from neoxkit.settings import EvaluateSettings

RUN = BASE.replace(dataset="parts", num_replies=0)


@pytest.fixture(scope="module")
def dataset(session_home: Path) -> Path:
    """The small sample's dataset with two held-out files, of short and of long conversations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        patch.chdir(session_home)
        for name, words, count in (("short", 2, 5), ("long", 40, 3)):
            text = (f"User: Say {n}.\n\nAgent: {'Yes. ' * words}\n<|endoftext|>\n"
                    for n in range(count))  # fmt: skip
            (session_home / "data" / f"{name}.txt").write_text("".join(text))
        files = {"brief": "data/short.txt", "long": "data/long.txt"}
        tokenize("small.txt", "parts", eval_file=files)
        return paths.tokenized("parts")


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_each_evaluation_has_the_loss_of_each_part(
    home: Path, zygote: Zygote, dataset: Path, num_ranks: int
) -> None:
    settings = RUN.replace(run=f"parts-{num_ranks}", num_ranks=num_ranks)
    assert zygote.run(job(settings)) == [0] * num_ranks
    folder = paths.run(settings.run)
    sides, manifest = tokenized.load(dataset)
    rows = held_out.rows_by_part(manifest, sides["eval"]["line"][:])
    tokens = {name: sum(np.array(sides["eval"]["trained"])[of]) for name, of in rows.items()}
    evals = [e for e in metrics(folder) if e["event"] == "eval"]
    assert len(evals) > 1
    for event in evals:
        assert event["trained_tokens"] == sum(tokens.values())
        mean = sum(event["parts"][name] * count for name, count in tokens.items())
        assert mean / sum(tokens.values()) == pytest.approx(event["loss"], rel=1e-6)
        assert event["parts"]["brief"] != pytest.approx(event["parts"]["long"], rel=1e-3)
    if num_ranks == 1:
        _and_03_says_the_same(settings.run, evals)


def _and_03_says_the_same(run: str, evals: list[dict]) -> None:
    pair = evaluate.prepare(EvaluateSettings(run=run, num_questions=1, score_checkpoints=False))
    for which in evaluate.MODELS:
        pair.examine(which)
    results = pair.save()
    for event, model in ((evals[0], "base"), (evals[-1], "tuned")):
        found = {part["name"]: part[model]["loss"] for part in results["depth"]["parts"]}
        assert found == pytest.approx(event["parts"], rel=1e-4)
    shown = evaluation.scores(results).text
    assert "held-out set: brief" in shown and "- long, tuned minus base: " in shown
