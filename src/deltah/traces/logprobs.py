"""Log-probabilities of sampled tokens: from a server's block to packed arrays, and from those to entropies with bounds.

Bounds hold for lists of *the k best* (`deltah.core.entropy.entropy_bounds`). Servers break that promise in known ways,
which docs/formats/openai.md lists; each is undone here, always on the side of the wider interval. A list as long as the
vocabulary gives the exact entropy, unless it was printed with few digits; a token without a list is not measured (NaN).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from deltah.core.entropy import SERVER_PRECISION_NATS, EntropyBounds, entropy_bounds
from deltah.core.types import BoolArray, Estimator, FloatArray, IntArray
from deltah.errors import DataError, InvalidValueError, VocabularySizeError
from deltah.traces.openai_schema import Block, LogprobsBlock, TokenLogprob, TopLogprob, alternatives, block_tokens

STAND_IN = -9999.0
"""At or below it a log-probability stands for "impossible" or "not among those reported"."""
_ID_TEXT = "token_id:"
_STAND_IN_TEXTS = ("bytes:", _ID_TEXT)
"""Beginnings of a token's text that is not what was sampled; vLLM prints ids under `return_tokens_as_token_ids`."""
_MASS_TOLERANCE = 1e-3
"""How far the probabilities of a whole vocabulary may sum from 1, and any list's beyond 1."""
_DECIMALS, _DIGITS = range(1, 6), range(3, 7)  # of a cut print-out: with more it errs less than float32 does
_HALF_PRECISION_BITS = (8, 11)  # significant ones, of bfloat16 and float16
_COARSEST_NATS, _COARSEST_HALF_NATS = 0.05, 2.0**-4  # one decimal; bfloat16 between 16 and 32 nats
_NO_NATS, _MATTERS_NATS = 1e-99, 100.0  # less is 0 in float32; what is less likely matters to no interval
_FLOAT32_ROUNDING, _FLOAT64_ROUNDING = 6e-8, 1e-9
_ROWS_LOOKED_AT, _VALUES_LOOKED_AT = 4, 500  # that suffice to detect a full print-out, and how many digits were cut


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """T sampled tokens with their ragged lists of alternatives."""

    texts: list[str]
    """(T,) their concatenation is the text that was sampled."""
    logprobs: FloatArray
    """(T,) nats of each drawn token; NaN for a missing one and for a server's stand-in."""
    top: FloatArray
    """(sum of n_top,) the alternatives' nats, list after list; NaN where a server wrote null."""
    n_top: IntArray
    """(T,) length of each token's list; 0 where none was reported."""
    has_bytes: BoolArray
    """(T,) whether the server gave the token's bytes; one that does not may key its lists by text."""
    greatest_id: int = -1
    """Greatest id in the vocabulary that the log shows of these tokens; -1 where it shows none."""
    has_texts: bool = True
    """False where the server printed ids of tokens and no bytes: then the texts are empty."""
    unread: tuple[str, ...] = ()
    """Names of fields beside the tokens that nobody reads."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def nbytes(self) -> int:
        """Approximate size in memory; a tenth of what the decoded objects take."""
        return self.logprobs.nbytes + self.top.nbytes + self.n_top.nbytes + 64 * len(self.texts)


NO_TOKENS = PackedTokens([], np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))
"""Of a message whose tokens the log does not have."""


def pack(block: Block, token_ids: object = None) -> PackedTokens:
    """A choice's logprobs, packed, with the greatest of the token ids that it may list beside them."""
    tokens = block_tokens(block)
    unread, ids = (tuple(block.unknown), block.token_ids) if isinstance(block, LogprobsBlock) else ((), None)
    if not tokens:
        return replace(NO_TOKENS, unread=unread) if unread else NO_TOKENS
    logprobs = np.array([token.logprob for token in tokens], dtype=np.float64)
    if (logprobs > 1e-3).any():
        t = int(np.argmax(logprobs > 1e-3))
        raise DataError(f"token {t} has the logprob {logprobs[t]:.6g}; expected a natural logarithm, at most 0")
    lists, top = _alternatives(tokens)
    texts, has_texts = _texts(tokens)
    return PackedTokens(
        texts=texts,
        logprobs=np.where(logprobs > STAND_IN, logprobs, np.nan),
        top=np.array(top, dtype=np.float64),
        n_top=np.array([len(listed) for listed in lists], dtype=np.int64),
        has_bytes=np.array([token.bytes is not None for token in tokens]),
        greatest_id=_greatest_id(tokens, ids if token_ids is None else token_ids),
        has_texts=has_texts,
        unread=unread,
    )


def _alternatives(tokens: Sequence[TokenLogprob]) -> tuple[list[Sequence[TopLogprob]], list[float | None]]:
    """Lists of alternatives, and their log-probabilities list after list."""
    lists: list[Any] = [token.top_logprobs or () for token in tokens]
    try:
        return lists, [alternative.logprob for listed in lists for alternative in listed]
    except AttributeError:  # objects or pairs instead of entries
        lists = [alternatives(listed) or () for listed in lists]
        return lists, [alternative.logprob for listed in lists for alternative in listed]


def after_text(tokens: PackedTokens, prompt: str) -> PackedTokens:
    """Tokens that follow those of a text that a completion begins with; all of them where it does not."""
    position = n = 0
    while n < len(tokens) and position < len(prompt) and prompt.startswith(tokens.texts[n], position):
        position, n = position + len(tokens.texts[n]), n + 1
    if position < len(prompt):
        return tokens
    return replace(
        tokens,
        texts=tokens.texts[n:],
        logprobs=tokens.logprobs[n:],
        top=tokens.top[int(tokens.n_top[:n].sum()) :],
        n_top=tokens.n_top[n:],
        has_bytes=tokens.has_bytes[n:],
    )


def _greatest_id(tokens: Sequence[TokenLogprob], listed: object) -> int:
    ids = [*(token.id for token in tokens), *(listed if isinstance(listed, list) else ())]
    if tokens[0].token.startswith(_ID_TEXT):
        texts = [token.token.removeprefix(_ID_TEXT) for token in tokens]
        ids += [int(text) for text in texts if text.isdecimal()]
    return max((i for i in ids if type(i) is int), default=-1)


def pack_lists(
    texts: Sequence[str], logprobs: Sequence[float | None], top: Sequence[Sequence[float | None]]
) -> PackedTokens:
    """Packed T texts, T log-probabilities in nats and T lists of alternatives, whose entries no server merged."""
    rows = zip(texts, logprobs, [[*map(TopLogprob, listed)] for listed in top], strict=True)
    return pack([TokenLogprob(token=text, logprob=drawn, bytes=[], top_logprobs=best) for text, drawn, best in rows])


def concatenate(parts: Sequence[PackedTokens]) -> PackedTokens:
    """Tokens of several messages as one run."""
    filled = [part for part in parts if len(part)]
    if len(filled) <= 1:
        return filled[0] if filled else NO_TOKENS
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in filled])
        for name in ("logprobs", "top", "n_top", "has_bytes")
    }
    return replace(
        filled[0],
        texts=[text for part in filled for text in part.texts],
        **arrays,
        greatest_id=max(part.greatest_id for part in filled),
        has_texts=all(part.has_texts for part in filled),
    )


def _texts(tokens: Sequence[TokenLogprob]) -> tuple[list[str], bool]:
    """(T,) texts, by the bytes where the server gives them and a token's text is broken, or a number instead.

    A character whose bytes are spread over several tokens appears at the token that completes it, and as U+FFFD at its
    last token if it never is complete. False: there are neither texts nor bytes.
    """
    texts = [token.token for token in tokens]
    if not any("\ufffd" in text or text.startswith(_STAND_IN_TEXTS) for text in texts):
        return texts, True
    if any(text.startswith(_ID_TEXT) and not token.bytes for text, token in zip(texts, tokens, strict=True)):
        return [""] * len(texts), False
    if any(token.bytes is None for token in tokens):
        return texts, True
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found = [""]  # before the first token, where nothing can be left open
    try:
        for token in tokens:
            spelled = bytes(token.bytes or ())
            if spelled == token.token.encode():  # such as an end token, which no broken character before it is part of
                found[-1] += decoder.decode(b"", final=True)
            found.append(decoder.decode(spelled) or ("" if spelled else token.token))
    except ValueError as error:
        raise DataError("field logprobs.content.bytes: a byte is not in 0..255") from error
    found[-1] += decoder.decode(b"", final=True)
    return found[1:], True


class Measured(NamedTuple):
    """Entropies of T tokens."""

    entropy: FloatArray | None
    """(T,) nats, NaN where not measured; None if no token was."""
    lower: FloatArray | None
    """(T,) nats; None if exact."""
    upper: FloatArray | None
    estimator: Estimator


_NOTHING = Measured(None, None, None, Estimator.NONE)


def measure(tokens: PackedTokens, vocab_size: int, *, requested: int | None = None) -> Measured:
    """Entropies of a trajectory's sampled tokens; a server's habits are detected from all lists together.

    `vocab_size` is V, stated or assumed; `requested` is K that the request asked for, None if unknown. `DataError` if a
    list cannot be of a distribution, `VocabularySizeError` if V is too small for what the log shows.
    """
    if not tokens.n_top.any():
        return _NOTHING
    if tokens.greatest_id >= vocab_size:
        raise VocabularySizeError(f"a token has the id {tokens.greatest_id:,}", vocab_size)
    bounds, exact = np.full((3, len(tokens)), np.nan), np.zeros(len(tokens), dtype=np.bool_)
    precision = _precision(tokens)
    tolerance = max(_MASS_TOLERANCE, 2 * precision)
    for lists in _by_length(tokens, precision, requested):
        _check_mass(lists, vocab_size, tolerance)
        if lists.logp.shape[1] == vocab_size:
            bounds[:, lists.rows] = _whole_vocabulary(lists, vocab_size, precision, tolerance)
            exact[lists.rows] = precision == SERVER_PRECISION_NATS
            continue
        try:
            for at, known, drawn, cap in _best(lists, precision):
                bounds[:, at] = entropy_bounds(known, vocab_size, sampled=drawn, tail_cap=cap, precision=precision)
        except VocabularySizeError:
            raise
        except InvalidValueError as error:  # no fault of the caller's: the log's
            raise DataError(f"field top_logprobs: {error}") from error
    lower, upper, point = bounds
    measured = np.isfinite(point)
    if not measured.any():
        return _NOTHING
    if exact[measured].all():
        return Measured(point, None, None, Estimator.EXACT)
    return Measured(point, lower, upper, Estimator.TOP_K)


class _Lists(NamedTuple):
    """The n lists of one length K: (n, K) nats as the server gave them; (n,) tokens, drawn nats (NaN: unknown), and
    whether a list may not hold the best ones.
    """

    rows: IntArray
    logp: FloatArray
    drawn: FloatArray
    unranked: BoolArray


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


def _check_mass(lists: _Lists, vocab_size: int, tolerance: float) -> None:
    """Refuse lists that no distribution can have."""
    with np.errstate(over="ignore"):
        mass = np.nansum(np.exp(lists.logp), axis=1)
    broken = ~(mass <= 1 + tolerance)
    if broken.any():
        row = int(np.argmax(broken))
        raise DataError(
            f"token {lists.rows[row]}: its top_logprobs sum to a probability of {mass[row]:.4g}; expected natural "
            "logarithms of probabilities, at most 1 in sum"
        )
    # Only now: a list that no distribution has says nothing of the size.
    if lists.logp.shape[1] > vocab_size:
        raise VocabularySizeError(f"token {lists.rows[0]} has {lists.logp.shape[1]} top_logprobs", vocab_size)


def _whole_vocabulary(lists: _Lists, vocab_size: int, precision: float, tolerance: float) -> EntropyBounds:
    logp = np.where(np.isnan(lists.logp) | (lists.logp <= STAND_IN), -np.inf, lists.logp)
    mass = np.exp(logp).sum(axis=1)
    short = mass < 1 - tolerance
    if short.any():
        row = int(np.argmax(short))
        if _lacks_drawn(-np.sort(-logp[short], axis=1), lists.drawn[short], precision)[0]:
            raise DataError(
                f"token {lists.rows[row]} was drawn with a probability of {np.exp(lists.drawn[row]):.3g}, but its "
                "top_logprobs hold less likely tokens and not this one; expected the greatest of the distribution"
            )
        raise VocabularySizeError(
            f"the {vocab_size} top_logprobs of token {lists.rows[row]} hold only {mass[row]:.4g} of the probability",
            vocab_size,
        )
    return entropy_bounds(logp, vocab_size, precision=precision)


def _best(lists: _Lists, precision: float) -> Iterator[tuple[IntArray, FloatArray, FloatArray, FloatArray]]:
    """Of lists shorter than the vocabulary: rows (n,), the best log-probabilities (n, K) in ascending order, the drawn
    token's (n,), and one that no unseen token exceeds (n,).
    """
    logp, sampled, listed = lists.logp, lists.drawn, lists.logp > STAND_IN
    if not listed.all() or (logp[:, 1:] > logp[:, :-1]).any():
        logp = -np.sort(-np.where(listed, logp, np.nan), axis=1)  # stand-ins last
    n_known = listed.sum(axis=1)
    least = np.take_along_axis(logp, np.maximum(n_known - 1, 0)[:, None], axis=1)[:, 0]
    drawn_is_least = np.abs(least - sampled) <= 2 * precision
    unranked = lists.unranked | _lacks_drawn(logp, sampled, precision)
    # The one entry of a list may be a drawn token that is not the most likely one, unless one shows that it is not.
    single, best = n_known == 1, logp[:, 0]
    if not (single & (best - sampled > 2 * precision)).any():
        unranked |= single & drawn_is_least & (best <= np.log(0.5) + precision)
    kept = n_known - (drawn_is_least & (n_known > 1))
    for k in np.unique(kept[kept > 0]):
        at = kept == k
        known = logp[at, : int(k)][:, ::-1]
        yield lists.rows[at], known, sampled[at], np.where(unranked[at], 0.0, known[:, 0])


def _lacks_drawn(ranked: FloatArray, sampled: FloatArray, precision: float) -> BoolArray:
    """(n,) True where a list (descending order) holds tokens less likely than the drawn one, and not the drawn one."""
    lacks = np.abs(ranked[:, 0] - sampled) > 2 * precision  # most drawn tokens are the most likely one
    at = np.flatnonzero(lacks)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        apart = ranked[at] - sampled[at, None]
    lacks[at] = (apart < -2 * precision).any(axis=1) & ~(np.abs(apart) <= 2 * precision).any(axis=1)
    return lacks


def _precision(tokens: PackedTokens) -> float:
    """Absolute error in nats: that of float32 arithmetic, and half of the last digit, or bit, where some were cut.

    Few values, or none but zeros, may fit a shorter print-out than the true one; then its greater error is assumed.
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
    places, (mantissas, _) = np.floor(np.log10(values)) + 1.0, np.frexp(values)
    error = 0.0
    if decimals := _fewest(values, 10.0, _DECIMALS):
        error = min(0.5 * 10.0**-decimals, _COARSEST_NATS)
    if digits := _fewest(values * 10.0**-places, 10.0, _DIGITS):
        error = max(error, min(0.5 * 10.0 ** (np.floor(np.log10(greatest)) + 1.0 - digits), _COARSEST_NATS))
    if bits := _fewest(mantissas, 2.0, _HALF_PRECISION_BITS):
        error = max(error, min(0.5 * 2.0 ** (int(np.frexp(greatest)[1]) - bits), _COARSEST_HALF_NATS))
    return error


def _fewest(values: FloatArray, base: float, candidates: Sequence[int]) -> int | None:
    """Least d of the candidates such that every value is a multiple of base^-d; None if there is none."""
    fitting = None
    for d in reversed(candidates):
        scaled = values * base**d
        whole = np.rint(scaled)
        # A value rounded in float32 and printed as float64 is a multiple but for float32's own rounding.
        if not ((np.abs(scaled - whole) <= scaled * _FLOAT32_ROUNDING + _FLOAT64_ROUNDING) & (whole > 0)).all():
            break
        fitting = d
    return fitting
