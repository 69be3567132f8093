"""llama.cpp converts the kit's model and computes what transformers computes (marked gguf)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_DATA, tokenize, train_to_the_end

from neoxkit.models import loading, sharing
from neoxkit.settings import TrainSettings

TOKENIZER = Path(os.environ.get("BENCH_DATA") or SHARED_DATA) / "gpt-neox-tokenizer"
PYTHON = REPOSITORY / ".venv-gguf" / "bin" / "python"
CONVERTER = REPOSITORY / ".venv-gguf" / "llama.cpp" / "convert_hf_to_gguf.py"
PROMPT = "User: What is 7 plus 3?\n\nAgent:"
ASK = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=256, logits_all=True, verbose=False)
ids = model.tokenize(sys.argv[2].encode(), add_bos=False)
model.eval(ids)
print(json.dumps({"ids": ids, "logits": model.scores[: len(ids)].tolist()}))
"""

pytestmark = [
    pytest.mark.gguf,
    pytest.mark.skipif(not CONVERTER.exists(), reason="llama.cpp is not here (make test-gguf)"),
    pytest.mark.skipif(
        not TOKENIZER.exists(), reason="Pythia's tokenizer is not here (set BENCH_DATA)"
    ),
]


@pytest.fixture(scope="module")
def base(session_home: Path) -> Path:
    """Make a small half-rotary GPT-NeoX with Pythia's tokenizer and random weights."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, set_seed

    folder = session_home / "data" / "models" / "neox"
    set_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5}
    config = GPTNeoXConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        vocab_size=50304, rope_parameters=rope, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEOXKIT_HOME", str(session_home))
        patch.chdir(session_home)
        tokenize("small.txt", "neox", model="data/models/neox")
    return folder


@pytest.mark.parametrize("lora_rank", [0, 8])
def test_llama_cpp_computes_the_same(
    home: Path, base: Path, tmp_path: Path, lora_rank: int
) -> None:
    """Expect equal ids, equal next tokens, and logits within a thousandth of their range."""
    settings = TrainSettings(
        run=f"gguf-{lora_rank}", dataset="neox", max_steps=30, learning_rate=1e-2,
        lora_rank=lora_rank, num_replies=0, eval_steps=1000, save_steps=1000,
    )  # fmt: skip
    run = train_to_the_end(settings)
    model = sharing.merge(run.name) if lora_rank else run / "model"
    found = _by_llama_cpp(model, tmp_path / "model.gguf")
    ids = loading.load_tokenizer(str(model))(PROMPT)["input_ids"]
    with torch.no_grad():
        logits = loading.load_model(str(model))(torch.tensor([ids])).logits[0].numpy()
    assert found["ids"] == ids
    theirs = np.array(found["logits"])
    assert (theirs.argmax(1) == logits.argmax(1)).all()
    assert np.abs(theirs - logits).max() < 1e-3 * np.ptp(logits)


def _by_llama_cpp(model: Path, target: Path) -> dict[str, Any]:
    """Return the ids of PROMPT and the logits after each, from the converted model."""
    line = [PYTHON, CONVERTER, model, "--outfile", target, "--outtype", "f32"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = [PYTHON, "-c", ASK, target, PROMPT]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
