"""Prices and latencies on the command line, for savings in money and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Final

import typer

from deltah.calls.savings import Costs, Prices
from deltah.errors import ConfigError
from deltah.stats.summary import OTHER_TOOLS
from deltah.text_format import count

_TOKENS: Final = {
    "input": "input_per_million",
    "cached": "cached_input_per_million",
    "output": "output_per_million",
}
_MAX_NAMED: Final = 5
_MAX_CLOSE: Final = 2
PRICES = "Prices"
"""Title of a group of options in the help."""

Price = Annotated[
    list[str] | None,
    typer.Option(
        help="Price of a million tokens (input=2, cached=0.2, output=8) or of one call (search=0.005). Repeatable.",
        rich_help_panel=PRICES,
    ),
]
Currency = Annotated[str, typer.Option(help="Currency of the prices.", rich_help_panel=PRICES)]
Latency = Annotated[
    list[str] | None,
    typer.Option(
        help="Seconds of one call, where the log has no times: search=0.8. Repeatable.", rich_help_panel=PRICES
    ),
]


def costs(price: Iterable[str] | None, currency: str, latency: Iterable[str] | None) -> Costs:
    """Costs that the options state.

    Raises:
        ConfigError: if one is no `name=number`, or its number is negative.
    """
    stated = _amounts("--price", price)
    tokens = {field: stated.pop(name, None) for name, field in _TOKENS.items()}
    prices = Prices(**tokens, per_call=stated, currency=currency)
    return Costs(prices=prices, latency_s=_amounts("--latency", latency))


def unknown_tools(costs: Costs, called: Iterable[str]) -> str | None:
    """A note on prices and latencies of tools that are never called; None where there are none.

    Args:
        costs: What the options state.
        called: Names of the tools in the log.
    """
    tools = sorted(set(called))
    fees = costs.prices.per_call
    unknown = [name for name in dict.fromkeys((*fees, *costs.latency_s)) if name not in tools]
    # Of very many tools some share a group, and a name may be among them.
    if not unknown or OTHER_TOOLS in tools:
        return None
    named = ", ".join(_with_closest(name, tools) for name in unknown[:_MAX_NAMED])
    more = f" and {len(unknown) - _MAX_NAMED:,} more" if len(unknown) > _MAX_NAMED else ""
    return f"--price or --latency names {count(len(unknown), 'tool')} that the log never calls: {named}{more}."


def _with_closest(name: str, tools: Iterable[str]) -> str:
    """A name with those it may have been meant for: tools of the log, or a price of tokens."""
    close = get_close_matches(name, [*filter(str.strip, tools), *_TOKENS], n=_MAX_CLOSE)
    return f"{name} (did you mean {' or '.join(close)}?)" if close else name


def _amounts(option: str, given: Iterable[str] | None) -> dict[str, float]:
    found = {}
    for text in given or ():
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{option} {text!r}: expected a name and a number, 0 or more, such as search=0.005")
        found[name] = value
    return found
