"""`deltah score`: ΔH and waste of every call in traces or logs, as tables and as rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from deltah.cli.losses import nothing_read, report_losses
from deltah.cli.options import Answers, Join, Logs, Margin, Signal, Strict, TraceFormat, VocabSize, log_options
from deltah.cli.prices import Currency, Latency, Price, costs
from deltah.cli.tables import broken, escaped, two_lines
from deltah.core.metrics import MetricsTally
from deltah.core.scored import Signal as SignalOf
from deltah.core.types import Estimator, Trajectory
from deltah.study import CallRow, Evaluation, ScoredLog, calls_by, summarise_calls
from deltah.study.callfile import CallWriter, call_records
from deltah.study.notes import notes_on
from deltah.study.tables import estimate_cell, number, tool_title
from deltah.study.waste import Verdict, Waste
from deltah.traces.rundir import nan_to_none


def command(  # noqa: PLR0913 - the options of a command line
    paths: Logs,
    answers: Answers = None,
    signal: Signal = None,
    margin: Margin = None,
    format: TraceFormat = None,
    vocab_size: VocabSize = None,
    join: Join = True,
    out: Annotated[Path | None, typer.Option(help="Write one row a call: .parquet, .jsonl or .csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of tables.")] = False,
    price: Price = None,
    currency: Currency = "USD",
    latency: Latency = None,
    strict: Strict = False,
) -> None:
    """Score every tool call of traces or logs."""
    options = log_options(
        answers=answers,
        format=format,
        vocab_size=vocab_size,
        join=join,
        strict=strict,
        signal=signal,
        margin=margin,
    )
    log = ScoredLog(paths, options, skip=("logprobs", "token_ids"))
    tally = MetricsTally()
    with ExitStack() as stack:
        writer = None if out is None else stack.enter_context(CallWriter(out))

        def watch(trajectory: Trajectory, found: SignalOf | None, waste: tuple[frozenset[Waste], ...]) -> None:
            if found is not None:
                tally.add(found, trajectory.outcome)
            if writer is not None:
                for record in call_records(trajectory, found, waste):
                    writer.write(record)

        evaluation = Evaluation.of(log, costs=costs(price, currency, latency), watch=watch, view=False)
    if not len(evaluation):
        raise nothing_read(log, paths)
    if as_json:
        typer.echo(json.dumps(nan_to_none(_summary(log, evaluation, tally)), indent=1))
    else:
        _print_tables(log, evaluation)
    if out is not None and writer is not None:
        typer.echo(f"{writer.n_written} rows in {out}", err=True)
    report_losses(log)


def _summary(log: ScoredLog, evaluation: Evaluation, tally: MetricsTally) -> dict[str, Any]:
    """What `--json` prints."""
    waste = Counter(row.verdict.value for row in evaluation.rows)
    reader = log.reader
    return {
        "trajectories": len(evaluation),
        "without_entropies": len(evaluation) - tally.n,
        "calls": len(evaluation.rows),
        "unreadable": reader.n_problems,
        "unjoined": reader.n_unjoined,
        "branches": reader.n_branches,
        "signal": log.signal.name.value,
        "margin": log.signal.resolved_margin,
        "waste": {name: waste.get(name, 0) for name in Verdict},
        "savings": msgspec.to_builtins(evaluation.savings),
        **tally.row(),
    }


def _print_tables(log: ScoredLog, evaluation: Evaluation) -> None:
    console = Console()
    rows = evaluation.rows
    console.print(_headline(log, evaluation), highlight=False, soft_wrap=True)
    if rows:
        _print_calls(console, rows)
        _print_savings(console, evaluation)
    for note in notes_on(log, evaluation):
        console.print(note, highlight=False, soft_wrap=True, markup=False)


def _print_calls(console: Console, rows: Sequence[CallRow]) -> None:
    """Calls by tool, by round and, where outcomes are known, by outcome."""
    room = max(console.width - _NUMBERS_WIDTH, 10)
    by_round = calls_by(sorted(rows, key=lambda row: row.round), lambda row: str(row.round))
    console.print(_call_table("tool", calls_by(rows, lambda row: tool_title(row.tool)), room))
    console.print(_call_table("round", by_round, room))
    graded = {True: "correct", False: "not correct"}
    by_outcome = calls_by((row for row in rows if row.correct is not None), lambda row: graded[bool(row.correct)])
    if by_outcome:
        console.print(_call_table("outcome", by_outcome, room))


def _print_savings(console: Console, evaluation: Evaluation) -> None:
    """What dropping the waste would save, and what that takes for granted."""
    savings, currency = evaluation.savings, evaluation.costs.currency
    if not savings.certified_and_likely.calls:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="if these calls were dropped", title_justify="left")
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
    for name, found in (("certified waste", savings.certified), ("and likely waste", savings.certified_and_likely)):
        counts = (found.calls, found.call_tokens, found.result_tokens, found.prompt_tokens)
        money = (found.money, found.money_with_cache)
        numbers = (*(number(n, 0) for n in counts), *(number(n, 2) for n in money), number(found.seconds, 1))
        table.add_row(name, *numbers)
    console.print(table)
    for assumption in savings.assumptions:
        console.print(f"[dim]· {escaped(assumption)}[/]", highlight=False, soft_wrap=True)


def _headline(log: ScoredLog, evaluation: Evaluation) -> str:
    estimators = ", ".join(sorted(evaluation.estimators - {Estimator.NONE.value})) or "none"
    parts = [
        f"{len(evaluation)} trajectories, {len(evaluation.rows)} calls, entropies: {estimators}",
        f"signal {log.signal.name.value}, margin {log.signal.resolved_margin:g}",
    ]
    return "; ".join(parts)


_NUMBERS_WIDTH = 70
"""Of a table of calls without its first column, in characters: an 80-column terminal leaves 10 to the names."""


def _call_table(label: str, groups: dict[str, list[CallRow]], room: int) -> Table:
    """One row a group: calls, verdicts, mean ΔH with its interval, waste."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    names = ("calls", "reduced", "mean ΔH,\nnats", "unde-\ncided", "unde-\nfined", "errors", "waste", "likely\nwaste")
    table.add_column(label, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in groups.items():
        summary = summarise_calls(rows)
        rate, delta = estimate_cell(summary.reduction_rate, 2), estimate_cell(summary.delta_h, 3, signed=True)
        counts = (summary.undecided, summary.undefined, summary.errors, summary.certified, summary.likely)
        table.add_row(escaped(broken(name, room)), str(summary.n), two_lines(rate), two_lines(delta), *map(str, counts))
    return table
