"""Memory: the parts computed by hand, and (marked slow) whole trainings against their peaks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, train_to_the_end

from neoxkit import files
from neoxkit.launch import machines
from neoxkit.machine import GIB
from neoxkit.models import shape as model_shape
from neoxkit.models.memory import Job
from neoxkit.runs.events import History
from neoxkit.settings import TrainSettings

ZERO2 = {"stage": 2, "reduce_bucket_size": 20_000_000, "allgather_bucket_size": 200_000_000}


def of(name: str, zero: dict = ZERO2, lora_rank: int = 0) -> Job:
    """Return a training of a model on one GPU without checkpointing."""
    one = machines.job_of(machines.SHAPES[name], zero, 1, lora_rank)
    return replace(one, checkpointing=False)


def test_the_shapes_have_as_many_weights_as_their_names_say() -> None:
    """Pythia counts its embeddings: 70 426 624 in pythia-70m, 20.55 billion in GPT-NeoX-20B."""
    counted = {
        name: machines.num_parameters(*shape) / 1e6 for name, shape in machines.SHAPES.items()
    }
    assert counted["pythia-70m"] == 70.426624
    assert counted["pythia-1.4b"] == pytest.approx(1414.6, abs=0.1)
    assert counted["gpt-neox-20b"] == pytest.approx(20554.6, abs=0.1)


def test_each_part_follows_the_formula() -> None:
    """Use a model of one layer on two ranks, in fp32 under ZeRO 2."""
    job = machines.job_of((10, 1, 100), ZERO2, 2)
    job = replace(job, half=False, on_gpu=False, checkpointing=False)
    found, num = job.rank_gib(tokens=7, trained=3), job.num_parameters
    assert num == 2 * 1000 + 1200 + 130 + 20
    assert {name: round(gib * 2**30) for name, gib in found.items() if name != "libraries"} == {
        "weights": 4 * num,
        "gradients": 2 * num,
        "optimizer": 6 * num,
        "step": 6 * num,
        "gathered": 0,
        "buffers": 4 * 3 * num,  # fewer weights than a bucket has room for
        "activations": 4 * 7 * 10 * 17,
        "logits": 4 * 3 * 100,
    }


def test_how_much_each_remedy_saves() -> None:
    plain = of("pythia-1b").rank_gib(8_000, 4_000)
    checkpointing = replace(of("pythia-1b"), checkpointing=True).rank_gib(8_000, 4_000)
    offload = ZERO2 | {"offload_optimizer": {"device": "cpu"}}
    offloaded = of("pythia-1b", offload).rank_gib(8_000, 4_000)
    adapters = of("pythia-1b", lora_rank=8).rank_gib(8_000, 4_000)
    assert checkpointing["activations"] == plain["activations"] * (16 + 17) / (16 * 17)
    assert (
        (offloaded["optimizer"], offloaded["step"]) == (0, 0) < (plain["optimizer"], plain["step"])
    )
    assert adapters["weights"] == plain["weights"] > 50 * adapters["gradients"]


def test_adapters_are_counted_as_they_are_built(home: Path) -> None:
    """Count them from the widths alone, and from the modules of a model without weights."""
    counted = Job.of(
        model_shape.look_up("tiny"), 4, num_ranks=1, zero={}, half=True, on_gpu=True,
        checkpointing=True,
    )  # fmt: skip
    shape = counted.width, counted.layers, counted.vocabulary
    assert machines.job_of(shape, {}, 1, lora_rank=4) == counted
    assert counted.num_trained < counted.num_parameters


def test_the_network_carries_weights_and_gradients_into_each_node() -> None:
    shape = (10, 1, 100)
    weights = machines.num_parameters(*shape) * 2 / GIB
    for zero, micro_batches, times in ((ZERO2, 1, 2), (ZERO2, 3, 4), ({"stage": 3}, 2, 6)):
        for num_nodes, elsewhere in ((1, 0), (2, 1 / 2), (4, 3 / 4)):
            job = machines.job_of(shape, zero, 8, num_nodes=num_nodes)
            assert job.network_gib(micro_batches) == pytest.approx(times * weights * elsewhere)


def test_the_table_in_the_readme_agrees_with_the_planner() -> None:
    text = (REPOSITORY / "ds_configs" / "README.md").read_text(encoding="utf-8")
    header = ("model", *map(str, machines.MACHINES))
    for row in (header, *machines.choices(machines.configurations())):
        assert f"| {' | '.join(row)} |" in text


def test_the_host_holds_the_weights_each_rank_loads_or_the_offloaded_parts() -> None:
    """With Pythia-1b each of 8 ranks loads 2 bytes per weight; one GPU offloads 14."""
    rows = {row[0]: row[1:] for row in machines.choices(machines.configurations())}
    num = machines.num_parameters(*machines.SHAPES["pythia-1b"]) / 2**30
    assert rows["pythia-1b"][0].endswith(f", host {14 * num:,.0f}")
    assert rows["pythia-1b"][4].endswith(f", host {8 * 2 * num:,.0f}")


def test_a_configuration_with_room_is_preferred_to_an_earlier_one_without() -> None:
    tight = dict.fromkeys(("first", "second"), ZERO2) | {"third": ZERO2 | {"stage": 3}}
    rows = {row[0]: row[1:] for row in machines.choices(tight)}
    assert rows["pythia-70m"][0].startswith("first ")
    assert rows["pythia-6.9b"][4].startswith("third ")  # 8 x 24 GiB: ZeRO 2 has no room at all
    assert rows["pythia-12b"][0] == "no"


@pytest.mark.parametrize("gib", [6, 24, 80])
def test_the_largest_micro_batch_fits_and_one_more_does_not(gib: int) -> None:
    job = of("pythia-160m")
    num = job.largest_micro_batch(280, 140, gib)

    def taken(n: int) -> float:
        return sum(job.rank_gib(280 * n, 140 * n).values())

    assert num and taken(num) <= gib < taken(num + 1)


def test_a_model_that_does_not_fit_has_no_micro_batch() -> None:
    assert of("pythia-12b").largest_micro_batch(280, 140, 24) == 0


# width, layers, conversations per micro-batch, checkpointing, ZeRO stage, ranks
MEASURED = [
    (256, 6, 32, False, 2, 1),
    (512, 6, 16, False, 2, 1),
    (512, 6, 64, False, 2, 1),
    (512, 6, 32, False, 2, 2),
    (512, 6, 32, False, 3, 1),
    (768, 12, 8, False, 2, 1),
    (1024, 4, 32, True, 2, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "layers", "size", "checkpointing", "stage", "ranks"), MEASURED)
def test_a_training_takes_the_predicted_memory(
    home: Path, width: int, layers: int, size: int, checkpointing: bool, stage: int, ranks: int
) -> None:
    """Predict a rank's peak resident memory within 20 %, with Pythia's vocabulary."""
    folder = home / "data" / "models" / f"shape-{width}-{layers}"
    if not folder.exists():
        shutil.copytree(home / "data" / "models" / "tiny", folder)
        (folder / "model.safetensors").unlink()
        changes = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": 50304,
                   "intermediate_size": 4 * width, "num_attention_heads": width // 64}  # fmt: skip
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
    run = train_to_the_end(
        TrainSettings(
            run=f"fit-{width}-{layers}-{size}-{checkpointing}-{stage}-{ranks}", dataset="small",
            model_name_or_path=f"data/models/{folder.name}", from_scratch=True, num_ranks=ranks,
            per_device_train_batch_size=size, per_device_eval_batch_size=4, max_steps=6,
            gradient_checkpointing=checkpointing, ds_config=f"zero{stage}", logging_steps=1,
            save_steps=1000, eval_steps=1000, num_replies=0,
        )
    )  # fmt: skip
    train = History.of_run(run).train
    tokens = [round(e["tokens"] / (1 - e["padding_share"]) / ranks) for e in train]
    largest = max(range(len(train)), key=tokens.__getitem__)
    zero = files.read_json(home / "ds_configs" / f"zero{stage}.json")["zero_optimization"]
    job = machines.job_of((width, layers, 50304), zero, ranks)
    job = replace(job, half=False, on_gpu=False, checkpointing=checkpointing)
    parts = job.rank_gib(tokens[largest], train[largest]["trained_tokens"] // ranks)
    predicted = sum(parts.values())
    shutil.rmtree(run)  # a checkpoint of these is large
    assert predicted == pytest.approx(max(e["memory_gib"] for e in train), rel=0.2)
