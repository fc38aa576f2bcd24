"""Every signal against every label: statistics of `deltah.stats.replicates`, intervals, p-values, Holm's correction.

Intervals come from one cluster bootstrap by question, p-values from standardised sign flips of questions' scores, and
Holm's correction takes all tests of the table as one family. docs/api/stats.md states the formulas and their sources.
A pair needs five questions with a good call and five with another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from deltah.core.types import FloatArray, IntArray
from deltah.errors import InvalidValueError
from deltah.stats.bootstrap import MIN_CLUSTERS, Estimate, auc_interval, interval
from deltah.stats.columns import CALL_INDEX, StudyTable, known
from deltah.stats.replicates import STATISTICS, TOLERANCE, Block, blocks, cluster_sums
from deltah.stats.summary import RESAMPLES
from deltah.text_format import count

PERMUTATIONS: Final = 9999  # so that Holm's correction of some hundred tests can reach 5 %
MIN_SPARE_CALLS: Final = 5
"""Calls beyond the controls' columns that partial statistics need."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) resamples."""
_CHUNK_SIGNS: Final = 4_000_000
NAN: Final = float("nan")


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
    auc_stratified: Estimate
    """Over pairs of the same call index, tool and length tertile; n counts the calls that are in a pair."""
    spearman: Estimate
    partial_spearman: Estimate
    point_biserial: Estimate
    """Pearson's correlation; the point-biserial one where the label is 0/1."""
    partial_point_biserial: Estimate
    p: float = NAN
    """Two-sided permutation p-value of no rank association; NaN where not tested."""
    p_holm: float = NAN
    p_partial: float = NAN
    p_partial_holm: float = NAN
    reason: str | None = None
    """Why there is no number."""


def associate(
    table: StudyTable,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[Association, ...]:
    """Every signal, and the call-index baseline, against every label, in the table's order; see `run_study`."""
    if permutations < 100:
        raise InvalidValueError(f"permutations is {permutations}; expected 100 or more")
    found, listed = dict[tuple[str, str], Association](), list(blocks(table))
    for i, block in enumerate(listed):
        parts = list[FloatArray]()
        for part in block.replicates(resamples=resamples, seed=seed):
            parts.append(part)
            if on_progress is not None:
                on_progress(i * resamples + sum(map(len, parts)), len(listed) * resamples)
        p, spare = block_tests(block, permutations=permutations, seed=seed)
        replicates = np.concatenate([block.estimate()[None], *parts])
        for j, s in np.ndindex(len(block.labels), len(block.signals)):
            a = _association(block, s, j, len(table), replicates[:, s, j], p[s, j], spare)
            found[a.signal, a.label] = a
    pairs = [(signal, label) for label in table.labels for signal in table.with_baseline()]
    raw = [found.get(pair) or _without_calls(*pair, table) for pair in pairs]
    adjusted = holm(np.array([(a.p, a.p_partial) for a in raw]).ravel()).reshape(-1, 2)
    return tuple(replace(a, p_holm=p, p_partial_holm=q) for a, (p, q) in zip(raw, adjusted.tolist(), strict=True))


def _association(
    block: Block, s: int, j: int, total: int, replicates: FloatArray, p: FloatArray, spare: int
) -> Association:
    """Signal s and label j of a block of a table of `total` calls.

    From the (1 + B, 7) statistics of the data and its resamples, and the (2,) p-values; `spare` as of `block_tests`.
    """
    reason, binary, questions = _shortage(block, s, j), bool(block.binary[j]), distinct(block.cluster)
    baseline, estimates = block.signals[s] == CALL_INDEX, dict[str, Any]()
    for i, name in enumerate(STATISTICS):
        is_auc, partial = name.startswith("auc"), name.startswith("partial")
        n, clusters = _support(block, j, block.strata[i]) if is_auc else (len(block), questions)
        thin = (is_auc and not (binary and clusters >= MIN_CLUSTERS)) or (partial and spare < MIN_SPARE_CALLS)
        value, low, high = float(replicates[0, i]), NAN, NAN
        if reason is not None or thin or (baseline and (partial or name.startswith("auc_"))):
            value = NAN
        elif is_auc:
            low, high = auc_interval(value, replicates[1:, i], clusters)
        else:
            low, high = interval(replicates[1:, i], clusters)
        estimates[name] = Estimate(value=value, low=low, high=high, n=n, left_out=total - n)
    return Association(
        signal=block.signals[s],
        label=block.labels[j],
        graded=not binary,
        questions=questions,
        good=int(block.y[:, j].sum()) if binary else 0,
        **estimates,
        p=NAN if reason else float(p[0]),
        p_partial=NAN if reason or baseline else float(p[1]),
        reason=reason,
    )


def _without_calls(signal: str, label: str, table: StudyTable) -> Association:
    """A pair that no call has a value of."""
    has_label, has_signal = (known(c).any() for c in (table.labels[label], table.with_baseline()[signal]))
    missing = "this label" if not has_label else "this signal" if not has_signal else "both this label and this signal"
    nothing = Estimate(value=NAN, low=NAN, high=NAN, n=0, left_out=len(table))
    estimates: dict[str, Any] = dict.fromkeys(STATISTICS, nothing)
    reason = f"no call has {missing}"
    return Association(signal=signal, label=label, graded=False, questions=0, good=0, **estimates, reason=reason)


def _shortage(block: Block, s: int, j: int) -> str | None:
    """Why a pair is too thin for a number; None if it is not."""
    label, cluster = block.y[:, j], block.cluster
    if np.ptp(block.x[:, s]) == 0:
        return "the signal is the same for all calls"
    if block.binary[j]:
        for value, name in ((1.0, " with a good call"), (0.0, " with a call that is not good")):
            if (have := distinct(cluster[label == value])) < MIN_CLUSTERS:
                return f"{count(have, 'question')}{name}; {MIN_CLUSTERS} are needed"
        return None
    if np.ptp(label) == 0:
        return "the label is the same for all calls"
    have = distinct(cluster)
    return f"{count(have, 'question')}; {MIN_CLUSTERS} are needed" if have < MIN_CLUSTERS else None


def _support(block: Block, j: int, strata: IntArray) -> tuple[int, int]:
    """Calls in a stratum with both values of a label, and questions that hold the rarer value."""
    label = block.y[:, j]
    both = (np.bincount(strata, weights=label == 1.0) > 0) & (np.bincount(strata, weights=label == 0.0) > 0)
    used = both[strata]
    return int(used.sum()), min(distinct(block.cluster[used & (label == value)]) for value in (0.0, 1.0))


def distinct(codes: IntArray) -> int:
    """Number of different codes."""
    return int(np.count_nonzero(np.bincount(codes)))


def block_tests(block: Block, *, permutations: int, seed: int) -> tuple[FloatArray, int]:
    """(S, L, 2) p-values, raw and partial, NaN where nothing is left to test; calls beyond the controls' columns."""
    from scipy.stats import rankdata  # here, because it loads for half a second and few commands need it

    x, y = rankdata(block.x, axis=0), rankdata(block.y, axis=0)
    found, spare = list[FloatArray](), len(block)
    for z in (block.z[:, :1], block.z):
        u, values, _ = np.linalg.svd(z, full_matrices=False)
        basis = u[:, values > TOLERANCE * values[0]]
        e, f = _residuals(x, basis), _residuals(y, basis)
        spare = len(block) - basis.shape[1]
        if spare < MIN_SPARE_CALLS:
            e = np.full_like(e, np.nan)
        lengths = np.linalg.norm(f, axis=0)
        unit = f / np.where(lengths > 0, lengths, 1.0)
        scores, lost = (
            np.stack([cluster_sums((a * b for b in right.T), block.cluster, block.clusters) for a in left.T], axis=1)
            for left, right in ((e, f), (basis, unit))
        )
        found.append(sign_flip_p(scores, lost, permutations=permutations, seed=seed))
    return np.stack(found, axis=-1), spare


def _residuals(values: FloatArray, basis: FloatArray) -> FloatArray:
    """(n, K) residuals; NaN columns where nothing is left."""
    left = values - basis @ (basis.T @ values)
    return np.where(left.var(axis=0) <= TOLERANCE * values.var(axis=0), np.nan, left)


def sign_flip_p(scores: FloatArray, lost: FloatArray, *, permutations: int, seed: int) -> FloatArray:
    """(S, L) p-values from the (Q, S, L) scores u_q and the (Q, r, L) a_q of each label; NaN where a score is."""
    clusters = len(scores)
    # A tie up to rounding counts as reaching the statistic: the flip of all signs must.
    observed = np.abs(scores.sum(axis=0)) * (1 - 1e-12)
    reached = np.ones(observed.shape)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_SIGNS // max(clusters, 1))
    for start in range(0, permutations, chunk):
        rows = min(chunk, permutations - start)
        signs = rng.integers(0, 2, size=(rows, clusters), dtype=np.int8).astype(np.float64) * 2 - 1
        variance = 1.0 - np.square(np.tensordot(signs, lost, axes=1)).sum(axis=1)
        spread = np.sqrt(np.maximum(variance, TOLERANCE))[:, None, :]
        with np.errstate(invalid="ignore"):
            reached += (np.abs(np.tensordot(signs, scores, axes=1)) >= observed * spread).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, reached / (permutations + 1))


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down correction of (M,) p-values; NaN ones are no tests and stay NaN."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
