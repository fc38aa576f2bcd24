"""Calls one by one: flat rows of what was called and what ΔH said.

One row is one call; parallel calls share their round's ΔH. Statistics of groups of rows are in
`deltah.stats.callgroups`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from deltah.calls.scored import ClusterKey, Scored, cluster_key, is_correct, waste_levels
from deltah.calls.waste import Waste, WasteLevel, waste_of_calls
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import CallStatus, FloatArray, IntArray, Trajectory

HISTOGRAM_BINS: Final = 24
MAX_TOOL_CHARS: Final = 100
"""Of a tool's name: rows of many calls stay small whatever a log holds."""
_SETS: dict[frozenset[Waste], frozenset[Waste]] = {}
"""Equal sets of classes share one object: there are few of them and many calls."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One call."""

    cluster: ClusterKey
    """The question, see `deltah.stats.summary.cluster_key`."""
    tool: str
    """Its name, cut to `MAX_TOOL_CHARS`."""
    round: int
    """k = 1 ... R."""
    status: CallStatus
    delta_h: float
    """Signal of its round; NaN when undefined or not measured."""
    label: Verdict | None
    """None when the trajectory carries no entropies."""
    waste: frozenset[Waste]
    verdict: WasteLevel
    correct: bool | None
    """Whether its trajectory's outcome is full; None when not graded."""


def call_rows(scored: Iterable[Scored], cluster: str = "task_id") -> list[CallRow]:
    """Flatten scored trajectories into one row a call, in order."""
    return [
        row
        for trajectory, signal in scored
        for row in rows_of(trajectory, signal, waste_of_calls(trajectory), cluster=cluster)
    ]


def rows_of(
    trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]], *, cluster: str = "task_id"
) -> Iterator[CallRow]:
    """Rows of one trajectory whose waste is known.

    Args:
        trajectory: C calls.
        signal: None for a trajectory without entropies.
        waste: (C,) classes of each call.
        cluster: Metadata key that names the question.
    """
    key, correct = cluster_key(trajectory, cluster), is_correct(trajectory)
    if signal is not None:
        values, labels = signal.call_value, signal.call_verdicts
    for i, (call, classes, found) in enumerate(zip(trajectory.calls, waste, waste_levels(signal, waste), strict=True)):
        k = int(trajectory.round_of_call[i])
        yield CallRow(
            cluster=key,
            tool=sys.intern(call.name[:MAX_TOOL_CHARS]),
            round=k + 1,
            status=call.status,
            delta_h=float("nan") if signal is None else float(values[i]),
            label=None if signal is None else labels[i],
            waste=_SETS.setdefault(classes, classes),
            verdict=found,
            correct=correct,
        )


def calls_by(rows: Iterable[CallRow], key: Callable[[CallRow], Key]) -> dict[Key, list[CallRow]]:
    """Split rows; groups in order of first appearance."""
    groups: dict[Key, list[CallRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def histogram_edges(rows: Iterable[CallRow], bins: int = HISTOGRAM_BINS) -> FloatArray:
    """(bins + 1,) edges with one at 0, symmetric about it, wide enough for 99 % of the defined values."""
    values = np.array([row.delta_h for row in rows if np.isfinite(row.delta_h)])
    limit = float(np.quantile(np.abs(values), 0.99)) if len(values) else 1.0
    return np.linspace(-1.0, 1.0, 2 * (bins // 2) + 1) * (limit if limit > 0 else 1.0)


def histogram(rows: Iterable[CallRow], edges: FloatArray) -> IntArray:
    """(bins,) counts of defined values; values beyond the edges are counted in the outer bins.

    Bins are half open, [a, b), so that a ΔH of exactly 0 stands on the side of "not reduced".
    """
    values = np.array([row.delta_h for row in rows if np.isfinite(row.delta_h)])
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(index, minlength=len(edges) - 1).astype(np.int64)
