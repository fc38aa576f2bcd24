"""The study's table: one row a call, what every signal said of it and what is known of its quality.

Columns are arrays of N calls. **Signals are turned so that greater means more entropy reduction, or more evidence that
the call was good**; labels are 1 for good and 0 for not good, or any graded number of a user. NaN is "not known" in
both: such a call is left out of the statistics of that column and counted there.

Signals and labels are made in `deltah.stats.columns`; nothing here computes a statistic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from deltah.core.types import BoolArray, FloatArray, IntArray
from deltah.errors import InvalidValueError

CALL_INDEX: Final = "call_index"
"""Name of the baseline that knows nothing but the position of a call."""


class CallReference(NamedTuple):
    """Where a call stands."""

    trajectory: str
    call: str


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """N calls, columnar.

    Raises:
        InvalidValueError: if columns differ in length, a code is out of range, or a label holds an infinity.
    """

    cluster: IntArray
    """(N,) number of the question a call belongs to, 0 ... Q - 1."""
    index: IntArray
    """(N,) k, the index of the call's round, counted from 1."""
    tokens: IntArray
    """(N, 2) pooled tokens of r_(k-1) and r_k."""
    tool: IntArray
    """(N,) positions in `tools`."""
    tools: tuple[str, ...]
    calls: tuple[CallReference, ...]
    """(N,)"""
    signals: Mapping[str, FloatArray]
    """(N,) each; greater means more entropy reduction or more evidence; NaN where undefined."""
    labels: Mapping[str, FloatArray]
    """(N,) each; 1 good, 0 not, or a graded number; NaN where unknown."""
    notes: tuple[str, ...] = ()
    """What a reader must know of how the columns were made."""

    def __post_init__(self) -> None:
        for name in ("cluster", "index", "tokens", "tool"):
            object.__setattr__(self, name, _frozen(getattr(self, name), np.int64))
        for name in ("signals", "labels"):
            columns = {key: _frozen(column, np.float64) for key, column in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(columns))
        n = len(self.calls)
        shapes = {name: getattr(self, name).shape for name in ("cluster", "index", "tool")}
        shapes |= {name: column.shape for name, column in (*self.signals.items(), *self.labels.items())}
        wrong = next((name for name, shape in shapes.items() if shape != (n,)), None)
        if wrong is not None or self.tokens.shape != (n, 2):
            got = self.tokens.shape if wrong is None else shapes[wrong]
            raise InvalidValueError(f"column {wrong or 'tokens'!r} has shape {got}; the table has {n} calls")
        if n and (self.tool.min() < 0 or self.tool.max() >= len(self.tools) or self.cluster.min() < 0):
            raise InvalidValueError("a tool or cluster number is out of range; number them from 0")
        for name, column in (*self.signals.items(), *self.labels.items()):
            if np.isinf(column).any():
                raise InvalidValueError(
                    f"column {name!r} holds an infinity; expected finite numbers, NaN where unknown"
                )

    def __len__(self) -> int:
        """N."""
        return len(self.calls)

    @property
    def n_clusters(self) -> int:
        """Q: questions that have a call."""
        return int(self.cluster.max()) + 1 if len(self) else 0

    def with_baseline(self) -> Mapping[str, FloatArray]:
        """All signals and, last, the call index alone, turned so that an earlier call is greater."""
        return {**self.signals, CALL_INDEX: -self.index.astype(np.float64)}


def is_binary(label: FloatArray) -> bool:
    """Whether a label's known values are 0 and 1 only."""
    known = label[np.isfinite(label)]
    return bool(np.isin(known, (0.0, 1.0)).all())


def known(column: FloatArray) -> BoolArray:
    """(N,) where a column has a value."""
    return np.asarray(~np.isnan(column))


def _frozen(values: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array
