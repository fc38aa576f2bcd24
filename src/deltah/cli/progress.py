"""One progress bar for every long command: what, how far, numbers that matter, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deltah.core import metrics

Report = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, latest metrics)."""


def make_progress(console: Console | None = None) -> Progress:
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
    )


@contextmanager
def reporting(description: str) -> Iterator[Report]:
    """Show one bar while the block runs; yields the function that moves it."""
    with make_progress() as progress:
        task = progress.add_task(description, total=None, numbers="")

        def report(done: int, total: int, row: dict[str, float]) -> None:
            progress.update(task, completed=done, total=total, numbers=numbers_of(row))

        yield report


def numbers_of(row: dict[str, float]) -> str:
    """The three numbers worth watching during training."""
    shown = (("F1", metrics.OUTCOME), ("calls", metrics.CALLS), ("reduced", metrics.REDUCTION_RATE))
    return "  ".join(f"{name} {row[key]:.2f}" for name, key in shown if key in row)
