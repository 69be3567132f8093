"""Models as people bring them: each function makes one fault in a copy of a good folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXModel,
    LlamaConfig,
    LlamaForCausalLM,
)

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def change(folder: Path, new: Callable[[Tensors], Tensors]) -> None:
    """Write other weights into a model folder."""
    tensors = new(load_file(folder / WEIGHTS))
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    """Change values of config.json; None deletes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda t: {f"{prefix}{k}": v for k, v in t.items()})


def without(part: str) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda t: {k: v for k, v in t.items() if part not in k})


def extra_layer(folder: Path) -> None:
    def more(t: Tensors) -> Tensors:
        last = {
            k.replace("layers.3", "layers.4"): v.clone() for k, v in t.items() if "layers.3" in k
        }
        return t | last

    change(folder, more)


def not_finite(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        def new(t: Tensors) -> Tensors:
            t["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"][0, 0] = value
            return t

        change(folder, new)

    return spoil


def old_buffers(folder: Path) -> None:
    """Add what transformers 4 saved: the causal mask, and the rotary frequencies."""
    attention = "gpt_neox.layers.{}.attention.{}"
    buffers = {attention.format(i, "bias"): torch.ones(1, 1, 8, 8).bool() for i in range(4)}
    buffers |= {attention.format(i, "masked_bias"): torch.tensor(-1e9) for i in range(4)}
    buffers |= {attention.format(i, "rotary_emb.inv_freq"): torch.ones(4) for i in range(4)}
    change(folder, lambda t: t | buffers)


def pointer(folder: Path, name: str = WEIGHTS) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut(share: float) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(raw[: int(share * len(raw))])

    return shorten


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="1MB")


def shard_missing(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def shard_cut(folder: Path) -> None:
    sharded(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def headless(folder: Path) -> None:
    GPTNeoXModel(GPTNeoXConfig.from_pretrained(folder)).save_pretrained(folder)
    configure(folder, architectures=["GPTNeoXForCausalLM"])


def wider(folder: Path) -> None:
    configure(folder, hidden_size=256)


def quantized(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def adapters(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def lossy_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": []}
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    tokenizer["decoder"] = None
    path.write_text(json.dumps(tokenizer))


def other(config: Any, model: Any) -> Callable[[Path], None]:
    """Put a model of another family there, with the same tokenizer."""

    def put(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        model(config).save_pretrained(folder)

    return put


def llama_tokenizer(folder: Path) -> None:
    """Give it the normalizer and decoder of Llama 2's tokenizer: spaces are U+2581 inside."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [space]}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], back]}
    path.write_text(json.dumps(tokenizer))


def lower_case(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(tokenizer))


def retyped(kind: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda t: {k: v.to(kind) for k, v in t.items()})


def index_of(folder: Path, shard: str) -> None:
    """Write an index without metadata, of one shard that holds all weights."""
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / shard)
    index = {"weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def stale_index(folder: Path) -> None:
    index = {"weight_map": {"a": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def renamed(folder: Path) -> None:
    """Put weights of another family there: names like model.layers.0.q_norm, which fit nothing."""
    change(folder, lambda t: {f"model.layers.{i}.q_norm": v for i, v in enumerate(t.values())})


SMALL = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
GPT2 = other(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **SMALL), GPT2LMHeadModel)
LLAMA = other(
    LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **SMALL
    ),
    LlamaForCausalLM,
)
ROPE = other(
    GPTNeoXConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **SMALL,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0,
                         "partial_rotary_factor": 0.5},
    ),
    GPTNeoXForCausalLM,
)  # fmt: skip

BLOOM = other(BloomConfig(hidden_size=32, n_layer=2, n_head=2, **SMALL), BloomForCausalLM)

# Values of generation_config.json that change what a model says, or how `generate` returns it.
GENERATION: dict[str, dict[str, Any]] = {
    "samples": {"do_sample": True, "temperature": 1.9},
    "repetition penalty": {"repetition_penalty": 0.001},
    "no repeated token": {"no_repeat_ngram_size": 1},
    "suppressed tokens": {"suppress_tokens": [*range(2, 1000)]},
    "suppressed first": {"begin_suppress_tokens": [*range(2, 1000)]},
    "bad words": {"bad_words_ids": [[i] for i in range(2, 1000)]},
    "forced end": {"forced_eos_token_id": 5},
    "other ends": {"eos_token_id": [*range(1024)]},
    "least length": {"min_length": 10**6},
    "most length": {"max_length": 5},
    "beams": {"num_beams": 3, "length_penalty": -2.0, "num_return_sequences": 2},
    "guidance": {"guidance_scale": 3.0},
    "bias": {"sequence_bias": [[[7], 1000.0]]},
    "time": {"max_time": 1e-9},
    "other output": {"return_dict_in_generate": True, "output_scores": True},
}


def generates(**values: Any) -> Callable[[Path], None]:
    """Write these values into generation_config.json."""

    def put(folder: Path) -> None:
        (folder / "generation_config.json").write_text(json.dumps(values))

    return put


FINE: dict[str, Callable[[Path], None]] = {
    "as it is": lambda folder: None,
    "in shards": sharded,
    "buffers of transformers 4": old_buffers,
    "gpt2": GPT2,
    "llama": LLAMA,
    "other rope": ROPE,
    "no positions": BLOOM,
    "spaces as in Llama 2": llama_tokenizer,
    "an old index beside it": stale_index,
    "no generation config": lambda folder: (folder / "generation_config.json").unlink(),
}
# What is said, after "model_name_or_path: "; the remedy.
REFUSED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "torch.compile": (prefixed("_orig_mod."), "inside torch.compile", "neoxkit convert "),
    "data parallel": (prefixed("module."), "inside DistributedDataParallel", "neoxkit convert "),
    "wrapped": (prefixed("model."), "inside a class that held", "neoxkit convert "),
    "a layer is missing": (without("layers.3."), "data/models/brought holds 3", "of these weights"),
    "a layer too many": (extra_layer, "4 layers, data/models/brought holds 5", "of these weights"),
    "one weight is missing": (without("layers.1.attention.dense.weight"), "lacks", "belong"),
    "no output layer": (without("embed_out"), "without its output layer", "ForCausalLM"),
    "saved without the head": (headless, "without its output layer", "ForCausalLM"),
    "another width": (wider, "256", "use the config.json of these weights"),
    "NaN": (not_finite(float("nan")), "NaN or infinite", "earlier checkpoint"),
    "infinite": (not_finite(float("inf")), "NaN or infinite", "earlier checkpoint"),
    "tied by name alone": (
        lambda f: configure(f, tie_word_embeddings=True),
        "output layer of its own, and its config.json ties it", "set tie_word_embeddings to false",
    ),
    "Git LFS pointer": (pointer, "is a Git LFS pointer", "run git lfs pull"),
    "cut in the header": (cut(0.001), "is cut short or damaged", "copy or download it again"),
    "cut in the middle": (cut(0.5), "is cut short or damaged", "copy or download it again"),
    "cut at the end": (cut(0.9999), "is cut short or damaged", "copy or download it again"),
    "empty": (cut(0), "is cut short or damaged (0 bytes)", "copy or download it again"),
    "a shard is missing": (shard_missing, "lacks model-00002-of-", "download the missing files"),
    "a shard is cut": (shard_cut, "is cut short or damaged", "copy or download it again"),
    "a pickle": (pickled, "could run code when it is read", "neoxkit convert "),
    "an index of nothing": (broken_index, "index.json lists no files", "download it again"),
    "another family's names": (renamed, "lacks", "that belong together"),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[]"), "names no model_type", "config.json"
    ),
    "no heads": (lambda f: configure(f, num_attention_heads=0), "can't be loaded (", "correct"),
    "a word for a width": (lambda f: configure(f, hidden_size="x"), "can't be loaded (", "correct"),
    "quantized": (quantized, "is quantized (gptq)", "start from the model it was made of"),
    "adapters": (adapters, "holds LoRA adapters", "merge them into their base"),
    "no tokenizer": (no_tokenizer, "has no tokenizer in its folder", "copy the tokenizer files"),
    "a tokenizer of words": (lossy_tokenizer, "gives ': Hi, it' back as", "byte-level tokenizer"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json", "saved model"),
    "inside another module": (
        prefixed("net."), "another module: names begin with net.", "neoxkit convert "
    ),
    "whole numbers": (retyped(torch.int32), "as I32: it is quantized", "model it was made of"),
    "8 bits": (retyped(torch.float8_e4m3fn), "as F8_E4M3: it is quantized", "model it was made of"),
    "an index without metadata": (
        lambda f: index_of(f, "model-1-of-1.safetensors"), 'has no "metadata"', "download it again"
    ),
    "lower case": (lower_case, "gives 'User: Hi' back as 'user: hi'", "byte-level tokenizer"),
    "a tokenizer's pointer": (
        lambda f: pointer(f, "tokenizer.json"), "tokenizer.json is a Git LFS pointer", "git lfs"
    ),
    "a tokenizer that is cut": (
        lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is not JSON", "copy it"
    ),
    "half a tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer in its folder", "copy the tok"
    ),
    "no causal model": (
        lambda f: configure(f, model_type="t5"), "is not a causal language model", "use GPT-NeoX"
    ),
    "code of its own": (
        lambda f: configure(f, model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "is a own, which", "another family",
    ),
    "heads that don't divide": (
        lambda f: configure(f, num_attention_heads=3),
        "can't be loaded (ValueError: The hidden size", "correct what",
    ),
    "unknown family": (
        lambda f: configure(f, model_type="neoxx"), "is a neoxx, which", "another family"
    ),
    "no family": (
        lambda f: configure(f, model_type=None), "names no model_type", "config.json of the base"
    ),
}  # fmt: skip
