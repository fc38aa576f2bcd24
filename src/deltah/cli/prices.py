"""Prices and latencies on the command line, for savings in money and seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import typer

from deltah.errors import ConfigError

InputPrice = Annotated[float | None, typer.Option(help="Price of a million prompt tokens.", min=0.0)]
CachedPrice = Annotated[float | None, typer.Option(help="The same for tokens read from a prefix cache.", min=0.0)]
OutputPrice = Annotated[float | None, typer.Option(help="Price of a million sampled tokens.", min=0.0)]
Currency = Annotated[str, typer.Option(help="Name of the currency.")]
Fees = Annotated[list[str] | None, typer.Option("--fee", help="Fee of one call, as tool=0.005; repeatable.")]
Latencies = Annotated[
    list[str] | None,
    typer.Option("--latency", help="Seconds of one call, as tool=0.8, where none was measured; repeatable."),
]


def amounts(option: str, given: Iterable[str] | None) -> dict[str, float]:
    """Tool and number of each `tool=number`.

    Raises:
        ConfigError: if one is no such pair, or its number is negative.
    """
    found = {}
    for text in given or ():
        tool, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not tool or not equals or not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{option} is {text!r}; expected a tool and a number, 0 or more, such as search=0.005")
        found[tool] = value
    return found
