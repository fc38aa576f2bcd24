r"""Permutation p-values for calls that depend on each other, and Holm's correction.

**Which null.** Permuting labels call by call supposes that the calls of a question are exchangeable with those of any
other. They are not: they share the question's difficulty, and some labels (the outcome) are one value for a whole
trajectory; such a test rejects true nulls. Permuting within a question tests something else and has nothing to permute
for those labels. Swapping the label blocks of whole questions needs questions with equally many calls. What holds by
design is that *questions are independent draws*. Let $e_i$ and $f_i$ be the residuals of signal rank and label rank on
the controls (an intercept for the raw test; call index, lengths and tool for the partial one), and
$u_q = \sum_{i \in q} e_i f_i$ the score of question q, whatever its number of calls and however they depend on one
another. Under the null of no (remaining) rank association each $u_q$ has mean 0, so $\sum_q s_q u_q$ with random signs
$s_q = \pm 1$ is a draw from the null distribution of the test statistic $\sum_q u_q$: the permutation group is the flip
of whole questions (Hemerik, Goeman and Finos, "Robust testing in generalized linear models by sign flipping score
contributions", JRSS B 2020; with many questions no symmetry of $u_q$ is needed).

Two-sided; $p = (1 + \#\{|\sum s_q u_q| \ge |\sum u_q|\}) / (1 + P)$, the observed signs being one of the draws, so
that p is never 0. Q questions have $2^{Q-1}$ distinct flips: five cannot reject at 5 %.
"""

from __future__ import annotations

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.study.pilot.blocks import Block
from deltah.study.pilot.moments import TOLERANCE

_CHUNK_SIGNS = 4_000_000


def scores(block: Block) -> FloatArray:
    """(Q, S, L, 2) score of each question: raw, and given the controls; NaN where a residual is constant."""
    from scipy.stats import rankdata  # here, because it loads for half a second and few commands need it

    x, y = rankdata(block.x, axis=0), rankdata(block.y, axis=0)
    parts = [
        _cluster_scores(_residuals(x, z), _residuals(y, z), block.cluster, block.clusters)
        for z in (block.z[:, :1], block.z)
    ]
    return np.stack(parts, axis=-1)


def _residuals(values: FloatArray, design: FloatArray) -> FloatArray:
    """(n, K) residuals; NaN columns where nothing is left."""
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    constant = left.var(axis=0) <= TOLERANCE * values.var(axis=0)
    return np.where(constant, np.nan, left)


def _cluster_scores(e: FloatArray, f: FloatArray, cluster: IntArray, clusters: int) -> FloatArray:
    """(Q, S, L) sums of e f within clusters."""
    found = np.empty((clusters, e.shape[1], f.shape[1]))
    for s, column in enumerate(e.T):
        for j, label in enumerate(f.T):
            found[:, s, j] = np.bincount(cluster, weights=column * label, minlength=clusters)
    return found


def sign_flip_p(cluster_scores: FloatArray, *, permutations: int, seed: int) -> FloatArray:
    """p-values of M tests under one set of flips.

    Args:
        cluster_scores: (Q, M) scores; a NaN makes its test NaN.
        permutations: P.
        seed: Of the signs.

    Returns:
        (M,)
    """
    clusters, tests = cluster_scores.shape
    # A tie up to rounding counts as reaching the statistic: the flip of all signs must.
    observed = np.abs(cluster_scores.sum(axis=0)) * (1 - 1e-12)
    reached = np.ones(tests)
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK_SIGNS // max(clusters, 1))
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        signs = rng.integers(0, 2, size=(rows, clusters), dtype=np.int8).astype(np.float64) * 2 - 1
        with np.errstate(invalid="ignore"):
            reached += (np.abs(signs @ cluster_scores) >= observed).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, reached / (permutations + 1))


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down correction of M p-values; NaN ones are no tests and stay NaN.

    Args:
        p: (M,)
    """
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
