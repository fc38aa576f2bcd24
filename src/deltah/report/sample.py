r"""Which trajectories stay in memory for the viewer, while any number of them stream by once.

Four lists, each of bounded length: trajectories drawn by chance, the most wasteful ones, and the two failure cases of
the method: *certain and wrong* (entropy fell most, the answer is not correct) and *rise and right* (it rose most, the
answer is correct). The draw is a bottom-k sample: of every question the first trajectory before the second, and among
those the questions with the smallest hash of seed and name. The hash knows nothing of the run, so every run draws the
same questions, and one question can be read in all of them; no run has to be held in memory, or read twice, for that.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np

from deltah.calls.scored import ClusterKey, cluster_key, is_correct, waste_levels
from deltah.calls.waste import Waste, WasteLevel
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import Trajectory
from deltah.report.record import change, record


class Reason(StrEnum):
    """Why a trajectory is kept."""

    WASTEFUL = "wasteful"
    CERTAIN_AND_WRONG = "certain_and_wrong"
    RISE_AND_RIGHT = "rise_and_right"
    DRAWN = "drawn"


KEPT: Final[Mapping[Reason, int]] = {
    Reason.WASTEFUL: 40,
    Reason.CERTAIN_AND_WRONG: 20,
    Reason.RISE_AND_RIGHT: 20,
    Reason.DRAWN: 200,
}
"""Trajectories of one evaluation held for each reason."""
_Rank: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One trajectory that the viewer may show."""

    order: int
    """Place in its evaluation, from 0."""
    cluster: ClusterKey
    repeat: int
    """How many trajectories of the same question came before it in its evaluation."""
    record: Mapping[str, Any]


@dataclass(slots=True)
class Collector:
    """Takes trajectories one by one and keeps the best of each list."""

    seed: int
    _heaps: dict[Reason, list[tuple[_Rank, int, Candidate]]] = field(default_factory=lambda: {r: [] for r in Reason})
    _seen: Counter[ClusterKey] = field(default_factory=Counter)
    _count: int = 0

    def offer(self, trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> None:
        """Keep a trajectory where it is among the best; its record is made only then.

        Args:
            trajectory: C calls.
            signal: None for a trajectory without entropies.
            waste: (C,) classes of each call.
        """
        cluster = cluster_key(trajectory)
        order, repeat = self._count, self._seen[cluster]
        self._count += 1
        self._seen[cluster] += 1
        ranks = {**_notable(trajectory, signal, waste), Reason.DRAWN: (-repeat, -_hash(self.seed, cluster))}
        wanted = {reason: rank for reason, rank in ranks.items() if self._fits(reason, rank, order)}
        if not wanted:
            return
        candidate = Candidate(order=order, cluster=cluster, repeat=repeat, record=record(trajectory, signal, waste))
        for reason, rank in wanted.items():
            heap = self._heaps[reason]
            heapq.heappush(heap, (rank, -order, candidate))
            if len(heap) > KEPT[reason]:
                heapq.heappop(heap)

    def _fits(self, reason: Reason, rank: _Rank, order: int) -> bool:
        heap = self._heaps[reason]
        return len(heap) < KEPT[reason] or (rank, -order) > heap[0][:2]

    def candidates(self) -> dict[Reason, tuple[Candidate, ...]]:
        """What was kept, best first."""
        return {
            reason: tuple(entry[2] for entry in sorted(heap, key=lambda entry: entry[:2], reverse=True))
            for reason, heap in self._heaps.items()
        }


def _notable(t: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> dict[Reason, _Rank]:
    """Rank of a trajectory in each list it may enter; more is better."""
    ranks: dict[Reason, _Rank] = {}
    wasted = _wastefulness(signal, waste)
    if any(wasted):
        ranks[Reason.WASTEFUL] = wasted
    rise, correct = change(signal), is_correct(t)
    if np.isfinite(rise) and correct is not None:
        if rise < 0 and not correct:
            ranks[Reason.CERTAIN_AND_WRONG] = (-rise,)
        if rise > 0 and correct:
            ranks[Reason.RISE_AND_RIGHT] = (rise,)
    return ranks


def _wastefulness(signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> _Rank:
    """Calls that are certified waste, then likely waste, then those that certainly did not reduce entropy."""
    found = waste_levels(signal, waste)
    not_reduced = 0 if signal is None else signal.count(Verdict.NOT_REDUCED)
    return (found.count(WasteLevel.CERTIFIED), found.count(WasteLevel.LIKELY), not_reduced)


def _hash(seed: int, cluster: ClusterKey) -> int:
    """A number that looks drawn at random, the same for one seed and question everywhere."""
    name = "\0".join((str(seed), *cluster)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest())
