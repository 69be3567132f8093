"""A model's replies to questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from neoxkit.data.conversation import Names
from neoxkit.data.questions import decode
from neoxkit.models import loading
from neoxkit.parallel import Progress, silent

ENDINGS = ("end mark", "next turn", "ran on", "too long")


@dataclass(frozen=True)
class Reply:
    """A model's reply, how it ended (one of ENDINGS), and its length in tokens."""

    text: str
    ended: str
    num_tokens: int


def plain(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return the kit's own generation settings, which a model's folder may not add to: greedy, up
    to the end mark."""
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=loading.pad_id(tokenizer),
    )


@torch.no_grad()
def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    names: Names,
    *,
    max_new_tokens: int = 64,
    do_sample: bool = False,
    temperature: float = 0.7,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = silent,
    growing: Callable[[str], None] | None = None,
) -> list[Reply]:
    """Answer prompts in batches of about equal length; return the replies in the prompts' order.

    `growing` is called with the text so far at every token; it works with a single prompt only.

    A reply ends at the end mark or where the model begins the user's next turn; one that reaches
    `max_new_tokens` ran on. A prompt that leaves no room for them is "too long" and not answered.
    """
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    positions = loading.positions(model.config) or 10**9
    fits = [i for i, ids in enumerate(encoded) if len(ids) + max_new_tokens <= positions]
    # In place of the folder's, whose values transformers takes where a call gives none.
    model.generation_config = plain(tokenizer)
    options: dict[str, Any] = {"do_sample": do_sample}
    if do_sample:
        options |= {"temperature": temperature, "top_k": 0}  # 0: transformers would keep 50
    order = sorted(fits, key=lambda i: len(encoded[i]))
    replies = [Reply("", "too long", 0)] * len(encoded)
    devices = [model.device] if model.device.type == "cuda" else []
    generator: Any = model  # causal models have `generate`; PreTrainedModel does not declare it
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            at = order[start : start + batch_size]
            ids, mask = _pad_left([encoded[i] for i in at], loading.pad_id(tokenizer))
            new = generator.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                stop_strings=[names.stop_text],
                tokenizer=tokenizer,
                streamer=_Growing(tokenizer, names, growing) if growing else None,
                **options,
            )[:, ids.shape[1] :]
            for i, tokens in zip(at, new.tolist(), strict=True):
                replies[i] = _ended(tokenizer, names, tokens)
            progress(min(start + batch_size, len(order)), len(order))
    return replies


class _Growing(BaseStreamer):
    """A streamer that shows a reply as it grows, cut where it ends."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, names: Names, show: Callable[[str], None]
    ) -> None:
        self.tokenizer, self.names, self.show = tokenizer, names, show
        self.ids: list[int] | None = None  # None until the prompt has passed

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        self.show(_ended(self.tokenizer, self.names, self.ids).text)

    def end(self) -> None:
        """Do nothing: `reply` returns the whole reply."""


def _pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _ended(tokenizer: PreTrainedTokenizerBase, names: Names, ids: list[int]) -> Reply:
    """Cut a generated row where the reply ends, and say how it ended."""
    mark = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
    text = decode(tokenizer, ids[:mark])
    if names.stop_text in text:
        text, ended = text.split(names.stop_text)[0], "next turn"
    else:
        ended = "ran on" if mark is None else "end mark"
    num_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
    return Reply(text.strip(), ended, num_tokens)
