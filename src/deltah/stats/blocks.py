"""Blocks: the calls for which some signals and some labels are known together, and their statistics by resample.

Signals that are known for the same calls share a block, and so do labels; a table has as many blocks as it has pairs
of such patterns, mostly one to four. Within a block all seven statistics of all pairs come from one pass over the calls
for each signal and set of strata; labels ride along as columns of a matrix product. The estimate itself is the resample
in which every question was drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from deltah.core.types import BoolArray, FloatArray, IntArray
from deltah.stats.bootstrap import cluster_weights
from deltah.stats.controls import Controls
from deltah.stats.moments import ClusterProducts, Products, correlation, partial_correlation
from deltah.stats.ranks import Sorting, StratumSums, auc, doubled_ranks, sorting, stratum_sums
from deltah.stats.table import StudyTable, is_binary, known

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

STATISTICS: Final = (
    "auc",
    "auc_within_index",
    "auc_stratified",
    "spearman",
    "partial_spearman",
    "point_biserial",
    "partial_point_biserial",
)
"""Order of the last axis of a block's statistics; the three AUCs first."""
CHUNK: Final = 64
"""Resamples held at a time."""


class Patterned(NamedTuple):
    """Columns known for the same calls."""

    names: tuple[str, ...]
    where: BoolArray
    """(N,)"""


def patterns(columns: Mapping[str, FloatArray]) -> list[Patterned]:
    """Group columns by which calls they are known for."""
    groups: dict[bytes, list[str]] = {}
    for name, column in columns.items():
        groups.setdefault(known(column).tobytes(), []).append(name)
    return [Patterned(tuple(names), known(columns[names[0]])) for names in groups.values()]


@dataclass(frozen=True, kw_only=True)
class Block:
    """n calls with S signals and L labels."""

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
    """(n,) each: one stratum, call index, all controls; the AUCs' order in `STATISTICS`."""

    def __len__(self) -> int:
        """Calls, n."""
        return len(self.cluster)


def blocks(table: StudyTable, controls: Controls) -> Iterator[Block]:
    """All blocks of a table, the call-index baseline among the signals; empty ones are left out."""
    columns = table.with_baseline()
    for signals in patterns(columns):
        for labels in patterns(table.labels):
            rows = np.flatnonzero(signals.where & labels.where)
            if not len(rows):
                continue
            x = np.stack([columns[name][rows] for name in signals.names], axis=1)
            y = np.stack([table.labels[name][rows] for name in labels.names], axis=1)
            binary = np.array([is_binary(column) for column in y.T])
            yield Block(
                signals=signals.names,
                labels=labels.names,
                x=x - x.mean(axis=0),
                y=np.where(binary, y, y - y.mean(axis=0)),
                binary=binary,
                z=controls.design[rows],
                cluster=table.cluster[rows],
                clusters=table.n_clusters,
                strata=_strata(controls, rows),
            )


def _strata(controls: Controls, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    one = np.zeros(len(rows), dtype=np.int64)
    return one, _compact(controls.by_index[rows]), _compact(controls.by_all[rows])


def _compact(codes: IntArray) -> IntArray:
    return np.unique(codes, return_inverse=True)[1].reshape(-1)


class BlockStatistics:
    """Statistics of one block for any cluster weights."""

    def __init__(self, block: Block) -> None:
        self._block = block
        columns = np.concatenate([block.z, block.x, block.y], axis=1)
        self._products = ClusterProducts.of(columns, block.cluster, block.clusters)
        self._orders = [[sorting(column, strata) for strata in block.strata] for column in block.x.T]
        self._graded = {j: sorting(block.y[:, j], block.strata[0]) for j in np.flatnonzero(~block.binary)}
        self._totals = [self._by_stratum(strata, np.ones(len(block))) for strata in block.strata]
        self._positives = [[self._by_stratum(strata, y) for y in block.y.T] for strata in block.strata]

    def _by_stratum(self, strata: IntArray, values: FloatArray) -> csr_matrix:
        """(strata, Q) sums of the calls' values."""
        from scipy.sparse import csr_matrix  # here, because it takes long to load and few commands need it

        shape = (int(strata.max()) + 1, self._block.clusters)
        return csr_matrix((values, (strata, self._block.cluster)), shape=shape)

    def estimate(self) -> FloatArray:
        """(S, L, 7) statistics of the data."""
        estimate: FloatArray = self.of_weights(np.ones((1, self._block.clusters)))[0]
        return estimate

    def replicates(self, *, resamples: int, seed: int) -> Iterator[FloatArray]:
        """Yield (b, S, L, 7) statistics of resampled questions, `resamples` rows in all."""
        for weights in cluster_weights(self._block.clusters, resamples=resamples, seed=seed):
            for start in range(0, len(weights), CHUNK):
                yield self.of_weights(weights[start : start + CHUNK].astype(np.float64))

    def of_weights(self, weights: FloatArray) -> FloatArray:
        """(b, S, L, 7) statistics, NaN where undefined, of (b, Q) copies of the questions."""
        by_cluster = np.ascontiguousarray(weights.T)
        values = self._value_products(weights)
        aucs, ranks = self._rank_statistics(by_cluster, values)
        found = [
            *aucs,
            correlation(ranks),
            partial_correlation(ranks),
            correlation(values),
            partial_correlation(values),
        ]
        return np.stack(found, axis=-1)

    def _value_products(self, weights: FloatArray) -> Products:
        p, s = self._block.z.shape[1], self._block.x.shape[1]
        z, x, y = slice(0, p), slice(p, p + s), slice(p + s, None)
        g = self._products.resampled(weights)
        return Products(
            xx=np.diagonal(g[:, x, x], axis1=1, axis2=2),
            xz=g[:, x, z],
            yy=np.diagonal(g[:, y, y], axis1=1, axis2=2),
            yz=g[:, y, z],
            xy=g[:, x, y],
            zz=g[:, z, z],
        )

    def _rank_statistics(self, by_cluster: FloatArray, values: Products) -> tuple[FloatArray, Products]:
        """The three AUCs, (3, b, S, L), and the cross products of ranks.

        The rank of a 0/1 label is a linear function of the label, which can therefore stand for it.
        """
        block = self._block
        sums = [self._sums(scheme, by_cluster) for scheme in range(len(block.strata))]
        graded = {j: self._label_ranks(by_cluster, order) for j, order in self._graded.items()}
        b, s, labels = by_cluster.shape[1], len(block.signals), len(block.labels)
        aucs = np.empty((3, b, s, labels))
        xx, xz, xy = np.empty((b, s)), np.empty((b, s, block.z.shape[1])), np.empty((b, s, labels))
        for i, orders in enumerate(self._orders):
            for scheme, order in enumerate(orders):
                copies = by_cluster[block.cluster[order.rows]]
                ranks = doubled_ranks(copies, order)
                copies *= ranks
                positive_sums = block.y[order.rows].T @ copies
                aucs[scheme, :, i] = auc(positive_sums, sums[scheme]).T
                if scheme == 0:
                    xx[:, i] = np.einsum("nb,nb->b", copies, ranks)
                    xz[:, i] = (block.z[order.rows].T @ copies).T
                    xy[:, i] = positive_sums.T
                    for j, label_ranks in graded.items():
                        xy[:, i, j] = np.einsum("nb,nb->b", copies, label_ranks[order.rows])
        aucs[..., ~block.binary] = np.nan
        yy, yz = values.yy.copy(), values.yz.copy()
        for j, label_ranks in graded.items():
            copies = by_cluster[block.cluster] * label_ranks
            yy[:, j] = np.einsum("nb,nb->b", copies, label_ranks)
            yz[:, j] = (block.z.T @ copies).T
        return aucs, Products(xx=xx, xz=xz, yy=yy, yz=yz, xy=xy, zz=values.zz)

    def _label_ranks(self, by_cluster: FloatArray, order: Sorting) -> FloatArray:
        """(n, b) doubled ranks of a graded label, in the order of the calls."""
        found = np.empty((len(self._block), by_cluster.shape[1]))
        found[order.rows] = doubled_ranks(by_cluster[self._block.cluster[order.rows]], order)
        return found

    def _sums(self, scheme: int, by_cluster: FloatArray) -> StratumSums:
        positives = np.stack([np.asarray(matrix @ by_cluster) for matrix in self._positives[scheme]])
        return stratum_sums(np.asarray(self._totals[scheme] @ by_cluster), positives)
