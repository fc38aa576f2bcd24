"""Other processes: workers that map items, children that end with this one, and clean-up on termination.

A worker is a process started afresh: it inherits neither locks nor open files, and function, items and results travel
by pickle. A child of `start` ends however its parent ends, SIGKILL included: it waits for the end of a pipe that the
parent alone holds open. Processes that the child starts are its own affair.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from types import FrameType
from typing import TypeVar

from deltah.errors import InvalidValueError, ProcessError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2
"""Items under way for each worker, so that memory stays bounded: one at work, one waiting."""
STOP_WAIT_S = 10.0
"""How long `stop` waits before it kills, in seconds."""
_TERMINATIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Somebody asked this process to end, or the terminal was closed."""


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, modules: Iterable[str] = ()
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order; one worker, or fewer than two items, start no process.

    An error of the function is raised at its item's place: work under way is finished, the rest is not begun. Each
    worker imports `modules` first, where it can. A worker that is killed raises `ProcessError` from the iteration.
    """
    if workers < 1:
        raise InvalidValueError(f"workers is {workers}; expected 1 or more")
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if workers == 1 or len(first) < 2:
        return map(function, chain(first, iterator))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker, initargs=(tuple(modules),)
    )
    return _map(pool, function, chain(first, iterator), _AHEAD * workers)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterator[Item], ahead: int
) -> Iterator[Result]:
    """Results in order, with at most `ahead` items under way."""

    def submit(item: Item) -> Future[Result]:
        with _interrupts_held():
            return pool.submit(function, item)

    try:
        waiting = deque(map(submit, islice(items, ahead)))
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
    """Let Ctrl-C wait while processes may be started: they inherit that, and ignore it from the first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(modules: tuple[str, ...]) -> None:
    """Set up a worker, which ends with the process that started it and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers hold one another's pipes open, so that none would notice that the parent is gone.
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    for name in modules:
        with suppress(ImportError):
            import_module(name)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start(module: str, arguments: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` as a child that ends with this process; its output goes to `log`."""
    command = [sys.executable, "-m", "deltah.parallel", str(os.getpid()), module, *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=dict(env))


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all processes to end, then wait for each, and kill it if it does not end in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def stop_on_termination() -> Iterator[None]:
    """Raise `SystemExit(128 + signal)` in the block on SIGTERM or SIGHUP; a signal that is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return
    ours = [number for number in _TERMINATIONS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _watch_pipe() -> None:
    """End this process at the end of its standard input, whose other end the parent alone holds."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":  # a child of `start`: it becomes its module, or ends at once if the parent has
    if os.name == "posix" and os.getppid() != int(sys.argv[1]):
        os._exit(1)
    threading.Thread(target=_watch_pipe, name="parent-watch", daemon=True).start()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
