"""One row of numbers for a batch of scored trajectories, and alarms when such rows say that training collapses.

The keys are those of TensorBoard, W&B, `metrics.jsonl` and the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltah.core.signals import Signal, Verdict
from deltah.core.types import FloatArray
from deltah.errors import InvalidValueError

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
SIGNAL_MEAN = PREFIX + "signal_mean"
"""Mean signal over defined calls, in its unit."""
SIGNAL_STD = PREFIX + "signal_std"
"""Its standard deviation, in the same unit."""
UNDEFINED_RATE = PREFIX + "undefined_rate"
"""Share of calls without a signal (unanswered, empty segment)."""
UNDECIDED_RATE = PREFIX + "undecided_rate"
"""Share of calls whose interval contains -margin."""
PRODUCTIVITY = PREFIX + "productivity"
"""Correct trajectories per call."""
SEGMENT_TOKENS = PREFIX + "segment_tokens"
"""Mean pooled tokens of a segment: low-entropy filler would raise it."""
SEGMENT_ENTROPY = PREFIX + "segment_entropy"
"""Mean H(r_k) over measured segments, nats."""

DROPPED = PREFIX + "dropped"
"""`BatchCredit.dropped_rate`: share of trajectories that got no advantage; written by whoever assigned the credit."""
SECONDS = PREFIX + "seconds"
"""Wall time of all steps so far; written by the run."""
FORMER_KEYS: dict[str, str] = {PREFIX + "delta_h_mean": SIGNAL_MEAN, PREFIX + "delta_h_std": SIGNAL_STD}
"""As runs before 0.2.0 wrote them."""


def batch_metrics(signals: Sequence[Signal], outcomes: FloatArray) -> dict[str, float]:
    """One row for a batch; NaN where there is nothing to average.

    Args:
        signals: (B,)
        outcomes: (B,) in [0, 1], NaN where not graded.

    Raises:
        InvalidValueError: if the two differ in length.
    """
    if len(signals) != len(outcomes):
        raise InvalidValueError(f"got {len(outcomes)} outcomes for {len(signals)} signals; give one for each")
    correct = outcomes[np.isfinite(outcomes)] >= 1.0
    calls = np.array([signal.n_calls for signal in signals], dtype=np.float64)
    reduced = np.array([signal.n_reduced for signal in signals], dtype=np.float64)
    values, tokens, entropy = (
        np.concatenate([np.empty(0), *(getattr(signal, name) for signal in signals)])
        for name in ("call_value", "segment_tokens", "segment_entropy")
    )
    verdicts = [verdict for signal in signals for verdict in signal.call_verdicts]
    n_calls = calls.sum()
    return {
        OUTCOME: _finite_mean(outcomes),
        ACCURACY: _finite_mean(correct),
        CALLS: _finite_mean(calls),
        NO_CALL_RATE: _finite_mean(calls == 0),
        REDUCTION_RATE: _share(reduced.sum(), n_calls),
        EFFICIENCY: _finite_mean(reduced[calls > 0] / calls[calls > 0]),
        SIGNAL_MEAN: _finite_mean(values),
        SIGNAL_STD: float(values[np.isfinite(values)].std()) if np.isfinite(values).any() else float("nan"),
        UNDEFINED_RATE: _share(verdicts.count(Verdict.UNDEFINED), n_calls),
        UNDECIDED_RATE: _share(verdicts.count(Verdict.UNDECIDED), n_calls),
        PRODUCTIVITY: _share(correct.sum(), n_calls),
        SEGMENT_TOKENS: _finite_mean(tokens[tokens > 0]),
        SEGMENT_ENTROPY: _finite_mean(entropy),
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


@dataclass(kw_only=True)
class CollapseMonitor:
    """Watches rows of `batch_metrics` for the known ways in which entropy-reward training collapses.

    Compares the mean of the last `window` rows with that of the first. Each alarm is given once.
    """

    window: int = 5
    calls_left: float = 0.1
    """Alarm when calls per trajectory fell below this share of the start while the outcome fell by `outcome_drop`."""
    outcome_drop: float = 0.05
    spread_left: float = 0.1
    """Alarm when the standard deviation of the signal fell below this share of the start."""
    _rows: list[Mapping[str, float]] = field(default_factory=list, init=False)
    _given: set[str] = field(default_factory=set, init=False)

    def update(self, row: Mapping[str, float]) -> list[str]:
        """Take one row, return the alarms it raises, as sentences."""
        self._rows.append({key: row.get(key, float("nan")) for key in (CALLS, OUTCOME, SIGNAL_STD)})
        if len(self._rows) < 2 * self.window:
            return []
        (calls0, calls), (f0, f), (std0, std) = (self._ends(key) for key in (CALLS, OUTCOME, SIGNAL_STD))
        alarms = {}
        if calls < self.calls_left * calls0 and f < f0 - self.outcome_drop:
            alarms["calls"] = (
                f"calls per trajectory fell from {calls0:.2f} to {calls:.2f} while the outcome fell from {f0:.3f} to "
                f"{f:.3f}: the policy is dropping its tools"
            )
        if std < self.spread_left * std0:
            alarms["spread"] = (
                f"the standard deviation of the signal fell from {std0:.3g} to {std:.3g}: entropy has collapsed "
                "and its reduction no longer tells calls apart"
            )
        fresh = [text for kind, text in alarms.items() if kind not in self._given]
        self._given |= alarms.keys()
        return fresh

    def _ends(self, key: str) -> tuple[float, float]:
        values = np.array([row[key] for row in self._rows])
        return _finite_mean(values[: self.window]), _finite_mean(values[-self.window :])


def _finite_mean(values: NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
