"""Mapping over processes: order, bounded look-ahead, errors, no process where none is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deltah.errors import DataError, InvalidValueError, ProcessError
from deltah.parallel import available_cores, map_ordered


def slow_square(x: int) -> tuple[int, int]:
    time.sleep(0.02 * (x % 2))
    return x * x, os.getpid()


def refuse(x: int, *, bad: int) -> int:
    if x == bad:
        raise DataError(f"item {x} is bad")
    return x


HELD_AT_START = hasattr(signal, "pthread_sigmask") and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""Whether Ctrl-C waited in this process when it loaded this module, in a worker before it could ignore it."""


def was_held(_: int) -> bool:
    return HELD_AT_START


def test_results_come_in_order_from_other_processes() -> None:
    results = list(map_ordered(slow_square, range(12), workers=2))
    assert [value for value, _ in results] == [x * x for x in range(12)]
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize(("workers", "n"), [(1, 5), (2, 1), (2, 0)])
def test_no_process_is_started_where_none_is_needed(workers: int, n: int) -> None:
    results = list(map_ordered(slow_square, range(n), workers=workers))
    assert [pid for _, pid in results] == [os.getpid()] * n


def test_an_error_is_raised_at_its_place_and_few_items_are_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for x in range(1000):
            taken.append(x)
            yield x

    results = map_ordered(partial(refuse, bad=2), items(), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="item 2 is bad"):
        next(results)
    assert len(taken) < 10


def die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(ProcessError, match="a worker process was killed"):
        list(map_ordered(die, range(6), workers=2))


def test_workers_must_be_positive() -> None:
    with pytest.raises(InvalidValueError, match="workers is 0"):
        map_ordered(slow_square, [1], workers=0)
    assert available_cores() >= 1


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks on this platform")
def test_a_worker_is_deaf_to_ctrl_c_while_it_loads_and_this_process_never() -> None:
    assert list(map_ordered(was_held, range(4), workers=2)) == [True] * 4
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


ENDLESS = """
import os, sys, time
from itertools import count
from pathlib import Path
from deltah.parallel import map_ordered


def work(i):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.05)
    return bytes(10**6)  # more than a pipe holds


if __name__ == "__main__":
    for _ in map_ordered(work, count(), workers=2):
        pass
"""


def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    (seen := tmp_path / "seen").mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / "endless.py"), str(seen)], stdout=subprocess.PIPE)
    wait_until(lambda: len(list(seen.iterdir())) == 2)
    parent.kill()
    parent.communicate(timeout=30)  # returns when nobody holds the output open any more


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
