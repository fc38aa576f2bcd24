"""Progress of long commands, on standard error: what is done, the main numbers, the time left.

A terminal shows a bar for each thing under way. A file or a pipe gets a plain line every ten seconds instead, so that a
log shows that the command is alive.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
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

from deltah.core import metrics

LINE_EVERY_S: Final = 10.0
"""Seconds between two plain lines."""
READ_AFTER_S: Final = 1.0
"""Seconds of reading before anything is shown."""
_READ_EVERY_S: Final = 0.1
_SPEED_OVER_S: Final = 300.0
"""Window of the speed that the time left is estimated from, in seconds."""

Report = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, latest metrics)."""


class Display:
    """Shows how far several things are, by name."""

    def __init__(self, progress: Progress, write: Callable[[str], object] | None = None) -> None:
        """Use the tasks of a rich display.

        Args:
            progress: Draws the bars, unless it is disabled.
            write: Takes plain lines instead of bars.
        """
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
        """Show how far one thing is.

        Args:
            name: Which thing.
            description: What it does now.
            done: Number of units that are done.
            total: Number of all units; None: unknown.
            numbers: Text beside the bar.
            waiting: Whether it has not begun; its time does not run yet.
            afresh: Whether a new phase begins, with its own speed and time left.
        """
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
    """Show progress while the block runs, as bars or as lines.

    Args:
        hidden: Show nothing.
        transient: Leave no trace at the end: bars are erased, no last line is written.
    """
    console = Console(stderr=True)
    lines = not hidden and not console.is_terminal
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        disable=hidden or lines,
        transient=transient,
        speed_estimate_period=_SPEED_OVER_S,
    ) as progress:
        shown = Display(progress, _to_stderr if lines else None)
        try:
            yield shown
        finally:
            if not transient:
                shown.flush()


@contextmanager
def reporting(description: str) -> Iterator[Report]:
    """Show progress of one thing while the block runs; yields the function that moves it."""
    with reporting_phases(description) as (report,):
        yield report


@contextmanager
def reporting_phases(first: str, *later: str, hidden: bool = False) -> Iterator[list[Report]]:
    """Show each phase of a command, a later one from its first report on.

    Args:
        first: Description of the first phase.
        *later: Of those that follow.
        hidden: Show nothing.
    """

    def mover(shown: Display, name: str) -> Report:
        def report(done: int, total: int, row: dict[str, float]) -> None:
            shown.show(name, description=name, done=done, total=total, numbers=numbers_of(row))

        return report

    with display(hidden=hidden) as shown:
        shown.show(first, description=first)
        yield [mover(shown, text) for text in (first, *later)]


@contextmanager
def reading() -> Iterator[Callable[[int], None]]:
    """Show how many trajectories of a log were read; yields the function to tell it."""
    with display(transient=True) as shown:
        due = time.monotonic() + READ_AFTER_S

        def watch(n: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                shown.show("read", description="trajectories read", done=n)
                due = time.monotonic() + _READ_EVERY_S

        yield watch


def numbers_of(row: dict[str, float]) -> str:
    """The three numbers worth watching during training."""
    shown = (("F1", metrics.OUTCOME), ("calls", metrics.CALLS), ("reduced", metrics.REDUCTION_RATE))
    return "  ".join(f"{name} {row[key]:.2f}" for name, key in shown if key in row)


def _counted(task: Task) -> str:
    total = "" if task.total is None else f"/{task.total:.0f}"
    numbers = task.fields["numbers"]
    return f"{' '.join(task.description.split())} {task.completed:.0f}{total}" + (f", {numbers}" if numbers else "")


def _times(task: Task) -> str:
    left = None if task.finished or task.total is None else task.time_remaining
    return f", {_clock(task.elapsed or 0.0)}" + ("" if left is None else f", {_clock(left)} left")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()
