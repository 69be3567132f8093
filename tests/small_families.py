"""A tiny configuration of each family whose rows the kit packs, and of some that it does not."""

from transformers import (
    BioGptConfig,
    BloomConfig,
    CodeGenConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    PersimmonConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

WINDOW = 8  # tokens that a layer with a window sees
_IDS = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
_SIZES = {
    **_IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_OLD = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

PACKED: dict[str, PretrainedConfig] = {
    "biogpt": BioGptConfig(
        **_SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, activation_dropout=0.0
    ),
    "codegen": CodeGenConfig(**_OLD, rotary_dim=8),
    "cohere": CohereConfig(**_GROUPED),
    "gemma2": Gemma2Config(**_GROUPED, head_dim=8, sliding_window=WINDOW),
    "gemma3_text": Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=WINDOW),
    "gpt2": GPT2Config(**_OLD, **_NO_DROPOUT),
    "gpt_bigcode": GPTBigCodeConfig(**_OLD, **_NO_DROPOUT),
    "gpt_neo": GPTNeoConfig(
        **_IDS, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], window_size=WINDOW, max_position_embeddings=128,
    ),
    "gpt_neox": GPTNeoXConfig(**_SIZES),
    "gpt_neox_japanese": GPTNeoXJapaneseConfig(
        **_SIZES, attention_dropout=0.0, hidden_dropout=0.0
    ),
    "gptj": GPTJConfig(**_OLD, rotary_dim=8),
    "granite": GraniteConfig(**_GROUPED),
    "llama": LlamaConfig(**_GROUPED),
    "mistral": MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "olmo2": Olmo2Config(**_GROUPED),
    "olmo3": Olmo3Config(**_GROUPED, sliding_window=WINDOW),
    "opt": OPTConfig(
        **_IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=128, word_embed_proj_dim=32, dropout=0.0,
    ),
    "persimmon": PersimmonConfig(**_SIZES),
    "phi": PhiConfig(**_SIZES),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "smollm3": SmolLM3Config(**_GROUPED),
    "stablelm": StableLmConfig(**_GROUPED),
    "starcoder2": Starcoder2Config(**_GROUPED, embedding_dropout=0.0, residual_dropout=0.0),
}  # fmt: skip
PADDED: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=4),
    "falcon": FalconConfig(**_IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
}
