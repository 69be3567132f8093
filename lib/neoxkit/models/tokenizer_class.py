"""Load a tokenizer by the class that AutoTokenizer would choose, without its import of torch.

AutoTokenizer first makes the model's configuration, for which transformers imports torch: seconds
in which a notebook that only counts tokens shows nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from neoxkit.files import read_json
from neoxkit.models import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAMILIES = ("gpt_neox", "gpt_neo", "gpt2")
# What tokenizer_config.json may name -> the class that AutoTokenizer takes for these families.
CLASSES = {
    "GPTNeoXTokenizer": "GPTNeoXTokenizer",
    "GPT2Tokenizer": "GPT2Tokenizer",
    "TokenizersBackend": "TokenizersBackend",
    "PreTrainedTokenizer": "TokenizersBackend",
}


def load(place: str, revision: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a folder, or of a revision on the hub; transformers' errors pass."""
    folder = Path(place)
    if not folder.is_dir():
        revision = hub.commit(place, revision)
        folder = hub.snapshot(place, revision)
    import transformers

    if name := name_of(folder):
        return getattr(transformers, name).from_pretrained(place, revision=revision)
    # A model's own code is never run, and nobody is asked whether it may be.
    return transformers.AutoTokenizer.from_pretrained(
        place, revision=revision, trust_remote_code=False
    )


def name_of(folder: Path) -> str | None:
    """Return the class for a folder's tokenizer; None where only AutoTokenizer knows."""
    try:
        config = read_json(folder / "config.json")
        own = read_json(folder / "tokenizer_config.json")
        named = own.get("tokenizer_class") or config.get("tokenizer_class")
        if config.get("model_type") not in FAMILIES or "auto_map" in own:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return CLASSES.get(named.removesuffix("Fast")) if isinstance(named, str) else None
