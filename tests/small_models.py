"""A model of each family, small enough for a test."""

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
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
