r"""What dropping wasteful calls would have saved: calls, tokens and, given prices and latencies, money and seconds.

A dropped call i of turn k saves the tokens $c_i$ that spell it, sampled once, and the tokens $r_i$ of its result.
Both stand in the prompt of every later request, so with L_k assistant messages after turn k it saves $(c_i + r_i)
L_k$ prompt tokens. With prefix caching the first of these readings is new and the other $L_k - 1$ are cached:

$$ \mathrm{money} = c_i\, p_{out} + (c_i + r_i)\,[\,p_{in} + (L_k - 1)\, p'\,] + \mathrm{fee}, $$

for $L_k \ge 1$, with $p' = p_{in}$ without a cache and $p' = p_{cached}$ with one. This is what the call's own text
costs: the request that a dropped call caused, with its reasoning and the rest of its prompt, is not counted, so where
whole turns fall away the estimate is on the low side. Nothing here says that the agent would have answered the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite, nan
from typing import Final

from deltah.calls.waste import Waste, WasteLevel, waste_level, waste_of_calls
from deltah.core.signal_types import Signal
from deltah.core.types import SegmentKind, ToolCall, Trajectory
from deltah.errors import InvalidValueError
from deltah.text_format import count
from deltah.traces.fields import DURATION_FROM, GAP

CHARS_PER_TOKEN: Final = 4.0
"""Rule of thumb for English text."""
_PER_MILLION: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What tokens and calls cost, all in one currency.

    Raises:
        InvalidValueError: if a price is negative or not a number.
    """

    input_per_million: float | None = None
    """A million prompt tokens; None: unknown."""
    cached_input_per_million: float | None = None
    """A million prompt tokens read from a prefix cache; None: unknown."""
    output_per_million: float | None = None
    """A million sampled tokens; None: unknown."""
    per_call: Mapping[str, float] = field(default_factory=dict)
    """Fee of one call, by tool; other tools are taken to cost nothing but tokens."""
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("input_per_million", "cached_input_per_million", "output_per_million"):
            _check_amount(name, getattr(self, name))
        for tool, fee in self.per_call.items():
            _check_amount(f"the fee of {tool!r}", fee)


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Sums over the dropped calls; NaN where a price or a latency is unknown."""

    calls: int
    turns: int
    """Assistant messages whose every call is dropped: each may be a request less, which no other field counts."""
    call_tokens: float
    """Sampled tokens that spell the calls."""
    result_tokens: float
    """Tokens of their results, each counted once."""
    prompt_tokens: float
    """Tokens of calls and results, counted once for every later request that reads them."""
    repeated_prompt_tokens: float
    """Those of `prompt_tokens` that an earlier request had read already: a prefix cache would hold them."""
    money: float
    """Without a prefix cache, in `Prices.currency`."""
    money_with_cache: float
    """The same with a prefix cache that never misses; tables call it "cached"."""
    seconds: float
    """Time spent in the tools; NaN if no dropped call has a known one."""
    calls_with_estimated_tokens: int
    """Dropped calls with a token count that was estimated from characters."""
    calls_without_seconds: int
    """Dropped calls of unknown duration, left out of `seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavingsReport:
    """Savings at two levels of evidence, and what they were found in."""

    certified: Savings
    """If only calls of verdict `certified` were dropped."""
    certified_and_likely: Savings
    trajectories: int
    calls: int
    """All calls, the useful ones included."""
    verdicts: Mapping[WasteLevel, int]
    """Calls by verdict."""
    classes: Mapping[Waste, int]
    """Calls by class, whatever their label; a call counts in each of its classes."""
    assumptions: tuple[str, ...]
    """What the estimate takes for granted, one sentence each."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What tokens, calls and waiting cost, as far as the reader of the report knows."""

    prices: Prices | None = None
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one call by tool, for calls whose duration was not measured."""

    @property
    def currency(self) -> str:
        """Of the prices."""
        return (self.prices or Prices()).currency

    def accumulator(self) -> SavingsAccumulator:
        """A new accumulator of savings at these costs."""
        return SavingsAccumulator(self.prices, latency_s=self.latency_s)


def estimate_savings(
    scored: Iterable[tuple[Trajectory, Signal | None]],
    prices: Prices | None = None,
    *,
    latency_s: Mapping[str, float] | None = None,
    chars_per_token: float = CHARS_PER_TOKEN,
) -> SavingsReport:
    """Savings over trajectories with their signals, read once; arguments and errors as in `SavingsAccumulator`."""
    accumulator = SavingsAccumulator(prices, latency_s=latency_s, chars_per_token=chars_per_token)
    for trajectory, signal in scored:
        accumulator.add(trajectory, signal)
    return accumulator.result()


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


def _check_amount(name: str, amount: float | None) -> None:
    if amount is not None and not (isfinite(amount) and amount >= 0):
        raise InvalidValueError(f"{name} is {amount}; expected a number, 0 or more")
