"""The built-in model `tiny`: a small GPT-NeoX and its tokenizer, made on first use."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit import files, paths
from neoxkit.settings import END_MARK, TINY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY_VOCABULARY, TINY_SEED = 1024, 0


def place() -> Path:
    """Return the folder of the built-in model, which may not be made yet."""
    return paths.root() / "data" / "models" / TINY


def tiny_folder() -> Path:
    """Return the same, made on first use: the same bytes every time."""
    folder = place()
    if not (folder / "config.json").is_file():
        incomplete = folder.exists()  # else another process may be first, and use it
        with files.whole_folder(folder, replace=incomplete) as part:
            make_tiny(part)
    return folder


def make_tiny(folder: Path) -> None:
    """Write a GPT-NeoX of a million random weights and a tokenizer trained on the sample."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils.logging import disable_progress_bar

    if not torch.cuda.is_available():  # otherwise DeepSpeed, imported here, warns about it
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    tokenizer = _train_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = GPTNeoXConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000,
            "partial_rotary_factor": 0.25,
        },
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        GPTNeoXForCausalLM(config).save_pretrained(folder)


def _train_tiny_tokenizer() -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE like GPT-NeoX's: NFC, end mark 0, padding 1."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    sample = (paths.root() / "data" / "sample.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=[END_MARK, "<|padding|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.split(END_MARK), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_MARK,
        eos_token=END_MARK,
        unk_token=END_MARK,
        pad_token="<|padding|>",
    )
