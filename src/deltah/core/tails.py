"""Entropy of the unseen tail of a distribution: least, greatest, and extrapolated; nats.

A tail is a mass e on N unseen tokens, each at most a cap; all arguments are arrays of one shape.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from deltah.core.types import FloatArray

_E = float(np.e)
_EXPONENTS = np.concatenate([np.linspace(0.0, 4.0, 401), np.linspace(4.0, 60.0, 225)[1:]])
"""Zipf exponents s at which the tail is tabulated; beyond 60 the tail is one token for every K >= 1."""


def within(x: FloatArray, low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    """Return x, moved to the nearer end where it lies outside; `np.clip` costs several times as much."""
    return np.asarray(np.minimum(np.maximum(x, low), high))


def xlogx(x: FloatArray) -> FloatArray:
    """Return -x log x with its limit 0 at 0."""
    return np.where(x > 0, -x * np.log(np.where(x > 0, x, 1.0)), 0.0)


def packed(least: FloatArray, most: FloatArray, cap: FloatArray) -> FloatArray:
    """Least entropy of a tail whose mass lies in [least, most] and whose tokens are at most `cap`.

    The value rises from one multiple of the cap to the next but may dip just below a multiple, so the last multiple
    inside the interval is tried beside both ends.
    """
    full = np.where(cap > 0, np.floor(np.where(cap > 0, most / np.where(cap > 0, cap, 1.0), 0.0)), 0.0)
    multiple = full * cap
    candidates = [_packed_at(least, cap), _packed_at(most, cap)]
    candidates.append(np.where(multiple >= least, full * xlogx(cap), np.inf))
    return np.asarray(np.minimum.reduce(candidates))


def _packed_at(mass: FloatArray, cap: FloatArray) -> FloatArray:
    full = np.where(cap > 0, np.floor(mass / np.where(cap > 0, cap, 1.0)), 0.0)
    rest = within(mass - full * cap, 0.0, cap)
    return full * xlogx(cap) + xlogx(rest)


def spread(least: FloatArray, most: FloatArray, unseen: FloatArray) -> FloatArray:
    """Greatest entropy of a tail of `unseen` tokens whose mass lies in [least, most]: e log(N / e)."""
    # e log(N/e) rises up to e = N/exp(1), which matters only for tails of one or two tokens.
    mass = within(unseen / _E, least, most)
    return np.where(unseen > 0, xlogx(mass) + mass * np.log(np.where(unseen > 0, unseen, 1.0)), 0.0)


def extrapolated(mass: FloatArray, cap: FloatArray, known: int, unseen: FloatArray, vocab_size: int) -> FloatArray:
    """Entropy of a power-law tail of the given mass that continues from probability `cap` at rank `known`."""
    log_ratio, tail_entropy = _zipf_table(known, vocab_size - known)
    ratio = np.log(np.where((mass > 0) & (cap > 0), mass / np.where(cap > 0, cap, 1.0), 1.0))
    shape = np.interp(ratio, log_ratio, tail_entropy)
    return np.where((mass > 0) & (unseen > 0), xlogx(mass) + mass * shape, 0.0)


@lru_cache(maxsize=256)
def _zipf_table(known: int, tail: int) -> tuple[FloatArray, FloatArray]:
    """Tabulate the tail p_r = (r / K)^-s, r = K+1 ... K+tail, over exponents s.

    Returns:
        (log of its mass in units of p_K, entropy of the tail normalised to 1), both ascending in the mass.
    """
    exact = np.arange(known + 1, known + min(tail, 64) + 1, dtype=np.float64)
    # Beyond 64 ranks the sum is the integral between half ranks: its relative error is below 1e-5 there.
    edges = np.geomspace(exact[-1] + 0.5, known + tail + 0.5, 129) if tail > 64 else np.empty(0)
    mid, width = np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)
    ranks, counts = np.concatenate([exact, mid]), np.concatenate([np.ones(len(exact)), width])
    weights = counts * (ranks / known) ** -_EXPONENTS[:, None]
    mass = weights.sum(axis=1)
    mean_log = (weights * np.log(ranks / known)).sum(axis=1) / mass
    entropy = np.log(mass) + _EXPONENTS * mean_log
    # Exponents below 0 (mass above `tail`) cannot occur: no unseen token exceeds p_K.
    return np.log(mass)[::-1], np.maximum(entropy, 0.0)[::-1]
