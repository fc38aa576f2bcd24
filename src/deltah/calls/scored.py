"""Trajectories with their signals, and what is read off each: its question, whether it is correct, its waste."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

from deltah.calls.waste import Waste, WasteLevel, waste_level
from deltah.core.signal_types import Signal
from deltah.core.signals import SignalConfig, score
from deltah.core.types import Trajectory

MAX_KEY_CHARS: Final = 200
"""Of a cluster's name."""
CORRECT_OUTCOME: Final = 1.0
"""A trajectory is correct from this outcome on."""
Scored: TypeAlias = tuple[Trajectory, Signal | None]
"""A trajectory with its signal; None for one without entropies."""
ClusterKey: TypeAlias = tuple[str, str]
"""What names the question ("task_id", "question" or "id"), and its name."""


def cluster_key(trajectory: Trajectory, cluster: str = "task_id") -> ClusterKey:
    """What question a trajectory answers: its task id, else the question's text, else its own id.

    A long text is named by its beginning and a digest, so that keys stay small however long the prompts are.
    """
    named = trajectory.metadata.get(cluster)
    if named is not None:
        return (cluster, _short(str(named)))
    return ("id", _short(trajectory.id)) if trajectory.question is None else ("question", _short(trajectory.question))


def _short(text: str) -> str:
    if len(text) <= MAX_KEY_CHARS:
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{text[:MAX_KEY_CHARS]}… {digest}"


def score_measured(trajectory: Trajectory, config: SignalConfig | None = None) -> Signal | None:
    """Score, with the defaults when no configuration is given; None for a trajectory without entropies."""
    return None if trajectory.entropy is None else score(trajectory, config)


def waste_levels(signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> tuple[WasteLevel, ...]:
    """(C,) what text and entropy say of each call.

    Args:
        signal: None for a trajectory without entropies.
        waste: (C,) classes of each call.
    """
    labels = [None] * len(waste) if signal is None else signal.call_verdicts
    return tuple(waste_level(classes, label) for classes, label in zip(waste, labels, strict=True))


def is_correct(trajectory: Trajectory) -> bool | None:
    """Whether the outcome is full; None when not graded."""
    return None if trajectory.outcome is None else trajectory.outcome >= CORRECT_OUTCOME
