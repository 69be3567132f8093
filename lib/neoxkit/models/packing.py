"""The families (model_type) whose packed rows are exact, by attention kernel; without torch."""

from neoxkit.errors import UserError

VARLEN = "varlen"  # attention.by_conversation

# Families whose packed rows are exact by conversation; a test holds each to it.
BY_CONVERSATION = {
    "biogpt", "cohere", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "llama",
    "mistral", "olmo2", "olmo3", "opt", "persimmon", "phi", "qwen2", "qwen3", "smollm3",
    "starcoder2",
}  # fmt: skip
# Of these, the families whose masks would let conversations of a row see each other.
ONLY_BY_CONVERSATION = {"biogpt", "opt"}
# The same by masks.
BY_MASK = BY_CONVERSATION - ONLY_BY_CONVERSATION | {
    "codegen", "gemma2", "gpt_neo", "gpt_neox_japanese", "gptj", "stablelm",
}  # fmt: skip
# The same by flash attention and flex_attention.
_BY_OTHERS = {"gpt2", "gpt_neo", "gpt_neox"}


def packs_exactly(family: str, kernel: str) -> bool:
    """Tell whether conversations of a packed row are known not to change each other's loss."""
    by_kernel = {VARLEN: BY_CONVERSATION, "sdpa": BY_MASK, "eager": BY_MASK}
    return family in by_kernel.get(kernel, _BY_OTHERS)


def check_varlen(kernel: str, family: str) -> None:
    """Refuse attention by conversation for a family that it is not known to be exact for."""
    if kernel == VARLEN and family not in BY_CONVERSATION:
        what = f"{VARLEN} is not known to be exact for {family}"
        raise UserError("attn_implementation", what, "choose auto")
