"""Each mistake is refused in one line before anything slow starts; odd but valid values pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neoxkit import paths, settings
from neoxkit.cli import main as cli
from neoxkit.data import reading
from neoxkit.errors import MOST_CHARACTERS, UserError
from neoxkit.launch import checks
from neoxkit.training import arguments

END = "<|endoftext|>"

RUN = [  # parameters of `neoxkit run`: (name, value)...
    [("lerning_rate", "1e-5")],
    [("learning_rate", "fast")],
    [("learning_rate", "nan")],
    [("learning_rate", "inf")],
    [("learning_rate", "-1e-5")],
    [("learning_rate", "1e9")],
    [("block_size", "4")],
    [("block_size", "2.5")],
    [("block_size", "big")],
    [("num_train_epochs", "0")],
    [("max_steps", "0")],
    [("max_steps", "-5")],
    [("per_device_train_batch_size", "0")],
    [("gradient_accumulation_steps", "0")],
    [("warmup_steps", "-1")],
    [("eval_share", "0.9")],
    [("eval_share", "-0.1")],
    [("layout", "packd")],
    [("precision", "fp17")],
    [("precision", "fp16")],  # no GPU here
    [("lr_scheduler_type", "cosinus")],
    [("attn_implementation", "flash")],
    [("too_long", "chop")],
    [("train_on", "nobody")],
    [("from_scratch", "yes")],
    [("restart", "1")],
    [("seed", "-1")],
    [("seed", "4294967296")],
    [("temperature", "0")],
    [("max_new_tokens", "0")],
    [("num_ranks", "100000")],
    [("num_ranks", "-1")],
    [("save_total_limit", "0")],
    [("save_steps", "0")],
    [("ds_config", "zero4")],
    [("ds_config", "no/such.json")],
    [("ds_config", "data/broken.json")],
    [("ds_config", "data/unknown.json")],
    [("ds_config", "data/scheduler.json")],
    [("ds_config", "data/batch.json")],
    [("train_file", "data/nowhere.txt")],
    [("eval_file", "data/nowhere.txt")],
    [("train_file", "data")],
    [("agent_name", "Dr. Rosey")],
    [("user_name", "Human")],
    [("agent_name", "User")],
    [("agent_name", "a:b")],
    [("end_mark", "</s>")],
    [("end_mark", " ")],
    [("bad_rows", "keep")],
    [("questions_file", "data/nowhere.jsonl")],
    [("questions_file", "data/broken.jsonl")],
    [("model_name_or_path", "no-such-model")],
    [("model_name_or_path", "./nowhere")],
    [("model_name_or_path", "data/no-weights")],
    [("model_name_or_path", "data/few-positions"), ("from_scratch", "true")],
    [("warmup_steps", "13"), ("max_steps", "12")],
    [("run", "../out")],
    [("run", "a/b")],
    [("dataset", "..")],
    [("dataset", "a b")],
    [("train_file", "data/???.txt")],
    [("training_arguments", "{lerning: 1}")],
    [("training_arguments", "{lerning_rate: 1}")],
    [("training_arguments", "{seed: 1}")],
    [("training_arguments", "{group_by_length: true}")],
    [("training_arguments", "[1, 2")],
    [("training_arguments", "5")],
    [("training_arguments", "{do_predict: true}")],
    [("training_arguments", "{load_best_model_at_end: true}")],
    [("training_arguments", "{adam_beta1: 1.5}")],
    [("training_arguments", "{bf16: true}")],
    [("training_arguments", "{push_to_hub: true}")],
    [("training_arguments", "{lr_scheduler_kwargs: {min_lr: 1}}")],
    [("training_arguments", "{optim: adam}")],
    [("my_questions", "{a: 1}")],
    [("my_questions", "[1]")],
    [("allow_change", "[lerning_rate]")],
    [("allow_change", "[model_name_or_path]")],
    [("report_to", "wandbb")],
]
DATA = {  # faulty conversation files: the fault -> name and content
    "empty": ("a.txt", ""),
    "blank": ("a.txt", "\n \n"),
    "a picture": ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4),
    "UTF-16": ("a.txt", "User: a\n\nAgent: b".encode("utf-16")),
    "not UTF-8": ("a.txt", b"User: a\n\nAgent: caf\xe9" + END.encode()),
    "no turns": ("a.txt", "Once upon a time."),
    "no agent": ("a.txt", f"User: a{END}"),
    "no end marks": ("a.txt", "User: a\n\nAgent: b\n\n" * 3),
    "another end mark": ("a.txt", "User: a\n\nAgent: b</s>\n" * 3),
    "damage": ("a.txt", "User: é\n\nAgent: b".encode() + b"\x92" + END.encode()),
    "a NUL": ("a.txt", f"User: a\n\nAgent: b{END}\n" * 999 + "\0"),
    "two who ask": ("a.txt", f"Human: a\n\nB: b{END}\nPrompt: a\n\nB: b{END}\n" * 3),
    "two agents": ("a.txt", f"User: a\n\nJoi: b{END}\nUser: a\n\nRosey: b{END}"),
    "HTML": ("a.txt", "<!DOCTYPE html><p>User: a</p>"),
    "ChatML": ("a.txt", "<|im_start|>user\na<|im_end|>"),
    "JSON as text": ("a.txt", '{"messages": []}'),
    "no JSON": ("a.jsonl", "User: a\n"),
    "no messages": ("a.jsonl", '{"text": "a"}\n'),
    "a wrong role": ("a.jsonl", '{"messages": [{"role": "robot", "content": "a"}]}\n'),
    "content that is no text": ("a.jsonl", '{"messages": [{"role": "user", "content": 5}]}\n'),
    "a Git LFS pointer": ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}
FLAGS = [  # the trainer's
    ["--lerning_rate", "1e-5"],
    ["--see", "3"],
    ["--learning_rate", "fast"],
    ["--fp16"],
    ["--label_smoothing_factor", "0.1"],
    ["--save_only_model"],
    ["--deepspeed", "nowhere.json"],
    ["--deepspeed", "data/broken.json"],
    ["--layout", "packd"],
    ["--deepspeed", "data/unknown.json"],
    ["--deepspeed", "data/batch.json"],
    ["--resume_from_checkpoint", "runs/x/checkpoint-4"],
    ["--fsdp", "full_shard"],
    ["--lr_scheduler_type", "cosine_with_min_lr"],
    ["--lr_scheduler_type", "reduce_lr_on_plateau"],
    ["--optim", "lomo"],
    ["--load_best_model_at_end"],
    ["--seed", "4294967296"],
    ["stray"],
]
GOOD_RUN = [
    [("learning_rate", "1e-5")],
    [("learning_rate", "2.0E-5")],
    [("learning_rate", "0")],
    [("learning_rate", "1")],
    [("learning_rate", " 3e-4 ")],
    [("block_size", "280.0")],
    [("block_size", "8")],
    [("block_size", "+64")],
    [("max_steps", "-1")],
    [("max_steps", "1")],
    [("num_train_epochs", "0.01")],
    [("warmup_steps", "0")],
    [("warmup_steps", "100")],
    [("eval_share", "0")],
    [("eval_share", "0.5")],
    [("from_scratch", "TRUE")],
    [("restart", "false")],
    [("agent_name", "agent")],
    [("user_name", "User")],
    [("end_mark", "none")],
    [("bad_rows", "skip")],
    [("run", "a.b-c_1")],
    [("run", "ä")],
    [("dataset", "v2.1")],
    [("training_arguments", "{}")],
    [("training_arguments", "{adam_beta1: 0.9, dataloader_num_workers: 0}")],
    [("training_arguments", "{optim: sgd, optim_args: momentum=0.9}")],
    [("my_questions", "[]")],
    [("my_questions", '["Who are you?", "Ü"]')],
    [("report_to", "none")],
    [("report_to", "")],
    [("num_ranks", "0")],
    [("num_ranks", "1")],
    [("ds_config", "ds_configs/zero3.json")],
    [("save_total_limit", "1")],
    [("logging_steps", "0.01")],
    [("temperature", "5")],
    [("seed", "0"), ("seed", "7")],  # the later one wins
]
GOOD_DATA = {
    "a BOM": ("a.txt", "\ufeffUser: a\n\nAgent: b" + END),
    "Windows lines": ("a.txt", f"User: a\r\n\r\nAgent: b{END}\r\n"),
    "old Mac lines": ("a.txt", f"User: a\r\rAgent: b{END}\r"),
    "no last end mark": ("a.txt", f"User: a\n\nAgent: b{END}\nUser: c\n\nAgent: d"),
    "several blank lines": ("a.txt", f"User: a\n\n\n\nAgent: b{END}\n\n\n"),
    "labels in a fence": ("a.txt", f"User: a\n\nAgent: b\n\n```\nUser: c\n```{END}"),
    "other scripts": ("a.txt", f"User: 你好\n\nAgent: שלום\u202e{END}"),
    "an empty question": ("a.txt", f"User: \n\nAgent: b{END}"),
    "no blank lines": ("a.txt", f"User: a\nAgent: b{END}"),
    "other names": ("a.txt", f"Question: a\n\nAnswer: b{END}"),
    "other labels": ("a.txt", f"**USER** : a\n\n  agent: b{END}"),
    "a JSON array": ("a.json", '[{"messages": [{"role": "user", "content": "a"}, '
        '{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}]'),
    "a colon in a name": ("a.txt", f"User: a: b\n\nAgent: c: d{END}"),
    "a system message": ("a.jsonl", json.dumps({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]})),
}  # fmt: skip


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "data" / "broken.json").write_text('{"zero_optimization": {"stage": 2}')
    (home / "data" / "unknown.json").write_text('{"zero_optimisation": {"stage": 2}}')
    (home / "data" / "scheduler.json").write_text('{"scheduler": {"type": "WarmupLR"}}')
    (home / "data" / "batch.json").write_text('{"train_batch_size": 7}')
    (home / "data" / "broken.jsonl").write_text('{"messages": "x"}')
    no_weights = home / "data" / "no-weights"
    no_weights.mkdir(exist_ok=True)
    (no_weights / "config.json").write_text("{}")
    few = home / "data" / "few-positions"
    few.mkdir(exist_ok=True)
    config = {"model_type": "gpt_neox", "max_position_embeddings": 279, "hidden_size": 64}
    (few / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 1, "vocab_size": 1024})
    )
    return home


def one_line(said: str) -> bool:
    """Check that a message is one short line with place, fault and remedy."""
    where, _, rest = said.partition(": ")
    what, _, remedy = rest.rpartition(" -- ")
    return bool(where and what and remedy) and len(f"error: {said}") <= MOST_CHARACTERS


def flags(values: list[tuple[str, str]]) -> list[str]:
    return [word for pair in values for word in ("-p", *pair)]


def check(values: list[tuple[str, str]]) -> None:
    """Return the error of `neoxkit run`, which must come before papermill starts."""
    given = cli.parameters.read([], values)
    first, train, last = (kind(**cli.parameters.own(kind, given)) for kind in settings.STAGES)
    checks.check_files(first)
    if not paths.run(train.run).exists():
        checks.check_before_tokenizing(first, train)
    if last.questions_file:
        paths.find("questions_file", last.questions_file)


@pytest.mark.parametrize("values", RUN, ids=lambda v: f"{v[0][0]}={v[0][1]}")
def test_a_wrong_parameter_is_one_line(
    folder: Path, values: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *flags(values)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert one_line(captured.err.removeprefix("error: ").strip()), captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rn"], "no such command 'rn' -- did you mean run?"),
        (["zzz"], "no such command 'zzz' -- see neoxkit --help"),
        (["trian"], "no such command 'trian' -- did you mean run --only 02_train?"),
        (["stat"], "no such command 'stat' -- did you mean runs?"),
        (["reprot"], "no such command 'reprot' -- did you mean report?"),
        (["run", "-p", "seed"], "option '-p' requires 2 arguments -- see neoxkit run --help"),
        (["run", "--onl", "02_train"], "no such option '--onl' -- did you mean --only?"),
        (["run", "--verbose"], "no such option '--verbose' -- see neoxkit run --help"),
        (["run", "--only", "05"], "invalid value for '--only': '05' is not one of '01_tokenize', "),
        (["run", "--only", ""], "invalid value for '--only': '' is not one of '01_tokenize', '02"),
        (
            ["run", "--only", "t"],
            "invalid value for '--only': 't' may be 01_tokenize or 02_train -",
        ),
        (["sweep", "0"], "invalid value for 'NOTEBOOK...': '0' may be 02_train or 03_evaluate -- "),
        (["sweep", "01"], "invalid value for 'NOTEBOOK...': '01' is not one of '02_train', '03_ev"),
        (["run", "two\nlines"], "got unexpected extra argument (two lines) -- see neoxkit run "),
        (["stop"], "missing argument 'RUN' -- see neoxkit stop --help"),
        (["sweep"], "missing argument 'NOTEBOOK...'. Choose from: 02_train, 03_evaluate -- see "),
        (["sweep", "02_train", "--at-once", "x"], "invalid value for '--at-once': 'x' is not a "),
        (["fit", "--machine"], "option '--machine' requires an argument -- see neoxkit fit "),
    ],
)
def test_a_wrong_command_is_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: command line: {said}"), captured.err
    assert one_line(captured.err.removeprefix("error: ").strip())
    assert captured.out == "" and captured.err.count("\n") == 1


def test_a_wrong_limit_of_silence_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ranks would refuse it, after minutes of loading."""
    monkeypatch.setenv("NEOXKIT_STALL_SECONDS", "soon")
    assert cli.main(["run", "-p", "dataset", "odd"]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: NEOXKIT_STALL_SECONDS: must be a number, got 'soon' -- write for example 120.0\n"
    )
    assert captured.out == ""


def test_neither_torch_nor_papermill_is_imported_to_refuse(folder: Path) -> None:
    code = (
        "import sys; from neoxkit.cli import main; assert main.main(sys.argv[1:]) == 2; "
        "assert not {'transformers', 'deepspeed', 'papermill'} & set(sys.modules)"
    )
    late = [("training_arguments", "{do_predict: true}")]
    for values in (RUN[0], RUN[1], RUN[7], late, [("ds_config", "data/scheduler.json")]):
        subprocess.run([sys.executable, "-c", code, "run", *flags(values)], check=True,
                       capture_output=True)  # fmt: skip


def write(folder: Path, name: str, content: str | bytes) -> str:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(raw)
    return str(folder / name)


def read(file: str) -> reading.ConversationFile:
    return reading.read_sides(settings.TokenizeSettings(train_file=file))["train"]


@pytest.mark.parametrize("kind", DATA)
def test_a_wrong_file_is_one_line(home: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError) as refused:
        read(write(tmp_path, *DATA[kind]))
    for line in str(refused.value).splitlines():
        assert one_line(line), line


@pytest.mark.parametrize("argv", FLAGS, ids=" ".join)
def test_a_wrong_flag_of_the_trainer_is_one_line(folder: Path, argv: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        arguments.parse(["--output_dir", "runs/x", "--do_train", *argv])
    assert one_line(str(refused.value)), str(refused.value)


def test_there_are_as_many_mistakes_as_promised() -> None:
    assert len(RUN) + len(DATA) + len(FLAGS) >= 60
    assert len(GOOD_RUN) + len(GOOD_DATA) >= 40


@pytest.mark.parametrize("values", GOOD_RUN, ids=lambda v: f"{v[0][0]}={v[0][1]}")
def test_an_odd_parameter_is_taken(folder: Path, values: list[tuple[str, str]]) -> None:
    check([*values, ("dataset", "odd")] if values[0][0] != "dataset" else values)


@pytest.mark.parametrize("kind", GOOD_DATA)
def test_an_odd_file_is_taken(home: Path, tmp_path: Path, kind: str) -> None:
    source = read(write(tmp_path, *GOOD_DATA[kind]))
    assert source.facts.replies >= 1


def test_a_long_list_is_cut_and_its_remedy_is_not() -> None:
    said = str(UserError("run", "was started with " + "x -> y; " * 60, "restore them"))
    assert len(f"error: {said}") == MOST_CHARACTERS and said.endswith(" ... -- restore them")
    assert one_line(said)


def test_a_traceback_is_shown_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOXKIT_DEBUG", "1")
    with pytest.raises(UserError):
        cli.main(["run", "-p", "seed", "-1"])


def test_a_block_size_above_the_models_positions_is_refused_by_its_files(folder: Path) -> None:
    given = [("model_name_or_path", "data/few-positions"), ("from_scratch", "true")]
    with pytest.raises(UserError, match=r"^block_size: 280 is above the model's 279 positions -- "):
        check(given)
    check([*given, ("block_size", "279")])


def test_the_remedy_for_a_mistyped_argument_that_is_a_setting_is_the_setting(folder: Path) -> None:
    with pytest.raises(UserError, match=r"not one of them -- did you mean the setting learning_r"):
        check([("training_arguments", "{lerning_rate: 1}")])
