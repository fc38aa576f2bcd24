"""What a report is made of: arms, their metrics and evaluations, and what is kept of the trajectories of each.

Trajectories are read once and let go, so that memory follows the number of calls, not of tokens. Kept are a few numbers
a trajectory, one row a call, and four bounded lists of trajectories that the viewer may show: drawn by chance, the most
wasteful, and the two failure cases of the method, *certain and wrong* (entropy fell most, the answer is not correct)
and *rise and right* (it rose most, the answer is correct). The draw is a bottom-k sample: of every question the first
trajectory before the second, and among those the questions with the smallest hash of seed and name. The hash knows
nothing of the run, so every run draws the same questions, and one question can be read in all of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np

from deltah.calls.grading import ClusterKey, cluster_key, is_correct
from deltah.calls.logs import Scored, ScoredLog
from deltah.calls.savings import Costs
from deltah.calls.table import CallTable
from deltah.calls.waste import Waste, WasteLevel, waste_levels, waste_of_calls
from deltah.core.signals import Signal, Verdict
from deltah.core.types import Trajectory
from deltah.errors import InvalidValueError
from deltah.report.viewer_record import change, record
from deltah.stats.study import StudyResult

START: Final = "start"
"""Name under which the policy before training is shown."""
_NEEDS_TOOLS: Final = "try_cast(metadata->>'needs_tools' AS BOOLEAN)"
SUBSETS: Final = {"all": "true", "tools needed": _NEEDS_TOOLS, "no tool needed": f"NOT {_NEEDS_TOOLS}"}
"""Label of a set of trajectories to its condition on the table `trajectories`, in SQL."""


class Reason(StrEnum):
    """Why a trajectory is kept."""

    WASTEFUL = "wasteful"
    CERTAIN_AND_WRONG = "certain_and_wrong"
    RISE_AND_RIGHT = "rise_and_right"
    DRAWN = "drawn"


KEPT: Final[Mapping[Reason, int]] = {
    Reason.WASTEFUL: 40,
    Reason.CERTAIN_AND_WRONG: 20,
    Reason.RISE_AND_RIGHT: 20,
    Reason.DRAWN: 200,
}
"""Trajectories of one evaluation held for each reason."""
_Rank: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One trajectory that the viewer may show."""

    order: int
    """Place in its evaluation, from 0."""
    cluster: ClusterKey
    repeat: int
    """How many trajectories of the same question came before it in its evaluation."""
    record: Mapping[str, Any]


@dataclass(slots=True)
class Collector:
    """Takes trajectories one by one and keeps the best of each list."""

    seed: int
    _heaps: dict[Reason, list[tuple[_Rank, int, Candidate]]] = field(default_factory=lambda: {r: [] for r in Reason})
    _seen: Counter[ClusterKey] = field(default_factory=Counter)
    _count: int = 0

    def offer(self, trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> None:
        """Keep a trajectory where it is among the best; its record is made only then.

        Args:
            trajectory: C calls.
            signal: None for a trajectory without entropies.
            waste: (C,) classes of each call.
        """
        cluster = cluster_key(trajectory)
        order, repeat = self._count, self._seen[cluster]
        self._count += 1
        self._seen[cluster] += 1
        ranks = {**_notable(trajectory, signal, waste), Reason.DRAWN: (-repeat, -_hash(self.seed, cluster))}
        wanted = {
            reason: rank
            for reason, rank in ranks.items()
            if len(heap := self._heaps[reason]) < KEPT[reason] or (rank, -order) > heap[0][:2]
        }
        if not wanted:
            return
        candidate = Candidate(order=order, cluster=cluster, repeat=repeat, record=record(trajectory, signal, waste))
        for reason, rank in wanted.items():
            heap = self._heaps[reason]
            heapq.heappush(heap, (rank, -order, candidate))
            if len(heap) > KEPT[reason]:
                heapq.heappop(heap)

    def candidates(self) -> dict[Reason, tuple[Candidate, ...]]:
        """What was kept, best first."""
        return {
            reason: tuple(entry[2] for entry in sorted(heap, key=lambda entry: entry[:2], reverse=True))
            for reason, heap in self._heaps.items()
        }


def _notable(t: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> dict[Reason, _Rank]:
    """Rank of a trajectory in each list it may enter; more is better."""
    levels = waste_levels(signal, waste)
    not_reduced = 0 if signal is None else signal.call_verdicts.count(Verdict.NOT_REDUCED)
    wasted = (levels.count(WasteLevel.CERTIFIED), levels.count(WasteLevel.LIKELY), not_reduced)
    ranks: dict[Reason, _Rank] = {Reason.WASTEFUL: wasted} if any(wasted) else {}
    rise, correct = change(signal), is_correct(t)
    if np.isfinite(rise) and correct is not None:
        if rise < 0 and not correct:
            ranks[Reason.CERTAIN_AND_WRONG] = (-rise,)
        if rise > 0 and correct:
            ranks[Reason.RISE_AND_RIGHT] = (rise,)
    return ranks


def _hash(seed: int, cluster: ClusterKey) -> int:
    """A number that looks drawn at random, the same for one seed and question everywhere."""
    name = "\0".join((str(seed), *cluster)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Trajectories of one arm, decoded in one way: their table of calls, and those that the viewer may show."""

    table: CallTable
    candidates: Mapping[Reason, tuple[Candidate, ...]]
    """Best first within each reason."""
    costs: Costs = field(default_factory=Costs)
    """For savings in money and seconds."""

    def __len__(self) -> int:
        """Trajectories."""
        return self.table.n_trajectories

    @classmethod
    def of(cls, scored: Iterable[Scored] | ScoredLog, *, seed: int = 0, costs: Costs | None = None) -> Evaluation:
        """Read trajectories once, holding one at a time and those that the viewer may show.

        Args:
            scored: Each trajectory with its signal; or a log of them.
            seed: Seed of the draw of trajectories to view.
            costs: For savings in money and seconds; unknown where not given.
        """
        table, collector = CallTable(), Collector(seed)
        read = scored.read() if isinstance(scored, ScoredLog) else ((*pair, False) for pair in scored)
        for trajectory, signal, matched in read:
            waste = waste_of_calls(trajectory)
            table.add(trajectory, signal, waste, matched=matched)
            collector.offer(trajectory, signal, waste)
        return cls(table=table, candidates=collector.candidates(), costs=costs or Costs())

    def rows(self, query: str) -> list[Any]:
        """Answer of an SQL query on `calls` and `trajectories`, as tuples."""
        return self.table.sql(query).fetchall()

    def met(self, *columns: str) -> list[Any]:
        """Distinct values of a column of the trajectories that have it, or tuples of several, in order."""
        listed, measured = ", ".join(columns), " AND ".join(f"{column} IS NOT NULL" for column in columns)
        rows = self.rows(f"SELECT DISTINCT {listed} FROM trajectories WHERE {measured} ORDER BY ALL")
        return [row[0] for row in rows] if len(columns) == 1 else rows

    @property
    def graders(self) -> frozenset[str]:
        """Who gave the outcomes; empty where there is none."""
        return frozenset(self.met("grader"))


Evaluations: TypeAlias = Mapping[str, Evaluation]
"""Evaluation name ("sampled", "greedy", "logs") to what is kept of its trajectories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmData:
    """One training run, or one set of logs."""

    name: str
    evaluations: Evaluations = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    """Rows of metrics.jsonl; empty where nothing was trained."""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """Wall time of the training; None when not measured."""
    problems: Sequence[str] = ()
    """Lines that could not be read, each with file, line and reason."""
    n_problems: int = 0
    """All of them, also those beyond the ones kept."""
    notes: Sequence[str] = ()
    """What a reader must know of these numbers, one sentence each."""
    study: StudyResult | None = None
    """What a study of these trajectories found (`study.json` beside them), shown as a section of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a page shows.

    Raises:
        InvalidValueError: if there is no arm, or two arms share a name.
    """

    title: str
    arms: tuple[ArmData, ...]
    start: Evaluations = field(default_factory=dict)
    """Evaluations of the policy all arms started from."""
    notes: Sequence[str] = ()
    """What a reader must know of the whole page; each arm has its own beside these."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Footer: machine, versions, seed, date; whatever the caller knows. The report adds no clock of its own."""
    seed: int = 0
    """Of the bootstrap and of the choice of trajectories to view."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.columns]
        if not self.arms:
            raise InvalidValueError("a report needs at least one arm or trace file; got none")
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise InvalidValueError(f"two arms are named {repeated!r}; give each its own name")

    @property
    def columns(self) -> tuple[ArmData, ...]:
        """The arms, with the start before them when it was evaluated."""
        return (ArmData(name=START, evaluations=self.start), *self.arms) if self.start else self.arms

    @property
    def trained(self) -> bool:
        """Whether the arms are those of an experiment: training runs, or what stands beside their start."""
        return bool(self.start) or any(arm.metrics for arm in self.arms)

    @property
    def noun(self) -> str:
        """What a reader calls one of the columns: an arm of an experiment, a log, or one of several runs."""
        if self.trained:
            return "arm"
        return "log" if len(self.arms) == 1 and not self.arms[0].config else "run"

    @property
    def tools(self) -> frozenset[str]:
        """Names of all tools that were called."""
        every = (e for arm in self.columns for e in arm.evaluations.values())
        return frozenset(tool for e in every for (tool,) in e.rows("SELECT DISTINCT tool FROM calls"))

    @property
    def graders(self) -> frozenset[str]:
        """Who gave the outcomes of all evaluations."""
        return frozenset[str]().union(*(e.graders for arm in self.columns for e in arm.evaluations.values()))

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        """Names of all evaluations in order of first appearance, "sampled" before all others."""
        names = list(dict.fromkeys(name for arm in self.columns for name in arm.evaluations))
        return tuple(sorted(names, key=lambda name: name != "sampled"))
