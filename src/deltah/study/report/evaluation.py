"""One evaluation of one arm as the report holds it: a few numbers a trajectory, one row a call, a sample to view.

The trajectories themselves stream by once and are let go, so that memory follows the number of calls, not of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from deltah.core.scored import Signal
from deltah.core.types import FloatArray, SpanQuality, Trajectory
from deltah.study.calls import CallRow, rows_of
from deltah.study.report.sample import Candidate, Collector, Reason
from deltah.study.savings import Prices, SavingsAccumulator, SavingsReport
from deltah.study.summary import STATISTICS, ClusterKey, Summary, Tallies, cluster_key, summarise_tallies, tally_of
from deltah.study.waste import Waste, waste_of_calls

Scored: TypeAlias = tuple[Trajectory, Signal | None]
"""A trajectory with its signal; None for one without entropies."""
Watch: TypeAlias = Callable[[Trajectory, Signal | None, tuple[frozenset[Waste], ...]], None]


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
    def of(
        cls,
        scored: Iterable[Scored],
        *,
        seed: int = 0,
        costs: Costs | None = None,
        watch: Watch | None = None,
        view: bool = True,
    ) -> Evaluation:
        """Read trajectories once, holding one at a time.

        Args:
            scored: Each trajectory with its signal.
            seed: Of the draw of trajectories to view.
            costs: For savings in money and seconds; unknown where not given.
            watch: Called with each trajectory, its signal and the waste of its calls as they stream by.
            view: Whether to keep trajectories to view.
        """
        known = costs or Costs()
        savings = known.accumulator()
        collector, values, clusters = Collector(seed), list[FloatArray](), list[ClusterKey]()
        needs, rows, approximate, calls = list[bool | None](), list[CallRow](), 0, 0
        estimators, temperatures, mixed, assumed = set[str](), set[float](), 0, dict[str, int]()
        for trajectory, signal in scored:
            waste = waste_of_calls(trajectory)
            if watch is not None:
                watch(trajectory, signal, waste)
            if view:
                collector.offer(trajectory, signal, waste)
            values.append(tally_of(trajectory, signal, waste))
            clusters.append(cluster_key(trajectory))
            savings.add(trajectory, signal, waste)
            rows += rows_of(trajectory, signal, waste)
            calls += trajectory.n_calls
            needed = trajectory.metadata.get("needs_tools")
            needs.append(None if needed is None else bool(needed))
            estimators.add(trajectory.estimator.value)
            if trajectory.temperature is not None:
                temperatures.add(trajectory.temperature)
            approximate += trajectory.spans is SpanQuality.APPROXIMATE
            mixed += bool(trajectory.metadata.get("mixed_sampling"))
            if "vocab_size_from" in trajectory.metadata and trajectory.model is not None:
                assumed[trajectory.model] = int(trajectory.metadata.get("vocab_size") or 0)
        table = np.array(values, dtype=np.float64).reshape(len(values), len(STATISTICS), 3)
        return cls(
            tallies=Tallies(values=table, clusters=tuple(clusters), calls=calls),
            needs_tools=tuple(needs),
            rows=tuple(rows),
            candidates=collector.candidates(),
            estimators=frozenset(estimators),
            temperatures=frozenset(temperatures),
            approximate=approximate,
            savings=savings.result(),
            costs=known,
            mixed=mixed,
            assumed_vocabularies=assumed,
        )

    def subset(self, needs_tools: bool | None) -> Tallies:
        """Tallies of the trajectories whose question needs tools, or needs none; of all for None."""
        if needs_tools is None:
            return self.tallies
        return self.tallies.subset(np.array([needed is needs_tools for needed in self.needs_tools], dtype=np.bool_))

    def summarise(self, *, needs_tools: bool | None = None, seed: int = 0) -> Summary:
        """Summary of all trajectories, or of those whose question needs tools or needs none."""
        return summarise_tallies(self.subset(needs_tools), seed=seed)
