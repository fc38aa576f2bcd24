"""`deltah score`: ΔH and waste of every call in traces or logs, as tables and as rows."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.calls.notes import notes_on
from deltah.calls.savings import Prices, SavingsReport, savings, unknown_tools
from deltah.calls.schema import TABLES
from deltah.calls.table import CallTable, ScoredLog, read_calls
from deltah.calls.tool_kinds import draft
from deltah.calls.viewers import check_name, write_scores
from deltah.cli import arguments
from deltah.cli.terminal import TITLE_WIDTH, broken, escaped, print_notes, reading, report_losses, two_lines
from deltah.core.registry import Entry
from deltah.errors import ConfigError
from deltah.runs import nan_to_none, write_atomic
from deltah.stats.bootstrap import estimate_cell
from deltah.stats.summary import BY_TOOL, CallSummary, calls_by, log_metrics, rate_cell, summarise
from deltah.text_format import count, inert, money_text, number, tool_title
from deltah.traces.files import expand

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

_IS_ROWS = arguments.with_columns(("trajectory", "call", "tool"), {column.name for column in TABLES["calls"]})
_IS_ANNOTATED = arguments.like(rb'"identifier": "deltah"')


def _is_scores(path: Path) -> bool:
    """Whether a file holds rows, or scores for a viewer."""
    if path.suffix == ".eval":
        return re.search(rb'"author": ?"deltah"', arguments.first_record(path)) is not None
    return (_IS_ANNOTATED if path.suffix == ".json" else _IS_ROWS)(path)


def _is_replaceable(_: Path) -> bool:
    """A draft of tools is there to be corrected: none is replaced."""
    return False


def command(  # noqa: PLR0913 - the options of a command line
    paths: arguments.Logs,
    answers: arguments.Answers = None,
    tools: arguments.ToolFile = None,
    signal: arguments.Signal = None,
    margin: arguments.Margin = None,
    format: arguments.TraceFormat = None,
    vocab_size: arguments.VocabSize = None,
    join: arguments.Join = True,
    out: Annotated[
        Path | None,
        typer.Option(help="Write rows of calls (.parquet, .jsonl, .csv), or for viewers: .annotations.json, .eval."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    price: arguments.Price = None,
    currency: arguments.Currency = "USD",
    latency: arguments.Latency = None,
    sql: Annotated[str | None, typer.Option(help="Print the answer of a query on tables calls, trajectories.")] = None,
    waste: Annotated[bool, typer.Option("--waste/--no-waste", help="Look for wasted calls; faster without.")] = True,
    write_tools: arguments.WriteTools = None,
    force: arguments.Force = False,
    strict: arguments.Strict = False,
    workers: arguments.Workers = None,
) -> None:
    """Score every tool call of logs: change of entropy, verdict, waste."""
    if out is not None:
        check_name(out)
    with reading() as watch:
        targets = {path: own for path, own in ((out, _is_scores), (write_tools, _is_replaceable)) if path}
        arguments.check_outputs(targets, [answers, tools, *expand(paths)], force=force)
        table = read_calls(
            paths,
            signal=signal,
            margin=margin,
            answers=answers,
            tools=tools,
            format=format,
            vocab_size=vocab_size,
            join=join,
            strict=strict,
            waste=waste,
            costs=arguments.costs(price, currency, latency),
            workers=workers,
            watch=watch,
        )
    log = table.log
    assert log is not None  # it was read from one
    n_rows = None if out is None else write_scores(table, out)
    if write_tools is not None:
        write_atomic(write_tools, draft(table))
        typer.echo(f"tools drafted in {write_tools}; correct them, and give the file to --tools", err=True)
    notes = _print_summary(table, log, as_json=as_json) if sql is None else []
    if sql is not None:
        _print_answer(table, sql, as_json=as_json)
    if n_rows is not None:
        typer.echo(f"{count(n_rows, 'row')} in {out}", err=True)
    print_notes(notes)
    report_losses(log)


def _print_summary(table: CallTable, log: ScoredLog, *, as_json: bool) -> list[str]:
    """Print what was measured; the notes on it are left to print."""
    saved = savings(table)
    groups = {
        "tool": calls_by(table, BY_TOOL),
        "round": {str(k): summary for k, summary in calls_by(table, "round").items()},
        "outcome": calls_by(table, "if(correct, 'correct', 'not correct')", where="correct IS NOT NULL"),
    }
    called = (tool for (tool,) in table.sql("SELECT DISTINCT tool FROM calls").fetchall())
    unpriced = unknown_tools(table.costs, called, table.tools.declared)
    notes = [*notes_on(table, log), *filter(None, [unpriced])]
    if as_json:
        summary = {**_summary(table, log, saved, groups), "notes": notes}
        typer.echo(json.dumps(nan_to_none(summary), indent=1))
        return [] if unpriced is None else [unpriced]
    console = Console()
    console.print(_headline(table, log, saved), highlight=False, soft_wrap=True)
    if not saved.calls:
        return notes
    groups["tool"] |= {_TOTAL: _all_calls(table)}
    room = max(console.width - _NUMBERS_WIDTH, 10)
    for label, group in groups.items():
        if group:
            console.print(_call_table(label, group, room, log.signal.entry, waste=table.has_waste))
    console.print(f"[dim]{_LEGEND}[/]\n", highlight=False, soft_wrap=not console.is_terminal)
    if saved.certified_and_likely.calls:
        _print_savings(console, saved, table.costs.prices)
    return notes


def _all_calls(table: CallTable) -> CallSummary:
    """The group of all calls, with the estimates of the report."""
    (found,), whole = calls_by(table, "1").values(), summarise(table)
    return replace(found, reduction_rate=whole.reduction_rate, mean_value=whole.mean_value)


def _print_answer(table: CallTable, query: str, *, as_json: bool) -> None:
    """Print the answer of a user's query."""
    import duckdb

    console, shown = Console(), io.StringIO()
    on_terminal = console.is_terminal  # a file or a pipe gets the whole answer
    width, height = (console.width, MAX_SQL_ROWS) if on_terminal else (sys.maxsize, sys.maxsize)
    try:
        answer = table.sql(query)
        if as_json:
            columns, rows = ([], []) if answer is None else (answer.columns, answer.fetchall())
            found = [dict(zip(columns, row, strict=True)) for row in rows]
            typer.echo(json.dumps(nan_to_none(found), indent=1, default=str))
        elif answer is not None:
            with redirect_stdout(shown):
                (_rounded(answer) if on_terminal else answer).show(max_width=width, max_rows=height)
            typer.echo(inert(shown.getvalue()), nl=False)
    except duckdb.Error as error:
        raise ConfigError(f"--sql: {error}\nThe tables calls and trajectories are in docs/table.md") from error


def _rounded(answer: DuckDBPyRelation) -> DuckDBPyRelation:
    """An answer whose numbers have four significant digits, and all digits before the decimal point."""
    digits = "least(300, greatest(0, 3 - floor(log10(abs(#{n})))::INT))"
    rounded = f"if(#{{n}} = 0 OR NOT isfinite(#{{n}}), #{{n}}, round(#{{n}}, {digits}))"
    listed = []
    for n, (name, kind) in enumerate(zip(answer.columns, answer.types, strict=True), start=1):
        quoted = name.replace('"', '""')
        listed.append(f'{rounded.format(n=n) if kind == "DOUBLE" else f"#{n}"} AS "{quoted}"')
    return answer.project(", ".join(listed))


def _summary(
    table: CallTable, log: ScoredLog, saved: SavingsReport, groups: Mapping[str, Mapping[str, CallSummary]]
) -> dict[str, Any]:
    """What `--json` prints, but for the notes."""
    reader = log.reader
    unknown = {} if table.has_waste else {"certified": None, "likely": None}
    return {
        "trajectories": saved.trajectories,
        "without_entropies": table.sql("SELECT count(*) FROM trajectories WHERE signal IS NULL").fetchall()[0][0],
        "calls": saved.calls,
        "unreadable": reader.n_problems,
        "unjoined": reader.n_unjoined,
        "weakly_joined": dict(reader.weakly_joined),
        "branches": reader.n_branches,
        "signal": log.signal.name,
        "margin": log.signal.resolved_margin,
        "waste": {level.value: n for level, n in saved.levels.items()} if table.has_waste else None,
        "savings": msgspec.to_builtins(saved) if table.has_waste else None,
        **log_metrics(table),
    } | {
        f"by_{label}": {name: asdict(summary) | unknown for name, summary in group.items()}
        for label, group in groups.items()
    }


def _print_savings(console: Console, savings: SavingsReport, prices: Prices) -> None:
    """What dropping the waste would save, and what that takes for granted; money only where a price is known."""
    currency = prices.currency
    is_priced = prices != Prices(currency=currency)
    title = "if these wasteful calls were dropped"
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    tokens = ("sampled\ntokens", "result\ntokens", "prompt\ntokens")
    for name in ("calls", *tokens, *((currency, f"{currency},\ncached") if is_priced else ()), "seconds"):
        table.add_column(name, justify="right")
    for name, found in (("certified", savings.certified), ("with likely", savings.certified_and_likely)):
        counts = (found.calls, found.call_tokens, found.result_tokens, found.prompt_tokens)
        money = (found.money, found.money_with_cache) if is_priced else ()
        numbers = (*(number(n, 0) for n in counts), *map(money_text, money), number(found.seconds, 1))
        table.add_row(name, *numbers)
    console.print(table)
    for assumption in savings.assumptions:
        if is_priced or "price" not in assumption:
            console.print(f"[dim]· {escaped(assumption)}[/]", highlight=False, soft_wrap=not console.is_terminal)


def _headline(table: CallTable, log: ScoredLog, saved: SavingsReport) -> str:
    named = table.sql("SELECT DISTINCT estimator FROM trajectories WHERE estimator <> 'none' ORDER BY ALL")
    estimators = ", ".join(name for (name,) in named.fetchall()) or "none"
    return (
        f"{count(saved.trajectories, 'trajectory')}, {count(saved.calls, 'call')}, entropies: {estimators}; "
        f"signal {log.signal.name}, margin {log.signal.resolved_margin:g}"
    )


_TOTAL = "all calls"
_LEGEND = "Shares and means stand above their 95 % interval; other columns count calls."
MAX_SQL_ROWS = 40
"""Rows of an answer that a terminal shows: the first and the last ones."""
_NUMBERS_WIDTH = 70
"""Of a table of calls without its first column, in characters: an 80-column terminal leaves 10 to the names."""


def _call_table(label: str, groups: Mapping[str, CallSummary], room: int, signal: Entry[Any], *, waste: bool) -> Table:
    """One row per group: calls, verdicts, mean signal with its interval, and waste if it was looked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    mean = broken(f"mean {signal.with_unit}", TITLE_WIDTH)
    names = ("calls", "share\nreduced", mean, "unde-\ncided", "unde-\nfined", "errors")
    table.add_column(label, overflow="fold")
    for name in (*names, "waste", "likely\nwaste") if waste else names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, summary in groups.items():
        if name == _TOTAL:
            table.add_section()
        shown, rate = escaped(broken(tool_title(name), room)), two_lines(rate_cell(summary))
        delta = two_lines(estimate_cell(summary.mean_value, 3, signed=True))
        counts = [summary.undecided, summary.undefined, summary.errors]
        counts += [summary.certified, summary.likely] if waste else []
        table.add_row(shown, str(summary.n), rate, delta, *map(str, counts))
    return table
