"""A finished model for others: shown to answer by itself, and pushed to the hub where asked to."""

import os
import subprocess
import sys
from pathlib import Path

from neoxkit import lora, model_card, paths, views
from neoxkit.data.conversation import Names
from neoxkit.errors import UserError, shorten
from neoxkit.runs.folder import finished_facts

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def whole_model(folder: Path) -> Path:
    """A run's model as one folder that needs nothing else: merged where it was trained by LoRA."""
    if not lora.base_of(folder / "model"):
        return folder / "model"
    if (folder / "merged").is_dir():
        return folder / "merged"
    raise UserError("model", "holds adapters alone", f"neoxkit merge {folder.name}")


def answer(model: Path, names: Names) -> str:
    """What a model folder answers when it is asked as its card says: by transformers' pipeline, in
    a fresh process that has neither the kit nor a network; refused where it doesn't."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", model_card.usage(str(model), names)],
        capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE},
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no word"])[-1]
        what = f"does not answer through a plain pipeline ({shorten(why)})"
        raise UserError(paths.short(model), what, "train it anew, or report this")
    return done.stdout.strip()


def share(run: str, hub_model_id: str = "") -> views.View:
    """Show that a run's model answers by itself; push it to the hub if a repository is named.

    Nothing leaves this machine without that name. The repository is made if it is not there, and
    is private until its owner opens it.
    """
    folder = paths.run(run)
    names = Names.of(finished_facts(folder))
    if not hub_model_id and lora.base_of(folder / "model"):
        said = f"adapters alone: neoxkit merge {run} makes a model that answers by itself"
        return views.sentences([said])
    model = whole_model(folder)
    asked = f"asked {model_card.QUESTION!r} by a plain pipeline"
    lines = [f"{asked}, {paths.short(model)} says: {answer(model, names)!r}"]
    lines.append(
        f"pushed to {push(model, hub_model_id)}" if hub_model_id else "not pushed anywhere"
    )
    return views.sentences(lines)


def push(model: Path, hub_model_id: str) -> str:
    """Upload a model folder into a private repository of the hub; its address."""
    from httpx import HTTPError  # what huggingface_hub asks the network with
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.create_repo(hub_model_id, private=True, exist_ok=True)
        hub.upload_folder(folder_path=model, repo_id=hub_model_id)
    except (HfHubHTTPError, LocalTokenNotFoundError, HTTPError, OSError, ValueError) as fault:
        what = f"{hub_model_id} can't be pushed to ({shorten(str(fault), 70)})"
        raise UserError("hub_model_id", what, "hf auth login, and check the name") from fault
    return f"{hub.endpoint}/{hub_model_id}"
