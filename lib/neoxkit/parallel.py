"""Run a function over many items in one process a core; nothing outlives the caller."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from neoxkit import machine

MAX_WORKERS = 16  # more only wait for the parent, which writes

Item, Result = TypeVar("Item"), TypeVar("Result")

_function: Callable[[Any], Any]  # of this worker process


Progress = Callable[[int, int], None]  # (done, of)


def silent(done: int, of: int) -> None:
    """A Progress that shows nothing."""


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The function's results in the order of the items, made by one process a core.

    A single item is done right here: starting processes would take longer. At most two results a
    worker wait to be taken, so that memory does not grow with the number of items.
    """
    num_workers = min(len(items), machine.num_cores(), MAX_WORKERS)
    if num_workers < 2:
        yield from map(function, items)
        return
    # A forked worker has the function and what it holds (a tokenizer, say) without a copy.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(function,))
    try:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    gc.disable()  # it would look through the same plain objects again and again
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have workers of their own
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next item for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
