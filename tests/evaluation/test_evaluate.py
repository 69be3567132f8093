"""evaluate.py and scoring.py: scores, replies, and the comparison of two models."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import tokenize
from datasets import load_from_disk

from neoxkit import files, paths
from neoxkit.data import tokenized
from neoxkit.data.conversation import Names
from neoxkit.data.questions import Question, example, own_questions, questions_for, read_questions
from neoxkit.errors import UserError
from neoxkit.evaluation import evaluate, exact, scoring
from neoxkit.models import loading
from neoxkit.models.generation import Reply, reply
from neoxkit.parallel import silent
from neoxkit.runs.folder import FINISHED
from neoxkit.settings import EvaluateSettings


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return loading.load_model("tiny").eval()


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return loading.load_tokenizer("tiny")


def test_a_score_does_not_depend_on_the_batch_size(home: Path, model: object) -> None:
    rows = load_from_disk(paths.tokenized("small"))["eval"]
    scores = [scoring.score(model, rows, batch_size=size, pad_id=1) for size in (1, 7, 64)]
    assert len({s.trained_tokens for s in scores}) == 1
    assert scores[0].trained_tokens == sum(rows["trained"])
    assert [s.loss for s in scores] == pytest.approx([scores[0].loss] * 3, rel=1e-6)
    assert scoring.score(model, rows.select([]), batch_size=4, pad_id=1) is None


def test_no_questions_give_no_replies(home: Path, model: object, tokenizer: object) -> None:
    rows = load_from_disk(paths.tokenized("small"))["eval"].select([])
    one = evaluate.Evaluation(
        EvaluateSettings(), Path(), {}, tokenizer, Names(), rows, [], 0, "here"
    )  # fmt: skip
    one.tuned_model = model
    one.examine("tuned")
    assert one.examined == {"tuned": evaluate.Examination(None, [])}


class Parrot(torch.nn.Module):
    """A stand-in for a model: repeats given texts token by token, padded with the end mark."""

    def __init__(self, said: dict[str, str], tokenizer: object) -> None:
        super().__init__()
        self.said, self.tokenizer = said, tokenizer
        self.config = type("Config", (), {"max_position_embeddings": 100})()
        self.device = torch.device("cpu")
        self.calls: list[int] = []

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: object
    ) -> torch.Tensor:
        self.calls.append(len(input_ids))
        new = []
        for row, mask in zip(input_ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(row[mask.bool()])
            new.append(self.tokenizer(self.said[prompt])["input_ids"][: options["max_new_tokens"]])
        width = max(map(len, new))
        filled = torch.tensor([ids + [1] * (width - len(ids)) for ids in new])
        return torch.cat([input_ids, filled], dim=1)


def test_replies_end_in_three_ways_and_keep_their_order(tokenizer: object) -> None:
    said = {
        "User: a longer question of them\n\nAgent:": " One.<|endoftext|>",
        "User: b\n\nAgent:": " Two.\n\nUser:",
        "User: c\n\nAgent:": " three three three three three three three three",
    }
    parrot = Parrot(said, tokenizer)
    found = reply(parrot, tokenizer, list(said), Names(), max_new_tokens=8, batch_size=2)
    assert [(r.text, r.ended) for r in found[:2]] == [("One.", "end mark"), ("Two.", "next turn")]
    assert found[2].ended == "ran on" and found[2].text.startswith("three three")
    assert parrot.calls == [2, 1]
    assert exact.endings(found) == {
        "end mark": 1, "next turn": 1, "ran on": 1, "too long": 0,
    }  # fmt: skip


def test_a_prompt_too_long_for_the_model_is_left_out_and_counted(tokenizer: object) -> None:
    parrot = Parrot({"User: b\n\nAgent:": " Two.<|endoftext|>"}, tokenizer)
    prompts = ["User: a b c d e f g h i j k\n\nAgent:", "User: b\n\nAgent:"]
    found = reply(parrot, tokenizer, prompts, Names(), max_new_tokens=90)
    assert [(r.text, r.ended) for r in found] == [("", "too long"), ("Two.", "end mark")]


def test_batched_replies_equal_those_made_one_by_one(model: object, tokenizer: object) -> None:
    prompts = [q.prompt for q in own_questions(["Hi.", "What is 3 plus 4?", "Count!"], Names())]
    together = reply(model, tokenizer, prompts, Names(), max_new_tokens=12, batch_size=3)
    alone = [reply(model, tokenizer, [p], Names(), max_new_tokens=12)[0] for p in prompts]
    assert together == alone


def test_sampling_is_repeatable_and_leaves_the_generator_alone(
    model: object, tokenizer: object
) -> None:
    ask = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5}
    before = torch.random.get_rng_state()
    one, same, other = (
        reply(model, tokenizer, ["User: Hi\n\nAgent:"], Names(), seed=seed, **ask)
        for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.random.get_rng_state().equal(before)


def test_exact_replies_are_counted_by_set_and_kind(tokenizer: object) -> None:
    questions = [
        Question("a", "1", "sums", "held out"),
        Question("b", "2", "days", "held out"),
        Question("c", "3", "sums", "harder"),
        Question("d", None, "mine", "mine"),
        Question("e", "so " * 21, "sums", "too long for an exact match"),
    ]
    base = [Reply(t, "end mark", 1) for t in ("x", "x", "x", "x", "x")]
    base[:3] = [Reply(t, "end mark", 1) for t in ("1 ", "2", "3")]
    tuned = [Reply(t, "end mark", 1) for t in ("1", "2", "x", "x", "so " * 21)]
    rows = exact.scoreboard(tokenizer, questions, base, tuned)
    assert [(r["gained"], r["lost"]) for r in rows] == [(1, 0), (0, 0), (1, 0), (0, 1), (0, 1)]
    assert [(r["set"], r["kind"], r["base"], r["tuned"], r["questions"]) for r in rows] == [
        ("held out", "sums", 0, 1, 1),
        ("held out", "days", 1, 1, 1),
        ("held out", "total", 1, 2, 2),
        ("harder", "sums", 1, 0, 1),
        ("harder", "total", 1, 0, 1),
    ]


def test_replies_are_compared_as_the_tokenizer_normalises_them(tokenizer: object) -> None:
    """The built-in tokenizer composes accents, as GPT-NeoX's does; capitals stay different."""
    composed, apart = "Caf\u00e9", "Cafe\u0301"
    questions = [Question("a", text, "k", "s") for text in (apart, composed, apart)]
    replies = [Reply(text, "end mark", 1) for text in (composed, apart, "Cafe")]
    assert questions[0].reference != replies[0].text
    total = exact.scoreboard(tokenizer, questions, replies, replies)[-1]
    assert (total["base"], total["tuned"], total["questions"]) == (2, 2, 3)


def test_questions_come_from_a_file_its_neighbour_or_the_held_out_set(
    home: Path, tokenizer: object
) -> None:
    dataset, manifest = tokenized.load(paths.tokenized("small"))
    found, source = questions_for(manifest, dataset["eval"], tokenizer)
    assert source == "data/small_questions.jsonl" and len(found) == 20
    (home / "my.txt").write_text("User: q\n\nAgent: r\n\nUser: s\n\nAgent: t<|endoftext|>\n")
    found, source = questions_for(manifest, dataset["eval"], tokenizer, "my.txt")
    assert found == [Question("User: q\n\nAgent: r\n\nUser: s\n\nAgent:", "t", "all", "held out")]
    tokenize("small.txt", "lonely")
    (home / "data" / "lonely.txt").write_text((home / "data" / "small.txt").read_text())
    tokenize("lonely.txt", "lonely")
    dataset, manifest = tokenized.load(paths.tokenized("lonely"))
    found, source = questions_for(manifest, dataset["eval"], tokenizer)
    assert source == "the held-out set" and len(found) == len(dataset["eval"])
    text = (home / "data" / "lonely.txt").read_text()
    for question in found:
        end = {
            f"{question.prompt} {question.reference}{e}" in text for e in ("<|endoftext|>", "\n")
        }
        assert True in end


def test_the_example_is_what_the_user_says_last_in_the_first_question() -> None:
    joi = Names("Joi")
    first = Question(
        "Rules.\n\nUser: Hi\n\nJoi: Yes?\n\nUser: The User: part\n\nof it?\n\nJoi:", None
    )
    assert example([first, *own_questions(["No."], joi)], joi) == "The User: part\n\nof it?"
    assert example(own_questions(["Why?"], joi), joi) == "Why?"
    assert example([], joi) == "Hello."
    other = Question("Human: Hi\n\nJoi: User: ?\n\nHuman: How?\n\nJoi:", None)
    assert example([other], Names("Joi", "Human")) == "How?"


def test_a_question_file_without_a_question_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "assistant", "content": "Hi"}]}))
    with pytest.raises(UserError, match=r"q\.jsonl:1: has no question"):
        read_questions(file, Names())


def test_what_is_saved_is_what_was_measured(tmp_path: Path, tokenizer: object) -> None:
    questions = [Question("a", "1", "sums", "held out")]
    base = evaluate.Examination(None, [Reply("x", "ran on", 3)])
    tuned = evaluate.Examination(scoring.Score(0.5, 1.65, 10, 2), [Reply("1", "end mark", 1)])
    settings = EvaluateSettings()
    one = evaluate.Evaluation(settings, tmp_path, {}, tokenizer, Names(), [], questions, 1, "here")
    one.examined = {"base": base, "tuned": tuned}
    results = one.save()
    assert results == json.loads((tmp_path / "evaluation.json").read_text())
    assert results["eval_loss"]["base"] is None
    assert results["eval_loss"]["tuned"]["trained_tokens"] == 10
    assert (results["questions"], results["settings"]) == ("here", settings.as_dict())
    (line,) = (tmp_path / "replies.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert (said["tuned"]["text"], said["tuned"]["exact"], said["base"]["exact"]) == ("1", 1, 0)
    assert results["tasks"] == {"base": [], "tuned": [], "differences": []}
    assert {p.name for p in tmp_path.iterdir()} == {"evaluation.json", "replies.jsonl"}


def test_values_by_document_are_in_a_file_of_their_own(tmp_path: Path, tokenizer: object) -> None:
    """Written with tasks, gone with the next evaluation without any."""
    row = {"task": "t", "metric": "acc", "value": 0.5, "values": [1, 0], "documents": "d"}
    one = evaluate.Evaluation(EvaluateSettings(), tmp_path, {}, tokenizer, Names(), [], [], 0, "x")
    one.examined = dict.fromkeys(evaluate.MODELS, evaluate.Examination(None, [], None, [row]))
    results = one.save()
    assert results["tasks"]["base"] == [{"task": "t", "metric": "acc", "value": 0.5}]
    (found,) = results["tasks"]["differences"]
    assert (found["mean"], found["p"]) == (0, 1)
    line = json.loads((tmp_path / "task_values.jsonl").read_text())
    assert (line["documents"], line["base"], line["tuned"]) == ("d", [1, 0], [1, 0])
    one.examined = dict.fromkeys(evaluate.MODELS, evaluate.Examination(None, []))
    one.save()
    assert not (tmp_path / "task_values.jsonl").exists()


@pytest.fixture
def run(home: Path) -> Iterator[EvaluateSettings]:
    """Make a finished run whose tuned model is its base, the built-in model."""
    folder = home / "runs" / "untouched"
    shutil.copytree(home / "data" / "models" / "tiny", folder / "model")
    facts = {
        "base": "tiny",
        "base_commit": "",
        "from_scratch": False,
        "precision": "fp32",
        "step": 8,
        "planned_steps": 8,
        "stopped_early": 0,
        "model_step": 8,
    }
    facts |= {"dataset": "data/tokenized/small", "block_size": 60}
    sha256 = tokenized.sha256(paths.tokenized("small"))
    files.write_json(folder / FINISHED, facts | {"dataset_sha256": sha256})
    yield EvaluateSettings(
        run="untouched", num_questions=3, my_questions=["Why?"], max_new_tokens=4
    )
    shutil.rmtree(folder)


def test_an_evaluation_is_prepared_from_the_run_alone(
    run: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    pair = evaluate.prepare(run, lambda label: shown.append(label) or silent)
    dataset, _ = tokenized.load(paths.tokenized("small"))
    assert 0 < len(pair.rows) == len(tokenized.within(dataset["eval"], 60)) < len(dataset["eval"])
    assert (len(pair.questions), pair.num_known) == (4, 21)
    assert pair.source == "data/small_questions.jsonl"
    for which in evaluate.MODELS:
        pair.examine(which)
    assert shown == [
        "base is loaded", "base scores conversations", "base answers questions",
        "tuned is loaded", "tuned scores conversations", "tuned answers questions",
    ]  # fmt: skip
    results = pair.save()
    assert results["eval_loss"]["base"] == results["eval_loss"]["tuned"]
    assert results["depth"]["difference"]["mean"] == 0
    loss = results["eval_loss"]["base"]["loss"]
    assert results["losses_by_step"] == {"0": loss, "8": loss}
    asked = pair.ask("Why?")  # the last of the questions
    assert asked == pair.examined["tuned"].replies[-1] == pair.examined["base"].replies[-1]
    monkeypatch.setitem(pair.facts, "dataset_sha256", "another")
    files.write_json(pair.folder / FINISHED, pair.facts)
    with pytest.raises(UserError, match="dataset"):
        evaluate.prepare(run)


def test_a_longest_reply_without_room_is_refused_before_a_model_is_loaded(
    run: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follow the remedy: with the number that it names, the shortest question is answered."""
    loads = []
    monkeypatch.setattr(loading, "load_model", lambda *_: loads.append(1))
    said = "max_new_tokens: 2,048 leaves no room for a question in the model's 2,048 positions"
    with pytest.raises(UserError, match=f"^{said} -- choose 2,0.. or fewer$") as refused:
        evaluate.prepare(run.replace(max_new_tokens=2048))
    most = int(str(refused.value).split()[-3].replace(",", ""))
    with pytest.raises(UserError, match="leaves no room"):
        evaluate.prepare(run.replace(max_new_tokens=most + 1))
    pair = evaluate.prepare(run.replace(max_new_tokens=most))
    sizes = [len(pair.tokenizer(q.prompt)["input_ids"]) for q in pair.questions]
    assert min(sizes) + most == 2048 and loads == []


def test_the_base_is_freed_before_the_tuned_model_is_loaded_which_stays(
    run: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, weakref.ref] = {}

    def load(facts: object, folder: Path, which: str) -> torch.nn.Module:
        gc.collect()
        assert [name for name, one in loaded.items() if one()] == []
        model = loading.for_inference("tiny", "float32")
        loaded[which] = weakref.ref(model)
        return model

    monkeypatch.setattr(evaluate, "load_side", load)
    pair = evaluate.prepare(run)
    for which in evaluate.MODELS:
        pair.examine(which)
    pair.examine("tuned")
    pair.ask("Hi.")
    assert list(loaded) == ["base", "tuned"] and loaded["tuned"]() is pair.tuned_model
