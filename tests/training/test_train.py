"""Real DeepSpeed trainings on the CPU: a run's files, and results that must be equal."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import (
    BASE,
    PATIENCE_SECONDS,
    REPOSITORY,
    STEPS,
    command,
    losses,
    metrics,
    tokenize,
    train_to_the_end,
)
from datasets import load_from_disk
from safetensors.torch import load_file
from zygote import Zygote, job

from neoxkit import files, machine, paths
from neoxkit.cli import main as cli
from neoxkit.cli import notebooks, repeat
from neoxkit.data import manifests, tokenized
from neoxkit.errors import STOPPED, Stopped, UserError
from neoxkit.evaluation import evaluate, scoring
from neoxkit.launch import process
from neoxkit.launch.command import (
    as_started,
    environment,
    free_port,
    settings_if_any,
    settings_of,
    trainer_arguments,
)
from neoxkit.models import loading, memory, shape
from neoxkit.models.generation import ENDINGS
from neoxkit.runs import card as run_card
from neoxkit.runs import checkpoints, heartbeat, lock
from neoxkit.runs.events import EventReader, History, read_events
from neoxkit.runs.folder import ARGUMENTS, FINISHED, LOG, finished_facts, standing_of, state_of
from neoxkit.settings import TrainSettings

pytestmark = pytest.mark.process


def train(**changes: object) -> Path:
    return train_to_the_end(BASE.replace(**changes))


def forked(zygote: Zygote, **changes: object) -> Path:
    """Do the same with ranks that start faster, for tests without launcher and guard."""
    settings = BASE.replace(**changes)
    folder = paths.run(settings.run)
    codes = zygote.run(job(settings))
    assert not any(codes), (folder / LOG).read_text()[-2000:]
    assert state_of(folder) == "finished"
    return folder


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unbroken(session_home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        return train(run="unbroken")


def test_a_run_leaves_these_files(unbroken: Path) -> None:
    assert {p.name for p in unbroken.iterdir() if not p.name.startswith(".")} == {
        "arguments.json", "dataset.json", "metrics.jsonl", "steps", "train.log", "FINISHED.json",
        "run_card.json",
        "checkpoint-4", "checkpoint-8", "model",
    }  # fmt: skip
    assert {p.name for p in (unbroken / "model").iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not [*unbroken.glob(".model.*")]


def test_a_checkpoint_can_be_the_base_of_another_run(home: Path, unbroken: Path) -> None:
    """The README's way to another ZeRO stage; it needs the tokenizer, too."""
    checkpoint = paths.short(unbroken / "checkpoint-4")
    folder = train(run="onwards", model_name_or_path=checkpoint, ds_config="zero3", max_steps=2)
    assert finished_facts(folder)["base"] == checkpoint
    tokenizers = [loading.load_tokenizer(name) for name in ("tiny", checkpoint)]
    assert len({manifests.tokenizer_sha256(one) for one in tokenizers}) == 1


def test_metrics_hold_each_event_in_its_place(unbroken: Path) -> None:
    events = metrics(unbroken)
    assert [(e["event"], e.get("step")) for e in events] == [
        ("start", 0),
        ("replies", 0),
        ("eval", 0),
        ("train", 2),
        ("train", 4),
        ("replies", 4),
        ("eval", 4),
        ("checkpoint", 4),
        ("train", 6),
        ("train", 8),
        ("replies", 8),
        ("eval", 8),
        ("checkpoint", 8),
        ("done", 8),
    ]
    start = events[0]
    assert (start["planned_steps"], start["zero_stage"], start["layout"]) == (STEPS, 2, "packed")
    train = History(events).train
    assert all(e["tokens"] > e["trained_tokens"] > 0 for e in train)
    assert all(0 <= e["padding_share"] < 0.2 for e in train)


def test_the_evaluation_of_the_base_changes_no_byte(
    home: Path, zygote: Zygote, unbroken: Path
) -> None:
    """It takes nothing of the chance that the training uses; the first one is the base's own."""
    without = forked(zygote, run="no-first", training_arguments={"eval_on_start": False})
    assert weights_sha256(without) == weights_sha256(unbroken)
    assert losses(without, "eval") == losses(unbroken, "eval")[1:]
    assert losses(without) == losses(unbroken)


def test_the_same_questions_are_answered_at_every_evaluation(unbroken: Path) -> None:
    told = [e["replies"] for e in History(metrics(unbroken)).of("replies")]
    assert len(told) == 3 and len(told[0]) == BASE.num_replies == 3
    asked = [[r["asked"] for r in replies] for replies in told]
    assert asked[0] == asked[1] == asked[2]
    assert all(r["ended"] in ENDINGS for replies in told for r in replies)
    asked = (unbroken.parents[1] / "data" / "small_questions.jsonl").read_text()
    assert all(json.dumps(r["asked"]) in asked for r in told[0])


def test_the_planned_steps_are_what_the_slider_shows(home: Path, unbroken: Path) -> None:
    start = metrics(unbroken)[0]
    plain = BASE.replace(max_steps=-1, num_train_epochs=1.5)
    expected = math.ceil(1.5 * math.ceil(start["conversations"] / 8))
    assert machine.num_steps(plain, start["conversations"], 1) == expected


def test_finished_json_agrees_with_the_metrics(unbroken: Path) -> None:
    facts = json.loads((unbroken / "FINISHED.json").read_text())
    train = History(metrics(unbroken)).train
    assert facts["step"] == facts["planned_steps"] == STEPS
    assert facts["trained_tokens"] == sum(e["trained_tokens"] for e in train)
    assert facts["eval_loss"] == losses(unbroken, "eval")[-1]


def test_eval_loss_is_the_mean_over_trained_tokens(home: Path, unbroken: Path) -> None:
    """Compare with the plainest computation: one conversation at a time, all logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(unbroken / "model").eval()
    dataset, manifest = tokenized.load(paths.tokenized("small"))
    total, count = 0.0, 0
    for row in dataset["eval"]:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum").item()
        count += (labels != -100).sum().item()
    assert count == manifest["sides"]["eval"]["trained_tokens"]
    assert losses(unbroken, "eval")[-1] == pytest.approx(total / count, rel=1e-5)


def test_a_checkpoint_is_as_large_as_estimated(unbroken: Path) -> None:
    job = memory.Job.of(
        shape.look_up("tiny"), 0, num_ranks=1, zero={"stage": 2}, half=False,
        on_gpu=False, checkpointing=False,
    )  # fmt: skip
    assert metrics(unbroken)[0]["num_parameters"] == job.num_parameters
    size = sum(f.stat().st_size for f in (unbroken / "checkpoint-8").rglob("*") if f.is_file())
    assert size / machine.GIB == pytest.approx(job.checkpoint_gib(), rel=0.02)


def test_the_model_opens_with_plain_transformers(home: Path, unbroken: Path) -> None:
    """Use a separate process without the kit: pipeline, chat template, safe weights."""
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{"role": "user", "content": "Hi"}]
print(repr(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)))
whole = [*chat, {"role": "assistant", "content": "Hello."}]
print(repr(tokenizer.apply_chat_template(whole, tokenize=False)))
model = AutoModelForCausalLM.from_pretrained(folder)
assert model.config.use_cache
said = pipeline("text-generation", model=model, tokenizer=tokenizer)(chat, max_new_tokens=4)
assert said[0]["generated_text"][-1]["role"] == "assistant"
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(unbroken / "model")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        repr("User: Hi\n\nAgent:"),
        repr("User: Hi\n\nAgent: Hello.<|endoftext|>"),
    ]
    card = (unbroken / "model" / "README.md").read_text()
    assert (
        "# tiny, fine-tuned on small.txt" in card
        and "| learning_rate | 0.002 |" in card
        and "per trained token" in card
    )
    (program,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    program = program.replace("PLACE", str(unbroken / "model"))
    command = [sys.executable, "-I", "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() and "\n\nUser:" not in said


def test_padded_rows_train_to_the_same_losses(home: Path, zygote: Zygote, unbroken: Path) -> None:
    padded = forked(zygote, run="padded", layout="padded")
    assert metrics(padded)[0]["layout"] == "padded"
    assert losses(padded) == pytest.approx(losses(unbroken), rel=1e-4)
    assert losses(padded, "eval") == pytest.approx(losses(unbroken, "eval"), rel=1e-4)


@pytest.mark.parametrize(
    "more", [{}, {"ds_config": "zero3", "gradient_checkpointing": True}], ids=["zero2", "zero3"]
)
def test_attention_by_conversation_trains_to_the_same_losses(
    home: Path, zygote: Zygote, unbroken: Path, more: dict
) -> None:
    name = more.get("ds_config", "zero2")
    folder = forked(zygote, run=f"varlen-{name}", attn_implementation="varlen", **more)
    start = metrics(folder)[0]
    assert (start["attention"], start["layout"], start["row_tokens"]) == ("varlen", "packed", 0)
    assert {e["padding_share"] for e in History(metrics(folder)).train} == {0}
    assert losses(folder) == pytest.approx(losses(unbroken), rel=1e-4)
    assert losses(folder, "eval") == pytest.approx(losses(unbroken, "eval"), rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_train_to_the_same_losses(
    home: Path, zygote: Zygote, unbroken: Path, stage: int
) -> None:
    """Half the conversations per rank, twice the ranks, at each ZeRO stage: the same steps."""
    config = json.loads((home / "ds_configs" / f"zero{max(stage, 2)}.json").read_text("utf-8"))
    config["zero_optimization"]["stage"] = stage
    path = home / f"stage{stage}.json"
    path.write_text(json.dumps(config), "utf-8")
    half = {"num_ranks": 2, "per_device_train_batch_size": 4}
    two = forked(zygote, run=f"two{stage}", ds_config=str(path), **half)
    start = metrics(two)[0]
    assert (start["num_ranks"], start["zero_stage"]) == (2, stage)
    assert start["num_parameters"] == metrics(unbroken)[0]["num_parameters"]
    assert losses(two) == pytest.approx(losses(unbroken), rel=1e-4)
    assert losses(two, "eval") == pytest.approx(losses(unbroken, "eval"), rel=1e-4)
    seen = [[e.get("detectable") for e in History(metrics(f)).evals] for f in (two, unbroken)]
    assert seen[0][0] is None and len(seen[0]) == 3
    assert seen[0][1:] == pytest.approx(seen[1][1:], rel=1e-3) and min(seen[0][1:]) > 0
    work = [[e["tflop"] for e in History(metrics(f)).train] for f in (two, unbroken)]
    assert work[0] == work[1] and all(work[0])  # sharded weights are counted whole


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_losses(home: Path, unbroken: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch_compile needs a C++ compiler (g++)")
    compiled = train(run="compiled", torch_compile=True)
    assert metrics(compiled)[0]["torch_compile"]
    assert losses(compiled) == pytest.approx(losses(unbroken), rel=1e-5)


def test_accumulation_with_checkpointing_trains_to_the_same_losses(
    home: Path, zygote: Zygote, unbroken: Path
) -> None:
    four = forked(
        zygote,
        run="accumulated",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )
    assert losses(four) == pytest.approx(losses(unbroken), rel=1e-4)


@pytest.mark.parametrize(
    "more", [{}, {"precision": "bf16"}, {"attn_implementation": "varlen"}], ids=str
)
def test_a_killed_run_resumes_to_the_same_bytes(
    home: Path, zygote: Zygote, unbroken: Path, more: dict
) -> None:
    name = "-".join(["killed", *more.values()])
    whole = forked(zygote, run=f"{name}-not", **more) if more else unbroken
    training = process.start(BASE.replace(run=name, **more))
    reader = EventReader(training.folder)
    while not any(e["event"] == "checkpoint" for e in reader.poll()):
        assert training.poll() is None
        time.sleep(0.02)
    training.stop()
    with pytest.raises(Stopped, match=f"{name}: stopped, step 4 is saved"):
        training.check()
    assert not (training.folder / "FINISHED.json").exists()
    damaged = training.folder / "checkpoint-6"  # a newer one without a manifest is not used
    shutil.copytree(training.folder / "checkpoint-4", damaged)
    (damaged / files.MANIFEST).unlink()
    folder = forked(zygote, run=name, **more)
    assert metrics(folder)[-1]["event"] == "done"
    assert [e["resumed_step"] for e in metrics(folder) if e["event"] == "start"] == [0, 4]
    assert len(run_card.read(folder)["starts"]) == 2
    assert weights_sha256(folder) == weights_sha256(whole)
    counted = [finished_facts(f)["trained_tokens"] for f in (folder, whole)]
    assert counted[0] == counted[1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_asked_to_stop_saves_and_resumes_to_the_same_bytes(
    home: Path, zygote: Zygote, unbroken: Path, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = BASE.replace(run=f"asked-{ranks}", num_ranks=ranks)
    training = process.start(settings)
    assert process.start(settings) is training is process.attach(settings.run)
    while not read_events(training.folder):
        assert training.poll() is None
        time.sleep(0.02)
    if ranks == 1:
        training.interrupt()
    else:
        assert cli.main(["stop", settings.run]) == 0
        assert "stopped at step" in capsys.readouterr().out
    assert training.process.wait(timeout=PATIENCE_SECONDS) == STOPPED
    step = metrics(training.folder)[-1]["step"]
    assert metrics(training.folder)[-1]["event"] == "stop" and 0 < step < STEPS
    with pytest.raises(Stopped, match=rf"stopped, step {step} is saved -- run it again to resume"):
        training.check()
    assert standing_of(training.folder).state == "stopped"
    assert not lock.asked_to_stop(training.folder)
    if ranks == 1:
        assert weights_sha256(forked(zygote, run=settings.run)) == weights_sha256(unbroken)
        starts = [e["resumed_step"] for e in metrics(training.folder) if e["event"] == "start"]
        assert starts == [0, step]


def test_a_finished_run_is_not_trained_again_and_restart_keeps_it(
    home: Path, unbroken: Path
) -> None:
    before = weights_sha256(unbroken)
    assert process.start(BASE.replace(run="unbroken")).process is None
    with pytest.raises(UserError, match=r"learning_rate 0.002 -> 0.001"):
        process.start(BASE.replace(run="unbroken", learning_rate=1e-3))
    shutil.copytree(unbroken, unbroken.with_name("again"))
    process.start(BASE.replace(run="again", learning_rate=1e-3, restart=True)).stop()
    assert weights_sha256(unbroken.with_name("again.old-1")) == before
    assert state_of(unbroken.with_name("again")) == "new"


def test_a_finished_run_that_is_started_at_a_shell_is_unchanged(
    home: Path, zygote: Zygote, unbroken: Path
) -> None:
    folder = unbroken.with_name("by-hand")
    shutil.copytree(unbroken, folder)
    before = metrics(folder)
    assert zygote.run(job(BASE.replace(run="by-hand"))) == [2]
    assert "by-hand is finished -- choose another folder" in (folder / LOG).read_text()
    assert metrics(folder) == before and before[-1]["event"] == "done"
    assert (standing_of(folder).state, standing_of(folder).says) == ("finished", "")


def test_the_run_card_describes_the_run_exactly(home: Path, unbroken: Path) -> None:
    card = run_card.read(unbroken)
    weights = {"model.safetensors": weights_sha256(unbroken)}
    assert card["results"]["model_sha256"] == weights == finished_facts(unbroken)["model_sha256"]
    tiny = files.sha256(home / "data" / "models" / "tiny" / "model.safetensors")
    assert card["base_sha256"]["model.safetensors"] == tiny
    assert card["source"]["sha256"] == files.sha256(home / "data" / "small.txt")
    assert card["dataset_sha256"] == tokenized.sha256(paths.tokenized("small"))
    as_trained = BASE.replace(run="unbroken", num_ranks=1, learning_rate=2e-3)
    assert card["settings"] == as_trained.changed()
    assert card["starts"][0]["versions"]["torch"] == torch.__version__
    said = dict(run_card.rows(unbroken))
    assert said["to run it again"] == "neoxkit repeat unbroken"
    assert weights["model.safetensors"][:12] in said["weights"]


def test_a_repeated_run_gives_the_same_bytes_or_says_that_it_does_not(
    home: Path, zygote: Zygote, unbroken: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def execute(parameters: dict, only: list[str]) -> int:
        assert only == ["02_train"]
        assert TrainSettings(**parameters).as_dict() == parameters  # each is given by the run
        assert zygote.run(job(TrainSettings(**parameters))) == [0]
        return 0

    monkeypatch.setattr(notebooks, "execute", execute)
    assert repeat.repeat("unbroken") == 0
    said = capsys.readouterr().out
    assert f"of unbroken and unbroken.repeat-1 is {weights_sha256(unbroken)}" in said
    (unbroken.parent / "unbroken.repeat-2").mkdir()  # one that was stopped
    assert repeat._settings(unbroken).run == "unbroken.repeat-2"
    other = unbroken.with_name("other")
    shutil.copytree(unbroken, other)
    for name in (FINISHED, run_card.CARD):
        text = (other / name).read_text()
        (other / name).write_text(text.replace(weights_sha256(unbroken), "0" * 64))
    assert repeat.repeat("other") == 1
    assert "different bytes: eval loss" in capsys.readouterr().out


def test_a_run_that_can_not_be_repeated_is_refused(home: Path, unbroken: Path) -> None:
    shell = unbroken.with_name("shell")
    shutil.copytree(unbroken, shell)
    files.write_json(shell / run_card.CARD, run_card.read(shell) | {"commands": {}})
    with pytest.raises(UserError, match="RUN: shell was started in a shell -- give its command"):
        repeat.repeat("shell")


def test_settings_are_read_back_from_the_trainers_arguments(home: Path, unbroken: Path) -> None:
    settings = BASE.replace(
        run="unbroken", num_ranks=2, ds_config="zero3", model_name_or_path="tiny",
        training_arguments={"adam_beta1": 0.8}, allow_change=["learning_rate"], learning_rate=1e-3,
    )  # fmt: skip
    assert settings_of(trainer_arguments(settings), 2) == settings
    arguments = trainer_arguments(settings)
    for changed in ({"lr_scheduler_type": "polynomial"}, {"report_to": "none"}):
        assert settings_if_any(arguments | changed, 2) is None
    began = as_started(arguments, 2)
    assert began["settings"] == settings.changed()
    assert began["commands"]["run"] == settings.run_command()
    own = BASE.replace(ds_config="ds_configs/zero2.json", learning_rate=1e-3)
    assert settings_of(trainer_arguments(own)) == own


def test_a_retokenized_dataset_is_refused_for_runs_trained_on_the_old_one(
    home: Path, unbroken: Path
) -> None:
    facts = finished_facts(unbroken)
    data = paths.find("dataset", facts["dataset"], file=False)
    tokenized.check_sha256(data, facts["dataset_sha256"])
    manifest = (data / "manifest.json").read_text()
    try:
        (data / "manifest.json").write_text(manifest.replace('"split_seed": 0', '"split_seed": 7'))
        with pytest.raises(UserError, match="was tokenized again after the run started"):
            tokenized.check_sha256(data, facts["dataset_sha256"])
        with pytest.raises(UserError, match=r"trained on other data \(retokenized since\)"):
            process.start(BASE.replace(run="unbroken"))
    finally:
        (data / "manifest.json").write_text(manifest)


def test_a_checkout_can_be_moved(
    home: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of a run names the checkout's folder."""
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    monkeypatch.setenv("NEOXKIT_HOME", str(moved))
    assert process.start(BASE.replace(run="unbroken")).process is None
    for name in ("arguments.json", "FINISHED.json", "metrics.jsonl"):
        assert str(home) not in (moved / "runs" / "unbroken" / name).read_text()


def test_another_number_of_ranks_can_not_resume_from_a_checkpoint(
    home: Path, unbroken: Path
) -> None:
    shutil.copytree(unbroken, unbroken.with_name("ranks"))
    arguments = unbroken.with_name("ranks") / "arguments.json"
    arguments.write_text(arguments.read_text().replace("runs/unbroken", "runs/ranks"))
    with pytest.raises(UserError) as refused:
        process.start(BASE.replace(run="ranks", num_ranks=2))
    assert str(refused.value) == (
        "num_ranks: checkpoint-8 is from 1 rank under ZeRO 2, this start has 2 ranks under ZeRO 2 "
        "-- add num_ranks to allow_change, or begin a new run with model_name_or_path "
        "runs/ranks/checkpoint-8"
    )
    with pytest.raises(UserError) as refused:
        process.start(BASE.replace(run="ranks", ds_config="zero3", allow_change=["ds_config"]))
    assert str(refused.value) == (
        "ds_config: checkpoint-8 is from 1 rank under ZeRO 2, this start has 1 rank under ZeRO 3 "
        "-- go back, or begin a new run with model_name_or_path runs/ranks/checkpoint-8"
    )


def stopped(zygote: Zygote, settings: TrainSettings) -> Path:
    """Return a run that was asked to stop beforehand, and stopped after its first step."""
    folder = paths.run(settings.run)
    pids = zygote.begin(job(settings))
    while not read_events(folder):
        assert all(psutil.pid_exists(pid) for pid in pids)
        time.sleep(0.02)
    lock.ask_to_stop(folder)
    assert zygote.end() == [STOPPED] * len(pids)
    lock.answer_stop(folder)
    return folder


def test_another_number_of_ranks_resumes_from_a_universal_checkpoint(
    home: Path, zygote: Zygote, unbroken: Path
) -> None:
    half = {"num_ranks": 2, "per_device_train_batch_size": 4}
    stopped(zygote, BASE.replace(run="halves", **half))
    other = ["num_ranks", "per_device_train_batch_size"]
    folder = forked(zygote, run="halves", allow_change=other)
    starts = [(e["num_ranks"], e["resumed_step"] > 0) for e in metrics(folder)
              if e["event"] == "start"]  # fmt: skip
    assert starts == [(2, False), (1, True)]
    assert losses(folder)[-1] == pytest.approx(losses(unbroken)[-1], rel=1e-4)
    assert losses(folder, "eval")[-1] == pytest.approx(losses(unbroken, "eval")[-1], rel=1e-4)
    assert not (folder / ".universal").exists()


def test_an_allowed_change_takes_effect(home: Path, zygote: Zygote) -> None:
    settings = BASE.replace(run="allowed", lr_scheduler_type="constant", warmup_steps=0)
    folder = stopped(zygote, settings)
    saved = load_file(checkpoints.whole(folder)[-1] / "model.safetensors")
    changed = settings.replace(learning_rate=1e-12, max_steps=STEPS + 2)
    with pytest.raises(UserError, match=r"learning_rate 0.002 -> 1e-12; max_steps 8 -> 10\)"):
        process.start(changed)
    allowed = changed.replace(allow_change=["learning_rate", "max_steps"])
    assert zygote.run(job(allowed)) == [0]
    events = metrics(folder)
    (step,) = [e["step"] for e in events if e["event"] == "stop"]
    rates = [e["learning_rate"] for e in events if e["event"] == "train" and e["step"] > step]
    assert rates and rates == [1e-12] * len(rates)
    tuned = load_file(folder / "model" / "model.safetensors")
    assert all((tuned[name] - saved[name]).abs().max() < 1e-9 for name in saved)
    assert finished_facts(folder)["step"] == STEPS + 2


def test_every_stage_before_the_first_step_is_named_in_its_order(home: Path) -> None:
    training = process.start(BASE.replace(run="stages", max_steps=2, save_steps=2))
    seen = [""]
    while training.poll() is None:
        if (stage := heartbeat.stage(training.folder)[0]) != seen[-1]:
            seen.append(stage)
        time.sleep(0.002)
    assert training.check()["step"] == 2
    order = [*heartbeat.STAGES, heartbeat.EVALUATING, heartbeat.FIRST_STEP]
    named = [stage.split(" (")[0] for stage in seen if stage]
    named = [stage for i, stage in enumerate(named) if stage not in named[i - 1 : i]]
    assert named == sorted({*named}, key=order.index)
    long = {heartbeat.READING, heartbeat.LOADING, heartbeat.PREPARING, heartbeat.FIRST_STEP}
    assert long <= {*named}


@pytest.mark.parametrize("ranks", [1, 2])
def test_term_saves_and_stops(home: Path, ranks: int) -> None:
    """Send TERM to the guard, as a scheduler does, and to a rank, as a launcher does."""
    settings = BASE.replace(run=f"term-{ranks}", num_ranks=ranks, max_steps=400)
    training = process.start(settings)
    while len(pids := heartbeat.Watch(training.folder).ranks()) < ranks:
        assert training.poll() is None
        time.sleep(0.02)
    target = training.process.pid if ranks == 1 else pids[-1]
    os.kill(target, signal.SIGTERM)
    assert training.process.wait(timeout=PATIENCE_SECONDS) == STOPPED
    with pytest.raises(Stopped, match=r"stopped, step \d+ is saved -- run it again to resume"):
        training.check()
    assert standing_of(training.folder).state == "stopped"


def test_the_documented_command_works_with_its_old_flags(home: Path) -> None:
    """Run the README's command, with the built-in model and without fp16 (there is no GPU)."""
    line = f"""deepspeed.launcher.runner --master_port={free_port()} --num_gpus=1
        --module neoxkit.train --dataset data/tokenized/small --deepspeed ds_configs/zero2.json
        --model_name_or_path tiny --do_train --do_eval --block_size 280 --overwrite_cache
        --evaluation_strategy=steps --output_dir custom --num_train_epochs 1 --eval_steps 200
        --gradient_accumulation_steps 1 --per_device_train_batch_size 64
        --use_fast_tokenizer True --learning_rate 5e-06 --warmup_steps 5""".split()
    done = command(*line, cwd=home, env=environment(1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "notice: --evaluation_strategy is --eval_strategy in transformers 5" in done.stdout
    assert finished_facts(home / "custom")["step"] == 6  # neither a trial nor anything else
    assert files.read_json(home / "custom" / ARGUMENTS)["learning_rate"] == 5e-6
    alone = command(*line[4:], cwd=home, env=environment(1))  # python -m, without the launcher
    assert alone.returncode == 2 and alone.stderr.endswith(
        "error: deepspeed: was asked for without its launcher -- "
        "start this with deepspeed --module neoxkit.train, or leave --deepspeed out\n"
    )
    again = command(*line, "--fp16", cwd=home, env=environment(1))
    assert again.returncode == 2
    assert "error: fp16: needs a GPU and there is none" in again.stderr


def test_a_rank_alone_trains_the_same_bytes_as_under_deepspeeds_launcher(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train_to_the_end(BASE.replace(run="rank-alone"))
    started = process.command
    monkeypatch.setattr(started, "start_command", lambda ranks: (started.runner_command(ranks), {}))
    under = train_to_the_end(BASE.replace(run="under-launcher"))
    logs = [(folder / LOG).read_text() for folder in (alone, under)]
    assert ["[launch.py:" in log for log in logs] == [False, True]
    weights = [(folder / "model" / "model.safetensors") for folder in (alone, under)]
    assert files.sha256(weights[0]) == files.sha256(weights[1])


def test_without_deepspeed_one_process_trains(home: Path) -> None:
    flags = ["--dataset", "data/tokenized/small", "--output_dir", "plain", "--max_steps", "2"]
    done = command("neoxkit.train", *flags, "--do_train", cwd=home, env=environment(1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert finished_facts(home / "plain")["step"] == 2


def test_from_scratch_under_zero3_keeps_its_base_and_trains_the_real_shape(home: Path) -> None:
    """Train Pythia-14m's true shape with its tokenizer on real dialogues, two ranks, end to end."""
    shared = REPOSITORY.parent / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("the real tokenizer and texts (shared/data) are not on this machine")
    model = home / "pythia-14m-shape"
    shutil.copytree(shared / "gpt-neox-tokenizer", model)
    shutil.copy(shared / "pythia-configs" / "pythia-14m" / "config.json", model)
    shutil.copy(shared / "taskmaster4_small.txt", home / "data" / "dialogues.txt")
    tokenize("dialogues.txt", "dialogues", str(model))
    with pytest.raises(UserError, match=r"has no model\.safetensors -- set from_scratch"):
        process.start(BASE.replace(run="shape", dataset="dialogues"))
    folder = train(
        run="shape", dataset="dialogues", from_scratch=True, num_ranks=2, ds_config="zero3",
        per_device_train_batch_size=4, learning_rate=1e-3,
    )  # fmt: skip
    facts = finished_facts(folder)
    base, tuned = (evaluate.load_side(facts, folder, which) for which in ("base", "tuned"))
    assert base.config.vocab_size == tuned.config.vocab_size == 50304
    rows = load_from_disk(home / facts["dataset"])["eval"]
    scores = [scoring.score(m, rows, batch_size=8, pad_id=1).loss for m in (base, tuned)]
    assert scores[0] == pytest.approx(math.log(50304), rel=0.05)
    assert scores[1] == pytest.approx(facts["eval_loss"], rel=1e-5)
    assert scores[1] < scores[0] - 0.5


def test_a_failed_run_never_looks_like_success(home: Path) -> None:
    """A loss that is not finite stops the run there, and nothing is exported."""
    zero_by_zero = {"adam_epsilon": 0.0}  # the step of an embedding row that no token used
    with pytest.raises(UserError, match="the loss is not finite at step 2; nothing was saved"):
        train(run="nan", logging_steps=1, training_arguments=zero_by_zero)
    folder = paths.run("nan")
    assert not (folder / "FINISHED.json").exists() and not (folder / "model").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "nowhere"}, "dataset: data/tokenized/nowhere is not a tokenized dataset"),
        ({"block_size": 281}, "block_size: 281 is above the dataset's 280"),
        ({"ds_config": "zero4"}, "ds_config: 'zero4' is not in ds_configs/"),
        ({"model_name_or_path": "no-such"}, "model_name_or_path: 'no-such' is not a folder here"),
        ({"training_arguments": {"lerning": 1}}, "training_arguments: lerning is not one of them"),
        ({"report_to": "none, tensorbord"}, "report_to: 'tensorbord' is not installed"),
        ({"num_ranks": 10_000}, "num_ranks: got 10000"),
        ({"precision": "fp16"}, "precision: fp16 needs a GPU and there is none"),
        ({"ds_config": "no/such.json"}, "ds_config: 'no/such.json' does not exist in"),
        ({"training_arguments": {"seed": 1}}, "training_arguments: seed is a setting of its own"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    home: Path, changes: dict, sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        process.start(BASE.replace(run="refused", **changes))
    assert str(refused.value).startswith(sentence)
    assert not paths.run("refused").exists()


def test_a_changed_text_is_refused(home: Path) -> None:
    shutil.copy(home / "data" / "small.txt", home / "data" / "other.txt")
    tokenize("other.txt", "other")
    (home / "data" / "other.txt").write_text("User: a\n\nAgent: b<|endoftext|>\n")
    with pytest.raises(UserError, match=r"data/other\.txt has changed since it was tokenized"):
        process.start(BASE.replace(run="changed", dataset="other"))


ENDS = """
import atexit, os, sys
class Tail:
    def __del__(self, write=os.write):
        write(1, b"torn down")
tail = Tail()
atexit.register(print, "registered")
from neoxkit import train
print("unflushed", end=" ")
train.leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("code", "said"), [(0, "unflushed registered"), (3, "unflushed ")])
def test_a_rank_leaves_before_the_interpreter_is_torn_down(code: int, said: str) -> None:
    """During teardown gloo's threads aborted ranks that had finished."""
    line, env = [sys.executable, "-c", ENDS, str(code)], environment(1)
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, said)
