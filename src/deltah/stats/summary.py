r"""What a table of calls says: outcome, calls, entropy reduction, waste, each with an interval.

Every statistic is a ratio of sums over questions, one GROUP BY on the table of calls: the reduction rate is
$\sum m / \sum n$ over all calls, undefined and undecided ones included in n. What was not measured is left out and
counted, never taken as 0. Many questions are resampled in groups, by a hash of their names, so that memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from deltah.calls.grading import OUTCOME
from deltah.calls.table import CallTable
from deltah.core import metrics
from deltah.core.registry import Entry
from deltah.core.signals import SIGNALS, Signal
from deltah.core.types import FloatArray, Trajectory
from deltah.stats.bootstrap import MAX_RESAMPLED, Cell, Estimate, difference_estimates, estimate_cell, ratio_estimates
from deltah.text_format import MISSING, number

RESAMPLES: Final = 2000
MAX_TOOLS: Final = 1000
"""Tools with a row of their own, in the order they are met; further ones are one group."""
MAX_NAME_CHARS: Final = 100
OTHER_TOOLS: Final = "(other tools)"
Source: TypeAlias = CallTable | Iterable[Trajectory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The statistics of a set of trajectories, in the order tables show them."""

    outcome: Estimate
    """Mean outcome, in [0, 1]."""
    accuracy: Estimate
    """Share of trajectories with an outcome of 1."""
    calls_per_trajectory: Estimate
    """Mean calls of a trajectory, failed and unanswered ones included."""
    correct_per_call: Estimate
    """Tool productivity: correct trajectories over calls; ungraded trajectories are left out with their calls."""
    reduction_rate: Estimate
    """m / n: certified reduced calls over all calls."""
    mean_value: Estimate
    """Mean signal of a call (nats for ΔH): point values of the calls that have one."""
    undecided: Estimate
    """Share of calls whose interval contains the margin."""
    undefined: Estimate
    """Share of calls that have no signal: an empty segment, or no answer."""
    waste: Estimate
    """Share of calls whose text shows waste and that did not certainly reduce entropy: certified and likely ones."""
    certified_waste: Estimate
    """Share of calls that are certified waste; trajectories without entropies are left out with their calls."""
    no_call: Estimate
    """Share of trajectories without a call."""
    sampled_tokens: Estimate
    """Mean tokens the policy drew in a trajectory."""
    questions: int
    """Clusters; of a comparison those in both sets: the pairs."""
    untold: bool
    """Whether there are calls, and of none is it certain whether it reduced entropy: the rate then says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Statistics):
    """Statistics of one set of trajectories."""

    trajectories: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Statistics):
    """Differences b - a over the questions that both sets hold; n and left_out of each estimate count questions."""

    left_out: int
    """Questions in only one of the sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """Statistics of a set of calls; a number counts calls."""

    n: int
    errors: int
    unanswered: int
    reduction_rate: Estimate
    """Certified reduced calls over all calls with entropies."""
    mean_value: Estimate
    """Mean signal of the calls that have one."""
    undecided: int
    undefined: int
    certified: int
    """Certified waste."""
    likely: int

    @property
    def told(self) -> int:
        """Calls of which it is certain whether they reduced entropy."""
        return self.reduction_rate.n - self.undecided - self.undefined


_MEASURED, _GRADED = "signal IS NOT NULL", "outcome IS NOT NULL"
_RATIOS: Final = {
    "outcome": ("outcome", "1", _GRADED),
    "accuracy": ("correct::INT", "1", _GRADED),
    "calls_per_trajectory": ("calls", "1", "true"),
    "correct_per_call": ("correct::INT", "calls", _GRADED),
    "reduction_rate": ("reduced", "calls", _MEASURED),
    "mean_value": ("value_sum", "valued", "true"),
    "undecided": ("undecided", "calls", _MEASURED),
    "undefined": ("undefined", "calls", _MEASURED),
    "waste": ("certified + likely", "calls", "true"),
    "certified_waste": ("certified", "calls", _MEASURED),
    "no_call": ("(calls = 0)::INT", "1", "true"),
    "sampled_tokens": ("sampled_tokens", "1", "sampled_tokens IS NOT NULL"),
}
"""What one trajectory adds, in SQL: numerator, denominator (left out where it is not known), whether it is known."""
STATISTICS: Final = tuple(_RATIOS)
RATES: Final = frozenset(STATISTICS) - {"calls_per_trajectory", "correct_per_call", "mean_value", "sampled_tokens"}
"""Means of values in [0, 1]."""
_COUNTS: Final = {
    "n": "count(*)",
    "measured": "count(verdict)",
    "errors": "count(*) FILTER (status = 'error')",
    "unanswered": "count(*) FILTER (status = 'unanswered')",
    "reduced": "count(*) FILTER (verdict = 'reduced')",
    "undecided": "count(*) FILTER (verdict = 'undecided')",
    "undefined": "count(*) FILTER (verdict = 'undefined')",
    "certified": "count(*) FILTER (waste_level = 'certified')",
    "likely": "count(*) FILTER (waste_level = 'likely')",
    "valued": "count(value)",
    "value_sum": "coalesce(sum(value), 0)",
}
"""Of a set of calls, in SQL."""
_NAME: Final = f"left(tool, {MAX_NAME_CHARS})"
_FIRST: Final = f"SELECT {_NAME} FROM calls GROUP BY ALL ORDER BY min(rowid) LIMIT {MAX_TOOLS}"
BY_TOOL: Final = f"if({_NAME} IN ({_FIRST}), {_NAME}, '{OTHER_TOOLS}')"
"""Group of a call by its tool, for `calls_by`."""


def _listed(expressions: dict[str, str]) -> str:
    return ", ".join(f'{expression} AS "{name}"' for name, expression in expressions.items())


_PER_TRAJECTORY: Final = (
    f"SELECT t.*, {_listed({name: f'coalesce(c.{name}, 0)' for name in _COUNTS})} FROM trajectories t "
    f"LEFT JOIN (SELECT key, {_listed(_COUNTS)} FROM calls GROUP BY key) c USING (key)"
)


_METRICS: Final = {
    metrics.OUTCOME: "avg(outcome)",
    metrics.ACCURACY: "avg(correct::INT)",
    metrics.CALLS: "avg(calls)",
    metrics.NO_CALL_RATE: "avg((calls = 0)::INT)",
    metrics.REDUCTION_RATE: "sum(reduced) / sum(calls)",
    metrics.EFFICIENCY: "avg(reduced / calls) FILTER (calls > 0)",
    metrics.UNDEFINED_RATE: "sum(undefined) / sum(calls)",
    metrics.UNDECIDED_RATE: "sum(undecided) / sum(calls)",
    metrics.PRODUCTIVITY: "coalesce(sum(correct::INT), 0) / sum(calls)",
    metrics.SEGMENT_TOKENS: "sum(segment_tokens) / sum(segments)",
    metrics.SEGMENT_ENTROPY: "sum(entropy_sum) / sum(entropies)",
    metrics.SIGNAL_MEAN: "(SELECT avg(value) FROM calls)",
    metrics.SIGNAL_STD: "(SELECT stddev_pop(value) FROM calls)",
}


def summarise(
    source: Source,
    signals: Sequence[Signal | None] | None = None,
    *,
    where: str = "true",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Summarise a set of trajectories.

    Args:
        source: A table, or trajectories in memory.
        signals: Of trajectories in memory, None for one without entropies (default: scored with the defaults).
        where: Condition on the table `trajectories`, in SQL: which of them to take.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Raises:
        InvalidValueError: if `signals` has another length than the trajectories.
    """
    calls = source if isinstance(source, CallTable) else CallTable.of(source, signals)
    sums = _stacked(_cluster_sums(calls, where, _question(calls)).values())
    counted = "SELECT count(DISTINCT cluster), count(*), coalesce(sum(calls), 0)::BIGINT FROM trajectories"
    ((n_questions, n_trajectories, n_calls),) = calls.sql(f"{counted} WHERE {where}").fetchall()
    found = ratio_estimates(sums, [name in RATES for name in STATISTICS], resamples=resamples, seed=seed)
    estimates = dict(zip(STATISTICS, found, strict=True))
    return Summary(questions=n_questions, trajectories=n_trajectories, calls=n_calls, untold=_untold(sums), **estimates)


def compare(a: Source, b: Source, *, where: str = "true", resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Difference b - a of every statistic, paired by question; arguments as of `summarise`.

    The questions that both sets hold are resampled together: what makes one hard for both cancels.
    """
    tables = (table if isinstance(table, CallTable) else CallTable.of(table) for table in (a, b))
    all_a, all_b = (_cluster_sums(table, where, "cluster") for table in tables)
    shared = [name for name in all_a if name in all_b]
    sums_a, sums_b = (_stacked(found[name] for name in shared) for found in (all_a, all_b))
    left_out, untold = len(all_a.keys() ^ all_b.keys()), _untold(sums_a) or _untold(sums_b)
    differences = difference_estimates(sums_a, sums_b, left_out=left_out, resamples=resamples, seed=seed)
    estimates = dict(zip(STATISTICS, differences, strict=True))
    return Comparison(questions=len(shared), left_out=left_out, untold=untold, **estimates)


def calls_by(
    table: CallTable,
    group: str,
    *,
    where: str = "true",
    resamples: int = RESAMPLES,
    seed: int = 0,
    **parameters: object,
) -> dict[Any, CallSummary]:
    """Statistics of groups of calls, clustered by question, in the order in which the groups were met.

    `group` and `where` are SQL on the table `calls`, such as `BY_TOOL`, "round" or "correct", and which calls to take;
    further parameters are values of `$name` in both.
    """
    found = table.sql(
        f"SELECT {group} AS name, {_question(table)} AS cluster_, min(rowid) AS place, "
        f"{_listed(_COUNTS)} FROM calls WHERE {where} GROUP BY ALL ORDER BY place",
        **parameters,
    ).fetchnumpy()
    rows_of: dict[Any, list[int]] = {}
    for i, name in enumerate(found["name"].tolist()):
        rows_of.setdefault(name, []).append(i)
    return {
        name: _call_summary({key: found[key][rows] for key in _COUNTS}, resamples, seed)
        for name, rows in rows_of.items()
    }


def log_metrics(table: CallTable) -> dict[str, float]:
    """The row of `deltah.core.metrics.batch_metrics` of all trajectories with entropies."""
    (row,) = table.sql(f"SELECT {_listed(_METRICS)} FROM ({_PER_TRAJECTORY}) WHERE {_MEASURED}").fetchall()
    return {name: math.nan if value is None else float(value) for name, value in zip(_METRICS, row, strict=True)}


def _question(table: CallTable) -> str:
    """What is resampled: questions, or groups of them where there are more than `MAX_RESAMPLED`."""
    ((n,),) = table.sql("SELECT count(DISTINCT cluster) FROM trajectories").fetchall()
    return "cluster" if n <= MAX_RESAMPLED else f"(md5_number_lower(cluster) % {MAX_RESAMPLED})::VARCHAR"


def _stacked(sums: Iterable[FloatArray]) -> FloatArray:
    """(Q, S, 3) sums of Q clusters."""
    return np.array([*sums], dtype=np.float64).reshape(-1, len(STATISTICS), 3)


def _cluster_sums(table: CallTable, where: str, cluster: str) -> dict[str, FloatArray]:
    """(S * 3,) numerator, denominator and left out of each statistic, by cluster in the order they were met."""
    sums = {}
    for name, (numerator, denominator, known) in _RATIOS.items():
        left_out = "calls - valued" if name == "mean_value" else f"if({known}, 0, {denominator})"
        sums[f"{name} 0"] = f"coalesce(sum({numerator}) FILTER ({known}), 0)"
        sums[f"{name} 1"] = f"coalesce(sum({denominator}) FILTER ({known}), 0)"
        sums[f"{name} 2"] = f"sum({left_out})"
    found = table.sql(
        f"SELECT {cluster} AS cluster_, min(key) AS place, {_listed(sums)} FROM ({_PER_TRAJECTORY}) "
        f"WHERE {where} GROUP BY ALL ORDER BY place"
    ).fetchnumpy()
    values = np.stack([found[name].astype(np.float64) for name in sums], axis=1)
    return dict(zip(found["cluster_"].tolist(), values, strict=True))


def _call_summary(counts: dict[str, Any], resamples: int, seed: int) -> CallSummary:
    """Statistics from the (Q,) counts of each question."""
    ratios = (("reduced", "measured"), ("value_sum", "valued"))
    parts = [[counts[top], counts[known], counts["n"] - counts[known]] for top, known in ratios]
    sums = np.moveaxis(np.array(parts, dtype=np.float64), -1, 0)  # (Q, 2, 3), as of `_stacked`
    reduction_rate, mean_value = ratio_estimates(sums, (True, False), resamples=resamples, seed=seed)
    names = ("n", "errors", "unanswered", "undecided", "undefined", "certified", "likely")
    return CallSummary(
        reduction_rate=reduction_rate,
        mean_value=mean_value,
        **{name: int(counts[name].sum()) for name in names},
    )


def _untold(sums: FloatArray) -> bool:
    """Whether every measured call is undecided or undefined, by the (Q, S, 3) sums of the questions."""
    totals = dict(zip(STATISTICS, sums.sum(axis=0), strict=True))
    measured = float(totals["reduction_rate"][1])
    return 0 < measured <= float(totals["undecided"][0] + totals["undefined"][0])


class Column(NamedTuple):
    """One statistic of a table, or "seconds"; `signed` gives positive values their plus sign."""

    key: str
    title: str
    digits: int = 2
    unit: str = ""
    signed: bool = False


DEMO_COLUMNS: Final = ("outcome", "calls_per_trajectory", "correct_per_call", "reduction_rate", "seconds")


def table(
    summaries: Mapping[str, Statistics],
    *,
    seconds: Mapping[str, float | None] | None = None,
    columns: Sequence[str] = DEMO_COLUMNS,
    signed: bool = False,
    outcome: str = OUTCOME,
    signal: Entry[Any] = SIGNALS["delta_h"],
) -> tuple[list[Column], dict[str, list[Cell]]]:
    """Columns and the cells of each named row; `seconds` are its wall times, `outcome` and `signal` title the means."""
    known = (
        Column("outcome", outcome, digits=3),
        Column("accuracy", "accuracy", digits=3),
        Column("calls_per_trajectory", "calls / trajectory"),
        Column("correct_per_call", "correct / call"),
        Column("reduction_rate", "reduction rate"),
        Column("mean_value", f"mean {signal.title}", digits=3, unit=signal.unit, signed=True),
        Column("waste", "waste"),
        Column("seconds", "seconds", digits=0),
    )
    named, times = {column.key: column for column in known}, seconds or {}
    chosen = [named[key] for key in columns]

    def cell(name: str, summary: Statistics, column: Column) -> Cell:
        if column.key == "seconds":
            return Cell(text=number(times.get(name), column.digits))
        if column.key == "reduction_rate" and summary.untold:
            return Cell(text=MISSING, estimate=summary.reduction_rate)
        return estimate_cell(getattr(summary, column.key), column.digits, signed=signed or column.signed)

    return chosen, {name: [cell(name, s, column) for column in chosen] for name, s in summaries.items()}


def rate_cell(summary: CallSummary) -> Cell:
    """The reduction rate of a group of calls; a dash where every call is undecided or undefined."""
    rate = summary.reduction_rate
    return estimate_cell(rate, 2) if summary.told else Cell(text=MISSING, estimate=rate)
