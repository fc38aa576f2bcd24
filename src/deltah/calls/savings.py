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

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any, Final

from deltah.calls.schema import CHARS_PER_TOKEN
from deltah.calls.table import CallTable
from deltah.calls.waste import Waste, WasteLevel
from deltah.errors import InvalidValueError
from deltah.text_format import count

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
class Costs:
    """What tokens, calls and waiting cost, as far as the reader of the report knows.

    Raises:
        InvalidValueError: if a latency is negative or not a number.
    """

    prices: Prices = field(default_factory=Prices)
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one call by tool, for calls whose duration was not measured."""

    def __post_init__(self) -> None:
        for tool, seconds in self.latency_s.items():
            _check_amount(f"the latency of {tool!r}", seconds)


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
    """If only calls whose waste level is `certified` were dropped."""
    certified_and_likely: Savings
    trajectories: int
    calls: int
    """All calls, the useful ones included."""
    levels: Mapping[WasteLevel, int]
    """Calls by waste level."""
    classes: Mapping[Waste, int]
    """Calls by class, whatever its level; a call counts in each of its classes."""
    assumptions: tuple[str, ...]
    """What the estimate takes for granted, one sentence each."""


def savings(table: CallTable, costs: Costs | None = None) -> SavingsReport:
    """What dropping the wasteful calls of a table would have saved.

    Args:
        table: Scored calls.
        costs: For money and seconds; unknown where not given.
    """
    costs = costs or Costs()
    levels = dict(table.sql("SELECT waste_level, count(*) FROM calls GROUP BY ALL").fetchall())
    unnested = "(SELECT unnest(waste) AS class FROM calls)"
    classes = dict(table.sql(f"SELECT class, count(*) FROM {unnested} GROUP BY class").fetchall())
    ((trajectories,),) = table.sql("SELECT count(*) FROM trajectories").fetchall()
    certified = _dropped(table, ["certified"], costs)
    likely = _dropped(table, ["certified", "likely"], costs)
    return SavingsReport(
        certified=_savings(certified, costs.prices),
        certified_and_likely=_savings(likely, costs.prices),
        trajectories=trajectories,
        calls=sum(levels.values()),
        levels={level: levels.get(level.value, 0) for level in WasteLevel},
        classes={waste: classes.get(waste.value, 0) for waste in Waste},
        assumptions=_assumptions(likely, costs),
    )


_SUMS: Final = """
    SELECT count(*) AS calls,
        (SELECT count(*) FROM (
            SELECT key FROM calls GROUP BY key, round HAVING bool_and(list_contains($levels, waste_level))
        )) AS turns,
        sum(own_tokens) AS call_tokens,
        sum(result_tokens) AS result_tokens,
        sum(prompt_tokens) AS prompt_tokens,
        sum(repeated_prompt_tokens) AS repeated_prompt_tokens,
        sum(map($priced::VARCHAR[], $fees::DOUBLE[])[tool]) AS fees,
        sum(coalesce(duration_s, map($timed::VARCHAR[], $latencies::DOUBLE[])[tool])) AS seconds,
        count(*) FILTER (tokens_estimated) AS calls_with_estimated_tokens,
        count(*) FILTER (duration_s IS NULL AND NOT list_contains($timed::VARCHAR[], tool)) AS calls_without_seconds,
        count(*) FILTER (duration_is_gap) AS calls_with_gaps
    FROM calls WHERE list_contains($levels, waste_level)
"""


def _dropped(table: CallTable, levels: list[str], costs: Costs) -> dict[str, Any]:
    """Sums over the calls of some waste levels."""
    fees, latencies = costs.prices.per_call, costs.latency_s
    found = table.sql(
        _SUMS,
        levels=levels,
        priced=list(fees),
        fees=list(fees.values()),
        timed=list(latencies),
        latencies=list(latencies.values()),
    )
    return {name: value or 0 for name, value in zip(found.columns, found.fetchall()[0], strict=True)}


def _savings(sums: Mapping[str, Any], prices: Prices) -> Savings:
    """Sums with money; NaN where nothing is known."""
    known = {name: sums[name] for name in Savings.__dataclass_fields__ if name in sums}
    if sums["calls"] and sums["calls_without_seconds"] == sums["calls"]:
        known["seconds"] = nan
    return Savings(
        **known,
        money=_money(sums, prices, prices.input_per_million),
        money_with_cache=_money(sums, prices, prices.cached_input_per_million),
    )


def _money(sums: Mapping[str, Any], prices: Prices, repeated_price: float | None) -> float:
    """Money with a price for tokens that are read again; NaN if there are tokens whose price is unknown."""
    bill = (
        (sums["call_tokens"], prices.output_per_million),
        (sums["prompt_tokens"] - sums["repeated_prompt_tokens"], prices.input_per_million),
        (sums["repeated_prompt_tokens"], repeated_price),
    )
    tokens = sum(n * (nan if price is None else price) * _PER_MILLION for n, price in bill if n)
    return float(sums["fees"] + tokens)


def _assumptions(sums: Mapping[str, Any], costs: Costs) -> tuple[str, ...]:
    sentences = [
        "The rest of each trajectory would have been the same without the dropped calls.",
        "Only the text of the dropped calls and of their results is counted; the reasoning around them and "
        "requests that would fall away are not.",
        "Every assistant message is one request that reads the whole conversation before it.",
        _money_sentence(costs.prices),
        "Seconds are those of the tools, one after another; the model's own time is not counted.",
    ]
    if sums["calls_with_gaps"]:
        sentences.append(
            "Where the log states no duration, the seconds of a call are the gap between two API calls: idle time "
            "of the client or of a person is in them."
        )
    if estimated := sums["calls_with_estimated_tokens"]:
        tokens = f"Tokens of {count(estimated, 'dropped call')}"
        sentences.append(f"{tokens} were estimated at {CHARS_PER_TOKEN:g} characters a token.")
    if costs.prices.per_call:
        sentences.append(f"Tools other than {', '.join(sorted(costs.prices.per_call))} charge no fee.")
    if costs.latency_s:
        sentences.append("Where no duration was measured, the given seconds of the tool stand in for it.")
    return tuple(sentences)


def _money_sentence(prices: Prices) -> str:
    """What the two sums of money are, by the names under which tables show them."""
    stated = (prices.input_per_million, prices.cached_input_per_million, prices.output_per_million)
    if all(price is None for price in stated) and not prices.per_call:
        return f"No price was stated, so no sum in {prices.currency} is given."
    return (
        f'"{prices.currency}" is the cost at the stated prices without a prefix cache; in "{prices.currency}, '
        'cached" every token has the cached price once it was read.'
    )


def _check_amount(name: str, amount: float | None) -> None:
    if amount is not None and not (isfinite(amount) and amount >= 0):
        raise InvalidValueError(f"{name} is {amount}; expected a number, 0 or more")
