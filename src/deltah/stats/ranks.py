r"""Mid-ranks and AUC sums of many bootstrap resamples at once.

A resample gives every call a whole number w of copies. With calls in the order of a signal, C the running sum of w, and
a tie group standing on places [first, last], the mid-rank of a copy is $R = (C_{first} + C_{last+1} + 1) / 2$, where
$C_i$ counts the copies before place i: the rank `scipy.stats.rankdata` gives to the repeated sample. Calls are sorted
by stratum first, so that within-stratum ranks differ from these by the copies of earlier strata, a number that depends
on no signal:

$AUC = \frac{\sum_s (\sum_{y=1} w (R - O_s) - n_{1s}(n_{1s}+1)/2)}{\sum_s n_{1s} n_{0s}}$, with $O_s$ those copies:
concordant pairs within strata, ties counting half, over all pairs within strata (one stratum: the usual AUC).

Arrays of resamples have calls (n) first and resamples (b) second: every step is a row operation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.stats.bootstrap import ratio

_RUN = 16
"""Rows summed in step by the running sum."""


class Sorting(NamedTuple):
    """Places of n calls ordered by stratum, then value."""

    rows: IntArray
    """(n,) call on each place."""
    first: IntArray | None
    """(n,) first place of each place's tie group; None where no two calls of a stratum tie."""
    last: IntArray | None
    """(n,) last place of it."""


def sorting(values: FloatArray, strata: IntArray) -> Sorting:
    """Order n calls by stratum and value.

    Args:
        values: (n,) finite.
        strata: (n,) codes.
    """
    rows = np.lexsort((values, strata))
    v, s = values[rows], strata[rows]
    starts = np.flatnonzero(np.concatenate([[True], (v[1:] != v[:-1]) | (s[1:] != s[:-1])]))
    if len(starts) == len(rows):
        return Sorting(rows, None, None)
    sizes = np.diff(np.concatenate([starts, [len(rows)]]))
    first = np.repeat(starts, sizes)
    return Sorting(rows, first, first + np.repeat(sizes, sizes) - 1)


def running_sum(weights: FloatArray) -> FloatArray:
    """(n + 1, b) sums of the rows before each place; row 0 is 0.

    Sums runs of rows in step and then the runs: several times faster than `np.cumsum` along the first axis.
    """
    n, b = weights.shape
    runs = -(-n // _RUN)
    padded = np.zeros((runs * _RUN + 1, b))
    padded[1 : n + 1] = weights
    stepped = padded[1:].reshape(runs, _RUN, b)
    for j in range(1, _RUN):
        stepped[:, j] += stepped[:, j - 1]
    if runs > 1:
        stepped += running_sum(stepped[:-1, -1])[:, None]
    return padded[: n + 1]


def doubled_ranks(weights: FloatArray, order: Sorting) -> FloatArray:
    """(n, b) 2 R - 1 of the call on each place, given (n, b) copies by place."""
    before = running_sum(weights)
    if order.first is None or order.last is None:
        return before[:-1] + before[1:]
    return before[order.first] + before[order.last + 1]


class StratumSums(NamedTuple):
    """What an AUC needs of labels and strata alone, by resample."""

    shift: FloatArray
    """(L, b) sum over positives of the copies in earlier strata, plus n1 (n1 + 1) / 2 of each stratum."""
    pairs: FloatArray
    """(L, b) pairs of a positive and a negative within strata."""
    positives: FloatArray
    """(L, b)"""


def stratum_sums(totals: FloatArray, positives: FloatArray) -> StratumSums:
    """Sum over strata.

    Args:
        totals: (S, b) copies in each stratum, in the order of the sorting.
        positives: (L, S, b) those with y = 1.
    """
    earlier = np.cumsum(totals, axis=0) - totals
    shift = positives * (earlier + (positives + 1.0) / 2.0)
    pairs = positives * (totals - positives)
    return StratumSums(shift.sum(axis=1), pairs.sum(axis=1), positives.sum(axis=1))


def auc(positive_sums: FloatArray, sums: StratumSums) -> FloatArray:
    """(L, b) AUC; NaN without a pair.

    Args:
        positive_sums: (L, b) sum over positives of w (2 R - 1).
        sums: Of the same strata.
    """
    return ratio((positive_sums + sums.positives) / 2.0 - sums.shift, sums.pairs)
