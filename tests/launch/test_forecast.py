"""Forecasts: what the settings need, what the machine has, and the last run's correction."""

from dataclasses import replace
from pathlib import Path

import pytest

from neoxkit import files, machine
from neoxkit.cli import main as cli
from neoxkit.errors import UserError
from neoxkit.launch import command, forecast, machines, measured
from neoxkit.models import loading, memory
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.settings import TrainSettings

MANIFEST = {"model_name_or_path": "tiny", "block_size": 100}
LENGTHS, TRAINED = [50, 70, 200], [20, 40, 100]  # means of the kept ones: 60 and 30


@pytest.fixture(autouse=True)
def ample(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 10 GiB on which nothing has run yet."""
    monkeypatch.setattr(measured, "last_run", lambda *_: None)
    monkeypatch.setattr(machine, "available_gib", lambda: 10.0)


def of(machine: machines.Machine | None = None, **settings: object) -> forecast.Forecast:
    return forecast.forecast(TrainSettings(**settings), MANIFEST, LENGTHS, TRAINED, machine)


def formulas(tokens: float, trained: float, num_ranks: int = 1) -> dict[str, float]:
    config = files.read_json(forecast.paths.root() / "ds_configs" / "zero2.json")
    job = memory.Job.of(
        loading.without_weights("tiny"), 0, num_ranks=num_ranks, zero=config["zero_optimization"],
        half=False, on_gpu=False, checkpointing=False,
    )  # fmt: skip
    return job.rank_gib(tokens, trained)


def test_the_parts_are_those_of_the_micro_batch_that_is_made() -> None:
    assert of(per_device_train_batch_size=2).parts == formulas(2 * 60, 2 * 30)
    assert of(per_device_train_batch_size=9).parts == formulas(2 * 60, 2 * 30)  # all there are
    assert of(per_device_train_batch_size=2, layout="padded").parts == formulas(2 * 100, 2 * 30)
    assert of(per_device_train_batch_size=1, block_size=60).parts == formulas(50, 20)
    two = of(per_device_train_batch_size=1, num_ranks=2)
    assert two.parts == formulas(60, 30, num_ranks=2) and two.device_gib == 5.0


def test_the_settings_that_save_memory_save_some() -> None:
    plain = of()
    assert of(gradient_checkpointing=True).gib < plain.gib
    assert of(lora_rank=2).parts["optimizer"] < plain.parts["optimizer"]
    assert of(precision="bf16").parts["weights"] == plain.parts["weights"] / 2


def test_what_does_not_fit_says_so_and_how_much_would(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = of(per_device_train_batch_size=2)
    assert fits.fits and 2 < fits.largest < 10**6
    assert fits.rows()[0][1].startswith("about") and "10 available" in fits.rows()[0][1]
    monkeypatch.setattr(machine, "available_gib", lambda: 0.1)
    small = of(per_device_train_batch_size=2)
    assert not small.fits and small.largest == 0
    assert small.rows()[0][1].startswith("DOES NOT FIT: about")
    assert dict(small.rows())["largest micro-batch"] == "about 0 conversations"


def test_of_trainings_that_need_the_same_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_where_nobody_says_what_there_is_nothing_is_refused() -> None:
    unknown = forecast.Forecast({"weights": 100.0}, None, None)
    assert unknown.fits and dict(unknown.rows())["largest micro-batch"] == "unknown"


def test_another_machine_is_asked_by_its_gpus_and_nothing_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs in bf16; a run on this machine's CPU says nothing about them."""
    monkeypatch.setattr(forecast, "correction_of", lambda *_: pytest.fail("was measured here"))
    found = of(machines.machine("2x24"), per_device_train_batch_size=1, ds_config="zero2_offload")
    num = loading.without_weights("tiny").num_parameters()
    assert found.device_gib == 24.0 and found.fits
    assert found.parts["weights"] == 2 * num / 2**30 and found.parts["optimizer"] == 0
    assert found.host == {"loading": 2 * 4 * num / 2**30, "offloading": 14 * num / 2**30}
    row = dict(found.rows())["memory of the host"]
    assert row.startswith("about ") and "available" not in row
    assert of(machines.machine("1x24"), num_ranks=1).parts["weights"] == 2 * num / 2**30
    with pytest.raises(UserError, match="num_ranks: got 3, 2 x 24 GiB has 2 GPUs -- lower it"):
        of(machines.machine("2x24"), num_ranks=3)


@pytest.mark.parametrize("text", ["24", "2*24", "0x24", "2x", "2x24GB", "-1x24", "2x0"])
def test_what_is_no_machine_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--machine: got .* -- write GPUs x GiB, like 4x24"):
        machines.machine(text)


def test_what_the_host_can_not_hold_does_not_fit() -> None:
    found = forecast.Forecast({"weights": 1.0}, 24.0, 9, host={"loading": 5.0}, host_gib=4.0)
    assert not found.fits
    assert dict(found.rows())["memory of the host"] == (
        "DOES NOT FIT: about 5 GiB (loading 5), 4 available"
    )
    assert replace(found, host_gib=6.0).fits and replace(found, host_gib=None).fits


def test_the_last_run_of_this_device_corrects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that took half as much again as the formulas say for its settings."""
    plain = of()
    settings = TrainSettings(run="corrects", gradient_checkpointing=True, dataset="small")
    folder = forecast.paths.run("corrects")
    folder.mkdir(parents=True)
    files.write_json(folder / ARGUMENTS, command.trainer_arguments(settings))
    then = forecast.job_of(settings, "tiny", forecast.here(settings)).rank_gib(160.0, 80.0)
    took = 1.5 * sum(then.values())
    last = measured.Measured(folder, False, 1.0, 0.5, took, 16, 160.0, 80.0)
    monkeypatch.setattr(measured, "last_run", lambda *_: last)
    found = of()
    assert found.correction == pytest.approx(1.5) and found.gib == pytest.approx(1.5 * plain.gib)
    assert found.largest < plain.largest / 1.5
    assert "all times 1.50, as measured in run corrects" in found.rows()[1][1]
    monkeypatch.setattr(measured, "last_run", lambda *_: replace(last, on_gpu=True))
    assert of() == plain


def test_a_folder_that_is_no_run_of_the_kits_own_corrects_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy with a space in its name, and a run without settings."""
    plain = of()
    folder = home / "runs" / "night (copy)"
    last = measured.Measured(folder, False, 1.0, 0.5, 9.0, 16, 160.0, 80.0)
    monkeypatch.setattr(measured, "last_run", lambda *_: last)
    assert of() == plain
    folder.mkdir()
    settings = command.trainer_arguments(TrainSettings(run="corrects", dataset="small"))
    files.write_json(folder / ARGUMENTS, settings)
    assert of().measured == "night (copy)" and of().correction > 1


def test_a_gpu_says_its_memory_through_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.device_gib(True, 2) is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81920\necho 24576\n")
    tool.chmod(0o755)
    assert machine.device_gib(True, 2) == 24.0
    assert machine.device_gib(False, 2) == 5.0


def test_the_command_says_it_here_and_elsewhere(
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


def test_the_commands_table_is_of_the_machines_that_are_named(
    capsys: pytest.CaptureFixture, home: Path
) -> None:
    assert cli.main(["fit", "--machine", "2x48", "--machine", "1x11"]) == 0
    header, *rows, _ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "model" and "2 x 48 GiB" in header and "1 x 11 GiB" in header
    assert [row.split()[0] for row in rows] == list(machines.SHAPES)
