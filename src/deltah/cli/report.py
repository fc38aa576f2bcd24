"""`deltah report`: one self-contained HTML page from run directories or traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltah.cli.prices import CachedPrice, Currency, Fees, InputPrice, Latencies, OutputPrice, amounts


def command(  # noqa: PLR0913 - the options of a command line
    paths: Annotated[list[Path], typer.Argument(help="Run directories or trace files; several are compared.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; a JSON twin is written beside it.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    input_price: InputPrice = None,
    cached_price: CachedPrice = None,
    output_price: OutputPrice = None,
    currency: Currency = "USD",
    fees: Fees = None,
    latencies: Latencies = None,
) -> None:
    """Write a page with tables, waste and its price, curves and a trajectory viewer."""
    from deltah.study import Costs, load_report, write_report
    from deltah.study.savings import Prices

    prices = Prices(
        input_per_million=input_price,
        cached_input_per_million=cached_price,
        output_per_million=output_price,
        per_call=amounts("--fee", fees),
        currency=currency,
    )
    data = load_report(paths, title=title, costs=Costs(prices=prices, latency_s=amounts("--latency", latencies)))
    first = paths[0]
    page = out or (first / "report.html" if first.is_dir() else first.with_name("report.html"))
    write_report(data, page)
    typer.echo(f"page  {page.resolve().as_uri()}\njson  {page.with_suffix('.json')}")
    lost = sum(arm.n_problems for arm in data.arms)
    if lost:
        typer.echo(f"{lost} records could not be read; the page lists them", err=True)
        raise typer.Exit(1)
