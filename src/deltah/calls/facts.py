"""What a reader of a log's numbers must know of the log, gathered while its trajectories stream by; small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltah.calls.savings import Costs, SavingsReport
from deltah.calls.waste import Waste
from deltah.core.signal_types import Signal
from deltah.core.types import SpanQuality, Trajectory
from deltah.traces.conversation import TOKENS_WITHOUT_LOGPROBS
from deltah.traces.fields import UNFIT_OUTCOME
from deltah.traces.vocabularies import FROM_DEFAULT, FROM_MODEL_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What was met in a log."""

    trajectories: int
    calls: int
    unmeasured: int
    """Calls of trajectories without entropies."""
    unbounded: int
    """Calls whose signal has no upper bound, so that they can never be certified."""
    unlisted_tokens: int
    """Drawn tokens that the log gives no log-probability of, by the server's own count."""
    with_unlisted: int
    """Trajectories that have some."""
    approximate: int
    """Trajectories whose borders of reasoning and calls are estimated."""
    unfit_outcomes: int
    """Trajectories without an outcome because the grade in the log is none in [0, 1]."""
    unfit_outcome: float | None
    """One of those grades."""
    mixed: int
    """Trajectories that mix sampling temperatures or modes of log-probabilities."""
    estimators: frozenset[str]
    temperatures: frozenset[float]
    """Those that were stated."""
    assumed_vocabularies: Mapping[str, int]
    """Models whose vocabulary size was taken from their name, with that size."""
    without_vocabulary: int
    """Trajectories whose vocabulary size is not known at all, so that the default was assumed."""
    savings: SavingsReport
    """What dropping wasteful calls would have saved."""
    costs: Costs
    """Those that `savings` was reckoned with."""


class FactTally:
    """Gathers facts; those of parts of a log can be merged."""

    def __init__(self, costs: Costs | None = None) -> None:
        """Start with no trajectory.

        Args:
            costs: For savings in money and seconds; unknown where not given.
        """
        self._costs = costs or Costs()
        self._savings = self._costs.accumulator()
        self._unmeasured = self._unbounded = 0
        self._unlisted_tokens = self._with_unlisted = self._approximate = self._mixed = self._unfit = 0
        self._without_vocabulary = 0
        self._an_unfit: float | None = None
        self._estimators: set[str] = set()
        self._temperatures: set[float] = set()
        self._assumed: dict[str, int] = {}

    def add(self, trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> None:
        """Take one trajectory.

        Args:
            trajectory: C calls.
            signal: None for one without entropies.
            waste: (C,) classes of each call.
        """
        self._savings.add(trajectory, signal, tuple(waste))
        if signal is None:
            self._unmeasured += trajectory.n_calls
        else:
            self._unbounded += int(np.isinf(signal.call_upper).sum())
        unlisted = trajectory.metadata.get(TOKENS_WITHOUT_LOGPROBS)
        if isinstance(unlisted, int) and unlisted > 0:
            self._unlisted_tokens += unlisted
            self._with_unlisted += 1
        self._approximate += trajectory.spans is SpanQuality.APPROXIMATE
        self._mixed += bool(trajectory.metadata.get("mixed_sampling"))
        if trajectory.outcome is None and isinstance(unfit := trajectory.metadata.get(UNFIT_OUTCOME), int | float):
            self._unfit += 1
            self._an_unfit = float(unfit) if self._an_unfit is None else self._an_unfit
        self._estimators.add(trajectory.estimator.value)
        if trajectory.temperature is not None:
            self._temperatures.add(trajectory.temperature)
        origin, size = (trajectory.metadata.get(key) for key in ("vocab_size_from", "vocab_size"))
        if origin == FROM_MODEL_NAME and trajectory.model is not None:
            self._assumed[trajectory.model] = size if isinstance(size, int) else 0
        self._without_vocabulary += origin == FROM_DEFAULT

    def merge(self, other: FactTally) -> None:
        """Take the trajectories that another tally, of the same costs, took."""
        self._savings.merge(other._savings)
        self._estimators |= other._estimators
        self._temperatures |= other._temperatures
        self._assumed |= other._assumed
        self._an_unfit = other._an_unfit if self._an_unfit is None else self._an_unfit
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)

    def facts(self) -> LogFacts:
        """What was met so far."""
        savings = self._savings.result()
        return LogFacts(
            trajectories=savings.trajectories,
            calls=savings.calls,
            unmeasured=self._unmeasured,
            unbounded=self._unbounded,
            unlisted_tokens=self._unlisted_tokens,
            with_unlisted=self._with_unlisted,
            approximate=self._approximate,
            unfit_outcomes=self._unfit,
            unfit_outcome=self._an_unfit,
            mixed=self._mixed,
            estimators=frozenset(self._estimators),
            temperatures=frozenset(self._temperatures),
            assumed_vocabularies=dict(self._assumed),
            without_vocabulary=self._without_vocabulary,
            savings=savings,
            costs=self._costs,
        )
