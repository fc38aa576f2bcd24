"""Whole logs scored at once, by several processes where the log has files that can be read by themselves.

One datum's way: a file -> trajectories -> waste and signal -> sums (`FactTally`, `MetricsTally`, `CallTables`)
and encoded rows, which are merged in the order of the files. So every number is the same for any
number of processes, and what is kept does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

from deltah.calls.callfile import CallRecord, CallWriter, call_records
from deltah.calls.facts import FactTally, LogFacts
from deltah.calls.grading import Answers
from deltah.calls.logs import ScoredLog, graded_by
from deltah.calls.rows import rows_of
from deltah.calls.savings import Costs
from deltah.calls.scored import score_measured
from deltah.calls.waste import waste_of_calls
from deltah.core.metrics import MetricsTally
from deltah.core.signals import SignalConfig
from deltah.core.types import Trajectory
from deltah.stats.callgroups import CallTables

_Encoder = Callable[[Iterable[CallRecord]], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogScore:
    """A scored log."""

    facts: LogFacts
    metrics: MetricsTally
    """Of the trajectories with entropies."""
    calls: CallTables


def score_log(
    log: ScoredLog,
    *,
    costs: Costs | None = None,
    rows: CallWriter | None = None,
    waste: bool = True,
    workers: int | None = 1,
) -> LogScore:
    """Score every trajectory of a log, reading it once.

    Args:
        log: What it met is then told by its reader.
        costs: For savings in money and seconds; unknown where not given.
        rows: Gets one row a call.
        waste: Whether to look for waste in the text; without it, no call counts as waste.
        workers: See `deltah.traces.TraceReader.map`.

    Raises:
        DataError: if the rows cannot be written; at the first problem, if the log is read strictly.
        InvalidValueError: if `workers` is below 1.
    """
    job = _Job(
        signal=log.signal,
        answers=log.answers_path,
        costs=costs or Costs(),
        encode=None if rows is None else rows.encode,
        waste=waste,
    )
    whole = _Kept(job.costs)

    def write_rows() -> None:
        if rows is not None:
            rows.write(*whole.take_rows())

    for kept in log.reader.map(partial(_score_file, job), workers=workers, watch=log.watch):
        whole.merge(kept)
        write_rows()
    log.n_matched = whole.n_matched
    return LogScore(facts=whole.facts.facts(), metrics=whole.metrics, calls=whole.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a process needs to know to score a file."""

    signal: SignalConfig
    answers: str | None
    costs: Costs
    encode: _Encoder | None
    """How rows are written; None: they are not wanted."""
    waste: bool


class _Kept:
    """What is kept of trajectories."""

    def __init__(self, costs: Costs) -> None:
        self.facts, self.metrics, self.calls = FactTally(costs), MetricsTally(), CallTables()
        self.n_matched = 0
        self._rows = list[bytes]()
        self._n_rows = 0

    def add(self, trajectory: Trajectory, job: _Job, answers: Answers | None) -> None:
        trajectory, matched = graded_by(answers, trajectory)
        signal = score_measured(trajectory, job.signal)
        waste = waste_of_calls(trajectory) if job.waste else (frozenset(),) * trajectory.n_calls
        self.n_matched += matched
        self.facts.add(trajectory, signal, waste)
        self.calls.add(rows_of(trajectory, signal, waste))
        if signal is not None:
            self.metrics.add(signal, trajectory.outcome)
        if job.encode is not None and trajectory.calls:
            self._rows.append(job.encode(call_records(trajectory, signal, waste if job.waste else None)))
            self._n_rows += trajectory.n_calls

    def merge(self, other: _Kept) -> None:
        self.facts.merge(other.facts)
        self.calls.merge(other.calls)
        self.metrics.merge(other.metrics)
        self.n_matched += other.n_matched
        self._rows += other._rows
        self._n_rows += other._n_rows

    def take_rows(self) -> tuple[bytes, int]:
        """Rows that were not taken yet, and their number."""
        taken = b"".join(self._rows), self._n_rows
        self._rows, self._n_rows = [], 0
        return taken


def _score_file(job: _Job, number: int, trajectories: Iterable[Trajectory]) -> _Kept:
    del number
    answers = None if job.answers is None else _answers(job.answers)
    kept = _Kept(job.costs)
    for trajectory in trajectories:
        kept.add(trajectory, job, answers)
    return kept


@lru_cache(maxsize=1)
def _answers(path: str) -> Answers:
    """The answers' file, read once in each process."""
    return Answers(path)
