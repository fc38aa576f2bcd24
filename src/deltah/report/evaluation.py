"""One evaluation of one arm as the report holds it: a few numbers a trajectory, one row a call, a sample to view.

The trajectories themselves stream by once and are let go, so that memory follows the number of calls, not of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from deltah.calls.facts import FactTally, LogFacts
from deltah.calls.outcomes import Grader, grader_of
from deltah.calls.rows import CallRow, rows_of
from deltah.calls.savings import Costs
from deltah.calls.scored import ClusterKey, Scored, cluster_key
from deltah.calls.waste import waste_of_calls
from deltah.core.types import FloatArray
from deltah.report.sample import Candidate, Collector, Reason
from deltah.stats.summary import STATISTICS, Summary, Tallies, summarise_tallies, tally_of


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
    facts: LogFacts
    graders: frozenset[Grader]
    """Who gave the outcomes; empty where there is none."""
    signals: frozenset[tuple[str, float]] = frozenset()
    """Names of the signals that judged the calls, each with its margin; empty where nothing was measured."""

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
        facts, collector = FactTally(costs), Collector(seed)
        values, clusters = list[FloatArray](), list[ClusterKey]()
        needs, rows, graders = list[bool | None](), list[CallRow](), set[Grader | None]()
        signals = set[tuple[str, float]]()
        for trajectory, signal in scored:
            waste = waste_of_calls(trajectory)
            facts.add(trajectory, signal, waste)
            collector.offer(trajectory, signal, waste)
            values.append(tally_of(trajectory, signal, waste))
            clusters.append(cluster_key(trajectory))
            rows += rows_of(trajectory, signal, waste)
            needed = trajectory.metadata.get("needs_tools")
            needs.append(None if needed is None else bool(needed))
            graders.add(grader_of(trajectory))
            if signal is not None:
                signals.add((signal.name, signal.margin))
        table = np.array(values, dtype=np.float64).reshape(len(values), len(STATISTICS), 3)
        return cls(
            tallies=Tallies(values=table, clusters=tuple(clusters), calls=len(rows)),
            needs_tools=tuple(needs),
            rows=tuple(rows),
            candidates=collector.candidates(),
            facts=facts.facts(),
            graders=frozenset(found for found in graders if found is not None),
            signals=frozenset(signals),
        )

    def subset(self, needs_tools: bool | None) -> Tallies:
        """Tallies of the trajectories whose question needs tools, or needs none; of all for None."""
        if needs_tools is None:
            return self.tallies
        return self.tallies.subset(np.array([needed is needs_tools for needed in self.needs_tools], dtype=np.bool_))

    def summarise(self, *, needs_tools: bool | None = None, seed: int = 0) -> Summary:
        """Summary of all trajectories, or of those whose question needs tools or needs none."""
        return summarise_tallies(self.subset(needs_tools), seed=seed)
