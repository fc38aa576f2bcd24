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

Residuals are estimated, which takes from a flipped statistic more variance than from the observed one: without a remedy
14 calls with eleven controls reject half of all true nulls. Each flip is therefore standardised (De Santis, Goeman,
Hemerik, Davenport and Finos, "Inference in generalized linear models with robustness to misspecified variances", JASA
2025): given the labels, $T(s) = \sum s_q u_q$ has the variance $V(s) = 1 - |\sum_q s_q a_q|^2$ in units of that of
T(1), with $a_q = \sum_{i \in q} f_i U_i / |f|$ and U an orthonormal basis of the controls.

Two-sided; $p = (1 + \#\{|T(s)| / \sqrt{V(s)} \ge |T(1)|\}) / (1 + P)$, the observed signs being one of the draws, so
that p is never 0. Q questions have $2^{Q-1}$ distinct flips: five cannot reject at 5 %. Questions of very unequal size
make few of them count: where one of twenty holds a third of the calls, or sizes have a heavy tail, true nulls were
rejected at 5 to 11 % instead of 5 (`deltah.stats.study` then says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.stats.blocks import Block
from deltah.stats.moments import TOLERANCE

_CHUNK_SIGNS = 4_000_000
MIN_SPARE_CALLS = 5
"""With fewer calls beyond the controls' columns nothing is said given the controls."""


class Tests(NamedTuple):
    """What the tests of a block need, raw and given the controls (the last axis, or the last of two)."""

    scores: FloatArray
    """(Q, S, L, 2) score of each question; NaN where a residual is constant."""
    shares: tuple[tuple[FloatArray, ...], ...]
    """(L)(2) arrays of (Q, p), the a_q of each label."""
    spare: int
    """Calls beyond the columns of the controls."""


def block_tests(block: Block) -> Tests:
    """Scores of the questions, and what the flips of each label lose to the controls."""
    from scipy.stats import rankdata  # here, because it loads for half a second and few commands need it

    x, y = rankdata(block.x, axis=0), rankdata(block.y, axis=0)
    found, shares, spare = list[FloatArray](), list[list[FloatArray]](), len(block)
    for z in (block.z[:, :1], block.z):
        basis = _basis(z)
        e, f = _residuals(x, basis), _residuals(y, basis)
        spare = len(block) - basis.shape[1]
        if spare < MIN_SPARE_CALLS:
            e = np.full_like(e, np.nan)
        found.append(_cluster_scores(e, f, block.cluster, block.clusters))
        lengths = np.linalg.norm(f, axis=0)
        a = _cluster_scores(basis, f / np.where(lengths > 0, lengths, 1.0), block.cluster, block.clusters)
        shares.append([a[:, :, j] for j in range(f.shape[1])])
    return Tests(np.stack(found, axis=-1), tuple(zip(*shares, strict=True)), spare)


def _basis(design: FloatArray) -> FloatArray:
    """(n, r) orthonormal columns that span the design."""
    u, values, _ = np.linalg.svd(design, full_matrices=False)
    return np.asarray(u[:, values > TOLERANCE * values[0]])


def _residuals(values: FloatArray, basis: FloatArray) -> FloatArray:
    """(n, K) residuals; NaN columns where nothing is left."""
    left = values - basis @ (basis.T @ values)
    constant = left.var(axis=0) <= TOLERANCE * values.var(axis=0)
    return np.where(constant, np.nan, left)


def _cluster_scores(e: FloatArray, f: FloatArray, cluster: IntArray, clusters: int) -> FloatArray:
    """(Q, S, L) sums of e f within clusters."""
    found = np.empty((clusters, e.shape[1], f.shape[1]))
    for s, column in enumerate(e.T):
        for j, label in enumerate(f.T):
            found[:, s, j] = np.bincount(cluster, weights=column * label, minlength=clusters)
    return found


def sign_flip_p(
    cluster_scores: FloatArray, shares: Sequence[FloatArray], *, permutations: int, seed: int
) -> FloatArray:
    """p-values of M tests under one set of flips.

    Args:
        cluster_scores: (Q, M) scores; a NaN makes its test NaN.
        shares: (M) arrays of (Q, p), the a_q of each test; tests of one label may share an array.
        permutations: P.
        seed: Of the signs.

    Returns:
        (M,)
    """
    clusters, tests = cluster_scores.shape
    different = {id(a): a for a in shares}
    position = {key: i for i, key in enumerate(different)}
    own = np.array([position[id(a)] for a in shares], dtype=np.int64)
    # A tie up to rounding counts as reaching the statistic: the flip of all signs must.
    observed = np.abs(cluster_scores.sum(axis=0)) * (1 - 1e-12)
    reached = np.ones(tests)
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK_SIGNS // max(clusters, 1))
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        signs = rng.integers(0, 2, size=(rows, clusters), dtype=np.int8).astype(np.float64) * 2 - 1
        variance = np.stack([1.0 - np.square(signs @ a).sum(axis=1) for a in different.values()], axis=1)
        spread = np.sqrt(np.maximum(variance, TOLERANCE))[:, own]
        with np.errstate(invalid="ignore"):
            reached += (np.abs(signs @ cluster_scores) >= observed * spread).sum(axis=0)
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
