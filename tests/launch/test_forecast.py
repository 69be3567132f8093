"""Forecasts: the memory that settings need and the machine has, corrected by the last run."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from neoxkit import files, machine
from neoxkit.cli import main as cli
from neoxkit.errors import UserError
from neoxkit.launch import command, forecast, machines, measured, nodes
from neoxkit.models import loading, memory, shape
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings

LENGTHS, TRAINED = [50, 70, 200], [20, 40, 100]  # means of the kept ones: 60 and 30


@pytest.fixture(autouse=True)
def ample(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up a machine with 10 GiB on which nothing has run yet."""
    monkeypatch.setattr(measured, "last_run", lambda *_: None)
    monkeypatch.setattr(machine, "available_gib", lambda: 10.0)


def of(
    there: machines.Machine | None = None,
    last: measured.Measured | None = None,
    **changes: object,
) -> forecast.Forecast:
    settings = TrainSettings(**changes)
    place = nodes.elsewhere(settings, there) if there else nodes.of(settings)
    limit = settings.block_size or 100
    rows = forecast.counts(LENGTHS, TRAINED, limit)
    return forecast.forecast(settings, "tiny", rows, limit, place, last)


def run(folder: Path, memory_gib: float) -> measured.Measured:
    """Write a run of one CPU rank whose micro-batches had 160 tokens, half of them trained."""
    return measured.Measured(folder, 1, False, 1.0, memory_gib, 160.0, 80.0)


def formulas(tokens: float, trained: float, num_ranks: int = 1) -> dict[str, float]:
    config = files.read_json(forecast.paths.root() / "ds_configs" / "zero2.json")
    job = memory.Job.of(
        shape.look_up("tiny"), 0, num_ranks=num_ranks, zero=config["zero_optimization"],
        half=False, on_gpu=False, checkpointing=False,
    )  # fmt: skip
    return job.rank_gib(tokens, trained)


def test_the_parts_are_those_of_the_actual_micro_batch() -> None:
    assert of(per_device_train_batch_size=2).parts == formulas(2 * 60, 2 * 30)
    assert of(per_device_train_batch_size=9).parts == formulas(2 * 60, 2 * 30)  # all there are
    assert of(per_device_train_batch_size=2, layout="padded").parts == formulas(2 * 100, 2 * 30)
    assert of(per_device_train_batch_size=1, block_size=60).parts == formulas(50, 20)
    two = of(per_device_train_batch_size=1, num_ranks=2)
    assert two.parts == formulas(60, 30, num_ranks=2) and two.device_gib == 5.0


def test_settings_that_save_memory_lower_the_forecast() -> None:
    plain = of()
    assert of(gradient_checkpointing=True).gib < plain.gib
    assert of(lora_rank=2).parts["optimizer"] < plain.parts["optimizer"]
    assert of(precision="bf16").parts["weights"] == plain.parts["weights"] / 2


def test_a_training_that_does_not_fit_is_reported_with_the_batch_that_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = of(per_device_train_batch_size=2)
    assert not fits.misfit and 2 < fits.largest < 10**6
    assert fits.rows()[0][1].startswith("about") and "10 available" in fits.rows()[0][1]
    monkeypatch.setattr(machine, "available_gib", lambda: 0.1)
    small = of(per_device_train_batch_size=2)
    assert small.misfit and small.largest == 0
    assert small.rows()[0][1].startswith("DOES NOT FIT: about")
    assert dict(small.rows())["largest micro-batch"] == "about 0 conversations"


def test_trainings_with_the_same_need_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rate needs the same memory; three at once get a third each."""
    taken = of(per_device_train_batch_size=1).gib
    settings = [
        TrainSettings(run=f"{name}", dataset="small", learning_rate=rate, block_size=size)
        for name, rate, size in (("a", 1e-3, 0), ("b", 2e-3, 0), ("c", 1e-3, 40))
    ]
    assert forecast.doubts(settings) == []
    monkeypatch.setattr(machine, "available_gib", lambda: 2 * taken)
    told = forecast.doubts(settings, at_once=3)
    assert [line.partition(", memory per rank: DOES NOT FIT: about ")[0] for line in told] == [
        "a",
        "c",
    ]
    assert forecast.doubts([], at_once=3) == []


def test_unknown_memory_refuses_nothing() -> None:
    unknown = forecast.Forecast({"weights": 100.0}, None, None)
    assert not unknown.misfit and dict(unknown.rows())["largest micro-batch"] == "unknown"


def test_a_forecast_for_another_machine_depends_only_on_its_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs in bf16; a run on this machine says nothing about them."""
    monkeypatch.setattr(measured, "last_run", lambda *_: pytest.fail("was measured here"))
    there = machines.machine("2x24")
    assert forecast.on_dataset(TrainSettings(dataset="small"), there).run == ""
    found = of(machines.machine("2x24"), per_device_train_batch_size=1, ds_config="zero2_offload")
    num = shape.look_up("tiny").num_parameters
    assert found.device_gib == 24.0 and not found.misfit
    assert found.parts["weights"] == 2 * num / 2**30 and found.parts["optimizer"] == 0
    assert found.host == {"loading": 2 * 2 * num / 2**30, "offloading": 14 * num / 2**30}
    row = dict(found.rows())["memory of the host"]
    assert row.startswith("about ") and "available" not in row
    assert of(machines.machine("1x24"), num_ranks=1).parts["weights"] == 2 * num / 2**30
    with pytest.raises(UserError, match="num_ranks: got 3, 2 x 24 GiB has 2 GPUs -- lower it"):
        of(machines.machine("2x24"), num_ranks=3)


def test_auto_on_a_cpu_with_bf16_is_fp32_for_a_narrow_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As training.precision settles it."""
    place = nodes.Place(1, False, "bf16", None, None)
    settings = TrainSettings(dataset="small")
    assert not forecast.job_of(settings, "tiny", place).half
    assert forecast.job_of(settings.replace(precision="bf16"), "tiny", place).half
    monkeypatch.setattr(loading, "NARROWEST", 128)  # the built-in model's width
    assert forecast.job_of(settings, "tiny", place).half


def test_a_forecast_for_nodes_counts_the_memory_of_each_host() -> None:
    four = of(machines.machine("4x8x80"), per_device_train_batch_size=1)
    one = of(machines.machine("1x32x80"), per_device_train_batch_size=1)
    assert four.parts == one.parts and four.device_gib == 80.0
    assert four.host["loading"] == one.host["loading"] / 4
    with pytest.raises(UserError, match="num_ranks: got 33, 4 x 8 x 80 GiB has 32 GPUs"):
        of(machines.machine("4x8x80"), num_ranks=33)


@pytest.mark.parametrize("text", ["24", "2*24", "0x24", "2x", "2x24GB", "-1x24", "2x0", "1x2x3x4"])
def test_text_that_names_no_machine_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--machine: got .* -- write GPUs x GiB, like 4x24, or"):
        machines.machine(text)


def test_a_training_too_large_for_the_host_does_not_fit() -> None:
    found = forecast.Forecast({"weights": 1.0}, 24.0, 9, host={"loading": 5.0}, host_gib=4.0)
    assert found.misfit
    assert dict(found.rows())["memory of the host"] == (
        "DOES NOT FIT: about 5 GiB (loading 5), 4 available"
    )
    assert not (replace(found, host_gib=6.0).misfit or replace(found, host_gib=None).misfit)


class Config:
    """A stand-in for transformers' view of a DeepSpeed configuration."""

    def __init__(self, settings: TrainSettings) -> None:
        self.config = files.read_json(forecast.paths.ds_config("ds_config", settings.ds_config))

    def is_zero3(self) -> bool:
        return self.config["zero_optimization"]["stage"] == 3


def job_of_a_rank(
    settings: TrainSettings, place: nodes.Place, monkeypatch: pytest.MonkeyPatch
) -> memory.Job:
    """Return the job that a rank checks before loading; it must be the same in each check."""
    from transformers.integrations import deepspeed

    from neoxkit.training import base_model

    jobs: list[memory.Job] = []
    for name, at in (("check_disk", 1), ("check_host", 0), ("check_gpu", 0)):
        monkeypatch.setattr(memory, name, lambda *given, at=at: jobs.append(given[at]))
    for name in ("check_base", "check_weights"):  # some bases here are a config.json alone
        monkeypatch.setattr(loading, name, lambda _: None)
    gpu = SimpleNamespace(total_memory=0)
    monkeypatch.setattr(base_model.torch.cuda, "get_device_properties", lambda _: gpu)
    precision = place.precision if settings.precision == "auto" else settings.precision
    config = Config(settings)
    kit = settings.replace(precision=precision)
    args = SimpleNamespace(
        hf_deepspeed_config=config, deepspeed=True, world_size=place.num_ranks,
        device=SimpleNamespace(type="cuda" if place.on_gpu else "cpu"), save_total_limit=2,
        activation_checkpointing=settings.gradient_checkpointing,
    )  # fmt: skip
    own = SimpleNamespace(**kit.as_dict(), base=kit.model_name_or_path, trial=False)
    parsed = SimpleNamespace(kit=own, training=args, notices=[])
    try:
        base_model.check_needs(parsed, Path())
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert len(jobs) == 2 + place.on_gpu and all(job == jobs[0] for job in jobs)
    return jobs[0]


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.parametrize("ds_config", ["zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_a_refusal_names_the_forecasts_numbers(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ds_config: str,
    lora_rank: int,
    precision: str,
    on_gpu: bool,
) -> None:
    """The checks count what was forecast for the same settings, which does not fit."""
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 50304,
             "intermediate_size": 4096, "num_attention_heads": 16}  # fmt: skip
    config = files.read_json(home / "data" / "models" / "tiny" / "config.json") | shape
    files.write_json(tmp_path / "config.json", config)
    base = str(tmp_path)
    settings = TrainSettings(
        model_name_or_path=base, ds_config=ds_config, lora_rank=lora_rank, precision=precision
    )
    place = nodes.Place(2, on_gpu, "bf16" if on_gpu else "fp32", 0.05, 0.1)
    rows = forecast.counts(LENGTHS, TRAINED, 100)
    found = forecast.forecast(settings, base, rows, 100, place, None)
    with monkeypatch.context() as patch:
        job = job_of_a_rank(settings, place, patch)
    assert job == forecast.job_of(settings, base, place)
    sure = {name: found.parts[name] for name in ("weights", "gradients", "optimizer")}
    monkeypatch.setattr(machine, "available_gib", lambda: 0.1)
    on_host = max(found.host.values(), default=0.0) if on_gpu else 0.0
    with pytest.raises(UserError) as refused:
        memory.check_host(job)
    need = max(on_host or 2 * sum(sure.values()), job.host_gib()["loading"])
    assert f" needs {need:.3g} GiB, 0.1 are free" in str(refused.value)
    if sum(sure.values()) and on_gpu:
        with pytest.raises(UserError) as refused:
            memory.check_gpu(job, 0.05)
        named = ", ".join(f"{name} {gib:.1f}" for name, gib in sure.items())
        assert f"a GPU needs {sum(sure.values()):.1f} GiB ({named}) " in str(refused.value)
    assert "memory per rank: DOES NOT FIT" in found.misfit
    assert ("memory of the host: DOES NOT FIT" in found.misfit) == bool(found.host)


def test_the_disk_is_checked_by_the_forecasts_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three checkpoints (weights twice, optimizer) and the model, all from one rank."""
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    parts, settings = of().parts, TrainSettings()
    with pytest.raises(UserError) as refused:
        memory.check_disk(tmp_path, forecast.job_of(settings, "tiny", nodes.of(settings)), 2)
    need = 3 * (2 * parts["weights"] + parts["optimizer"]) + parts["weights"]
    assert f"3 checkpoints and the model need {need:.3g} GiB" in str(refused.value)


def test_a_cpu_rank_needs_most_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is said of its host: reading the weights never takes more."""
    monkeypatch.setattr(memory, "LIBRARIES_GIB", {False: 0.0})
    small = {"per_device_train_batch_size": 1, "block_size": 60, "gradient_checkpointing": True}
    for more in ({"lora_rank": 1}, {"lora_rank": 1, "ds_config": "zero3"}, {"from_scratch": True}):
        for precision in ("fp32", "bf16"):
            settings = TrainSettings(precision=precision, **small, **more)
            job = forecast.job_of(settings, "tiny", nodes.of(settings))
            found = of(precision=precision, **small, **more)
            assert found.host == {} and found.gib >= job.host_gib()["loading"]


def test_the_last_run_on_this_device_corrects_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run took half as much again as the formulas say for its settings."""
    plain = of()
    settings = TrainSettings(run="corrects", gradient_checkpointing=True, dataset="small")
    folder = forecast.paths.run("corrects")
    folder.mkdir(parents=True)
    files.write_json(folder / ARGUMENTS, command.trainer_arguments(settings))
    then = forecast.job_of(settings, "tiny", nodes.of(settings)).rank_gib(160.0, 80.0)
    took = 1.5 * sum(then.values())
    last = run(folder, took)
    found = of(last=last)
    assert found.correction == pytest.approx(1.5) and found.gib == pytest.approx(1.5 * plain.gib)
    assert found.largest < plain.largest / 1.5
    assert dict(found.rows())["correction"] == "all times 1.50, as measured in run corrects"
    assert of(last=replace(last, on_gpu=True)) == plain
    assert of(last=replace(last, num_ranks=2)) == plain
    monkeypatch.setattr(measured, "last_run", lambda *_: last)
    assert forecast.on_dataset(TrainSettings(dataset="small")).run == "corrects"


def test_a_run_without_the_kits_arguments_corrects_nothing(home: Path) -> None:
    """With them it does, even as a copy with a space in its name."""
    plain = of()
    folder = home / "runs" / "night (copy)"
    last = run(folder, 9.0)
    assert of(last=last) == plain
    folder.mkdir()
    settings = command.trainer_arguments(TrainSettings(run="corrects", dataset="small"))
    files.write_json(folder / ARGUMENTS, settings)
    assert of(last=last).run == "night (copy)" and of(last=last).correction > 1


def test_a_gpus_memory_comes_from_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask it once: it is slow, and a GPU keeps its size."""
    monkeypatch.setenv("PATH", str(tmp_path))
    machine._of_each_gpu.cache_clear()
    assert machine.device_gib(True, 2) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81920\necho 24576\n")
    tool.chmod(0o755)
    assert machine.device_gib(True, 2) == 24.0
    tool.unlink()
    assert machine.device_gib(True, 2) == 24.0
    machine._of_each_gpu.cache_clear()
    assert machine.device_gib(False, 2) == 5.0


def drivers_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Put a driver's tool that prints these lines first on PATH."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    machine._of_each_gpu.cache_clear()


@pytest.mark.parametrize(
    ("visible", "counted"),
    [
        (None, 3), ("", 0), ("0", 1), ("2,0", 2), ("0,1,2", 3), ("0,3,1", 1), ("7", 0), ("1,1", 0),
        ("GPU-8932f937", None), ("0, 1", None), ("-1", None), ("0,-1", None), (" ", None),
    ],
)  # fmt: skip
def test_gpus_are_counted_without_torch_as_torch_counts_them(
    visible: str | None, counted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: only torch knows. Its own rules are those of torch.cuda, asked here too."""
    import torch.cuda

    monkeypatch.setattr(machine, "_built_for", lambda: ("13.0", None))
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if counted is not None:
        assert torch.cuda._device_count_nvml() == counted
    drivers_tool(tmp_path, monkeypatch, "81920", "81920", "81920")
    assert machine._num_gpus_without_torch() == counted


def test_only_torch_counts_where_it_is_built_for_rocm_or_no_tool_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers_tool(tmp_path, monkeypatch, "81920")
    assert machine._num_gpus_without_torch() == 0  # this torch is built for the CPU
    monkeypatch.setattr(machine, "_built_for", lambda: (None, "7.0"))
    assert machine._num_gpus_without_torch() is None
    monkeypatch.setattr(machine, "_built_for", lambda: ("13.0", None))
    assert machine._num_gpus_without_torch() == 1
    (tmp_path / "nvidia-smi").unlink()
    machine._of_each_gpu.cache_clear()
    assert machine._num_gpus_without_torch() is None


@pytest.mark.parametrize(
    ("lines", "said"), [(("8.0", "9.0"), True), (("7.5",), False), (("7.5", "8.0"), "asked")]
)
def test_bf16_is_known_without_torch_where_all_gpus_agree(
    lines: tuple[str, ...], said: bool | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers_tool(tmp_path, monkeypatch, *lines)
    monkeypatch.setattr(machine, "sys", SimpleNamespace(modules={}))  # as before its import
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda emulated: "asked")
    assert machine.gpus_have_bf16() == said


def test_the_command_forecasts_here_and_for_another_machine(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ignore other notebooks' parameters; exit with 1 if the training does not fit."""
    here = ["fit", "-p", "dataset", "small", "-p", "num_questions", "7"]
    assert cli.main(here) == 0
    assert "10 available" in capsys.readouterr().out
    assert cli.main([*here, "--machine", "1x24"]) == 0
    assert "24 available" in capsys.readouterr().out
    monkeypatch.setattr(machine, "available_gib", lambda: 0.1)
    assert cli.main(here) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert cli.main([*here, "--machine", "1x24", "--machine", "2x24"]) == 2
    assert "--machine: got 2 for one training" in capsys.readouterr().err
    assert cli.main([*here, "--lora-rank", "4"]) == 2
    assert "--lora-rank: is for the table, not for one training" in capsys.readouterr().err
    assert cli.main(["fit", "--lora-rank", "-4"]) == 2
    assert "--lora-rank: got -4" in capsys.readouterr().err
    assert cli.main([*here, "-p", "probe_steps", "3", "--machine", "1x24"]) == 2
    assert "probe_steps: run here, not on --machine" in capsys.readouterr().err


def test_the_commands_table_shows_the_machines_that_are_named(
    capsys: pytest.CaptureFixture, home: Path
) -> None:
    assert cli.main(["fit", "--machine", "2x48", "--machine", "1x11"]) == 0
    header, *rows, _ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "model" and "2 x 48 GiB" in header and "1 x 11 GiB" in header
    assert [row.split()[0] for row in rows] == list(machines.SHAPES)


CHANGED = {  # what a rank's memory depends on, besides the dataset and the model
    "lora_rank": 2, "block_size": 60, "layout": "padded", "ds_config": "zero3", "num_ranks": 2,
    "precision": "bf16", "per_device_train_batch_size": 1, "gradient_checkpointing": True,
    "verify_steps": 50,
}  # fmt: skip


ON_NODES = {"launcher": "slurm", "num_nodes": 2, "slurm": {"gpus-per-node": 1}}


def test_memory_depends_on_the_settings_with_that_role_and_on_no_others() -> None:
    named = {*CHANGED, *ON_NODES, "hostfile", "dataset", "model_name_or_path"}
    assert named == {*TrainSettings.with_role("memory")}
    plain = of()
    assert of(**ON_NODES) != plain
    assert [name for name, value in CHANGED.items() if of(**{name: value}) == plain] == []
    others = TrainSettings().as_dict().keys() - {*TrainSettings.with_role("memory")}
    others -= {"learning_rate"}  # may be 1 at most
    numbers = {n: v for n in others if isinstance(v := getattr(TrainSettings(), n), int | float)}
    same = [of(**{n: not v if isinstance(v, bool) else 3 * v + 5}) for n, v in numbers.items()]
    assert len(same) > 15 and all(found == plain for found in same)
