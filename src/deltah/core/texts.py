"""Token texts as one string and the offsets at which tokens end: the text of any span is one slice.

A trajectory of thousands of tokens read for its entropies should not pay for thousands of small strings. `TokenTexts`
behaves as the tuple of its texts (items, slices, equality, hash) and makes a string only when one is asked for.
Offsets count characters (Unicode code points), not bytes. It does not know which tokens belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltah.errors import InvalidValueError


@final
class TokenTexts(Sequence[str]):
    """(T,) texts of tokens, immutable.

    Raises:
        InvalidValueError: if the offsets fall, or do not end at the length of the text.
    """

    __slots__ = ("_ends", "_text")

    _text: str
    _ends: NDArray[np.int64]

    def __init__(self, text: str, ends: ArrayLike) -> None:
        """Wrap a text.

        Args:
            text: All tokens, concatenated.
            ends: (T,) characters up to and including each token.
        """
        offsets = np.array(ends, dtype=np.int64)
        if offsets.ndim != 1 or len(text) != (offsets[-1] if len(offsets) else 0):
            raise InvalidValueError(
                f"token ends of shape {offsets.shape} do not fit a text of {len(text)} characters; expected one "
                "offset a token, the last one at the end of the text"
            )
        if len(offsets) and (offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any()):
            raise InvalidValueError("token ends fall from one token to the next; expected offsets that never fall")
        offsets.setflags(write=False)
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_ends", offsets)

    @classmethod
    def of(cls, texts: Iterable[str]) -> TokenTexts:
        """Join texts; what is already joined is returned as it is."""
        if isinstance(texts, TokenTexts):
            return texts
        kept = tuple(texts)
        return cls("".join(kept), tuple(accumulate(map(len, kept))))

    @property
    def joined(self) -> str:
        """The whole text."""
        return self._text

    @property
    def ends(self) -> NDArray[np.int64]:
        """(T,) characters up to and including each token; read-only."""
        return self._ends

    def join(self, start: int, stop: int) -> str:
        """Text of tokens [start, stop), with the rules of slices for bounds outside 0..T."""
        start, stop, _ = slice(start, stop).indices(len(self._ends))
        return self._text[self._offset(start) : self._offset(stop)] if start < stop else ""

    def _offset(self, token: int) -> int:
        """Characters before a token."""
        return int(self._ends[token - 1]) if token else 0

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            chosen = range(*index.indices(len(self)))
            if chosen.step != 1:
                return tuple(self[t] for t in chosen)
            return tuple(self._between(chosen.start, chosen.stop))
        n = len(self._ends)
        t = index + n if index < 0 else index
        if not 0 <= t < n:
            raise IndexError(f"token {index} of {n}")
        return self._text[self._ends[t - 1] if t else 0 : self._ends[t]]

    def __iter__(self) -> Iterator[str]:
        return self._between(0, len(self))

    def _between(self, start: int, stop: int) -> Iterator[str]:
        if start >= stop:
            return iter(())
        cuts = [self._offset(start), *self._ends[start:stop].tolist()]
        return (self._text[a:b] for a, b in pairwise(cuts))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenTexts):
            return self._text == other._text and np.array_equal(self._ends, other._ends)
        if isinstance(other, tuple):
            return tuple(self) == other
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TokenTexts.of({tuple(self)!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"TokenTexts is immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"TokenTexts is immutable; cannot delete {name!r}")

    def __reduce__(self) -> tuple[type[TokenTexts], tuple[str, NDArray[np.int64]]]:
        return TokenTexts, (self._text, self._ends)
