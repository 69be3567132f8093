"""Revisions of a model on the hub, from a made cache: loaded, told apart, and refused by name."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from made_cache import Cache, model_files
from safetensors.torch import load

from neoxkit.cli import main
from neoxkit.errors import UserError
from neoxkit.models import hub, loading, lora, model_names

PLACE = "EleutherAI/pythia-9m"
PART = b"weights "


@pytest.fixture
def cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path / "hub", monkeypatch)


def shards(*contents: bytes) -> dict[str, bytes]:
    """Return made-up shards with their index."""
    names = [f"model-{i:05}-of-{len(contents):05}.safetensors" for i in range(1, len(contents) + 1)]
    listed = ", ".join(f'"{name}": "{name}"' for name in names)
    index = {
        "model.safetensors.index.json": f'{{"metadata": {{}}, "weight_map": {{{listed}}}}}'.encode()
    }
    return index | dict(zip(names, contents, strict=True))


def test_a_revision_is_loaded_and_not_main(cache: Cache) -> None:
    """Weights, configuration and tokenizer are those of the revision, by its name or commit."""
    cache.add(PLACE, "main", model_files(143))
    later = model_files(3)
    later["config.json"] = later["config.json"].replace(b"2048", b"512")
    commit = cache.add(PLACE, "step3000", later)
    for revision in ("step3000", commit):
        name = model_names.at("pythia-9m", revision)
        assert model_names.pinned(name) == f"{PLACE}@{commit}"
        loading.check_base(name)
        loading.load_tokenizer(name)
        model = loading.load_model(name)
        assert model.config.max_position_embeddings == 512
        assert model.gpt_neox.embed_in.weight.equal(
            load(later["model.safetensors"])["gpt_neox.embed_in.weight"]
        )
        assert loading.without_weights(name).config.max_position_embeddings == 512
        assert loading.random_model(name, 1).config.max_position_embeddings == 512
        assert loading.files(name).name == commit
    assert loading.load_model(PLACE).config.max_position_embeddings == 2048


def test_a_branch_that_has_moved_is_loaded_at_its_commit(cache: Cache) -> None:
    old = cache.add(PLACE, "main", model_files(1))
    name = model_names.pinned(PLACE)
    new = cache.add(PLACE, "main", model_files(2))
    assert loading.files(name).name == old != new
    assert model_names.pinned(PLACE) == name  # asked once in a process


def test_adapters_find_their_base_at_its_commit(cache: Cache, tmp_path: Path) -> None:
    commit = cache.add(PLACE, "step3000", model_files(3))
    cache.add(PLACE, "main", model_files(143))
    adapted = lora.add(loading.load_model(f"{PLACE}@{commit}"), 2, PLACE, False, commit)
    adapted.save_pretrained(tmp_path / "adapters", save_embedding_layers=False)
    assert lora.base_of(tmp_path / "adapters") == f"{PLACE}@{commit}"
    again: Any = loading.load_model(str(tmp_path / "adapters"))
    wanted = loading.load_model(f"{PLACE}@step3000").gpt_neox.embed_in.weight
    assert again.get_input_embeddings().weight.equal(wanted)


def test_50_of_50_equal_revisions_are_found_and_0_of_50_others(cache: Cache) -> None:
    """Half are one file, half three shards; the others differ in one file. No weight is read."""
    planted, others = {}, []
    for i in range(50):
        parts = [PART + bytes([i, j]) for j in range(3)]
        last = [*parts[:2], PART + bytes([i, 9])]
        same, differs = (shards(*of) for of in (parts, last))
        if i % 2:
            same, differs = ({"model.safetensors": b"".join(of)} for of in (parts, last))
        cache.add(PLACE, f"final{i}", same)
        readme = {"README.md": bytes([i])}
        planted[cache.add(PLACE, f"step{i}", same | readme)] = [f"{PLACE}@final{i}"]
        partly = dict(list(same.items())[:3]) | readme if i % 2 == 0 else readme
        cache.add("EleutherAI/pythia-8m", f"step{i}", partly)  # two shards of three are equal
        others.append(cache.add(PLACE, f"other{i}", differs | {"README.md": b"other"}))
    for blob in cache.folder.glob("*/blobs/*"):
        if blob.read_bytes().startswith(PART):
            blob.write_bytes(b"")
    assert {commit: hub.same_weights(PLACE, commit) for commit in planted} == planted
    found = [hub.same_weights(PLACE, commit) for commit in others]
    assert sum(map(bool, found)) == 0, found


def test_another_revision_with_the_same_weights_is_named_in_a_sentence(cache: Cache) -> None:
    for revision, step in (("main", 143), ("step1", 1), ("step2", 143), ("step3", 143)):
        readme = {"README.md": revision.encode()}
        cache.add(PLACE, revision, model_files(step) | readme)
    (said,) = model_names.same_weights(f"{PLACE}@step2")
    both = f"{PLACE}@step2 has the weights of {PLACE}@main (and 1 more), byte for byte"
    assert said == both
    assert model_names.same_weights(f"{PLACE}@step1") == model_names.same_weights("tiny") == []


def test_revisions_whose_weights_have_no_known_hash_are_not_called_equal(cache: Cache) -> None:
    """One has a pickle alone; a cache without links does not name files by their hashes."""
    for revision in ("step1", "step2"):
        commit = cache.add(PLACE, revision, {"pytorch_model.bin": PART, "README.md": PART})
        assert hub.same_weights(PLACE, commit) == []
    for revision in ("step3", "step4"):
        commit = cache.add(PLACE, revision, model_files() | {"README.md": revision.encode()})
        file = hub.snapshot(PLACE, commit) / "model.safetensors"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        assert hub.same_weights(PLACE, commit) == []


def test_a_commit_of_two_branches_is_not_another_revision(cache: Cache) -> None:
    commit = cache.add(PLACE, "main", model_files())
    (cache.folder / "models--EleutherAI--pythia-9m" / "refs" / "step143000").write_text(commit)
    assert model_names.same_weights(f"{PLACE}@step143000") == []
    assert hub.known_as(PLACE, commit) == "main"


def refused(name: str, what: Callable[[str], Any] = loading.check_base) -> str:
    with pytest.raises(UserError) as refused:
        what(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_revision_that_is_not_here_names_those_that_are(cache: Cache) -> None:
    for revision in ("step1000", "main", "step512", "step8", "refs/pr/1"):
        cache.add(PLACE, revision, model_files())
    cache.add(PLACE, "step4", {"config.json": model_files()["config.json"]})
    (cache.folder / "models--EleutherAI--pythia-9m" / "refs" / "step2").write_text("0" * 40)
    here = "unset it, or use a revision that is here: main, refs/pr/1, step8 and 2 more"
    cause = "is not in the cache, and HF_HUB_OFFLINE is set"
    said = f"revision: {PLACE}@step3000 {cause} -- {here}"
    assert refused("pythia-9m@step3000", model_names.pinned) == said
    assert refused("pythia-9m@step3000", loading.load_tokenizer) == said
    assert refused("pythia-9m@step2", loading.without_weights).startswith(
        f"revision: {PLACE}@step2 {cause}"
    )
    assert refused(f"{PLACE}@step4") == f"revision: a part of {PLACE}@step4 {cause} -- {here}"
    other = refused("EleutherAI/pythia-8m@step1", model_names.pinned)
    assert other.endswith(f"{cause} -- unset it, or give a folder")


def test_a_cache_without_a_revision_is_told_from_an_unreachable_hub(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(HfApi, "__init__", to_nowhere)
    cache.add(PLACE, "step8", model_files())
    said = refused(f"{PLACE}@step3000", model_names.pinned)
    assert "is not in the cache, and the hub can't be reached -- connect to the network" in said
    assert said.endswith(", or use a revision that is here: step8")
    assert model_names.pinned(f"{PLACE}@step8")


def to_nowhere(api: HfApi) -> None:
    """Make a client of a hub that no one serves."""
    api.endpoint, api.token, api.headers = "http://127.0.0.1:9", None, None
    api.library_name = api.library_version = api.user_agent = None


def test_a_revision_that_the_hub_does_not_have_is_refused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: Any, **__: Any) -> None:
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(HfApi, "resolve_revision", answer)
    said = refused("pythia-9m@step30001", model_names.pinned)
    assert (
        said == f"revision: {PLACE} has no revision step30001 on the hub -- see its branches there"
    )


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("tiny", "step1", "revision: tiny is on this machine: only models on the hub have rev"),
        ("data/models/tiny", "main", "revision: data/models/tiny is on this machine: only models"),
        ("a/b@c", "", "model_name_or_path: got 'a/b@c' -- give a/b alone, and set revision to c"),
    ],
)
def test_a_revision_is_given_apart_and_only_of_the_hub(
    home: Path, name: str, revision: str, said: str
) -> None:
    assert refused(name, lambda name: model_names.at(name, revision)).startswith(said)


def pickled(files: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    import torch

    torch.save(load(files.pop("model.safetensors")), tmp_path / "pickle")
    return files | {"pytorch_model.bin": (tmp_path / "pickle").read_bytes()}


def test_a_revision_with_a_pickle_alone_is_refused_and_its_remedy_helps(
    cache: Cache, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache.add(PLACE, "main", model_files(143))
    cache.add(PLACE, "step1", pickled(model_files(1), tmp_path))
    said = refused("pythia-9m@step1")
    assert said == (
        f"model_name_or_path: {PLACE}@step1 has its weights in pytorch_model.bin, which could run "
        f"code when it is read -- neoxkit convert {PLACE}@step1"
    )
    assert main.main(said.partition(" -- neoxkit ")[2].split()) == 0
    made = "data/models/EleutherAI-pythia-9m-step1-converted"
    said = capsys.readouterr().out
    assert said == f"set model_name_or_path to {made}, and leave revision out\n"
    wanted = load(model_files(1)["model.safetensors"])["gpt_neox.embed_in.weight"]
    assert loading.load_model(made).gpt_neox.embed_in.weight.equal(wanted)


def on_the_hub(patch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Let the hub answer with these files and hashes."""
    held = [
        SimpleNamespace(rfilename=name, lfs=SimpleNamespace(sha256=sha256), blob_id=None)
        for name, sha256 in files.items()
    ]
    patch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=held))


def test_the_hub_is_asked_for_weights_that_are_not_here_yet(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are downloaded, a pickle is refused, and equal weights are named."""
    commit = cache.add(PLACE, "main", model_files(143))
    config = {"config.json": model_files()["config.json"]}
    names = [""]
    for i in range(1, 5):
        cache.add(PLACE, f"step{i}", config | {"README.md": bytes([i])})
        names.append(model_names.pinned(f"{PLACE}@step{i}"))
    hashes = hub.file_hashes(PLACE, commit)
    on_the_hub(monkeypatch, hashes)
    loading.check_base(names[1])
    assert f"has the weights of {PLACE}@main" in model_names.same_weights(names[1])[0]
    on_the_hub(monkeypatch, {"model.safetensors": "another"})
    assert model_names.same_weights(names[2]) == []
    on_the_hub(monkeypatch, {"pytorch_model-00001-of-00002.bin": "x", "README.md": "y"})
    assert refused(names[3]).endswith(f" -- neoxkit convert {PLACE}@step3")
    on_the_hub(monkeypatch, {"README.md": "y"})
    assert f"{PLACE}@step4 has no model.safetensors on the hub" in refused(names[4])


def test_weights_in_the_cache_that_are_cut_short_are_refused(cache: Cache) -> None:
    files = model_files()
    cache.add(PLACE, "step1", files | {"model.safetensors": files["model.safetensors"][:-9]})
    said = refused(f"{PLACE}@step1")
    assert f"model.safetensors of {PLACE}@step1 is cut short or damaged" in said
