"""Sampled tokens of one assistant message, packed: texts as a list, numbers as flat arrays.

A decoded logprobs block holds an object for each alternative of each token; packed it takes a tenth of the memory, so
that a conversation can wait for its next message, and it is the form that `deltah.traces.topk` measures.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltah.core.types import BoolArray, FloatArray, IntArray
from deltah.errors import DataError, InvalidValueError
from deltah.traces.openai_schema import LogprobsBlock, TokenLogprob

STAND_IN = -9999.0
"""At or below it a log-probability stands for "impossible" or "not among those reported"."""

_ID_TEXT = "token_id:"
"""Beginning of a token's text where vLLM was asked to print its id."""
_STAND_IN_TEXTS = ("bytes:", _ID_TEXT)
"""Beginnings of a token's text that is not what was sampled."""


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

    def __len__(self) -> int:
        """T."""
        return len(self.texts)

    @property
    def nbytes(self) -> int:
        """Approximate size in memory, bytes."""
        return self.logprobs.nbytes + self.top.nbytes + self.n_top.nbytes + 64 * len(self.texts)


NO_TOKENS = PackedTokens([], np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))
"""Of a message whose tokens the log does not have."""


def pack(block: LogprobsBlock | list[TokenLogprob] | None) -> PackedTokens:
    """Pack a choice's logprobs.

    Raises:
        DataError: if a log-probability is positive, or a byte is none.
    """
    tokens = (block.content if isinstance(block, LogprobsBlock) else block) or []
    if not tokens:
        return NO_TOKENS
    logprobs = np.array([token.logprob for token in tokens], dtype=np.float64)
    if (logprobs > 1e-3).any():
        t = int(np.argmax(logprobs > 1e-3))
        raise DataError(f"token {t} has the logprob {logprobs[t]:.6g}; expected a natural logarithm, at most 0")
    lists = [token.top_logprobs or () for token in tokens]
    return PackedTokens(
        texts=_texts(tokens),
        logprobs=np.where(logprobs > STAND_IN, logprobs, np.nan),
        top=np.array([alternative.logprob for listed in lists for alternative in listed], dtype=np.float64),
        n_top=np.array([len(listed) for listed in lists], dtype=np.int64),
        has_bytes=np.array([token.bytes is not None for token in tokens]),
        greatest_id=max((_id_of(token.token) for token in tokens if token.token.startswith(_ID_TEXT)), default=-1),
    )


def pack_lists(
    texts: Sequence[str], logprobs: Sequence[float | None], top: Sequence[Sequence[float | None]]
) -> PackedTokens:
    """Pack plain lists, whose entries no server merged.

    Args:
        texts: (T,)
        logprobs: (T,) nats; None, NaN or a stand-in where unknown.
        top: (T,) lists of alternatives, in nats.

    Raises:
        InvalidValueError: if the three differ in length.
    """
    if not len(texts) == len(logprobs) == len(top):
        raise InvalidValueError(f"{len(texts)} texts, {len(logprobs)} logprobs and {len(top)} lists of alternatives")
    drawn = np.array(logprobs, dtype=np.float64)
    return PackedTokens(
        texts=list(texts),
        logprobs=np.where(drawn > STAND_IN, drawn, np.nan),
        top=np.array([logprob for listed in top for logprob in listed], dtype=np.float64),
        n_top=np.array([len(listed) for listed in top], dtype=np.int64),
        has_bytes=np.ones(len(texts), dtype=np.bool_),
    )


def concatenate(parts: Sequence[PackedTokens]) -> PackedTokens:
    """Tokens of several messages as one run."""
    filled = [part for part in parts if len(part)]
    if len(filled) <= 1:
        return filled[0] if filled else NO_TOKENS
    return PackedTokens(
        texts=[text for part in filled for text in part.texts],
        logprobs=np.concatenate([part.logprobs for part in filled]),
        top=np.concatenate([part.top for part in filled]),
        n_top=np.concatenate([part.n_top for part in filled]),
        has_bytes=np.concatenate([part.has_bytes for part in filled]),
        greatest_id=max(part.greatest_id for part in filled),
    )


def _id_of(text: str) -> int:
    number = text.removeprefix(_ID_TEXT)
    return int(number) if number.isdecimal() else -1


def _texts(tokens: Sequence[TokenLogprob]) -> list[str]:
    """Text of each token; their concatenation is the message's text.

    A character whose bytes are spread over several tokens appears at the token that completes it, if the server gives
    bytes, and as U+FFFD at its last token if it never is complete; where it gives none, the token's own text stands.
    The bytes also tell what a token's number stands for, where vLLM was asked to print numbers
    (`return_tokens_as_token_ids`).
    """
    texts = [token.token for token in tokens]
    stand_in = any("\ufffd" in text or text.startswith(_STAND_IN_TEXTS) for text in texts)
    if not stand_in or any(token.bytes is None for token in tokens):
        return texts
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
    return found[1:]
