"""The benchmark's inputs: the data folder, and what is made of it once in benchmarks/work.

python benchmarks/inputs.py makes everything that is missing. benchmarks/work/home is a root of the
kit of its own, so that nothing is written beside a person's own runs and datasets.
"""

import csv
import json
import os
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
WORK = REPOSITORY / "benchmarks" / "work"
HOME = WORK / "home"
MODELS = HOME / "models"
MODEL = MODELS / "pythia-70m"
SEED = 0  # of the random weights
BLOCK_SIZE, BLOCK_SIZES = 280, (512, 1024, 2048)  # tokens; the others are of joined conversations
END, AGENT = "<|endoftext|>\n", "\n\nAgent: "
COLUMNS = ("instruction", "output")  # of rows
Pair = tuple[str, str]  # a question and its reply
FILES = {
    "gsm8k": "gsm8k_test.txt",
    "taskmaster": "taskmaster4_small.txt",
    "oasst": "oasst_en100.txt",
}
# Arguments of transformers' Trainer, for the programs other than the kit.
TRAINER: dict[str, Any] = {
    "use_cpu": True,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
NEEDED = ("gpt-neox-tokenizer", "pythia-configs/pythia-70m", *FILES.values())


def data_folder() -> Path:
    """Return BENCH_DATA, or shared/data beside the checkout."""
    default = REPOSITORY.parent / "shared" / "data"
    return Path(os.environ.get("BENCH_DATA") or default).resolve()


def complaint(folder: Path) -> str:
    """Return one line that says what the data folder lacks; empty if nothing."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if not missing:
        return ""
    return f"error: BENCH_DATA: no {', '.join(missing)} -- set it to the folder that holds them"


def data_file(name: str) -> Path:
    """Return the conversation file of a data set."""
    return data_folder() / FILES[name]


def conversations(text: str) -> list[str]:
    """Split a text in the kit's format into conversations, without their end marks.

    >>> conversations("User: a<|endoftext|>\\nUser: b<|endoftext|>\\n")
    ['User: a', 'User: b']
    """
    return [c for c in text.split(END) if c]


def numbered(texts: list[str], count: int) -> Iterator[str]:
    """Repeat the conversations, each with a running number in it, so that no two are equal.

    >>> list(numbered(["User: a", "User: b"], 3))
    ['User: 0. a', 'User: 1. b', 'User: 2. a']
    """
    for number, text in enumerate(islice(cycle(texts), count)):
        yield text.replace("User: ", f"User: {number}. ", 1)


def many_conversations(count: int) -> Path:
    """Return a file of `count` conversations from all three data sets, made on first use."""
    path = WORK / f"conversations-{count}.txt"
    if not path.exists():
        texts = [t for name in FILES for t in conversations(data_file(name).read_text("utf-8"))]
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{text}{END}" for text in numbered(texts, count))
        part.rename(path)
    return path


def one_conversation(count: int) -> Path:
    """Return a file of one conversation, `count` of GSM8K's in turn, made on first use."""
    path = WORK / f"one-conversation-{count}.txt"
    if not path.exists():
        texts = conversations(data_file("gsm8k").read_text("utf-8"))
        part = path.with_suffix(".part")
        part.write_text("\n\n".join(numbered(texts, count)) + END, encoding="utf-8")
        part.rename(path)
    return path


def joined(block_size: int) -> Path:
    """Return a file of GSM8K's conversations joined to ones of nearly `block_size` tokens."""
    from tokenizers import Tokenizer

    path = WORK / f"joined-{block_size}.txt"
    if not path.exists():
        tokenizer = Tokenizer.from_file(str(data_folder() / "gpt-neox-tokenizer/tokenizer.json"))
        texts = conversations(data_file("gsm8k").read_text("utf-8"))
        long: list[str] = []
        for text in texts:
            more = f"{long[-1]}\n\n{text}" if long else text
            if long and len(tokenizer.encode(more)) < block_size:  # the end mark is one more
                long[-1] = more
            else:
                long.append(text)
        part = path.with_suffix(".part")
        part.write_text("".join(f"{text}{END}" for text in long), encoding="utf-8")
        part.rename(path)
    return path


def rows_file(name: str) -> Path:
    """Return a file of the tokens and labels of a dataset's rows, for programs without `datasets`,
    made on first use."""
    from datasets import load_from_disk

    path = WORK / f"rows-{name}.json"
    if not path.exists():
        rows = load_from_disk(HOME / "data" / "tokenized" / name)["train"]
        part = path.with_suffix(".part")
        part.write_text(json.dumps([*zip(rows["input_ids"], rows["labels"], strict=True)]), "utf-8")
        part.rename(path)
    return path


def one_reply_each(count: int, ending: str) -> Path:
    """Return a file of `count` conversations of one question and one reply, made on first use.

    `ending` is the kind of file: .txt (the kit's format), or rows: .jsonl, .csv or .parquet.
    """
    path = WORK / f"one-reply-each-{count}{ending}"
    if not path.exists():
        texts = conversations(data_file("gsm8k").read_text("utf-8"))
        halves = [text.removeprefix("User: ").partition(AGENT) for text in texts]
        pairs = [(asked, said) for asked, mark, said in halves if mark and "\n\n" not in said]
        part = path.with_suffix(".part")
        _WRITERS[ending](part, [(f"{n}. {a}", s) for n, (a, s) in _first(count, pairs)])
        part.rename(path)
    return path


def _first(count: int, pairs: list[Pair]) -> Iterator[tuple[int, Pair]]:
    return enumerate(islice(cycle(pairs), count))


def _write_text(path: Path, pairs: list[Pair]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"User: {asked}{AGENT}{said}{END}" for asked, said in pairs)


def _write_json(path: Path, pairs: list[Pair]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            file.write(json.dumps(dict(zip(COLUMNS, pair, strict=True))) + "\n")


def _write_csv(path: Path, pairs: list[Pair]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *pairs])


def _write_parquet(path: Path, pairs: list[Pair]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = (list(column) for column in zip(*pairs, strict=True))
    parquet.write_table(pyarrow.table(dict(zip(COLUMNS, columns, strict=True))), path)


_WRITERS = {
    ".txt": _write_text,
    ".jsonl": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def make_home() -> None:
    """Make a root for the kit: links to its notebooks and configurations, and its sample."""
    (HOME / "data").mkdir(parents=True, exist_ok=True)
    for name in ("notebooks", "ds_configs", "data/sample.txt", "data/sample_questions.jsonl"):
        link = HOME / name
        if not link.exists():
            link.symlink_to(REPOSITORY / name)


def make_model(shape: str, dtype: str = "float32") -> None:
    """Make a model of a Pythia's shape with random weights, and the real tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(SEED)
    config = AutoConfig.from_pretrained(data_folder() / "pythia-configs" / shape)
    part = MODELS / f"{shape}.part"
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(part)
    AutoTokenizer.from_pretrained(data_folder() / "gpt-neox-tokenizer").save_pretrained(part)
    part.rename(MODELS / shape)


def main() -> None:
    """Make what is missing."""
    from neoxkit import paths
    from tokenization import tokenize_file

    make_home()
    if not MODEL.is_dir():
        make_model("pythia-70m")
    sets = [("gsm8k", "agent"), ("gsm8k", "all"), ("taskmaster", "agent")]
    for name, train_on in sets:
        folder = paths.tokenized(f"{name}-{train_on}")
        if not folder.is_dir():
            tokenize_file(data_file(name), folder, model=str(MODEL), train_on=train_on)
    rows_file("gsm8k-agent")
    for size in BLOCK_SIZES:
        folder = paths.tokenized(f"joined-{size}")
        if not folder.is_dir():
            tokenize_file(joined(size), folder, model=str(MODEL), block_size=size)
    if not (folder := paths.tokenized("sample")).is_dir():
        tokenize_file(HOME / "data" / "sample.txt", folder, model="tiny", eval_share=0.05)


if __name__ == "__main__":
    if said := complaint(data_folder()):
        sys.exit(said)
    main()
