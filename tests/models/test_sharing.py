"""Sharing a model: it answers without the kit, and nothing is pushed without being asked."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import huggingface_hub
import pytest

from neoxkit import files
from neoxkit.errors import UserError
from neoxkit.models import sharing
from neoxkit.runs.folder import FINISHED
from neoxkit.settings import TrainSettings


@pytest.fixture
def finished(home: Path) -> Iterator[Path]:
    """Make a run whose model is the built-in one."""
    folder = home / "runs" / "shared"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "data" / "models" / "tiny", folder / "model")
    files.write_json(folder / FINISHED, {"step": 1, "agent_name": "Agent", "user_name": "User"})
    template = "{% for m in messages %}User: {{ m['content'] }}\n\nAgent:{% endfor %}"
    (folder / "model" / "chat_template.jinja").write_text(template)
    yield folder
    shutil.rmtree(folder)


class Hub:
    """A stand-in for the hub that records what it is asked for."""

    endpoint = "https://hub.example"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        if name == "no/right":
            raise ValueError("403: no right to write there")
        if name == "no/network":
            raise httpx.ConnectError("no route to host")
        self.asked.append(("create", name, private, exist_ok))

    def upload_folder(self, folder_path: Path, repo_id: str) -> None:
        self.asked.append(("upload", folder_path, repo_id))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


@pytest.mark.process
def test_the_model_answers_in_a_fresh_process_and_is_not_pushed(finished: Path, hub: Hub) -> None:
    said = "\n".join(sharing.share("shared"))
    assert "by a plain pipeline, runs/shared/model says: " in said
    assert "not pushed anywhere" in said and hub.asked == []


@pytest.mark.process
def test_the_model_is_pushed_to_the_repository_that_is_named(finished: Path, hub: Hub) -> None:
    assert "pushed to https://hub.example/me/mine" in "\n".join(sharing.share("shared", "me/mine"))
    assert hub.asked == [
        ("create", "me/mine", True, True),
        ("upload", finished / "model", "me/mine"),
    ]
    with pytest.raises(UserError, match=r"no/right can't be pushed to .403: no right"):
        sharing.push(finished / "model", "no/right")
    with pytest.raises(UserError, match=r"no/network can't be pushed to .no route to host"):
        sharing.push(finished / "model", "no/network")


@pytest.mark.process
def test_a_model_that_does_not_answer_is_not_pushed(finished: Path, hub: Hub) -> None:
    (finished / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="runs/shared/model: does not answer through a plain"):
        sharing.share("shared", "me/mine")
    assert hub.asked == []


def test_adapters_are_merged_first(finished: Path, hub: Hub) -> None:
    files.write_json(
        finished / "model" / "adapter_config.json", {"base_model_name_or_path": "tiny"}
    )
    assert "neoxkit merge shared makes a model" in "\n".join(sharing.share("shared"))
    with pytest.raises(UserError, match="model: holds only adapters -- neoxkit merge shared"):
        sharing.share("shared", "me/mine")
    (finished / "merged").mkdir()
    assert sharing.whole_model(finished) == finished / "merged"


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "https://hub.example/me/mine"])
def test_an_invalid_repository_name_is_refused_before_the_training(name: str) -> None:
    with pytest.raises(UserError, match=r"hub_model_id: got .* -- write owner/name"):
        TrainSettings(hub_model_id=name)
