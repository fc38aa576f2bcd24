r"""What a table of calls says: outcome, calls, entropy reduction, waste, each with an interval.

Every statistic of `Statistics` is a ratio of sums over questions, estimated and bootstrapped by
`deltah.stats.bootstrap`. Trajectories of one question form one cluster. Pooled ratios follow the method's counting:
the reduction rate is $\sum m / \sum n$ over all calls, undefined and undecided ones included in n. What was not
measured (an ungraded trajectory, a call without entropies) is left out and counted, never taken as 0.

The sums are one GROUP BY on the table of calls (`deltah.calls.table`); `calls_by` does the same for calls by tool, by
round or by any other expression. Beyond `MAX_RESAMPLED` questions, as many groups of questions, formed by a hash of
their names, are resampled in their stead, so that memory stays bounded. Nothing here tests a hypothesis; `compare`
gives the paired difference of two arms with its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np

from deltah.calls.table import CallTable
from deltah.core import metrics
from deltah.core.signals import Signal
from deltah.core.types import FloatArray, Trajectory
from deltah.stats.bootstrap import MAX_RESAMPLED, Estimate, interval, ratio, ratio_replicates

RESAMPLES: Final = 2000
MAX_TOOLS: Final = 1000
"""Tools told apart, in the order they are met; further ones are one group."""
MAX_NAME_CHARS: Final = 100
"""Of a tool's name."""
OTHER_TOOLS: Final = "(other tools)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The statistics of a set of trajectories, in the order tables show them."""

    outcome: Estimate
    """Mean outcome, in [0, 1]; what it may be called is told by `deltah.calls.grading`."""
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

    def items(self) -> Iterator[tuple[str, Estimate]]:
        """Names and estimates in order."""
        return ((name, getattr(self, name)) for name in STATISTICS)


STATISTICS: Final = tuple(field.name for field in fields(Statistics))
RATES: Final = frozenset(STATISTICS) - {"calls_per_trajectory", "correct_per_call", "mean_value", "sampled_tokens"}
"""Means of values in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(Statistics):
    """Statistics of one set of trajectories."""

    questions: int
    """Clusters."""
    trajectories: int
    calls: int
    untold: bool
    """Whether there are calls, and of none is it certain whether it reduced entropy: the rate then says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Statistics):
    """Differences b - a over the questions that both sets hold; n and left_out of each estimate count questions."""

    questions: int
    """Questions in both sets: the pairs."""
    left_out: int
    """Questions in only one of the sets."""
    untold: bool
    """Whether that holds of either set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """Statistics of a set of calls."""

    n: int
    errors: int
    """Calls that the tool answered with an error."""
    unanswered: int
    reduction_rate: Estimate
    """Certified reduced calls over all calls with entropies."""
    mean_value: Estimate
    """Mean signal of the calls that have one."""
    undecided: int
    undefined: int
    certified: int
    """Calls that are certified waste."""
    likely: int

    @property
    def told(self) -> int:
        """Calls of which it is certain whether they reduced entropy: without any, the reduction rate says nothing."""
        return self.reduction_rate.n - self.undecided - self.undefined


class _Ratio(NamedTuple):
    """What one trajectory adds to a statistic, in SQL."""

    numerator: str
    denominator: str
    known: str = "true"
    """Whether it can enter; its denominator is else counted as left out."""
    left_out: str = "0"
    """What of one that enters cannot."""


_MEASURED, _GRADED = "signal IS NOT NULL", "outcome IS NOT NULL"
_RATIOS: Final = {
    "outcome": _Ratio("outcome", "1", _GRADED),
    "accuracy": _Ratio("correct::INT", "1", _GRADED),
    "calls_per_trajectory": _Ratio("calls", "1"),
    "correct_per_call": _Ratio("correct::INT", "calls", _GRADED),
    "reduction_rate": _Ratio("reduced", "calls", _MEASURED),
    "mean_value": _Ratio("value_sum", "valued", left_out="calls - valued"),
    "undecided": _Ratio("undecided", "calls", _MEASURED),
    "undefined": _Ratio("undefined", "calls", _MEASURED),
    "waste": _Ratio("certified + likely", "calls"),
    "certified_waste": _Ratio("certified", "calls", _MEASURED),
    "no_call": _Ratio("(calls = 0)::INT", "1"),
    "sampled_tokens": _Ratio("sampled_tokens", "1", "sampled_tokens IS NOT NULL"),
}
_COUNTS: Final = {
    "reduced": "count(*) FILTER (verdict = 'reduced')",
    "undecided": "count(*) FILTER (verdict = 'undecided')",
    "undefined": "count(*) FILTER (verdict = 'undefined')",
    "certified": "count(*) FILTER (waste_level = 'certified')",
    "likely": "count(*) FILTER (waste_level = 'likely')",
    "valued": "count(value)",
    "value_sum": "coalesce(sum(value), 0)",
}
"""Of a set of calls, in SQL."""
_MORE_COUNTS: Final = {
    "n": "count(*)",
    "measured": "count(verdict)",
    "errors": "count(*) FILTER (status = 'error')",
    "unanswered": "count(*) FILTER (status = 'unanswered')",
}
_TOOL: Final = (
    f"left(tool, {MAX_NAME_CHARS}) IN (SELECT left(tool, {MAX_NAME_CHARS}) FROM calls GROUP BY ALL "
    f"ORDER BY min(rowid) LIMIT {MAX_TOOLS})"
)
BY_TOOL: Final = f"if({_TOOL}, left(tool, {MAX_NAME_CHARS}), '{OTHER_TOOLS}')"
"""Group of a call by its tool, for `calls_by`."""


def _listed(expressions: dict[str, str]) -> str:
    return ", ".join(f'{expression} AS "{name}"' for name, expression in expressions.items())


_PER_TRAJECTORY: Final = (
    f"SELECT t.*, {_listed({name: f'coalesce(c.{name}, 0)' for name in _COUNTS})} FROM trajectories t "
    f"LEFT JOIN (SELECT key, {_listed(_COUNTS)} FROM calls GROUP BY key) c USING (key)"
)


def summarise(
    source: CallTable | Iterable[Trajectory],
    signals: Sequence[Signal | None] | None = None,
    *,
    where: str = "true",
    resamples: int = RESAMPLES,
    seed: int = 0,
    cluster: str = "task_id",
) -> Summary:
    """Summarise a set of trajectories.

    Args:
        source: A table, or trajectories in memory.
        signals: Of trajectories in memory, None for one without entropies; scored with the defaults when not given.
        where: Condition on the table `trajectories`, in SQL: which of them to take.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
        cluster: Metadata key that names the question, of trajectories in memory.

    Raises:
        InvalidValueError: if `signals` has another length than the trajectories.
    """
    table = source if isinstance(source, CallTable) else CallTable.of(source, signals, cluster=cluster)
    _, sums = _cluster_sums(table, where, hashed=True)
    ((questions, trajectories, calls),) = table.sql(
        f"SELECT count(DISTINCT cluster), count(*), coalesce(sum(calls), 0)::BIGINT FROM trajectories WHERE {where}"
    ).fetchall()
    replicates = ratio_replicates(sums[..., 0], sums[..., 1], resamples=resamples, seed=seed)
    estimates = {name: _estimate(sums[:, s], replicates[:, s], rate=name in RATES) for s, name in enumerate(STATISTICS)}
    return Summary(questions=questions, trajectories=trajectories, calls=calls, untold=_untold(sums), **estimates)


def compare(
    a: CallTable | Iterable[Trajectory],
    b: CallTable | Iterable[Trajectory],
    *,
    where: str = "true",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Difference b - a of every statistic, paired by question.

    Both sets are cut to the questions they share, which are then resampled together: what makes a question hard for
    both cancels, so that the interval is narrower than those of the two summaries suggest.

    Args:
        a: The reference.
        b: What is compared with it.
        where: See `summarise`; of both.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
    """
    sides = [_cluster_sums(t if isinstance(t, CallTable) else CallTable.of(t), where, hashed=False) for t in (a, b)]
    rows_a, rows_b = ({name: i for i, name in enumerate(names)} for names, _ in sides)
    shared = [name for name in rows_a if name in rows_b]
    sums_a = sides[0][1][[rows_a[name] for name in shared]]
    sums_b = sides[1][1][[rows_b[name] for name in shared]]
    replicates = ratio_replicates(sums_b[..., 0], sums_b[..., 1], resamples=resamples, seed=seed)
    replicates -= ratio_replicates(sums_a[..., 0], sums_a[..., 1], resamples=resamples, seed=seed)
    left_out = len(rows_a.keys() ^ rows_b.keys())
    estimates = {
        name: _difference(sums_a[:, s], sums_b[:, s], replicates[:, s], left_out) for s, name in enumerate(STATISTICS)
    }
    untold = _untold(sums_a) or _untold(sums_b)
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

    Args:
        table: The calls.
        group: Expression on the table `calls`, in SQL: `BY_TOOL`, "round", "correct".
        where: Condition on `calls`: which of them to take.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
        **parameters: Values of `$name` in both.
    """
    found = table.sql(
        f"SELECT {group} AS name, {_question(table)} AS cluster_, min(rowid) AS place, "
        f"{_listed(_COUNTS | _MORE_COUNTS)} FROM calls WHERE {where} GROUP BY ALL ORDER BY place",
        **parameters,
    ).fetchnumpy()
    rows_of: dict[Any, list[int]] = {}
    for i, name in enumerate(found["name"].tolist()):
        rows_of.setdefault(name, []).append(i)
    return {
        name: _call_summary({key: found[key][rows] for key in (*_COUNTS, *_MORE_COUNTS)}, resamples, seed)
        for name, rows in rows_of.items()
    }


def log_metrics(table: CallTable) -> dict[str, float]:
    """The row of `deltah.core.metrics.batch_metrics` of all trajectories with entropies.

    Args:
        table: Trajectories without entropies are left out.
    """
    query = f"""
        SELECT avg(outcome), avg(correct::INT), avg(calls), avg((calls = 0)::INT), sum(reduced) / sum(calls),
        avg(reduced / calls) FILTER (calls > 0), sum(undefined) / sum(calls), sum(undecided) / sum(calls),
        coalesce(sum(correct::INT), 0) / sum(calls), sum(segment_tokens) / sum(segments),
        sum(entropy_sum) / sum(entropies) FROM ({_PER_TRAJECTORY}) WHERE {_MEASURED}
    """
    names = (
        *(metrics.OUTCOME, metrics.ACCURACY, metrics.CALLS, metrics.NO_CALL_RATE, metrics.REDUCTION_RATE),
        *(metrics.EFFICIENCY, metrics.UNDEFINED_RATE, metrics.UNDECIDED_RATE, metrics.PRODUCTIVITY),
        *(metrics.SEGMENT_TOKENS, metrics.SEGMENT_ENTROPY),
    )
    found = dict(zip(names, table.sql(query).fetchall()[0], strict=True))
    ((mean, std),) = table.sql("SELECT avg(value), stddev_pop(value) FROM calls").fetchall()
    found |= {metrics.SIGNAL_MEAN: mean, metrics.SIGNAL_STD: std}
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


def _question(table: CallTable) -> str:
    """What is resampled: questions, or groups of them where there are more than `MAX_RESAMPLED`."""
    ((n,),) = table.sql("SELECT count(DISTINCT cluster) FROM trajectories").fetchall()
    return "cluster" if n <= MAX_RESAMPLED else f"(md5_number_lower(cluster) % {MAX_RESAMPLED})::VARCHAR"


def _cluster_sums(table: CallTable, where: str, *, hashed: bool) -> tuple[list[str], FloatArray]:
    """Names of Q clusters in the order they were met, and (Q, S, 3) numerator, denominator and left out of each."""
    sums = {}
    for name, (numerator, denominator, known, left_out) in _RATIOS.items():
        sums[f"{name} 0"] = f"coalesce(sum({numerator}) FILTER ({known}), 0)"
        sums[f"{name} 1"] = f"coalesce(sum({denominator}) FILTER ({known}), 0)"
        sums[f"{name} 2"] = f"sum(if({known}, {left_out}, {denominator}))"
    cluster = _question(table) if hashed else "cluster"
    found = table.sql(
        f"SELECT {cluster} AS cluster_, min(key) AS place, {_listed(sums)} FROM ({_PER_TRAJECTORY}) "
        f"WHERE {where} GROUP BY ALL ORDER BY place"
    ).fetchnumpy()
    values = np.stack([found[name].astype(np.float64) for name in sums], axis=1)
    return found["cluster_"].tolist(), values.reshape(-1, len(STATISTICS), 3)


def _call_summary(counts: dict[str, Any], resamples: int, seed: int) -> CallSummary:
    """Statistics from the (Q,) counts of each question."""
    totals = {name: values.sum().item() for name, values in counts.items()}
    # (Q, 2, 3): numerator, denominator and left out of the reduction rate and of the mean.
    sums = np.stack(
        [
            np.stack([counts[numerator], counts[known], counts["n"] - counts[known]], axis=1)
            for numerator, known in (("reduced", "measured"), ("value_sum", "valued"))
        ],
        axis=1,
    ).astype(np.float64)
    replicates = ratio_replicates(sums[..., 0], sums[..., 1], resamples=resamples, seed=seed)
    names = ("n", "errors", "unanswered", "undecided", "undefined", "certified", "likely")
    return CallSummary(
        reduction_rate=_estimate(sums[:, 0], replicates[:, 0], rate=True),
        mean_value=_estimate(sums[:, 1], replicates[:, 1], rate=False),
        **{name: int(totals[name]) for name in names},
    )


def _untold(sums: FloatArray) -> bool:
    """Whether every measured call is undecided or undefined.

    Args:
        sums: (Q, S, 3) see `_cluster_sums`.
    """
    of = {name: sums[:, STATISTICS.index(name)].sum(axis=0) for name in ("reduction_rate", "undecided", "undefined")}
    measured = float(of["reduction_rate"][1])
    return 0 < measured <= float(of["undecided"][0] + of["undefined"][0])


def _estimate(sums: FloatArray, replicates: FloatArray, *, rate: bool) -> Estimate:
    """One statistic from its (Q, 3) sums and (B,) replicates."""
    total = sums.sum(axis=0)
    low, high = interval(replicates, int((sums[:, 1] > 0).sum()), rate=rate)
    value = float(ratio(total[0], total[1]))
    return Estimate(value=value, low=low, high=high, n=int(total[1]), left_out=int(total[2]))


def _difference(a: FloatArray, b: FloatArray, replicates: FloatArray, left_out: int) -> Estimate:
    """One paired difference from the (Q, 3) sums of both sides."""
    sides = a.sum(axis=0), b.sum(axis=0)
    contributing = int(((a[:, 1] > 0) | (b[:, 1] > 0)).sum())
    low, high = interval(replicates, contributing)
    value = float(ratio(sides[1][0], sides[1][1]) - ratio(sides[0][0], sides[0][1]))
    return Estimate(value=value, low=low, high=high, n=contributing, left_out=left_out)
