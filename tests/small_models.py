"""A model of each family, small enough for a test."""

from collections.abc import Callable
from typing import Any

from transformers import (
    CodeGenConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
    PersimmonConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

CONFIGS = {
    "gpt_neox": GPTNeoXConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128,
    ),
    "gpt_neo": GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], window_size=16, max_position_embeddings=128,
    ),
    "gpt2": GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip
CLASSES = {"gpt_neox": GPTNeoXForCausalLM, "gpt_neo": GPTNeoForCausalLM, "gpt2": GPT2LMHeadModel}

THETA = 5000.0  # a rotary base that no family has by default
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": None, "num_key_value_heads": 2,
}  # fmt: skip
OF_GPTJ = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8,
           "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


def _rotary(
    kind: type[PretrainedConfig], share: float = 0, **sizes: Any
) -> Callable[[bool], PretrainedConfig]:
    """Make configurations with rotary settings unlike the defaults, scaled or not.

    `share`: the rotated share of each head, where the family has one.
    """

    def make(scaled: bool) -> PretrainedConfig:
        scale = {"rope_type": "linear", "factor": 2.0} if scaled else {"rope_type": "default"}
        shared = {"partial_rotary_factor": share} if share else {}
        return kind(rope_parameters={**scale, **shared, "rope_theta": THETA}, **(SIZES | sizes))

    return make


def _by_layer(
    kind: type[PretrainedConfig], sliding_theta: float, **sizes: Any
) -> Callable[[bool], PretrainedConfig]:
    """The same for a family whose layers differ; only full attention is scaled."""

    def make(scaled: bool) -> PretrainedConfig:
        scale = {"rope_type": "linear", "factor": 2.0} if scaled else {"rope_type": "default"}
        layers = {
            "full_attention": {**scale, "rope_theta": THETA},
            "sliding_attention": {"rope_type": "default", "rope_theta": sliding_theta},
        }
        kinds = ["sliding_attention", "full_attention"]
        return kind(rope_parameters=layers, layer_types=kinds, **(SIZES | sizes))

    return make


# Rotary families: whether its rotation is scaled -> a configuration.
ROTARY: dict[str, Callable[[bool], PretrainedConfig]] = {
    "gpt_neox": _rotary(GPTNeoXConfig, 0.5),
    "gptj": lambda scaled: GPTJConfig(n_positions=128, **OF_GPTJ),
    "codegen": lambda scaled: CodeGenConfig(
        n_positions=128, n_ctx=128, **(OF_GPTJ | {"n_head": 4})
    ),
    "llama": _rotary(LlamaConfig),
    "mistral": _rotary(MistralConfig),
    "qwen2": _rotary(Qwen2Config),
    "qwen3": _rotary(Qwen3Config, num_key_value_heads=1, head_dim=16),
    "falcon": _rotary(FalconConfig, alibi=False),
    "phi": _rotary(PhiConfig, 0.75),
    "stablelm": _rotary(StableLmConfig, 0.75),
    "persimmon": _rotary(PersimmonConfig, 0.75),
    "gemma3_text": _by_layer(
        Gemma3TextConfig, 100.0, head_dim=16, sliding_window=4, num_key_value_heads=1
    ),
    "olmo3": _by_layer(Olmo3Config, THETA, sliding_window=4),
}
