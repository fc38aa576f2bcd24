r"""What a set of evaluation trajectories says: outcome, calls, entropy reduction, each with an interval.

Every statistic of `Statistics` is a ratio of sums over questions, estimated and bootstrapped by
`deltah.stats.bootstrap`. Trajectories of one question form one cluster. Pooled ratios follow the method's counting:
the reduction rate is $\sum m / \sum n$ over all calls, undefined and undecided ones included in n. What was not
measured (an ungraded trajectory, a call without entropies) is left out and counted, never taken as 0.

Nothing here tests a hypothesis; `compare` gives the paired difference of two arms with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from deltah.calls.scored import CORRECT_OUTCOME, ClusterKey, Scored, cluster_key, score_measured, waste_levels
from deltah.calls.waste import Waste, WasteLevel, waste_of_calls
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import BoolArray, FloatArray, Scalar, Trajectory
from deltah.errors import InvalidValueError
from deltah.stats.bootstrap import Estimate, interval, ratio, ratio_replicates
from deltah.stats.summary import RATES, RESAMPLES, STATISTICS, Comparison, Summary

Key = TypeVar("Key", bound=Hashable)


class _Tally(NamedTuple):
    """What one trajectory adds to one statistic."""

    numerator: float
    denominator: float
    left_out: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallies:
    """What N trajectories add to every statistic: all that a summary needs of them, a few numbers each."""

    values: FloatArray
    """(N, S, 3) numerator, denominator and left out, S as in `STATISTICS`."""
    clusters: tuple[ClusterKey, ...]
    """(N,) the question each trajectory answers."""
    calls: int
    """Calls of all trajectories."""

    def __len__(self) -> int:
        """N."""
        return len(self.clusters)

    def subset(self, kept: BoolArray) -> Tallies:
        """The trajectories that a mask keeps.

        Args:
            kept: (N,)
        """
        column = STATISTICS.index("calls_per_trajectory")
        clusters = tuple(key for key, keep in zip(self.clusters, kept, strict=True) if keep)
        values = self.values[kept]
        return Tallies(values=values, clusters=clusters, calls=int(values[:, column, 0].sum()))


def tally(scored: Iterable[Scored], *, cluster: str = "task_id") -> Tallies:
    """Read scored trajectories once and keep their tallies.

    Args:
        scored: Each trajectory with its signal, None for one without entropies.
        cluster: Metadata key that names the question; without it the question's text, then the id, stands for it.

    Raises:
        InvalidValueError: if a signal speaks of another number of calls than its trajectory.
    """
    rows, clusters, calls = list[FloatArray](), list[ClusterKey](), 0
    for trajectory, signal in scored:
        rows.append(tally_of(trajectory, signal))
        clusters.append(cluster_key(trajectory, cluster))
        calls += trajectory.n_calls
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(STATISTICS), 3)
    return Tallies(values=values, clusters=tuple(clusters), calls=calls)


def summarise(
    trajectories: Iterable[Trajectory],
    signals: Sequence[Signal | None] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    cluster: str = "task_id",
) -> Summary:
    """Summarise evaluation trajectories.

    Args:
        trajectories: Any number, also none: then every statistic is NaN.
        signals: One a trajectory, None for one without entropies; scored with the defaults when not given.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
        cluster: See `tally`.

    Raises:
        InvalidValueError: if `signals` has another length than `trajectories`.
    """
    return summarise_tallies(tally(_paired(trajectories, signals), cluster=cluster), resamples=resamples, seed=seed)


def summarise_tallies(tallies: Tallies, *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Summary of trajectories of which only the tallies were kept; the same as `summarise` of the trajectories."""
    names = list(dict.fromkeys(tallies.clusters))
    sums = _cluster_sums(tallies, names)
    replicates = ratio_replicates(sums[..., 0], sums[..., 1], resamples=resamples, seed=seed)
    estimates = {name: _estimate(sums[:, s], replicates[:, s], rate=name in RATES) for s, name in enumerate(STATISTICS)}
    return Summary(
        questions=len(names), trajectories=len(tallies), calls=tallies.calls, untold=_untold(sums), **estimates
    )


def compare(
    a: Iterable[Trajectory],
    b: Iterable[Trajectory],
    *,
    signals_a: Sequence[Signal | None] | None = None,
    signals_b: Sequence[Signal | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    cluster: str = "task_id",
) -> Comparison:
    """Difference b - a of every statistic, paired by question.

    Both sets are cut to the questions they share, which are then resampled together: what makes a question hard for
    both cancels, so that the interval is narrower than those of the two summaries suggest.

    Args:
        a: The reference.
        b: What is compared with it.
        signals_a: See `summarise`.
        signals_b: See `summarise`.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
        cluster: Metadata key that names the question.
    """
    first, second = (tally(_paired(*side), cluster=cluster) for side in ((a, signals_a), (b, signals_b)))
    return compare_tallies(first, second, resamples=resamples, seed=seed)


def compare_tallies(a: Tallies, b: Tallies, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """`compare` for trajectories of which only the tallies were kept."""
    present_a, present_b = set(a.clusters), set(b.clusters)
    shared = [key for key in dict.fromkeys(a.clusters) if key in present_b]
    sums_a, sums_b = _cluster_sums(a, shared), _cluster_sums(b, shared)
    replicates = ratio_replicates(sums_b[..., 0], sums_b[..., 1], resamples=resamples, seed=seed)
    replicates -= ratio_replicates(sums_a[..., 0], sums_a[..., 1], resamples=resamples, seed=seed)
    left_out = len(present_a ^ present_b)
    estimates = {
        name: _difference(sums_a[:, s], sums_b[:, s], replicates[:, s], left_out) for s, name in enumerate(STATISTICS)
    }
    untold = _untold(sums_a) or _untold(sums_b)
    return Comparison(questions=len(shared), left_out=left_out, untold=untold, **estimates)


def by(
    trajectories: Iterable[Trajectory], key: str | Callable[[Trajectory], Key]
) -> dict[Key | Scalar, list[Trajectory]]:
    """Split trajectories by a metadata key or a function; groups in order of first appearance.

    Trajectories that lack the metadata key form the group None. To split *calls* (by tool, by round index) use
    `deltah.calls.rows`.
    """
    groups: dict[Key | Scalar, list[Trajectory]] = {}
    for trajectory in trajectories:
        name = trajectory.metadata.get(key) if isinstance(key, str) else key(trajectory)
        groups.setdefault(name, []).append(trajectory)
    return groups


def _paired(trajectories: Iterable[Trajectory], signals: Sequence[Signal | None] | None) -> Iterator[Scored]:
    """Trajectories with their signals, scored with the defaults where none were given."""
    if signals is None:
        yield from ((trajectory, score_measured(trajectory)) for trajectory in trajectories)
        return
    listed = list(trajectories)
    if len(signals) != len(listed):
        raise InvalidValueError(f"got {len(signals)} signals for {len(listed)} trajectories; give one for each")
    yield from zip(listed, signals, strict=True)


def tally_of(
    trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]] | None = None
) -> FloatArray:
    """(S, 3) what one trajectory adds to each statistic.

    Args:
        trajectory: C calls.
        signal: None for a trajectory without entropies.
        waste: (C,) what `waste_of_calls` says, where it is known already.

    Raises:
        InvalidValueError: if the signal speaks of another number of calls.
    """
    if signal is not None and signal.n_calls != trajectory.n_calls:
        raise InvalidValueError(
            f"trajectory {trajectory.id!r} has {trajectory.n_calls} calls, its signal {signal.n_calls}; "
            "give the signals in the order of the trajectories"
        )
    found = waste_levels(signal, waste_of_calls(trajectory) if waste is None else waste)
    rows = (
        _outcome_tallies(trajectory),
        _call_tallies(trajectory, signal),
        _waste_tallies(found, measured=signal is not None),
        _token_tallies(trajectory),
    )
    return np.array([tally for row in rows for tally in row], dtype=np.float64)


def _outcome_tallies(t: Trajectory) -> tuple[_Tally, _Tally, _Tally, _Tally]:
    """Outcome, accuracy, calls per trajectory, correct per call."""
    calls = _Tally(t.n_calls, 1)
    if t.outcome is None:
        return _Tally(0, 0, 1), _Tally(0, 0, 1), calls, _Tally(0, 0, t.n_calls)
    correct = float(t.outcome >= CORRECT_OUTCOME)
    return _Tally(t.outcome, 1), _Tally(correct, 1), calls, _Tally(correct, t.n_calls)


def _call_tallies(t: Trajectory, signal: Signal | None) -> tuple[_Tally, _Tally, _Tally, _Tally]:
    """Reduction rate, mean ΔH, undecided, undefined."""
    n = t.n_calls
    if signal is None:
        absent = _Tally(0, 0, n)
        return absent, absent, absent, absent
    values = signal.call_value[np.isfinite(signal.call_value)]
    return (
        _Tally(signal.n_reduced, n),
        _Tally(float(values.sum()), len(values), n - len(values)),
        _Tally(signal.count(Verdict.UNDECIDED), n),
        _Tally(signal.count(Verdict.UNDEFINED), n),
    )


def _waste_tallies(found: Sequence[WasteLevel], *, measured: bool) -> tuple[_Tally, _Tally]:
    """Waste, certified waste."""
    n, certified = len(found), found.count(WasteLevel.CERTIFIED)
    return (
        _Tally(certified + found.count(WasteLevel.LIKELY), n),
        _Tally(certified, n) if measured else _Tally(0, 0, n),
    )


def _token_tallies(t: Trajectory) -> tuple[_Tally, _Tally]:
    """No call, sampled tokens; a record without tokens has an unknown number of them."""
    sampled = _Tally(float(t.response_mask.sum()), 1) if len(t) else _Tally(0, 0, 1)
    return _Tally(float(t.n_calls == 0), 1), sampled


def _untold(sums: FloatArray) -> bool:
    """Whether every measured call is undecided or undefined.

    Args:
        sums: (Q, S, 3) see `_cluster_sums`.
    """
    of = {name: sums[:, STATISTICS.index(name)].sum(axis=0) for name in ("reduction_rate", "undecided", "undefined")}
    measured = float(of["reduction_rate"][1])
    return 0 < measured <= float(of["undecided"][0] + of["undefined"][0])


def _cluster_sums(tallies: Tallies, wanted: Sequence[ClusterKey]) -> FloatArray:
    """(Q, S, 3) sums over the trajectories of each wanted cluster; the others are dropped."""
    row_of = {key: row for row, key in enumerate(wanted)}
    kept = [i for i, key in enumerate(tallies.clusters) if key in row_of]
    sums = np.zeros((len(wanted), *tallies.values.shape[1:]))
    np.add.at(sums, [row_of[tallies.clusters[i]] for i in kept], tallies.values[kept])
    return sums


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
