"""A pure function mapped over items in several processes, results in the order of the items.

Work in Python does not run in parallel threads, so each worker is a process of its own, started afresh: it inherits
neither locks nor open files. Function, items and results travel by pickle; at most two items a worker are under way,
so that memory stays bounded whatever the number of items.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain, islice
from typing import TypeVar

from deltah.errors import InvalidValueError, ProcessError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2
"""Items under way for each worker: one at work, one waiting."""


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, modules: Iterable[str] = ()
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, as results are asked for.

    An error that the function raises is raised here, at its item's place; the work under way is finished, the rest is
    not begun. One worker, or fewer than two items, need no second process.

    Args:
        function: A function of a module (or a `functools.partial` of one), without side effects.
        items: Consumed a few at a time.
        workers: Processes.
        modules: What each worker imports first, where it can.

    Raises:
        InvalidValueError: if `workers` is below 1.
        ProcessError: from the iteration, if a worker is killed.
    """
    if workers < 1:
        raise InvalidValueError(f"workers is {workers}; expected 1 or more")
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if workers == 1 or len(first) < 2:
        return map(function, chain(first, iterator))
    return _map(function, chain(first, iterator), workers, tuple(modules))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map(
    function: Callable[[Item], Result], items: Iterator[Item], n_workers: int, modules: tuple[str, ...]
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_prepare_worker, initargs=(modules,))

    def submit(item: Item) -> Future[Result]:
        with _interrupts_held():
            return pool.submit(function, item)

    try:
        waiting = deque(map(submit, islice(items, _AHEAD * n_workers)))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(map(submit, islice(items, 1)))
            yield result
    except BrokenProcessPool as error:
        raise ProcessError(
            "a worker process was killed (out of memory?) or could not start (a program that starts workers has to "
            "guard its main module, see multiprocessing); run with one worker, or free some memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait while processes may be started: they inherit that, and are deaf to it from the first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(modules: tuple[str, ...]) -> None:
    """Ctrl-C reaches every process of a terminal; the one that started the workers ends them.

    If that one is killed, they end too: each holds the pipes of the others open, so that none would see an end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    for name in modules:
        with suppress(ImportError):
            import_module(name)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
