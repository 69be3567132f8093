"""tasks.py: lm-evaluation-harness on the kit's own task file."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from neoxkit.data.conversation import Names
from neoxkit.data.questions import read_questions
from neoxkit.errors import UserError
from neoxkit.evaluation.tasks import by_document, check, compared, load_tasks, rows, task_results
from neoxkit.models import generation, loading
from neoxkit.settings import EvaluateSettings

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
)
CHOICES = """
task: echo
dataset_path: json
dataset_kwargs: {data_files: {test: data/choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{ word }}"
doc_to_choice: "{{ choices }}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def tokenizer(session_home: Path) -> Any:
    return loading.load_tokenizer(str(session_home / "data" / "models" / "tiny"))


@pytest.fixture(scope="module")
def model(session_home: Path) -> Any:
    return loading.for_inference(str(session_home / "data" / "models" / "tiny"))


@installed
def test_the_sample_task_counts_what_the_kit_counts(
    home: Path, model: Any, tokenizer: Any, capfd: pytest.CaptureFixture
) -> None:
    """Every third question has the model's own reply as its reference, whatever it was told."""
    asked = read_questions(home / "data" / "sample_questions.jsonl", Names())[:40]
    said = generation.reply(model, tokenizer, [q.prompt for q in asked], Names(), max_new_tokens=8)
    lines = (home / "data" / "sample_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines[:40]]
    for i, question in enumerate(questions):
        question["messages"][-1]["content"] = said[i].text if i % 3 == 0 else "another"
    mine = home / "data" / "mine.jsonl"
    mine.write_text("\n".join(map(json.dumps, questions)))
    task = (REPOSITORY / "data" / "sample_task.yaml").read_text()
    task = task.replace("data/sample_questions.jsonl", "data/mine.jsonl")
    (home / "data" / "mine.yaml").write_text(task.replace("toks: 64", "toks: 8"))
    settings = EvaluateSettings(tasks=["data/mine.yaml"], tasks_limit=30, batch_size=16)
    shown: list[str] = []

    def show(label: str) -> Callable[[int, int], None]:
        shown.append(label)
        return lambda done, of: shown.append(f"{done}/{of}")

    model.generation_config.suppress_tokens = [*range(2, 1000)]  # as its folder might
    (row,) = task_results(model, tokenizer, load_tasks(settings.tasks), settings, show)
    assert row["value"] == 10 / 30 and 0 < row["stderr"] < 0.1
    assert row["values"] == [1, 0, 0] * 10
    assert (row["task"], row["examples"], row["better"]) == ("neoxkit_sample", 30, "higher")
    assert shown == ["writes answers of the tasks", "30/30"]
    assert capfd.readouterr().err == ""


def sample(number: int, value: object, of: str = "none") -> dict[str, Any]:
    return {
        "doc_id": number, "doc_hash": f"h{number}", "filter": of, "metrics": ["m"], "m": value,
    }  # fmt: skip


def found(samples: list[dict[str, Any]], mean: float, of: str = "none") -> list[dict[str, Any]]:
    """Return rows of one task of metric m, as the harness would give its results."""
    results = {"t": {"alias": "t", f"m,{of}": mean, "sample_len": len(samples)}}
    return rows({"results": results, "samples": {"t": samples}})


def test_values_are_kept_by_document_where_their_mean_is_the_metric() -> None:
    """Values of another filter are not among them; the order is that of the documents."""
    other = sample(0, 9.0, "strict")
    (row,) = found([sample(1, 0.25), other, sample(0, True)], 0.625)
    assert row["values"] == [1, 0.25]
    assert found([sample(0, 1), sample(1, 0)], 0.7)[0]["values"] is None  # not their mean
    assert found([sample(0, (1, 2))], 1.0)[0]["values"] is None
    assert found([], 1.0)[0]["values"] is None  # a group of tasks


def test_models_are_compared_document_by_document_and_never_unpaired() -> None:
    base = found([sample(i, int(i < 10)) for i in range(40)], 0.25)
    tuned = found([sample(i, int(i < 18)) for i in reversed(range(40))], 0.45)
    (one,) = compared(base, tuned)
    assert one["mean"] == pytest.approx(0.2) and one["low"] > 0.05
    assert one["p"] == pytest.approx(2 / 2**8)
    (line,) = by_document(base, tuned)
    assert line["base"] == [1] * 10 + [0] * 30 and line["tuned"] == [1] * 18 + [0] * 22
    assert len(json.dumps(line)) < 400
    shifted = found([sample(i + 1, int(i < 18)) for i in range(40)], 0.45)
    none = found([], 0.45)
    for others in (shifted, none):
        assert compared(base, others) == [None] and by_document(base, others) == []


@installed
def test_the_harness_opens_a_model_folder_by_its_path(
    home: Path, model: Any, tokenizer: Any
) -> None:
    """It scores a reply as the model itself does."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked, said = "User: Hi.\n\nAgent:", " It is 7."
    harness = HFLM(pretrained=str(home / "data" / "models" / "tiny"), device="cpu", batch_size=1)
    request = Instance("loglikelihood", {}, (asked, said), 0)
    ((found, _),) = harness.loglikelihood([request], disable_tqdm=True)
    ids, first = tokenizer(asked + said)["input_ids"], len(tokenizer(asked)["input_ids"])
    with torch.no_grad():
        chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = sum(chances[i - 1, ids[i]].item() for i in range(first, len(ids)))
    assert found == pytest.approx(own, abs=1e-4)


@installed
def test_choices_follow_the_models_own_loss(home: Path, model: Any, tokenizer: Any) -> None:
    """Of two choices, every other question has the likelier one first: half are right."""
    words = ["Hi", "What is 7 plus 3?", "Name a colour.", "Why?"]
    lines = []
    for i, word in enumerate(words):
        pair = [" yes", " no"]
        losses = [float(_loss(model, tokenizer, word, choice)) for choice in pair]
        likelier_first = losses[0] < losses[1]
        lines.append(
            {"word": word, "choices": pair if likelier_first == (i % 2 == 0) else pair[::-1]}
        )
    (home / "data" / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (home / "data" / "choices.yaml").write_text(CHOICES)
    tasks, settings = load_tasks(["data/choices.yaml"]), EvaluateSettings()
    (row,) = task_results(model, tokenizer, tasks, settings)
    assert (row["value"], row["examples"], row["metric"]) == (0.5, 4, "acc")
    assert task_results(model, tokenizer, tasks, settings) == [row]
    assert row["values"] == [1, 0, 1, 0] and len(row["documents"]) == 64
    lines[0]["word"] = "Ho"
    (home / "data" / "choices.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (other,) = task_results(model, tokenizer, load_tasks(["data/choices.yaml"]), settings)
    assert other["documents"] != row["documents"]
    assert compared([row], [other]) == [None] and by_document([row], [other]) == []


def _loss(model: Any, tokenizer: Any, context: str, choice: str) -> torch.Tensor:
    """Return the summed loss of a choice after a context."""
    before, whole = (tokenizer(text)["input_ids"] for text in (context, context + choice))
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0, len(before) - 1 : -1]
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(whole[len(before) :]), reduction="sum"
    )


@installed
@pytest.mark.process  # the first import of lm_eval takes as long as one
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("piqaa", "tasks: 'piqaa' is not a task of lm_eval -- did you mean piqa?"),
        ("data/none.yaml", "tasks: 'data/none.yaml' does not exist"),
        ("data/broken.yaml", "tasks: data/broken.yaml can't be loaded"),
    ],
)
def test_an_unknown_task_is_refused_in_one_line(home: Path, task: str, said: str) -> None:
    (home / "data" / "broken.yaml").write_text("task: broken\ndataset_path: /nowhere/at/all\n")
    with pytest.raises(UserError) as fault:
        load_tasks([task])
    assert str(fault.value).startswith(said) and "\n" not in str(fault.value)


def test_tasks_are_refused_first_if_the_harness_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm_eval is not installed -- pip install lm_eval"):
        check(["piqa"])
    check([])
    assert load_tasks([]) == {}


def test_a_task_must_be_a_name() -> None:
    with pytest.raises(UserError, match=r"tasks: got 3 -- write"):
        EvaluateSettings(tasks=[3])
