r"""Segments of the method: which tokens H(r_k) pools, and its interval.

r_0 is the policy's reasoning before the first round, r_k the reasoning between the result of round k and the next
round; the final answer stands in the last one. Tokens that spell the call, control tokens and tool results are not
pooled. $H(r_k) = |r_k|^{-1} \sum_{t \in r_k} H_t$, so the mean of the bounds bounds the mean.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np

from deltah.core.align import runs
from deltah.core.types import BoolArray, FloatArray, IntArray, SegmentKind, Trajectory
from deltah.errors import InvalidValueError


class Pool(StrEnum):
    """Which tokens of a segment are pooled."""

    REASONING = "reasoning"
    """Reasoning tokens: the method's choice."""
    REASONING_AND_CALL = "reasoning_and_call"
    """Also the tokens that spell the call the segment ends with."""
    TAIL = "tail"
    """The last `tail_tokens` reasoning tokens: late tokens, where an answer or a decision is stated."""


class SegmentEntropies(NamedTuple):
    """Per-segment statistics, each (R + 1,): index k speaks of r_k."""

    point: FloatArray
    """Mean nats; NaN for a segment with no measured token."""
    lower: FloatArray
    upper: FloatArray
    n_tokens: IntArray
    """Measured tokens pooled."""


def pool_mask(trajectory: Trajectory, pool: Pool = Pool.REASONING, *, tail_tokens: int = 8) -> BoolArray:
    """(T,) True on the tokens that enter their segment's mean.

    Args:
        trajectory: T tokens.
        pool: The rule.
        tail_tokens: Tokens kept of each segment under `Pool.TAIL`.

    Raises:
        InvalidValueError: if `tail_tokens` is below 1.
    """
    if tail_tokens < 1:
        raise InvalidValueError(f"tail_tokens is {tail_tokens}; expected 1 or more")
    if pool is Pool.REASONING_AND_CALL:
        return trajectory.mask((SegmentKind.REASONING, SegmentKind.CALL))
    mask = trajectory.mask((SegmentKind.REASONING,))
    if pool is Pool.REASONING:
        return mask
    late, index = np.zeros_like(mask), trajectory.segment_of_token
    for start, stop in runs(mask):
        for k in np.unique(index[start:stop]):
            members = start + np.flatnonzero(index[start:stop] == k)
            late[members[-tail_tokens:]] = True
    return late


def segment_entropies(trajectory: Trajectory, pool: Pool = Pool.REASONING, *, tail_tokens: int = 8) -> SegmentEntropies:
    """Mean entropy of every segment r_0 ... r_R with its certified interval.

    Args:
        trajectory: Carries entropies; unmeasured (NaN) tokens are left out of the mean.
        pool: Which tokens are pooled.
        tail_tokens: See `pool_mask`.

    Raises:
        InvalidValueError: if the trajectory carries no entropies.
    """
    lower, upper = trajectory.entropy_bounds
    n_segments = len(trajectory.rounds) + 1
    point = trajectory.entropy
    if point is None:  # unreachable after entropy_bounds; tells the type checker
        raise InvalidValueError(f"trajectory {trajectory.id!r} carries no entropies")
    used = np.flatnonzero(pool_mask(trajectory, pool, tail_tokens=tail_tokens) & ~np.isnan(point))
    index = trajectory.segment_of_token[used]
    counts = np.bincount(index, minlength=n_segments)
    divisor = np.where(counts > 0, counts, np.nan)

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(index, weights=values[used], minlength=n_segments) / divisor

    middle = mean(point)
    return SegmentEntropies(
        middle,
        middle if lower is point else mean(lower),
        middle if upper is point else mean(upper),
        counts.astype(np.int64, copy=False),
    )
