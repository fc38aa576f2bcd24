"""What the figures of the pilot section show, as numbers: histogram by quality, ROC curves, position effect, failures.

All of it describes the sample; intervals, where there are some, come from the same cluster bootstrap as the table's.
"Reduction" is -ΔH in nats throughout, the signal `delta_h` of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from deltah.core.types import BoolArray, FloatArray, IntArray
from deltah.stats.associations import Association
from deltah.stats.bootstrap import Estimate, interval, ratio, ratio_replicates
from deltah.stats.table import CALL_INDEX, StudyTable, is_binary, known

REDUCTION: Final = "delta_h"
BINS: Final = 24
MAX_INDICES: Final = 8
"""Call indices shown one by one; later ones share the last row."""
MAX_POINTS: Final = 80
"""Corners kept of a ROC curve."""
MAX_FAILURES: Final = 10
"""Of each kind, at most one a trajectory."""
ROC_SIGNALS: Final = (
    REDUCTION,
    "position_corrected",
    "entropy_before",
    "placebo_controlled",
    "gold_gain",
    CALL_INDEX,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityHistogram:
    """Reduction of good calls and of the others."""

    label: str
    edges: tuple[float, ...]
    """(bins + 1,) nats; the outermost bins hold all beyond. Bins are (a, b]: a reduction of 0 is none."""
    good: tuple[int, ...]
    other: tuple[int, ...]
    left_out: int
    """Calls without ΔH or label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RocCurve:
    """Corners of one signal's curve for one label, from (0, 0) to (1, 1)."""

    label: str
    signal: str
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRow:
    """Calls of one round index."""

    index: str
    n: int
    reduction: Estimate
    """Mean, nats."""
    labels: Mapping[str, Estimate]
    """Share of good calls; the mean of a graded label."""


class FailureKind(StrEnum):
    """Where entropy and outcome disagree."""

    FELL_AND_WRONG = "fell_and_wrong"
    """The call reduced entropy, the answer was wrong: confidently wrong."""
    ROSE_AND_RIGHT = "rose_and_right"
    """Entropy rose across the call, the answer was right: a revision that the signal punishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One call where entropy and outcome disagree."""

    kind: FailureKind
    trajectory: str
    call: str
    tool: str
    index: int
    reduction: float
    """Nats."""


def histograms(table: StudyTable) -> tuple[QualityHistogram, ...]:
    """Histogram of reduction by each 0/1 label, all on the same edges."""
    reduction = table.signals[REDUCTION]
    measured = reduction[known(reduction)]
    limit = float(np.quantile(np.abs(measured), 0.99)) if len(measured) else 1.0
    edges = np.linspace(-1.0, 1.0, BINS + 1) * (limit or 1.0)
    found = []
    for name, label in table.labels.items():
        if is_binary(label):
            good, other = (_counts(reduction[known(reduction) & (label == v)], edges) for v in (1.0, 0.0))
            left_out = len(table) - sum(good) - sum(other)
            found.append(
                QualityHistogram(label=name, edges=tuple(edges.tolist()), good=good, other=other, left_out=left_out)
            )
    return tuple(found)


def _counts(values: FloatArray, edges: FloatArray) -> tuple[int, ...]:
    index = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
    return tuple(np.bincount(index, minlength=len(edges) - 1).tolist())


def roc_curves(table: StudyTable, associations: Iterable[Association]) -> tuple[RocCurve, ...]:
    """Curves of `ROC_SIGNALS` for every pair that has an AUC."""
    columns = table.with_baseline()
    shown = [a for a in associations if a.signal in ROC_SIGNALS and np.isfinite(a.auc.value)]
    return tuple(_roc(a, columns[a.signal], table.labels[a.label]) for a in shown)


def _roc(a: Association, signal: FloatArray, label: FloatArray) -> RocCurve:
    used = known(signal) & known(label)
    order = np.argsort(-signal[used], kind="stable")
    x, y = signal[used][order], label[used][order]
    last = np.flatnonzero(np.concatenate([x[1:] != x[:-1], [True]]))
    true, false = np.cumsum(y)[last], np.cumsum(1.0 - y)[last]
    tpr, fpr = (np.concatenate([[0.0], c / c[-1]]) for c in (true, false))
    kept = np.unique(np.round(np.linspace(0, len(fpr) - 1, min(MAX_POINTS, len(fpr)))).astype(np.int64))
    return RocCurve(
        label=a.label,
        signal=a.signal,
        false_positive_rate=tuple(fpr[kept].tolist()),
        true_positive_rate=tuple(tpr[kept].tolist()),
    )


def positions(table: StudyTable, *, resamples: int, seed: int) -> tuple[PositionRow, ...]:
    """Mean reduction and label rates by call index."""
    columns = {REDUCTION: table.signals[REDUCTION], **table.labels}
    level = np.minimum(table.index, MAX_INDICES)
    rows = []
    for k in np.unique(level):
        here = level == k
        estimates = _means(columns, here, table.cluster, resamples, seed)
        later = k == MAX_INDICES and table.index.max() > MAX_INDICES
        rows.append(
            PositionRow(
                index=f"{k} and later" if later else str(k),
                n=int(here.sum()),
                reduction=estimates[REDUCTION],
                labels={name: estimates[name] for name in table.labels},
            )
        )
    return tuple(rows)


def _means(
    columns: Mapping[str, FloatArray], here: BoolArray, cluster: IntArray, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Mean of each column over some calls, clustered by question."""
    codes = np.unique(cluster[here], return_inverse=True)[1].reshape(-1)
    values = np.stack([column[here] for column in columns.values()], axis=1)
    filled, counted = np.nan_to_num(values), known(values).astype(np.float64)
    sums, counts = (np.zeros((int(codes.max()) + 1, values.shape[1])) for _ in range(2))
    np.add.at(sums, codes, filled)
    np.add.at(counts, codes, counted)
    replicates = ratio_replicates(sums, counts, resamples=resamples, seed=seed)
    found = {}
    for s, (name, column) in enumerate(columns.items()):
        share = name != REDUCTION and is_binary(column)
        low, high = interval(replicates[:, s], int((counts[:, s] > 0).sum()), rate=share)
        n, value = int(counts[:, s].sum()), float(ratio(sums[:, s].sum(), counts[:, s].sum()))
        found[name] = Estimate(value=value, low=low, high=high, n=n, left_out=int(here.sum()) - n)
    return found


def failures(table: StudyTable, *, outcome: str = "correct") -> tuple[tuple[Failure, ...], Mapping[FailureKind, int]]:
    """The clearest disagreements of entropy and outcome, and how many calls disagree in all.

    Args:
        table: Without the label `outcome` there are none.
        outcome: Label of a trajectory's outcome.
    """
    label, reduction = table.labels.get(outcome), table.signals[REDUCTION]
    if label is None:
        return (), dict.fromkeys(FailureKind, 0)
    with np.errstate(invalid="ignore"):
        members = {
            FailureKind.FELL_AND_WRONG: np.flatnonzero((reduction > 0) & (label == 0.0)),
            FailureKind.ROSE_AND_RIGHT: np.flatnonzero((reduction < 0) & (label == 1.0)),
        }
    found = [failure for kind, rows in members.items() for failure in _clearest(table, kind, rows)]
    return tuple(found), {kind: len(rows) for kind, rows in members.items()}


def _clearest(table: StudyTable, kind: FailureKind, rows: IntArray) -> Iterator[Failure]:
    seen: set[str] = set()
    reduction = table.signals[REDUCTION]
    for row in rows[np.argsort(-np.abs(reduction[rows]), kind="stable")].tolist():
        trajectory, call = table.calls[row]
        if trajectory in seen:
            continue
        seen.add(trajectory)
        yield Failure(
            kind=kind,
            trajectory=trajectory,
            call=call,
            tool=table.tools[table.tool[row]],
            index=int(table.index[row]),
            reduction=float(reduction[row]),
        )
        if len(seen) == MAX_FAILURES:
            return
