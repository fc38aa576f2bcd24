"""How the cost of work grows with its size: a ratio within one run, for tests that guard against quadratic time."""

from __future__ import annotations

import time
from collections.abc import Callable


def growth(work: Callable[[int], object], small: int, large: int) -> float:
    """CPU time at the large size over that at the small one, each the best of three."""
    return _best(work, large) / _best(work, small)


def _best(work: Callable[[int], object], size: int) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        work(size)
        times.append(time.process_time() - start)
    return max(min(times), 1e-4)
