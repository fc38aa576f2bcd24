"""Long made-up trajectories, one at a time: what a page must bear. Words follow Zipf's law, as real tokens do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltah import Segment, SegmentKind, ToolCall, Trajectory
from deltah.core.types import Estimator, StopReason

VOCABULARY = 30_000
PROMPT, CALL, RESULT, ROUNDS = 300, 24, 110, 8


def words(rng: np.random.Generator, n: int) -> list[str]:
    """(n,) made-up tokens; a low number is a frequent one."""
    ranks = np.minimum(rng.zipf(1.25, n), VOCABULARY)
    return [f" {_spell(int(rank))}" for rank in ranks]


def _spell(rank: int) -> str:
    letters = ""
    while rank:
        rank, digit = divmod(rank, 26)
        letters += "etaoinshrdlucmfwypvbgkjqxz"[digit]
    return letters


def long_trajectories(count: int, *, tokens: int = 2_000, seed: int = 0) -> Iterator[Trajectory]:
    """Yield trajectories of exactly `tokens` tokens and eight calls; every fourth call repeats the one before it."""
    for i in range(count):
        yield long_trajectory(np.random.default_rng((seed, i)), i, tokens)


def long_trajectory(rng: np.random.Generator, i: int, tokens: int) -> Trajectory:
    """One of them: top-k estimates with bounds, a grade, a question shared by two trajectories."""
    reasoning = (tokens - PROMPT - ROUNDS * (CALL + RESULT)) // (ROUNDS + 1)
    texts, segments, calls, arguments = list[str](), list[Segment](), list[ToolCall](), ""
    found: list[str] = []

    def add(kind: SegmentKind, turn: int, spoken: list[str]) -> str:
        n = len(spoken)
        segments.append(Segment(kind=kind, start=len(texts), stop=len(texts) + n, turn=turn))
        texts.extend(spoken)
        return "".join(spoken)

    add(SegmentKind.PROMPT, 0, words(rng, PROMPT))
    for turn in range(ROUNDS):
        add(SegmentKind.REASONING, turn, words(rng, reasoning))
        spoken = add(SegmentKind.CALL, turn, words(rng, CALL))
        if turn % 4 != 3:
            arguments, found = f'{{"query": "{spoken.strip()}"}}', words(rng, RESULT)
        result = add(SegmentKind.RESULT, turn, found)
        name = "python" if turn in (0, 4) else "search"
        calls.append(ToolCall(id=f"c{turn}", name=name, arguments=arguments, turn=turn, result=result, duration_s=0.2))
    add(SegmentKind.REASONING, ROUNDS, words(rng, tokens - len(texts)))
    sampled = np.array([s.kind.sampled for s in segments for _ in range(s.n_tokens)])
    h = np.where(sampled, rng.gamma(0.6, 1.0, tokens), np.nan)
    return Trajectory(
        id=f"long-{i:05d}",
        segments=tuple(segments),
        calls=tuple(calls),
        entropy=h,
        entropy_lower=h * 0.9,
        entropy_upper=h * 1.1,
        estimator=Estimator.TOP_K,
        temperature=1.0,
        token_texts=tuple(texts),
        question=f"Question {i // 2}: {''.join(words(rng, 12))}?",
        prediction="".join(words(rng, 3)),
        golden_answers=("".join(words(rng, 3)),),
        outcome=float(rng.integers(0, 2)),
        stop_reason=StopReason.ANSWERED,
        metadata={"task_id": f"task-{i // 2}"},
    )
