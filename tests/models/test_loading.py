"""Loading by name or folder, the built-in model, and the chat template."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from neoxkit.data.conversation import Conversation, Names, Turn, prompt
from neoxkit.errors import UserError
from neoxkit.models import configs, loading, model_names, tiny, tokenizer_class
from neoxkit.models.sharing import chat_template


def sha256(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.process
def test_tiny_is_always_the_same_bytes(tmp_path: Path) -> None:
    """Make it twice, in separate processes with other threads, hash seeds and torch seeds."""
    code = "import sys,torch,pathlib; torch.manual_seed({}); from neoxkit.models import tiny; "
    code += "tiny.make_tiny(pathlib.Path(sys.argv[1]))"
    for i in (1, 2):
        (tmp_path / str(i)).mkdir()
        env = {**os.environ, "OMP_NUM_THREADS": str(i), "PYTHONHASHSEED": str(i)}
        env["RAYON_NUM_THREADS"] = str(i)
        subprocess.run(
            [sys.executable, "-c", code.format(i), str(tmp_path / str(i))], env=env, check=True
        )
    assert sha256(tmp_path / "1") == sha256(tmp_path / "2")
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(sha256(tmp_path / "1"))


def test_tiny_is_a_small_gpt_neox_with_its_special_tokens() -> None:
    folder = tiny.tiny_folder()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "gpt_neox"
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|padding|>"]) == [0, 1]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    text = "User: Grüße, 你好 🙂\n\nAgent: 3 plus 4 is 7."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("pythia-1.4b-deduped", "EleutherAI/pythia-1.4b-deduped"),
        ("gpt-neo-125m", "EleutherAI/gpt-neo-125m"),
        ("gpt-neox-20b", "EleutherAI/gpt-neox-20b"),
    ],
)
def test_names_of_the_hub(name: str, opened: str) -> None:
    assert model_names.resolve(name) == opened


@pytest.mark.parametrize(
    "name",
    ["no-such", "./nowhere", "/no/such/folder", "~/nowhere/at/all", "a b/c", "owner/",
     "pythia-70m-",
     "../../etc/passwd", "a/" + "b" * 200, "x" * 300, "https://huggingface.co/owner/name"],
)  # fmt: skip
def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^model_name_or_path: .* -- "):
        model_names.resolve(name)


def test_a_revision_behind_the_built_in_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"^revision: tiny is on this machine: .* -- leave it out$"):
        model_names.at("tiny@step3", "")


def test_an_address_is_told_from_a_path() -> None:
    with pytest.raises(UserError, match=r"is an address, not a path -- write owner/name for the"):
        model_names.resolve("https://huggingface.co/owner/name")


def test_a_folder_without_weights_is_refused_unless_from_scratch(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny.tiny_folder() / name).read_bytes())
    with pytest.raises(UserError, match=r"has no model\.safetensors -- set from_scratch"):
        loading.load_model(str(tmp_path))
    one, same, other = (loading.random_model(str(tmp_path), seed) for seed in (1, 1, 2))
    weights = [m.get_output_embeddings().weight for m in (one, same, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """Weights are loaded from safetensors only."""
    import torch

    model = loading.load_model("tiny")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has its we.* -- neoxkit convert /"):
        loading.load_model(str(tmp_path))


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as refused:
        loading.load_tokenizer("EleutherAI/no-such-model-of-the-kit")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "a/b is gated on the hub -- accept its terms there, and hf auth login"),
        (RepositoryNotFoundError, "a/b is not on the hub, or is private -- check the name"),
        (LocalEntryNotFoundError, "the hub can't be reached -- connect to the network, or give a"),
        (PermissionError, "the model 'a/b' can't be loaded (We couldn't connect.) -- use another"),
    ],
)
def test_only_what_failed_is_blamed(
    kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers speaks of the internet connection in each of these cases."""

    def from_pretrained(name: str, revision: str, trust_remote_code: bool) -> None:
        raise OSError("We couldn't connect.") from kind.__new__(kind)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_pretrained)
    with pytest.raises(UserError) as refused:
        loading.without_weights("a/b")
    assert said in str(refused.value)


def test_the_shape_of_the_built_in_model_is_known_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notebooks", "ds_configs", "data"):
        (tmp_path / name).mkdir()
    sample = REPOSITORY / "data" / "sample.txt"
    (tmp_path / "data" / "sample.txt").write_bytes(sample.read_bytes())
    monkeypatch.setenv("NEOXKIT_HOME", str(tmp_path))
    model = loading.without_weights("tiny")
    assert model.device.type == "meta"
    assert loading.load_model("tiny").num_parameters() == model.num_parameters()


@pytest.mark.process
def test_the_hubs_client_adds_nothing_to_that_line(capfd: pytest.CaptureFixture) -> None:
    """Run in a fresh process, in which the client would report each attempt."""
    code = (
        "import huggingface_hub, logging; from neoxkit.models import model_names\n"
        "model_names.resolve('pythia-70m')\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_too_large_is_refused() -> None:
    model, tokenizer = loading.load_model("tiny"), loading.load_tokenizer("tiny")
    loading.check_vocabulary(model, tokenizer)
    model.config.vocab_size = len(tokenizer) - 1
    with pytest.raises(UserError, match="1024 ids, the model 1023 embedding rows"):
        loading.check_vocabulary(model, tokenizer)
    configs.check_positions(configs.positions(model.config), 2048)
    with pytest.raises(UserError, match="2049 is above the model's 2048 positions"):
        configs.check_positions(configs.positions(model.config), 2049)


@pytest.mark.parametrize(
    "names", [Names(), Names("Dr. Rosey", "Human"), Names('O"Brien', 'O"B'), Names("Joi 😀", "Ü")]
)
def test_the_chat_template_writes_the_trained_prompt(names: Names) -> None:
    tokenizer = loading.load_tokenizer("tiny")
    tokenizer.chat_template = chat_template(names)
    turns = (Turn("user", "Hi."), Turn("agent", "Yes?"), Turn("user", "Bye."))
    chat = [
        {"role": "system", "content": "A shop."},
        *({"role": "user" if t.role == "user" else "assistant", "content": t.text} for t in turns),
    ]
    written = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written == prompt(Conversation(1, turns, "A shop."), names)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Not reached: no network.\nCheck it.", r"\(Not reached: no network\.\)"),
        ("No such model. " + "It is nowhere " * 20, r"\(No such model\. \.\.\.\)"),
        ("nowhere " * 30, r"nowhere \.\.\.\)"),
    ],
)
def test_a_hub_failure_is_cut_at_a_sentence_or_a_word(
    monkeypatch: pytest.MonkeyPatch, said: str, shown: str
) -> None:
    def fail(name: str, revision: str) -> None:
        raise OSError(said)

    monkeypatch.setattr(tokenizer_class, "load", fail)
    with pytest.raises(UserError, match=shown):
        loading.load_tokenizer("owner/name")


def test_a_missing_attention_kernel_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^attn_implementation: .* -- choose auto$"):
        loading.load_model("tiny", attention="flash_attention_2")
    assert loading.load_model("tiny", attention="eager").config._attn_implementation == "eager"
