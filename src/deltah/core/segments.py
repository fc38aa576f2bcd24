r"""Segments of the method: which tokens H(r_k) pools, and its interval.

r_0 is the policy's reasoning before the first round, r_k the reasoning between the result of round k and the next
round; the final answer stands in the last one. Tokens that spell the call, control tokens and tool results are not
pooled. $H(r_k) = |r_k|^{-1} \sum_{t \in r_k} H_t$, so the mean of the bounds bounds the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from deltah.core.align import runs
from deltah.core.registry import Registry, choice
from deltah.core.types import (
    BoolArray,
    CallStatus,
    Estimator,
    FloatArray,
    IntArray,
    Segment,
    SegmentKind,
    ToolCall,
    Trajectory,
)
from deltah.errors import InvalidValueError

NO_RESULT: Final = "no result"
"""Reason why a call that was never answered has no signal."""
UNOPENED: Final = "the log does not show which token begins the call"
"""Reasons why ΔH is undefined though tokens were measured."""
UNREADABLE: Final = "the log has ids of tokens instead of texts, so the border of the reasoning is not known"
PoolRule: TypeAlias = Callable[[Trajectory, int], BoolArray]
"""From a trajectory of T tokens and `tail_tokens` to the (T,) mask of tokens that enter their segment's mean."""
POOLS: Registry[PoolRule] = Registry("pool")
"""Which tokens of a segment are pooled."""


@POOLS.register("reasoning", meaning="Reasoning tokens: the method's choice")
def _reasoning(trajectory: Trajectory, tail_tokens: int) -> BoolArray:
    return trajectory.mask((SegmentKind.REASONING,))


@POOLS.register("reasoning_and_call", meaning="Also the tokens that spell the call the segment ends with")
def _reasoning_and_call(trajectory: Trajectory, tail_tokens: int) -> BoolArray:
    return trajectory.mask((SegmentKind.REASONING, SegmentKind.CALL))


@POOLS.register("tail", meaning="The last `tail_tokens` reasoning tokens, where an answer or a decision is stated")
def _tail(trajectory: Trajectory, tail_tokens: int) -> BoolArray:
    mask = trajectory.mask((SegmentKind.REASONING,))
    late, index = np.zeros_like(mask), trajectory.segment_of_token
    for start, stop in runs(mask):
        for k in np.unique(index[start:stop]):
            members = start + np.flatnonzero(index[start:stop] == k)
            late[members[-tail_tokens:]] = True
    return late


class SegmentEntropies(NamedTuple):
    """Statistics of segments, each (R + 1,) with index k for r_k."""

    point: FloatArray
    """Mean nats; NaN for a segment with no measured token."""
    lower: FloatArray
    upper: FloatArray
    n_tokens: IntArray
    """Measured tokens pooled."""


def segment_entropies(trajectory: Trajectory, pool: str = "reasoning", *, tail_tokens: int = 8) -> SegmentEntropies:
    """Mean entropy of every segment r_0 ... r_R with its certified interval.

    Args:
        trajectory: Carries entropies; unmeasured (NaN) tokens are left out of the mean. A segment r_k that holds
            unplaced tokens has none.
        pool: Which tokens are pooled: a name in `POOLS`, or `package.module:function`.
        tail_tokens: Tokens kept of each segment by the pool `tail`.

    Raises:
        InvalidValueError: if the trajectory carries no entropies, or `tail_tokens` is below 1.
    """
    if tail_tokens < 1:
        raise InvalidValueError(f"tail_tokens is {tail_tokens}; expected 1 or more")
    if trajectory.entropy is None:
        raise InvalidValueError(f"trajectory {trajectory.id!r} carries no entropies")
    point, (lower, upper) = trajectory.entropy, trajectory.entropy_bounds
    n_segments = len(trajectory.rounds) + 1
    pooled = POOLS.resolve(pool).value(trajectory, tail_tokens) & ~np.isnan(point)
    if unplaced := {k for k, segment in trajectory.numbered_segments() if segment.kind is SegmentKind.UNPLACED}:
        pooled &= ~np.isin(trajectory.segment_of_token, list(unplaced))
    used = np.flatnonzero(pooled)
    index = trajectory.segment_of_token[used]
    counts = np.bincount(index, minlength=n_segments)
    divisor = np.where(counts > 0, counts, np.nan)

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(index, weights=values[used], minlength=n_segments) / divisor

    means = mean(point)
    lows, highs = (means if bound is point else mean(bound) for bound in (lower, upper))
    return SegmentEntropies(means, lows, highs, counts.astype(np.int64, copy=False))


def why_undefined(trajectory: Trajectory, h: SegmentEntropies, undefined: BoolArray) -> tuple[str | None, ...]:
    """(R,) why the signals of rounds are undefined, in words; None for one that is not."""
    return tuple(_why(trajectory, h, k) if missing else None for k, missing in enumerate(undefined.tolist()))


def _why(trajectory: Trajectory, h: SegmentEntropies, k: int) -> str:
    """Why a signal of the round between r_k and r_(k+1) is undefined."""
    if all(trajectory.calls[i].result is None for i in trajectory.rounds[k].calls):
        return NO_RESULT
    missing = [(at, place) for at, place in ((k, "before"), (k + 1, "after")) if np.isnan(h.point[at])]
    if not missing:
        return "the signal has no value"
    at, place = missing[0]
    if h.n_tokens[at]:
        return f"too few tokens of reasoning {place} the call ({h.n_tokens[at]})"
    own = [segment for index, segment in trajectory.numbered_segments() if index == at]
    unplaced = next((s for s in own if s.kind is SegmentKind.UNPLACED), None)
    if unplaced is not None:
        return UNOPENED if trajectory.segment_text(unplaced) else UNREADABLE
    reasoned = any(s.kind is SegmentKind.REASONING and (s.n_tokens or s.text) for s in own)
    return f"no entropies for the reasoning {place} the call" if reasoned else f"no reasoning {place} the call"


Span: TypeAlias = tuple[str, int]
"""(kind of `SegmentKind`, number of tokens)."""


def trajectory_from_spans(spans: Iterable[Span], entropy: ArrayLike, **fields: Any) -> Trajectory:
    """Build a rollout from what any trainer knows about it.

    Args:
        spans: Kinds and lengths in order: "prompt", "reasoning", "call" (one span per call; several before one result
            are parallel calls), "control" (sampled delimiters), "result" (all results of the calls before it).
        entropy: (T,) nats of the distribution each token was drawn from; what stands on other tokens is ignored.
        **fields: Further fields of `Trajectory`; the temperature should be one of them.

    Raises:
        InvalidValueError: if a kind is unknown, or the lengths do not add up to T.
    """
    segments: list[Segment] = []
    calls: list[int] = []
    turn, acted, answered = 0, False, set()
    for name, length in spans:
        kind = choice(SegmentKind, name, "segment kind")
        turn += acted and kind.sampled and not segments[-1].kind.sampled
        acted |= kind.sampled
        start = segments[-1].stop if segments else 0
        segments.append(Segment(kind=kind, start=start, stop=start + length, turn=turn))
        if kind is SegmentKind.CALL:
            calls.append(turn)
        elif kind is SegmentKind.RESULT:
            answered.add(turn)
    mask = np.repeat([s.kind.sampled for s in segments], [s.n_tokens for s in segments])
    values = np.asarray(entropy, dtype=np.float64)
    if values.shape != mask.shape:
        raise InvalidValueError(f"the spans have {len(mask)} tokens, the entropies shape {values.shape}; expected (T,)")
    made = []
    for i, turn in enumerate(calls):
        result = "" if turn in answered else None
        made.append(ToolCall(id=str(i), name="", arguments="", turn=turn, result=result, status=CallStatus.of(result)))
    return Trajectory(
        segments=tuple(segments),
        calls=tuple(made),
        entropy=np.where(mask, values, np.nan),
        **{"id": "0", "estimator": Estimator.EXACT, **fields},
    )
