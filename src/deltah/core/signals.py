r"""Signals: one number per round that says whether its calls made the model more certain.

The method's signal is $\Delta H_k = H(r_k) - H(r_{k-1})$; a call *reduced* entropy, $I_k = 1$, where $\Delta H_k <
-\mathrm{margin}$. With interval entropies $\Delta H_k \in [L_k - U_{k-1},\; U_k - L_{k-1}]$ and the verdict has three
values: reduced if the whole interval lies below -margin, not reduced if none of it does, undecided otherwise.

Every signal keeps that sign and that verdict, so rewards take any of them. A signal is a function from the entropies of
R + 1 segments to an `Interval` of R rounds, registered where it is defined (see docs/extend.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from deltah.core.registry import Entry, Registry, check_number, check_options
from deltah.core.segments import NO_RESULT, POOLS, SegmentEntropies, segment_entropies, why_undefined
from deltah.core.types import BoolArray, Estimator, FloatArray, IntArray, Trajectory
from deltah.errors import InvalidValueError


class Verdict(StrEnum):
    """Verdict on one round, shared by its answered calls."""

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
    """What one trajectory's entropies say about its calls, as `score` makes it.

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
    answered: BoolArray
    """(C,) False for a call without a result: it has no signal of its own, whatever its round's is."""
    reasons: tuple[str | None, ...] = ()
    """(R,) why a round is undefined, None where it is not; empty: not known."""

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

    @property
    def call_reduced(self) -> BoolArray:
        """(C,) I of each call: that of its round, False without an answer."""
        return self.reduced[self.round_of_call] & self.answered

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
        of, answered = self.round_of_call.tolist(), self.answered.tolist()
        return tuple(self.verdicts[k] if answered[i] else Verdict.UNDEFINED for i, k in enumerate(of))

    @property
    def call_reasons(self) -> tuple[str | None, ...]:
        """(C,) why the verdict on a call is undefined; None where it is not."""
        reasons = [self.reasons[k] if self.reasons else None for k in self.round_of_call]
        return tuple(why if got else NO_RESULT for why, got in zip(reasons, self.answered, strict=True))

    def _of_calls(self, per_round: FloatArray) -> FloatArray:
        return np.where(self.answered, per_round[self.round_of_call], np.nan)


class Interval(NamedTuple):
    """A signal of rounds 1 ... R in its unit with certified bounds, each (R,); NaN where undefined."""

    point: FloatArray
    lower: FloatArray
    upper: FloatArray


SignalFunction: TypeAlias = Callable[..., tuple[FloatArray, FloatArray, FloatArray]]
SIGNALS: Registry[SignalFunction] = Registry("signal")
"""Signals by name; the first one is the method's."""
_AFTER_LESS_BEFORE = "the entropy of the reasoning after a call less that of the reasoning before it"


@SIGNALS.register("delta_h", title="ΔH", unit="nats", meaning=_AFTER_LESS_BEFORE)
def delta_h(h: SegmentEntropies) -> Interval:
    """ΔH_k = H(r_k) - H(r_(k-1)) of every round k, nats: negative where the round made the model more certain.

    Args:
        h: Entropies of r_0 ... r_R (`deltah.segment_entropies`).
    """
    return Interval(h.point[1:] - h.point[:-1], h.lower[1:] - h.upper[:-1], h.upper[1:] - h.lower[:-1])


@SIGNALS.register("ratio", title="ΔH ratio", meaning=f"{_AFTER_LESS_BEFORE}, as a share of the latter")
def ratio(h: SegmentEntropies) -> Interval:
    """ΔH_k / (H(r_(k-1)) + 1e-8): comparable across questions of unlike entropy."""
    # (H_k - H) / (H + eps) rises with H_k and falls with H, so its extremes lie at opposite ends of the intervals.
    point, lower, upper = delta_h(h)
    before, least, most = (values[:-1] + 1e-8 for values in h[:3])
    with np.errstate(invalid="ignore"):
        lower = np.where(np.isinf(most), -1.0, lower / most)  # -1: its limit as the earlier entropy grows without bound
        return Interval(point / before, lower, upper / least)


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "index_means", tuple(self.index_means))

    @classmethod
    def fit(cls, signals: Iterable[Signal], *, min_rounds: int = 20) -> PositionBaseline:
        """Fit on the defined rounds of `delta_h` signals; an InvalidValueError if there is none."""
        rows = [np.stack([np.arange(s.n_rounds), s.segment_tokens[1:], s.value]) for s in signals]
        table = np.concatenate([np.empty((3, 0)), *rows], axis=1)
        index, tokens, delta = table[:, np.isfinite(table[2])]
        if not len(delta):
            raise InvalidValueError("a position baseline needs at least one round with a defined ΔH; got none")
        place, log_tokens = index.astype(np.int64), np.log1p(tokens)
        enough = int(np.cumprod(np.bincount(place) >= min_rounds).sum()) or 1
        bins = np.minimum(place, enough - 1)
        centre = float(log_tokens.mean())
        within = log_tokens - _bin_means(log_tokens, bins)[bins]
        spread = float((within**2).sum())
        slope = float((within * (delta - _bin_means(delta, bins)[bins])).sum() / spread) if spread > 0 else 0.0
        means = _bin_means(delta - slope * (log_tokens - centre), bins)
        return cls(index_means=tuple(means.tolist()), length_slope=slope, mean_log_tokens=centre)

    def expected(self, n_tokens: np.ndarray) -> FloatArray:
        """Expected ΔH of rounds 1 ... R, nats, from the pooled tokens (R,) of r_1 ... r_R."""
        index = np.minimum(np.arange(len(n_tokens)), len(self.index_means) - 1)
        slope = self.length_slope * (np.log1p(n_tokens) - self.mean_log_tokens)
        return np.asarray(np.array(self.index_means)[index] + slope)


def _bin_means(values: FloatArray, bins: np.ndarray) -> FloatArray:
    return np.asarray(np.bincount(bins, weights=values) / np.maximum(np.bincount(bins), 1))


@SIGNALS.register(
    "position_corrected",
    title="ΔH less expected",
    unit="nats",
    meaning="ΔH less the mean ΔH expected at that round index and segment length",
    fit=PositionBaseline,
)
def position_corrected(h: SegmentEntropies, baseline: PositionBaseline) -> Interval:
    """ΔH_k less what is expected at that place, nats."""
    expected = baseline.expected(h.n_tokens[1:])
    point, lower, upper = delta_h(h)
    return Interval(point - expected, lower - expected, upper - expected)


SIGNALS.register(
    "tail", title="tail ΔH", unit="nats", meaning=f"{_AFTER_LESS_BEFORE}, over the last tokens of each", pool="tail"
)(delta_h)


@SIGNALS.register(
    "entropy_before",
    title="−H before",
    unit="nats",
    meaning="minus the entropy of the reasoning before a call; knows no result",
    default_margin=math.log(2.0),  # never positive, so it needs a threshold: the entropy of a fair coin
)
def entropy_before(h: SegmentEntropies) -> Interval:
    """-H(r_(k-1)): how uncertain the model was when it called, nats. Reduced means H(r_(k-1)) > margin."""
    return Interval(-h.point[:-1], -h.upper[:-1], -h.lower[:-1])


@SIGNALS.register(
    "cumulative",
    title="cumulative ΔH",
    unit="nats",
    meaning="the entropy of the reasoning after a call less that before the first call",
)
def cumulative(h: SegmentEntropies) -> Interval:
    """H(r_k) - H(r_0): credit for calls that pay off later, nats."""
    return Interval(h.point[1:] - h.point[0], h.lower[1:] - h.upper[0], h.upper[1:] - h.lower[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalConfig:
    """How trajectories are scored; every decision is one field.

    Raises:
        InvalidValueError: if a field is out of range, a name is unknown, or a signal that must be fitted was not.
    """

    name: str = "delta_h"
    """A name in `SIGNALS`, or `package.module:function`."""
    margin: float | None = None
    """Dead band in the signal's unit, >= 0; None: the signal's own default, 0 for all but `entropy_before` (ln 2)."""
    pool: str = "reasoning"
    """Which tokens of a segment count: a name in `POOLS`, or `package.module:function`."""
    tail_tokens: int = 8
    """Tokens of a segment that the pool `tail` keeps."""
    min_tokens: int = 1
    """A segment with fewer pooled tokens counts as empty."""
    baseline: Any = None
    """What a signal that must be fitted first expects, such as a `PositionBaseline`."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of the signal's own function."""

    def __post_init__(self) -> None:
        POOLS.resolve(self.pool)
        if self.margin is not None:
            check_number("margin", self.margin, 0.0, unit="number in the signal's unit")
        check_number("min_tokens", self.min_tokens, 1)
        check_number("tail_tokens", self.tail_tokens, 1)
        check_options(self.entry.value, self.options, f"signal {self.name!r}")
        fit = self.entry.options.get("fit")
        if fit is not None and self.baseline is None:
            raise InvalidValueError(
                f"the signal {self.name!r} is fitted on many trajectories first; give it baseline="
                f"{fit.__name__}.fit(signals)"
            )
        if fit is not None and isinstance(self.baseline, Mapping):  # as a configuration file has it
            object.__setattr__(self, "baseline", fit(**self.baseline))

    @property
    def entry(self) -> Entry[SignalFunction]:
        """The signal's entry in the registry."""
        return SIGNALS.resolve(self.name)

    @property
    def resolved_margin(self) -> float:
        """The margin in force, in the signal's unit."""
        return float(self.entry.options.get("default_margin", 0.0)) if self.margin is None else self.margin


def score(trajectory: Trajectory, config: SignalConfig | str | None = None, **options: object) -> Signal:
    """Score every round of a trajectory.

    Args:
        trajectory: Carries entropies.
        config: The name of a signal, or how to score in full; the method's ΔH when not given.
        **options: Fields of `SignalConfig`, instead of one: `score(t, "ratio", margin=0.1)`.

    Returns:
        A `Signal`; a round is undefined where a segment it compares is empty or where all its calls are unanswered,
        and an unanswered call is undefined in any round.

    Raises:
        InvalidValueError: if the trajectory carries no entropies, or an option is wrong.
    """
    config = signal_config(config, **options)
    entry = config.entry
    h = segment_entropies(trajectory, entry.options.get("pool", config.pool), tail_tokens=config.tail_tokens)
    if (short := h.n_tokens < config.min_tokens).any():
        point, lower, upper = (np.where(short, np.nan, values) for values in h[:3])
        h = SegmentEntropies(point, lower, upper, h.n_tokens)
    point, lower, upper = evaluate(entry, h, *[config.baseline] * ("fit" in entry.options), **config.options)
    answered = np.array([call.result is not None for call in trajectory.calls], dtype=np.bool_)
    if not answered.all():
        undefined = np.bincount(trajectory.round_of_call, weights=answered, minlength=len(point)) == 0
        point, lower, upper = (np.where(undefined, np.nan, values) for values in (point, lower, upper))
    return Signal(
        name=config.name,
        unit=entry.unit,
        margin=(margin := config.resolved_margin),
        value=point,
        lower=lower,
        upper=upper,
        verdicts=tuple(_verdict(*bounds, margin) for bounds in zip(lower.tolist(), upper.tolist(), strict=True)),
        segment_entropy=h.point,
        segment_lower=h.lower,
        segment_upper=h.upper,
        segment_tokens=h.n_tokens,
        round_of_call=trajectory.round_of_call,
        estimator=trajectory.estimator,
        temperature=trajectory.temperature,
        answered=answered,
        reasons=why_undefined(trajectory, h, np.isnan(lower) | np.isnan(upper)),
    )


def evaluate(entry: Entry[SignalFunction], h: SegmentEntropies, *fitted: object, **options: object) -> Interval:
    """Interval of every round that a signal's function gives; refuses what is none.

    Raises:
        InvalidValueError: unless it returns three arrays (R,) with lower <= point <= upper wherever all are known.
    """
    found, expected = entry.value(h, *fitted, **options), (len(h.point) - 1,)
    shapes = [np.shape(values) for values in found] if isinstance(found, tuple) else type(found).__name__
    if shapes != [expected] * 3:
        raise InvalidValueError(
            f"the signal {entry.name!r} returned {shapes}; expected an Interval of three arrays of shape {expected}"
        )
    # Sums of float64 differ by less than 1e-12 where nothing changed: that is no reduction.
    point, lower, upper = (np.where(np.abs(v) < 1e-12, 0.0, v) for v in np.asarray(found, dtype=np.float64))
    slack = 1e-9 * (1.0 + np.abs(point))
    if (disorder := (lower - slack > point) | (point > upper + slack)).any():
        k = int(np.argmax(disorder))
        raise InvalidValueError(
            f"the signal {entry.name!r} returned {point[k]:.6g} in [{lower[k]:.6g}, {upper[k]:.6g}] for round {k + 1}; "
            "expected lower <= point <= upper"
        )
    return Interval(point, lower, upper)


def signal_config(given: object = None, **options: Any) -> SignalConfig:
    """Configuration from what a caller wrote (in full, by name, or None for ΔH), with options on top."""
    known = SignalConfig.__dataclass_fields__
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise InvalidValueError(f"unknown scoring option {unknown[0]!r}; choose from: {', '.join(known)}")
    if given is None or isinstance(given, str):
        return SignalConfig(**{"name": given or "delta_h", **options})
    if isinstance(given, SignalConfig):
        return replace(given, **options) if options else given
    raise InvalidValueError(
        f"score was given {given!r:.60}; expected the name of a signal or a SignalConfig, for example "
        f"score(trajectory, 'ratio', margin=0.1); the signals are {', '.join(SIGNALS)}"
    )


def _verdict(lower: float, upper: float, margin: float) -> Verdict:
    if math.isnan(lower) or math.isnan(upper):
        return Verdict.UNDEFINED
    if upper < -margin:
        return Verdict.REDUCED
    return Verdict.NOT_REDUCED if lower >= -margin else Verdict.UNDECIDED
