"""Seven statistics of signals and labels, for many resamples of the questions at once.

A resample gives every question, and so each of its calls, a number w of copies. AUCs come from ranks of the copies,
correlations from their cross products within questions; docs/api/stats.md states the formulas. The estimate itself is
the resample in which every question was drawn once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltah.core.types import BoolArray, FloatArray, IntArray
from deltah.stats.bootstrap import cluster_weights, ratio
from deltah.stats.columns import StudyTable, is_binary, known

STATISTICS: Final = (
    *("auc", "auc_within_index", "auc_stratified"),
    *("spearman", "partial_spearman", "point_biserial", "partial_point_biserial"),
)
"""Order of the last axis of a block's statistics; the three AUCs first."""
TOLERANCE: Final = 1e-9
"""Share of a variable's variance below which its residual counts as constant."""
MIN_LEVEL_CALLS: Final = 20
"""A call index or tool with fewer calls shares a column with others."""
MAX_TOOLS: Final = 12  # with a column of their own
_CHUNK: Final = 64  # resamples held at a time
_RUN: Final = 16  # rows summed in step by the running sum


class Controls(NamedTuple):
    """(N, p) design with an intercept first, (p,) names of its columns, (N,) number of index, tool and tertile."""

    design: FloatArray
    columns: tuple[str, ...]
    stratum: IntArray


def controls_of(table: StudyTable) -> Controls:
    """Controls of a table's calls; late, rare indices share a level, and so do rare tools."""
    counts = np.bincount(table.index - 1)
    enough = max(1, int(np.cumprod(counts >= MIN_LEVEL_CALLS).sum()))
    index_names = [f"index {k}" for k in range(1, enough + 1)] + ["later index"] * (len(counts) > enough)
    index = np.minimum(table.index - 1, len(index_names) - 1)
    counts = np.bincount(table.tool, minlength=len(table.tools))
    order = np.argsort(-counts, kind="stable")
    own = [t for t in order[:MAX_TOOLS] if counts[t] >= MIN_LEVEL_CALLS] or order[:1].tolist()
    tool_names = [f"tool {table.tools[t]}" for t in own] + ["other tools"] * (len(own) < len(table.tools))
    level = np.full(len(table.tools), len(own), dtype=np.int64)
    level[own] = np.arange(len(own))
    tool = level[table.tool]
    lengths, total = np.log1p(table.tokens.astype(np.float64)), table.tokens.sum(axis=1)
    tertile = np.searchsorted(np.quantile(total, (1 / 3, 2 / 3)), total, side="left")
    dummies = [levels[:, None] == np.arange(1, len(n)) for levels, n in ((index, index_names), (tool, tool_names))]
    return Controls(
        design=np.column_stack([np.ones(len(table)), *dummies, lengths - lengths.mean(axis=0)]),
        columns=("1", *index_names[1:], *tool_names[1:], "log tokens before", "log tokens after"),
        stratum=_codes(np.stack([table.index, table.tool, tertile], axis=1)),
    )


def _codes(keys: IntArray) -> IntArray:
    """(n,) numbers from 0 of different rows."""
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def cluster_sums(columns: Iterable[FloatArray], cluster: IntArray, clusters: int) -> FloatArray:
    """(Q, K) sums of K columns of n calls within Q clusters."""
    return np.stack([np.bincount(cluster, weights=column, minlength=clusters) for column in columns], axis=1)


class Order(NamedTuple):
    """(n,) call on each place, and the first place and the place after the last of its tie group."""

    rows: IntArray
    first: IntArray | slice
    stop: IntArray | slice


def order_of(values: FloatArray, strata: IntArray) -> Order:
    """Order n calls by stratum, then value, both (n,)."""
    rows = np.lexsort((values, strata))
    v, s = values[rows], strata[rows]
    starts = np.flatnonzero(np.concatenate([[True], (v[1:] != v[:-1]) | (s[1:] != s[:-1])]))
    if len(starts) == len(rows):
        return Order(rows, slice(0, -1), slice(1, None))
    sizes = np.diff(starts, append=len(rows))
    first = np.repeat(starts, sizes)
    return Order(rows, first, first + np.repeat(sizes, sizes))


def doubled_ranks(copies: FloatArray, order: Order) -> FloatArray:
    """(n, b) 2 R - 1 of the call on each place, given (n, b) copies by place."""
    before = running_sum(copies)
    return before[order.first] + before[order.stop]


def running_sum(copies: FloatArray) -> FloatArray:
    """(n + 1, b) sums of the rows before each place: several times faster than `np.cumsum` along the first axis."""
    n, b = copies.shape
    runs = -(-n // _RUN)
    padded = np.zeros((runs * _RUN + 1, b))
    padded[1 : n + 1] = copies
    stepped = padded[1:].reshape(runs, _RUN, b)
    for j in range(1, _RUN):
        stepped[:, j] += stepped[:, j - 1]
    stepped[1:] += np.cumsum(stepped[:-1, -1], axis=0)[:, None]
    return padded[: n + 1]


@dataclass(kw_only=True)
class Block:
    """The n calls for which S signals and L labels are known together, and their statistics under any weights."""

    signals: tuple[str, ...]
    labels: tuple[str, ...]
    x: FloatArray
    """(n, S), centred."""
    y: FloatArray
    """(n, L); graded ones are centred, because the squares of a column of dates leave no digits for its variance."""
    binary: BoolArray
    """(L,) labels of 0 and 1 only; the others are graded and have no AUC."""
    z: FloatArray
    """(n, p) design of the controls."""
    cluster: IntArray
    """(n,) codes in 0 ... Q - 1."""
    clusters: int
    """Q of the whole table, so that all blocks share one set of draws."""
    strata: tuple[IntArray, IntArray, IntArray]
    """(n,) each, in the order of the AUCs: one stratum, call index, all controls."""

    def __len__(self) -> int:
        """Calls, n."""
        return len(self.cluster)

    @cached_property
    def _upper(self) -> tuple[IntArray, IntArray]:
        """Upper triangle of the cross products of z, x and y."""
        return np.triu_indices(self.z.shape[1] + self.x.shape[1] + self.y.shape[1])

    @cached_property
    def _products(self) -> FloatArray:
        """(Q, D (D + 1) / 2) cross products within clusters."""
        columns = np.concatenate([self.z, self.x, self.y], axis=1)
        products = (columns[:, a] * columns[:, b] for a, b in zip(*self._upper, strict=True))
        return cluster_sums(products, self.cluster, self.clusters)

    @cached_property
    def _orders(self) -> list[list[Order]]:
        """(S)(3) order of the calls by each signal within each kind of strata."""
        return [[order_of(column, strata) for strata in self.strata] for column in self.x.T]

    @cached_property
    def _graded(self) -> dict[int, Order]:
        """Order of the calls by each graded label, by its number."""
        return {j: order_of(self.y[:, j], self.strata[0]) for j in np.flatnonzero(~self.binary).tolist()}

    def estimate(self) -> FloatArray:
        """(S, L, 7) statistics of the data."""
        return np.asarray(self.of_weights(np.ones((1, self.clusters)))[0])

    def replicates(self, *, resamples: int, seed: int) -> Iterator[FloatArray]:
        """(b, S, L, 7) statistics of resampled questions, `resamples` rows in all."""
        for weights in cluster_weights(self.clusters, resamples=resamples, seed=seed):
            for start in range(0, len(weights), _CHUNK):
                yield self.of_weights(weights[start : start + _CHUNK].astype(np.float64))

    def of_weights(self, weights: FloatArray) -> FloatArray:
        """(b, S, L, 7) statistics, NaN where undefined, of (b, Q) copies of the questions."""
        copies = np.ascontiguousarray(weights.T)[self.cluster]
        p, width = self.z.shape[1], int(self._upper[0][-1]) + 1
        values = np.empty((len(weights), width, width))
        values[:, *self._upper] = values[:, *self._upper[::-1]] = weights @ self._products
        aucs, ranks = self._of_ranks(copies, values)
        inverses = [np.linalg.pinv(values[:, :k, :k], rcond=1e-12, hermitian=True) for k in (1, p)]
        correlations = [self._correlations(gram, inverse) for gram in (ranks, values) for inverse in inverses]
        return np.stack([*aucs, *correlations], axis=-1)

    def _of_ranks(self, copies: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(3, b, S, L) AUCs, and (b, D, D) cross products of ranks; a 0/1 label stands for its rank."""
        gram = values.copy()
        p, s = self.z.shape[1], len(self.signals)
        aucs = np.empty((3, copies.shape[1], s, len(self.labels)))
        graded = dict[int, FloatArray]()  # (n, b) doubled ranks of each graded label, in the order of the calls
        for j, order in self._graded.items():
            graded[j] = ranks = np.empty_like(copies)
            ranks[order.rows] = doubled_ranks(copies[order.rows], order)
            _put(gram, p + s + j, slice(0, p), self.z.T @ (copies * ranks))
            _put(gram, p + s + j, p + s + j, np.einsum("nb,nb,nb->b", copies, ranks, ranks))
        sums = [_pair_sums(copies, self.y, strata) for strata in self.strata]
        for i, orders in enumerate(self._orders):
            for scheme, order in enumerate(orders):
                here = copies[order.rows]
                ranks = doubled_ranks(here, order)
                here *= ranks
                good = self.y[order.rows].T @ here
                shift, pairs = sums[scheme]
                aucs[scheme, :, i] = ratio(good / 2.0 - shift, pairs).T
                if scheme == 0:
                    _put(gram, p + i, p + i, np.einsum("nb,nb->b", here, ranks))
                    _put(gram, p + i, slice(0, p), self.z[order.rows].T @ here)
                    _put(gram, p + i, slice(p + s, None), good)
                    for j, label_ranks in graded.items():
                        _put(gram, p + i, p + s + j, np.einsum("nb,nb->b", here, label_ranks[order.rows]))
        aucs[..., ~self.binary] = np.nan
        return aucs, gram

    def _correlations(self, gram: FloatArray, inverse: NDArray[np.floating[Any]]) -> FloatArray:
        """(b, S, L) correlations, NaN where a residual is constant, given the k controls of the (b, k, k) inverse."""
        p, s, k = self.z.shape[1], len(self.signals), inverse.shape[1]
        mixed = gram[:, :k, p:]
        with np.errstate(divide="ignore", invalid="ignore"):
            products = gram[:, p:, p:] - np.swapaxes(mixed, 1, 2) @ inverse @ mixed
            spread = np.diagonal(gram, axis1=1, axis2=2)[:, p:] - gram[:, 0, p:] ** 2 / gram[:, 0, :1]
            left = np.diagonal(products, axis1=1, axis2=2)
            left = np.where(left > TOLERANCE * spread, left, np.nan)
            scale = np.sqrt(left[:, :s, None] * left[:, None, s:])
            return np.asarray(np.clip(products[:, :s, s:] / scale, -1.0, 1.0))


def _put(gram: FloatArray, i: int, j: int | slice, values: FloatArray) -> None:
    """Write a row and a column of symmetric (b, D, D) products."""
    gram[:, i, j] = gram[:, j, i] = values.T


def _pair_sums(copies: FloatArray, y: FloatArray, strata: IntArray) -> tuple[FloatArray, FloatArray]:
    """(L, b) what rank sums exceed by design, and (L, b) pairs, of (n, L) labels in (n,) strata."""
    rows = np.argsort(strata, kind="stable")
    starts = np.flatnonzero(np.diff(strata[rows], prepend=-1))
    here = copies[rows]
    totals = np.add.reduceat(here, starts, axis=0)
    good = np.stack([np.add.reduceat(here * label[:, None], starts, axis=0) for label in y[rows].T])
    earlier = np.cumsum(totals, axis=0) - totals
    return (good * (earlier + good / 2.0)).sum(axis=1), (good * (totals - good)).sum(axis=1)


def blocks(table: StudyTable) -> Iterator[Block]:
    """Blocks of a table that have calls, the call-index baseline among the signals."""
    columns, controls = table.with_baseline(), controls_of(table)
    for signals in _known_together(columns):
        for labels in _known_together(table.labels):
            rows = np.flatnonzero(known(columns[signals[0]]) & known(table.labels[labels[0]]))
            if not len(rows):
                continue
            x = np.stack([columns[name][rows] for name in signals], axis=1)
            y = np.stack([table.labels[name][rows] for name in labels], axis=1)
            binary = np.array([is_binary(column) for column in y.T])
            yield Block(
                signals=signals,
                labels=labels,
                x=x - x.mean(axis=0),
                y=np.where(binary, y, y - y.mean(axis=0)),
                binary=binary,
                z=controls.design[rows],
                cluster=table.cluster[rows],
                clusters=table.n_clusters,
                strata=(np.zeros_like(rows), _codes(table.index[rows]), _codes(controls.stratum[rows])),
            )


def _known_together(columns: Mapping[str, FloatArray]) -> list[tuple[str, ...]]:
    """Names of columns that are known for the same calls."""
    groups: dict[bytes, list[str]] = {}
    for name, column in columns.items():
        groups.setdefault(known(column).tobytes(), []).append(name)
    return [tuple(names) for names in groups.values()]
