"""The layout of tokens: the one home of the index shift, of scattering span values over tokens, and of token texts.

A causal model's output row t - 1 is the distribution that token t is drawn from. Everywhere in deltah index t of a
per-token array describes *that* distribution; `rows_that_predict` picks the rows of a model's raw output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltah.errors import InvalidValueError


def rows_that_predict(start: int, stop: int) -> range:
    """Output rows of a causal model from which tokens start ... stop - 1 are drawn.

    Raises:
        ValueError: if `start` is 0: nothing preceded the first token.
    """
    if start < 1:
        raise ValueError(f"no row predicts token {start}; expected a token that others precede")
    return range(start - 1, stop - 1)


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal half-open runs [start, stop) of True in a (T,) mask, in order."""
    padded = np.concatenate(([False], np.asarray(mask, dtype=np.bool_), [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def scatter(values: ArrayLike, index: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Put `values[index[t]]` on every masked token and 0 elsewhere.

    Args:
        values: (N,) one value for each span.
        index: (T,) the span a token belongs to, in 0..N-1 wherever `mask` is True.
        mask: (T,) tokens that receive a value.

    Returns:
        (T,) float64.
    """
    out = np.zeros(len(mask))
    out[mask] = np.asarray(values, dtype=np.float64)[index[mask]]
    return out


def pad(rows: Sequence[Sequence[float] | NDArray[np.float64]], width: int, fill: float = 0.0) -> NDArray[np.float64]:
    """Right-pad B ragged rows to (B, width) with `fill`.

    Raises:
        ValueError: if a row is longer than `width`.
    """
    out = np.full((len(rows), width), fill)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


@final
class TokenTexts(Sequence[str]):
    """(T,) texts of tokens as one string with offsets, so that the text of a span is one slice.

    Reads like the tuple of the texts and equals it.

    Raises:
        InvalidValueError: if the offsets fall, or do not end at the length of the text.
    """

    __slots__ = ("ends", "joined")

    def __init__(self, text: str, ends: ArrayLike) -> None:
        """Wrap the concatenated `text`; `ends` (T,) counts its characters (not bytes) up to the end of each token."""
        offsets = np.array(ends, dtype=np.int64)
        if offsets.ndim != 1 or len(text) != (offsets[-1] if len(offsets) else 0):
            raise InvalidValueError(
                f"token ends of shape {offsets.shape} do not fit a text of {len(text)} characters; expected one "
                "offset per token, the last one at the end of the text"
            )
        if len(offsets) and (offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any()):
            raise InvalidValueError("token ends fall from one token to the next; expected offsets that never fall")
        offsets.setflags(write=False)
        self.joined: str = text
        self.ends: NDArray[np.int64] = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> TokenTexts:
        """Join texts; what is already joined is returned as it is."""
        if isinstance(texts, TokenTexts):
            return texts
        kept = tuple(texts)
        return cls("".join(kept), tuple(accumulate(map(len, kept))))

    def join(self, start: int, stop: int) -> str:
        """Text of tokens [start, stop), with the rules of slices for bounds outside 0..T."""
        start, stop, _ = slice(start, stop).indices(len(self.ends))
        return self.joined[self.ends[start - 1] if start else 0 : self.ends[stop - 1]] if start < stop else ""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[t] for t in range(*index.indices(len(self))))
        t = index + len(self) if index < 0 else index
        if not 0 <= t < len(self):
            raise IndexError(f"token {index} of {len(self)}")
        return self.joined[self.ends[t - 1] if t else 0 : self.ends[t]]

    def __iter__(self) -> Iterator[str]:
        return (self.joined[a:b] for a, b in pairwise([0, *self.ends.tolist()]))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenTexts):
            return self.joined == other.joined and np.array_equal(self.ends, other.ends)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return f"TokenTexts.of({tuple(self)!r})"
