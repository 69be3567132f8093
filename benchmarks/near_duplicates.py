"""Time the search for near-duplicates beside the encoding of the same conversations, on one core.

python benchmarks/near_duplicates.py [--times 3]
"""

import argparse
import os
import statistics
import time

import inputs
from stepclock import print_result

SHARE = 0.05  # of the conversations, held out


def cpu_seconds(times: int) -> tuple[float, float]:
    """Return the processor time to encode GSM8K and Taskmaster, and to compare their two sides."""
    from neoxkit.data import encoding, overlap, reading, selection
    from neoxkit.models import loading
    from neoxkit.settings import TokenizeSettings

    tokenizer = loading.load_tokenizer(str(inputs.MODEL))
    files = [TokenizeSettings(train_file=str(inputs.data_file(n))) for n in ("gsm8k", "taskmaster")]
    sources = [reading.read_sides(settings)["train"] for settings in files]
    talks = [talk for source in sources for talk in source.conversations]
    encoded, searched = [], []
    for _ in range(times):
        begun = time.process_time()
        rows = encoding.encode(tokenizer, talks, sources[0].names)
        encoded.append(time.process_time() - begun)
        sides, _ = selection.split_rows(rows, None, SHARE, 0)
        begun = time.process_time()
        overlap.look_for(sides["train"], sides["eval"], tokenizer)
        searched.append(time.process_time() - begun)
    return statistics.median(encoded), statistics.median(searched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, as a worker of 01 encodes
    encode, search = cpu_seconds(parser.parse_args().times)
    print_result(encode_seconds=encode, search_seconds=search, share=search / encode)


if __name__ == "__main__":
    main()
