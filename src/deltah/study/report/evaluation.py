"""One evaluation of one arm as the report holds it: a few numbers a trajectory, one row a call, a sample to view.

The trajectories themselves stream by once and are let go, so that memory follows the number of calls, not of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from deltah.core.scored import Signal
from deltah.core.types import FloatArray, SpanQuality, Trajectory
from deltah.study.calls import CallRow, rows_of
from deltah.study.report.sample import Candidate, Collector, Reason
from deltah.study.savings import Prices, SavingsAccumulator, SavingsReport
from deltah.study.summary import (
    STATISTICS,
    ClusterKey,
    Scored,
    Summary,
    Tallies,
    cluster_key,
    summarise_tallies,
    tally_of,
)
from deltah.study.waste import Waste, waste_of_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What tokens, calls and waiting cost, as far as the reader of the report knows."""

    prices: Prices | None = None
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one call by tool, for calls whose duration was not measured."""

    @property
    def currency(self) -> str:
        """Of the prices."""
        return (self.prices or Prices()).currency

    def accumulator(self) -> SavingsAccumulator:
        """A new accumulator of savings at these costs."""
        return SavingsAccumulator(self.prices, latency_s=self.latency_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is kept of N trajectories; `Evaluation.of` reads them."""

    tallies: Tallies
    needs_tools: tuple[bool | None, ...]
    """(N,) what the task says; None where it does not."""
    rows: tuple[CallRow, ...]
    """One a call, in order."""
    candidates: Mapping[Reason, tuple[Candidate, ...]]
    """Trajectories that the viewer may show, best first within each reason."""
    estimators: frozenset[str]
    temperatures: frozenset[float]
    """Those that were stated."""
    approximate: int
    """Trajectories whose borders of reasoning and calls are estimated."""
    savings: SavingsReport
    """What dropping wasteful calls would have saved."""
    costs: Costs
    """Those that `savings` was reckoned with."""
    mixed: int = 0
    """Trajectories that mix sampling temperatures or modes of log-probabilities."""
    assumed_vocabularies: Mapping[str, int] = field(default_factory=dict)
    """Models whose vocabulary size was taken from their name, with that size."""

    def __len__(self) -> int:
        """N."""
        return len(self.tallies)

    @classmethod
    def of(cls, scored: Iterable[Scored], *, seed: int = 0, costs: Costs | None = None) -> Evaluation:
        """Read trajectories once, holding one at a time and those that the viewer may show.

        Args:
            scored: Each trajectory with its signal.
            seed: Of the draw of trajectories to view.
            costs: For savings in money and seconds; unknown where not given.
        """
        tally, collector = EvaluationTally(costs), Collector(seed)
        for trajectory, signal in scored:
            waste = waste_of_calls(trajectory)
            collector.offer(trajectory, signal, waste)
            tally.add(trajectory, signal, waste)
        return tally.evaluation(collector.candidates())

    def subset(self, needs_tools: bool | None) -> Tallies:
        """Tallies of the trajectories whose question needs tools, or needs none; of all for None."""
        if needs_tools is None:
            return self.tallies
        return self.tallies.subset(np.array([needed is needs_tools for needed in self.needs_tools], dtype=np.bool_))

    def summarise(self, *, needs_tools: bool | None = None, seed: int = 0) -> Summary:
        """Summary of all trajectories, or of those whose question needs tools or needs none."""
        return summarise_tallies(self.subset(needs_tools), seed=seed)


class EvaluationTally:
    """What is kept of trajectories while they stream by; those of parts of a log can be merged in order."""

    def __init__(self, costs: Costs | None = None) -> None:
        """Start with no trajectory.

        Args:
            costs: For savings in money and seconds; unknown where not given.
        """
        self._costs = costs or Costs()
        self._savings = self._costs.accumulator()
        self._values: list[FloatArray] = []
        self._clusters: list[ClusterKey] = []
        self._needs_tools: list[bool | None] = []
        self._rows: list[CallRow] = []
        self._estimators: set[str] = set()
        self._temperatures: set[float] = set()
        self._assumed: dict[str, int] = {}
        self._approximate = self._mixed = 0

    def add(self, trajectory: Trajectory, signal: Signal | None, waste: tuple[frozenset[Waste], ...]) -> None:
        """Take one trajectory.

        Args:
            trajectory: C calls.
            signal: None for one without entropies.
            waste: (C,) classes of each call.
        """
        self._values.append(tally_of(trajectory, signal, waste))
        self._clusters.append(cluster_key(trajectory))
        self._savings.add(trajectory, signal, waste)
        self._rows += rows_of(trajectory, signal, waste)
        needed = trajectory.metadata.get("needs_tools")
        self._needs_tools.append(None if needed is None else bool(needed))
        self._estimators.add(trajectory.estimator.value)
        if trajectory.temperature is not None:
            self._temperatures.add(trajectory.temperature)
        self._approximate += trajectory.spans is SpanQuality.APPROXIMATE
        self._mixed += bool(trajectory.metadata.get("mixed_sampling"))
        if "vocab_size_from" in trajectory.metadata and trajectory.model is not None:
            self._assumed[trajectory.model] = int(trajectory.metadata.get("vocab_size") or 0)

    def merge(self, other: EvaluationTally) -> None:
        """Take the trajectories that another tally, of the same costs, took."""
        self._savings.merge(other._savings)
        self._values += other._values
        self._clusters += other._clusters
        self._needs_tools += other._needs_tools
        self._rows += other._rows
        self._estimators |= other._estimators
        self._temperatures |= other._temperatures
        self._assumed |= other._assumed
        self._approximate += other._approximate
        self._mixed += other._mixed

    def evaluation(self, candidates: Mapping[Reason, tuple[Candidate, ...]] | None = None) -> Evaluation:
        """What was kept.

        Args:
            candidates: Trajectories that the viewer may show.
        """
        table = np.array(self._values, dtype=np.float64).reshape(len(self._values), len(STATISTICS), 3)
        return Evaluation(
            tallies=Tallies(values=table, clusters=tuple(self._clusters), calls=len(self._rows)),
            needs_tools=tuple(self._needs_tools),
            rows=tuple(self._rows),
            candidates={} if candidates is None else candidates,
            estimators=frozenset(self._estimators),
            temperatures=frozenset(self._temperatures),
            approximate=self._approximate,
            savings=self._savings.result(),
            costs=self._costs,
            mixed=self._mixed,
            assumed_vocabularies=self._assumed,
        )
