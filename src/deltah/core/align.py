"""The only home of the shift and of scattering per-span values over tokens.

A causal model's output row t - 1 is the distribution that token t is drawn from. Everywhere in deltah index t of a
per-token array speaks of *that* distribution: whoever holds a model's raw rows picks them by `rows_that_predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deltah.core.types import BoolArray, FloatArray


def rows_that_predict(start: int, stop: int) -> range:
    """Output rows of a causal model from which tokens start ... stop - 1 are drawn.

    Raises:
        ValueError: if `start` is 0: nothing preceded the first token.
    """
    if start < 1:
        raise ValueError(f"no row predicts token {start}; expected a token that others precede")
    return range(start - 1, stop - 1)


def runs(mask: BoolArray) -> list[tuple[int, int]]:
    """Maximal half-open runs [start, stop) of True in a (T,) mask, in order."""
    padded = np.concatenate(([False], np.asarray(mask, dtype=np.bool_), [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def scatter(values: Sequence[float] | FloatArray, index: np.ndarray, mask: BoolArray) -> FloatArray:
    """Put `values[index[t]]` on every masked token and 0 elsewhere.

    Args:
        values: (N,) one value for each span.
        index: (T,) the span a token belongs to, in 0..N-1 wherever `mask` is True.
        mask: (T,) tokens that receive a value.

    Returns:
        (T,) float64.
    """
    out = np.zeros(len(mask))
    out[mask] = np.asarray(values, dtype=np.float64)[np.asarray(index)[mask]]
    return out


def pad(rows: Iterable[Sequence[float] | FloatArray], width: int, fill: float = 0.0) -> FloatArray:
    """Right-pad ragged rows to (B, width) with `fill`.

    Raises:
        ValueError: if a row is longer than `width`.
    """
    listed = [np.asarray(row, dtype=np.float64) for row in rows]
    out = np.full((len(listed), width), fill)
    for target, row in zip(out, listed, strict=True):
        if len(row) > width:
            raise ValueError(f"row of {len(row)} values does not fit a width of {width}")
        target[: len(row)] = row
    return out
