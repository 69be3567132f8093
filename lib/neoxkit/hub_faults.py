"""Faults of the Hugging Face hub and its client, in words."""

import logging
from collections.abc import Iterator

# Errors of huggingface_hub: the kind, what it means for a name, and what to do.
_FAULTS = (
    ("GatedRepoError", "is gated on the hub", "accept its terms there, and hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or is private", "check the name"),
    ("RevisionNotFoundError", "has no such revision on the hub", "see its branches there"),
    ("OfflineModeIsEnabled", "is not in the cache, and HF_HUB_OFFLINE is set",
     "unset it, or give a folder"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub can't be reached",
     "connect to the network, or give a folder"),
)  # fmt: skip


def explain(name: str, fault: BaseException) -> tuple[str, str] | None:
    """Return what is wrong with a name on the hub, and the remedy; None for another fault."""
    kinds = {type(cause).__name__ for cause in chain(fault)}
    for kind, said, remedy in _FAULTS:
        if kind in kinds:
            return f"{name} {said}", remedy
    return None


def chain(fault: BaseException | None) -> Iterator[BaseException]:
    """Yield a fault and what caused it."""
    while fault:
        yield fault
        fault = fault.__cause__ or fault.__context__


def silence_client() -> None:
    """Silence the client's own warnings and retries: our error says it in one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
