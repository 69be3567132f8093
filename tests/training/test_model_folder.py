"""What a training leaves in model/ is made, not inherited from the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import BASE, metrics
from safetensors import safe_open
from transformers import BloomConfig, BloomForCausalLM
from zygote import Zygote, job

from neoxkit import paths
from neoxkit.models import generation, loading, sharing
from neoxkit.models.tiny import tiny_folder
from neoxkit.runs.folder import LOG, finished_facts

SHORT = BASE.replace(max_steps=2, eval_steps=1, save_steps=1000, learning_rate=1e-3)


def bring(home: Path, name: str) -> Path:
    folder = home / "data" / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(tiny_folder(), folder))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def trained(zygote: Zygote, run: str, **settings: Any) -> Path:
    folder = paths.run(run)
    codes = zygote.run(job(SHORT.replace(run=run, **settings)))
    assert not any(codes), (folder / LOG).read_text()[-3000:]
    return folder


def test_a_base_that_asks_for_other_replies_gives_the_same_ones(home: Path, zygote: Zygote) -> None:
    """What is saved says nothing of it."""
    odd = bring(home, "odd")
    ids = [*range(2, 1000)]
    asks = {"do_sample": True, "temperature": 1.9, "suppress_tokens": ids, "eos_token_id": ids}
    (odd / "generation_config.json").write_text(json.dumps(asks))
    change(odd / "config.json", bos_token_id=8, eos_token_id=7, pad_token_id=None)
    one = trained(zygote, "of-tiny", model_name_or_path="tiny")
    other = trained(zygote, "of-odd", model_name_or_path=str(odd))
    told = [[e["replies"] for e in metrics(f) if e["event"] == "replies"] for f in (one, other)]
    assert told[0] == told[1] and len(told[0]) == 3  # with the base's
    facts = [finished_facts(folder) for folder in (one, other)]
    assert facts[0]["model_sha256"] == facts[1]["model_sha256"]
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()
    said = json.loads((other / "model" / "generation_config.json").read_text())
    del said["transformers_version"]
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    assert said == {"do_sample": False, **ids}
    config = json.loads((other / "model" / "config.json").read_text())
    assert {name: config[name] for name in ids} == ids and config["use_cache"]


def test_the_cards_program_says_what_the_kit_says(home: Path, zygote: Zygote) -> None:
    model = trained(zygote, "of-card", model_name_or_path="tiny") / "model"
    change(model / "generation_config.json", do_sample=True, temperature=1.9)  # or an old pipeline
    prompt = f"User: {sharing.QUESTION}\n\nAgent:"
    tokenizer, names = loading.load_tokenizer(str(model)), sharing.Names()
    (said,) = generation.reply(loading.load_model(str(model)), tokenizer, [prompt], names)
    assert sharing.answer(model, names) == said.text != ""


@pytest.mark.parametrize(
    ("stage", "lora_rank", "precision"),
    [
        (0, 0, "bf16"), (1, 0, "bf16"), (2, 0, "bf16"), (3, 0, "bf16"),
        (2, 4, "bf16"), (2, 4, "fp32"),
    ],
)  # fmt: skip
def test_the_model_is_saved_in_the_runs_precision_and_says_so(
    home: Path, zygote: Zygote, stage: int, lora_rank: int, precision: str
) -> None:
    """It is the same under each ZeRO stage, and after LoRA once it is merged."""
    config = json.loads((home / "ds_configs" / f"zero{max(stage, 2)}.json").read_text("utf-8"))
    config["zero_optimization"]["stage"] = stage
    file = home / f"dtype{stage}.json"
    file.write_text(json.dumps(config), "utf-8")
    folder = trained(
        zygote, f"dtype-{stage}-{lora_rank}-{precision}", model_name_or_path="tiny",
        ds_config=str(file), lora_rank=lora_rank, precision=precision, num_replies=0,
        per_device_train_batch_size=1, eval_steps=1000,  # bf16 is slow on a CPU without AMX
    )  # fmt: skip
    model = sharing.merge(folder.name) if lora_rank else folder / "model"
    with safe_open(model / "model.safetensors", "pt") as weights:
        kinds = {str(weights.get_tensor(name).dtype) for name in weights.keys()}  # noqa: SIM118
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    assert kinds == {f"torch.{dtype}"}
    assert json.loads((model / "config.json").read_text())["dtype"] == dtype


def test_a_family_without_a_limit_of_positions_is_trained_to_the_end(
    home: Path, zygote: Zygote
) -> None:
    base = bring(home, "bloom")
    config = BloomConfig(vocab_size=1024, hidden_size=32, n_layer=2, n_head=2)
    BloomForCausalLM(config).save_pretrained(base)
    folder = trained(zygote, "of-bloom", model_name_or_path=str(base))
    assert finished_facts(folder)["step"] == 2
    loading.load_model(str(folder / "model"))


def test_what_the_export_could_not_write_ends_the_start(home: Path, zygote: Zygote) -> None:
    base = bring(home, "longrope")
    rope = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [2.0] * 4, "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    change(base / "config.json", rope_parameters=rope)
    assert zygote.run(job(SHORT.replace(run="of-long", model_name_or_path=str(base)))) == [2]
    (event,) = metrics(paths.run("of-long"))
    assert event["event"] == "error" and "rope_type longrope" in event["what"]
    log = (paths.run("of-long") / LOG).read_text()
    assert "Traceback" not in log and log.count("error: model_name_or_path: ") == 1
