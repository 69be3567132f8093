"""Tokenize many conversations: the kit from file to dataset, or the tokenizer alone.

python benchmarks/tokenization.py kit|encode_batch --count N [--one-reply-each .csv] [--in-one]
"""

import argparse
import shutil
import time
from pathlib import Path

import inputs
from stepclock import print_result

BATCH = 1000  # texts per call of encode_batch; what it returns is dropped at once


def tokenize_file(
    path: Path,
    folder: Path,
    *,
    model: str,
    train_on: str = "agent",
    eval_share: float = 0.0,
    block_size: int = inputs.BLOCK_SIZE,
) -> None:
    """Do what 01_tokenize does with a file: read, encode, keep what fits, write the dataset."""
    from neoxkit.data import encoding, manifests, reading, selection, tokenized
    from neoxkit.models import loading, model_names
    from neoxkit.settings import TokenizeSettings

    settings = TokenizeSettings(
        train_file=str(path),
        dataset=folder.name,
        model_name_or_path=model,
        train_on=train_on,
        block_size=block_size,
        eval_share=eval_share,
    )
    sources = reading.read_sides(settings)
    tokenizer = loading.load_tokenizer(model)
    source = sources["train"]
    encoded = encoding.encode_file(tokenizer, source, source.names, train_on)
    rows, counts = selection.fit_sides({"train": encoded}, block_size, settings.too_long)["train"]
    sides, _ = selection.split_rows(rows, None, eval_share, settings.seed)
    manifest = manifests.make_manifest(
        settings.as_dict(),
        model_names.portable(settings.model_name_or_path),
        tokenizer,
        sources,
        {"train": counts},
        sides,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenized.save(sides, folder, manifest)


def kit_seconds(path: Path, block_size: int) -> float:
    """Return the seconds from the file to the dataset on disk; imports are done before."""
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    from neoxkit import paths
    from neoxkit.data import encoding, reading, selection, tokenized  # noqa: F401
    from neoxkit.models import loading  # noqa: F401

    folder = paths.tokenized(path.stem)
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    tokenize_file(path, folder, model=str(inputs.MODEL), block_size=block_size)
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    return seconds


def encode_batch_seconds(path: Path) -> float:
    """Time the tokenizer's encode_batch on the texts that the kit renders, and nothing else."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(inputs.MODEL / "tokenizer.json"))
    texts = inputs.conversations(path.read_text("utf-8"))
    begun = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kit", "encode_batch"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--one-reply-each", metavar="ENDING", default="",
                        help="conversations of one reply, in this kind of file (.csv)")  # fmt: skip
    parser.add_argument("--in-one", action="store_true", help="one conversation of all turns")
    options = parser.parse_args()
    if options.in_one:
        path = inputs.one_conversation(options.count)
    elif options.one_reply_each:
        path = inputs.one_reply_each(options.count, options.one_reply_each)
    else:
        path = inputs.many_conversations(options.count)
    if options.what == "encode_batch":
        print_result(seconds=encode_batch_seconds(path))
    else:
        block_size = path.stat().st_size if options.in_one else inputs.BLOCK_SIZE
        print_result(seconds=kit_seconds(path, block_size))


if __name__ == "__main__":
    main()
