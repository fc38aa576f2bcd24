"""The pilot study as one value: the table of associations, the figures' numbers, and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
import numpy as np

from deltah.errors import DataError
from deltah.runs.directory import nan_to_none
from deltah.stats.associations import PERMUTATIONS, Association, Progress, associate, distinct
from deltah.stats.bootstrap import LEVEL
from deltah.stats.controls import controls_of
from deltah.stats.figures import (
    Failure,
    FailureKind,
    PositionRow,
    QualityHistogram,
    RocCurve,
    failures,
    histograms,
    positions,
    roc_curves,
)
from deltah.stats.markdown import study_markdown
from deltah.stats.summary import RESAMPLES
from deltah.stats.table import StudyTable

SCHEMA_VERSION: Final = 1
FEW_QUESTIONS: Final = 30
"""Questions of equal size below which a study says how far off its intervals and tests may be."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a pilot study found; `run_study` makes it."""

    calls: int
    questions: int
    trajectories: int
    """That have a call."""
    resamples: int
    permutations: int
    seed: int
    controls: tuple[str, ...]
    """Columns of the design that the partial correlations hold fixed."""
    associations: tuple[Association, ...]
    """Every signal, and the call-index baseline, against every label; label by label."""
    histograms: tuple[QualityHistogram, ...]
    rocs: tuple[RocCurve, ...]
    positions: tuple[PositionRow, ...]
    failures: tuple[Failure, ...]
    failure_counts: Mapping[FailureKind, int]
    """All calls of each kind, also those not listed in `failures`."""
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the table's order."""
        return tuple(dict.fromkeys(a.label for a in self.associations))

    def of_label(self, label: str) -> tuple[Association, ...]:
        """Associations of one label, the best AUC (of a graded label: Spearman) first, those without numbers last."""
        return tuple(sorted((a for a in self.associations if a.label == label), key=_rank))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON: NaN becomes null."""
        found: dict[str, Any] = nan_to_none({"schema_version": SCHEMA_VERSION, "level": LEVEL, **asdict(self)})
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudyResult:
        """Read what `as_dict` gave, as from a study.json: null becomes NaN.

        Raises:
            DataError: if it was written by another version, or is no study.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(
                f"the study has schema_version {version!r}, expected {SCHEMA_VERSION}; run `deltah study` again"
            )
        try:
            return msgspec.convert(_none_to_nan(dict(data)), cls)
        except msgspec.ValidationError as error:
            raise DataError(f"the study cannot be read: {error}; run `deltah study` again") from error

    def to_markdown(self) -> str:
        """The study as a Markdown page: one table a label, the position effect, the failure cases."""
        return study_markdown(self)


def _none_to_nan(value: Any, key: str = "") -> Any:
    """Undo `nan_to_none`; the reason of an association is text or none."""
    if value is None:
        return None if key == "reason" else float("nan")
    if isinstance(value, Mapping):
        return {name: _none_to_nan(item, name) for name, item in value.items()}
    return [_none_to_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _rank(a: Association) -> tuple[bool, float]:
    value = a.spearman.value if a.graded else a.auc.value
    return (a.reason is not None, -value if value == value else 0.0)


def run_study(
    table: StudyTable,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> StudyResult:
    """Run the pilot study on a table of calls.

    Args:
        table: From `build_table`.
        resamples: Bootstrap resamples of every interval.
        permutations: Sign flips of every test; with few, Holm's correction of a large table cannot reach 5 %.
        seed: Of the resampling and of the flips.
        on_progress: Told how far the resampling is.

    Raises:
        InvalidValueError: if fewer than 100 resamples or permutations are asked for.
    """
    associations = associate(table, resamples=resamples, permutations=permutations, seed=seed, on_progress=on_progress)
    found, counts = failures(table)
    return StudyResult(
        calls=len(table),
        questions=distinct(table.cluster),
        trajectories=len({call.trajectory for call in table.calls}),
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
        notes=(*table.notes, *(_thin_questions(table) if any(a.reason is None for a in associations) else ())),
    )


def _thin_questions(table: StudyTable) -> Iterator[str]:
    """What few or very uneven questions do to intervals and p-values, where they do."""
    sizes = np.bincount(table.cluster)
    effective = float(sizes.sum()) ** 2 / float(np.square(sizes, dtype=np.float64).sum())
    if effective < FEW_QUESTIONS:
        yield (
            f"the {distinct(table.cluster)} questions, with their unequal numbers of calls, weigh as much as "
            f"{effective:.0f} equal ones: below {FEW_QUESTIONS}, simulated intervals contained the truth in 86 to "
            "100 % of all cases and tests rejected up to 11 % of true nulls, where 95 and 5 % are meant"
        )
