"""What is said of trajectories: verdicts on their rounds, and the group within which they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from deltah.core.types import BoolArray, Estimator, FloatArray, IntArray, Trajectory
from deltah.errors import InvalidValueError


class Verdict(StrEnum):
    """Verdict on one round, shared by those of its calls that were answered."""

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
    for r_k. A negative `value` means that the round reduced entropy.
    """

    name: str
    """Name in `deltah.SIGNALS`, or `package.module:function`."""
    unit: str
    """Of `value`, its bounds and the margin; empty for a number without one, such as a ratio."""
    margin: float
    """Dead band."""
    value: FloatArray
    """(R,) point value of the signal; NaN when undefined."""
    lower: FloatArray
    """(R,) certified lower bound."""
    upper: FloatArray
    """(R,) certified upper bound."""
    verdicts: tuple[Verdict, ...]
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
    answered: BoolArray | None = None
    """(C,) False for a call without a result, which has no signal of its own whatever its round's says; None: all
    calls were answered."""

    def __post_init__(self) -> None:
        for name in (
            "value",
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
        return np.array([label is Verdict.REDUCED for label in self.verdicts], dtype=np.bool_)

    @property
    def n_rounds(self) -> int:
        """R."""
        return len(self.verdicts)

    @property
    def n_calls(self) -> int:
        """n: all calls, parallel ones each counted."""
        return len(self.round_of_call)

    @property
    def n_reduced(self) -> int:
        """m: answered calls whose round is certified reduced."""
        return int(self.call_reduced.sum())

    def count(self, label: Verdict) -> int:
        """Calls that carry a label."""
        return sum(found is label for found in self.call_verdicts)

    @property
    def call_reduced(self) -> BoolArray:
        """(C,) I of each call: that of its round, False without an answer."""
        reduced = self.reduced[self.round_of_call]
        return reduced if self.answered is None else reduced & self.answered

    @property
    def call_value(self) -> FloatArray:
        """(C,) signal of each call: that of its round, NaN without an answer."""
        return self._of_calls(self.value)

    @property
    def call_lower(self) -> FloatArray:
        """(C,) certified lower bound of `call_value`."""
        return self._of_calls(self.lower)

    @property
    def call_upper(self) -> FloatArray:
        """(C,) certified upper bound of `call_value`."""
        return self._of_calls(self.upper)

    @cached_property
    def call_verdicts(self) -> tuple[Verdict, ...]:
        """(C,) verdict on each call: that of its round, undefined without an answer."""
        labels = [self.verdicts[k] for k in self.round_of_call.tolist()]
        if self.answered is None:
            return tuple(labels)
        answered = self.answered.tolist()
        return tuple(label if got else Verdict.UNDEFINED for label, got in zip(labels, answered, strict=True))

    def _of_calls(self, per_round: FloatArray) -> FloatArray:
        values = per_round[self.round_of_call]
        return values if self.answered is None else np.where(self.answered, values, np.nan)


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

    @property
    def pairs(self) -> list[tuple[Signal, float]]:
        """(signal, outcome) of each trajectory."""
        return list(zip(self.signals, self.outcomes.tolist(), strict=True))

    def __len__(self) -> int:
        """G."""
        return len(self.trajectories)
