"""One progress bar for every long command: what, how far, numbers that matter, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deltah.core import metrics

Report = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, latest metrics)."""


def make_progress(console: Console | None = None, *, disable: bool = False) -> Progress:
    """Progress display in the project's layout."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=disable,
    )


@contextmanager
def reporting(description: str) -> Iterator[Report]:
    """Show one bar while the block runs; yields the function that moves it."""
    with reporting_phases(description) as (report,):
        yield report


@contextmanager
def reporting_phases(first: str, *later: str, hidden: bool = False) -> Iterator[list[Report]]:
    """Show one bar for each phase of a command, a later one from its first report on, with a time left of its own.

    Args:
        first: Description of the first phase.
        *later: Of those that follow.
        hidden: Show nothing.
    """
    with make_progress(disable=hidden) as progress:
        bars = [
            progress.add_task(text, total=None, numbers="", visible=text == first, start=text == first)
            for text in (first, *later)
        ]
        yield [_mover(progress, bar) for bar in bars]


def _mover(progress: Progress, bar: TaskID) -> Report:
    """Function that moves one bar."""

    def report(done: int, total: int, row: dict[str, float]) -> None:
        progress.start_task(bar)
        progress.update(bar, completed=done, total=total, numbers=numbers_of(row), visible=True)

    return report


def numbers_of(row: dict[str, float]) -> str:
    """The three numbers worth watching during training."""
    shown = (("F1", metrics.OUTCOME), ("calls", metrics.CALLS), ("reduced", metrics.REDUCTION_RATE))
    return "  ".join(f"{name} {row[key]:.2f}" for name, key in shown if key in row)
