"""Calls one by one: flat rows of what was called and what ΔH said, and their statistics by tool or by round index.

One row is one call; parallel calls share their round's ΔH. Intervals are clustered by question, as in
`deltah.study.summary`: the calls of one question are not independent.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from deltah.core.scored import CallLabel, Signal
from deltah.core.types import CallStatus, FloatArray, IntArray, Trajectory
from deltah.study.bootstrap import Estimate, interval, ratio, ratio_replicates
from deltah.study.summary import RESAMPLES, cluster_key, is_correct, verdicts
from deltah.study.waste import Verdict, Waste, waste_of_calls

HISTOGRAM_BINS: Final = 24
MAX_TOOL_CHARS: Final = 100
"""Of a tool's name: rows of many calls stay small whatever a log holds."""
_SETS: dict[frozenset[Waste], frozenset[Waste]] = {}
"""Equal sets of classes share one object: there are few of them and many calls."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One call."""

    cluster: tuple[str, str]
    """The question, see `deltah.study.summary.cluster_key`."""
    tool: str
    """Its name, cut to `MAX_TOOL_CHARS`."""
    round: int
    """k = 1 ... R."""
    status: CallStatus
    delta_h: float
    """Signal of its round; NaN when undefined or not measured."""
    label: CallLabel | None
    """None when the trajectory carries no entropies."""
    waste: frozenset[Waste]
    verdict: Verdict
    bounded: bool
    """False if no upper bound of its signal is known, so that it can never be certified."""
    correct: bool | None
    """Whether its trajectory's outcome is full; None when not graded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """Statistics of a set of calls."""

    n: int
    errors: int
    """Calls that the tool answered with an error."""
    unanswered: int
    reduction_rate: Estimate
    delta_h: Estimate
    undecided: int
    undefined: int
    certified: int
    """Calls that are certified waste."""
    likely: int


def call_rows(scored: Iterable[tuple[Trajectory, Signal | None]], cluster: str = "task_id") -> list[CallRow]:
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
        values, uppers, labels = signal.call_delta_h, signal.call_upper, signal.call_labels
    for i, (call, classes, found) in enumerate(zip(trajectory.calls, waste, verdicts(signal, waste), strict=True)):
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
            bounded=signal is None or not np.isinf(uppers[i]),
            correct=correct,
        )


def calls_by(rows: Iterable[CallRow], key: Callable[[CallRow], Key]) -> dict[Key, list[CallRow]]:
    """Split rows; groups in order of first appearance."""
    groups: dict[Key, list[CallRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def summarise_calls(rows: Sequence[CallRow], *, resamples: int = RESAMPLES, seed: int = 0) -> CallSummary:
    """Summarise calls; statistics over nothing are NaN and count what was left out."""
    names = {name: i for i, name in enumerate(dict.fromkeys(row.cluster for row in rows))}
    cluster = np.array([names[row.cluster] for row in rows], dtype=np.int64)
    labelled = np.array([row.label is not None for row in rows], dtype=np.float64)
    reduced = np.array([row.label is CallLabel.REDUCED for row in rows], dtype=np.float64)
    values = np.array([row.delta_h for row in rows], dtype=np.float64)
    measured = np.isfinite(values)
    # Each (Q, 2): reduction rate and mean signal.
    numerators = _cluster_sums(cluster, len(names), (reduced, np.where(measured, values, 0.0)))
    denominators = _cluster_sums(cluster, len(names), (labelled, measured.astype(np.float64)))
    replicates = ratio_replicates(numerators, denominators, resamples=resamples, seed=seed)

    def estimate(s: int) -> Estimate:
        low, high = interval(replicates[:, s], int((denominators[:, s] > 0).sum()))
        n = int(denominators[:, s].sum())
        value = float(ratio(numerators[:, s].sum(), denominators[:, s].sum()))
        return Estimate(value=value, low=low, high=high, n=n, left_out=len(rows) - n)

    labels, statuses = Counter(row.label for row in rows), Counter(row.status for row in rows)
    found = Counter(row.verdict for row in rows)
    return CallSummary(
        n=len(rows),
        errors=statuses[CallStatus.ERROR],
        unanswered=statuses[CallStatus.UNANSWERED],
        reduction_rate=estimate(0),
        delta_h=estimate(1),
        undecided=labels[CallLabel.UNDECIDED],
        undefined=labels[CallLabel.UNDEFINED],
        certified=found[Verdict.CERTIFIED],
        likely=found[Verdict.LIKELY],
    )


def _cluster_sums(cluster: IntArray, n_clusters: int, columns: Sequence[FloatArray]) -> FloatArray:
    """(Q, S) sums over clusters of S columns, each (C,); `cluster` is (C,)."""
    sums = np.empty((n_clusters, len(columns)))
    for s, column in enumerate(columns):
        sums[:, s] = np.bincount(cluster, weights=column, minlength=n_clusters)
    return sums


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
