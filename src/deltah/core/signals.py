r"""Signals: one number a round that says whether its calls made the model more certain.

The method's signal is $\Delta H_k = H(r_k) - H(r_{k-1})$; a call *reduced* entropy, $I_k = 1$, where $\Delta H_k <
-\mathrm{margin}$. With interval entropies $\Delta H_k \in [L_k - U_{k-1},\; U_k - L_{k-1}]$ and the verdict has three
values: reduced if the whole interval lies below -margin, not reduced if none of it does, undecided otherwise.

Every signal keeps that sign and that verdict, so rewards take any of them. Signals that need a model or a gold answer
(placebo-controlled, gold-answer gain) are not made here: they come in as trajectories scored twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from deltah.core.options import check_number, choice
from deltah.core.segments import Pool, SegmentEntropies, segment_entropies
from deltah.core.signal_types import Signal, Verdict
from deltah.core.types import BoolArray, CallStatus, FloatArray, Trajectory
from deltah.errors import InvalidValueError

RATIO_EPS_NATS = 1e-8
"""Denominator offset of the ratio form."""


class SignalName(StrEnum):
    """Signals that need nothing but the trajectory (and, for one, a fitted baseline)."""

    DELTA_H = "delta_h"
    """The method: H(r_k) - H(r_{k-1}), nats."""
    RATIO = "ratio"
    """ΔH_k / (H(r_{k-1}) + 1e-8): comparable across questions of unlike entropy."""
    POSITION_CORRECTED = "position_corrected"
    """ΔH_k less the mean ΔH expected at that round index and segment length, nats."""
    TAIL = "tail"
    """ΔH over the last tokens of each segment only, nats."""
    ENTROPY_BEFORE = "entropy_before"
    """-H(r_{k-1}): how uncertain the model was when it called; needs no result. Reduced means H(r_{k-1}) > margin."""
    CUMULATIVE = "cumulative"
    """H(r_k) - H(r_0): credit for calls that pay off later, nats."""


SIGNALS: tuple[str, ...] = tuple(name.value for name in SignalName)


class SignalTitle(NamedTuple):
    """What tables and pages call a signal."""

    title: str
    unit: str
    """Empty for a number without one."""
    definition: str
    """In half a sentence."""

    @property
    def with_unit(self) -> str:
        """Title and unit: "ΔH, nats"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


_AFTER_LESS_BEFORE: Final = "the entropy of the reasoning after a call less that of the reasoning before it"
SIGNAL_TITLES: Final[Mapping[str, SignalTitle]] = MappingProxyType(
    {
        SignalName.DELTA_H.value: SignalTitle("ΔH", "nats", _AFTER_LESS_BEFORE),
        SignalName.RATIO.value: SignalTitle("ΔH ratio", "", f"{_AFTER_LESS_BEFORE}, as a share of the latter"),
        SignalName.POSITION_CORRECTED.value: SignalTitle(
            "ΔH less expected", "nats", "ΔH less the mean ΔH expected at that round index and segment length"
        ),
        SignalName.TAIL.value: SignalTitle("tail ΔH", "nats", f"{_AFTER_LESS_BEFORE}, over the last tokens of each"),
        SignalName.ENTROPY_BEFORE.value: SignalTitle(
            "−H before", "nats", "minus the entropy of the reasoning before a call; knows no result"
        ),
        SignalName.CUMULATIVE.value: SignalTitle(
            "cumulative ΔH", "nats", "the entropy of the reasoning after a call less that before the first call"
        ),
    }
)
"""Of every entry of `SIGNALS`."""

DEFAULT_MARGIN_NATS = {SignalName.ENTROPY_BEFORE: float(np.log(2.0))}
"""Margins that are not 0: -H(r_{k-1}) is never positive, so it needs a threshold; ln 2 is a fair coin's worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBaseline:
    """Mean ΔH expected at a round index and a segment length, fitted on many trajectories.

    Least squares on the pooled rounds: one mean for each round index (indices with fewer than `min_rounds` rounds
    share the last one), plus a common slope on log(1 + tokens of r_k).
    """

    index_means: tuple[float, ...]
    """Expected ΔH at round 1, 2, ..., with the length term at `mean_log_tokens`; the last stands for all later."""
    length_slope: float
    """Nats for each unit of log(1 + tokens of r_k)."""
    mean_log_tokens: float

    @classmethod
    def fit(cls, signals: Iterable[Signal], *, min_rounds: int = 20) -> PositionBaseline:
        """Fit on the defined rounds of `delta_h` signals.

        Raises:
            InvalidValueError: if no round has a defined ΔH.
        """
        rows = [
            (k, np.log1p(s.segment_tokens[k + 1]), s.value[k])
            for s in signals
            for k in range(s.n_rounds)
            if np.isfinite(s.value[k])
        ]
        if not rows:
            raise InvalidValueError("a position baseline needs at least one round with a defined ΔH; got none")
        index, log_tokens, delta = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        counts = np.bincount(index.astype(np.int64))
        enough = int((np.cumprod(counts >= min_rounds)).sum()) or 1
        bins = np.minimum(index.astype(np.int64), enough - 1)
        centre = float(log_tokens.mean())
        within = log_tokens - _bin_means(log_tokens, bins)[bins]
        spread = float((within**2).sum())
        slope = float((within * (delta - _bin_means(delta, bins)[bins])).sum() / spread) if spread > 0 else 0.0
        means = _bin_means(delta - slope * (log_tokens - centre), bins)
        return cls(index_means=tuple(means.tolist()), length_slope=slope, mean_log_tokens=centre)

    def expected(self, n_tokens: np.ndarray) -> FloatArray:
        """Expected ΔH of rounds 1 ... R.

        Args:
            n_tokens: (R,) pooled tokens of r_1 ... r_R.
        """
        index = np.minimum(np.arange(len(n_tokens)), len(self.index_means) - 1)
        slope = self.length_slope * (np.log1p(n_tokens) - self.mean_log_tokens)
        return np.asarray(np.array(self.index_means)[index] + slope)


def _bin_means(values: FloatArray, bins: np.ndarray) -> FloatArray:
    return np.asarray(np.bincount(bins, weights=values) / np.maximum(np.bincount(bins), 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalConfig:
    """How trajectories are scored; every decision is one field.

    Raises:
        InvalidValueError: if a field is out of range, or the position-corrected signal has no baseline.
    """

    name: SignalName = SignalName.DELTA_H
    margin: float | None = None
    """Dead band in the signal's unit, >= 0; None: the signal's own default, 0 for all but `entropy_before` (ln 2)."""
    pool: Pool = Pool.REASONING
    tail_tokens: int = 8
    min_tokens: int = 1
    """A segment with fewer pooled tokens counts as empty."""
    baseline: PositionBaseline | None = field(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", choice(SignalName, self.name, "signal"))
        object.__setattr__(self, "pool", choice(Pool, self.pool, "pool"))
        if self.margin is not None:
            check_number("margin", self.margin, 0.0, unit="number of nats")
        check_number("min_tokens", self.min_tokens, 1)
        check_number("tail_tokens", self.tail_tokens, 1)
        if self.name is SignalName.POSITION_CORRECTED and self.baseline is None:
            raise InvalidValueError(
                "the position-corrected signal needs a baseline; fit one with PositionBaseline.fit(signals)"
            )

    @property
    def resolved_margin(self) -> float:
        """The margin in force."""
        return DEFAULT_MARGIN_NATS.get(self.name, 0.0) if self.margin is None else self.margin


def score(trajectory: Trajectory, config: SignalConfig | None = None, **options: object) -> Signal:
    """Score every round of a trajectory.

    Args:
        trajectory: Carries entropies.
        config: How to score; `SignalConfig()` when not given.
        **options: Fields of `SignalConfig`, instead of `config`: `score(t, margin=0.1)`.

    Returns:
        A `Signal`; a round is undefined where a segment it compares is empty or where all its calls are unanswered,
        and an unanswered call is undefined in any round.

    Raises:
        InvalidValueError: if the trajectory carries no entropies, or an option is wrong.
    """
    if config is not None and options:
        raise InvalidValueError("give either a SignalConfig or single options, not both")
    config = config or signal_config(**options)
    pool = Pool.TAIL if config.name is SignalName.TAIL else config.pool
    h = segment_entropies(trajectory, pool, tail_tokens=config.tail_tokens)
    short = h.n_tokens < config.min_tokens
    if short.any():
        point, lower, upper = (np.where(short, np.nan, values) for values in h[:3])
        h = SegmentEntropies(point, lower, upper, h.n_tokens)
    point, lower, upper = _FORMS[config.name](h, config)
    answered = _answered(trajectory)
    if answered is not None:
        undefined = np.bincount(trajectory.round_of_call, weights=answered, minlength=len(point)) == 0
        point, lower, upper = (np.where(undefined, np.nan, values) for values in (point, lower, upper))
    return Signal(
        name=config.name.value,
        margin=config.resolved_margin,
        value=point,
        lower=lower,
        upper=upper,
        verdicts=_verdicts(lower, upper, config.resolved_margin),
        segment_entropy=h.point,
        segment_lower=h.lower,
        segment_upper=h.upper,
        segment_tokens=h.n_tokens,
        round_of_call=trajectory.round_of_call,
        estimator=trajectory.estimator,
        temperature=trajectory.temperature,
        answered=answered,
    )


def _answered(trajectory: Trajectory) -> BoolArray | None:
    """(C,) whether a result followed each call; None where one followed every call."""
    statuses = [call.status for call in trajectory.calls]
    if CallStatus.UNANSWERED not in statuses:
        return None
    return np.array([status is not CallStatus.UNANSWERED for status in statuses], dtype=np.bool_)


def signal_config(**options: object) -> SignalConfig:
    """Make a `SignalConfig`, naming the valid fields when one does not exist.

    Raises:
        InvalidValueError: for an unknown field.
    """
    known = SignalConfig.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidValueError(f"unknown scoring option {unknown[0]!r}; choose from: {', '.join(known)}")
    return SignalConfig(**options)  # type: ignore[arg-type]


def _verdicts(lower: FloatArray, upper: FloatArray, margin: float) -> tuple[Verdict, ...]:
    return tuple(_verdict(low, high, margin) for low, high in zip(lower.tolist(), upper.tolist(), strict=True))


def _verdict(lower: float, upper: float, margin: float) -> Verdict:
    if math.isnan(lower) or math.isnan(upper):
        return Verdict.UNDEFINED
    if upper < -margin:
        return Verdict.REDUCED
    return Verdict.NOT_REDUCED if lower >= -margin else Verdict.UNDECIDED


def _difference(h: SegmentEntropies, config: SignalConfig) -> tuple[FloatArray, FloatArray, FloatArray]:
    del config
    return h.point[1:] - h.point[:-1], h.lower[1:] - h.upper[:-1], h.upper[1:] - h.lower[:-1]


def _ratio(h: SegmentEntropies, config: SignalConfig) -> tuple[FloatArray, FloatArray, FloatArray]:
    # (H_k - H) / (H + eps) rises with H_k and falls with H, so its extremes lie at opposite ends of the intervals.
    del config
    with np.errstate(invalid="ignore"):
        lower = (h.lower[1:] - h.upper[:-1]) / (h.upper[:-1] + RATIO_EPS_NATS)
        # As the earlier entropy grows without bound the ratio tends to -1.
        lower = np.where(np.isinf(h.upper[:-1]), -1.0, lower)
        upper = (h.upper[1:] - h.lower[:-1]) / (h.lower[:-1] + RATIO_EPS_NATS)
        return (h.point[1:] - h.point[:-1]) / (h.point[:-1] + RATIO_EPS_NATS), lower, upper


def _position_corrected(h: SegmentEntropies, config: SignalConfig) -> tuple[FloatArray, FloatArray, FloatArray]:
    if config.baseline is None:
        raise InvalidValueError("the position-corrected signal needs a baseline")
    expected = config.baseline.expected(h.n_tokens[1:])
    point, lower, upper = _difference(h, config)
    return point - expected, lower - expected, upper - expected


def _entropy_before(h: SegmentEntropies, config: SignalConfig) -> tuple[FloatArray, FloatArray, FloatArray]:
    del config
    return -h.point[:-1], -h.upper[:-1], -h.lower[:-1]


def _cumulative(h: SegmentEntropies, config: SignalConfig) -> tuple[FloatArray, FloatArray, FloatArray]:
    del config
    return h.point[1:] - h.point[0], h.lower[1:] - h.upper[0], h.upper[1:] - h.lower[0]


_FORMS = {
    SignalName.DELTA_H: _difference,
    SignalName.RATIO: _ratio,
    SignalName.POSITION_CORRECTED: _position_corrected,
    SignalName.TAIL: _difference,
    SignalName.ENTROPY_BEFORE: _entropy_before,
    SignalName.CUMULATIVE: _cumulative,
}
