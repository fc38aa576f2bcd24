"""Token texts as one string and the offsets at which tokens end: the text of any span is one slice.

A trajectory of thousands of tokens read for its entropies should not pay for thousands of small strings. Offsets count
characters (Unicode code points), not bytes.
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
    """(T,) texts of tokens, read like the tuple of them and equal to it; not to be changed.

    Raises:
        InvalidValueError: if the offsets fall, or do not end at the length of the text.
    """

    __slots__ = ("ends", "joined")

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

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"TokenTexts.of({tuple(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenTexts, (self.joined, self.ends)
