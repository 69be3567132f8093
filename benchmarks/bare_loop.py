"""A bare PyTorch loop over the kit's own packed batches and loss: no Trainer, no DeepSpeed."""

import argparse

import torch

import inputs
from neoxkit import paths
from neoxkit.data import tokenized
from neoxkit.models import loading, packing
from neoxkit.models.batches import Collator
from neoxkit.models.losses import token_losses
from stepclock import StepClock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a name below data/tokenized")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--row-tokens", type=int, help="of a packed row; the kit's: block size")
    parser.add_argument("--attention", help="varlen, sdpa or eager; by default transformers'")
    options = parser.parse_args()
    dataset, manifest = tokenized.load(paths.tokenized(options.dataset))
    rows = dataset["train"]
    model = loading.load_model(str(inputs.MODEL), attention=options.attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    pad_id = loading.pad_id(loading.load_tokenizer(str(inputs.MODEL)))
    block_size = manifest["block_size"]
    is_varlen = options.attention == packing.VARLEN
    row_tokens = 0 if is_varlen else options.row_tokens or block_size
    collate = Collator("packed", block_size, pad_id, row_tokens, is_varlen)
    clock = StepClock()
    for step in range(options.steps):
        at = step * options.batch
        batch = collate([rows[i] for i in range(at, at + options.batch)])
        num_tokens = int(batch.pop("counts")[0])
        batch = {name: batch[name] for name in batch.keys() - {"lines", "owners"}}
        losses = token_losses(model, model, batch)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(num_tokens)
    clock.report()


if __name__ == "__main__":
    main()
