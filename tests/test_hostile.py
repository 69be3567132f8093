"""Files from elsewhere are data: none of their code runs, and nothing is written outside."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from conftest import REPOSITORY
from crashes import SHORT, Crashes
from zygote import job

from neoxkit import paths
from neoxkit.errors import UserError
from neoxkit.models import loading
from neoxkit.runs import checkpoints
from neoxkit.runs.folder import FINISHED, LOG, state_of
from neoxkit.settings import EvaluateSettings, TokenizeSettings, TrainSettings
from neoxkit.training import universal


class Evil:
    """An object that leaves a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def test_the_canary_sings_where_pickles_are_allowed(tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    torch.save(Evil(tmp_path / "canary"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def stopped(crashes: Crashes) -> Path:
    """Make a run that was ended after a checkpoint at step 4."""
    settings = crashes.settings((1, 2), **SHORT)
    assert not any(crashes.zygote.run(job(settings)))
    folder = paths.run(settings.run)
    for name in (FINISHED, "checkpoint-6"):
        path = folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    return folder


def poisoned(stopped: Path, name: str, canary: Path) -> Path:
    """Copy a run; replace a file of its checkpoint with a stranger's pickle, and seal it."""
    folder = stopped.with_name(f"poisoned-{canary.parent.name}")
    shutil.copytree(stopped, folder)
    (file,) = (folder / "checkpoint-4").rglob(name)
    torch.save(Evil(canary), file)
    manifest = checkpoints.manifest(folder / "checkpoint-4")
    manifest.pop("files")
    checkpoints.seal(folder / "checkpoint-4", **manifest)
    return folder


@pytest.mark.parametrize(
    "name",
    ["rng_state.pth", "scheduler.pt", "mp_rank_00_model_states.pt",
     "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
)  # fmt: skip
def test_a_strangers_pickle_in_a_checkpoint_does_not_run(
    crashes: Crashes,
    stopped: Path,
    tmp_path: Path,
    name: str,
) -> None:
    canary = tmp_path / "canary"
    folder = poisoned(stopped, name, canary)
    settings = crashes.settings((1, 2), **SHORT).replace(run=folder.name)
    codes = crashes.zygote.run(job(settings))
    assert not canary.exists() and any(codes) and state_of(folder) != "finished"
    assert "eights only load failed" in (folder / LOG).read_text()


@pytest.mark.process
def test_a_strangers_pickle_does_not_run_in_a_conversion_either(
    stopped: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    folder = poisoned(stopped, "zero_pp_rank_0_mp_rank_00_optim_states.pt", canary)
    with pytest.raises(UserError, match="checkpoint-4 can't be converted"):
        universal.convert(folder / "checkpoint-4")
    assert not canary.exists()


def test_a_model_of_pickles_alone_is_refused(home: Path, tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", home / "data" / "models" / "pickled"
    shutil.copytree(home / "data" / "models" / "tiny", folder)
    (folder / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": Evil(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"which could run code .* -- neoxkit convert "):
        loading.load_model(str(folder))
    assert not canary.exists()


def test_transformers_itself_is_kept_from_pickles(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kit's own look at the files, which refuses them first."""
    canary, folder = tmp_path / "canary", home / "data" / "models" / "unseen"
    shutil.copytree(home / "data" / "models" / "tiny", folder)
    (folder / "model.safetensors").unlink()
    torch.save({"gpt_neox.embed_in.weight": Evil(canary)}, folder / "pytorch_model.bin")
    monkeypatch.setattr(loading, "check_weights", lambda _: None)
    with pytest.raises(UserError, match=r"the model in data/models/unseen can't be loaded"):
        loading.load_model(str(folder))
    assert not canary.exists()


def remote_code(folder: Path, canary: Path) -> None:
    """Write code named by a config, as models with their own code do."""
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import GPTNeoXConfig as EvilConfig\n"
        "from transformers import GPTNeoXForCausalLM as EvilModel\n"
        "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    )


@pytest.mark.parametrize(
    ("file", "names", "load"),
    [
        ("config.json", '"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"',
         loading.load_model),
        ("tokenizer_config.json", '"AutoTokenizer": [null, "evil.EvilTokenizer"]',
         loading.load_tokenizer),
    ],
)  # fmt: skip
def test_code_that_a_model_brings_along_does_not_run(
    home: Path, tmp_path: Path, file: str, names: str, load: Callable[[str], object]
) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "model"
    shutil.copytree(home / "data" / "models" / "tiny", folder)
    remote_code(folder, canary)
    path = folder / file
    path.write_text(re.sub(r"^\{", f'{{"auto_map": {{{names}}},', path.read_text(), count=1))
    try:
        load(str(folder))  # the library's own class, or a refusal
    except UserError as refused:
        assert "remote" in str(refused) or "can't be loaded" in str(refused)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "..", ".", "a\\b", "a\0b"])
@pytest.mark.parametrize(
    "named",
    [
        lambda name: TokenizeSettings(dataset=name),
        lambda name: TrainSettings(run=name),
        lambda name: TrainSettings(dataset=name),
        lambda name: EvaluateSettings(run=name),
    ],
)
def test_names_that_climb_out_are_refused(name: str, named: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=r"^(run|dataset): "):
        named(name)


@pytest.mark.process
def test_jupyterlab_listens_only_on_this_machine_and_asks_for_its_token() -> None:
    """`make lab` without its setup: make prints the options, for root and for others."""
    command = ["make", "-n", "--no-print-directory", "lab"]  # even as part of make test
    said = subprocess.check_output(command, cwd=REPOSITORY, text=True)
    assert ("gets --allow-root" in said) == (os.getuid() == 0)
    line = said.splitlines()[-1]
    options = re.fullmatch(r"\.venv/bin/jupyter lab(.*)", line)[1].split()
    assert "--ip=127.0.0.1" in options
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options, "--no-browser",
         f"--port={port}", "--port-retries=0"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (found := listening(lab.pid, port)):
            assert lab.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        assert found == {"127.0.0.1"}
        for path in ("api/contents", "api/kernels"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10)
            assert refused.value.code == 403
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.wait(timeout=30)


def listening(pid: int, port: int) -> set[str]:
    """Return the addresses on which a process accepts connections to a port."""
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return {c.laddr.ip for c in connections if c.status == "LISTEN" and c.laddr.port == port}
