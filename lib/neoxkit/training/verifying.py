"""Take a step of a training twice from the same state, and compare every bit of what comes out.

A computer that miscalculates, or whose memory loses a bit, is not noticed otherwise: the loss stays
plausible. Only what happens during such a step is seen. The second pass is the one that is kept; it
leaves the bits that a training without it has.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xxhash

COMPARED = ("losses", "gradients", "weights")  # in the order in which a fault spreads
_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


class Verifier:
    """Takes every `every`-th step of a DeepSpeed engine twice, from the first that has a state of
    the optimizer on.

    `taken`: the last one, 0 before the first. `differs`: in which of COMPARED its passes differ on
    this rank, whose part of each tensor is compared.
    """

    def __init__(self, every: int) -> None:
        self.every, self.taken, self.differs = every, 0, dict.fromkeys(COMPARED, False)
        self.micro_batches: list[dict[str, Any]] = []  # of the step that is being taken
        self._before: _State | None = None
        self._gradients = xxhash.xxh3_128()
        self._watched: torch.optim.Optimizer | None = None

    def is_due(self, step: int, engine: Any) -> bool:
        """Return whether a step, counted from 1, is to be taken twice."""
        return step % self.every == 0 and bool(engine.basic_optimizer.state)

    def begin(self, step: int, engine: Any, micro_batch: dict[str, Any]) -> None:
        """Keep a micro-batch, and before the first one what the step will change."""
        if self._watched is None:
            self._watched = engine.basic_optimizer
            self._watched.register_step_pre_hook(self._note_gradients)
        if not self.micro_batches:
            self.taken = step
            self._before = _State(engine)
            self._gradients.reset()
        self.micro_batches.append(micro_batch)

    def _note_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Take in the averaged and clipped gradients that the optimizer is given."""
        if self._before:
            of_all = (p.grad for group in optimizer.param_groups for p in group["params"])
            _take_in(self._gradients, (grad for grad in of_all if grad is not None))

    def compare(
        self, losses: Iterable[torch.Tensor], again: Callable[[], Iterable[torch.Tensor]]
    ) -> None:
        """Go back to the state before the step and compare a second pass with the first.

        `losses` are those of the trained tokens; `again` takes the micro-batches and returns them.
        """
        assert self._before
        first = self._outcome(losses)
        self._before.restore()
        self._gradients.reset()
        second = self._outcome(again())
        self.differs = {name: first[name] != second[name] for name in COMPARED}
        self._before, self.micro_batches = None, []

    def _outcome(self, losses: Iterable[torch.Tensor]) -> dict[str, str]:
        """Return a digest of each of COMPARED, the weights' with the optimizer's state."""
        assert self._before
        return {
            "losses": digest(losses),
            "gradients": self._gradients.hexdigest(),
            "weights": digest(_tensors(self._before.engine)),
        }


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
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

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
    for weight in engine.module.parameters():
        if weight.requires_grad:
            yield getattr(weight, "ds_tensor", weight).data
    for weight, state in engine.basic_optimizer.state.items():
        yield weight.data
        yield from (value for value in state.values() if torch.is_tensor(value))


def _places(engine: Any) -> list[dict[str, Any]]:
    """Return the mappings in which the optimizer and the loss scale keep plain values."""
    inner = engine.basic_optimizer
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return [*inner.state.values(), *inner.param_groups, *([vars(scaler)] if scaler else [])]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a digest of every bit of some tensors, in their order."""
    found = xxhash.xxh3_128()
    _take_in(found, tensors)
    return found.hexdigest()


def _take_in(found: Any, tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        found.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
