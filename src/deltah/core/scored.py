"""What is said of trajectories: verdicts on their rounds, and the group within which they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from deltah.core.types import BoolArray, Estimator, FloatArray, IntArray, Trajectory
from deltah.errors import InvalidValueError


class CallLabel(StrEnum):
    """Verdict on one round, shared by its calls."""

    REDUCED = "reduced"
    """The whole interval of the signal lies below -margin."""
    NOT_REDUCED = "not_reduced"
    """The whole interval lies at or above -margin."""
    UNDECIDED = "undecided"
    """The interval contains -margin: the top-k evidence does not say."""
    UNDEFINED = "undefined"
    """No ΔH exists: a segment is empty or unmeasured, or the call was never answered."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What one trajectory's entropies say of its calls: `deltah.core.signals.score` makes it.

    Per-round arrays have length R with index k - 1 for round k; per-segment arrays have length R + 1 with index k
    for r_k. Negative `delta_h` means that the round reduced entropy.
    """

    name: str
    """Name of the signal, one of `deltah.core.signals.SIGNALS`."""
    margin: float
    delta_h: FloatArray
    """(R,) point value of the signal; nats unless the signal is a ratio; NaN when undefined."""
    lower: FloatArray
    """(R,) certified lower bound."""
    upper: FloatArray
    """(R,) certified upper bound."""
    labels: tuple[CallLabel, ...]
    """(R,)"""
    segment_entropy: FloatArray
    """(R + 1,) H(r_k): mean nats over the pooled tokens; NaN for an empty segment."""
    segment_lower: FloatArray
    """(R + 1,)"""
    segment_upper: FloatArray
    """(R + 1,)"""
    segment_tokens: IntArray
    """(R + 1,) measured tokens in each pool."""
    round_of_call: IntArray
    """(C,) index k - 1 of each call's round."""
    estimator: Estimator
    temperature: float | None

    def __post_init__(self) -> None:
        for name in (
            "delta_h",
            "lower",
            "upper",
            "segment_entropy",
            "segment_lower",
            "segment_upper",
            "segment_tokens",
        ):
            getattr(self, name).setflags(write=False)

    @cached_property
    def reduced(self) -> BoolArray:
        """(R,) I_k: True only where reduction is certified; undecided and undefined rounds count as False."""
        return np.array([label is CallLabel.REDUCED for label in self.labels], dtype=np.bool_)

    @property
    def n_rounds(self) -> int:
        """R."""
        return len(self.labels)

    @property
    def n_calls(self) -> int:
        """n: all calls, parallel ones each counted."""
        return len(self.round_of_call)

    @property
    def n_reduced(self) -> int:
        """m: calls whose round is certified reduced."""
        return int(self.call_reduced.sum())

    def count(self, label: CallLabel) -> int:
        """Calls that carry a label."""
        return sum(self.labels[k] is label for k in self.round_of_call)

    @property
    def call_reduced(self) -> BoolArray:
        """(C,) I of each call's round."""
        return self.reduced[self.round_of_call]

    @property
    def call_delta_h(self) -> FloatArray:
        """(C,) signal of each call's round."""
        return self.delta_h[self.round_of_call]

    @property
    def call_lower(self) -> FloatArray:
        """(C,) certified lower bound of each call's round."""
        return self.lower[self.round_of_call]

    @property
    def call_upper(self) -> FloatArray:
        """(C,) certified upper bound of each call's round."""
        return self.upper[self.round_of_call]

    @property
    def call_labels(self) -> tuple[CallLabel, ...]:
        """(C,) verdict on each call's round."""
        return tuple(self.labels[k] for k in self.round_of_call)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trajectories of one prompt under one policy, with their signals and outcomes: the unit of an advantage.

    Raises:
        InvalidValueError: if the three sequences differ in length, or fewer than two trajectories are given.
    """

    trajectories: Sequence[Trajectory]
    signals: Sequence[Signal]
    outcomes: FloatArray
    """(G,) in [0, 1]"""

    def __post_init__(self) -> None:
        outcomes = np.asarray(self.outcomes, dtype=np.float64)
        object.__setattr__(self, "outcomes", outcomes)
        sizes = (len(self.trajectories), len(self.signals), len(outcomes))
        if len(set(sizes)) != 1 or sizes[0] < 2:
            raise InvalidValueError(
                f"a group needs two or more trajectories, each with a signal and an outcome; got {sizes} of them"
            )
        if len({t.group_id for t in self.trajectories}) > 1:
            raise InvalidValueError("a group mixes trajectories of different group ids")
        if not np.isfinite(outcomes).all():
            raise InvalidValueError("a group has an outcome that is not a number; leave that trajectory out")

    def __len__(self) -> int:
        """G."""
        return len(self.trajectories)
