"""Per-token entropies of a whole trajectory from ragged top-k lists: what each server's list means, then the core.

`deltah.core.entropy.entropy_bounds` certifies an interval from *the k best* log-probabilities. Servers break that
promise in known ways; each is undone here, always on the side of the wider interval:

* A stand-in (null, -inf, -9999, the least float32 number) in a list is dropped; in a list of the whole vocabulary it
  is probability 0.
* vLLM puts the drawn token first and cuts the list at k, so a drawn token outside the top k displaces the k-th best.
  Whenever the drawn token is the least of its list, it counts as a known tail token and not as one of the best.
* With k = 1 the one entry may then be just the drawn token. Unless it holds half of the mass, or another token of
  the trajectory shows that the list is honest, the interval assumes nothing about rank.
* A list shorter than was asked for, or than the trajectory's usual length, has lost entries: llama-cpp-python keeps one
  of several tokens that print alike, not the best of them. So may a list without `bytes` whose least entry is the drawn
  token, appended to what was left. Then an unseen token may have any probability, and the interval assumes no rank.
* A list that lacks the drawn token but holds less likely ones is not of the k best: the interval assumes no rank.
* A drawn token's own -9999 (OpenAI: "outside the top 20") says nothing and is NaN.
* Log-probabilities printed with few decimals or significant digits, or in half precision (bfloat16, float16), are known
  only to half of the last one.

A list as long as the vocabulary gives the exact entropy, unless it was printed with few digits. A token without a list
is not measured (NaN).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deltah.core.entropy import SERVER_PRECISION_NATS, EntropyBounds, entropy_bounds
from deltah.core.types import BoolArray, Estimator, FloatArray, IntArray
from deltah.errors import DataError, InvalidValueError, VocabularySizeError
from deltah.traces.tokens import STAND_IN, PackedTokens

_MASS_TOLERANCE = 1e-3
"""How far the probabilities of a whole vocabulary may sum from 1, and any list's beyond 1."""
_MAX_DECIMALS = 5
"""More decimals err less than the server's arithmetic."""
_MIN_DIGITS, _MAX_DIGITS = 3, 6
"""Significant digits of a cut print-out; a float32 has more than 6."""
_COARSEST_NATS = 0.05
"""Error of one decimal: nobody prints fewer."""
_HALF_PRECISION_BITS = (8, 11)
"""Significant bits of bfloat16 and float16."""
_COARSEST_HALF_NATS = 2.0**-4
"""Error of bfloat16 between 16 and 32 nats; what is less likely matters to no interval."""
_MATTERS_NATS = 100.0
"""Beyond it a probability is 0 for every purpose here, and a value may be a stand-in."""
_NO_NATS = 1e-99
"""Nothing that computes in float32 prints less, but 0."""
_FLOAT32_ROUNDING = 6e-8
_FLOAT64_ROUNDING = 1e-9
_ROWS_LOOKED_AT = 4
"""Tokens that usually suffice to tell a full print-out."""
_VALUES_LOOKED_AT = 500
"""Values that suffice to tell how many digits were cut."""


class Measured(NamedTuple):
    """Entropies of T tokens."""

    entropy: FloatArray | None
    """(T,) nats, NaN where not measured; None if no token was."""
    lower: FloatArray | None
    """(T,) nats; None if exact."""
    upper: FloatArray | None
    estimator: Estimator


def measure(tokens: PackedTokens, vocab_size: int, *, requested: int | None = None) -> Measured:
    """Entropies of a trajectory's sampled tokens.

    Args:
        tokens: T tokens, in order; a server's habits are told from all of them together.
        vocab_size: V, stated or assumed.
        requested: K that the request asked for; None if the log does not say.

    Raises:
        DataError: if the probabilities of a list cannot be those of a distribution.
        VocabularySizeError: if a list, the probability that it leaves to other tokens, or the number that a token has
            in the vocabulary needs a larger one.
    """
    if not tokens.n_top.any():
        return Measured(None, None, None, Estimator.NONE)
    if tokens.greatest_id >= vocab_size:
        raise VocabularySizeError(f"a token has the id {tokens.greatest_id:,}", vocab_size)
    bounds = EntropyBounds(*(np.full(len(tokens), np.nan) for _ in EntropyBounds._fields))
    precision = _precision(tokens)
    tolerance = max(_MASS_TOLERANCE, 2 * precision)
    exact = np.zeros(len(tokens), dtype=np.bool_)
    for lists in _by_length(tokens, precision, requested):
        rows, logp = lists.rows, lists.logp
        _check_mass(logp, rows, vocab_size, tolerance)
        if logp.shape[1] == vocab_size:
            _fill(bounds, rows, _whole_vocabulary(logp, rows, lists.drawn, vocab_size, precision, tolerance))
            exact[rows] = precision == SERVER_PRECISION_NATS
            continue
        try:
            for at, known, drawn, cap in _best(lists, precision):
                found = entropy_bounds(known, vocab_size, sampled=drawn, tail_cap=cap, precision=precision)
                _fill(bounds, at, found)
        except VocabularySizeError:
            raise
        except InvalidValueError as error:  # no fault of the caller's: the log's
            raise DataError(f"field top_logprobs: {error}") from error
    if not np.isfinite(bounds.point).any():
        return Measured(None, None, None, Estimator.NONE)
    if exact[np.isfinite(bounds.point)].all():
        return Measured(bounds.point, None, None, Estimator.EXACT)
    return Measured(bounds.point, bounds.lower, bounds.upper, Estimator.TOP_K)


class _Lists(NamedTuple):
    """The n lists of one length K."""

    rows: IntArray
    """(n,) tokens they belong to."""
    logp: FloatArray
    """(n, K) as the server gave them."""
    drawn: FloatArray
    """(n,) log-probability of the drawn token; NaN where unknown."""
    unranked: BoolArray
    """(n,) whether they may not be the best ones."""


def _by_length(tokens: PackedTokens, precision: float, requested: int | None) -> Iterator[_Lists]:
    starts = np.cumsum(tokens.n_top) - tokens.n_top
    lengths = tokens.n_top[tokens.n_top > 0]
    usual = max(requested or 0, int(np.bincount(lengths).argmax()) if len(lengths) else 0)
    for k in np.unique(lengths).tolist():
        rows = np.flatnonzero(tokens.n_top == k)
        same = len(rows) == len(tokens)
        logp = tokens.top.reshape(-1, k) if same else tokens.top[starts[rows, None] + np.arange(k)]
        drawn = tokens.logprobs[rows]
        with np.errstate(invalid="ignore"):
            appended = ~tokens.has_bytes[rows] & (np.nanmin(logp, axis=1, initial=np.inf) >= drawn - 2 * precision)
        yield _Lists(rows, logp, drawn, appended | (k < usual))


def _fill(into: EntropyBounds, rows: np.ndarray, values: EntropyBounds) -> None:
    for target, source in zip(into, values, strict=True):
        target[rows] = source


def _check_mass(logp: FloatArray, rows: np.ndarray, vocab_size: int, tolerance: float) -> None:
    """Refuse lists that no distribution can have."""
    with np.errstate(over="ignore"):
        p = np.exp(logp)
    mass = np.where(np.isnan(p), 0.0, p).sum(axis=1)
    broken = ~(mass <= 1 + tolerance)
    if broken.any():
        row = int(np.argmax(broken))
        raise DataError(
            f"token {rows[row]}: its top_logprobs sum to a probability of {mass[row]:.4g}; expected natural logarithms "
            "of probabilities, at most 1 in sum"
        )
    # Only now: a list that no distribution has says nothing of the size.
    if logp.shape[1] > vocab_size:
        raise VocabularySizeError(f"token {rows[0]} has {logp.shape[1]} top_logprobs", vocab_size)


def _whole_vocabulary(
    logp: FloatArray, rows: np.ndarray, drawn: FloatArray, vocab_size: int, precision: float, tolerance: float
) -> EntropyBounds:
    logp = np.where(np.isnan(logp) | (logp <= STAND_IN), -np.inf, logp)
    mass = np.exp(logp).sum(axis=1)
    short = mass < 1 - tolerance
    if short.any():
        row = int(np.argmax(short))
        if _lacks_drawn(-np.sort(-logp[short], axis=1), drawn[short], precision)[0]:
            raise DataError(
                f"token {rows[row]} was drawn with a probability of {np.exp(drawn[row]):.3g}, but its top_logprobs "
                "hold less likely tokens and not this one; expected the greatest of the distribution"
            )
        raise VocabularySizeError(
            f"the {vocab_size} top_logprobs of token {rows[row]} hold only {mass[row]:.4g} of the probability",
            vocab_size,
        )
    return entropy_bounds(logp, vocab_size, precision=precision)


def _best(lists: _Lists, precision: float) -> Iterator[tuple[IntArray, FloatArray, FloatArray, FloatArray]]:
    """What is known of tokens whose lists hold less than the vocabulary.

    Yields:
        Rows (n,), the best log-probabilities (n, K) in ascending order, as the core sorts them, the drawn token's (n,)
        and one that no unseen token exceeds (n,).
    """
    logp, n_known = _ranked(lists.logp)
    sampled = lists.drawn
    least = np.take_along_axis(logp, np.maximum(n_known - 1, 0)[:, None], axis=1)[:, 0]
    drawn_is_least = np.abs(least - sampled) <= 2 * precision
    unranked = lists.unranked | _lacks_drawn(logp, sampled, precision)
    unranked |= (n_known == 1) & drawn_is_least & _single_may_be_unranked(logp[:, 0], sampled, n_known, precision)
    kept = n_known - (drawn_is_least & (n_known > 1))
    for k in np.unique(kept[kept > 0]):
        at = kept == k
        known = logp[at, : int(k)][:, ::-1]
        yield lists.rows[at], known, sampled[at], np.where(unranked[at], 0.0, known[:, 0])


def _ranked(logp: FloatArray) -> tuple[FloatArray, IntArray]:
    """Rows in descending order, stand-ins last as NaN, and how many entries of each are known."""
    known = logp > STAND_IN
    if not known.all():
        logp = np.where(known, logp, np.nan)
    if not known.all() or (logp[:, 1:] > logp[:, :-1]).any():
        logp = -np.sort(-logp, axis=1)
    return logp, known.sum(axis=1)


def _lacks_drawn(ranked: FloatArray, sampled: FloatArray, precision: float) -> BoolArray:
    """(n,) True where a list holds tokens less likely than the drawn one, and not the drawn one.

    Args:
        ranked: (n, K) in descending order, NaN last.
        sampled: (n,) of the drawn token; NaN where unknown.
        precision: Of each value, nats.
    """
    lacks = np.abs(ranked[:, 0] - sampled) > 2 * precision  # most drawn tokens are the most likely one
    at = np.flatnonzero(lacks)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        apart = ranked[at] - sampled[at, None]
    lacks[at] = (apart < -2 * precision).any(axis=1) & ~(np.abs(apart) <= 2 * precision).any(axis=1)
    return lacks


def _single_may_be_unranked(best: FloatArray, sampled: FloatArray, n_known: np.ndarray, precision: float) -> BoolArray:
    """True where the one entry of a list may be a drawn token that is not the most likely one."""
    honest = ((n_known == 1) & (best - sampled > 2 * precision)).any()
    return np.asarray((best <= np.log(0.5) + precision) & ~honest)


def _precision(tokens: PackedTokens) -> float:
    """Absolute error in nats: that of float32 arithmetic, and half of the last digit, or bit, where some were cut.

    What was cut is told from many values, for one of them may end in zeros by chance. Few values, or none but zeros,
    may fit a shorter print-out than the true one; then its greater error is assumed.
    """
    few = _magnitudes(tokens.logprobs[:_ROWS_LOOKED_AT], tokens.top[: int(tokens.n_top[:_ROWS_LOOKED_AT].sum())])
    if len(few) and _cut_off(few, few.max()) == 0.0:
        return SERVER_PRECISION_NATS
    values = _magnitudes(tokens.logprobs, tokens.top)
    if not len(values):
        return SERVER_PRECISION_NATS + _COARSEST_NATS
    evenly = values[:: 1 + len(values) // _VALUES_LOOKED_AT]
    return SERVER_PRECISION_NATS + _cut_off(evenly, values.max())


def _magnitudes(*logprobs: FloatArray) -> FloatArray:
    values = np.abs(np.concatenate(logprobs))
    return values[(values > _NO_NATS) & (values < _MATTERS_NATS)]


def _cut_off(values: FloatArray, greatest: float) -> float:
    """Greatest error in nats of values all printed with few decimals, digits or bits; 0 for a full print-out."""
    exponents = np.floor(np.log10(values)) + 1.0
    decimals = _fewest_fitting(values, range(1, _MAX_DECIMALS + 1))
    digits = _fewest_fitting(values * 10.0**-exponents, range(_MIN_DIGITS, _MAX_DIGITS + 1))
    before = np.floor(np.log10(greatest)) + 1.0
    errors = [0.5 * 10.0**-decimals if decimals else 0.0, 0.5 * 10.0 ** (before - digits) if digits else 0.0]
    return max(float(min(max(errors), _COARSEST_NATS)), _half_precision(values, greatest))


def _half_precision(values: FloatArray, greatest: float) -> float:
    """Greatest error in nats of values all rounded to the bits of a type of half precision; 0 for others."""
    mantissas, _ = np.frexp(values)
    for bits in _HALF_PRECISION_BITS:
        scaled = mantissas * 2.0**bits
        if (np.abs(scaled - np.rint(scaled)) <= scaled * _FLOAT32_ROUNDING).all():
            return float(min(2.0 ** (int(np.frexp(greatest)[1]) - bits - 1), _COARSEST_HALF_NATS))
    return 0.0


def _fewest_fitting(values: FloatArray, candidates: range) -> int | None:
    """Least d of the candidates such that every value is a multiple of 10^-d; None if there is none."""
    fitting = None
    for d in reversed(candidates):
        scaled = values * 10.0**d
        whole = np.rint(scaled)
        # A value rounded in float32 and printed as float64 is a multiple but for float32's own rounding.
        if not ((np.abs(scaled - whole) <= scaled * _FLOAT32_ROUNDING + _FLOAT64_ROUNDING) & (whole > 0)).all():
            break
        fitting = d
    return fitting
