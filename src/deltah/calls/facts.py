"""What a reader of a log's numbers must know of the log, gathered while its trajectories stream by; small."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite, nan
from typing import Final

import numpy as np

from deltah.calls.savings import Costs, Prices, Savings, SavingsReport, _check_amount
from deltah.calls.schema import CHARS_PER_TOKEN
from deltah.calls.waste import Waste, WasteLevel, waste_level, waste_of_calls
from deltah.core.signal_types import Signal
from deltah.core.types import SegmentKind, SpanQuality, ToolCall, Trajectory
from deltah.errors import InvalidValueError
from deltah.text_format import count
from deltah.traces.conversation import TOKENS_WITHOUT_LOGPROBS
from deltah.traces.fields import DURATION_FROM, GAP, UNFIT_OUTCOME
from deltah.traces.vocabularies import FROM_DEFAULT, FROM_MODEL_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What was met in a log."""

    trajectories: int
    calls: int
    unmeasured: int
    """Calls of trajectories without entropies."""
    unbounded: int
    """Calls whose signal has no upper bound, so that they can never be certified."""
    unlisted_tokens: int
    """Drawn tokens that the log gives no log-probability of, by the server's own count."""
    with_unlisted: int
    """Trajectories that have some."""
    approximate: int
    """Trajectories whose borders of reasoning and calls are estimated."""
    unfit_outcomes: int
    """Trajectories without an outcome because the grade in the log is none in [0, 1]."""
    unfit_outcome: float | None
    """One of those grades."""
    mixed: int
    """Trajectories that mix sampling temperatures or modes of log-probabilities."""
    estimators: frozenset[str]
    temperatures: frozenset[float]
    """Those that were stated."""
    assumed_vocabularies: Mapping[str, int]
    """Models whose vocabulary size was taken from their name, with that size."""
    without_vocabulary: int
    """Trajectories whose vocabulary size is not known at all, so that the default was assumed."""
    savings: SavingsReport
    """What dropping wasteful calls would have saved."""
    costs: Costs
    """Those that `savings` was reckoned with."""


class FactTally:
    """Gathers facts; those of parts of a log can be merged."""

    def __init__(self, costs: Costs | None = None) -> None:
        """Start with no trajectory.

        Args:
            costs: For savings in money and seconds; unknown where not given.
        """
        self._costs = costs or Costs()
        self._savings = SavingsAccumulator(self._costs.prices, latency_s=self._costs.latency_s)
        self._unmeasured = self._unbounded = 0
        self._unlisted_tokens = self._with_unlisted = self._approximate = self._mixed = self._unfit = 0
        self._without_vocabulary = 0
        self._an_unfit: float | None = None
        self._estimators: set[str] = set()
        self._temperatures: set[float] = set()
        self._assumed: dict[str, int] = {}

    def add(self, trajectory: Trajectory, signal: Signal | None, waste: Sequence[frozenset[Waste]]) -> None:
        """Take one trajectory.

        Args:
            trajectory: C calls.
            signal: None for one without entropies.
            waste: (C,) classes of each call.
        """
        self._savings.add(trajectory, signal, tuple(waste))
        if signal is None:
            self._unmeasured += trajectory.n_calls
        else:
            self._unbounded += int(np.isinf(signal.call_upper).sum())
        unlisted = trajectory.metadata.get(TOKENS_WITHOUT_LOGPROBS)
        if isinstance(unlisted, int) and unlisted > 0:
            self._unlisted_tokens += unlisted
            self._with_unlisted += 1
        self._approximate += trajectory.spans is SpanQuality.APPROXIMATE
        self._mixed += bool(trajectory.metadata.get("mixed_sampling"))
        if trajectory.outcome is None and isinstance(unfit := trajectory.metadata.get(UNFIT_OUTCOME), int | float):
            self._unfit += 1
            self._an_unfit = float(unfit) if self._an_unfit is None else self._an_unfit
        self._estimators.add(trajectory.estimator.value)
        if trajectory.temperature is not None:
            self._temperatures.add(trajectory.temperature)
        origin, size = (trajectory.metadata.get(key) for key in ("vocab_size_from", "vocab_size"))
        if origin == FROM_MODEL_NAME and trajectory.model is not None:
            self._assumed[trajectory.model] = size if isinstance(size, int) else 0
        self._without_vocabulary += origin == FROM_DEFAULT

    def merge(self, other: FactTally) -> None:
        """Take the trajectories that another tally, of the same costs, took."""
        self._savings.merge(other._savings)
        self._estimators |= other._estimators
        self._temperatures |= other._temperatures
        self._assumed |= other._assumed
        self._an_unfit = other._an_unfit if self._an_unfit is None else self._an_unfit
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)

    def facts(self) -> LogFacts:
        """What was met so far."""
        savings = self._savings.result()
        return LogFacts(
            trajectories=savings.trajectories,
            calls=savings.calls,
            unmeasured=self._unmeasured,
            unbounded=self._unbounded,
            unlisted_tokens=self._unlisted_tokens,
            with_unlisted=self._with_unlisted,
            approximate=self._approximate,
            unfit_outcomes=self._unfit,
            unfit_outcome=self._an_unfit,
            mixed=self._mixed,
            estimators=frozenset(self._estimators),
            temperatures=frozenset(self._temperatures),
            assumed_vocabularies=dict(self._assumed),
            without_vocabulary=self._without_vocabulary,
            savings=savings,
            costs=self._costs,
        )


class SavingsAccumulator:
    """Adds up savings trajectory by trajectory, in constant memory."""

    def __init__(
        self,
        prices: Prices | None = None,
        *,
        latency_s: Mapping[str, float] | None = None,
        chars_per_token: float = CHARS_PER_TOKEN,
    ) -> None:
        """Start with nothing.

        Args:
            prices: For money; without them it is NaN.
            latency_s: Seconds of one call by tool, for calls whose duration was not measured.
            chars_per_token: For texts whose tokens are unknown.

        Raises:
            InvalidValueError: if a latency is negative, or `chars_per_token` is not above 0.
        """
        for tool, seconds in (latency_s or {}).items():
            _check_amount(f"the latency of {tool!r}", seconds)
        if not (isfinite(chars_per_token) and chars_per_token > 0):
            raise InvalidValueError(f"chars_per_token is {chars_per_token}; expected a number above 0")
        self._prices = prices or Prices()
        self._latency_s = dict(latency_s or {})
        self._chars_per_token = chars_per_token
        self._sums = {level: _Sums() for level in (WasteLevel.CERTIFIED, WasteLevel.LIKELY)}
        self._trajectories = 0
        self._verdicts: Counter[WasteLevel] = Counter()
        self._classes: Counter[Waste] = Counter()

    def add(
        self, trajectory: Trajectory, signal: Signal | None, waste: tuple[frozenset[Waste], ...] | None = None
    ) -> None:
        """Count one trajectory.

        Args:
            trajectory: C calls.
            signal: Its signal; None if it carries no entropies: then nothing is certified.
            waste: (C,) what `waste_of_calls` says of it, where the caller has it already.

        Raises:
            InvalidValueError: if `signal` or `waste` speaks of another number of calls.
        """
        waste = waste_of_calls(trajectory) if waste is None else waste
        labels = (None,) * trajectory.n_calls if signal is None else signal.call_verdicts
        if not len(waste) == len(labels) == trajectory.n_calls:
            raise InvalidValueError(
                f"trajectory {trajectory.id!r} has {trajectory.n_calls} calls, its signal {len(labels)} and its waste "
                f"{len(waste)}; give those of the same trajectory"
            )
        verdicts = [waste_level(classes, label) for classes, label in zip(waste, labels, strict=True)]
        self._trajectories += 1
        self._verdicts.update(verdicts)
        for classes in waste:
            self._classes.update(classes)
        if WasteLevel.CERTIFIED in verdicts or WasteLevel.LIKELY in verdicts:
            self._drop(trajectory, verdicts)

    def merge(self, other: SavingsAccumulator) -> None:
        """Count what another accumulator, of the same prices and latencies, counted."""
        self._trajectories += other._trajectories
        self._verdicts += other._verdicts
        self._classes += other._classes
        for level, sums in self._sums.items():
            sums.merge(other._sums[level])

    def _drop(self, trajectory: Trajectory, verdicts: list[WasteLevel]) -> None:
        costs = _call_costs(trajectory, self._chars_per_token)
        has_gaps = trajectory.metadata.get(DURATION_FROM) == GAP
        for level, levels in _LEVELS.items():
            dropped = {i for i, v in enumerate(verdicts) if v in levels}
            self._sums[level].turns += sum(dropped.issuperset(r.calls) for r in trajectory.rounds)
            for i in dropped:
                self._sums[level].add(costs[i], trajectory.calls[i], self._prices, self._latency_s)
                self._sums[level].calls_with_gaps += has_gaps and trajectory.calls[i].duration_s is not None

    def result(self) -> SavingsReport:
        """Savings of everything added so far."""
        return SavingsReport(
            certified=self._sums[WasteLevel.CERTIFIED].savings(self._prices),
            certified_and_likely=self._sums[WasteLevel.LIKELY].savings(self._prices),
            trajectories=self._trajectories,
            calls=self._verdicts.total(),
            verdicts={v: self._verdicts[v] for v in WasteLevel},
            classes={w: self._classes[w] for w in Waste},
            assumptions=self._assumptions(),
        )

    def _money_sentence(self) -> str:
        """What the two sums of money are, by the names under which tables show them."""
        prices = self._prices
        stated = (prices.input_per_million, prices.cached_input_per_million, prices.output_per_million)
        if all(price is None for price in stated) and not prices.per_call:
            return f"No price was stated, so no sum in {prices.currency} is given."
        return (
            f'"{prices.currency}" is the cost at the stated prices without a prefix cache; in "{prices.currency}, '
            'cached" every token has the cached price once it was read.'
        )

    def _assumptions(self) -> tuple[str, ...]:
        estimated = self._sums[WasteLevel.LIKELY].calls_with_estimated_tokens
        sentences = [
            "The rest of each trajectory would have been the same without the dropped calls.",
            "Only the text of the dropped calls and of their results is counted; the reasoning around them and "
            "requests that would fall away are not.",
            "Every assistant message is one request that reads the whole conversation before it.",
            self._money_sentence(),
            "Seconds are those of the tools, one after another; the model's own time is not counted.",
        ]
        if self._sums[WasteLevel.LIKELY].calls_with_gaps:
            sentences.append(
                "Where the log states no duration, the seconds of a call are the gap between two API calls: idle time "
                "of the client or of a person is in them."
            )
        if estimated:
            tokens = f"Tokens of {count(estimated, 'dropped call')}"
            sentences.append(f"{tokens} were estimated at {self._chars_per_token:g} characters a token.")
        if self._prices.per_call:
            sentences.append(f"Tools other than {', '.join(sorted(self._prices.per_call))} charge no fee.")
        if self._latency_s:
            sentences.append("Where no duration was measured, the given seconds of the tool stand in for it.")
        return tuple(sentences)


_PER_MILLION = 1e-6
_LEVELS: Final = {
    WasteLevel.CERTIFIED: frozenset({WasteLevel.CERTIFIED}),
    WasteLevel.LIKELY: frozenset({WasteLevel.CERTIFIED, WasteLevel.LIKELY}),
}


@dataclass(frozen=True, slots=True)
class _CallCost:
    """Tokens of one call."""

    call_tokens: float
    result_tokens: float
    later_turns: int
    """Assistant messages after the call's own: how often its text is read."""
    estimated: bool


@dataclass(slots=True)
class _Sums:
    """Running sums of one level."""

    calls: int = 0
    turns: int = 0
    call_tokens: float = 0.0
    result_tokens: float = 0.0
    prompt_tokens: float = 0.0
    repeated_prompt_tokens: float = 0.0
    fees: float = 0.0
    seconds: float = 0.0
    calls_with_estimated_tokens: int = 0
    calls_without_seconds: int = 0
    calls_with_gaps: int = 0
    """Dropped calls whose duration may be the gap between two API calls."""

    def add(self, cost: _CallCost, call: ToolCall, prices: Prices, latency_s: Mapping[str, float]) -> None:
        """Count one dropped call."""
        text = cost.call_tokens + cost.result_tokens
        self.calls += 1
        self.call_tokens += cost.call_tokens
        self.result_tokens += cost.result_tokens
        self.prompt_tokens += text * cost.later_turns
        self.repeated_prompt_tokens += text * max(cost.later_turns - 1, 0)
        self.fees += prices.per_call.get(call.name, 0.0)
        self.calls_with_estimated_tokens += cost.estimated
        seconds = latency_s.get(call.name) if call.duration_s is None else call.duration_s
        self.calls_without_seconds += seconds is None
        self.seconds += seconds or 0.0

    def merge(self, other: _Sums) -> None:
        """Add up."""
        for name in _Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def savings(self, prices: Prices) -> Savings:
        """Sums with money; NaN where nothing is known."""
        known = {f.name: getattr(self, f.name) for f in fields(Savings) if f.name in _Sums.__slots__}
        if self.calls and self.calls_without_seconds == self.calls:
            known["seconds"] = nan
        return Savings(
            **known,
            money=self._money(prices, prices.input_per_million),
            money_with_cache=self._money(prices, prices.cached_input_per_million),
        )

    def _money(self, prices: Prices, repeated_price: float | None) -> float:
        """Money with a price for tokens that are read again; NaN if there are tokens whose price is unknown."""
        bill = (
            (self.call_tokens, prices.output_per_million),
            (self.prompt_tokens - self.repeated_prompt_tokens, prices.input_per_million),
            (self.repeated_prompt_tokens, repeated_price),
        )
        return self.fees + sum(
            tokens * (nan if price is None else price) * _PER_MILLION for tokens, price in bill if tokens
        )


def _call_costs(trajectory: Trajectory, chars_per_token: float) -> list[_CallCost]:
    """Tokens of every call: counted where the record has tokens, else estimated from characters."""
    last_turn = max((s.turn for s in trajectory.segments if s.kind.sampled), default=-1)
    last_turn = max(last_turn, trajectory.calls[-1].turn)
    lengths: dict[tuple[SegmentKind, int], list[int]] = defaultdict(list)
    for segment in trajectory.segments:
        lengths[segment.kind, segment.turn].append(segment.n_tokens)
    costs: list[_CallCost] = []
    for r in trajectory.rounds:
        calls = [trajectory.calls[i] for i in r.calls]
        spelled = _shared(lengths[SegmentKind.CALL, r.turn], [len(c.name) + len(c.arguments) for c in calls])
        read = _shared(lengths[SegmentKind.RESULT, r.turn], [len(c.result or "") for c in calls])
        for call, own, result in zip(calls, spelled, read, strict=True):
            costs.append(
                _CallCost(
                    call_tokens=(len(call.name) + len(call.arguments)) / chars_per_token if own is None else own,
                    result_tokens=len(call.result or "") / chars_per_token if result is None else result,
                    later_turns=last_turn - r.turn,
                    estimated=own is None or (result is None and bool(call.result)),
                )
            )
    return costs


def _shared(lengths: list[int], chars: list[int]) -> list[float] | list[None]:
    """Tokens of a turn's segments of one kind, shared out to its calls; None for each where there are no tokens.

    Args:
        lengths: Tokens of each segment; one segment a call: each its own.
        chars: Characters of each call's share, in proportion to which other tokens are given.
    """
    if not any(lengths):
        return [None] * len(chars)
    if all(lengths) and len(lengths) == len(chars):
        return [float(n) for n in lengths]
    total = sum(chars)
    return [sum(lengths) * (n / total if total else 1 / len(chars)) for n in chars]
