"""A model's replies to questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from neoxkit.data.conversation import Names
from neoxkit.data.questions import decode
from neoxkit.models import configs, loading
from neoxkit.parallel import Progress, silent

ENDINGS = ("end mark", "next turn", "ran on", "too long")
STOPPED = "stopped"  # by `stop`: nothing that is counted


@dataclass(frozen=True)
class Reply:
    """A model's reply, how it ended (one of ENDINGS, or STOPPED), and its length in tokens."""

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
    stop: Callable[[], bool] | None = None,
) -> list[Reply]:
    """Answer prompts in batches of about equal length; return the replies in the prompts' order.

    `growing` is called with the text so far at every token; it works with a single prompt only.
    `stop` is asked at every token; once it is true, what was said so far is returned as stopped.
    The random state is the call's own: calls in several threads give what they give one by one.

    A reply ends at the end mark or where the model begins the user's next turn; one that reaches
    `max_new_tokens` ran on. A prompt that leaves no room for them is "too long" and not answered.
    """
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    positions = configs.positions(model.config) or 10**9
    fits = [i for i, ids in enumerate(encoded) if len(ids) + max_new_tokens <= positions]
    # In place of the folder's, whose values transformers takes where a call gives none.
    model.generation_config = plain(tokenizer)
    options: dict[str, Any] = {}
    if do_sample:
        options["logits_processor"] = [_Drawn(temperature, model.device, seed)]
    if stop:
        options["stopping_criteria"] = [_Asked(stop)]
    order = sorted(fits, key=lambda i: len(encoded[i]))
    replies = [Reply("", "too long", 0)] * len(encoded)
    generator: Any = model  # causal models have `generate`; PreTrainedModel does not declare it
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
            if stop and replies[i].ended == "ran on" and stop():
                replies[i] = replace(replies[i], ended=STOPPED)
        progress(min(start + batch_size, len(order)), len(order))
    return replies


class _Drawn(LogitsProcessor):
    """A draw from the distribution at a temperature, with a random generator of its own.

    transformers draws from the process's generator, which other threads use as well. The tokens are
    those that it draws, with the same seed and without a limit on likely tokens (top_k, top_p): the
    token drawn is the only one left, so a greedy search takes it.
    """

    def __init__(self, temperature: float, device: torch.device, seed: int) -> None:
        self.temperature = temperature
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        likely = (scores / self.temperature).softmax(dim=-1)
        drawn = torch.multinomial(likely, 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


class _Asked(StoppingCriteria):
    """An end of generating that is asked for from outside."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stop(), device=input_ids.device)


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
