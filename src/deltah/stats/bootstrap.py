"""Ratio statistics with cluster-bootstrap intervals, and how an estimate is written.

Every statistic is a ratio of two sums over clusters (questions). They are drawn with replacement, and the same draws
serve all statistics of a table and both sides of a paired difference. docs/api/stats.md states the intervals and their
sources. More than `MAX_RESAMPLED` clusters are resampled in random groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltah.core.types import FloatArray, IntArray
from deltah.errors import InvalidValueError
from deltah.text_format import MISSING, number

LEVEL = 0.95
"""Nominal coverage of every interval."""
MIN_CLUSTERS = 5
"""With fewer clusters no interval is given."""
MAX_UNDEFINED_SHARE = 0.05
"""With a larger share of resamples whose denominator is 0 no interval is given."""
MAX_RESAMPLED = 2000
_CHUNK_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval and what it rests on."""

    value: float
    """NaN when nothing could enter."""
    low: float
    """Lower end of the 95 % interval; NaN when there is none."""
    high: float
    n: int
    """Observations that entered (the unit of the denominator: trajectories or calls)."""
    left_out: int
    """Observations that could not enter because something was not measured."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number as a terminal, a page and a JSON file show it: "1.36" and "[1.21, 1.52]"."""

    text: str
    interval: str = ""
    estimate: Estimate | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


def estimate_cell(estimate: Estimate, digits: int, *, signed: bool = False) -> Cell:
    """One estimate as text."""
    low, high = number(estimate.low, digits, signed=signed), number(estimate.high, digits, signed=signed)
    interval = "" if MISSING in (low, high) else f"[{low}, {high}]"
    return Cell(text=number(estimate.value, digits, signed=signed), interval=interval, estimate=estimate)


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Elementwise quotient; NaN wherever the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(denominator == 0, np.nan, numerator / denominator))


def cluster_weights(clusters: int, *, resamples: int, seed: int) -> Iterator[IntArray]:
    """(b, Q) blocks of how often each cluster was drawn, `resamples` rows in all; an error below 100."""
    if resamples < 100:
        raise InvalidValueError(f"resamples is {resamples}; expected 100 or more for a 95 % interval")
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK_DRAWS // max(clusters, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = rng.integers(0, clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        yield np.bincount(draws.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def ratio_replicates(
    numerators: FloatArray, denominators: FloatArray, *, resamples: int = 2000, seed: int = 0
) -> FloatArray:
    """(B, S) bootstrap replicates of ratios of (Q, S) sums, NaN where a resample has no denominator.

    The same seed and Q give the same draws, which pairs two calls.
    """
    clusters, statistics = numerators.shape
    if clusters == 0:
        return np.full((resamples, statistics), np.nan)
    sums = np.concatenate((numerators, denominators), axis=1)
    if clusters > MAX_RESAMPLED:
        order = np.random.default_rng(seed).permutation(clusters)
        starts = np.linspace(0, clusters, MAX_RESAMPLED, endpoint=False).astype(np.int64)
        sums = np.add.reduceat(sums[order], starts, axis=0)
    resampled = np.concatenate([weights @ sums for weights in _ratio_weights(len(sums), resamples, seed)])
    return ratio(resampled[:, :statistics], resampled[:, statistics:])


def ratio_estimates(sums: FloatArray, rates: Iterable[bool], *, resamples: int, seed: int) -> list[Estimate]:
    """S ratios of (Q, S, 3) sums: numerator, denominator and what is left out; `rates` as of `interval`."""
    replicates, totals = ratio_replicates(sums[..., 0], sums[..., 1], resamples=resamples, seed=seed), sums.sum(axis=0)
    values, clusters = ratio(totals[:, 0], totals[:, 1]), (sums[..., 1] > 0).sum(axis=0)
    found = []
    for s, rate in enumerate(rates):
        low, high = interval(replicates[:, s], int(clusters[s]), rate=rate)
        n, left_out = int(totals[s, 1]), int(totals[s, 2])
        found.append(Estimate(value=float(values[s]), low=low, high=high, n=n, left_out=left_out))
    return found


def difference_estimates(a: FloatArray, b: FloatArray, *, left_out: int, resamples: int, seed: int) -> list[Estimate]:
    """S differences b - a of ratios of (Q, S, 3) sums over the same clusters; n counts clusters, as `left_out` does."""
    each = [ratio_replicates(sums[..., 0], sums[..., 1], resamples=resamples, seed=seed) for sums in (a, b)]
    values = [ratio(totals[:, 0], totals[:, 1]) for totals in (a.sum(axis=0), b.sum(axis=0))]
    found = []
    for s, n in enumerate(((a[..., 1] > 0) | (b[..., 1] > 0)).sum(axis=0).tolist()):
        low, high = interval(each[1][:, s] - each[0][:, s], n)
        found.append(Estimate(value=float(values[1][s] - values[0][s]), low=low, high=high, n=n, left_out=left_out))
    return found


@lru_cache(maxsize=2)
def _ratio_weights(clusters: int, resamples: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    """All blocks of `cluster_weights`, kept: the tables of one log ask for the same ones."""
    return tuple(w.astype(np.uint16) for w in cluster_weights(clusters, resamples=resamples, seed=seed))


def interval(replicates: FloatArray, clusters: int, *, rate: bool = False) -> tuple[float, float]:
    """Expanded percentile interval of one statistic.

    Args:
        replicates: (B,) bootstrap replicates.
        clusters: Clusters that contribute to the statistic.
        rate: Whether the statistic is a mean of values in [0, 1]: if all clusters agree on 0 or 1, the interval reaches
            to the exact bound.

    Returns:
        (low, high); NaN for fewer than `MIN_CLUSTERS` clusters, or when too many replicates are undefined.
    """
    defined = _defined(replicates, clusters)
    if defined is None:
        return float("nan"), float("nan")
    from scipy.special import ndtr  # here, because it takes long to load

    tail = float(ndtr(-_expanded_quantile(clusters)))
    low, high = map(float, np.quantile(defined, (tail, 1 - tail)))
    return _edge_interval(low, clusters) if rate and low == high and low in (0.0, 1.0) else (low, high)


def auc_interval(value: float, replicates: FloatArray, clusters: int) -> tuple[float, float]:
    r"""Interval of an AUC: the bootstrap's standard error and a t quantile, on the scale of log odds.

    Percentiles are too narrow near 1: a resample of well separated calls is as well separated
    (docs/results/study_calibration.txt has the coverage).

    Args:
        value: The estimate.
        replicates: (B,) bootstrap replicates.
        clusters: Clusters that hold the rarer of the two classes.

    Returns:
        (low, high); NaN as for `interval`.
    """
    defined = _defined(replicates, clusters)
    if defined is None or np.isnan(value):
        return float("nan"), float("nan")
    if value >= 1.0 or value <= 0.0:
        return _edge_interval(value, clusters)
    odds = value / (1.0 - value)
    factor = np.exp(_expanded_quantile(clusters) * defined.std(ddof=1) / (value * (1.0 - value)))
    return float(odds / (odds + factor)), float(odds * factor / (1.0 + odds * factor))


def _edge_interval(value: float, clusters: int) -> tuple[float, float]:
    """From an edge to the bound that n agreeing clusters leave: all are good with probability rate^n."""
    bound = float(((1.0 - LEVEL) / 2.0) ** (1.0 / clusters))
    return (bound, 1.0) if value >= 1.0 else (0.0, 1.0 - bound)


def _defined(replicates: FloatArray, clusters: int) -> FloatArray | None:
    """Replicates that are numbers; None where they carry no interval."""
    defined = replicates[np.isfinite(replicates)]
    enough = len(defined) >= (1 - MAX_UNDEFINED_SHARE) * len(replicates)
    return defined if enough and clusters >= MIN_CLUSTERS else None


def _expanded_quantile(clusters: int) -> float:
    """Quantile of t in standard errors of the bootstrap, which are too small by sqrt((n - 1) / n)."""
    from scipy.special import stdtrit  # here, because it takes long to load

    quantile: Any = stdtrit(clusters - 1, (1 + LEVEL) / 2)
    return float(np.sqrt(clusters / (clusters - 1)) * quantile)
