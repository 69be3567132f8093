"""LoRA: only adapters are trained, kept and exported; merged they are the same model."""

import json
from pathlib import Path

import pytest
import torch
from conftest import BASE, losses
from safetensors.torch import load_file
from zygote import Sabotage, Zygote, job

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.evaluation import evaluate
from neoxkit.launch import command
from neoxkit.models import loading, lora, memory, shape, sharing
from neoxkit.runs.events import read_events
from neoxkit.runs.folder import LOG, finished_facts
from neoxkit.settings import TrainSettings
from neoxkit.training import arguments as train_arguments
from neoxkit.training import base_model

pytestmark = pytest.mark.process

LORA = BASE.replace(lora_rank=4, learning_rate=1e-2)


@pytest.fixture(scope="module", params=[(1, "zero2"), (2, "zero3")], ids=lambda p: p[1])
def adapted(request: pytest.FixtureRequest, session_home: Path, zygote: Zygote) -> Path:
    """Make a finished run on this many ranks under this ZeRO stage."""
    ranks, config = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        settings = LORA.replace(
            run=f"lora-{config}", num_ranks=ranks, ds_config=config,
            per_device_train_batch_size=8 // ranks,
        )  # fmt: skip
        codes = zygote.run(job(settings))
        folder = paths.run(settings.run)
        assert not any(codes), (folder / LOG).read_text()[-3000:]
    return folder


def test_the_adapters_alone_are_trained_and_exported(home: Path, adapted: Path) -> None:
    weights = load_file(adapted / "model" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    assert sum(w.numel() for w in weights.values()) == 4 * shape.look_up("tiny").lora_sizes
    assert not (adapted / "model" / "model.safetensors").exists()
    assert lora.base_of(adapted / "model") == "tiny"
    assert losses(adapted)[-1] < losses(adapted)[0] - 0.1
    assert {f.name for f in (adapted / "checkpoint-8").glob("*.safetensors")} == {
        "adapter_model.safetensors"
    }


def test_a_checkpoint_is_as_large_as_estimated(home: Path, adapted: Path) -> None:
    start = read_events(adapted)[0]
    job = memory.Job.of(
        shape.look_up("tiny"), 4, num_ranks=start["num_ranks"],
        zero={"stage": start["zero_stage"]}, half=False, on_gpu=False, checkpointing=False,
    )  # fmt: skip
    assert start["num_parameters"] == job.num_parameters + job.num_trained
    size = sum(f.stat().st_size for f in (adapted / "checkpoint-8").rglob("*.pt"))
    assert size < 2**30 * job.checkpoint_gib() + 1e6


def test_the_tuned_model_scores_as_in_training_and_so_does_the_merged_one(
    home: Path, adapted: Path
) -> None:
    from datasets import load_from_disk

    from neoxkit.evaluation import scoring

    facts = finished_facts(adapted)
    tuned = evaluate.load_side(facts, adapted, "tuned")
    rows = load_from_disk(home / facts["dataset"])["eval"]
    assert scoring.score(tuned, rows, batch_size=8, pad_id=1).loss == pytest.approx(
        facts["eval_loss"], rel=1e-4
    )
    merged = loading.load_model(str(sharing.merge(adapted.name))).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        one, other = tuned(ids).logits, merged(ids).logits
        base = loading.load_model("tiny").eval()(ids).logits
    assert (one - other).abs().max() < 1e-5 < (one - base).abs().max()
    config = json.loads((adapted / "merged" / "config.json").read_text())
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    assert not (adapted / "merged" / lora.CONFIG).exists()
    cards = [(adapted / name / "README.md").read_text() for name in ("model", "merged")]
    assert "library_name: peft" in cards[0] and "LoRA adapters of rank 4" in cards[0]
    assert "library_name: transformers" in cards[1]


def test_a_run_with_adapters_resumes_to_the_same_bytes(home: Path, zygote: Zygote) -> None:
    settings = LORA.replace(run="lora-broken")
    whole = LORA.replace(run="lora-whole")
    sabotage = Sabotage(where="/checkpoint-8/", at=0)
    assert zygote.run(job(settings, sabotage)) != [0]
    assert [zygote.run(job(s)) for s in (settings, whole)] == [[0], [0]]
    starts = [e for e in read_events(paths.run("lora-broken")) if e["event"] == "start"]
    assert [e["resumed_step"] for e in starts] == [0, 4]
    hashes = {finished_facts(paths.run(s.run))["model_sha256"]["adapter_model.safetensors"]
              for s in (settings, whole)}  # fmt: skip
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", ["gpt_neo", "gpt2"])
def test_each_family_gets_adapters_that_change_it(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "vocab_size": 50, "hidden_size": 16, "num_heads": 2, "num_layers": 2, "n_embd": 16,
        "n_layer": 2, "n_head": 2, "attention_types": [[["global", "local"], 1]],
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **small)
    model = AutoModelForCausalLM.from_config(config)
    expected = 2 * lora.sizes(model)
    adapted = lora.add(model, 2, "mine", checkpointing=False)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == expected > 0
    ids = torch.arange(8)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    grown = {n.split(".lora_")[0].rpartition(".")[2] for n, p in adapted.named_parameters()
             if p.grad is not None and p.grad.abs().max() > 0}  # fmt: skip
    assert grown == set(lora.layers(kind))


def test_a_model_that_can_not_be_adapted_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match="lora_rank: adapts pretrained weights"):
        TrainSettings(lora_rank=4, from_scratch=True)
    with pytest.raises(UserError, match="hub_model_id: is for whole models"):
        TrainSettings(lora_rank=4, hub_model_id="me/mine")
    with pytest.raises(UserError, match="lora_rank: llama is not one of gpt_neox, gpt_neo, gpt2"):
        lora.layers("llama")
    with pytest.raises(UserError, match="allow_change: lora_rank can't change within a run"):
        TrainSettings(allow_change=["lora_rank"])


def test_adapters_begin_with_the_same_weights_in_every_process(home: Path) -> None:
    """Whatever a process has drawn before, the run's seed decides."""
    arguments = command.trainer_arguments(LORA.replace(run="seeded")) | {"deepspeed": None}
    found = []
    for drawn in (1, 2):
        parsed = train_arguments.build(dict(arguments), [])
        parsed.kit.model_name_or_path = "tiny"
        torch.manual_seed(drawn)
        model = base_model.load(parsed, paths.run("seeded"), [29])
        found.append({n: p.clone() for n, p in model.named_parameters() if "lora_A" in n})
    assert found[0] and all(torch.equal(found[0][n], found[1][n]) for n in found[0])
