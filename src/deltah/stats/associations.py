"""Every signal against every label: seven statistics with intervals, p-values, Holm's correction.

For a signal and a label, over the calls for which both are known: Spearman's and the point-biserial (Pearson's)
correlation and the AUC; both correlations given the controls; the AUC over pairs of calls that agree in call index, and
over pairs that agree in all controls (`deltah.stats.controls`). Intervals come from one cluster bootstrap by
question for the whole table (`deltah.stats.bootstrap`). The two tests of a pair are on ranks, so that each speaks of
Spearman's correlation and the AUC alike (`deltah.stats.permutation`); Holm's correction takes all tests of the
table as one family.

A pair is not computed, and says why, where fewer than five questions have a good call or fewer than five have another:
such a number would be an anecdote. The baseline `call_index` has no partial statistics: it is the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.errors import InvalidValueError
from deltah.stats.blocks import STATISTICS, Block, BlockStatistics, blocks
from deltah.stats.bootstrap import MIN_CLUSTERS, Estimate, auc_interval, interval
from deltah.stats.controls import controls_of
from deltah.stats.permutation import MIN_SPARE_CALLS, block_tests, holm, sign_flip_p
from deltah.stats.summary import RESAMPLES
from deltah.stats.table import CALL_INDEX, StudyTable, known
from deltah.text_format import count

PERMUTATIONS: Final = 9999
"""Enough for Holm's correction of some hundred tests to be able to reach 5 %."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) resamples."""
_UNCONTROLLED: Final = ("auc", "spearman", "point_biserial")
_NAN: Final = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """One signal against one label."""

    signal: str
    label: str
    graded: bool
    """Whether the label has other values than 0 and 1; a graded one has no AUC."""
    questions: int
    """Clusters that have a call for which both are known."""
    good: int
    """Calls with label 1 among them; 0 for a graded label."""
    auc: Estimate
    """Probability that a good call has the greater signal; ties count half."""
    auc_within_index: Estimate
    """Over pairs of the same call index; n counts the calls that are in a pair."""
    auc_stratified: Estimate
    """Over pairs of the same call index, tool and length tertile."""
    spearman: Estimate
    partial_spearman: Estimate
    """Of ranks, given call index, log segment lengths and tool."""
    point_biserial: Estimate
    """Pearson's correlation; the point-biserial one where the label is 0/1."""
    partial_point_biserial: Estimate
    p: float
    """Two-sided permutation p-value of no rank association; NaN where not tested."""
    p_holm: float
    p_partial: float
    """The same given the controls."""
    p_partial_holm: float
    reason: str | None = None
    """Why there is no number; None where there are some."""


class Support(NamedTuple):
    """What a label's calls in a block can carry, for one set of strata."""

    n: int
    """Calls in a stratum that holds both values of the label."""
    clusters: int
    """Questions they belong to."""
    good: int
    """Questions with a good call among them."""
    other: int
    """Questions with a call that is not good among them."""

    @property
    def enough(self) -> bool:
        """Whether an AUC over these strata says anything."""
        return min(self.good, self.other) >= MIN_CLUSTERS


class _Pair(NamedTuple):
    """What a block says of one pair; arrays in the order of `STATISTICS`."""

    block: Block
    s: int
    j: int
    supports: tuple[Support, ...]
    """(3,) of the AUCs, in their order."""
    estimate: FloatArray
    """(7,)"""
    replicates: FloatArray
    """(B, 7)"""
    scores: FloatArray
    """(Q, 2) of the raw and the partial test."""
    shares: tuple[FloatArray, ...]
    """(2) what the flips of the two lose to their controls."""
    spare: int
    """Calls beyond the columns of the controls."""


def associate(
    table: StudyTable,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[Association, ...]:
    """Compute every signal, and the call-index baseline, against every label.

    Args:
        table: N calls.
        resamples: Bootstrap resamples.
        permutations: Sign flips of each test.
        seed: Of the resampling and of the flips.
        on_progress: Told how far the resampling is.

    Returns:
        One for each pair, label by label in the table's order.

    Raises:
        InvalidValueError: if fewer than 100 resamples or permutations are asked for.
    """
    if permutations < 100:
        raise InvalidValueError(f"permutations is {permutations}; expected 100 or more")
    found: dict[tuple[str, str], _Pair] = {}
    listed = list(blocks(table, controls_of(table)))
    for i, block in enumerate(listed):
        done = i * resamples
        for pair in _pairs(block, resamples, seed, on_progress, (done, len(listed) * resamples)):
            found[block.signals[pair.s], block.labels[pair.j]] = pair
    order = [(signal, label) for label in table.labels for signal in table.with_baseline()]
    raw = [_association(key, found.get(key), table) for key in order]
    return tuple(_with_tests(raw, [found.get(key) for key in order], permutations, seed))


def _pairs(
    block: Block, resamples: int, seed: int, on_progress: Progress | None, span: tuple[int, int]
) -> Iterator[_Pair]:
    statistics = BlockStatistics(block)
    estimate, parts, done = statistics.estimate(), list[FloatArray](), 0
    for part in statistics.replicates(resamples=resamples, seed=seed):
        parts.append(part)
        done += len(part)
        if on_progress is not None:
            on_progress(span[0] + done, span[1])
    replicates, tests = np.concatenate(parts), block_tests(block)
    for j in range(len(block.labels)):
        supports = tuple(support(block, j, strata) for strata in block.strata)
        for s in range(len(block.signals)):
            pair = estimate[s, j], replicates[:, s, j], tests.scores[:, s, j], tests.shares[j], tests.spare
            yield _Pair(block, s, j, supports, *pair)


def _association(key: tuple[str, str], pair: _Pair | None, table: StudyTable) -> Association:
    signal, label = key
    reason = _missing(table, signal, label) if pair is None else shortage(pair.block, pair.s, pair.j)
    estimates = {name: _estimate(i, name, pair, len(table), reason) for i, name in enumerate(STATISTICS)}
    binary = pair is None or bool(pair.block.binary[pair.j])
    return Association(
        signal=signal,
        label=label,
        graded=not binary,
        questions=0 if pair is None else distinct(pair.block.cluster),
        good=int(pair.block.y[:, pair.j].sum()) if pair is not None and binary else 0,
        **estimates,
        p=_NAN,
        p_holm=_NAN,
        p_partial=_NAN,
        p_partial_holm=_NAN,
        reason=reason,
    )


def _missing(table: StudyTable, signal: str, label: str) -> str:
    """Which side of a pair has no value where the other has one."""
    if not known(table.labels[label]).any():
        return "no call has this label"
    if not known(table.with_baseline()[signal]).any():
        return "no call has this signal"
    return "no call has both this label and this signal"


def shortage(block: Block, s: int, j: int) -> str | None:
    """Why a pair is too thin for a number; None if it is not."""
    label, cluster = block.y[:, j], block.cluster
    if np.ptp(block.x[:, s]) == 0:
        return "the signal is the same for all calls"
    if block.binary[j]:
        for value, name in ((1.0, "a good call"), (0.0, "a call that is not good")):
            have = distinct(cluster[label == value])
            if have < MIN_CLUSTERS:
                return f"{count(have, 'question')} with {name}; {MIN_CLUSTERS} are needed"
        return None
    if np.ptp(label) == 0:
        return "the label is the same for all calls"
    have = distinct(cluster)
    return f"{count(have, 'question')}; {MIN_CLUSTERS} are needed" if have < MIN_CLUSTERS else None


def _estimate(i: int, name: str, pair: _Pair | None, total: int, reason: str | None) -> Estimate:
    """One statistic with its interval; NaN where it would rest on too little."""
    if pair is None:
        return Estimate(value=_NAN, low=_NAN, high=_NAN, n=0, left_out=total)
    stratified = i < len(pair.supports)
    n = pair.supports[i].n if stratified else len(pair.block)
    baseline = pair.block.signals[pair.s] == CALL_INDEX and name not in _UNCONTROLLED
    thin = stratified and not (pair.block.binary[pair.j] and pair.supports[i].enough)
    thin |= name.startswith("partial") and pair.spare < MIN_SPARE_CALLS
    if reason is not None or baseline or thin:
        return Estimate(value=_NAN, low=_NAN, high=_NAN, n=n, left_out=total - n)
    value, replicates = float(pair.estimate[i]), pair.replicates[:, i]
    if stratified:
        low, high = auc_interval(value, replicates, min(pair.supports[i].good, pair.supports[i].other))
    else:
        low, high = interval(replicates, distinct(pair.block.cluster))
    return Estimate(value=value, low=low, high=high, n=n, left_out=total - n)


def support(block: Block, j: int, strata: IntArray) -> Support:
    """What pairs of calls within strata rest on, for label j."""
    label, cluster = block.y[:, j], block.cluster
    both = (np.bincount(strata, weights=label == 1.0) > 0) & (np.bincount(strata, weights=label == 0.0) > 0)
    used = both[strata]
    good, other = (distinct(cluster[used & (label == value)]) for value in (1.0, 0.0))
    return Support(int(used.sum()), distinct(cluster[used]), good, other)


def distinct(codes: IntArray) -> int:
    """Number of different codes."""
    return int(np.count_nonzero(np.bincount(codes)))


def _with_tests(
    raw: list[Association], pairs: list[_Pair | None], permutations: int, seed: int
) -> Iterator[Association]:
    """Add the p-values; all tests of the table share one set of flips and one family."""
    tested = [
        (i, v) for i, a in enumerate(raw) if a.reason is None for v in (0, 1) if not (v and a.signal == CALL_INDEX)
    ]
    p = np.full((len(raw), 2), np.nan)
    if tested:
        columns = [(pair.scores[:, v], pair.shares[v]) for i, v in tested if (pair := pairs[i]) is not None]
        values = sign_flip_p(
            np.stack([u for u, _ in columns], axis=1), [a for _, a in columns], permutations=permutations, seed=seed
        )
        p[tuple(np.array(tested).T)] = values
    adjusted = holm(p.ravel()).reshape(p.shape)
    for a, (one, partial), (one_holm, partial_holm) in zip(raw, p.tolist(), adjusted.tolist(), strict=True):
        yield replace(a, p=one, p_holm=one_holm, p_partial=partial, p_partial_holm=partial_holm)
