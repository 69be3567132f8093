"""A hub that does not answer is asked once, and the client then uses its cache alone."""

import socket
import threading
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from neoxkit import hub_faults
from neoxkit.data import downloads
from neoxkit.errors import UserError
from neoxkit.models import loading, model_names

ANSWERS = hub_faults._answers  # before conftest replaces it
SAID = "is not in the cache, and the hub can't be reached -- connect to the network, or give a"


class Hub:
    """A server that takes connections, counts them, and says `answer` to each (nothing: waits)."""

    def __init__(self, answer: bytes = b"") -> None:
        self.socket, self.taken, self.answer = socket.socket(), [], answer
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            taken, _ = self.socket.accept()
            self.taken.append(taken)
            if self.answer:
                taken.recv(10_000)
                taken.sendall(self.answer)


@pytest.fixture(autouse=True)
def client(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set up a client with an empty cache that may ask a hub of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_faults, "_answers", ANSWERS)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.5")
    monkeypatch.setenv("NO_PROXY", "*")
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def of(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{hub.socket.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


def refused(ask, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        ask(*arguments)
    return str(caught.value)


def test_a_hub_that_never_answers_is_asked_once_for_all_names_and_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of(hub := Hub(), monkeypatch)
    assert f"model_name_or_path: a/b {SAID} folder" in refused(loading.without_weights, "a/b")
    assert SAID in refused(loading.load_tokenizer, "a/b")
    assert SAID in refused(model_names.pinned, "c/d")
    assert SAID in refused(loading.check_base, f"a/b@{'0' * 40}")
    assert f"train_file: a/b {SAID}" in refused(downloads.fetch, "train_file", "a/b", [])
    assert len(hub.taken) == 1


def test_a_hub_that_answers_again_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it answers: an error is not silence."""
    of(Hub(), monkeypatch)
    hub_faults.prepare_client()
    assert huggingface_hub.is_offline_mode()
    of(hub := Hub(b"HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n"), monkeypatch)
    hub_faults.prepare_client()
    assert not huggingface_hub.is_offline_mode() and len(hub.taken) == 1
    hub_faults.prepare_client()
    assert len(hub.taken) == 1


def test_a_push_asks_the_hub_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    of(Hub(), monkeypatch)
    hub_faults.prepare_client()
    hub_faults.free_client()
    assert not huggingface_hub.is_offline_mode()


def test_a_client_that_is_to_stay_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    of(hub := Hub(), monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set -- unset it" in refused(model_names.pinned, "a/b")
    hub_faults.free_client()
    assert huggingface_hub.is_offline_mode() and not hub.taken
