r"""(Partial) correlations of many bootstrap resamples from their weighted cross products.

With $G_{uv} = \sum w\,u v$ and controls Z, $S_{xy} = G_{xy} - G_{xZ} G_{ZZ}^{+} G_{Zy}$ is the cross product of the
residuals, and the partial correlation is $S_{xy} / \sqrt{S_{xx} S_{yy}}$. With Z an intercept alone it is Pearson's
correlation: with a 0/1 label the point-biserial one, and of ranks Spearman's. The pseudo-inverse takes care of controls
that a resample does not contain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deltah.core.types import FloatArray, IntArray

TOLERANCE = 1e-9
"""Share of a variable's variance below which its residual counts as constant."""


class Products(NamedTuple):
    """Cross products of one resample block, b first."""

    xx: FloatArray
    """(b, S)"""
    xz: FloatArray
    """(b, S, p)"""
    yy: FloatArray
    """(b, L)"""
    yz: FloatArray
    """(b, L, p)"""
    xy: FloatArray
    """(b, S, L)"""
    zz: FloatArray
    """(b, p, p), intercept first."""

    def intercept_only(self) -> Products:
        """The same without any control but the intercept."""
        return self._replace(xz=self.xz[..., :1], yz=self.yz[..., :1], zz=self.zz[:, :1, :1])


def partial_correlation(g: Products) -> FloatArray:
    """(b, S, L) partial correlations; NaN where a residual is constant."""
    return _correlation(g, np.linalg.pinv(g.zz, rcond=1e-12, hermitian=True).astype(np.float64, copy=False))


def correlation(g: Products) -> FloatArray:
    """(b, S, L) correlations; NaN where a variable is constant."""
    alone = g.intercept_only()
    with np.errstate(divide="ignore"):
        return _correlation(alone, 1.0 / alone.zz)


def _correlation(g: Products, inverse: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        x_fit, y_fit = g.xz @ inverse, g.yz @ inverse
        sxx = g.xx - (x_fit * g.xz).sum(axis=-1)
        syy = g.yy - (y_fit * g.yz).sum(axis=-1)
        sxy = g.xy - x_fit @ np.swapaxes(g.yz, 1, 2)
        n = g.zz[:, :1, 0]
        sxx = np.where(sxx > TOLERANCE * (g.xx - g.xz[..., 0] ** 2 / n), sxx, np.nan)
        syy = np.where(syy > TOLERANCE * (g.yy - g.yz[..., 0] ** 2 / n), syy, np.nan)
        return np.asarray(np.clip(sxy / np.sqrt(sxx[:, :, None] * syy[:, None, :]), -1.0, 1.0))


class ClusterProducts(NamedTuple):
    """Cross products of D columns summed within clusters: a resample's are one matrix product away."""

    sums: FloatArray
    """(Q, D (D + 1) / 2) upper triangle."""
    width: int
    """D."""

    @classmethod
    def of(cls, columns: FloatArray, cluster: IntArray, clusters: int) -> ClusterProducts:
        """Sum within clusters.

        Args:
            columns: (n, D)
            cluster: (n,) codes in 0 ... clusters - 1.
            clusters: Q.
        """
        width = columns.shape[1]
        upper = np.triu_indices(width)
        sums = np.empty((clusters, len(upper[0])))
        for j, (a, b) in enumerate(zip(*upper, strict=True)):
            sums[:, j] = np.bincount(cluster, weights=columns[:, a] * columns[:, b], minlength=clusters)
        return cls(sums, width)

    def resampled(self, weights: FloatArray) -> FloatArray:
        """(b, D, D) cross products under (b, Q) cluster weights."""
        upper = np.triu_indices(self.width)
        full = np.empty((len(weights), self.width, self.width))
        full[:, upper[0], upper[1]] = full[:, upper[1], upper[0]] = weights @ self.sums
        return full
