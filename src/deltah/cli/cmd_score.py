"""`deltah score`: ΔH and waste of every call in traces or logs, as tables and as rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.calls.notes import notes_on
from deltah.calls.savings import SavingsReport, savings, unknown_tools
from deltah.calls.table import CallTable, ScoredLog, read_calls
from deltah.calls.tool_kinds import draft
from deltah.calls.viewers import check_name, write_scores
from deltah.cli import arguments
from deltah.cli.terminal import TITLE_WIDTH, broken, escaped, nothing_read, reading, report_losses, two_lines
from deltah.core.registry import Entry
from deltah.errors import ConfigError
from deltah.runs import nan_to_none, write_atomic
from deltah.stats.bootstrap import estimate_cell
from deltah.stats.summary import BY_TOOL, CallSummary, calls_by, log_metrics, rate_cell
from deltah.text_format import count, inert, money_text, number, tool_title
from deltah.traces.files import expand


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
    write_tools: Annotated[
        Path | None, typer.Option(help="Draft a file for --tools from the log: what was measured, to be corrected.")
    ] = None,
    force: arguments.Force = False,
    strict: arguments.Strict = False,
    workers: arguments.Workers = None,
) -> None:
    """Score every tool call of logs: change of entropy, verdict, waste."""
    if out is not None:
        check_name(out)
    with reading() as watch:
        inputs = [answers, tools, *(source.path for source in expand(paths))]
        arguments.check_outputs([out, write_tools], inputs, force=force)
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
    if not table.n_trajectories:
        raise nothing_read(log, paths)
    n_rows = None if out is None else write_scores(table, out)
    if write_tools is not None:
        write_atomic(write_tools, draft(table))
    if sql is None:
        _print_summary(table, log, as_json=as_json)
    else:
        _print_answer(table, sql, as_json=as_json)
    if n_rows is not None:
        typer.echo(f"{count(n_rows, 'row')} in {out}", err=True)
    if write_tools is not None:
        typer.echo(f"{count(len(table.sql('FROM tools')), 'tool')} in {write_tools}; correct it", err=True)
    report_losses(log)


def _print_summary(table: CallTable, log: ScoredLog, *, as_json: bool) -> None:
    saved, notes = savings(table), notes_on(table, log)
    groups = {
        "tool": calls_by(table, BY_TOOL),
        "round": {str(k): summary for k, summary in calls_by(table, "round").items()},
        "outcome": calls_by(table, "if(correct, 'correct', 'not correct')", where="correct IS NOT NULL"),
    }
    called = (tool for (tool,) in table.sql("SELECT DISTINCT tool FROM calls").fetchall())
    unpriced = unknown_tools(table.costs, called, table.tools.declared)
    if unpriced is not None:
        typer.echo(f"note  {inert(unpriced)}", err=True)
    if as_json:
        summary = {**_summary(table, log, saved, groups), "notes": [*notes, *filter(None, [unpriced])]}
        typer.echo(json.dumps(nan_to_none(summary), indent=1))
        return
    console = Console()
    console.print(_headline(table, log, saved), highlight=False, soft_wrap=True)
    for note in notes:  # wrapped on a terminal; in a file each stays one line
        console.print(inert(note), highlight=False, soft_wrap=not console.is_terminal, markup=False)
    if not saved.calls:
        return
    room = max(console.width - _NUMBERS_WIDTH, 10)
    for label, group in groups.items():
        if group:
            console.print(_call_table(label, group, room, log.signal.entry, waste=table.has_waste))
    if saved.certified_and_likely.calls:
        _print_savings(console, saved, table.costs.prices.currency)


def _print_answer(table: CallTable, query: str, *, as_json: bool) -> None:
    """Print the answer of a user's query."""
    import duckdb

    try:
        answer = table.sql(query)
        columns, rows = ([], []) if answer is None else (answer.columns, answer.fetchall())
    except duckdb.Error as error:
        raise ConfigError(f"--sql: {error}\nThe tables calls and trajectories are in docs/table.md") from error
    if as_json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        typer.echo(json.dumps(nan_to_none(found), indent=1, default=str))
        return
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(escaped(name), overflow="fold")
    for row in rows:
        shown.add_row(*("" if value is None else escaped(str(value)) for value in row))
    Console().print(shown)


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


def _print_savings(console: Console, savings: SavingsReport, currency: str) -> None:
    """What dropping the waste would save, and what that takes for granted."""
    title = "if these wasteful calls were dropped"
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    tokens = ("sampled\ntokens", "result\ntokens", "prompt\ntokens")
    for name in ("calls", *tokens, currency, f"{currency},\ncached", "seconds"):
        table.add_column(name, justify="right")
    for name, found in (("certified", savings.certified), ("with likely", savings.certified_and_likely)):
        counts = (found.calls, found.call_tokens, found.result_tokens, found.prompt_tokens)
        money = (found.money, found.money_with_cache)
        numbers = (*(number(n, 0) for n in counts), *map(money_text, money), number(found.seconds, 1))
        table.add_row(name, *numbers)
    console.print(table)
    for assumption in savings.assumptions:
        console.print(f"[dim]· {escaped(assumption)}[/]", highlight=False, soft_wrap=not console.is_terminal)


def _headline(table: CallTable, log: ScoredLog, saved: SavingsReport) -> str:
    named = table.sql("SELECT DISTINCT estimator FROM trajectories WHERE estimator <> 'none' ORDER BY ALL")
    estimators = ", ".join(name for (name,) in named.fetchall()) or "none"
    return (
        f"{count(saved.trajectories, 'trajectory')}, {count(saved.calls, 'call')}, entropies: {estimators}; "
        f"signal {log.signal.name}, margin {log.signal.resolved_margin:g}"
    )


_NUMBERS_WIDTH = 70
"""Of a table of calls without its first column, in characters: an 80-column terminal leaves 10 to the names."""


def _call_table(label: str, groups: Mapping[str, CallSummary], room: int, signal: Entry[Any], *, waste: bool) -> Table:
    """One row per group: calls, verdicts, mean signal with its interval, and waste if it was looked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    mean = broken(f"mean {signal.with_unit}", TITLE_WIDTH)
    names = ("calls", "reduced", mean, "unde-\ncided", "unde-\nfined", "errors")
    table.add_column(label, overflow="fold")
    for name in (*names, "waste", "likely\nwaste") if waste else names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, summary in groups.items():
        shown, rate = escaped(broken(tool_title(name), room)), two_lines(rate_cell(summary))
        delta = two_lines(estimate_cell(summary.mean_value, 3, signed=True))
        counts = [summary.undecided, summary.undefined, summary.errors]
        counts += [summary.certified, summary.likely] if waste else []
        table.add_row(shown, str(summary.n), rate, delta, *map(str, counts))
    return table
