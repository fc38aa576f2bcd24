"""What commands print: progress on standard error, tables of summaries, safe text, and what could not be read.

A terminal shows a bar for each thing under way; a file or a pipe gets a plain line every ten seconds instead.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from deltah.calls.grading import OUTCOME
from deltah.calls.table import ScoredLog
from deltah.core import metrics
from deltah.stats.bootstrap import Cell
from deltah.stats.summary import DEMO_COLUMNS, Statistics, table
from deltah.text_format import count, inert

LINE_EVERY_S: Final = 10.0
READ_AFTER_S: Final = 1.0
"""Seconds of reading before anything is shown."""
_READ_EVERY_S: Final = 0.1
TITLE_WIDTH: Final = 12
"""Longest line of a column title, in characters."""
_MAX_PROBLEMS: Final = 20

Report = Callable[..., None]
"""Called with (done, total), and with the latest metrics where there are any."""


class Display:
    """Shows how far several things are, by name."""

    def __init__(self, progress: Progress, write: Callable[[str], object] | None = None) -> None:
        """Show tasks of a rich display, or write lines."""
        self._progress, self._write = progress, write
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[TaskID, str] = {}
        self._due = progress.get_time() + LINE_EVERY_S

    def show(
        self,
        name: str,
        *,
        description: str,
        done: int = 0,
        total: int | None = None,
        numbers: str = "",
        waiting: bool = False,
        afresh: bool = False,
    ) -> None:
        """Show how far one thing is."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(description, total=total, numbers="", start=False)
        task = self._tasks[name]
        if afresh:
            self._progress.reset(task, start=not waiting, total=total)
        if not waiting:
            self._progress.start_task(task)
        self._progress.update(task, description=description, completed=done, total=total, numbers=numbers)
        if self._progress.get_time() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write one line for all that has changed since the last one."""
        if self._write is None:
            return
        changed = []
        for task in self._progress.tasks:
            said = _counted(task)
            if task.started and self._said.get(task.id) != said:
                self._said[task.id] = said
                changed.append(said + _times(task))
        if changed:
            self._write("; ".join(changed) + "\n")
        self._due = self._progress.get_time() + LINE_EVERY_S


@contextmanager
def display(*, hidden: bool = False, transient: bool = False) -> Iterator[Display]:
    """Show progress while the block runs, as bars or as lines."""
    console = Console(stderr=True)
    lines = not hidden and not console.is_terminal
    with Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or lines,
        transient=transient,
        speed_estimate_period=300.0,
    ) as progress:
        shown = Display(progress, partial(print, end="", file=sys.stderr, flush=True) if lines else None)
        try:
            yield shown
        finally:
            if not transient:
                shown.flush()


@contextmanager
def reporting(first: str, *later: str, hidden: bool = False) -> Iterator[list[Report]]:
    """Show each phase of a command, a later one from its first report on; yields the functions that report them."""

    def move(name: str, done: int, total: int, row: Mapping[str, float] | None = None) -> None:
        shown.show(name, description=name, done=done, total=total, numbers=numbers_of(row or {}))

    with display(hidden=hidden) as shown:
        shown.show(first, description=first)
        yield [partial(move, name) for name in (first, *later)]


@contextmanager
def reading() -> Iterator[Callable[[int], None]]:
    """Show how many trajectories of a log were read; yields the function that takes their number."""
    with display(transient=True) as shown:
        due = time.monotonic() + READ_AFTER_S

        def watch(n: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                shown.show("read", description="trajectories read", done=n)
                due = time.monotonic() + _READ_EVERY_S

        yield watch


def numbers_of(row: Mapping[str, float]) -> str:
    """The three numbers worth watching during training."""
    shown = (("F1", metrics.OUTCOME), ("calls", metrics.CALLS), ("reduced", metrics.REDUCTION_RATE))
    return "  ".join(f"{name} {row[key]:.2f}" for name, key in shown if key in row)


def _counted(task: Task) -> str:
    total = "" if task.total is None else f"/{task.total:.0f}"
    numbers = task.fields["numbers"]
    return f"{' '.join(task.description.split())} {task.completed:.0f}{total}" + (f", {numbers}" if numbers else "")


def _times(task: Task) -> str:
    elapsed = timedelta(seconds=round(task.elapsed or 0.0))
    left = None if task.finished or task.total is None else task.time_remaining
    return f", {elapsed}" + ("" if left is None else f", {timedelta(seconds=round(left))} left")


def print_summaries(
    summaries: Mapping[str, Statistics],
    *,
    title: str | None = None,
    seconds: Mapping[str, float | None] | None = None,
    columns: tuple[str, ...] = DEMO_COLUMNS,
    outcome: str = OUTCOME,
) -> None:
    """Print one row per summary, value over its 95 % interval; `outcome` is the title of the mean outcome."""
    shown, rows = table(summaries, seconds=seconds, columns=columns, outcome=outcome)
    drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("")
    for column in shown:
        drawn.add_column(broken(column.title, TITLE_WIDTH), justify="right", no_wrap=True)
    for name, cells in rows.items():
        drawn.add_row(f"[bold]{escaped(name)}[/]", *map(two_lines, cells))
    Console().print(drawn)


def two_lines(cell: Cell) -> str:
    """A value over its interval."""
    return f"{cell.text}\n[dim]{escaped(cell.interval)}[/]" if cell.interval else cell.text


def broken(name: str, width: int) -> str:
    """A name on lines of at most `width` characters, cut after spaces and punctuation; longer words stay whole."""
    lines = [""]
    for part in re.findall(r"[^\s_.\-/:]*[\s_.\-/:]|[^\s_.\-/:]+", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def escaped(text: str) -> str:
    """Inert text with its brackets escaped from markup."""
    return escape(inert(text))


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on standard error: wrapped on a terminal; in a file each stays one line."""
    console = Console(stderr=True)
    for note in notes:
        console.print(f"Note: {inert(note)}", highlight=False, soft_wrap=not console.is_terminal, markup=False)


def report_losses(log: ScoredLog) -> None:
    """List what was lost on standard error, and leave with code 1 if a record could not be read."""
    for path in log.reader.skipped:
        typer.echo(f"passed over: {path} (no known trace format)", err=True)
    for problem in log.reader.problems[:_MAX_PROBLEMS]:
        typer.echo(f"left out: {problem}", err=True)
    if log.reader.n_problems > _MAX_PROBLEMS:
        typer.echo(f"left out: {log.reader.n_problems - _MAX_PROBLEMS:,} more", err=True)
    if log.reader.n_problems:
        typer.echo(f"{count(log.reader.n_problems, 'record')} could not be read", err=True)
        raise typer.Exit(1)
