"""Run a function over many items in one process per core; no process outlives the caller."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

from neoxkit import machine

MAX_WORKERS = 16  # more would only wait for the parent, which writes

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # the function of this worker process


Progress = Callable[[int, int], None]  # (done, total)


def silent(done: int, of: int) -> None:
    """Show no progress."""


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the function's results in the order of the items, from one process per core.

    A single item is done in this process: starting others would take longer. At most two results
    per worker wait to be taken, so memory does not grow with the number of items.
    """
    num_workers = min(len(items), machine.num_cores(), MAX_WORKERS)
    if num_workers < 2:
        yield from map(function, items)
        return
    # A forked worker shares the function and its data (a tokenizer, say) without a copy.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(function,))
    try:
        waiting: deque[Future[Any]] = deque()
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
    gc.disable()  # it would scan the same plain objects again and again
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # left to the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have their own workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is killed; otherwise a worker would wait forever for its next item."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
