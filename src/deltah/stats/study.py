"""The study of a table of calls: associations and the numbers behind the figures. "Reduction" is -ΔH in nats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec
import numpy as np

from deltah.errors import DataError
from deltah.runs import nan_to_none
from deltah.stats.associations import PERMUTATIONS, Association, Progress, associate, distinct
from deltah.stats.bootstrap import LEVEL, Estimate, ratio_estimates
from deltah.stats.columns import CALL_INDEX, REDUCTION, StudyTable, is_binary, known
from deltah.stats.replicates import cluster_sums, controls_of
from deltah.stats.summary import RESAMPLES

SCHEMA_VERSION: Final = 1
FEW_QUESTIONS: Final = 30
"""Below so many questions of equal size a study says how far off its intervals and tests may be."""
BINS: Final = 24
MAX_INDICES: Final = 8
"""Later call indices share the last row."""
MAX_POINTS: Final = 80  # corners of a ROC curve
MAX_FAILURES: Final = 10
ROC_SIGNALS: Final = (REDUCTION, "position_corrected", "entropy_before", "placebo_controlled", "gold_gain", CALL_INDEX)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityHistogram:
    """Reduction of good calls and of the others."""

    label: str
    edges: tuple[float, ...]
    """(bins + 1,) nats; the outermost bins hold all beyond. Bins are (a, b]."""
    good: tuple[int, ...]
    other: tuple[int, ...]
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RocCurve:
    """Corners of one signal's curve for one label, from (0, 0) to (1, 1)."""

    label: str
    signal: str
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRow:
    """Calls of one round index: mean reduction, and share of good calls or mean of a graded label."""

    index: str
    n: int
    reduction: Estimate
    labels: Mapping[str, Estimate]


class FailureKind(StrEnum):
    """Where entropy and outcome disagree: confidently wrong, or a revision that the signal punishes."""

    FELL_AND_WRONG = "fell_and_wrong"
    ROSE_AND_RIGHT = "rose_and_right"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One call where entropy and outcome disagree."""

    kind: FailureKind
    trajectory: str
    call: str
    tool: str
    index: int
    reduction: float


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study found; `run_study` makes it."""

    calls: int
    questions: int
    trajectories: int
    resamples: int
    permutations: int
    seed: int
    controls: tuple[str, ...]
    """What the partial correlations hold fixed."""
    associations: tuple[Association, ...]
    """Every signal, and the call-index baseline, against every label."""
    histograms: tuple[QualityHistogram, ...]
    rocs: tuple[RocCurve, ...]
    positions: tuple[PositionRow, ...]
    failures: tuple[Failure, ...]
    failure_counts: Mapping[FailureKind, int]
    """All calls of each kind, also those not listed in `failures`."""
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in order."""
        return tuple(dict.fromkeys(a.label for a in self.associations))

    def of_label(self, label: str) -> tuple[Association, ...]:
        """Associations of one label, the best AUC (of a graded label: Spearman) first, those without numbers last."""

        def rank(a: Association) -> tuple[bool, float]:
            value = a.spearman.value if a.graded else a.auc.value
            return a.reason is not None, -value if value == value else 0.0

        return tuple(sorted((a for a in self.associations if a.label == label), key=rank))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON: NaN becomes null."""
        return dict(nan_to_none({"schema_version": SCHEMA_VERSION, "level": LEVEL, **asdict(self)}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyResult:
        """Read what `as_dict` gave, as from a study.json: null becomes NaN.

        Raises:
            DataError: if it was written by another version, or is no study.
        """
        version = data.get("schema_version") if isinstance(data, Mapping) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the study has schema_version {version!r}, expected {SCHEMA_VERSION}; run `deltah study` again"
            )
        try:
            return msgspec.convert(_none_to_nan(dict(data)), cls)
        except msgspec.ValidationError as error:
            raise DataError(f"the study cannot be read: {error}; run `deltah study` again") from error


def _none_to_nan(value: Any, key: str = "") -> Any:
    """Undo `nan_to_none`, but for the reason of an association."""
    if value is None:
        return None if key == "reason" else float("nan")
    if isinstance(value, Mapping):
        return {name: _none_to_nan(item, name) for name, item in value.items()}
    return [_none_to_nan(item) for item in value] if isinstance(value, list | tuple) else value


def run_study(
    table: StudyTable,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> StudyResult:
    """Run the study on a table of calls.

    Args:
        table: From `build_table`.
        resamples: Bootstrap resamples of every interval.
        permutations: Sign flips of every test; with few, Holm's correction of a large table cannot reach 5 %.
        seed: Of the resampling and of the flips.
        on_progress: Called with (done, total) resamples.

    Raises:
        InvalidValueError: if fewer than 100 resamples or permutations are asked for.
    """
    associations = associate(table, resamples=resamples, permutations=permutations, seed=seed, on_progress=on_progress)
    found, counts = failures(table)
    sizes, notes = np.bincount(table.cluster).astype(np.float64), list(table.notes)
    effective = sizes.sum() ** 2 / np.square(sizes).sum()
    if effective < FEW_QUESTIONS and any(a.reason is None for a in associations):
        notes.append(
            f"The {distinct(table.cluster)} questions, with their unequal numbers of calls, weigh as much as "
            f"{effective:.0f} equal ones. With fewer than {FEW_QUESTIONS} the intervals can be too narrow: in "
            "simulations 86 to 100 % of them contained the truth, where 95 % are meant, and tests rejected up to 11 % "
            "of true nulls, where 5 % are meant."
        )
    return StudyResult(
        calls=len(table),
        questions=distinct(table.cluster),
        trajectories=len({trajectory for trajectory, _ in table.calls}),
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        controls=controls_of(table).columns,
        associations=associations,
        histograms=histograms(table),
        rocs=roc_curves(table, associations),
        positions=positions(table, resamples=resamples, seed=seed),
        failures=found,
        failure_counts=counts,
        notes=tuple(notes),
    )


def histograms(table: StudyTable) -> tuple[QualityHistogram, ...]:
    """Histogram of reduction by each 0/1 label, all on the same edges."""
    reduction = table.signals[REDUCTION]
    measured = reduction[known(reduction)]
    limit = float(np.quantile(np.abs(measured), 0.99)) if len(measured) else 1.0
    edges = np.linspace(-1.0, 1.0, BINS + 1) * (limit or 1.0)
    bins, found = np.clip(np.searchsorted(edges, reduction, side="left") - 1, 0, BINS - 1), []
    shared = tuple(edges.tolist())
    for name, label in table.labels.items():
        kinds = [known(reduction) & (label == value) for value in (1.0, 0.0)]
        good, other = (tuple(np.bincount(bins[kind], minlength=BINS).tolist()) for kind in kinds)
        left_out = len(table) - sum(good) - sum(other)
        if is_binary(label):
            found.append(QualityHistogram(label=name, edges=shared, good=good, other=other, left_out=left_out))
    return tuple(found)


def roc_curves(table: StudyTable, associations: Iterable[Association]) -> tuple[RocCurve, ...]:
    """Curves of `ROC_SIGNALS` for every pair that has an AUC."""
    found, columns = list[RocCurve](), table.with_baseline()
    for a in associations:
        if a.signal not in ROC_SIGNALS or not np.isfinite(a.auc.value):
            continue
        signal, label = columns[a.signal], table.labels[a.label]
        used = np.flatnonzero(known(signal) & known(label))
        order = used[np.argsort(-signal[used], kind="stable")]
        last = np.flatnonzero(np.diff(signal[order], append=np.nan))  # of each group of ties
        kept = np.unique(np.round(np.linspace(0, len(last), min(MAX_POINTS, len(last) + 1))).astype(np.int64))
        counts = [np.append(0.0, np.cumsum(label[order] == value)[last])[kept] for value in (0.0, 1.0)]
        false, true = (tuple((c / c[-1]).tolist()) for c in counts)
        found.append(RocCurve(label=a.label, signal=a.signal, false_positive_rate=false, true_positive_rate=true))
    return tuple(found)


def positions(table: StudyTable, *, resamples: int, seed: int) -> tuple[PositionRow, ...]:
    """Mean reduction and label rates by call index."""
    level, columns = np.minimum(table.index, MAX_INDICES), {REDUCTION: table.signals[REDUCTION], **table.labels}
    rates, rows = [name != REDUCTION and is_binary(column) for name, column in columns.items()], []
    for k in np.unique(level):
        here = level == k
        codes = np.unique(table.cluster[here], return_inverse=True)[1].reshape(-1)
        values = np.stack([column[here] for column in columns.values()])
        parts = (np.nan_to_num(values), known(values), ~known(values))
        sums = np.stack([cluster_sums(part, codes, int(codes.max()) + 1) for part in parts], axis=-1)
        found = ratio_estimates(sums, rates, resamples=resamples, seed=seed)
        means = dict(zip(columns, found, strict=True))
        index = f"{k} and later" if k == MAX_INDICES < table.index.max() else str(k)
        rows.append(PositionRow(index=index, n=int(here.sum()), reduction=means.pop(REDUCTION), labels=means))
    return tuple(rows)


def failures(table: StudyTable) -> tuple[tuple[Failure, ...], Mapping[FailureKind, int]]:
    """The clearest disagreements of entropy and outcome, one per trajectory; how many calls disagree in all."""
    label, reduction = table.labels.get("correct", np.full(len(table), np.nan)), table.signals[REDUCTION]
    members = {
        FailureKind.FELL_AND_WRONG: np.flatnonzero((reduction > 0) & (label == 0.0)),
        FailureKind.ROSE_AND_RIGHT: np.flatnonzero((reduction < 0) & (label == 1.0)),
    }
    found = list[Failure]()
    for kind, rows in members.items():
        clearest = dict[str, Failure]()
        for row in rows[np.argsort(-np.abs(reduction[rows]), kind="stable")].tolist():
            trajectory, call = table.calls[row]
            tool, index, value = table.tools[table.tool[row]], int(table.index[row]), float(reduction[row])
            failure = Failure(kind=kind, trajectory=trajectory, call=call, tool=tool, index=index, reduction=value)
            clearest.setdefault(trajectory, failure)
        found += list(clearest.values())[:MAX_FAILURES]
    return tuple(found), {kind: len(rows) for kind, rows in members.items()}
