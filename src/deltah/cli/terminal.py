"""What commands print: tables of summaries, text that is safe on a terminal, and what could not be read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deltah.calls.grading import OUTCOME
from deltah.calls.logs import ScoredLog
from deltah.errors import DataError
from deltah.stats.bootstrap import Cell
from deltah.stats.summary import DEMO_COLUMNS, Statistics, table
from deltah.text_format import count

_TITLE_WIDTH = 12
"""Longest line of a column title, in characters."""
_MAX_PROBLEMS = 20
"""How many unreadable records are listed."""


def print_summaries(
    summaries: Mapping[str, Statistics],
    *,
    title: str | None = None,
    seconds: Mapping[str, float | None] | None = None,
    columns: tuple[str, ...] = DEMO_COLUMNS,
    outcome: str = OUTCOME,
) -> None:
    """Print one row a summary, value over its 95 % interval; `outcome` is the title of the mean outcome."""
    shown, rows = table(summaries, seconds=seconds, columns=columns, outcome=outcome)
    drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("")
    for column in shown:
        drawn.add_column(broken(column.title, _TITLE_WIDTH), justify="right", no_wrap=True)
    for name, cells in rows.items():
        drawn.add_row(f"[bold]{escaped(name)}[/]", *map(two_lines, cells))
    Console().print(drawn)


def two_lines(cell: Cell) -> str:
    """A value over its interval."""
    return f"{cell.text}\n[dim]{escaped(cell.interval)}[/]" if cell.interval else cell.text


def broken(name: str, width: int) -> str:
    """A name on lines of at most `width` characters, cut after spaces, underscores, dots, dashes, slashes and colons.

    A part without any of them that is longer keeps a line of its own.
    """
    lines = [""]
    for part in re.findall(r"[^\s_.\-/:]*[\s_.\-/:]|[^\s_.\-/:]+", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, except tabs and line breaks; names in a log may hold any."""


def inert(text: str) -> str:
    """Replace control characters, so that a terminal shows the text and nothing else."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def escaped(text: str) -> str:
    """Inert text with its brackets escaped from markup."""
    return escape(inert(text))


def logs_of(log: ScoredLog) -> list[str]:
    """Files that are read for logs."""
    return [source.path for source in log.reader.sources]


def report_losses(log: ScoredLog) -> None:
    """List what was lost on standard error, and leave with code 1 if a record could not be read."""
    for path in log.reader.skipped:
        typer.echo(f"passed over: {path} (no known trace format)", err=True)
    for problem in log.reader.problems[:_MAX_PROBLEMS]:
        typer.echo(f"left out: {problem}", err=True)
    more = log.reader.n_problems - min(len(log.reader.problems), _MAX_PROBLEMS)
    if more:
        typer.echo(f"left out: {more:,} more", err=True)
    if log.reader.n_problems:
        typer.echo(f"{count(log.reader.n_problems, 'record')} could not be read", err=True)
        raise typer.Exit(1)


def nothing_read(log: ScoredLog, paths: Sequence[str]) -> DataError:
    """The error for logs without a single trajectory."""
    first = f"; the first problem: {log.reader.problems[0]}" if log.reader.problems else ""
    skipped = f"; passed over {log.reader.skipped[0]} (no known trace format)" if log.reader.skipped else ""
    empty = "; it holds nothing to read" if len(paths) == 1 else "; they hold nothing to read"
    return DataError(f"no trajectory could be read from {', '.join(paths)}{first or skipped or empty}")
