"""Trajectories with chosen numbers, shared by the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.core.types import CallStatus, Estimator


def make_trajectory(
    segment_entropies: Sequence[Sequence[float]],
    *,
    calls_per_round: Sequence[int] | None = None,
    unanswered_last: bool = False,
    half_width: float = 0.0,
    call_tokens: int = 2,
    result_tokens: int = 3,
    **fields: object,
) -> Trajectory:
    """Build a trajectory whose r_k has the given token entropies.

    Between r_{k-1} and r_k stand `call_tokens` call tokens of entropy 9, one control token and `result_tokens` result
    tokens. `half_width` > 0 turns the entropies into top-k estimates with symmetric bounds.
    """
    rounds = len(segment_entropies) - 1
    per_round = list(calls_per_round or [1] * rounds)
    segments, entropy, calls = [Segment(kind=SegmentKind.PROMPT, start=0, stop=4, turn=0)], [np.nan] * 4, []

    def add(kind: SegmentKind, values: Sequence[float], turn: int) -> None:
        start = segments[-1].stop
        segments.append(Segment(kind=kind, start=start, stop=start + len(values), turn=turn))
        entropy.extend(values)

    for k, values in enumerate(segment_entropies):
        add(SegmentKind.REASONING, values, k)
        if k < rounds:
            unanswered = unanswered_last and k == rounds - 1
            for i in range(per_round[k]):
                status = CallStatus.UNANSWERED if unanswered else CallStatus.OK
                result = None if unanswered else "found"
                calls.append(
                    ToolCall(id=f"{k}.{i}", name="search", arguments="{}", turn=k, status=status, result=result)
                )
            add(SegmentKind.CALL, [9.0] * call_tokens, k)
            add(SegmentKind.CONTROL, [9.0], k)
            add(SegmentKind.RESULT, [np.nan] * result_tokens, k)
    h = np.array(entropy)
    exact = half_width == 0
    return Trajectory(
        **{
            "id": "t",
            "segments": tuple(segments),
            "calls": tuple(calls),
            "entropy": h,
            "entropy_lower": None if exact else np.maximum(h - half_width, 0),
            "entropy_upper": None if exact else h + half_width,
            "estimator": Estimator.EXACT if exact else Estimator.TOP_K,
            "temperature": 1.0,
            **fields,
        }
    )
