"""Faults of the Hugging Face hub and its client, in words."""

import logging
from collections.abc import Iterator

# Errors of huggingface_hub: the kind, what it means for a name, and what to do.
_FAULTS = (
    ("GatedRepoError", "is gated on the hub", "accept its terms there, and hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or is private", "check the name"),
)
_NO_NETWORK = {"LocalEntryNotFoundError", "RevisionResolutionError", "OfflineModeIsEnabled"}


def explain(
    name: str, fault: BaseException, missing: str = "", otherwise: str = "give a folder"
) -> tuple[str, str] | None:
    """Return what is wrong with a name on the hub, and the remedy; None for another fault.

    Without a network: what is `missing` in the cache (the name itself), and what to do `otherwise`.
    """
    found = kinds(fault)
    for kind, said, remedy in _FAULTS:
        if kind in found:
            return f"{name} {said}", remedy
    if found & _NO_NETWORK:
        cause, remedy = _without_network()
        return f"{missing or name} is not in the cache, and {cause}", f"{remedy}, or {otherwise}"
    return None


def _without_network() -> tuple[str, str]:
    """Return why the hub was not asked, and what to do about it."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set", "unset it"
    return "the hub can't be reached", "connect to the network"


def kinds(fault: BaseException) -> set[str]:
    """Return the names of the classes of a fault and of what caused it."""
    return {type(cause).__name__ for cause in chain(fault)}


def chain(fault: BaseException | None) -> Iterator[BaseException]:
    """Yield a fault and what caused it."""
    while fault:
        yield fault
        fault = fault.__cause__ or fault.__context__


def silence_client() -> None:
    """Silence the client's own warnings and retries: our error says it in one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
