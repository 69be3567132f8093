"""Take a step of a training twice from the same state, and compare every bit of what comes out.

A computer that miscalculates, or whose memory loses a bit, is not noticed otherwise: the loss stays
plausible. Only what happens within such a step is seen. The weights come out as in a training that
takes each step once.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import xxhash

# In the order in which a fault spreads. The first two are each rank's own, of its conversations;
# the others have been shared out over the ranks, the weights with the state of the optimizer.
COMPARED = ("losses", "gradients", "averaged gradients", "weights")
OF_A_RANK = COMPARED[:2]
_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


class Verifier:
    """Takes every Nth step of a DeepSpeed engine twice, but not the first step of a training: its
    optimizer has no state yet that could be put back.

    `taken`: the last such step, 0 before the first. `differs`: in which of COMPARED its passes
    differ on this rank.
    """

    def __init__(self, every: int) -> None:
        self.every, self.taken, self.differs = every, 0, dict.fromkeys(COMPARED, False)
        self.micro_batches: list[dict[str, Any]] = []  # of the step that is being taken
        self._before: _State | None = None
        self._is_watching = False
        self._gradients = 0  # a sum of digests: they may be computed in another order
        self._averaged = xxhash.xxh3_128()

    def is_due(self, step: int, engine: Any) -> bool:
        """Return whether a step, counted from 1, is to be taken twice."""
        return step % self.every == 0 and bool(engine.basic_optimizer.state)

    def begin(self, step: int, engine: Any, micro_batch: dict[str, Any]) -> None:
        """Keep a micro-batch, and before the first one what the step will change."""
        if not self._is_watching:
            self._watch(engine)
        if not self.micro_batches:
            self.taken, self._before = step, _State(engine)
            self._forget()
        self.micro_batches.append(micro_batch)

    def compare(
        self, losses: Iterable[torch.Tensor], again: Callable[[], Iterable[torch.Tensor]]
    ) -> None:
        """Go back to the state before the step and compare a second pass with the first.

        `losses` are those of the trained tokens; `again` takes the micro-batches and returns them.
        """
        assert self._before
        first = self._outcome(losses)
        self._before.restore()
        self._forget()
        second = self._outcome(again())
        self.differs = {name: first[name] != second[name] for name in COMPARED}
        self._before, self.micro_batches = None, []

    def _watch(self, engine: Any) -> None:
        self._is_watching = True
        engine.basic_optimizer.register_step_pre_hook(self._note_averaged)
        for number, weight in enumerate(engine.module.parameters()):
            if weight.requires_grad:
                weight.register_hook(partial(self._note_gradient, number))

    def _note_gradient(self, number: int, gradient: torch.Tensor) -> None:
        """Take in a weight's gradient of a micro-batch, before the ranks average it."""
        if self._before:
            found = xxhash.xxh3_128(seed=number)
            _take_in(found, [gradient])
            self._gradients += found.intdigest()

    def _note_averaged(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Take in the averaged and clipped gradients that the optimizer is given."""
        if self._before:
            of_all = (p.grad for group in optimizer.param_groups for p in group["params"])
            _take_in(self._averaged, (grad for grad in of_all if grad is not None))

    def _forget(self) -> None:
        self._gradients = 0
        self._averaged.reset()

    def _outcome(self, losses: Iterable[torch.Tensor]) -> dict[str, Any]:
        """Return digests of what is compared."""
        assert self._before
        digests = (
            _digest(losses),
            self._gradients,
            self._averaged.hexdigest(),
            _digest(_tensors(self._before.engine)),
        )
        return dict(zip(COMPARED, digests, strict=True))


class _State:
    """A copy, in the host's memory, of what a step of an engine changes, and of the random state
    that it begins with."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.tensors = [tensor.to("cpu", copy=True) for tensor in _tensors(engine)]
        self.values = [_plain(place) for place in _places(engine)]
        self.counters = {name: getattr(engine, name) for name in _COUNTERS}
        self.python, self.numpy = random.getstate(), np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if engine.device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        zero3 = getattr(self.engine.optimizer, "parameter_offload", None)
        if zero3:  # which has gathered the new values of small tensors already; it will again
            zero3.partition_all_parameters()
        for tensor, kept in zip(_tensors(self.engine), self.tensors, strict=True):
            tensor.copy_(kept)
        for place, values in zip(_places(self.engine), self.values, strict=True):
            place.update(values)
        for name, value in self.counters.items():
            setattr(self.engine, name, value)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def _tensors(engine: Any) -> Iterator[torch.Tensor]:
    """Yield this rank's part of the trained weights, of their copy that the optimizer updates, and
    of the optimizer's state."""
    own = [weight for weight in engine.module.parameters() if weight.requires_grad]
    yield from (getattr(weight, "ds_tensor", weight).data for weight in own)
    known = {*map(id, own)}  # without ZeRO, in fp32, there is no copy
    for weight, state in engine.basic_optimizer.state.items():
        if id(weight) not in known:
            yield weight.data
        yield from (value for value in state.values() if torch.is_tensor(value))


def _places(engine: Any) -> list[dict[str, Any]]:
    """Return the mappings in which the optimizer and the loss scale keep plain values."""
    inner = engine.basic_optimizer
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return [*inner.state.values(), *inner.param_groups, *([vars(scaler)] if scaler else [])]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a digest of every bit of some tensors, in their order."""
    found = xxhash.xxh3_128()
    _take_in(found, tensors)
    return found.hexdigest()


def _take_in(found: Any, tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
