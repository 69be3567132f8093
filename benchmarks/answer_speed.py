"""Time 03's replies in batches of a given size.

python benchmarks/answer_speed.py --model tiny --batch-size 32 --count 64
"""

import argparse
import time

import inputs
from neoxkit import paths
from neoxkit.data.conversation import Names
from neoxkit.data.questions import read_questions
from neoxkit.models import generation, loading
from stepclock import print_result


def prompts(model: str, count: int) -> list[str]:
    """Return questions: the sample's for the built-in model, GSM8K's for the other."""
    if model == "tiny":
        file = inputs.HOME / "data" / "sample_questions.jsonl"
    else:
        file = inputs.data_file("gsm8k")
    return [question.prompt for question in read_questions(file, Names())[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["tiny", "pythia-70m"], required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    name = "tiny" if options.model == "tiny" else paths.short(inputs.MODEL)
    model, tokenizer = loading.for_inference(name), loading.load_tokenizer(name)
    asked = prompts(options.model, options.count)
    generation.reply(model, tokenizer, asked[:1], Names(), max_new_tokens=4)  # warm
    begun = time.perf_counter()
    said = generation.reply(model, tokenizer, asked, Names(), batch_size=options.batch_size)
    seconds = time.perf_counter() - begun
    print_result(seconds=seconds, replies=len(said), tokens=sum(r.num_tokens for r in said))


if __name__ == "__main__":
    main()
