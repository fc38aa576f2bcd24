"""What a batch of scored trajectories looks like in one row of numbers, and when such rows say that training collapses.

Keys are the ones that reach TensorBoard, W&B, `metrics.jsonl` and the report; every engine computes them here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import FloatArray

PREFIX = "deltah/"
OUTCOME = PREFIX + "outcome"
"""Mean F1 of graded trajectories."""
ACCURACY = PREFIX + "accuracy"
"""Share of graded trajectories with outcome 1."""
CALLS = PREFIX + "calls"
"""Calls per trajectory, n."""
NO_CALL_RATE = PREFIX + "no_call_rate"
"""Share of trajectories without a call."""
REDUCTION_RATE = PREFIX + "reduction_rate"
"""Share of all calls that reduced entropy, m / n over the batch."""
EFFICIENCY = PREFIX + "efficiency"
"""Mean of m / n over trajectories with calls: the factor of the sparse reward."""
DELTA_H_MEAN = PREFIX + "delta_h_mean"
"""Mean signal over defined calls, nats."""
DELTA_H_STD = PREFIX + "delta_h_std"
"""Its standard deviation, nats."""
UNDEFINED_RATE = PREFIX + "undefined_rate"
"""Share of calls without a ΔH (unanswered, empty segment)."""
UNDECIDED_RATE = PREFIX + "undecided_rate"
"""Share of calls whose interval contains -margin."""
PRODUCTIVITY = PREFIX + "productivity"
"""Correct trajectories per call."""
SEGMENT_TOKENS = PREFIX + "segment_tokens"
"""Mean pooled tokens of a segment: low-entropy filler would raise it."""
SEGMENT_ENTROPY = PREFIX + "segment_entropy"
"""Mean H(r_k) over measured segments, nats."""

DROPPED = PREFIX + "dropped"
"""Share of trajectories that got no advantage: without an outcome, or alone with one in their group. Written by whoever
assigned the credit (`BatchCredit.dropped_rate`), not by `batch_metrics`, which knows no groups."""
SECONDS = PREFIX + "seconds"
"""Wall time of all steps so far; written by the run, not by `batch_metrics`."""


@dataclass(slots=True)
class _Mean:
    """Running mean and sum of squared deviations (Chan, Golub and LeVeque 1979), for values that stream by."""

    n: int = 0
    mean: float = float("nan")
    deviations: float = 0.0

    def add(self, values: FloatArray) -> None:
        """Take values; those that are not finite are left out."""
        finite = [value for value in values.tolist() if math.isfinite(value)]  # few: faster than as an array
        if not finite:
            return
        mean = math.fsum(finite) / len(finite)
        self._merge(len(finite), mean, math.fsum((value - mean) ** 2 for value in finite))

    def add_one(self, value: float) -> None:
        """Take one finite value."""
        self._merge(1, value, 0.0)

    def merge(self, other: _Mean) -> None:
        """Take the values that another one took."""
        if other.n:
            self._merge(other.n, other.mean, other.deviations)

    def _merge(self, n: int, mean: float, deviations: float) -> None:
        total, shift = self.n + n, mean - self.mean if self.n else 0.0
        self.deviations += deviations + shift**2 * self.n * n / total
        self.mean = self.mean + shift * n / total if self.n else mean
        self.n = total

    @property
    def std(self) -> float:
        """Population standard deviation; NaN over nothing."""
        return float(np.sqrt(self.deviations / self.n)) if self.n else float("nan")


class MetricsTally:
    """The row of `batch_metrics`, for trajectories that stream by: add each, then ask for the row."""

    def __init__(self) -> None:
        """Start with no trajectory."""
        self._outcome, self._correct, self._calls, self._no_call = _Mean(), _Mean(), _Mean(), _Mean()
        self._efficiency, self._delta, self._tokens, self._entropy = _Mean(), _Mean(), _Mean(), _Mean()
        self._n_calls = self._n_reduced = self._n_undefined = self._n_undecided = self._n_correct = 0

    def merge(self, other: MetricsTally) -> None:
        """Take the trajectories that another tally took."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, _Mean):
                mine.merge(value)
            else:
                setattr(self, name, mine + value)

    @property
    def n(self) -> int:
        """Trajectories taken."""
        return self._calls.n

    def add(self, signal: Signal, outcome: float | None) -> None:
        """Take one trajectory.

        Args:
            signal: What its entropies say.
            outcome: In [0, 1]; None or NaN where not graded.
        """
        n, m = signal.n_calls, signal.n_reduced
        if outcome is not None and np.isfinite(outcome):
            self._outcome.add_one(outcome)
            self._correct.add_one(float(outcome >= 1.0))
            self._n_correct += outcome >= 1.0
        self._calls.add_one(float(n))
        self._no_call.add_one(float(n == 0))
        if n:
            self._efficiency.add_one(m / n)
        self._delta.add(signal.call_value)
        self._tokens.add(signal.segment_tokens[signal.segment_tokens > 0].astype(np.float64))
        self._entropy.add(signal.segment_entropy)
        self._n_calls += n
        self._n_reduced += m
        self._n_undefined += signal.count(Verdict.UNDEFINED)
        self._n_undecided += signal.count(Verdict.UNDECIDED)

    def row(self) -> dict[str, float]:
        """The metrics so far; NaN where there is nothing to average."""
        return {
            OUTCOME: self._outcome.mean,
            ACCURACY: self._correct.mean,
            CALLS: self._calls.mean,
            NO_CALL_RATE: self._no_call.mean,
            REDUCTION_RATE: _share(self._n_reduced, self._n_calls),
            EFFICIENCY: self._efficiency.mean,
            DELTA_H_MEAN: self._delta.mean,
            DELTA_H_STD: self._delta.std,
            UNDEFINED_RATE: _share(self._n_undefined, self._n_calls),
            UNDECIDED_RATE: _share(self._n_undecided, self._n_calls),
            PRODUCTIVITY: _share(self._n_correct, self._n_calls),
            SEGMENT_TOKENS: self._tokens.mean,
            SEGMENT_ENTROPY: self._entropy.mean,
        }


def batch_metrics(signals: Sequence[Signal], outcomes: FloatArray) -> dict[str, float]:
    """One row for a batch; NaN where there is nothing to average.

    Args:
        signals: (B,)
        outcomes: (B,) in [0, 1], NaN where not graded.
    """
    tally = MetricsTally()
    for signal, outcome in zip(signals, outcomes.tolist(), strict=True):
        tally.add(signal, outcome)
    return tally.row()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@dataclass(kw_only=True)
class CollapseMonitor:
    """Watches rows of `batch_metrics` for the known ways in which entropy-reward training dies.

    Compares the mean of the last `window` rows with that of the first. Each alarm is given once.
    """

    window: int = 5
    calls_left: float = 0.1
    """Alarm when calls per trajectory fell below this share of the start while the outcome fell."""
    outcome_drop: float = 0.05
    spread_left: float = 0.1
    """Alarm when the standard deviation of ΔH fell below this share of the start: the signal is dying."""
    _rows: list[Mapping[str, float]] = field(default_factory=list, init=False)
    _given: set[str] = field(default_factory=set, init=False)

    def update(self, row: Mapping[str, float]) -> list[str]:
        """Take one row, return the alarms it raises, as sentences."""
        self._rows.append({key: row.get(key, float("nan")) for key in (CALLS, OUTCOME, DELTA_H_STD)})
        if len(self._rows) < 2 * self.window:
            return []
        (calls0, calls), (f0, f), (std0, std) = (self._ends(key) for key in (CALLS, OUTCOME, DELTA_H_STD))
        alarms = []
        if calls < self.calls_left * calls0 and f < f0 - self.outcome_drop:
            alarms.append(
                f"calls per trajectory fell from {calls0:.2f} to {calls:.2f} while the outcome fell from {f0:.3f} to "
                f"{f:.3f}: the policy is dropping its tools"
            )
        if std < self.spread_left * std0:
            alarms.append(
                f"the standard deviation of the signal fell from {std0:.3g} to {std:.3g} nats: entropy has collapsed "
                "and its reduction no longer tells calls apart"
            )
        fresh = [alarm for alarm in alarms if alarm.split(" fell")[0] not in self._given]
        self._given |= {alarm.split(" fell")[0] for alarm in alarms}
        return fresh

    def _ends(self, key: str) -> tuple[float, float]:
        values = np.array([row[key] for row in self._rows])
        return _finite_mean(values[: self.window]), _finite_mean(values[-self.window :])


def _finite_mean(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
