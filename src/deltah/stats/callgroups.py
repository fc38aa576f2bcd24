"""Statistics of groups of calls (by tool, by round index, by outcome) from sums a question, in bounded memory.

A summary needs of each question only four sums, and beyond `MAX_RESAMPLED` questions only those of as many groups of
questions (`deltah.stats.bootstrap`). So `CallTables` keeps single questions while they are few, and afterwards puts
every question into one of that many groups by a hash of its name: the groups are uneven, which a ratio of sums does not
mind, and the same whatever the order of the trajectories and however many processes read them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from hashlib import blake2b
from math import isfinite
from typing import Final, Generic, TypeVar

import numpy as np

from deltah.calls.rows import CallRow
from deltah.calls.scored import ClusterKey
from deltah.calls.waste import WasteLevel
from deltah.core.signal_types import Verdict
from deltah.core.types import CallStatus
from deltah.stats.bootstrap import MAX_RESAMPLED, Estimate, interval, ratio, ratio_replicates
from deltah.stats.summary import RESAMPLES, CallSummary

MAX_TOOLS: Final = 1000
"""Tools told apart; further ones are one group."""
OTHER_TOOLS: Final = "(other tools)"
Group = TypeVar("Group", bound=Hashable)


class CallGroup:
    """One group of calls."""

    def __init__(self) -> None:
        """Start with no call."""
        self._n = self._errors = self._unanswered = 0
        self._undecided = self._undefined = self._certified = self._likely = 0
        self._sums: dict[Hashable, list[float]] = {}
        """By question: reduced calls, calls with a label, sum of the signals, calls with a signal."""

    def add(self, row: CallRow, question: Hashable | None = None) -> None:
        """Take one call.

        Args:
            row: The call.
            question: What it is resampled with; None: its own question.
        """
        self._n += 1
        self._errors += row.status is CallStatus.ERROR
        self._unanswered += row.status is CallStatus.UNANSWERED
        self._undecided += row.label is Verdict.UNDECIDED
        self._undefined += row.label is Verdict.UNDEFINED
        self._certified += row.verdict is WasteLevel.CERTIFIED
        self._likely += row.verdict is WasteLevel.LIKELY
        key = row.cluster if question is None else question
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = [0.0, 0.0, 0.0, 0.0]
        if row.label is not None:
            sums[0] += row.label is Verdict.REDUCED
            sums[1] += 1.0
        if isfinite(row.delta_h):
            sums[2] += row.delta_h
            sums[3] += 1.0

    def merge(self, other: CallGroup) -> None:
        """Take the calls that another group took."""
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        self._add_sums(other._sums.items())

    def hash_questions(self) -> None:
        """Put questions into groups from now on told apart by number."""
        named, self._sums = self._sums, {}
        self._add_sums(
            (question_group(name) if isinstance(name, tuple) else name, sums) for name, sums in named.items()
        )

    def _add_sums(self, found: Iterable[tuple[Hashable, list[float]]]) -> None:
        for key, values in found:
            mine = self._sums.get(key)
            self._sums[key] = values.copy() if mine is None else [a + b for a, b in zip(mine, values, strict=True)]

    def summary(self, *, resamples: int = RESAMPLES, seed: int = 0) -> CallSummary:
        """Statistics; those over nothing are NaN and count what was left out."""
        sums = np.array(list(self._sums.values()), dtype=np.float64).reshape(-1, 2, 2)
        numerators, denominators = sums[..., 0], sums[..., 1]
        replicates = ratio_replicates(numerators, denominators, resamples=resamples, seed=seed)

        def estimate(s: int, *, rate: bool) -> Estimate:
            low, high = interval(replicates[:, s], int((denominators[:, s] > 0).sum()), rate=rate)
            measured = int(denominators[:, s].sum())
            value = float(ratio(numerators[:, s].sum(), denominators[:, s].sum()))
            return Estimate(value=value, low=low, high=high, n=measured, left_out=self._n - measured)

        return CallSummary(
            n=self._n,
            errors=self._errors,
            unanswered=self._unanswered,
            reduction_rate=estimate(0, rate=True),
            mean_value=estimate(1, rate=False),
            undecided=self._undecided,
            undefined=self._undefined,
            certified=self._certified,
            likely=self._likely,
        )


class CallTables:
    """Calls by tool, by round and by outcome while trajectories stream by; those of parts of a log can be merged."""

    def __init__(self) -> None:
        """Start with no call."""
        self._tools = _Table[str]()
        self._rounds = _Table[int]()
        self._outcomes = _Table[bool]()
        self._questions: dict[ClusterKey, None] | None = {}
        """Those met so far; None once they are too many to be told apart."""

    def add(self, rows: Iterable[CallRow]) -> None:
        """Take calls; only those of graded trajectories stand in the table by outcome."""
        last, question = None, None
        for row in rows:
            if row.cluster is not last:
                last, question = row.cluster, self._question(row.cluster)
            self._tools.group(self._tool(row.tool)).add(row, question)
            self._rounds.group(row.round).add(row, question)
            if row.correct is not None:
                self._outcomes.group(row.correct).add(row, question)

    def merge(self, other: CallTables) -> None:
        """Take the calls that other tables, which are of no use afterwards, took."""
        if self._questions is not None and other._questions is not None:
            self._questions |= other._questions
            self._hash_if_many()
        if self._questions is None or other._questions is None:
            self._hash()
            other._hash()
        for name, group in other._tools.groups.items():
            self._tools.group(self._tool(name)).merge(group)
        self._rounds.merge(other._rounds)
        self._outcomes.merge(other._outcomes)

    def by_tool(self) -> dict[str, CallSummary]:
        """In the order in which the tools were met."""
        return self._tools.summaries()

    def by_round(self) -> dict[int, CallSummary]:
        """In the order of the rounds, from 1."""
        found = self._rounds.summaries()
        return {k: found[k] for k in sorted(found)}

    def by_outcome(self) -> dict[bool, CallSummary]:
        """Of graded trajectories, by whether they are correct."""
        return self._outcomes.summaries()

    def _question(self, name: ClusterKey) -> ClusterKey | int:
        """What the calls of a question are resampled with."""
        if self._questions is not None:
            self._questions[name] = None
            self._hash_if_many()
        return question_group(name) if self._questions is None else name

    def _tool(self, name: str) -> str:
        groups = self._tools.groups
        return name if name in groups or len(groups) < MAX_TOOLS else OTHER_TOOLS

    def _hash_if_many(self) -> None:
        if self._questions is not None and len(self._questions) > MAX_RESAMPLED:
            self._hash()

    def _hash(self) -> None:
        self._questions = None
        for table in (self._tools, self._rounds, self._outcomes):
            for group in table.groups.values():
                group.hash_questions()


class _Table(Generic[Group]):
    """Groups by name, in the order in which they were met."""

    def __init__(self) -> None:
        self.groups: dict[Group, CallGroup] = {}

    def group(self, name: Group) -> CallGroup:
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = CallGroup()
        return found

    def merge(self, other: _Table[Group]) -> None:
        for name, group in other.groups.items():
            self.group(name).merge(group)

    def summaries(self) -> dict[Group, CallSummary]:
        return {name: group.summary() for name, group in self.groups.items()}


def question_group(question: ClusterKey) -> int:
    """Number of the group that a question belongs to, in 0 ... `MAX_RESAMPLED` - 1; the same in every process."""
    name = "\0".join(question).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest()) % MAX_RESAMPLED


def summarise_calls(rows: Iterable[CallRow], *, resamples: int = RESAMPLES, seed: int = 0) -> CallSummary:
    """Summarise calls, clustered by question; statistics over nothing are NaN and count what was left out."""
    group = CallGroup()
    for row in rows:
        group.add(row)
    return group.summary(resamples=resamples, seed=seed)
