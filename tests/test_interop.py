"""A finished model in other programs, each in an environment of its own (make test-interop)."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BASE, REPOSITORY, train_to_the_end
from small_models import ROTARY
from transformers import AutoModelForCausalLM, set_seed

from neoxkit.data.conversation import Names
from neoxkit.models import generation, loading, sharing
from neoxkit.training import export

PYTHONS = {name: REPOSITORY / name / "bin" / "python" for name in
           (".venv-transformers4", ".venv-interop", ".venv-trl")}  # fmt: skip
PROMPT = "User: What is 7 plus 3?\n\nAgent:"
IDS = [5, 9, 33, 7, 100, 64, 2, 500]
TRANSFORMERS_4 = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
assert __version__.startswith("4.")
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    text_ids = AutoTokenizer.from_pretrained(folder)(sys.argv[1])["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].tolist()
    found[folder] = {"logits": logits, "ids": text_ids}
print(json.dumps(found))
"""
LENS = """
import json, sys, torch
from transformer_lens.model_bridge import TransformerBridge
model = TransformerBridge.boot_transformers(sys.argv[1], device="cpu", dtype=torch.float32)
with torch.no_grad():
    print(json.dumps({"logits": model(torch.tensor([IDS]))[0].tolist()}))
"""
NNSIGHT = """
import json, sys, torch
from nnsight import LanguageModel
model = LanguageModel(sys.argv[1], device_map="cpu", dispatch=True)
with torch.no_grad(), model.trace(torch.tensor([IDS])):
    logits = model.output.logits.save()
print(json.dumps({"logits": logits[0].tolist()}))
"""
DPO = """
import json, sys
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
folder, work = sys.argv[1:]
row = {"prompt": "User: Hi.\\n\\nAgent:", "chosen": " Hello.", "rejected": " Go away."}
args = DPOConfig(output_dir=work, max_steps=2, per_device_train_batch_size=2, logging_steps=1,
                 learning_rate=1e-3, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
trainer = DPOTrainer(model=folder, args=args, train_dataset=Dataset.from_list([row] * 4),
                     processing_class=AutoTokenizer.from_pretrained(folder))
trainer.train()
print(json.dumps({"losses": [e["loss"] for e in trainer.state.log_history if "loss" in e]}))
"""

pytestmark = pytest.mark.interop


def ask(environment: str, program: str, *arguments: object) -> dict[str, Any]:
    """Run a program in an environment; return the JSON of its last line."""
    python = PYTHONS[environment]
    if not python.exists():
        pytest.skip(f"{environment} is not here (make test-interop)")
    line = [python, "-c", program.replace("IDS", str(IDS)), *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= sharing.OFFLINE | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return loading.load_model(str(folder)).eval()(torch.tensor([IDS])).logits[0]


def furthest(found: dict[str, Any], folder: Path) -> float:
    """Return the largest difference from the logits that the kit's own transformers computes."""
    return (torch.tensor(found["logits"]) - logits(folder)).abs().max().item()


@pytest.fixture(scope="module", params=[0, 4], ids=["whole", "merged"])
def model(request: pytest.FixtureRequest, session_home: Path) -> Path:
    """Train the built-in model for a few steps, or adapters that are merged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        patch.chdir(session_home)
        run = train_to_the_end(BASE.replace(run=f"out-{request.param}", lora_rank=request.param))
        return sharing.merge(run.name) if request.param else run / "model"


def test_transformers_4_computes_the_same(model: Path) -> None:
    found = ask(".venv-transformers4", TRANSFORMERS_4, PROMPT, model)[str(model)]
    assert furthest(found, model) < 1e-5
    assert found["ids"] == loading.load_tokenizer(str(model))(PROMPT)["input_ids"]


def test_the_cards_program_says_the_same_under_transformers_4(model: Path) -> None:
    """Greedy as the kit is, though a pipeline of transformers 4 samples unless it is told."""
    program = sharing.usage(str(model), Names())
    said = ask(".venv-transformers4", f"{program}\nimport json\nprint(json.dumps(said))")
    asked = f"User: {sharing.QUESTION}\n\nAgent:"
    tokenizer = loading.load_tokenizer(str(model))
    (own,) = generation.reply(loading.load_model(str(model)), tokenizer, [asked], Names())
    text = said[0]["generated_text"][-1]["content"]
    assert text.removesuffix("\n\nUser:").strip() == own.text


def test_every_rotary_family_is_the_same_under_transformers_4(tmp_path: Path) -> None:
    """Random models with rotary settings unlike the defaults, as a training exports them."""
    tokenizer = loading.load_tokenizer("tiny")
    for family, make in ROTARY.items():
        for scaled in (False, True):
            config = make(scaled)
            config.vocab_size = 1024
            set_seed(0)
            made = AutoModelForCausalLM.from_config(config)
            sharing.make_own(made, tokenizer)
            folder = tmp_path / f"{family}-{scaled}"
            made.save_pretrained(folder)
            export._complete(folder, config, tokenizer, Names())
    folders = sorted(tmp_path.iterdir())
    found = ask(".venv-transformers4", TRANSFORMERS_4, PROMPT, *folders)
    assert {f.name: furthest(found[str(f)], f) < 1e-5 for f in folders} == {
        f.name: True for f in folders
    }


def test_transformer_lens_computes_the_same(model: Path) -> None:
    assert furthest(ask(".venv-interop", LENS, model), model) < 1e-5


def test_nnsight_computes_the_same(model: Path) -> None:
    assert furthest(ask(".venv-interop", NNSIGHT, model), model) < 1e-5


def test_trl_takes_it_as_the_start_of_dpo(model: Path, tmp_path: Path) -> None:
    """At the first step policy and reference are the same model, which gives a loss of log 2."""
    first, second = ask(".venv-trl", DPO, model, tmp_path)["losses"]
    assert first == pytest.approx(math.log(2), abs=1e-4) and second < first
