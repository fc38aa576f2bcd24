r"""Token entropy in nats: exact from logits, certified bounds and a point estimate from top-k log-probabilities.

Exact: $H = -\sum_v p_v \log p_v$ with $p = \mathrm{softmax}(z / \tau)$.

Bounds: let $p_1 \ge \dots \ge p_K$ be the known probabilities, $e = 1 - \sum p$ the mass of the $N = V - K$ unseen
tokens, each of which is at most $p_K$. Entropy is concave, so over all tails that fit these facts it is

* least when the mass is packed: $\lfloor e / p_K \rfloor$ tokens at $p_K$ and the rest on one;
* greatest when the mass is spread: $e / N$ on each.

A drawn token outside the top K is one more known probability; it shrinks $e$ and $N$ but not the cap $p_K$. The
stated absolute error of the log-probabilities (`precision`) widens both ends, so the interval holds for the true
distribution and not only for its rounded print-out.

The point estimate extrapolates the tail as $p_r \propto r^{-s}$ for ranks r = K+1 ... V, continuous at rank K, with s
chosen so that the tail has mass e; it is then clipped to the bounds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltah.core.types import FloatArray
from deltah.errors import InvalidValueError, VocabularySizeError

SERVER_PRECISION_NATS = 5e-5
"""Absolute error of a log-probability that a server computed in float32 and printed in full.

A log-softmax over 49,152 tokens in float32 was off by up to 2.1e-5 nats (docs/results/topk.md)."""

DEFAULT_VOCAB_SIZE: Final = 2**19
"""V assumed where a vocabulary's size is not known: above every published one.

An upper bound grows with log V, so a size that is too great widens an interval and never breaks it."""

_UNHELD_MASS = 1e-6
"""Probability that unseen tokens may fail to hold: rounding of a caller who states no precision, and no matter."""
_CACHED_VALUES = 2**16
"""Logits worked on at once, 0.5 MB of float64."""
_EXPONENTS = np.concatenate([np.linspace(0.0, 4.0, 401), np.linspace(4.0, 60.0, 225)[1:]])
"""Zipf exponents s at which the tail is tabulated; beyond 60 the tail is one token for every K >= 1."""


class EntropyBounds(NamedTuple):
    """Certified interval of each entropy and the estimate within it; arrays of one shape, nats."""

    lower: FloatArray
    upper: FloatArray
    point: FloatArray


def entropy_from_logits(logits: ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Shannon entropy of softmax(logits / temperature) over the last axis.

    Args:
        logits: (..., V), any float type; computed in float64. -inf marks an impossible token and contributes 0.
        temperature: Divides the logits, as the sampler does.

    Returns:
        (...,) nats. NaN where a row has no finite logit, or contains NaN or +inf.

    Raises:
        InvalidValueError: if there is no vocabulary axis or the temperature is not positive.
    """
    given = np.asarray(logits)
    if given.ndim == 0 or given.shape[-1] == 0:
        raise InvalidValueError(f"logits have shape {given.shape}; expected (..., V) with V >= 1")
    if not temperature > 0:
        raise InvalidValueError(f"temperature is {temperature}; expected a positive number")
    rows = given.reshape(-1, given.shape[-1])
    entropy = np.empty(len(rows))
    # Rows that fit the processor's cache together: passes over all of them would wait for memory.
    step = max(1, _CACHED_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        entropy[start : start + step] = _entropy_of_rows(rows[start : start + step], temperature)
    return entropy.reshape(given.shape[:-1])


def _entropy_of_rows(logits: NDArray[np.generic], temperature: float) -> FloatArray:
    """(N, V) to (N,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = logits.astype(np.float64)
        z /= temperature
        z -= z.max(axis=1, keepdims=True)
        weights = np.exp(z)
        total = weights.sum(axis=1)
        # exp(-inf) * -inf is NaN, but an impossible token carries no entropy.
        np.copyto(z, 0.0, where=weights == 0)
        entropy = np.log(total) - np.einsum("ij,ij->i", weights, z) / total
    # log(total) - E[z] can round to -1e-17 on a point mass; an entropy is never negative.
    return np.asarray(np.maximum(entropy, 0.0))


def entropy_bounds(
    logprobs: ArrayLike,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    *,
    sampled: ArrayLike | None = None,
    tail_cap: ArrayLike | None = None,
    precision: float | None = None,
) -> EntropyBounds:
    """Bound the entropy of a distribution of which only the k best log-probabilities are known.

    Args:
        logprobs: (..., K) natural logarithms of the K greatest probabilities, in any order. -inf (or a server's
            stand-in such as -9999) is a token of probability 0.
        vocab_size: V, the number of tokens the distribution ranges over. The bounds are certified under it.
        sampled: (...,) log-probability of the drawn token; NaN where unknown. It adds information only where it is
            smaller than every entry of `logprobs`.
        tail_cap: (...,) log-probability that no unseen token exceeds, for lists that are not the K best: 0 assumes
            nothing. Default: the least entry of `logprobs`. Only the lower bound depends on it.
        precision: Absolute error of the given log-probabilities in nats. Default: 1e-14 for float64 input, 5e-5
            (float32 arithmetic of a server) for narrower types.

    Returns:
        `EntropyBounds` of arrays (...,) in nats with lower <= point <= upper; all three equal when K = V and no
        precision is stated; NaN where a row has a NaN.

    Raises:
        InvalidValueError: if shapes disagree, K is 0, a log-probability is positive, or the lists are none of the best.
        VocabularySizeError: if K exceeds V, or the V - K unseen tokens cannot hold the mass that is left.
    """
    given = np.asarray(logprobs)
    if precision is not None and not 0 <= precision < 0.1:
        raise InvalidValueError(f"precision is {precision} nats; expected a small number, 0 <= precision < 0.1")
    implied = 1e-14 if given.dtype == np.float64 else SERVER_PRECISION_NATS
    tau = implied if precision is None else precision
    logp = np.sort(given.astype(np.float64), axis=-1) if given.ndim else given.astype(np.float64)
    _check_logprobs(logp, vocab_size, tau)
    if vocab_size == logp.shape[-1]:
        whole = _known(logp, None, None, tau)  # known whole, but for the error of its print-out
        slack = whole.slack if precision is not None else np.zeros_like(whole.slack)
        lower, upper = np.maximum(whole.head - slack, 0.0), np.maximum(whole.head + slack, 0.0)
        return EntropyBounds(lower, upper, _within(whole.head, lower, upper))
    head, slack, mass, error, cap, least_known, new = _known(logp, sampled, tail_cap, tau)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        unseen = vocab_size - logp.shape[-1] - new
        room = np.where(cap > 0, unseen * cap, 0.0)
        _check_room(1.0 - mass - error, room, cap, vocab_size, logp, sampled)
        most = np.minimum(_within(1.0 - mass + error, 0.0, 1.0), room)
        least = np.minimum(_within(1.0 - mass - error, 0.0, 1.0), most)
        best = _within(1.0 - mass, least, most)
        lower = np.maximum(head - slack + _packed(least, most, cap), 0.0)
        upper = np.maximum(head + slack + _spread(least, most, unseen), lower)
        point = _within(head + _extrapolated(best, least_known, logp.shape[-1], unseen, vocab_size), lower, upper)
    return EntropyBounds(lower, upper, point)


class _Known(NamedTuple):
    """What lists say, whatever the vocabulary; arrays of one shape, one number per list."""

    head: FloatArray  # entropy of the known tokens, nats
    slack: FloatArray  # its error
    mass: FloatArray  # probability of the known tokens
    error: FloatArray  # its error
    cap: FloatArray  # probability that no unseen token exceeds
    least: FloatArray  # probability of the least token of the list
    new: FloatArray  # 1 where the drawn token is known beside those of the list


def _known(logp: FloatArray, sampled: ArrayLike | None, tail_cap: ArrayLike | None, tau: float) -> _Known:
    """Sum up lists in ascending order, (..., K)."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        p = np.exp(logp)
        # exp(-inf) * -inf is NaN, but an impossible token carries no entropy; a NaN stays one.
        log_p = np.where(p > 0, logp, p * 0.0)
        head, mass, least = -(p * log_p).sum(axis=-1), p.sum(axis=-1), p[..., 0]
        cap = least if tail_cap is None else np.exp(_one_per_row("tail_cap", tail_cap, head.shape))
        slack, new = _rounding_slack((p * np.abs(1.0 + log_p)).sum(axis=-1), mass, tau), np.zeros(head.shape)
        if sampled is not None:
            drawn = _one_per_row("sampled", sampled, head.shape)
            # A tie with the K-th entry may be that entry: counting it twice would break the bounds, so it adds nothing.
            is_new = drawn < logp[..., 0] - 2 * tau - 1e-12
            q = np.where(is_new, np.exp(np.where(is_new, drawn, 0.0)), 0.0)
            log_q = np.log(np.where(q > 0, q, 1.0))  # 0 where the token adds nothing
            head, mass, new = head - q * log_q, mass + q, new + is_new
            slack = slack + _rounding_slack(q * np.abs(1 + log_q), q, tau)
        error = mass * np.expm1(tau) + logp.shape[-1] * np.finfo(np.float64).eps
        return _Known(*map(np.asarray, (head, slack, mass, error, cap * np.exp(tau), least, new)))


def _check_logprobs(logp: FloatArray, vocab_size: int, tau: float) -> None:
    if logp.ndim == 0 or logp.shape[-1] == 0:
        raise InvalidValueError(f"logprobs have shape {logp.shape}; expected (..., K) with K >= 1")
    if logp.shape[-1] > vocab_size:
        raise VocabularySizeError(f"a token has {logp.shape[-1]} log-probabilities", vocab_size)
    greatest = np.fmax.reduce(logp, axis=None, initial=-np.inf)
    if greatest > max(tau, 1e-3):
        raise InvalidValueError(
            f"a log-probability is {greatest:.6g}; expected natural logarithms of probabilities, at most 0"
        )


def _check_room(
    left: FloatArray, room: FloatArray, cap: FloatArray, vocab_size: int, logp: FloatArray, sampled: ArrayLike | None
) -> None:
    """Refuse a vocabulary whose unseen tokens, each at most `cap`, cannot hold the probability that is `left`."""
    unheld = left - room
    missing = np.divide(unheld, cap, out=np.zeros_like(cap), where=(cap > 0) & (unheld > _UNHELD_MASS))
    i = int(np.argmax(np.nan_to_num(missing, nan=0.0))) if missing.size else None
    if i is None or not missing.flat[i] > 0:
        return
    share, each = left.flat[i], cap.flat[i]
    listed, drawn = logp.reshape(-1, logp.shape[-1])[i], np.nan if sampled is None else np.ravel(sampled)[i]
    if (listed < drawn).any() and not np.isclose(listed, drawn, rtol=0.0, atol=2 * SERVER_PRECISION_NATS).any():
        raise InvalidValueError(
            f"a list of log-probabilities leaves {share:.3g} of the probability to tokens of at most {each:.3g} each, "
            "but the drawn token is likelier and not listed; expected the greatest of the distribution"
        )
    if vocab_size + missing.flat[i] > DEFAULT_VOCAB_SIZE:
        raise InvalidValueError(
            f"a list of log-probabilities leaves {share:.3g} of the probability to tokens of at most {each:.3g} "
            "each, more than any vocabulary has; expected the greatest of a whole distribution, whose sum is 1"
        )
    raise VocabularySizeError(
        f"tokens beyond a list of the best hold {share:.3g} of the probability, none more than {each:.3g}, which "
        f"takes at least {vocab_size + math.ceil(missing.flat[i]):,}",
        vocab_size,
    )


def _one_per_row(name: str, values: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise InvalidValueError(f"{name} has shape {array.shape}; expected one log-probability per row, {shape}")
    return array


def _rounding_slack(slope: FloatArray, mass: FloatArray, tau: float) -> FloatArray:
    """How far an error of at most tau in each log p moves the sum of -p log p, given its slope p |1 + log p|."""
    # The slope itself moves within tau, by no more than the factor exp(tau) and the summand p tau.
    return np.asarray((slope + mass * tau) * (tau * np.exp(tau)))


def _within(x: FloatArray, low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    """x, moved to the nearer end where it lies outside; `np.clip` costs several times as much."""
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _xlogx(x: FloatArray) -> FloatArray:
    """-x log x with its limit 0 at 0."""
    return np.where(x > 0, -x * np.log(np.where(x > 0, x, 1.0)), 0.0)


def _packed(least: FloatArray, most: FloatArray, cap: FloatArray) -> FloatArray:
    """Least entropy of a tail whose mass lies in [least, most] and whose tokens are at most `cap`.

    The value rises from one multiple of the cap to the next but may dip just below a multiple, so the last multiple
    inside the interval is tried beside both ends.
    """
    full = np.where(cap > 0, np.floor(most / np.where(cap > 0, cap, 1.0)), 0.0)
    at_multiple = np.where(full * cap >= least, full * _xlogx(cap), np.inf)
    return np.asarray(np.minimum.reduce([_packed_at(least, cap), _packed_at(most, cap), at_multiple]))


def _packed_at(mass: FloatArray, cap: FloatArray) -> FloatArray:
    full = np.where(cap > 0, np.floor(mass / np.where(cap > 0, cap, 1.0)), 0.0)
    rest = _within(mass - full * cap, 0.0, cap)
    return full * _xlogx(cap) + _xlogx(rest)


def _spread(least: FloatArray, most: FloatArray, unseen: FloatArray) -> FloatArray:
    """Greatest entropy of a tail of `unseen` tokens whose mass lies in [least, most]: e log(N / e)."""
    # e log(N/e) rises up to e = N/exp(1), which matters only for tails of one or two tokens.
    mass = _within(unseen / np.e, least, most)
    return np.where(unseen > 0, _xlogx(mass) + mass * np.log(np.where(unseen > 0, unseen, 1.0)), 0.0)


def _extrapolated(mass: FloatArray, cap: FloatArray, known: int, unseen: FloatArray, vocab_size: int) -> FloatArray:
    """Entropy of a power-law tail of the given mass that continues from probability `cap` at rank `known`."""
    log_ratio, tail_entropy = _zipf_table(known, vocab_size - known)
    ratio = np.log(np.where((mass > 0) & (cap > 0), mass / np.where(cap > 0, cap, 1.0), 1.0))
    shape = np.interp(ratio, log_ratio, tail_entropy)
    return np.where((mass > 0) & (unseen > 0), _xlogx(mass) + mass * shape, 0.0)


@lru_cache(maxsize=256)
def _zipf_table(known: int, tail: int) -> tuple[FloatArray, FloatArray]:
    """(Log of its mass in units of p_K, entropy when normalised) of the tail (r / K)^-s, r = K+1 ... K+tail, by s."""
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
