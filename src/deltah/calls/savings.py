"""What calls cost, and what dropping the wasteful ones would have saved: calls, tokens, money and seconds.

A call with c tokens that spell it, r tokens of result and L later requests costs
c * output + (c + r) * (input + (L - 1) * repeated) and the fee of its tool: the first reading of its text is new, the
others repeat it, at the input price without a prefix cache. docs/waste.md says what the estimate takes for granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Final

from deltah.calls.evidence import Waste, WasteLevel
from deltah.calls.schema import CHARS_PER_TOKEN
from deltah.errors import InvalidValueError
from deltah.text_format import count

if TYPE_CHECKING:
    from deltah.calls.table import CallTable

TOKEN_PRICES = {"input": "input_per_million", "cached": "cached_input_per_million", "output": "output_per_million"}
"""Names of token prices on the command line, and their fields of `Prices`."""
_MAX_NAMED: Final = 5


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
        tokens = {name: getattr(self, name) for name in TOKEN_PRICES.values()}
        _check_amounts({**tokens, **{f"the fee of {tool!r}": fee for tool, fee in self.per_call.items()}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What tokens, calls and waiting cost, as far as the reader of the report knows.

    Raises:
        InvalidValueError: if a latency is negative or not a number.
    """

    prices: Prices = field(default_factory=Prices)
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one call by tool, for calls whose duration was not measured."""

    def with_fees(self, fees: Mapping[str, float]) -> Costs:
        """The same with fees of further tools; one that is stated already stays."""
        return replace(self, prices=replace(self.prices, per_call={**fees, **self.prices.per_call}))

    def __post_init__(self) -> None:
        _check_amounts({f"the latency of {tool!r}": seconds for tool, seconds in self.latency_s.items()})


def _check_amounts(amounts: Mapping[str, float | None]) -> None:
    for name, amount in amounts.items():
        if amount is not None and not (isfinite(amount) and amount >= 0):
            raise InvalidValueError(f"{name} is {amount}; expected a number, 0 or more")


# A price that is null makes the cost null where there are such tokens, and nowhere else.
_COST: Final = """
    coalesce(map($tools::VARCHAR[], $fees::DOUBLE[])[tool], 0) + 1e-6 * (
        if(own_tokens > 0, own_tokens * $output::DOUBLE, 0)
        + if(prompt_tokens > repeated_prompt_tokens, (prompt_tokens - repeated_prompt_tokens) * $input::DOUBLE, 0)
        + if(repeated_prompt_tokens > 0, repeated_prompt_tokens * {repeated}::DOUBLE, 0)
    )
"""
_FILL: Final = (
    f"UPDATE calls SET cost = {_COST.format(repeated='$input')}, cost_with_cache = {_COST.format(repeated='$cached')}"
)


def fill_costs(table: CallTable, prices: Prices) -> None:
    """Fill the columns `cost` and `cost_with_cache` of the calls of a table."""
    tokens = {name: getattr(prices, attribute) for name, attribute in TOKEN_PRICES.items()}
    fees = {"tools": [*prices.per_call], "fees": [*prices.per_call.values()]}
    table.connection.execute(_FILL, {**tokens, **fees})


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
    """Sum of the column `cost`: without a prefix cache, in `Prices.currency`."""
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


_SUMS: Final = """
    SELECT count(*) AS calls,
        (SELECT count(*) FROM (
            SELECT key FROM calls GROUP BY key, round HAVING bool_and(list_contains($levels, waste_level))
        )) AS turns,
        coalesce(sum(own_tokens), 0) AS call_tokens,
        coalesce(sum(result_tokens), 0) AS result_tokens,
        coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
        coalesce(sum(repeated_prompt_tokens), 0) AS repeated_prompt_tokens,
        if(count(cost) < count(*), NULL, coalesce(sum(cost), 0)) AS money,
        if(count(cost_with_cache) < count(*), NULL, coalesce(sum(cost_with_cache), 0)) AS money_with_cache,
        coalesce(sum(coalesce(duration_s, map($tools::VARCHAR[], $seconds::DOUBLE[])[tool])), 0) AS seconds,
        count(*) FILTER (tokens_estimated) AS calls_with_estimated_tokens,
        count(*) FILTER (duration_s IS NULL AND NOT list_contains($tools::VARCHAR[], tool)) AS calls_without_seconds,
        count(*) FILTER (duration_is_gap) AS calls_with_gaps
    FROM calls WHERE list_contains($levels, waste_level)
"""


def savings(table: CallTable, costs: Costs | None = None) -> SavingsReport:
    """What dropping the wasteful calls of a table would have saved.

    Args:
        table: Scored calls.
        costs: For money and seconds, put into the table (see `CallTable.price`); None: those of the table.
    """
    table.price(costs or table.costs)
    levels = dict(table.sql("SELECT waste_level, count(*) FROM calls GROUP BY ALL").fetchall())
    unnested = "(SELECT unnest(waste) AS class FROM calls)"
    classes = dict(table.sql(f"SELECT class, count(*) FROM {unnested} GROUP BY class").fetchall())
    certified, _ = _dropped(table, "certified")
    likely, n_gaps = _dropped(table, "certified", "likely")
    return SavingsReport(
        certified=certified,
        certified_and_likely=likely,
        trajectories=table.n_trajectories,
        calls=sum(levels.values()),
        levels={level: levels.get(level.value, 0) for level in WasteLevel},
        classes={waste: classes.get(waste.value, 0) for waste in Waste},
        assumptions=_assumptions(table.costs, likely.calls_with_estimated_tokens, n_gaps),
    )


def _dropped(table: CallTable, *levels: str) -> tuple[Savings, int]:
    """Savings without the calls of some waste levels, and how many durations of these are gaps."""
    timed = table.costs.latency_s
    found = table.sql(_SUMS, levels=[*levels], tools=[*timed], seconds=[*timed.values()])
    sums: dict[str, Any] = dict(zip(found.columns, found.fetchall()[0], strict=True))
    n_gaps = sums.pop("calls_with_gaps")
    if 0 < sums["calls"] == sums["calls_without_seconds"]:
        sums["seconds"] = nan
    money = {name: nan if sums[name] is None else sums[name] for name in ("money", "money_with_cache")}
    return Savings(**sums | money), n_gaps


def _assumptions(costs: Costs, n_estimated: int, n_gaps: int) -> tuple[str, ...]:
    prices, dropped = costs.prices, count(n_estimated, "dropped call")
    unpriced = prices == Prices(currency=prices.currency)
    sentences = {
        "The rest of each trajectory would have been the same without the dropped calls.": True,
        "Only the text of the dropped calls and of their results is counted; the reasoning around them and "
        "requests that would fall away are not.": True,
        "Every assistant message is one request that reads the whole conversation before it.": True,
        f"No price was stated, so no sum in {prices.currency} is given.": unpriced,
        f'"{prices.currency}" is the cost at the stated prices without a prefix cache; in "{prices.currency}, '
        'cached" every token has the cached price once it was read.': not unpriced,
        "Seconds are those of the tools, one after another; the model's own time is not counted.": True,
        "Where the log states no duration, the seconds of a call are the gap between two API calls: idle time "
        "of the client or of a person is in them.": n_gaps,
        f"Tokens of {dropped} were estimated at {CHARS_PER_TOKEN:g} characters a token.": n_estimated,
        f"Tools other than {', '.join(sorted(prices.per_call))} charge no fee.": prices.per_call,
        "Where no duration was measured, the given seconds of the tool stand in for it.": costs.latency_s,
    }
    return tuple(sentence for sentence, holds in sentences.items() if holds)


def unknown_tools(costs: Costs, called: Iterable[str], declared: Iterable[str] = ()) -> str | None:
    """A note on tools that an option names and the log never calls, with the names that may have been meant."""
    tools = set(called)
    named_by = {"--price": costs.prices.per_call, "--latency": costs.latency_s, "--tools": tuple(declared)}
    options = [option for option, names in named_by.items() if not tools.issuperset(names)]
    unknown = [
        name for name in dict.fromkeys(name for names in named_by.values() for name in names) if name not in tools
    ]
    if not unknown:
        return None
    known, named = [*filter(str.strip, sorted(tools)), *TOKEN_PRICES], []
    for name in unknown[:_MAX_NAMED]:
        close = get_close_matches(name, known, n=2)
        named.append(f"{name} (did you mean {' or '.join(close)}?)" if close else name)
    more = f" and {len(unknown) - _MAX_NAMED:,} more" if len(unknown) > _MAX_NAMED else ""
    what = f"{count(len(unknown), 'tool')} that the log never calls"
    return f"{' or '.join(options)} names {what}: {', '.join(named)}{more}."
