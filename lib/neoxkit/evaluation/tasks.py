"""Standard tasks: run a model through lm-evaluation-harness, if it is installed.

Tasks have the harness's names (`lm-eval ls tasks`), or are your own YAML files, like
data/sample_task.yaml; a dataset's path in such a file is relative to the kit's root.
"""

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neoxkit import paths
from neoxkit.errors import UserError, near, shorten
from neoxkit.evaluation import paired
from neoxkit.parallel import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neoxkit.settings import EvaluateSettings

FILES = (".yaml", ".yml")
BOOTSTRAP = 1000  # resamples, for metrics whose error has no formula
KINDS = {
    "loglikelihood": "scores answers",
    "loglikelihood_rolling": "scores texts",
    "generate_until": "writes answers",
}


def check(tasks: Sequence[str]) -> None:
    """Refuse a missing harness or task file before anything is loaded."""
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks", "lm_eval is not installed", "pip install lm_eval")
    for name in tasks:
        if name.endswith(FILES):
            paths.find("tasks", name)


def load_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """Load the tasks with their data, as lm_eval.evaluate takes them; empty if none are named."""
    check(tasks)
    if not tasks:
        return {}
    own = {name: str(paths.find("tasks", name)) for name in tasks if name.endswith(FILES)}
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_defaults=len(own) < len(tasks))
        for name in tasks:
            if name not in own and name not in manager.all_tasks:
                remedy = near(name, manager.all_tasks, "see lm-eval ls tasks")
                raise UserError("tasks", f"{name!r} is not a task of lm_eval", remedy)
        try:
            return manager.load([own.get(name, name) for name in tasks])
        except Exception as fault:  # the hub, the cache, or the user's own file
            what = f"{', '.join(tasks)} can't be loaded ({shorten(str(fault), 90)})"
            raise UserError("tasks", what, "check the file, or the network") from fault


def task_results(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Mapping[str, Any],
    settings: "EvaluateSettings",
    show: Callable[[str], Progress] = lambda label: silent,
) -> list[dict[str, Any]]:
    """Return one row per task and metric: its value, its standard error (None if unknown), and its
    values by document (see `rows`).

    Every model gets the same examples, with the same few-shot examples before them.
    """
    if not tasks:
        return []
    import torch

    with _quiet():
        import lm_eval

        for task in tasks["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=settings.seed)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(settings.seed)
            found = lm_eval.evaluate(
                _wrapped(model, tokenizer, settings.batch_size, show),
                task_dict=tasks,
                limit=settings.tasks_limit or None,
                bootstrap_iters=BOOTSTRAP,
                log_samples=True,
            )
    return rows(found)


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of lm_eval.evaluate as plain rows.

    `values`: the metric of each document, if it is their mean (others, like F1 over all documents,
    have none, nor have groups of tasks). `documents`: the SHA-256 of which documents these are.

    >>> one = {"alias": " - lucky", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 26}
    >>> rows({"results": {"lucky": one}, "higher_is_better": {"lucky": {"acc": True}}})
    [{'task': 'lucky', 'metric': 'acc', 'better': 'higher', 'value': 0.5, 'stderr': 0.1, \
'examples': 26, 'values': None, 'documents': ''}]
    """
    made = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, of = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{of}")
            higher = found.get("higher_is_better", {}).get(task, {}).get(metric)
            samples = found.get("samples", {}).get(task, [])
            made.append(
                {
                    "task": task,
                    "metric": metric if of == "none" else f"{metric} ({of})",
                    "better": {True: "higher", False: "lower"}.get(higher, ""),
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None,
                    "examples": values.get("sample_len"),
                    **_by_document(samples, metric, of, float(value)),
                }
            )
    return made


def _by_document(
    samples: Sequence[Mapping[str, Any]], metric: str, of: str, mean: float
) -> dict[str, Any]:
    """Return `values` and `documents` of `rows`, in the order of the documents."""
    none = {"values": None, "documents": ""}
    mine = [one for one in samples if one["filter"] == of and metric in one["metrics"]]
    mine.sort(key=lambda one: one["doc_id"])
    values = [one[metric] for one in mine]
    if not values or not all(isinstance(one, int | float) for one in values):
        return none
    values = [int(one) if one in (0, 1) else float(one) for one in values]
    if not math.isclose(sum(values) / len(values), mean, rel_tol=1e-9, abs_tol=1e-12):
        return none
    which = json.dumps([[one["doc_id"], one["doc_hash"]] for one in mine])
    return {"values": values, "documents": hashlib.sha256(which.encode()).hexdigest()}


def compared(
    base: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any] | None]:
    """Return how two models differ on each row of `rows`: paired by document (paired.values), or
    None where that can't be done: no values by document, or of other documents."""
    return [
        paired.values(one["values"], other["values"])
        if one["values"] and other["values"] and one["documents"] == other["documents"]
        else None
        for one, other in zip(base, tuned, strict=True)
    ]


def by_document(
    base: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return both models' values by document, one line per task and metric that has them."""
    return [
        {
            **{key: one[key] for key in ("task", "metric", "documents")},
            "base": one["values"],
            "tuned": other["values"],
        }
        for one, other in zip(base, tuned, strict=True)
        if one["values"] and one["documents"] == other["documents"]
    ]


def _wrapped(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch_size: int,
    show: Callable[[str], Progress],
) -> Any:
    """Wrap the model for the harness; it is asked in parts, so that progress shows."""
    from lm_eval.models.huggingface import HFLM

    from neoxkit.models import generation

    class Shown(HFLM):
        def loglikelihood(self, requests: list[Any], **_: Any) -> list[Any]:
            return in_parts(super().loglikelihood, requests, "loglikelihood")

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[Any]:
            return in_parts(super().loglikelihood_rolling, requests, "loglikelihood_rolling")

        def generate_until(self, requests: list[Any], **_: Any) -> list[Any]:
            return in_parts(super().generate_until, requests, "generate_until")

    def in_parts(ask: Callable[..., list[Any]], requests: list[Any], kind: str) -> list[Any]:
        progress, answers = show(f"{KINDS[kind]} of the tasks"), []
        size = max(len(requests) // 50, 8 * batch_size)  # the harness sorts each part by length
        for start in range(0, len(requests), size):
            answers += ask(requests[start : start + size], disable_tqdm=True)
            progress(len(answers), len(requests))
        return answers

    model.generation_config = generation.plain(tokenizer)
    own = copy.deepcopy(tokenizer)  # the harness may set its padding token
    return Shown(pretrained=model, tokenizer=own, batch_size=batch_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run the block in the root, without the harness's log and bars; its errors are raised."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.chdir(paths.root()), contextlib.redirect_stderr(io.StringIO()):
        yield
