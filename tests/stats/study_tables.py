"""Tables of made-up calls for the tests of the pilot study: their numbers are chosen, never measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from deltah.core.types import FloatArray
from deltah.stats.columns import StudyTable


def make_table(
    cluster: list[int] | np.ndarray,
    signals: Mapping[str, object],
    labels: Mapping[str, object],
    *,
    index: object = None,
    tokens: object = None,
    tool: object = None,
) -> StudyTable:
    """A table whose calls are numbered within their question unless `index` says otherwise."""
    codes = np.asarray(cluster, dtype=np.int64)
    n = len(codes)
    counted = np.array([int((codes[:i] == c).sum()) + 1 for i, c in enumerate(codes)]) if index is None else index
    tools = np.zeros(n, dtype=np.int64) if tool is None else np.asarray(tool, dtype=np.int64)
    return StudyTable(
        cluster=codes,
        index=np.asarray(counted, dtype=np.int64),
        tokens=np.full((n, 2), 7) if tokens is None else np.asarray(tokens, dtype=np.int64),
        tool=tools,
        tools=tuple(f"tool{i}" for i in range(int(tools.max(initial=0)) + 1)),
        calls=tuple((f"t{c}", str(i)) for i, c in enumerate(codes)),
        signals={name: np.asarray(column, dtype=np.float64) for name, column in signals.items()},
        labels={name: np.asarray(column, dtype=np.float64) for name, column in labels.items()},
    )


def simulate(
    rng: np.random.Generator, questions: int, *, effect: float = 0.0, position: float = 0.0, calls: float = 3.0
) -> StudyTable:
    """Calls of questions that share a signal level and, separately, a label level.

    Args:
        rng: Source of everything.
        questions: Q.
        effect: Shift of the signal of good calls, in its within-question standard deviations.
        position: What each further call takes from both signal and log odds.
        calls: Mean number of calls of a question less one.
    """
    sizes = 1 + rng.poisson(calls, questions)
    cluster = np.repeat(np.arange(questions), sizes)
    index = np.concatenate([np.arange(1, n + 1) for n in sizes])
    odds = 1.2 * rng.normal(size=questions)[cluster] - position * (index - 1)
    label = (rng.random(len(cluster)) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    level = 0.8 * rng.normal(size=questions)[cluster] + rng.normal(size=len(cluster))
    signal = level + effect * label - position * (index - 1)
    tokens = rng.integers(2, 60, size=(len(cluster), 2))
    return make_table(
        cluster, {"x": signal}, {"y": label}, index=index, tokens=tokens, tool=rng.integers(0, 2, len(cluster))
    )


def study_table(questions: int = 40, seed: int = 0) -> StudyTable:
    """Reduction, another signal, outcome, a graded and a thin label."""
    base = simulate(np.random.default_rng(seed), questions, effect=0.8, position=0.3)
    n = len(base)
    return replace(
        base,
        signals={"delta_h": base.signals["x"], "entropy_before": np.round(base.signals["x"], 0)},
        labels={
            "correct": base.labels["y"],
            "grade": np.where(np.arange(n) % 3 > 0, base.labels["y"] / 2, np.nan),
            "thin": np.ones(n),
        },
    )


def numbers(values: object) -> FloatArray:
    """As an array of floats."""
    return np.asarray(values, dtype=np.float64)
