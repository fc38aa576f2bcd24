"""Prices and latencies on the command line, for savings in money and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Final

import typer

from deltah.errors import ConfigError
from deltah.study import Costs
from deltah.study.savings import Prices

_TOKENS: Final = {
    "input": "input_per_million",
    "cached": "cached_input_per_million",
    "output": "output_per_million",
}
Price = Annotated[
    list[str] | None,
    typer.Option(
        help="Price, repeatable: input=2, cached=0.2 and output=8 of a million tokens, or search=0.005 of one call."
    ),
]
Currency = Annotated[str, typer.Option(help="Of the prices.")]
Latency = Annotated[
    list[str] | None, typer.Option(help="Seconds of one call where none was measured, as search=0.8; repeatable.")
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
