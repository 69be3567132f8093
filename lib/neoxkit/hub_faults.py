"""Faults of the Hugging Face hub and its client, in words; and a hub that does not answer."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

# Errors of huggingface_hub: the kind, what it means for a name, and what to do.
_FAULTS = (
    ("GatedRepoError", "is gated on the hub", "accept its terms there, and hf auth login"),
    ("RepositoryNotFoundError", "is not on the hub, or is private", "check the name"),
)
REACH_SECONDS = 8.0  # for the hub's first answer; the environment's HF_HUB_ETAG_TIMEOUT replaces it
KEPT_SECONDS = 30.0  # how long its answer counts, or its silence
_asked: dict[str, float] = {}  # endpoint: when
_cut_off: set[str] = set()  # those that did not answer
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

    if constants.is_offline_mode() and not _cut_off:
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


def prepare_client() -> None:
    """Silence the client's own warnings and retries, as our error says it in one line; let it use
    its cache alone where the hub does not answer.

    The client would wait and ask six times for each file, which takes minutes.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    if constants.HF_HUB_OFFLINE and not _cut_off:
        return  # the user's own wish
    endpoint, now = constants.ENDPOINT, time.monotonic()
    if now - _asked.get(endpoint, -KEPT_SECONDS) < KEPT_SECONDS:
        return
    free_client()
    if not _answers(endpoint):
        _cut_off.add(endpoint)
        constants.HF_HUB_OFFLINE = True
    _asked[endpoint] = time.monotonic()


def free_client() -> None:
    """Let the client ask the hub again, after it did not answer."""
    from huggingface_hub import constants

    if _cut_off:
        constants.HF_HUB_OFFLINE = False
    _cut_off.clear()
    _asked.clear()


def _answers(endpoint: str) -> bool:
    """Return whether the hub answers anything in time.

    In a thread, because the search for an address can't be given a limit.
    """
    from huggingface_hub import get_session

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or REACH_SECONDS)
    answered: list[int] = []
    over = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # the client's network library, which has changed
            answered.append(get_session().head(endpoint, timeout=seconds).status_code)
        over.set()

    threading.Thread(target=ask, daemon=True).start()
    over.wait(seconds)
    return bool(answered)
