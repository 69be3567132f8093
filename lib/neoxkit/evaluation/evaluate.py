"""Examine base and tuned model on the same questions and conversations."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neoxkit import files, machine, paths
from neoxkit.data import held_out, tokenized
from neoxkit.data.conversation import Names
from neoxkit.data.questions import Question, own_questions, questions_for
from neoxkit.errors import UserError
from neoxkit.evaluation import compare_models, exact, tasks
from neoxkit.models import configs, loading, model_names
from neoxkit.parallel import Progress, silent
from neoxkit.runs import checkpoints, snapshots
from neoxkit.runs import looks as run_looks
from neoxkit.runs.folder import EVALUATION, early, exported_step, finished_facts, of_side
from neoxkit.settings import EvaluateSettings

if TYPE_CHECKING:  # torch comes with the first model, so that a notebook's imports take no seconds
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neoxkit.evaluation.scoring import Score
    from neoxkit.models.generation import Reply

MODELS = ("base", "tuned")


def load_side(facts: Mapping[str, Any], folder: Path, which: str) -> "PreTrainedModel":
    """Load the base or the tuned model of a finished run, in its precision, on the GPU if any."""
    assert which in MODELS, which
    name = str(folder / "model") if which == "tuned" else _base(facts, folder)
    return loading.for_inference(name, _dtype(facts))


def _base(facts: Mapping[str, Any], folder: Path) -> str:
    if facts["from_scratch"]:
        return str(folder / "base")
    return model_names.at(facts["base"], facts["base_commit"])


def _dtype(facts: Mapping[str, Any]) -> str:
    """Return the run's precision; float32 on a CPU that does not multiply bf16 itself."""
    import torch

    precision = facts["precision"]
    fast = torch.cuda.is_available() or (precision == "bf16" and machine.cpu_has_bf16())
    return loading.dtype_of(precision if fast else "fp32")


@dataclass(frozen=True)
class Examination:
    """One model's score on the held-out set (None if that is empty), its replies, its score on the
    plain text (None if there is none), and its task results (see tasks.rows)."""

    score: "Score | None"
    replies: list["Reply"]
    plain: "Score | None" = None
    tasks: Sequence[Mapping[str, Any]] = field(default_factory=list)


@dataclass
class Evaluation:
    """A finished run's base and tuned model on the same questions and held-out conversations.

    `rows`: the held-out set, or the test side (settings.side), up to the run's block size.
    `questions`: those that are asked, out of `num_known` from `source` and the user. `tasks`: see
    tasks.load_tasks. `show` makes a progress line for a label. `parts`: the rows of each part of
    the held-out set, by name, if it was given as several files.
    """

    settings: EvaluateSettings
    folder: Path
    facts: Mapping[str, Any]
    tokenizer: "PreTrainedTokenizerBase"
    names: Names
    rows: "Dataset"
    questions: Sequence[Question]
    num_known: int
    source: str
    tasks: Mapping[str, Any] = field(default_factory=dict)
    show: Callable[[str], Progress] = lambda label: silent
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    examined: dict[str, Examination] = field(default_factory=dict)

    @cached_property
    def tuned_model(self) -> "PreTrainedModel":
        """The tuned model, which stays loaded for `ask` and the chat box."""
        return self.load("tuned")

    @cached_property
    def looks(self) -> run_looks.Looks | None:
        """The looks at the test side, this one included, which is counted when it is first asked
        for; None on the held-out set."""
        if self.settings.side != "test":
            return None
        return run_looks.add(self.folder, tokenized.unchanged(self.facts))

    def load(self, which: str) -> "PreTrainedModel":
        """Load the base or the tuned model."""
        progress = self.show(f"{which} is loaded")
        model = load_side(self.facts, self.folder, which)
        progress(1, 1)
        return model

    def examine(self, which: str) -> None:
        """Score a model on the plain text and the held-out set, let it answer, run the tasks.

        The base is freed afterwards.
        """
        model = self.tuned_model if which == "tuned" else self.load(which)
        plain = None
        if file := self.settings.plain_text_file:
            from neoxkit.evaluation.scoring import plain_rows

            path = paths.find("plain_text_file", file)
            text, size = plain_rows(path, model, self.tokenizer)
            plain = self._score(model, text, f"{which} scores pieces of the plain text", size)
        size = compare_models.num_bytes(self.rows, self.tokenizer)
        self.examined[which] = Examination(
            self._score(model, self.rows, f"{which} scores conversations", size),
            self._reply(model, self.questions, self.show(f"{which} answers questions")),
            plain,
            tasks.task_results(
                model, self.tokenizer, self.tasks, self.settings,
                lambda label: self.show(f"{which} {label}"),
            ),
        )  # fmt: skip

    def losses(self) -> tuple[compare_models.Losses, compare_models.Losses] | None:
        """Return both models' losses on the held-out set; None if it is empty."""
        base, tuned = (self.examined[which].score for which in MODELS)
        return (base.losses, tuned.losses) if base and tuned else None

    def compare(self) -> dict[str, Any] | None:
        """Return how the models differ on the held-out set (None if it is empty): the difference,
        both losses by turn and by length, and the difference on each part and on the plain text, if
        any."""
        if not (losses := self.losses()):
            return None
        base, tuned = (self.examined[which].plain for which in MODELS)
        plain = base and tuned and compare_models.difference(base.losses, tuned.losses)
        return {
            "difference": asdict(compare_models.difference(*losses)),
            "turns": [asdict(one) for one in compare_models.by_turn(self.rows, *losses)],
            "lengths": [asdict(one) for one in compare_models.by_length(self.rows, *losses)],
            "plain": plain and asdict(plain),
            "parts": [self._of_part(name, rows) for name, rows in self.parts.items()],
        }

    def _of_part(self, name: str, rows: np.ndarray) -> dict[str, Any]:
        """Return both models' scores on a part of the held-out set, and how they differ there."""
        from neoxkit.evaluation.scoring import Score

        losses = self.losses()
        assert losses  # `compare`
        base, tuned = ([of_model[row] for row in rows] for of_model in losses)
        return {
            "name": name,
            "base": Score.of(base).facts(),
            "tuned": Score.of(tuned).facts(),
            "difference": asdict(compare_models.difference(base, tuned)),
        }

    def losses_by_step(self) -> dict[int, float]:
        """Return the held-out loss at step 0 (the base), at every kept checkpoint and snapshot, and
        at the model's step; nothing if the held-out set is empty, or on the test side: who sees the
        loss of each checkpoint there may choose one."""
        base, tuned = (self.examined[which].score for which in MODELS)
        if not base or not tuned or self.settings.side == "test":
            return {}
        kept: dict[int, Path] = {}
        if self.settings.score_checkpoints:
            kept = {checkpoints.step_of(path): path for path in checkpoints.whole(self.folder)}
            kept |= snapshots.by_step(self.folder)
        last = exported_step(self.facts)
        between = {s: self._loss_of(path) for s, path in kept.items() if s not in (0, last)}
        return dict(sorted({0: base.loss, **between, last: tuned.loss}.items()))

    def _loss_of(self, checkpoint: Path) -> float:
        model = loading.for_inference(str(checkpoint), _dtype(self.facts))
        found = self._score(model, self.rows, f"{checkpoint.name} scores conversations")
        assert found  # the base has a score, so there are rows
        return found.loss

    def save(self) -> dict[str, Any]:
        """Write evaluation.json and replies.jsonl into the run's folder, and task_values.jsonl if
        there are tasks; return the first. Those of the test side have names of their own."""
        looks = self.looks  # counted before any figure is written or shown
        both = {which: self.examined[which] for which in MODELS}
        replies = [examined.replies for examined in both.values()]
        results = {
            "eval_loss": {name: e.score.facts() if e.score else None for name, e in both.items()},
            "plain_text": {name: e.plain.facts() if e.plain else None for name, e in both.items()},
            "depth": self.compare(),
            "losses_by_step": {f"{step}": loss for step, loss in self.losses_by_step().items()},
            "questions": self.source,
            "exact": exact.scoreboard(self.tokenizer, self.questions, *replies),
            "endings": {name: exact.endings(e.replies) for name, e in both.items()},
            "tasks": self._tasks(),
            "settings": self.settings.as_dict(),
            "training": early(self.facts),
            **({"looks": asdict(looks)} if looks else {}),
        }
        lines = [
            {**asdict(question), "base": self._said(question, one),
             "tuned": self._said(question, other)}
            for question, one, other in zip(self.questions, *replies, strict=True)
        ]  # fmt: skip
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files.write_text(self._path("replies.jsonl"), text)
        self._write_task_values()
        files.write_json(self._path(EVALUATION), results)
        return results

    def _path(self, name: str) -> Path:
        return self.folder / of_side(name, self.settings.side)

    def _tasks(self) -> dict[str, Any]:
        """Return both models' task results without their values by document, and how they differ,
        row by row."""
        sides = {which: self.examined[which].tasks for which in MODELS}
        left_out = ("values", "documents")
        short = {
            which: [{k: v for k, v in row.items() if k not in left_out} for row in rows]
            for which, rows in sides.items()
        }
        return {**short, "differences": tasks.compared(*sides.values())}

    def _write_task_values(self) -> None:
        """Write the values by document; remove those of an earlier evaluation if there are none."""
        path = self._path("task_values.jsonl")
        lines = tasks.by_document(*(self.examined[which].tasks for which in MODELS))
        if lines:
            files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        else:
            path.unlink(missing_ok=True)

    def _said(self, question: Question, reply: "Reply") -> dict[str, Any]:
        """Return a reply as it is written, with whether it is exact."""
        return {**asdict(reply), "exact": exact.is_exact(self.tokenizer, question, reply)}

    def ask(self, question: str) -> "Reply":
        """Let the tuned model answer one question that the user wrote."""
        asked = own_questions([question], self.names)
        return self._reply(self.tuned_model, asked, silent)[0]

    def _score(
        self, model: "PreTrainedModel", rows: "Dataset", label: str, size: int = 0
    ) -> "Score | None":
        """Score a model on rows; `size`: the bytes of their text, for the bits per byte."""
        from neoxkit.evaluation.scoring import score

        options = {"batch_size": self.settings.batch_size, "pad_id": loading.pad_id(self.tokenizer)}
        found = score(model, rows, **options, progress=self.show(label))
        return found and replace(
            found, bits_per_byte=compare_models.bits_per_byte(found.losses, size)
        )

    def _reply(
        self, model: "PreTrainedModel", questions: Sequence[Question], progress: Progress
    ) -> list["Reply"]:
        from neoxkit.models.generation import reply

        given = ("max_new_tokens", "do_sample", "temperature", "batch_size", "seed")
        options = {name: getattr(self.settings, name) for name in given}
        prompts = [question.prompt for question in questions]
        return reply(model, self.tokenizer, prompts, self.names, **options, progress=progress)


def prepare(
    settings: EvaluateSettings, show: Callable[[str], Progress] = lambda label: silent
) -> Evaluation:
    """Load what a finished run is evaluated on: its held-out set or test side, which must not have
    changed, the questions, and the tasks."""
    folder = paths.run(settings.run)
    facts = finished_facts(folder)
    data, side = tokenized.unchanged(facts), settings.side
    tokenized.check_side(side, tokenized.load_manifest(data)["sides"])
    dataset, manifest = tokenized.load(data, (side,))
    tokenizer = loading.load_tokenizer(str(folder / "model"))
    rows = tokenized.within(dataset[side], facts["block_size"])
    known, source = questions_for(manifest, rows, tokenizer, settings.questions_file, side)
    names = Names.of(manifest)
    own = own_questions(settings.my_questions, names)
    asked = known[: settings.num_questions] + own
    parts = held_out.rows_by_part(manifest, rows["line"][:]) if side == "eval" else {}
    _check_room(settings.max_new_tokens, _base(facts, folder), tokenizer, asked)
    return Evaluation(
        settings, folder, facts, tokenizer, names, rows, asked, len(known) + len(own), source,
        tasks.load_tasks(settings.tasks), show, parts,
    )  # fmt: skip


def _check_room(
    longest: int, base: str, tokenizer: "PreTrainedTokenizerBase", questions: Sequence[Question]
) -> None:
    """Refuse a longest reply with which no question would fit into the model's positions.

    Single questions that don't fit are not answered and counted (generation.reply).
    """
    positions = configs.positions_by_files(base) or configs.positions(configs.config_of(base))
    sizes = [len(tokenizer(q.prompt, add_special_tokens=False)["input_ids"]) for q in questions]
    shortest = min(sizes, default=1)
    if positions and shortest < positions < shortest + longest:
        what = f"{longest:,} leaves no room for a question in the model's {positions:,} positions"
        raise UserError("max_new_tokens", what, f"choose {positions - shortest:,} or fewer")
