"""`deltah report`: one self-contained HTML page from run directories, traces or logs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deltah.calls.savings import unknown_tools
from deltah.calls.table import LogOptions
from deltah.cli import arguments
from deltah.cli.terminal import print_notes, reading
from deltah.text_format import count

_IS_PAGE = arguments.like(rb'<script type="application/json" id="deltah-data">')
_IS_TWIN = arguments.like(rb'\A\{"schema_version": ?\d+, ?"title":')


def command(  # noqa: PLR0913 - the options of a command line
    paths: arguments.Logs,
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write (default: report.html beside the first path).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    answers: arguments.Answers = None,
    tools: arguments.ToolFile = None,
    signal: arguments.Signal = None,
    margin: arguments.Margin = None,
    format: arguments.TraceFormat = None,
    vocab_size: arguments.VocabSize = None,
    join: arguments.Join = True,
    price: arguments.Price = None,
    currency: arguments.Currency = "USD",
    latency: arguments.Latency = None,
    force: arguments.Force = False,
    strict: arguments.Strict = False,
) -> None:
    """Write an HTML page about logs or runs; several paths are compared."""
    from deltah.report.data import load_report
    from deltah.report.page import write_report

    options = LogOptions(
        answers=answers,
        tools=tools,
        format=format,
        vocab_size=vocab_size,
        join=join,
        strict=strict,
        signal=signal,
        margin=margin,
    )
    stated = arguments.costs(price, currency, latency)
    first = Path(paths[0])
    page = out or (first / "report.html" if first.is_dir() else first.with_name("report.html"))
    twin = {page.with_suffix(".json"): _IS_TWIN} if page.name else {}
    arguments.check_outputs({page: _IS_PAGE, **twin}, [answers, tools, *paths], force=force)
    with reading() as watch:
        data = load_report(paths, options=replace(options, watch=watch), title=title, costs=stated)
    called = {tool for e in data.every_evaluation for (tool,) in e.rows("SELECT DISTINCT tool FROM calls")}
    declared = {name for e in data.every_evaluation for name in e.table.tools.declared}
    if (unpriced := unknown_tools(stated, called, sorted(declared))) is not None:
        data = replace(data, notes=(unpriced,))
    write_report(data, page)
    typer.echo(f"page  {page.resolve().as_uri()}\njson  {page.with_suffix('.json')}")
    print_notes(dict.fromkeys((*data.notes, *(note for arm in data.arms for note in arm.notes))))
    if lost := sum(arm.n_problems for arm in data.arms):
        typer.echo(f"{count(lost, 'record')} could not be read; the page lists them", err=True)
        raise typer.Exit(1)
