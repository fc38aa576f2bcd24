"""`deltah score`: ΔH and waste of every call in traces or logs, as tables and as rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.calls.callfile import CallWriter
from deltah.calls.facts import LogFacts
from deltah.calls.logs import ScoredLog
from deltah.calls.notes import notes_on
from deltah.calls.waste import WasteLevel
from deltah.cli.losses import named_files, nothing_read, read_files, report_losses, spare_inputs
from deltah.cli.options import Answers, Join, Logs, Margin, Signal, Strict, TraceFormat, VocabSize, Workers, log_options
from deltah.cli.prices import Currency, Latency, Price, costs, unknown_tools
from deltah.cli.progress import reading
from deltah.cli.tables import broken, escaped, inert, two_lines
from deltah.core.registry import Entry
from deltah.core.types import Estimator
from deltah.runs.directory import nan_to_none
from deltah.stats.callgroups import CallSummary
from deltah.stats.scoring import LogScore, score_log
from deltah.stats.tables import estimate_cell, money_text, number, rate_cell, tool_title
from deltah.text_format import count
from deltah.traces.parquet import OPTIONAL


def command(  # noqa: PLR0913 - the options of a command line
    paths: Logs,
    answers: Answers = None,
    signal: Signal = None,
    margin: Margin = None,
    format: TraceFormat = None,
    vocab_size: VocabSize = None,
    join: Join = True,
    out: Annotated[Path | None, typer.Option(help="Write one row per call to a .parquet, .jsonl or .csv file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    price: Price = None,
    currency: Currency = "USD",
    latency: Latency = None,
    waste: Annotated[bool, typer.Option("--waste/--no-waste", help="Look for wasted calls; faster without.")] = True,
    strict: Strict = False,
    workers: Workers = None,
) -> None:
    """Score every tool call of logs: change of entropy, verdict, waste."""
    options = log_options(
        answers=answers,
        format=format,
        vocab_size=vocab_size,
        join=join,
        strict=strict,
        signal=signal,
        margin=margin,
    )
    with ExitStack() as stack:
        options = replace(options, watch=stack.enter_context(reading()))
        log = ScoredLog(paths, options, skip=("logprobs", "token_ids") if waste else OPTIONAL)
        spare_inputs([out], [answers, *named_files(log)])
        writer = None if out is None else stack.enter_context(CallWriter(out))
        stated = costs(price, currency, latency)
        scored = score_log(log, costs=stated, rows=writer, waste=waste, workers=workers)
        # In here, so that the file of an earlier run stays as it was.
        if not scored.facts.trajectories:
            raise nothing_read(log, paths)
        spare_inputs([out], read_files(log))
    unpriced = unknown_tools(stated, scored.calls.by_tool())
    if unpriced is not None:
        typer.echo(f"note  {inert(unpriced)}", err=True)
    if as_json:
        summary = _summary(log, scored, waste=waste)
        summary["notes"] += [] if unpriced is None else [unpriced]
        typer.echo(json.dumps(nan_to_none(summary), indent=1))
    else:
        _print_tables(log, scored, waste=waste)
    if out is not None and writer is not None:
        typer.echo(f"{count(writer.n_written, 'row')} in {out}", err=True)
    report_losses(log)


def _summary(log: ScoredLog, scored: LogScore, *, waste: bool) -> dict[str, Any]:
    """What `--json` prints."""
    reader, facts, metrics, calls = log.reader, scored.facts, scored.metrics, scored.calls
    unknown = {} if waste else {"certified": None, "likely": None}

    def rows(table: Mapping[Any, CallSummary]) -> dict[str, dict[str, Any]]:
        return {str(name): asdict(summary) | unknown for name, summary in table.items()}

    return {
        "trajectories": facts.trajectories,
        "without_entropies": facts.trajectories - metrics.n,
        "calls": facts.calls,
        "unreadable": reader.n_problems,
        "unjoined": reader.n_unjoined,
        "branches": reader.n_branches,
        "signal": log.signal.name,
        "margin": log.signal.resolved_margin,
        "waste": {name: facts.savings.verdicts[name] for name in WasteLevel} if waste else None,
        "savings": msgspec.to_builtins(facts.savings) if waste else None,
        **metrics.row(),
        "by_tool": rows(calls.by_tool()),
        "by_round": rows(calls.by_round()),
        "by_outcome": rows({"correct" if k else "not correct": v for k, v in calls.by_outcome().items()}),
        "notes": notes_on(log, facts),
    }


def _print_tables(log: ScoredLog, scored: LogScore, *, waste: bool) -> None:
    console = Console()
    console.print(_headline(log, scored.facts), highlight=False, soft_wrap=True)
    for note in notes_on(log, scored.facts):
        _print_text(console, inert(note))
    if scored.facts.calls:
        _print_calls(console, scored, log.signal.entry, waste=waste)
        _print_savings(console, scored.facts)


def _print_text(console: Console, text: str) -> None:
    """Print a sentence, wrapped on a terminal; in a file it stays one line."""
    console.print(text, highlight=False, soft_wrap=not console.is_terminal, markup=False)


def _print_calls(console: Console, scored: LogScore, signal: Entry[Any], *, waste: bool) -> None:
    """Calls by tool, by round and, where outcomes are known, by outcome."""
    calls = scored.calls
    by_tool = [(tool_title(name), summary) for name, summary in calls.by_tool().items()]
    by_round = [(str(k), summary) for k, summary in calls.by_round().items()]
    by_outcome = [("correct" if right else "not correct", summary) for right, summary in calls.by_outcome().items()]
    room = max(console.width - _NUMBERS_WIDTH, 10)
    for label, groups in (("tool", by_tool), ("round", by_round), ("outcome", by_outcome)):
        if groups:
            console.print(_call_table(label, groups, room, signal, waste=waste))


def _print_savings(console: Console, facts: LogFacts) -> None:
    """What dropping the waste would save, and what that takes for granted."""
    savings, currency = facts.savings, facts.costs.currency
    if not savings.certified_and_likely.calls:
        return
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="if these wasteful calls were dropped", title_justify="left"
    )
    for name in (
        "",
        "calls",
        "sampled\ntokens",
        "result\ntokens",
        "prompt\ntokens",
        currency,
        f"{currency},\ncached",
        "seconds",
    ):
        table.add_column(name, justify="right" if name else "left")
    for name, found in (("certified", savings.certified), ("with likely", savings.certified_and_likely)):
        counts = (found.calls, found.call_tokens, found.result_tokens, found.prompt_tokens)
        money = (found.money, found.money_with_cache)
        numbers = (*(number(n, 0) for n in counts), *map(money_text, money), number(found.seconds, 1))
        table.add_row(name, *numbers)
    console.print(table)
    for assumption in savings.assumptions:
        console.print(f"[dim]· {escaped(assumption)}[/]", highlight=False, soft_wrap=not console.is_terminal)


def _headline(log: ScoredLog, facts: LogFacts) -> str:
    estimators = ", ".join(sorted(facts.estimators - {Estimator.NONE.value})) or "none"
    parts = [
        f"{count(facts.trajectories, 'trajectory')}, {count(facts.calls, 'call')}, entropies: {estimators}",
        f"signal {log.signal.name}, margin {log.signal.resolved_margin:g}",
    ]
    return "; ".join(parts)


_NUMBERS_WIDTH = 70
"""Of a table of calls without its first column, in characters: an 80-column terminal leaves 10 to the names."""
_TITLE_WIDTH = 12
"""Of the signal's column, whose intervals are wider than a line of its title."""


def _call_table(
    label: str, groups: Sequence[tuple[str, CallSummary]], room: int, signal: Entry[Any], *, waste: bool
) -> Table:
    """One row a group: calls, verdicts, mean signal with its interval, and waste if it was looked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    mean = broken(f"mean {signal.with_unit}", _TITLE_WIDTH)
    names = ("calls", "reduced", mean, "unde-\ncided", "unde-\nfined", "errors")
    table.add_column(label, overflow="fold")
    for name in (*names, "waste", "likely\nwaste") if waste else names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, summary in groups:
        rate, delta = rate_cell(summary), estimate_cell(summary.delta_h, 3, signed=True)
        counts = [summary.undecided, summary.undefined, summary.errors]
        counts += [summary.certified, summary.likely] if waste else []
        table.add_row(escaped(broken(name, room)), str(summary.n), two_lines(rate), two_lines(delta), *map(str, counts))
    return table
